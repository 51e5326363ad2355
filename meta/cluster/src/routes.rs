//! Routes: placements and presumed leaders of partitions, as a proxy knows them.
//!
//! Fed by meta's news and corrected by answers: a route that is wrong costs a hop, never
//! a wrong answer, because only a leader answers. So routes go on to be right enough
//! while no meta can be reached.
//!
//! # Invariants
//! - The believed leader never goes back to an earlier term
//!   (`a_leader_of_an_earlier_term_is_not_believed`).
//! - There is an entry for each partition that was placed and not forgotten, and no
//!   other: routes are bounded by the tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::meta_protocol::Route as PublishedRoute;
use crate::{Leader, PartitionId, Placement, ServerId, TableId};

/// A server that could not be reached is not asked again for this long, unless it becomes
/// the leader of a later term.
const AVOID_FOR: Duration = Duration::from_millis(500);

/// So many dropped tables are remembered, to tell "dropped" from "not heard of yet".
const DROPPED_MAX: usize = 1024;

/// All routes. Cheap to read from many threads.
#[derive(Debug, Default)]
pub struct Routes {
    routes: RwLock<HashMap<PartitionId, Route>>,
    dropped: RwLock<BTreeSet<TableId>>,
}

#[derive(Debug, Default)]
struct Route {
    /// The servers of the replicas; the first is the one that is to lead.
    members: Vec<ServerId>,
    epoch: u64,
    leader: Option<ServerId>,
    /// The latest term heard of.
    term: u64,
    /// Could not be reached, until then.
    avoided: Option<(ServerId, Instant)>,
}

impl Route {
    fn avoided_now(&self) -> Option<ServerId> {
        self.avoided.filter(|(_, until)| Instant::now() < *until).map(|(server, _)| server)
    }
}

impl Routes {
    /// Takes in a placement; one of an earlier epoch than is known is ignored.
    pub fn place(&self, placement: &Placement) {
        let mut routes = self.routes.write();
        let route = routes.entry(placement.partition).or_default();
        if placement.epoch < route.epoch {
            return;
        }
        route.epoch = placement.epoch;
        route.members = placement.members.iter().map(|member| member.server).collect();
        route.leader = route.leader.filter(|leader| route.members.contains(leader));
    }

    /// Takes in everything that meta knows. Tables that are not in it any more were
    /// dropped.
    pub fn apply_all(&self, all: &BTreeMap<PartitionId, PublishedRoute>) {
        for (partition, route) in all {
            self.place(&route.placement);
            if let Some(leader) = route.leader {
                self.learn(*partition, leader);
            }
        }
        let mut dropped = self.dropped.write();
        // Metas that have forgotten give ids again.
        dropped.retain(|table| !all.keys().any(|partition| partition.table == *table));
        self.routes.write().retain(|partition, _| {
            let is_there = all.contains_key(partition);
            if !is_there {
                dropped.insert(partition.table);
            }
            is_there
        });
        while dropped.len() > DROPPED_MAX {
            dropped.pop_first();
        }
    }

    /// Stays in step with the news
    /// ([`MetaClient::routes`](crate::meta_client::MetaClient::routes)) until these end.
    pub async fn run(
        &self,
        mut published: watch::Receiver<Option<Arc<BTreeMap<PartitionId, PublishedRoute>>>>,
    ) {
        loop {
            let all = published.borrow_and_update().clone();
            if let Some(all) = all {
                self.apply_all(&all);
            }
            if published.changed().await.is_err() {
                return;
            }
        }
    }

    /// True if a table existed and was dropped.
    pub fn is_dropped(&self, table: TableId) -> bool {
        self.dropped.read().contains(&table)
    }

