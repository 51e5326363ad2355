//! The accept loop for other processes: limits connections in handshake, serves those
//! that belong to the cluster, and drains them at the stop.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::handshake::Handshaker;
use super::peer_connection::Lane;
use super::reader::ReaderOptions;
use super::socket::{Socket, run};
use super::{Net, NetOptions, Peer, Services, prepare};

/// After accept failed (no more file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then until what was asked is answered.
pub(super) async fn serve(
    net: Arc<Net>,
    listener: TcpListener,
    services: Arc<dyn Services>,
    stop: CancellationToken,
) {
    let half_open_by_ip = Arc::new(HalfOpenByIp::default());
    let open = Arc::new(AtomicUsize::new(0));
    let tracker = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(half_open) = half_open_by_ip.admit(remote.ip(), &net.options) else {
            tracing::warn!(%remote, "connection dropped: too many connections in handshake");
            continue;
        };
        if open.load(Ordering::Relaxed) >= net.options.connections_max {
            tracing::warn!(%remote, "connection dropped: too many connections");
            continue;
        }
        let place = ConnectionPermit::take(&open);
        let guest = Incoming {
            net: net.clone(),
            services: services.clone(),
            stop: stop.clone(),
            tracker: tracker.clone(),
            half_open,
            _permit: place,
        };
        tracker.spawn_on(guest.read_lane(stream), &net.runtime);
    }
    drop(listener);
    tracker.close();
    tracker.wait().await;
}

/// Numbers of half-open connections, by origin.
#[derive(Default)]
struct HalfOpenByIp(Mutex<HashMap<IpAddr, usize>>);

impl HalfOpenByIp {
    /// `None`: there are too many, in all or from there.
    fn admit(self: &Arc<Self>, from: IpAddr, options: &NetOptions) -> Option<HalfOpen> {
        let from = origin(from);
        let mut counts = self.0.lock();
        let in_all: usize = counts.values().sum();
        if in_all >= options.half_open_max
            || counts.get(&from).is_some_and(|count| *count >= options.half_open_per_ip_max)
        {
            return None;
        }
        *counts.entry(from).or_default() += 1;
        Some(HalfOpen { half_open_by_ip: self.clone(), from })
    }
}

/// The unit that the limit of half-open connections counts by: an IPv4 address, or an
/// IPv6 /64 network, whose every host has many addresses.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// One half-open connection, counted until it is dropped.
struct HalfOpen {
    half_open_by_ip: Arc<HalfOpenByIp>,
    from: IpAddr,
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        let mut counts = self.half_open_by_ip.0.lock();
        if let Some(count) = counts.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

/// A permit for one connection, returned on drop.
struct ConnectionPermit(Arc<AtomicUsize>);

impl ConnectionPermit {
    fn take(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        ConnectionPermit(open.clone())
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An accepted connection before its handshake.
struct Incoming {
    net: Arc<Net>,
    services: Arc<dyn Services>,
    stop: CancellationToken,
    tracker: TaskTracker,
    half_open: HalfOpen,
    _permit: ConnectionPermit,
}

impl Incoming {
    /// Reads the byte that says which lane it is, and goes on where that is handled.
    async fn read_lane(self, mut stream: TcpStream) {
        let (remote, limit) = (stream.peer_addr(), self.net.options.handshake_timeout);
        let said = match self.stop.run_until_cancelled(timeout(limit, stream.read_u8())).await {
            None => return,
            Some(Ok(Ok(byte))) => {
                Lane::of(byte).ok_or_else(|| "it does not speak this protocol".to_owned())
            }
            Some(Ok(Err(error))) => Err(error.to_string()),
            Some(Err(_)) => Err(format!("no greeting within {limit:?}")),
        };
        // A socket belongs to the runtime that it was made in.
        let sorted =
            said.and_then(|lane| Ok((lane, stream.into_std().map_err(|error| error.to_string())?)));
        match sorted {
            Ok((lane, stream)) => {
                let (tracker, net) = (self.tracker.clone(), self.net.clone());
                tracker.spawn_on(self.serve_connection(lane, stream), net.runtime(lane));
            }
            Err(why) => tracing::warn!(remote = ?remote.ok(), why, "handshake failed"),
        }
    }

    async fn serve_connection(self, lane: Lane, stream: std::net::TcpStream) {
        let Incoming { net, services, stop, half_open, _permit, .. } = self;
        let remote = stream.peer_addr();
        let limit = net.options.handshake_timeout;
        let greeted =
            match stop.run_until_cancelled(timeout(limit, shake_hands(&net, stream))).await {
                None => return,
                Some(Ok(greeted)) => greeted,
                Some(Err(_)) => Err(format!("no greeting within {limit:?}")),
            };
        drop(half_open);
        let (stream, peer, frame_bytes_max) = match greeted {
            Ok(greeted) => greeted,
            Err(why) => {
                tracing::warn!(remote = ?remote.ok(), why, "handshake failed");
                return;
            }
        };
        let (reader, writer, direct) = stream.split();
        let connection = Connection::new(peer, frame_bytes_max, direct, &net.stopped);
        let entry = net.accepted.lock().insert(connection.clone());
        let rows_runtime = net.answering_runtime(lane);
        let inbound = ReaderOptions {
            services: Some(services),
            rows_runtime,
            frame_bytes_max: net.options.frame_bytes_max,
        };
        let running = run(connection.clone(), reader, writer, inbound, net.options.ping_every);
        let ending = async {
            stop.cancelled().await;
            connection.drain(net.options.drain_timeout).await;
            connection.close("it has stopped");
        };
        // The second only makes the first end.
        tokio::join!(running, async {
            tokio::select! {
                () = ending => {}
                () = connection.closed.cancelled() => {}
            }
        });
        net.accepted.lock().remove(entry);
    }
}

async fn shake_hands(
    net: &Net,
    stream: std::net::TcpStream,
) -> Result<(Socket, Peer, usize), String> {
    let stream = TcpStream::from_std(stream).map_err(|error| error.to_string())?;
    prepare(&stream).map_err(|error| format!("set up the socket: {error}"))?;
    let remote = stream.peer_addr().map_err(|error| error.to_string())?;
    let mut stream = match net.tls.as_ref().map(ArcSwap::load_full) {
        None => Socket::Plain(stream),
        Some(tls) => Socket::Tls(Box::new(
            tls.acceptor.accept(stream).await.map_err(|error| format!("TLS: {error}"))?.into(),
        )),
    };
    let handshaker = Handshaker { info: net.peer_info(), secret: net.options.secret.as_ref() };
    let info = handshaker.accept(&mut stream).await.map_err(|error| error.to_string())?;
    Ok((
        stream,
        Peer { server: info.server, cluster: info.cluster, address: info.address, remote },
        info.frame_bytes_max as usize,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_is_one_origin() {
        let of = |text: &str| origin(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
