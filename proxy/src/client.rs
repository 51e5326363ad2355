//! A connected client as others see it: CLIENT LIST, CLIENT KILL, MONITOR, the idle
//! sweep.
//!
//! What only the connection's own task needs is in `session`; what is here is shared, so
//! it is small and locked briefly, once per chunk of commands.

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

pub(crate) use command::Effect;
use memory_usage::{SharedUsage, TotalUsage};
pub use registry::{Clients, Pause};

/// Where a connection came from.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The client's `address:port`.
    pub address: String,
    /// Ours.
    pub local_address: String,
    /// The socket's number, for CLIENT LIST.
    pub fd: i32,
    /// Both ends are on this machine.
    pub is_loopback: bool,
    /// A Unix socket; then both addresses are its path, and a `:0` as Redis has it.
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
    /// Never used twice while the process lives.
    pub id: u64,
    /// Where it came from.
    pub endpoint: Endpoint,
    /// When it connected.
    pub connected: Instant,
    /// What its connection tells about itself.
    pub(crate) info: Mutex<ClientInfo>,
    /// When it last sent or read something, ms since it connected; [`BUSY`] while its
    /// commands are carried out.
    last_active_ms: AtomicU64,
    /// Wakes the connection's task.
    pub(crate) waker: AtomicWaker,
    killed: AtomicBool,
    /// What is kept for it.
    pub(crate) usage: SharedUsage,
    /// CLIENT NO-EVICT.
    pub(crate) no_evict: AtomicBool,
    /// Out-of-band output: MONITOR.
    pushed: Mutex<BytesMut>,
    has_pushed: AtomicBool,
    /// Held back by CLIENT PAUSE.
    pub(crate) held_back: AtomicBool,
    /// A command of it that waits, and that CLIENT UNBLOCK can wake.
    waits: Mutex<Option<CancellationToken>>,
    /// It was woken by CLIENT UNBLOCK ERROR.
    unblocked_with_error: AtomicBool,
}

/// A command that waits and can be woken; it waits as long as this lives.
pub(crate) struct BlockedGuard<'a> {
    client: &'a Client,
    /// Cancelled by CLIENT UNBLOCK.
    pub(crate) unblocked: CancellationToken,
}

impl BlockedGuard<'_> {
    /// Whether CLIENT UNBLOCK asked for an error.
    pub(crate) fn ends_with_error(&self) -> bool {
        self.unblocked.is_cancelled() && self.client.unblocked_with_error.load(Ordering::Acquire)
    }
}

impl Drop for BlockedGuard<'_> {
    fn drop(&mut self) {
        *self.client.waits.lock() = None;
    }
}

/// Later than any time: not idle, however long a command takes.
const BUSY: u64 = u64::MAX;

/// What CLIENT LIST shows of a connection's state, told by its task. Names are copies: a
/// slice would keep the whole read buffer alive.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientInfo {
    pub(crate) name: Bytes,
    pub(crate) library_name: Bytes,
    pub(crate) library_version: Bytes,
    /// The selected table's name, and what `SELECT` knows it by.
    pub(crate) table: Arc<str>,
    pub(crate) database: u32,
    pub(crate) last_command: Option<&'static str>,
    pub(crate) protocol: u8,
    /// Commands queued by MULTI; `None` = none open.
    pub(crate) queued: Option<usize>,
    pub(crate) watched: usize,
    pub(crate) monitors: bool,
    pub(crate) no_touch: bool,
    /// Bytes received and not yet carried out, room left, bytes not yet sent.
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

    /// Bytes that wait for the client to read them, and bytes that it has sent ahead.
    pub fn buffered_bytes(&self) -> (usize, usize) {
        let shown = self.info.lock();
        (shown.output_bytes + self.pushed.lock().len(), shown.query_bytes + shown.query_room)
    }

    /// Gives the connection something to write that the client did not ask for just now.
    /// `false`: more than `bytes_max` were waiting, and the client is cut off instead.
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

    /// Takes what was pushed, if anything.
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

    /// Whether a command of this client waits: for the end of CLIENT PAUSE, or for what
    /// WAITAOF asks for.
    pub fn is_blocked(&self) -> bool {
        self.held_back.load(Ordering::Relaxed) || self.waits.lock().is_some()
    }

    /// A command of it begins to wait for something that may never come.
    pub(crate) fn wait(&self) -> BlockedGuard<'_> {
        let unblocked = CancellationToken::new();
        *self.waits.lock() = Some(unblocked.clone());
        BlockedGuard { client: self, unblocked }
    }

    /// CLIENT UNBLOCK; `false`: no command of it waits. Who is held back by CLIENT PAUSE
    /// is not unblocked in Redis, either.
    pub(crate) fn unblock(&self, with_error: bool) -> bool {
        let mut waits = self.waits.lock();
        let Some(unblocked) = waits.take() else { return false };
        self.unblocked_with_error.store(with_error, Ordering::Release);
        unblocked.cancel();
        true
    }

    /// Ends the connection at once: what is under way is finished without it, and no
    /// reply is sent any more.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Until it is killed. For the connection's own task, which whoever kills it wakes.
    pub(crate) async fn killed(&self) {
        std::future::poll_fn(|context| {
            self.waker.register(context.waker());
            if self.is_killed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Its commands are carried out, until it is touched.
    pub(crate) fn work(&self) {
        self.last_active_ms.store(BUSY, Ordering::Relaxed);
    }

    /// It has sent something, or read something.
    pub(crate) fn touch(&self, now: Instant) {
        self.last_active_ms
            .store(millis(now.saturating_duration_since(self.connected)), Ordering::Relaxed);
    }

    /// Ms since it last sent or read something.
    pub(crate) fn idle_ms(&self) -> u64 {
        millis(self.connected.elapsed()).saturating_sub(self.last_active_ms.load(Ordering::Relaxed))
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
