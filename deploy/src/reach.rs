//! What a process of a cluster reaches of it: a leader of each partition, a meta that
//! leads. What `/health/ready` rests on.
//!
//! A route tells who is believed to lead, which may be somebody who has died with all who
//! could say so. So each second every server with replicas is asked what it leads
//! ([`Service::Leads`]), which costs Raft nothing and wakes no group at rest; a leader
//! says so only while it hears of a majority of its group.
//!
//! # Invariants
//! - A process that has reached no leader of any partition for [`PATIENCE`] is not ready
//!   (`without_any_leader_for_five_seconds_it_is_not_ready`;
//!   `integration/tests/failover.rs`, `a_node_without_a_quorum_is_not_ready`).
//! - One partition without a leader among others is named, and no reason to send clients
//!   elsewhere (`single_partitions_are_named`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::PartitionId;
use cluster::net::{Service, To};
use cluster::news::{self, Roles};
use parking_lot::Mutex;
use storage::Node;

use crate::member::View;

/// How often the others are asked.
const PERIOD: Duration = Duration::from_secs(1);
/// How long one of them may take; who takes longer leads nothing.
const ANSWER: Duration = Duration::from_secs(1);
/// What is missing for less is an election.
const PATIENCE: Duration = Duration::from_secs(5);
/// Partitions that are named one by one, at most.
const NAMED_MAX: usize = 100;

/// What is reached, as of the last time that all were asked.
pub(crate) struct Reach {
    /// Whether the process has to do with partitions; a meta alone has not.
    has_partitions: bool,
    seen: Mutex<Seen>,
}

struct Seen {
    /// When some partition's leader was reached last, or there was no partition to reach.
    any_at: Instant,
    /// When a meta that leads was followed last.
    meta_at: Instant,
    /// Whether one ever was.
    meta_ever: bool,
    partitions: usize,
    /// Since when no leader of these is reached.
    unreached: BTreeMap<PartitionId, Instant>,
}

impl Reach {
    pub(crate) fn new(roles: Roles, now: Instant) -> Reach {
        let seen = Seen {
            any_at: now,
            meta_at: now,
            meta_ever: false,
            partitions: 0,
            unreached: BTreeMap::new(),
        };
        Reach { has_partitions: roles.storage || roles.proxy, seen: Mutex::new(seen) }
    }

    /// Asks, until the process stops.
    pub(crate) async fn keep(self: Arc<Self>, view: Arc<View>, node: Option<Arc<Node>>) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut led: BTreeSet<PartitionId> = node.iter().flat_map(|node| node.led()).collect();
            led.extend(led_elsewhere(&view).await);
            let has_meta = view.follow.leader().borrow().is_some();
            self.note(view.routes.partitions(), &led, has_meta, Instant::now());
        }
    }

    fn note(
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

    /// Why this process is of no use to clients, if it is of none.
    pub(crate) fn fault(&self, now: Instant) -> Option<String> {
        let seen = self.seen.lock();
        let is_long = |since: Instant| now.saturating_duration_since(since) >= PATIENCE;
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
                "no meta that leads has been reached for {} s",
                now.saturating_duration_since(seen.meta_at).as_secs()
            ),
            false => "no meta that leads was ever reached".to_owned(),
        })
    }

    /// What somebody should look at though clients are served. `name`: a partition's, for
    /// people.
    pub(crate) fn notes(&self, now: Instant, name: impl Fn(PartitionId) -> String) -> Vec<String> {
        let mut notes = Vec::new();
        let unreached = self.unreached(now);
        notes.extend(
            unreached
                .iter()
                .take(NAMED_MAX)
                .map(|partition| format!("{}: no leader is reached", name(*partition))),
        );
        if unreached.len() > NAMED_MAX {
            notes.push(format!("and {} more partitions", unreached.len() - NAMED_MAX));
        }
        if now.saturating_duration_since(self.seen.lock().meta_at) >= PATIENCE {
            notes.push(
                "no meta that leads is reached: tables can't be made, dropped or looked for"
                    .to_owned(),
            );
        }
        notes
    }

    /// The partitions of which no leader has been reached for longer than an election
    /// takes.
    pub(crate) fn unreached(&self, now: Instant) -> Vec<PartitionId> {
        let seen = self.seen.lock();
        let is_long = |since: &Instant| now.saturating_duration_since(*since) >= PATIENCE;
        seen.unreached
            .iter()
            .filter(|(_, since)| is_long(since))
            .map(|(partition, _)| *partition)
            .collect()
    }

    /// How many partitions there are, and of how many of these a leader was reached when
    /// all were asked last.
    pub(crate) fn count(&self) -> (usize, usize) {
        let seen = self.seen.lock();
        (seen.partitions, seen.partitions - seen.unreached.len())
    }
}

