//! Accepts connections, rejects those over the limit or forbidden, and closes all when
//! the server stops.
//!
//! # Invariants
//! - At most `maxclients` sockets are open, including those in a TLS handshake:
//!   descriptors are reserved for the data (`tests/tls.rs`,
//!   `tls_handshake_counts_as_a_client`).

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use cluster::Boxed;
use commands::Reply;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::client::Endpoint;
use crate::connection::Connection;
use crate::resp::{Protocol, encode};
use crate::session::{FIRST_TABLE, Session};
use crate::tls::Tls;
use crate::{Proxy, errors};

/// Limit of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for connections to finish what is in flight when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of the sweep for idle clients.
const IDLE_SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a failed accept (out of file descriptors, for example).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// A listening socket.
trait Acceptor {
    type Stream: AsFd;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Self::Stream>>;
}

impl Acceptor for TcpListener {
    type Stream = TcpStream;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        TcpListener::poll_accept(self, context).map_ok(|(stream, _)| stream)
    }
}

impl Acceptor for UnixListener {
    type Stream = UnixStream;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        UnixListener::poll_accept(self, context).map_ok(|(stream, _)| stream)
    }
}

/// Serves the clients of a listener, over TLS if given, until [`Proxy::shutdown`] is
/// cancelled and all connections have finished what was in flight.
pub async fn serve(proxy: Arc<Proxy>, listener: TcpListener, tls: Option<Arc<Tls>>) {
    let (speaks_tls, host) = (tls.is_some(), proxy.clone());
    let serve_stream = move |permit, stream| -> Boxed<'static, ()> {
        let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(tls.config()));
        Box::pin(serve_stream(permit, host.clone(), stream, acceptor))
    };
    accept_all(proxy, listener, serve_stream, speaks_tls).await;
}

/// As [`serve`], for a Unix socket at this path; all its clients are local.
pub async fn serve_unix(proxy: Arc<Proxy>, listener: UnixListener, path: String) {
    let host = proxy.clone();
    let serve_stream = move |permit: ConnectionPermit, stream: UnixStream| -> Boxed<'static, ()> {
        let (host, address) = (host.clone(), format!("{path}:0"));
        Box::pin(async move {
            let (local_address, fd) = (address.clone(), stream.as_raw_fd());
            let endpoint =
                Endpoint { address, local_address, fd, is_loopback: true, is_unix: true };
            handshake_within(Some(permit), host, stream, endpoint).await;
        })
    };
    accept_all(proxy, listener, serve_stream, false).await;
}

