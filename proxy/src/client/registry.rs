//! The registry of clients, and CLIENT PAUSE.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::memory_usage::TotalUsage;
use super::{Client, Endpoint};

/// Commands held back by CLIENT PAUSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pause {
    /// Commands that may write.
    Writes = 1,
    /// All commands.
    All = 2,
}

/// The connected clients.
#[derive(Default)]
pub struct Clients {
    all: Mutex<BTreeMap<u64, Arc<Client>>>,
    count: AtomicUsize,
    /// Memory of all of them.
    ledger: Arc<TotalUsage>,
    /// Held during eviction: two at a time would evict two clients.
    evicting: Mutex<()>,
    /// Accepted open sockets: clients, and connections in a TLS handshake.
    pub(crate) sockets: AtomicUsize,
    next_id: AtomicU64,
    /// 0 = not paused, else a [`Pause`]. A hint; `paused` has the exact state.
    pause: AtomicU8,
    paused: Mutex<Option<(Pause, Instant)>>,
}

impl Clients {
    /// Registers a connection.
    pub(crate) fn enter(&self, endpoint: Endpoint, table: Arc<str>) -> Arc<Client> {
        let mut all = self.all.lock();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let client = Arc::new(Client::new(id, endpoint, table, self.ledger.clone()));
        all.insert(id, client.clone());
        self.count.store(all.len(), Ordering::Relaxed);
        client
    }

    pub(crate) fn leave(&self, id: u64) {
        let mut all = self.all.lock();
        all.remove(&id);
        self.count.store(all.len(), Ordering::Relaxed);
    }

    /// Number of clients.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// `true` if no client is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All clients, oldest first.
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.all.lock().values().cloned().collect()
    }

    /// Memory of all clients, bytes.
    pub fn used_bytes(&self) -> usize {
        self.ledger.bytes()
    }

    /// Disconnects the clients that use most memory until the others use at most
    /// `bytes_max`, except those with CLIENT NO-EVICT. Returns the memory of each.
    pub(crate) fn evict(&self, bytes_max: usize) -> Vec<(Arc<Client>, usize)> {
        let mut evicted = Vec::new();
        if self.used_bytes() <= bytes_max {
            return evicted;
        }
        let _alone = self.evicting.lock();
        while self.used_bytes() > bytes_max {
            let may_go = |client: &&Arc<Client>| {
                !client.no_evict.load(Ordering::Relaxed) && !client.is_killed()
            };
            let largest = self
                .all
                .lock()
                .values()
                .filter(may_go)
                .max_by_key(|client| client.usage.bytes())
                .cloned();
            let Some(client) = largest else { break };
            if let Some(bytes) = client.usage.leave() {
                evicted.push((client.clone(), bytes));
            }
            client.kill();
        }
        evicted
    }

    /// Wakes every connection, so that it sees a shutdown or the end of a pause.
    pub(crate) fn wake_all(&self) {
        self.all().iter().for_each(|client| client.waker.wake());
    }

    /// Disconnects clients that have been idle for longer than `limit`. Monitors and
    /// blocked clients are exempt.
    pub(crate) fn close_idle(&self, limit: Duration) {
        for client in self.all() {
            let is_exempt = client.is_blocked() || client.info.lock().monitors;
            if !is_exempt && client.idle_ms() > limit.as_millis() as u64 {
                client.kill();
            }
        }
    }

    /// Pauses commands for this long. As in Redis, an active pause becomes neither weaker
    /// nor shorter.
    pub(crate) fn pause(&self, what: Pause, time: Duration) {
        let until = Instant::now()
            .checked_add(time)
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(1 << 30));
        let mut paused = self.paused.lock();
        let (what, until) = match *paused {
            Some((old, end)) if end > Instant::now() => (old.max(what), end.max(until)),
            _ => (what, until),
        };
        *paused = Some((what, until));
        self.pause.store(what as u8, Ordering::Release);
    }

    /// Ends the pause.
    pub(crate) fn unpause(&self) {
        *self.paused.lock() = None;
        self.pause.store(0, Ordering::Release);
        self.wake_all();
    }

    /// The end of the pause for a command that writes (or not).
    pub(crate) fn paused_until(&self, writes: bool) -> Option<Instant> {
        if self.pause.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut paused = self.paused.lock();
        let (what, until) = (*paused)?;
        if until <= Instant::now() {
            *paused = None;
            self.pause.store(0, Ordering::Release);
            return None;
        }
        (what == Pause::All || writes).then_some(until)
    }

    /// The active pause, for INFO.
    pub fn paused(&self) -> Option<(Pause, Duration)> {
        let (what, until) = (*self.paused.lock())?;
        let left = until.checked_duration_since(Instant::now())?;
        Some((what, left))
    }
}
