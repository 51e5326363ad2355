//! The way to one other process: its connection while there is one, and a task that makes
//! it again when it is lost.
//!
//! What is down is known to be down: while dialing fails, calls fail at once or after
//! [`PATIENCE`]; dialing goes on every [`BACKOFF_MAX`] as long as somebody has asked
//! within [`INTEREST`].

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::hello::Greeter;
use super::link::Link;
use super::reader::Inbound;
use super::wire::{Stream, run};
use super::{Destination, Net, NetError, Peer, prepare};
use crate::ServerId;

/// Pauses between failed attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(100);
/// A call waits so long for an attempt that follows a failed one.
const PATIENCE: Duration = Duration::from_millis(50);
/// Without a call for so long, dialing ends until the next one.
const INTEREST: Duration = Duration::from_secs(10);
/// A connection that lived for so long was a good one: when it is lost, it is made again
/// without a pause. So is the first that did not.
const GOOD: Duration = Duration::from_secs(1);
/// Of a host name's addresses, so many are tried.
const ADDRESSES_MAX: usize = 8;

/// What goes over a connection of its own. The first byte of each says which it is, in
/// the clear: it only decides on which runtime its bytes are handled.
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
enum Dial {
    /// Nobody dials.
    Idle,
    /// The first attempt, or the first since a good connection was lost.
    First,
    /// Another attempt, after one that failed so.
    Again(Arc<str>),
    /// It failed, and is not tried again for a moment.
    Down(Arc<str>),
    Up(Arc<Link>),
}

struct Task {
    is_running: bool,
    /// When somebody last waited for a connection.
    wanted: Instant,
}

pub(super) struct Line {
    to: Destination,
    lane: Lane,
    link: ArcSwapOption<Link>,
    dial: watch::Sender<Dial>,
    task: Mutex<Task>,
    /// Rung when its address has changed.
    moved: Notify,
}

impl Line {
    pub(super) fn new(to: Destination, lane: Lane) -> Arc<Self> {
        Arc::new(Line {
            to,
            lane,
            link: ArcSwapOption::empty(),
            dial: watch::Sender::new(Dial::Idle),
            task: Mutex::new(Task { is_running: false, wanted: Instant::now() }),
            moved: Notify::new(),
        })
    }

    /// The connection, if it is up.
    pub(super) fn up(&self) -> Option<Arc<Link>> {
        self.link.load_full().filter(|link| !link.is_gone())
    }

    /// The address has changed: a pause between attempts ends.
    pub(super) fn moved(&self) {
        self.moved.notify_waiters();
    }

    /// The connection, made if there is none.
    pub(super) async fn connected(
        self: &Arc<Self>,
        net: &Arc<Net>,
        deadline: tokio::time::Instant,
    ) -> Result<Arc<Link>, NetError> {
        if let Some(link) = self.up() {
            return Ok(link);
        }
        let mut seen = self.dial.subscribe();
        self.want(net);
        loop {
            let dial = seen.borrow_and_update().clone();
            let (until, why) = match dial {
                Dial::Up(link) if !link.is_gone() => return Ok(link),
                Dial::Down(why) => return Err(NetError::NotSent(why.to_string())),
                Dial::Again(why) => {
                    (deadline.min(tokio::time::Instant::now() + PATIENCE), why.to_string())
                }
                Dial::Idle | Dial::First | Dial::Up(_) => {
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
    fn want(self: &Arc<Self>, net: &Arc<Net>) {
        let mut task = self.task.lock();
        task.wanted = Instant::now();
        if !task.is_running {
            task.is_running = true;
            self.dial.send_replace(Dial::First);
            let stopped = net.stopped.clone();
            let dialing = self.clone().keep(Arc::downgrade(net));
            net.runtime(self.lane).spawn(async move { stopped.run_until_cancelled(dialing).await });
        }
    }

    fn is_wanted(&self) -> bool {
        let mut task = self.task.lock();
        task.is_running = task.wanted.elapsed() < INTEREST;
        if !task.is_running {
            self.dial.send_replace(Dial::Idle);
        }
        task.is_running
    }

    /// Makes the connection again and again, as long as it is wanted.
    async fn keep(self: Arc<Self>, net: Weak<Net>) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let Some(strong) = net.upgrade() else { return };
            let dialed = self.dial_once(&strong).await;
            drop(strong);
            let why: Arc<str> = match dialed {
                Ok(link) => {
                    let born = Instant::now();
                    tracing::info!(peer = %link.peer.server, to = %self.to, lane = ?self.lane, "connected");
                    self.link.store(Some(link.clone()));
                    self.dial.send_replace(Dial::Up(link.clone()));
                    link.gone.cancelled().await;
                    self.link.store(None);
                    let why = link.failure().unwrap_or_else(|| "it is stopping".to_owned());
                    tracing::info!(peer = %link.peer.server, to = %self.to, lane = ?self.lane, why, "connection lost");
                    self.task.lock().wanted = Instant::now();
                    if born.elapsed() > GOOD {
                        backoff = BACKOFF_MIN;
                    }
                    if backoff == BACKOFF_MIN {
                        backoff *= 2;
                        self.dial.send_replace(Dial::First);
                        continue;
                    }
                    format!("the connection to {} was lost: {why}", self.to).into()
                }
                Err(why) => {
                    tracing::debug!(to = %self.to, why, "no connection");
                    why.into()
                }
            };
            self.dial.send_replace(Dial::Down(why.clone()));
            // Over when its address changes.
            let _ = timeout(backoff, self.moved.notified()).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
            if !self.is_wanted() {
                return;
            }
            self.dial.send_replace(Dial::Again(why));
        }
    }

    /// Resolves the address and tries what it gives, one after the other.
    async fn dial_once(&self, net: &Arc<Net>) -> Result<Arc<Link>, String> {
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
            match timeout(limit, greet(net, stream, self.lane, &address, wanted)).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(why)) => failure = format!("{address} ({socket_address}): {why}"),
                Err(_) => {
                    failure = format!("{address} ({socket_address}): no greeting within {limit:?}")
                }
            }
        }
        Err(failure)
    }
}

async fn greet(
    net: &Arc<Net>,
    mut stream: TcpStream,
    lane: Lane,
    address: &str,
    wanted: Option<ServerId>,
) -> Result<Arc<Link>, String> {
    prepare(&stream).map_err(|error| format!("set up the socket: {error}"))?;
    stream.write_all(&[lane as u8]).await.map_err(|error| error.to_string())?;
    let remote = stream.peer_addr().map_err(|error| error.to_string())?;
    let mut stream = match net.tls.as_ref().map(ArcSwap::load_full) {
        None => Stream::Plain(stream),
        Some(tls) => {
            let connected = tls.connector.connect(tls.name_of(address)?, stream).await;
            Stream::Tls(Box::new(connected.map_err(|error| format!("TLS: {error}"))?.into()))
        }
    };
    let greeter = Greeter { card: net.card(), secret: net.options.secret.as_ref() };
    let card = greeter.dial(&mut stream, wanted).await.map_err(|error| error.to_string())?;
    let (reader, writer, direct) = stream.split();
    let peer = Peer { server: card.server, cluster: card.cluster, address: card.address, remote };
    let link = Link::new(peer, card.frame_bytes_max as usize, direct, &net.stopped);
    let inbound = Inbound {
        services: None,
        rows_runtime: None,
        frame_bytes_max: net.options.frame_bytes_max,
    };
    tokio::spawn(run(link.clone(), reader, writer, inbound, net.options.ping_every));
    Ok(link)
}
