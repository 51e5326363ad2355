//! Authentication: secrets, certificates, clusters, ids; and bytes from unauthenticated
//! peers.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail here")]

#[allow(dead_code, reason = "each test file uses its part")]
#[path = "net/kit.rs"]
mod kit;

use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::ServerId;
use cluster::net::{
    ClusterId, Destination, Net, NetError, NetOptions, NetSetupError, NetTls, Secret, Service,
};
use kit::{LONG, ask, options, serve, until};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Asks one of these as the other; the answer, or why there is none.
async fn meet(dialer: NetOptions, acceptor: NetOptions) -> Result<String, String> {
    let served = serve(acceptor).await;
    let net = Net::new(dialer).unwrap();
    net.set_address(ServerId(2), &served.address);
    let answer = match ask(&net, "me").await {
        Ok(answer) => Ok(String::from_utf8_lossy(&answer).into_owned()),
        Err(NetError::NotSent(why)) => Err(why),
        Err(error) => panic!("{error}"),
    };
    let channel = net.open(Destination::Server(ServerId(2)), Service::Meta, "x".into()).await;
    assert_eq!(channel.is_ok(), answer.is_ok());
    assert_eq!(served.echo.calls.load(Ordering::SeqCst), usize::from(answer.is_ok()));
    answer
}

#[tokio::test]
async fn the_secret_is_asked_for_both_ways() {
    let with = |server: u64, secret: Option<&str>| NetOptions {
        secret: secret.map(|secret| Secret::new(secret).unwrap()),
        ..options(server)
    };
    let right = Some("correct horse battery staple");
    meet(with(1, right), with(2, right)).await.unwrap();
    for (ours, theirs, word) in [
        (right, Some("wrong horse"), "does not know the cluster's secret"),
        (right, None, "the acceptor has none"),
        (None, right, "the dialer has none"),
    ] {
        let why = meet(with(1, ours), with(2, theirs)).await.unwrap_err();
        assert!(why.contains(word), "{why}");
        assert!(!why.contains("horse"), "{why}");
    }
    assert!(matches!(Secret::new(""), Err(NetSetupError::EmptySecret)));
    assert_eq!(format!("{:?}", Secret::new("horse").unwrap()), "Secret(..)");
}

#[tokio::test]
async fn clusters_do_not_mix() {
    let of = |server: u64, cluster: Option<u64>| NetOptions {
        cluster: cluster.map(ClusterId),
        ..options(server)
    };
    assert_eq!(
        meet(of(1, Some(7)), of(2, Some(7))).await.unwrap(),
        "0000000000000001 Some(ClusterId(7)) host1:1 Rows"
    );
    meet(of(1, Some(7)), of(2, None)).await.unwrap();
    meet(of(1, None), of(2, Some(7))).await.unwrap();
    let why = meet(of(1, Some(7)), of(2, Some(8))).await.unwrap_err();
    assert!(
        why.contains("cluster 0000000000000007") && why.contains("cluster 0000000000000008"),
        "{why}"
    );
}

/// Joining a cluster closes connections with members of another one.
#[tokio::test]
async fn joining_a_cluster_ends_connections_with_another() {
    let served = serve(NetOptions { cluster: Some(ClusterId(7)), ..options(2) }).await;
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &served.address);
    ask(&net, "now").await.unwrap();
    net.join(ClusterId(8));
    let Err(NetError::NotSent(why)) = ask(&net, "now").await else { panic!("refused") };
    assert!(why.contains("cluster"), "{why}");
    net.join(ClusterId(7));
    tokio::time::sleep(Duration::from_millis(300)).await;
    ask(&net, "now").await.unwrap();
    assert_eq!(net.cluster(), Some(ClusterId(7)));
}

#[tokio::test]
async fn another_server_at_the_address_is_refused() {
    let why = meet(options(1), options(3)).await.unwrap_err();
    assert!(
        why.contains("server 0000000000000002 was called, and server 0000000000000003 answers"),
        "{why}"
    );
}

struct Authority(rcgen::Certificate, Issuer<'static, KeyPair>);

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    Authority(cert, Issuer::new(params, key))
}

