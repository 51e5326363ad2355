//! The outgoing connection to one other process, and the task that dials it again after
//! it was lost.
//!
//! While dialing fails, calls fail immediately or after [`DIAL_WAIT_MAX`]. Dialing is
//! repeated every [`BACKOFF_MAX`] while there was a call within [`RECONNECT_FOR`].

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::connection::Connection;
use super::handshake::Handshaker;
use super::reader::ReaderOptions;
use super::socket::{Socket, run};
use super::{Destination, Net, NetError, Peer, prepare};
use crate::ServerId;

/// Pauses between failed attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(100);
/// Maximum wait of a call for an attempt that follows a failed one.
const DIAL_WAIT_MAX: Duration = Duration::from_millis(50);
/// Without a call for this long, dialing ends until the next one.
const RECONNECT_FOR: Duration = Duration::from_secs(10);
/// A connection that lived this long was stable: after its loss it is dialed again
/// without a pause. So is the first one that was not.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// Maximum number of a host name's addresses that are tried.
const ADDRESSES_MAX: usize = 8;

/// A class of traffic with a connection of its own. The first byte of each connection
/// names it in clear text: it only selects the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(super) enum Lane {
    Calls = 1,
    /// Never behind rows, and on Raft's runtime.
    Raft = 2,
    /// Never before the others.
    Bulk = 3,
    /// The channel to meta, which must go on whatever becomes of rows.
    Meta = 4,
}

impl Lane {
    pub(super) const ALL: [Lane; 4] = [Lane::Calls, Lane::Raft, Lane::Bulk, Lane::Meta];

    pub(super) fn of(byte: u8) -> Option<Lane> {
        Lane::ALL.into_iter().find(|lane| *lane as u8 == byte)
    }
}

#[derive(Clone)]
enum DialState {
    /// Nobody dials.
    Idle,
    /// The first attempt, or the first since a good connection was lost.
    First,
    /// Another attempt, after one that failed so.
    Again(Arc<str>),
    /// It failed, and is not tried again for a moment.
    Down(Arc<str>),
    Up(Arc<Connection>),
}

struct DialTask {
    is_running: bool,
    /// When somebody last waited for a connection.
    wanted: Instant,
}

pub(super) struct PeerConnection {
    to: Destination,
    lane: Lane,
    connection: ArcSwapOption<Connection>,
    dial: watch::Sender<DialState>,
    task: Mutex<DialTask>,
    /// Rung when its address has changed.
    address_changed: Notify,
}

impl PeerConnection {
    pub(super) fn new(to: Destination, lane: Lane) -> Arc<Self> {
        Arc::new(PeerConnection {
            to,
            lane,
            connection: ArcSwapOption::empty(),
            dial: watch::Sender::new(DialState::Idle),
            task: Mutex::new(DialTask { is_running: false, wanted: Instant::now() }),
            address_changed: Notify::new(),
        })
    }

    /// The connection, if it is up.
    pub(super) fn current(&self) -> Option<Arc<Connection>> {
        self.connection.load_full().filter(|connection| !connection.takes_no_calls())
    }

    /// The address has changed: a pause between attempts ends.
    pub(super) fn address_changed(&self) {
        self.address_changed.notify_waiters();
    }

