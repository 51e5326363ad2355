//! The metadata image: the leading meta's state joined with the reported leaders, in the
//! form in which servers and proxies receive it.
//!
//! An image is immutable and shares unchanged values with its predecessor, so the delta
//! for a server is a comparison of two images.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use cluster::meta_protocol::{Assignment, DELTA_BYTES, Delta, Route, Server};
use cluster::{PartitionId, ServerId, Table, TableId};
use serde::Serialize;

use crate::liveness::ServerTracker;
use crate::state::{MetaState, TablePhase};

/// A map whose values are shared between images.
pub type SharedMap<K, V> = Arc<BTreeMap<K, Arc<V>>>;

/// The metadata at one version, as the leader sees it.
#[derive(Debug, Clone)]
pub struct MetadataImage {
    /// The term of the group under which this meta leads; `None`: it does not, and the
    /// rest means nothing.
    pub term: Option<u64>,
    /// Since when it leads.
    pub since: Instant,
    /// The committed state.
    pub state: Arc<MetaState>,
    /// Grows with the state, also from leader to leader.
    pub version: u64,
    /// The version in which a table was last changed.
    pub changed: Arc<BTreeMap<TableId, u64>>,
    /// The address book.
    pub servers: SharedMap<ServerId, Server>,
    /// Tables that serve.
    pub tables: SharedMap<TableId, Table>,
    /// Partitions of tables that serve or are being created.
    pub routes: SharedMap<PartitionId, Route>,
    /// Of which the routes are.
    leaders_version: u64,
}

impl MetadataImage {
    /// Before anything is known.
    pub fn empty() -> MetadataImage {
        MetadataImage {
            term: None,
            since: Instant::now(),
            state: Arc::default(),
            version: 0,
            changed: Arc::default(),
            servers: Arc::default(),
            tables: Arc::default(),
            routes: Arc::default(),
            leaders_version: 0,
        }
    }

    /// This meta does not lead any more.
    pub fn resigned(&self) -> MetadataImage {
        MetadataImage { term: None, ..self.clone() }
    }

    /// The state has changed, or the leadership.
    pub fn next(&self, term: u64, state: &MetaState, tracker: &ServerTracker) -> MetadataImage {
        let version = (self.version + 1).max(first_version(term));
        let since = if self.term == Some(term) { self.since } else { Instant::now() };
        let changed = |id: &TableId| match self.changed.get(id) {
            Some(before)
                if self.term == Some(term) && self.state.tables.get(id) == state.tables.get(id) =>
            {
                *before
            }
            _ => version,
        };
        let ready = state.tables.values().filter(|record| record.status == TablePhase::Ready);
        let image = MetadataImage {
            term: Some(term),
            since,
            version,
            changed: Arc::new(state.tables.keys().map(|id| (*id, changed(id))).collect()),
            servers: share_unchanged(
                &self.servers,
                state
                    .servers
                    .values()
                    .map(|known| (known.server.id, Arc::new(known.server.clone()))),
            ),
            tables: Arc::new(ready.map(|record| (record.table.id, record.table.clone())).collect()),
            routes: self.routes.clone(),
            leaders_version: self.leaders_version,
            state: Arc::new(state.clone()),
        };
        image.with_leaders(tracker)
    }

    /// The same with the leaders that the tracker knows.
    pub fn with_leaders(mut self, tracker: &ServerTracker) -> MetadataImage {
        let serves = |partition: &PartitionId| {
            self.state
                .tables
                .get(&partition.table)
                .is_some_and(|record| record.status != TablePhase::Dropping)
        };
        let placements =
            self.state.placements.values().filter(|placement| serves(&placement.partition));
        let routes = placements.map(|placement| {
            let partition = placement.partition;
            (
                partition,
                Arc::new(Route {
                    placement: (**placement).clone(),
                    leader: tracker.leader(partition),
                }),
            )
        });
        self.routes = share_unchanged(&self.routes, routes);
        self.leaders_version = tracker.leaders_version();
        self
    }

    /// True if the tracker knows other leaders than this image.
    pub fn has_old_leaders(&self, tracker: &ServerTracker) -> bool {
        self.leaders_version != tracker.leaders_version()
    }

    /// Assignments of a server: tables to hold and to destroy.
    pub fn assignments(&self, server: ServerId) -> BTreeMap<TableId, Arc<Assignment>> {
        let mut assigned = BTreeMap::<TableId, Assignment>::new();
        for placement in
            self.state.placements.values().filter(|placement| placement.on(server).is_some())
        {
            let Some(record) = self.state.tables.get(&placement.partition.table) else { continue };
            let destroy = record.status == TablePhase::Dropping;
            if destroy && !record.remaining.contains(&server) {
                continue;
            }
            let new =
                || Assignment { table: (*record.table).clone(), placements: Vec::new(), destroy };
            assigned
                .entry(record.table.id)
                .or_insert_with(new)
                .placements
                .push((**placement).clone());
        }
        assigned.into_iter().map(|(id, assignment)| (id, Arc::new(assignment))).collect()
    }
}

impl MetadataImage {
    /// The servers that hold something of a table.
    pub fn holders(&self, table: TableId) -> BTreeSet<ServerId> {
        self.state
            .placements_of(table)
            .flat_map(|placement| placement.members.iter().map(|member| member.server))
            .collect()
    }
}

/// A map made anew, in which what is as it was is the same as before; the same map when
/// all is.
fn share_unchanged<K: Ord + Clone, V: PartialEq>(
    before: &SharedMap<K, V>,
    now: impl Iterator<Item = (K, Arc<V>)>,
) -> SharedMap<K, V> {
    let share = |(key, value): (K, Arc<V>)| match before.get(&key) {
        Some(known) if **known == *value => (key, known.clone()),
        _ => (key, value),
    };
    let now: BTreeMap<K, Arc<V>> = now.map(share).collect();
    let same = now.len() == before.len()
        && now.iter().zip(before.iter()).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1));
    if same { before.clone() } else { Arc::new(now) }
}

