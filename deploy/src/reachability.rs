//! Reachability of partition leaders and of the meta leader, the basis of
//! `/health/ready`.
//!
//! A route names the last known leader of a partition, which may be down together with
//! everyone who could report it. So each process asks every storage server once a second
//! for the partitions that it leads ([`Service::Leads`]). That costs Raft nothing and
//! wakes no quiescent group; a leader claims a partition only while it hears from a
//! majority of its group.
//!
//! # Invariants
//! - A process that has reached no leader of any partition for [`UNREACHED_AFTER`] is not
//!   ready
//!   (`without_any_leader_for_five_seconds_it_is_not_ready`;
//!   `integration/tests/failover.rs`, `a_node_without_a_quorum_is_not_ready`).
//! - A single partition without a leader is reported, but leaves the process ready
//!   (`unreached_partitions_are_named`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::PartitionId;
use cluster::meta_protocol::{self, Roles};
use cluster::net::{Destination, Service};
use parking_lot::Mutex;
use storage::Node;

use crate::member::ClusterView;

/// Interval of probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a probe; a server that does not answer leads nothing.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// A leader that is missing for less than this may be an election.
const UNREACHED_AFTER: Duration = Duration::from_secs(5);
/// Maximum number of partitions listed by name.
const LISTED_MAX: usize = 100;

/// Results of the last round of probes.
pub(crate) struct Reachability {
    /// The process stores or routes partitions; a meta alone does neither.
    has_partitions: bool,
    seen: Mutex<Observed>,
}

struct Observed {
    /// Last time that some partition's leader was reached, or that there was no
    /// partition.
    any_at: Instant,
    /// Last time that the meta leader was reached.
    meta_at: Instant,
    /// The meta leader was reached at least once.
    meta_ever: bool,
    partitions: usize,
    /// Partitions without a reached leader, and since when.
    unreached: BTreeMap<PartitionId, Instant>,
}

impl Reachability {
    pub(crate) fn new(roles: Roles, now: Instant) -> Reachability {
        let seen = Observed {
            any_at: now,
            meta_at: now,
            meta_ever: false,
            partitions: 0,
            unreached: BTreeMap::new(),
        };
        Reachability { has_partitions: roles.storage || roles.proxy, seen: Mutex::new(seen) }
    }

    /// Probes until the process stops.
    pub(crate) async fn run(self: Arc<Self>, view: Arc<ClusterView>, node: Option<Arc<Node>>) {
        let mut ticks = tokio::time::interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut led: BTreeSet<PartitionId> = node.iter().flat_map(|node| node.led()).collect();
            led.extend(led_by_others(&view).await);
            let has_meta = view.meta_client.leader().borrow().is_some();
            self.record(view.routes.partitions(), &led, has_meta, Instant::now());
        }
    }

    fn record(
        &self,
        partitions: Vec<PartitionId>,
        led: &BTreeSet<PartitionId>,
        has_meta: bool,
        now: Instant,
    ) {
        let mut seen = self.seen.lock();
        let before = std::mem::take(&mut seen.unreached);
        seen.partitions = partitions.len();
        let is_unreached = |partition: &PartitionId| !led.contains(partition);
        let since =
            |partition: PartitionId| (partition, before.get(&partition).copied().unwrap_or(now));
        seen.unreached = partitions.into_iter().filter(is_unreached).map(since).collect();
        if seen.unreached.len() < seen.partitions || seen.partitions == 0 {
            seen.any_at = now;
        }
        if has_meta {
            (seen.meta_at, seen.meta_ever) = (now, true);
        }
    }

    /// The reason for which this process can't serve clients; `None`: it can.
    pub(crate) fn fault(&self, now: Instant) -> Option<String> {
        let seen = self.seen.lock();
        let is_long = |since: Instant| now.saturating_duration_since(since) >= UNREACHED_AFTER;
        if self.has_partitions && seen.partitions > 0 && is_long(seen.any_at) {
            let seconds = now.saturating_duration_since(seen.any_at).as_secs();
            return Some(format!(
                "no leader of any of the {} partitions has been reached for {seconds} s",
                seen.partitions
            ));
        }
        let needs_meta = !seen.meta_ever || !self.has_partitions || seen.partitions == 0;
        (needs_meta && is_long(seen.meta_at)).then(|| match seen.meta_ever {
            true => format!(
                "no meta leader has been reached for {} s",
                now.saturating_duration_since(seen.meta_at).as_secs()
            ),
            false => "no meta leader was ever reached".to_owned(),
        })
    }

    /// Problems that leave the process ready. `name` gives a partition's name for people.
    pub(crate) fn notes(&self, now: Instant, name: impl Fn(PartitionId) -> String) -> Vec<String> {
        let mut notes = Vec::new();
        let unreached = self.unreached(now);
        notes.extend(
            unreached
                .iter()
                .take(LISTED_MAX)
                .map(|partition| format!("{}: no leader reached", name(*partition))),
        );
        if unreached.len() > LISTED_MAX {
            notes.push(format!("and {} more partitions", unreached.len() - LISTED_MAX));
        }
        if now.saturating_duration_since(self.seen.lock().meta_at) >= UNREACHED_AFTER {
            notes.push(
                "no meta leader reached: tables can't be created, dropped or looked up".to_owned(),
            );
        }
        notes
    }

    /// Partitions whose leader has not been reached for longer than an election takes.
    pub(crate) fn unreached(&self, now: Instant) -> Vec<PartitionId> {
        let seen = self.seen.lock();
        let is_long = |since: &Instant| now.saturating_duration_since(*since) >= UNREACHED_AFTER;
        seen.unreached
            .iter()
            .filter(|(_, since)| is_long(since))
            .map(|(partition, _)| *partition)
            .collect()
    }

    /// The number of partitions, and the number whose leader was reached in the last
    /// round.
    pub(crate) fn count(&self) -> (usize, usize) {
        let seen = self.seen.lock();
        (seen.partitions, seen.partitions - seen.unreached.len())
    }
}