/// Accepts until the server stops, then waits for the connections to end.
async fn accept_all<D: Acceptor>(
    proxy: Arc<Proxy>,
    acceptor: D,
    serve_stream: impl Fn(ConnectionPermit, D::Stream) -> Boxed<'static, ()>,
    speaks_tls: bool,
) {
    let connections = TaskTracker::new();
    let sweeper = connections.spawn(sweep(proxy.clone()));
    connections.spawn(crate::server::run_periodic(proxy.clone()));
    while let Some(accepted) =
        proxy.shutdown.run_until_cancelled(poll_fn(|context| acceptor.poll_accept(context))).await
    {
        match accepted {
            Ok(stream) => {
                proxy.stats.connections_received.add(1);
                match ConnectionPermit::take(&proxy) {
                    Some(permit) => drop(connections.spawn(serve_stream(permit, stream))),
                    None => reject_immediately(&proxy, &stream, speaks_tls),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(acceptor);
    sweeper.abort();
    proxy.clients.wake_all();
    connections.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!(
            connections = proxy.clients.len(),
            "disconnecting clients that did not finish within the drain timeout"
        );
        proxy.clients.all().iter().for_each(|client| client.kill());
    }
}

/// Closes idle clients.
async fn sweep(proxy: Arc<Proxy>) {
    let mut ticks = tokio::time::interval(IDLE_SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        let limit = proxy.settings.load().idle_timeout_s;
        if limit > 0 {
            proxy.clients.close_idle(Duration::from_secs(limit));
        }
    }
}

/// A permit for one client connection, returned on drop.
pub(crate) struct ConnectionPermit(Arc<Proxy>);

impl ConnectionPermit {
    /// `None`: `maxclients` are connected.
    fn take(proxy: &Arc<Proxy>) -> Option<ConnectionPermit> {
        let before = proxy.clients.sockets.fetch_add(1, Ordering::Relaxed);
        let permit = ConnectionPermit(proxy.clone());
        (before < proxy.settings.load().clients_max).then_some(permit)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.clients.sockets.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve_stream(
    permit: ConnectionPermit,
    proxy: Arc<Proxy>,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
) {
    let Ok(endpoint) = prepare(&proxy, &stream) else { return };
    let Some(acceptor) = acceptor else {
        return handshake_within(Some(permit), proxy, stream, endpoint).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => handshake_within(Some(permit), proxy, stream, endpoint).await,
        Ok(Err(error)) => tracing::debug!(client = %endpoint.address, %error, "TLS handshake"),
        Err(_) => tracing::debug!(client = %endpoint.address, "TLS handshake timed out"),
    }
}

/// Sets the socket's options and returns its addresses.
fn prepare(proxy: &Proxy, stream: &TcpStream) -> io::Result<Endpoint> {
    stream.set_nodelay(true)?;
    let keepalive = proxy.settings.load().tcp_keepalive_s;
    if keepalive > 0 {
        // As Redis: a probe after this time, and three more within the same time again.
        let (idle, every) =
            (Duration::from_secs(keepalive), Duration::from_secs((keepalive / 3).max(1)));
        let probes =
            socket2::TcpKeepalive::new().with_time(idle).with_interval(every).with_retries(3);
        socket2::SockRef::from(stream).set_tcp_keepalive(&probes)?;
    }
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    // IPv4 addresses of a dual-stack socket are mapped; this maps them back.
    let is_loopback = peer.ip().to_canonical().is_loopback();
    Ok(Endpoint {
        address: peer.to_string(),
        local_address: local.to_string(),
        fd: stream.as_raw_fd(),
        is_loopback,
        is_unix: false,
    })
}

/// Serves one client over any byte stream until the client or the server ends the
/// connection; a rejected client gets an error.
pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    proxy: Arc<Proxy>,
    stream: S,
    endpoint: Endpoint,
) {
    handshake_within(None, proxy, stream, endpoint).await;
}

/// The permit is released last, when the socket is closed.
async fn handshake_within<S: AsyncRead + AsyncWrite + Unpin>(
    permit: Option<ConnectionPermit>,
    proxy: Arc<Proxy>,
    stream: S,
    endpoint: Endpoint,
) {
    let settings = proxy.settings.load_full();
    if settings.protected_mode && settings.password.is_none() && !endpoint.is_loopback {
        return reject(&proxy, stream, errors::DENIED).await;
    }
    let client = proxy.clients.enter(endpoint, FIRST_TABLE.into());
    proxy.stats.connections.up();
    Connection::new(stream, permit, Session::new(proxy, client)).run().await;
}

async fn reject<S: AsyncWrite + Unpin>(proxy: &Proxy, mut stream: S, why: &'static str) {
    proxy.stats.connections_rejected.add(1);
    // Best effort: the connection is closed either way.
    let _ = tokio::time::timeout(HANDSHAKE_TIMEOUT, async {
        stream.write_all(&error_line(why)).await?;
        stream.shutdown().await
    })
    .await;
}

/// Rejects a connection over `maxclients` without waiting: the error is sent if the empty
/// socket takes it immediately. A TLS client would need a handshake first and is closed
/// without an error, as in Redis.
fn reject_immediately(proxy: &Proxy, stream: &impl AsFd, speaks_tls: bool) {
    proxy.stats.connections_rejected.add(1);
    if !speaks_tls {
        // Best effort: the connection is closed either way.
        let _ = socket2::SockRef::from(stream).send(&error_line(errors::MAX_CLIENTS));
    }
}

fn error_line(why: &'static str) -> bytes::BytesMut {
    let mut line = bytes::BytesMut::new();
    encode(&Reply::error(why), Protocol::Resp2, &mut line);
    line
}