/// A certificate of `authority` for `name`, trusting in `trusted`.
fn tls(
    directory: &std::path::Path,
    what: &str,
    authority: &Authority,
    trusted: &Authority,
    name: &str,
) -> NetTls {
    let key = KeyPair::generate().unwrap();
    let cert =
        CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &authority.1).unwrap();
    let file = |kind: &str| directory.join(format!("{what}.{kind}.pem"));
    std::fs::write(file("ca"), trusted.0.pem()).unwrap();
    std::fs::write(file("cert"), cert.pem()).unwrap();
    std::fs::write(file("key"), key.serialize_pem()).unwrap();
    NetTls { ca: file("ca"), cert: file("cert"), key: file("key"), name: None }
}

#[tokio::test]
async fn foreign_certificates_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, others) = (authority(), authority());
    let with = |server: u64, tls: Option<NetTls>| NetOptions { tls, ..options(server) };
    let good = tls(directory.path(), "good", &ours, &ours, "127.0.0.1");
    meet(with(1, Some(good.clone())), with(2, Some(good.clone()))).await.unwrap();
    // The secret goes on top.
    let secret = |options: NetOptions, secret: &str| NetOptions {
        secret: Some(Secret::new(secret).unwrap()),
        ..options
    };
    meet(secret(with(1, Some(good.clone())), "a"), secret(with(2, Some(good.clone())), "a"))
        .await
        .unwrap();
    meet(secret(with(1, Some(good.clone())), "a"), secret(with(2, Some(good.clone())), "b"))
        .await
        .unwrap_err();
    // Signed by somebody else, either side; trusting in somebody else; no TLS at all,
    // either side.
    let theirs = tls(directory.path(), "theirs", &others, &ours, "127.0.0.1");
    let trusting = tls(directory.path(), "trusting", &ours, &others, "127.0.0.1");
    for (dialer, acceptor) in [
        (Some(&theirs), Some(&good)),
        (Some(&good), Some(&theirs)),
        (Some(&trusting), Some(&good)),
        (Some(&good), Some(&trusting)),
        (None, Some(&good)),
    ] {
        meet(with(1, dialer.cloned()), with(2, acceptor.cloned())).await.unwrap_err();
    }
    meet(
        with(1, Some(good.clone())),
        NetOptions { handshake_timeout: Duration::from_millis(500), ..options(2) },
    )
    .await
    .unwrap_err();
    // The name counts: the address's host, or the one that was agreed upon.
    let named = tls(directory.path(), "named", &ours, &ours, "bridle");
    let why = meet(with(1, Some(good.clone())), with(2, Some(named.clone()))).await.unwrap_err();
    assert!(why.contains("certificate"), "{why}");
    let agreed = NetTls { name: Some("bridle".to_owned()), ..named };
    meet(with(1, Some(agreed.clone())), with(2, Some(agreed.clone()))).await.unwrap();
    // Large frames, too.
    let served = serve(with(2, Some(agreed.clone()))).await;
    let net = Net::new(with(1, Some(agreed.clone()))).unwrap();
    net.set_address(ServerId(2), &served.address);
    assert_eq!(ask(&net, vec![b'n'; 5_000_000]).await.unwrap().len(), 5_000_000);
    // Files that are none are named.
    let broken = NetTls { key: directory.path().join("none.pem"), ..agreed };
    let error = Net::new(with(1, Some(broken))).err().unwrap().to_string();
    assert!(error.contains("none.pem"), "{error}");
}

/// Connections that never greet are closed, and there is a cap on them; who belongs here
/// gets in again when they have gone.
#[tokio::test]
async fn silent_strangers_are_few_and_short() {
    let served = serve(NetOptions {
        half_open_max: 4,
        handshake_timeout: Duration::from_millis(400),
        ..options(2)
    })
    .await;
    let mut strangers = Vec::new();
    for _ in 0..10 {
        strangers.push(TcpStream::connect(&served.address).await.unwrap());
    }
    let started = std::time::Instant::now();
    let mut closed_at_once = 0;
    for stranger in &mut strangers {
        let ended = tokio::time::timeout(LONG, stranger.read(&mut [0; 10])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)));
        closed_at_once += usize::from(started.elapsed() < Duration::from_millis(200));
    }
    assert!(started.elapsed() < Duration::from_secs(3) && closed_at_once < 10);
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &served.address);
    ask(&net, "now").await.unwrap();
}