/// The version of a leader's first image. A term counts milliseconds since 1970
/// (`engine::raft::types::Term`): there is room for those up to the year 2527, and in
/// each for 2^20 changes; they are written by Raft one after the other, so no leader
/// makes as many before the next term could begin by the clock.
fn first_version(term: u64) -> u64 {
    term << 20
}

/// Deltas of bounded size, at least one, that lead from `before` (`None`: nothing is
/// known) to `now`.
pub fn deltas<K: Ord + Clone + Serialize, V: Clone + PartialEq + Serialize>(
    before: Option<&BTreeMap<K, Arc<V>>>,
    now: &BTreeMap<K, Arc<V>>,
    version: u64,
) -> Vec<Delta<K, V>> {
    let is_known = |key: &K, value: &Arc<V>| {
        before
            .and_then(|before| before.get(key))
            .is_some_and(|known| Arc::ptr_eq(known, value) || known == value)
    };
    let page = |is_snapshot| Delta {
        version,
        is_snapshot,
        has_more: true,
        upserts: BTreeMap::new(),
        removed: Vec::new(),
    };
    let mut deltas = vec![page(before.is_none())];
    let mut bytes = 0;
    let mut room = |deltas: &mut Vec<Delta<K, V>>, size: usize| {
        bytes += size;
        if bytes > DELTA_BYTES {
            bytes = size;
            deltas.push(page(false));
        }
    };
    for key in
        before.into_iter().flat_map(|before| before.keys()).filter(|key| !now.contains_key(*key))
    {
        room(&mut deltas, cluster::meta_protocol::encode(key).len());
        deltas
            .last_mut()
            .expect("`deltas` begins with one page and only grows")
            .removed
            .push(key.clone());
    }
    for (key, value) in now.iter().filter(|(key, value)| !is_known(key, value)) {
        room(&mut deltas, cluster::meta_protocol::encode(&(key, value)).len());
        deltas
            .last_mut()
            .expect("`deltas` begins with one page and only grows")
            .upserts
            .insert(key.clone(), (**value).clone());
    }
    deltas.last_mut().expect("`deltas` begins with one page and only grows").has_more = false;
    deltas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(u32, &str)]) -> BTreeMap<u32, Arc<String>> {
        entries.iter().map(|(key, value)| (*key, Arc::new((*value).to_owned()))).collect()
    }

    fn apply(
        mut known: BTreeMap<u32, Arc<String>>,
        deltas: Vec<Delta<u32, String>>,
    ) -> BTreeMap<u32, Arc<String>> {
        let count = deltas.len();
        for (nth, page) in deltas.into_iter().enumerate() {
            assert_eq!((page.has_more, page.version), (nth + 1 < count, 9));
            if page.is_snapshot {
                known.clear();
            }
            for key in page.removed {
                assert!(known.remove(&key).is_some());
            }
            known.extend(page.upserts.into_iter().map(|(key, value)| (key, Arc::new(value))));
        }
        known
    }

    #[test]
    fn versions_grow_from_leader_to_leader() {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        let (state, tracker, today) =
            (MetaState::default(), ServerTracker::default(), 1_796_090_342_402);
        let mut last = 0;
        // 2^32 ms are 49.7 days.
        for days in [0, 1, 49, 50, 365, 36_500] {
            let first = MetadataImage::empty().next(today + days * DAY_MS, &state, &tracker);
            let second = first.next(today + days * DAY_MS, &state, &tracker);
            assert!(
                last < first.version && first.version < second.version,
                "{last} {} {}",
                first.version,
                second.version
            );
            last = second.version;
        }
    }

    #[test]
    fn deltas_lead_from_one_map_to_another() {
        let (before, now) =
            (map(&[(1, "a"), (2, "b"), (3, "c")]), map(&[(1, "a"), (2, "B"), (4, "d")]));
        let told = deltas(Some(&before), &now, 9);
        assert_eq!(
            (told.len(), told[0].upserts.len(), &told[0].removed, told[0].is_snapshot),
            (1, 2, &vec![3], false)
        );
        assert_eq!(apply(before.clone(), told), now);
        assert_eq!(
            apply(before.clone(), deltas(None, &now, 9)),
            now,
            "whoever knows something else begins anew"
        );
        let nothing = deltas(Some(&now), &now, 9);
        assert_eq!((nothing.len(), nothing[0].upserts.len(), nothing[0].has_more), (1, 0, false));
    }

    #[test]
    fn deltas_are_of_bounded_size() {
        let long = "x".repeat(DELTA_BYTES / 10);
        let now: BTreeMap<u32, Arc<String>> =
            (0..95).map(|key| (key, Arc::new(long.clone()))).collect();
        let told = deltas(None, &now, 9);
        assert!(
            told.len() >= 10 && told.iter().all(|page| page.upserts.len() <= 10),
            "{}",
            told.len()
        );
        assert_eq!(apply(BTreeMap::new(), told), now);
    }

    #[test]
    fn unchanged_values_are_shared() {
        let before: SharedMap<u32, String> = Arc::new(map(&[(1, "a"), (2, "b")]));
        let same = share_unchanged(&before, map(&[(1, "a"), (2, "b")]).into_iter());
        assert!(Arc::ptr_eq(&before, &same));
        let other = share_unchanged(&before, map(&[(1, "a"), (2, "c")]).into_iter());
        assert!(Arc::ptr_eq(&before[&1], &other[&1]) && *other[&2] == "c");
    }
}