    /// The connection, made if there is none.
    pub(super) async fn connected(
        self: &Arc<Self>,
        net: &Arc<Net>,
        deadline: tokio::time::Instant,
    ) -> Result<Arc<Connection>, NetError> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let mut seen = self.dial.subscribe();
        self.ensure_dialing(net);
        loop {
            let dial = seen.borrow_and_update().clone();
            let (until, why) = match dial {
                DialState::Up(connection) if !connection.takes_no_calls() => return Ok(connection),
                DialState::Down(why) => return Err(NetError::NotSent(why.to_string())),
                DialState::Again(why) => {
                    (deadline.min(tokio::time::Instant::now() + DIAL_WAIT_MAX), why.to_string())
                }
                DialState::Idle | DialState::First | DialState::Up(_) => {
                    (deadline, format!("there is no connection to {} yet", self.to))
                }
            };
            match tokio::time::timeout_at(until, seen.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(NetError::NotSent(why)),
            }
        }
    }

    /// Has somebody dial, if nobody does.
    fn ensure_dialing(self: &Arc<Self>, net: &Arc<Net>) {
        let mut task = self.task.lock();
        task.wanted = Instant::now();
        if !task.is_running {
            task.is_running = true;
            self.dial.send_replace(DialState::First);
            let stopped = net.stopped.clone();
            let dialing = self.clone().dial_until_unwanted(Arc::downgrade(net));
            net.runtime(self.lane).spawn(async move { stopped.run_until_cancelled(dialing).await });
        }
    }

    fn is_wanted(&self) -> bool {
        let mut task = self.task.lock();
        task.is_running = task.wanted.elapsed() < RECONNECT_FOR;
        if !task.is_running {
            self.dial.send_replace(DialState::Idle);
        }
        task.is_running
    }

    /// Makes the connection again and again, as long as it is wanted.
    async fn dial_until_unwanted(self: Arc<Self>, net: Weak<Net>) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let Some(strong) = net.upgrade() else { return };
            let dialed = self.dial_once(&strong).await;
            drop(strong);
            let why: Arc<str> = match dialed {
                Ok(connection) => {
                    let born = Instant::now();
                    let peer = connection.peer.server;
                    tracing::info!(%peer, to = %self.to, lane = ?self.lane, "connected");
                    self.connection.store(Some(connection.clone()));
                    self.dial.send_replace(DialState::Up(connection.clone()));
                    connection.no_new_calls.cancelled().await;
                    self.connection.store(None);
                    let why = connection.failure().unwrap_or_else(|| "it is stopping".to_owned());
                    tracing::info!(%peer, to = %self.to, lane = ?self.lane, why, "connection lost");
                    self.task.lock().wanted = Instant::now();
                    if born.elapsed() > STABLE_AFTER {
                        backoff = BACKOFF_MIN;
                    }
                    if backoff == BACKOFF_MIN {
                        backoff *= 2;
                        self.dial.send_replace(DialState::First);
                        continue;
                    }
                    format!("the connection to {} was lost: {why}", self.to).into()
                }
                Err(why) => {
                    tracing::debug!(to = %self.to, why, "no connection");
                    why.into()
                }
            };
            self.dial.send_replace(DialState::Down(why.clone()));
            // Over when its address changes.
            let _ = timeout(backoff, self.address_changed.notified()).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
            if !self.is_wanted() {
                return;
            }
            self.dial.send_replace(DialState::Again(why));
        }
    }

    /// Resolves the address and tries what it gives, one after the other.
    async fn dial_once(&self, net: &Arc<Net>) -> Result<Arc<Connection>, String> {
        let (address, wanted) = match &self.to {
            Destination::Address(address) => (address.clone(), None),
            Destination::Server(server) => match net.address_of(*server) {
                Some(address) => (address, Some(*server)),
                None => return Err(format!("no address is known of server {server}")),
            },
        };
        let limit = net.options.connect_timeout;
        let found = match timeout(limit, tokio::net::lookup_host(&address)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(format!("resolve {address}: {error}")),
            Err(_) => return Err(format!("resolve {address}: no answer within {limit:?}")),
        };
        let mut failure = format!("resolve {address}: it has no addresses");
        for socket_address in found.take(ADDRESSES_MAX) {
            let stream = match timeout(limit, TcpStream::connect(socket_address)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    failure = format!("connect to {address} ({socket_address}): {error}");
                    continue;
                }
                Err(_) => {
                    failure = format!(
                        "connect to {address} ({socket_address}): no answer within {limit:?}"
                    );
                    continue;
                }
            };
            let limit = net.options.handshake_timeout;
            match timeout(limit, shake_hands(net, stream, self.lane, &address, wanted)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(why)) => failure = format!("{address} ({socket_address}): {why}"),
                Err(_) => {
                    failure = format!("{address} ({socket_address}): no greeting within {limit:?}")
                }
            }
        }
        Err(failure)
    }
}

async fn shake_hands(
    net: &Arc<Net>,
    mut stream: TcpStream,
    lane: Lane,
    address: &str,
    wanted: Option<ServerId>,
) -> Result<Arc<Connection>, String> {
    prepare(&stream).map_err(|error| format!("set up the socket: {error}"))?;
    stream.write_all(&[lane as u8]).await.map_err(|error| error.to_string())?;
    let remote = stream.peer_addr().map_err(|error| error.to_string())?;
    let mut stream = match net.tls.as_ref().map(ArcSwap::load_full) {
        None => Socket::Plain(stream),
        Some(tls) => {
            let connected = tls.connector.connect(tls.name_of(address)?, stream).await;
            Socket::Tls(Box::new(connected.map_err(|error| format!("TLS: {error}"))?.into()))
        }
    };
    let handshaker = Handshaker { info: net.peer_info(), secret: net.options.secret.as_ref() };
    let info = handshaker.dial(&mut stream, wanted).await.map_err(|error| error.to_string())?;
    let (reader, writer, direct) = stream.split();
    let peer = Peer { server: info.server, cluster: info.cluster, address: info.address, remote };
    let connection = Connection::new(peer, info.frame_bytes_max as usize, direct, &net.stopped);
    let inbound = ReaderOptions {
        services: None,
        rows_runtime: None,
        frame_bytes_max: net.options.frame_bytes_max,
    };
    tokio::spawn(run(connection.clone(), reader, writer, inbound, net.options.ping_every));
    Ok(connection)
}
