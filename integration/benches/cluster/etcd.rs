//! SET compared with etcd's put: three nodes each, every write fsynced on a majority
//! before the reply.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::TcpStream;

use crate::driver::{Ask, Figures, Target, VALUE, Walk, drive_by_all, key, on_one_thread};
use crate::process::{Running, free_ports, wait_for};
use crate::table::Table;
use crate::{CLIENTS, KEYS, Settings, replicas};

/// Three etcd processes.
struct Etcd {
    processes: Vec<Running>,
    /// Addresses for clients; the leader first.
    addresses: Vec<SocketAddr>,
    _dir: tempfile::TempDir,
}

impl Etcd {
    fn start() -> Etcd {
        let dir = tempfile::tempdir().expect("a directory for etcd");
        let ports: [u16; 6] = free_ports();
        let (clients, peers) = ports.split_at(3);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(number, port)| format!("n{number}={}", url(*port)))
            .collect();
        let start = |number: usize| {
            let (client, peer) = (url(clients[number]), url(peers[number]));
            let flags = [
                ("--name", format!("n{number}")),
                ("--data-dir", dir.path().join(number.to_string()).display().to_string()),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer),
                ("--initial-cluster", cluster.join(",")),
                ("--initial-cluster-state", "new".to_owned()),
            ];
            let mut words = vec!["etcd".to_owned()];
            words.extend(flags.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
            Running::start(&words)
        };
        let processes = (0..3).map(start).collect();
        let mut addresses: Vec<_> =
            clients.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect();
        let leads = |address: &SocketAddr| {
            let page = ureq::get(format!("http://{address}/metrics"))
                .call()
                .and_then(|mut page| page.body_mut().read_to_string());
            page.is_ok_and(|page| page.lines().any(|line| line == "etcd_server_is_leader 1"))
        };
        wait_for("etcd to have a leader", || addresses.iter().any(leads));
        addresses.sort_by_key(|address| !leads(address));
        Etcd { processes, addresses, _dir: dir }
    }

    fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Running::pid).collect()
    }
}

/// Executes puts, one at a time per connection; connection `n` uses address `n` modulo
/// their number.
fn drive_etcd(addresses: &[SocketAddr], window: Duration, pids: &[u32]) -> Figures {
    on_one_thread(CLIENTS, window, pids, 1, |number, stop| {
        converse(addresses[number % addresses.len()], number, stop)
    })
}

async fn converse(address: SocketAddr, number: usize, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let socket = TcpStream::connect(address).await.expect("etcd");
    socket.set_nodelay(true).expect("a TCP socket");
    let (mut calls, connection) = h2::client::handshake(socket).await.expect("etcd speaks HTTP/2");
    let _connection = tokio::task::spawn_local(connection);
    let uri = format!("http://{address}/etcdserverpb.KV/Put");
    let mut keys = Walk::new(number, KEYS);
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let message = put_request(key(keys.next()).as_bytes());
        let began = Instant::now();
        if let Err(error) = call(&mut calls, &uri, message).await {
            panic!("etcd: {error}");
        }
        took.push(began.elapsed());
    }
    took
}

/// A unary gRPC call.
async fn call(
    calls: &mut SendRequest<Bytes>,
    uri: &str,
    message: Bytes,
) -> Result<(), Box<dyn std::error::Error>> {
    let request = http::Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut ready = calls.clone().ready().await?;
    let (answer, mut body) = ready.send_request(request, false)?;
    body.send_data(message, true)?;
    let mut body = answer.await?.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = body.trailers().await?.ok_or("an answer without trailers")?;
    match trailers.get("grpc-status").map(http::HeaderValue::as_bytes) {
        Some(b"0") => Ok(()),
        _ => Err(format!("{trailers:?}").into()),
    }
}

/// `PutRequest { key = 1, value = 2 }` in protobuf, behind gRPC's header (not compressed,
/// its length).
fn put_request(key: &[u8]) -> Bytes {
    let mut message = vec![0, 0, 0, 0, 0];
    for (tag, field) in [(0x0a, key), (0x12, VALUE)] {
        message.push(tag);
        // A length below 128 is one byte of a varint.
        message.push(
            u8::try_from(field.len()).ok().filter(|length| *length < 128).expect("short fields"),
        );
        message.extend_from_slice(field);
    }
    let length = u32::try_from(message.len() - 5).expect("a short message");
    message[1..5].copy_from_slice(&length.to_be_bytes());
    message.into()
}

pub(crate) fn report(settings: &Settings) {
    let etcd = Etcd::start();
    let cluster = settings.cluster().start();
    let (theirs, ours) = (etcd.pids(), cluster.pids());
    let targets: Vec<Target> = cluster.all_proxies().into_iter().map(Target::new).collect();
    println!(
        "etcd put and Bridle SET at pipeline 1, both answer when a majority of three has fsynced \
         (durability always)\n"
    );
    let window = settings.window();
    let table = Table::of(
        settings.rounds,
        2,
        vec![
            (
                "etcd, clients at its leader".to_owned(),
                Box::new(|| drive_etcd(&etcd.addresses[..1], window, &theirs)),
            ),
            (
                "etcd, clients at all three".to_owned(),
                Box::new(|| drive_etcd(&etcd.addresses, window, &theirs)),
            ),
            (
                "bridle, clients at one node".to_owned(),
                Box::new(|| drive_by_all(&targets[..1], Ask::Set, 1, window, &ours)),
            ),
            (
                "bridle, clients at all three".to_owned(),
                Box::new(|| drive_by_all(&targets, Ask::Set, 1, window, &ours)),
            ),
            (
                "bridle, redis-benchmark at one node".to_owned(),
                Box::new(|| {
                    replicas::redis_benchmark(
                        targets[0].address,
                        "set",
                        1,
                        settings.requests,
                        &ours,
                    )
                }),
            ),
        ],
    );
    table.print(6.0);
}