/// One address can't take all places of those who have not greeted.
#[tokio::test]
async fn unauthenticated_peers_keep_no_member_out() {
    let served = serve(NetOptions {
        half_open_max: 8,
        half_open_per_ip_max: 2,
        handshake_timeout: LONG,
        ..options(2)
    })
    .await;
    let mut strangers = Vec::new();
    for _ in 0..8 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
        strangers.push(socket.connect(served.address.parse().unwrap()).await.unwrap());
    }
    for stranger in &mut strangers[2..] {
        let ended = tokio::time::timeout(LONG, stranger.read(&mut [0; 10])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "one too many from there");
    }
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &served.address);
    ask(&net, "now").await.unwrap();
}

/// A greeting as a dialer without a secret says it, by letting one dial us.
async fn greeted(address: &str) -> TcpStream {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let net = Net::new(options(9)).unwrap();
    let near = listener.local_addr().unwrap().to_string();
    let dialing = tokio::spawn(async move {
        net.call(Destination::Address(near), Service::Rows, "x".into(), Duration::from_secs(1))
            .await
    });
    let (mut dialer, _) = listener.accept().await.unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Passes hello, challenge, proof and welcome on; then the stream is ours.
    let pass = async |from: &mut TcpStream, to: &mut TcpStream, preface: usize| {
        let mut start = vec![0; preface + 2];
        from.read_exact(&mut start).await.unwrap();
        let mut body =
            vec![0; usize::from(u16::from_le_bytes([start[preface], start[preface + 1]]))];
        from.read_exact(&mut body).await.unwrap();
        to.write_all(&[start, body].concat()).await.unwrap();
    };
    // The lane's byte is in front of the preface.
    pass(&mut dialer, &mut stream, 9).await;
    pass(&mut stream, &mut dialer, 0).await;
    pass(&mut dialer, &mut stream, 0).await;
    pass(&mut stream, &mut dialer, 0).await;
    dialing.abort();
    stream
}

#[tokio::test]
async fn garbage_closes_the_connection_and_nothing_else() {
    let served =
        serve(NetOptions { handshake_timeout: Duration::from_millis(300), ..options(2) }).await;
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &served.address);
    ask(&net, "now").await.unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(150));
    let garbage = prop::collection::vec(any::<u8>(), 1..300);
    let hello = &b"\x01bridle\x01\x00"[..];
    // A channel's message and credit for none; an end of none; a channel opened twice;
    // unknown kinds; calls that dialers only make.
    let frame = |kind: u8, id: u64, body: &[u8]| {
        [&(10 + body.len() as u32).to_le_bytes()[..], &[kind, 1], &id.to_le_bytes(), body].concat()
    };
    for at in 0..150 {
        let mut bytes = garbage.new_tree(&mut runner).unwrap().current();
        let (mut stream, start) = match at % 3 {
            0 => (TcpStream::connect(&served.address).await.unwrap(), &b""[..]),
            1 => (TcpStream::connect(&served.address).await.unwrap(), hello),
            _ => (greeted(&served.address).await, &b""[..]),
        };
        if at % 6 == 5 {
            let (id, kind) = (u64::from(bytes[0]) % 3, 5 + bytes[0] % 8);
            bytes = [
                frame(6, id, b"x"),
                frame(7, id, b"abc"),
                frame(8, id, b""),
                frame(kind, id, &bytes),
                frame(5, id, b""),
                frame(5, id, b""),
            ]
            .concat();
        }
        let _ = stream.write_all(&[start, &bytes].concat()).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ =
            tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await.expect("it is closed");
    }
    assert_eq!(ask(&net, "now").await.unwrap(), "now");
    assert!(net.is_connected(&Destination::Server(ServerId(2))));
    // And a dialer that meets an acceptor who talks garbage.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    net.set_address(ServerId(3), &listener.local_addr().unwrap().to_string());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = net
        .call(Destination::Server(ServerId(3)), Service::Rows, "x".into(), LONG)
        .await
        .unwrap_err();
    assert!(matches!(error, NetError::NotSent(_)), "{error}");
    until("it stays connected", || net.is_connected(&Destination::Server(ServerId(2)))).await;
}