/// Partitions that the other servers lead, by their own answers.
async fn led_by_others(view: &ClusterView) -> Vec<PartitionId> {
    let servers = view.meta_client.servers().borrow().clone();
    let others = servers
        .iter()
        .flat_map(|servers| servers.values())
        .filter(|server| server.roles.storage && server.id != view.id);
    let ask = |id| async move {
        let answer = view
            .net
            .call(Destination::Server(id), Service::Leads, Bytes::new(), PROBE_TIMEOUT)
            .await;
        answer
            .ok()
            .and_then(|led| meta_protocol::decode::<Vec<PartitionId>>(&led).ok())
            .unwrap_or_default()
    };
    futures::future::join_all(others.map(|server| ask(server.id))).await.concat()
}

#[cfg(test)]
mod tests {
    use cluster::TableId;

    use super::*;

    const ALL: Roles = Roles { meta: true, storage: true, proxy: true };

    fn partitions(indexes: impl IntoIterator<Item = u32>) -> Vec<PartitionId> {
        indexes.into_iter().map(|index| PartitionId { table: TableId(1), index }).collect()
    }

    fn record(reachability: &Reachability, count: u32, led: &[u32], has_meta: bool, now: Instant) {
        reachability.record(
            partitions(0..count),
            &partitions(led.iter().copied()).into_iter().collect(),
            has_meta,
            now,
        );
    }

    #[test]
    fn without_any_leader_for_five_seconds_it_is_not_ready() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let reachability = Reachability::new(ALL, start);
        record(&reachability, 2, &[0, 1], true, at(1));
        record(&reachability, 2, &[], false, at(2));
        assert_eq!(reachability.fault(at(5)), None, "this may be an election");
        record(&reachability, 2, &[], false, at(6));
        assert_eq!(
            reachability.fault(at(6)).unwrap(),
            "no leader of any of the 2 partitions has been reached for 5 s"
        );
        assert_eq!(reachability.count(), (2, 0));
        record(&reachability, 2, &[1], false, at(7));
        assert_eq!(
            (reachability.fault(at(7)), reachability.count()),
            (None, (2, 1)),
            "partitions need no metas"
        );
    }

    #[test]
    fn unreached_partitions_are_named() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let reachability = Reachability::new(ALL, start);
        let name = |partition: PartitionId| format!("db0 partition {}", partition.index);
        record(&reachability, 3, &[0, 1], true, at(1));
        assert!(reachability.notes(at(5), name).is_empty());
        record(&reachability, 3, &[0, 1], true, at(6));
        assert_eq!(
            (reachability.notes(at(6), name), reachability.fault(at(6))),
            (vec!["db0 partition 2: no leader reached".to_owned()], None)
        );
        record(&reachability, 3, &[0, 1, 2], true, at(7));
        assert!(reachability.notes(at(7), name).is_empty());
        record(&reachability, 1000, &[0], true, at(8));
        assert_eq!(
            reachability.notes(at(13), name).len(),
            LISTED_MAX + 2,
            "a limited list, and the missing meta leader"
        );
    }

    /// A meta leader that was never reached, and one that is needed, are reported.
    #[test]
    fn unreachable_metas_that_are_needed_are_reported() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let reachability = Reachability::new(ALL, start);
        record(&reachability, 1, &[0], false, at(4));
        assert_eq!(reachability.fault(at(4)), None);
        assert_eq!(reachability.fault(at(5)).unwrap(), "no meta leader was ever reached");
        // Without a table, a client's first write needs the metas; a meta alone does
        // nothing else.
        for (roles, tables) in [(ALL, 0), (Roles { meta: true, ..Roles::default() }, 1)] {
            let reachability = Reachability::new(roles, start);
            record(&reachability, tables, &[], true, at(1));
            assert_eq!(reachability.fault(at(5)), None);
            assert_eq!(
                reachability.fault(at(6)).unwrap(),
                "no meta leader has been reached for 5 s"
            );
        }
    }
}
