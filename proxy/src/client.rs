//! A connected client as other tasks see it: CLIENT LIST, CLIENT KILL, MONITOR, the idle
//! sweep.
//!
//! State that only the connection's own task uses is in `session`. The state here is
//! shared, so it is small and locked briefly, once per chunk of commands.

mod command;
mod info_line;
pub(crate) mod memory_usage;
mod registry;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use memory_usage::{SharedUsage, TotalUsage};
pub use registry::{Clients, Pause};

/// The addresses of a connection.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The client's `address:port`.
    pub address: String,
    /// The server's `address:port`.
    pub local_address: String,
    /// The socket's descriptor, for CLIENT LIST.
    pub fd: i32,
    /// Both ends are on this machine.
    pub is_loopback: bool,
    /// A Unix socket; both addresses are then its path and `:0`, as in Redis.
    pub is_unix: bool,
}

impl Endpoint {
    /// The client's address as MONITOR shows it.
    pub(crate) fn monitored(&self) -> Cow<'_, str> {
        match self.address.strip_suffix(":0").filter(|_| self.is_unix) {
            Some(path) => Cow::Owned(format!("unix:{path}")),
            None => Cow::Borrowed(&self.address),
        }
    }
}

/// A connected client.
pub struct Client {
    /// Unique during the life of the process.
    pub id: u64,
    /// Its addresses.
    pub endpoint: Endpoint,
    /// Connection time.
    pub connected: Instant,
    /// State published by its connection.
    pub(crate) info: Mutex<ClientInfo>,
    /// Last read or write, ms since the connection; [`BUSY`] while its commands run.
    last_active_ms: AtomicU64,
    /// Wakes the connection's task.
    pub(crate) waker: AtomicWaker,
    killed: AtomicBool,
    /// Memory kept for it.
    pub(crate) usage: SharedUsage,
    /// CLIENT NO-EVICT.
    pub(crate) no_evict: AtomicBool,
    /// Out-of-band output: MONITOR.
    pushed: Mutex<BytesMut>,
    has_pushed: AtomicBool,
    /// Paused by CLIENT PAUSE.
    pub(crate) held_back: AtomicBool,
    /// Set while a command of it waits and CLIENT UNBLOCK can wake it.
    waits: Mutex<Option<CancellationToken>>,
    /// It was woken by CLIENT UNBLOCK ERROR.
    unblocked_with_error: AtomicBool,
}

/// A blocked command that can be unblocked; it is blocked as long as this lives.
pub(crate) struct BlockedGuard<'a> {
    client: &'a Client,
    /// Cancelled by CLIENT UNBLOCK.
    pub(crate) unblocked: CancellationToken,
}

impl BlockedGuard<'_> {
    /// `true` if CLIENT UNBLOCK asked for an error.
    pub(crate) fn ends_with_error(&self) -> bool {
        self.unblocked.is_cancelled() && self.client.unblocked_with_error.load(Ordering::Acquire)
    }
}

impl Drop for BlockedGuard<'_> {
    fn drop(&mut self) {
        *self.client.waits.lock() = None;
    }
}

/// Later than any time: a client is not idle while a command runs, however long.
const BUSY: u64 = u64::MAX;

/// The state of a connection for CLIENT LIST, published by its task. Names are copies: a
/// slice would keep the whole read buffer alive.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientInfo {
    pub(crate) name: Bytes,
    pub(crate) library_name: Bytes,
    pub(crate) library_version: Bytes,
    /// The selected table's name and number.
    pub(crate) table: Arc<str>,
    pub(crate) database: u32,
    pub(crate) last_command: Option<&'static str>,
    pub(crate) protocol: u8,
    /// Commands queued by MULTI; `None` = no transaction.
    pub(crate) queued: Option<usize>,
    pub(crate) watched: usize,
    pub(crate) monitors: bool,
    pub(crate) no_touch: bool,
    /// Bytes received and not executed yet, free room, bytes not sent yet.
    pub(crate) query_bytes: usize,
    pub(crate) query_room: usize,
    pub(crate) output_bytes: usize,
    pub(crate) queued_bytes: usize,
}

