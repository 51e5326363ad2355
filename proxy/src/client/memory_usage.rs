//! Memory usage of clients: per client, and in total for eviction (`maxmemory-clients`).
//!
//! All memory kept for a client is recorded where it is kept ([`MemoryUse`]), by
//! allocation and not by use. The numbers reach [`TotalUsage`] in steps, so that a
//! command that uses little costs no atomic operation.
//!
//! # Invariants
//! - The total is the sum of the clients' `tot-mem` in CLIENT LIST (test
//!   `total_is_the_sum_of_the_clients`).
//! - An evicted client leaves the total immediately, whenever its connection ends: no
//!   other client is evicted for its memory (test `only_the_largest_client_is_evicted`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::Client;

/// Uses of a client's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryUse {
    /// Input that is read and not executed, or in execution.
    Query,
    /// Commands queued by MULTI and rows watched by WATCH.
    Transaction,
    /// Answers of storage that have no reply yet, and replies in construction.
    Answers,
    /// Replies that are not written yet.
    Output,
}

/// Number of uses.
const PARTS: usize = 4;
/// A busy client's number is published when it has changed by this much.
const STEP_BYTES: usize = 16 * 1024;
/// Memory of an idle connection: its task, its session and its shared state.
pub(crate) const CONNECTION_BYTES: usize = 4 * 1024;

/// Memory of all clients.
#[derive(Debug, Default)]
pub(crate) struct TotalUsage(AtomicUsize);

impl TotalUsage {
    /// Memory of all clients, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// Memory of one client, as other tasks see it.
#[derive(Debug)]
pub(crate) struct SharedUsage {
    ledger: Arc<TotalUsage>,
    held: Mutex<UsageCounters>,
}

#[derive(Debug, Default)]
struct UsageCounters {
    /// Recorded by the connection.
    own: usize,
    /// Pushed by other tasks and not taken by the connection yet.
    pushed: usize,
    /// The client no longer counts.
    is_out: bool,
}

impl SharedUsage {
    pub(crate) fn new(ledger: Arc<TotalUsage>) -> SharedUsage {
        let held = SharedUsage { ledger, held: Mutex::default() };
        held.change(|figures| figures.own = CONNECTION_BYTES);
        held
    }

    /// Memory of the client, bytes.
    pub(crate) fn bytes(&self) -> usize {
        let figures = self.held.lock();
        figures.own + figures.pushed
    }

    /// Bytes pushed and not taken.
    pub(crate) fn push(&self, bytes: usize) {
        self.change(|figures| figures.pushed = bytes);
    }

    /// Removes the client from the total, as it is being disconnected. `None`: it was
    /// removed before.
    pub(crate) fn leave(&self) -> Option<usize> {
        let mut figures = self.held.lock();
        let bytes = figures.own + figures.pushed;
        if std::mem::replace(&mut figures.is_out, true) {
            return None;
        }
        self.ledger.0.fetch_sub(bytes, Relaxed);
        Some(bytes)
    }

    fn change(&self, change: impl FnOnce(&mut UsageCounters)) {
        let mut figures = self.held.lock();
        let before = figures.own + figures.pushed;
        change(&mut figures);
        let now = figures.own + figures.pushed;
        if !figures.is_out {
            // Wraps when the number has shrunk, which gives the right sum.
            self.ledger.0.fetch_add(now.wrapping_sub(before), Relaxed);
        }
    }
}

impl Drop for SharedUsage {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The connection's own record.
pub(crate) struct UsageTracker {
    client: Arc<Client>,
    parts: [usize; PARTS],
    told: usize,
}

impl UsageTracker {
    pub(crate) fn new(client: Arc<Client>) -> UsageTracker {
        UsageTracker { client, parts: [0; PARTS], told: 0 }
    }

    /// Sets the memory of one use. `true`: the client uses more than was published.
    pub(crate) fn set(&mut self, part: MemoryUse, bytes: usize) -> bool {
        self.parts[part as usize] = bytes;
        let sum = self.parts.iter().sum::<usize>();
        let is_step = sum.abs_diff(self.told) >= STEP_BYTES;
        is_step && self.tell(sum)
    }

    /// Publishes the exact number.
    pub(crate) fn settle(&mut self) -> bool {
        let sum = self.parts.iter().sum::<usize>();
        sum != self.told && self.tell(sum)
    }

    fn tell(&mut self, sum: usize) -> bool {
        let has_grown = sum > self.told;
        self.told = sum;
        self.client.usage.change(|figures| figures.own = CONNECTION_BYTES + sum);
        has_grown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes;

    #[test]
    fn total_is_the_sum_of_the_clients() {
        let proxy = fakes::proxy(&Default::default());
        let clients = [1, 2].map(|_| proxy.clients.enter(fakes::endpoint(), "db0".into()));
        let mut accounts = clients.clone().map(UsageTracker::new);
        assert!(accounts[0].set(MemoryUse::Query, 1 << 20));
        assert!(!accounts[0].set(MemoryUse::Output, 100), "a small step is not told");
        assert!(accounts[0].settle());
        assert!(accounts[1].set(MemoryUse::Transaction, 1 << 21));
        assert!(!accounts[1].set(MemoryUse::Transaction, 1 << 19), "it has shrunk");
        clients[1].push(&[0; 5000], 10_000);
        let sum = || clients.iter().map(|client| client.usage.bytes()).sum::<usize>();
        assert_eq!(proxy.clients.used_bytes(), sum());
        assert_eq!(sum(), 2 * CONNECTION_BYTES + (1 << 20) + 100 + (1 << 19) + 5000);
        proxy.clients.leave(clients[1].id);
        drop((accounts, clients));
        proxy.clients.leave(1);
        assert_eq!(proxy.clients.used_bytes(), 0);
    }

    #[test]
    fn only_the_largest_client_is_evicted() {
        let proxy = fakes::proxy(&Default::default());
        let clients = [1, 2, 3].map(|_| proxy.clients.enter(fakes::endpoint(), "db0".into()));
        let mut accounts = clients.clone().map(UsageTracker::new);
        for (memory_usage, bytes) in accounts.iter_mut().zip([3 << 20, 2 << 20, 1 << 20]) {
            memory_usage.set(MemoryUse::Query, bytes);
        }
        assert!(proxy.clients.evict(7 << 20).is_empty());
        clients[0].no_evict.store(true, Relaxed);
        let evicted: Vec<_> = proxy
            .clients
            .evict(5 << 20)
            .into_iter()
            .map(|(client, bytes)| (client.id, bytes))
            .collect();
        assert_eq!(evicted, [(2, (2 << 20) + CONNECTION_BYTES)]);
        assert!(clients[1].is_killed() && !clients[2].is_killed());
        // Its last allocations count no longer.
        accounts[1].set(MemoryUse::Query, 9 << 20);
        assert_eq!(proxy.clients.used_bytes(), (4 << 20) + 2 * CONNECTION_BYTES);
        assert!(proxy.clients.evict(5 << 20).is_empty());
        assert_eq!(proxy.clients.evict(0).len(), 1, "one does not go, whatever it holds");
    }
}