    /// Takes in who leads: the higher term is the later truth.
    pub fn learn(&self, partition: PartitionId, leader: Leader) {
        let is_news = |route: &Route| {
            // Followers go on naming a leader that has just died.
            let is_back = route.leader.is_none() && route.avoided_now() != Some(leader.server);
            leader.term > route.term || (leader.term == route.term && is_back)
        };
        if !self.routes.read().get(&partition).is_some_and(is_news) {
            return;
        }
        let mut routes = self.routes.write();
        if let Some(route) = routes.get_mut(&partition).filter(|route| is_news(route)) {
            if leader.term > route.term {
                route.avoided = None;
            }
            (route.leader, route.term) = (Some(leader.server), leader.term);
        }
    }

    /// A server answered: it leads, if nobody else is believed to.
    pub fn confirm(&self, partition: PartitionId, server: ServerId) {
        if self.routes.read().get(&partition).is_some_and(|route| route.leader.is_none()) {
            let mut routes = self.routes.write();
            if let Some(route) = routes.get_mut(&partition) {
                route.leader.get_or_insert(server);
            }
        }
    }

    /// A server says that it does not lead: it is no longer believed to.
    pub fn doubt(&self, partition: PartitionId, server: ServerId) {
        if let Some(route) = self.routes.write().get_mut(&partition) {
            route.leader = route.leader.filter(|leader| *leader != server);
        }
    }

    /// A server could not be reached: others are asked for a while.
    pub fn avoid(&self, partition: PartitionId, server: ServerId) {
        if let Some(route) = self.routes.write().get_mut(&partition) {
            route.leader = route.leader.filter(|leader| *leader != server);
            route.avoided = Some((server, Instant::now() + AVOID_FOR));
        }
    }

    /// The next server to ask: the presumed leader, else the next member that was not
    /// tried. `None`: there is nobody (else).
    pub fn next(&self, partition: PartitionId, tried: &[ServerId]) -> Option<ServerId> {
        let routes = self.routes.read();
        let route = routes.get(&partition)?;
        let is_new = |server: &ServerId| !tried.contains(server);
        let leader = route.leader.filter(is_new);
        leader.or_else(|| {
            let avoided = route.avoided_now();
            route.members.iter().copied().find(|server| is_new(server) && Some(*server) != avoided)
        })
    }

    /// The servers of its replicas, as far as they are known.
    pub fn members(&self, partition: PartitionId) -> Vec<ServerId> {
        self.routes.read().get(&partition).map(|route| route.members.clone()).unwrap_or_default()
    }

    /// The presumed leader.
    pub fn leader(&self, partition: PartitionId) -> Option<Leader> {
        let routes = self.routes.read();
        let route = routes.get(&partition)?;
        Some(Leader { server: route.leader?, term: route.term })
    }

    /// The latest term heard of; 0 = none.
    pub fn term(&self, partition: PartitionId) -> u64 {
        self.routes.read().get(&partition).map_or(0, |route| route.term)
    }

    /// True if the partition's replicas are known.
    pub fn has_members(&self, partition: PartitionId) -> bool {
        self.routes.read().get(&partition).is_some_and(|route| !route.members.is_empty())
    }

    /// All partitions that have a route.
    pub fn partitions(&self) -> Vec<PartitionId> {
        self.routes.read().keys().copied().collect()
    }