/// What the other servers say that they lead.
async fn led_elsewhere(view: &View) -> Vec<PartitionId> {
    let servers = view.follow.servers().borrow().clone();
    let others = servers
        .iter()
        .flat_map(|servers| servers.values())
        .filter(|server| server.roles.storage && server.id != view.id);
    let ask = |id| async move {
        let answer = view.net.call(To::Server(id), Service::Leads, Bytes::new(), ANSWER).await;
        answer.ok().and_then(|led| news::decode::<Vec<PartitionId>>(&led).ok()).unwrap_or_default()
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

    fn note(reach: &Reach, count: u32, led: &[u32], has_meta: bool, now: Instant) {
        reach.note(
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
        let reach = Reach::new(ALL, start);
        note(&reach, 2, &[0, 1], true, at(1));
        note(&reach, 2, &[], false, at(2));
        assert_eq!(reach.fault(at(5)), None, "it may be an election");
        note(&reach, 2, &[], false, at(6));
        assert_eq!(
            reach.fault(at(6)).unwrap(),
            "no leader of any of the 2 partitions has been reached for 5 s"
        );
        assert_eq!(reach.count(), (2, 0));
        note(&reach, 2, &[1], false, at(7));
        assert_eq!(
            (reach.fault(at(7)), reach.count()),
            (None, (2, 1)),
            "metas are not needed for that"
        );
    }

    #[test]
    fn single_partitions_are_named() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let reach = Reach::new(ALL, start);
        let name = |partition: PartitionId| format!("db0 partition {}", partition.index);
        note(&reach, 3, &[0, 1], true, at(1));
        assert!(reach.notes(at(5), name).is_empty());
        note(&reach, 3, &[0, 1], true, at(6));
        assert_eq!(
            (reach.notes(at(6), name), reach.fault(at(6))),
            (vec!["db0 partition 2: no leader is reached".to_owned()], None)
        );
        note(&reach, 3, &[0, 1, 2], true, at(7));
        assert!(reach.notes(at(7), name).is_empty());
        note(&reach, 1000, &[0], true, at(8));
        assert_eq!(
            reach.notes(at(13), name).len(),
            NAMED_MAX + 2,
            "not all of them, and that no meta was heard of since"
        );
    }

    #[test]
    fn a_meta_that_never_came_and_one_that_nothing_goes_without_are_missed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let reach = Reach::new(ALL, start);
        note(&reach, 1, &[0], false, at(4));
        assert_eq!(reach.fault(at(4)), None);
        assert_eq!(reach.fault(at(5)).unwrap(), "no meta that leads was ever reached");
        // Without a table, a meta is what a client's first write needs; a meta alone has
        // nothing else.
        for (roles, tables) in [(ALL, 0), (Roles { meta: true, ..Roles::default() }, 1)] {
            let reach = Reach::new(roles, start);
            note(&reach, tables, &[], true, at(1));
            assert_eq!(reach.fault(at(5)), None);
            assert_eq!(reach.fault(at(6)).unwrap(), "no meta that leads has been reached for 5 s");
        }
    }
}