impl Client {
    pub(crate) fn new(
        id: u64,
        endpoint: Endpoint,
        table: Arc<str>,
        ledger: Arc<TotalUsage>,
    ) -> Client {
        Client {
            id,
            endpoint,
            connected: Instant::now(),
            info: Mutex::new(ClientInfo { table, protocol: 2, ..ClientInfo::default() }),
            last_active_ms: AtomicU64::new(0),
            waker: AtomicWaker::new(),
            killed: AtomicBool::new(false),
            usage: SharedUsage::new(ledger),
            no_evict: AtomicBool::new(false),
            pushed: Mutex::default(),
            has_pushed: AtomicBool::new(false),
            held_back: AtomicBool::new(false),
            waits: Mutex::default(),
            unblocked_with_error: AtomicBool::new(false),
        }
    }

    /// The selected table's name: `db0` or any other.
    pub fn table(&self) -> Arc<str> {
        self.info.lock().table.clone()
    }

    /// The selected table's number.
    pub(crate) fn database(&self) -> u32 {
        self.info.lock().database
    }

    /// The connection's name (CLIENT SETNAME); empty = none.
    pub fn name(&self) -> Bytes {
        self.info.lock().name.clone()
    }

    /// Bytes of unread replies, and bytes of input sent ahead.
    pub fn buffered_bytes(&self) -> (usize, usize) {
        let shown = self.info.lock();
        (shown.output_bytes + self.pushed.lock().len(), shown.query_bytes + shown.query_room)
    }

    /// Adds output that the client did not ask for just now. `false`: more than
    /// `bytes_max` were pending, and the client is disconnected instead.
    pub fn push(&self, bytes: &[u8], bytes_max: usize) -> bool {
        let fits = {
            let mut pushed = self.pushed.lock();
            let fits = pushed.len() + bytes.len() <= bytes_max;
            if fits {
                pushed.extend_from_slice(bytes);
                self.usage.push(pushed.len());
            }
            fits
        };
        if !fits {
            self.kill();
            return false;
        }
        if !self.has_pushed.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
        true
    }

    /// Takes the pushed output, if any.
    pub(crate) fn take_pushed(&self, out: &mut BytesMut) -> bool {
        let has_pushed = self.has_pushed.load(Ordering::Acquire);
        if has_pushed {
            self.has_pushed.store(false, Ordering::Release);
            let pushed = {
                let mut pushed = self.pushed.lock();
                self.usage.push(0);
                std::mem::take(&mut *pushed)
            };
            out.unsplit(pushed);
        }
        has_pushed
    }

    /// `true` while a command of this client is paused by CLIENT PAUSE or blocked in
    /// WAITAOF.
    pub fn is_blocked(&self) -> bool {
        self.held_back.load(Ordering::Relaxed) || self.waits.lock().is_some()
    }

    /// A command becomes blocked.
    pub(crate) fn wait(&self) -> BlockedGuard<'_> {
        let unblocked = CancellationToken::new();
        *self.waits.lock() = Some(unblocked.clone());
        BlockedGuard { client: self, unblocked }
    }

    /// CLIENT UNBLOCK; `false`: no command is blocked. As in Redis, it does not end
    /// CLIENT PAUSE.
    pub(crate) fn unblock(&self, with_error: bool) -> bool {
        let mut waits = self.waits.lock();
        let Some(unblocked) = waits.take() else { return false };
        self.unblocked_with_error.store(with_error, Ordering::Release);
        unblocked.cancel();
        true
    }

    /// Ends the connection immediately: running commands are finished, and no more
    /// replies are sent.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Completes when the client is killed. For the connection's own task, which a kill
    /// wakes.
    pub(crate) async fn killed(&self) {
        std::future::poll_fn(|context| {
            self.waker.register(context.waker());
            if self.is_killed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Commands run until the next [`Client::touch`].
    pub(crate) fn work(&self) {
        self.last_active_ms.store(BUSY, Ordering::Relaxed);
    }

    /// The client has sent or read something.
    pub(crate) fn touch(&self, now: Instant) {
        self.last_active_ms
            .store(millis(now.saturating_duration_since(self.connected)), Ordering::Relaxed);
    }

    /// Ms since the client last sent or read something.
    pub(crate) fn idle_ms(&self) -> u64 {
        millis(self.connected.elapsed()).saturating_sub(self.last_active_ms.load(Ordering::Relaxed))
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