    /// Number of partitions with a route, and of those with a presumed leader.
    pub fn count(&self) -> (usize, usize) {
        let routes = self.routes.read();
        (routes.len(), routes.values().filter(|route| route.leader.is_some()).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Member;

    const P: PartitionId = PartitionId { table: TableId(1), index: 0 };

    fn servers(numbers: &[u64], epoch: u64) -> Placement {
        let members = numbers
            .iter()
            .map(|number| Member { raft_id: 100 + number, server: ServerId(*number) })
            .collect();
        Placement { partition: P, members, epoch }
    }

    fn leader(server: u64, term: u64) -> Leader {
        Leader { server: ServerId(server), term }
    }

    #[test]
    fn a_leader_of_an_earlier_term_is_not_believed() {
        let routes = Routes::default();
        routes.learn(P, leader(1, 9));
        assert_eq!(routes.leader(P), None, "nothing is known of a partition that was not placed");
        routes.place(&servers(&[1, 2, 3], 1));
        routes.learn(P, leader(2, 5));
        routes.learn(P, leader(1, 4));
        routes.learn(P, leader(3, 5));
        assert_eq!(routes.leader(P), Some(leader(2, 5)));
        routes.doubt(P, ServerId(1));
        assert_eq!(routes.leader(P), Some(leader(2, 5)), "another's word is its own");
        routes.doubt(P, ServerId(2));
        assert_eq!((routes.leader(P), routes.term(P)), (None, 5));
        routes.learn(P, leader(1, 4));
        assert_eq!(routes.leader(P), None, "what was doubted is not replaced by what is older");
        routes.learn(P, leader(2, 5));
        assert_eq!(routes.leader(P), Some(leader(2, 5)), "it may have been a moment's weakness");
        routes.learn(P, leader(3, 6));
        assert_eq!(routes.leader(P), Some(leader(3, 6)));
    }

    #[test]
    fn the_leader_is_asked_first_then_the_others_and_nobody_twice() {
        let routes = Routes::default();
        assert_eq!(routes.next(P, &[]), None);
        routes.place(&servers(&[1, 2, 3], 1));
        assert_eq!(routes.next(P, &[]), Some(ServerId(1)), "the first is to lead");
        routes.learn(P, leader(3, 1));
        assert_eq!(routes.next(P, &[]), Some(ServerId(3)));
        assert_eq!(routes.next(P, &[ServerId(3)]), Some(ServerId(1)));
        assert_eq!(routes.next(P, &[ServerId(3), ServerId(1)]), Some(ServerId(2)));
        assert_eq!(routes.next(P, &[ServerId(3), ServerId(1), ServerId(2)]), None);
        routes.doubt(P, ServerId(3));
        routes.confirm(P, ServerId(2));
        routes.confirm(P, ServerId(1));
        assert_eq!(routes.leader(P), Some(leader(2, 1)), "who answers leads");
    }

    #[test]
    fn an_unreachable_server_is_avoided_until_it_leads_again() {
        let routes = Routes::default();
        routes.place(&servers(&[1, 2], 1));
        routes.learn(P, leader(1, 1));
        routes.avoid(P, ServerId(1));
        assert_eq!(routes.next(P, &[]), Some(ServerId(2)));
        assert_eq!(routes.next(P, &[ServerId(2)]), None);
        routes.learn(P, leader(1, 1));
        assert_eq!(routes.leader(P), None, "an old rumour");
        routes.learn(P, leader(1, 2));
        assert_eq!(routes.next(P, &[]), Some(ServerId(1)));
        routes.avoid(P, ServerId(1));
        std::thread::sleep(AVOID_FOR);
        assert_eq!(routes.next(P, &[ServerId(2)]), Some(ServerId(1)), "time heals");
    }

    #[test]
    fn a_newer_placement_wins_and_a_dropped_table_is_forgotten() {
        let routes = Routes::default();
        routes.place(&servers(&[1, 2, 3], 2));
        routes.learn(P, leader(3, 7));
        routes.place(&servers(&[4, 5, 6], 1));
        assert_eq!(routes.next(P, &[]), Some(ServerId(3)));
        routes.place(&servers(&[1, 2, 4], 3));
        assert_eq!(
            (routes.leader(P), routes.next(P, &[])),
            (None, Some(ServerId(1))),
            "who is no member does not lead"
        );
        let published =
            PublishedRoute { placement: servers(&[1, 2, 4], 3), leader: Some(leader(4, 8)) };
        routes.apply_all(&BTreeMap::from([(P, published)]));
        assert_eq!((routes.leader(P), routes.count()), (Some(leader(4, 8)), (1, 1)));
        routes.apply_all(&BTreeMap::new());
        assert_eq!((routes.has_members(P), routes.count()), (false, (0, 0)));
        assert!(routes.is_dropped(P.table) && !routes.is_dropped(TableId(2)));
    }
}
