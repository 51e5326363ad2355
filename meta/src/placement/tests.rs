//! Placement of partitions, on clusters of all shapes.

use std::collections::{BTreeMap, BTreeSet};

use cluster::{PartitionId, ServerId, TableId};
use proptest::prelude::*;

use super::*;

/// `zones[n]` is the zone of server n + 1; nobody has anything yet.
fn empty(zones: &[u8]) -> Vec<Candidate> {
    let candidate = |(index, zone): (usize, &u8)| Candidate {
        id: ServerId(index as u64 + 1),
        zone: zone.to_string(),
        replicas: 0,
        leaders: 0,
        is_unhealthy: false,
    };
    zones.iter().enumerate().map(candidate).collect()
}

fn count(
    servers: impl Iterator<Item = ServerId>,
    candidates: &[Candidate],
) -> BTreeMap<ServerId, u64> {
    let mut counts: BTreeMap<ServerId, u64> =
        candidates.iter().map(|candidate| (candidate.id, 0)).collect();
    for server in servers {
        *counts.get_mut(&server).unwrap() += 1;
    }
    counts
}

fn spread(counts: impl Iterator<Item = u64> + Clone) -> u64 {
    counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0)
}

#[test]
fn three_servers_share_everything() {
    let placed = place(6, 3, &empty(&[0, 0, 0])).unwrap();
    let leaders: Vec<u64> = placed.iter().map(|servers| servers[0].0).collect();
    assert_eq!(leaders, [1, 2, 3, 1, 2, 3]);
    assert!(placed.iter().all(|servers| servers.iter().collect::<BTreeSet<_>>().len() == 3));
}

#[test]
fn no_first_leader_is_on_a_bad_disk() {
    let leaders = |unhealthy: &[u64], servers: &[u8], replicas| {
        let mut candidates = empty(servers);
        candidates
            .iter_mut()
            .for_each(|candidate| candidate.is_unhealthy = unhealthy.contains(&candidate.id.0));
        let placed = place(6, replicas, &candidates).unwrap();
        assert!(
            placed
                .iter()
                .all(|servers| servers.iter().collect::<BTreeSet<_>>().len() == replicas as usize),
            "{placed:?}"
        );
        placed.iter().map(|servers| servers[0].0).collect::<Vec<_>>()
    };
    assert_eq!(leaders(&[1], &[0, 0, 0], 3), [2, 3, 2, 3, 2, 3]);
    assert_eq!(leaders(&[1, 3], &[0, 1, 2], 3), [2; 6]);
    // Where no replica's disk is well, somebody leads, and evenly.
    assert_eq!(leaders(&[1, 2, 3], &[0, 0, 0], 3), [1, 2, 3, 1, 2, 3]);
    let alone = leaders(&[1], &[0, 0, 0], 1);
    assert_eq!(alone.iter().filter(|leader| **leader == 1).count(), 2, "{alone:?}");
    // What others lead already counts as before.
    assert!(!leaders(&[2], &[0, 0, 1, 1], 2).contains(&2));
}

#[test]
fn too_few_servers_are_refused() {
    let refused = |live: usize| place(1, 3, &empty(&vec![0; live])).unwrap_err().to_string();
    assert_eq!(refused(0), "3 replicas need 3 storage servers that are alive, and there is none");
    assert_eq!(refused(1), "3 replicas need 3 storage servers that are alive, and there is 1");
    assert_eq!(refused(2), "3 replicas need 3 storage servers that are alive, and there are 2");
}

#[test]
fn a_new_table_goes_where_there_is_least() {
    let mut candidates = empty(&[0, 0, 0, 0]);
    (candidates[0].replicas, candidates[0].leaders) = (10, 10);
    let placed = place(3, 3, &candidates).unwrap();
    assert!(placed.iter().flatten().all(|server| *server != ServerId(1)), "{placed:?}");
}

proptest! {
    #[test]
    fn replicas_are_spread_over_zones(
        zones in prop::collection::vec(0u8..4, 1..12),
        partitions in 1u32..40,
        replicas in 1u32..6,
    ) {
        let candidates = empty(&zones);
        prop_assume!(candidates.len() >= replicas as usize);
        let there: BTreeSet<u8> = zones.iter().copied().collect();
        for servers in place(partitions, replicas, &candidates).unwrap() {
            let distinct: BTreeSet<ServerId> = servers.iter().copied().collect();
            prop_assert_eq!(distinct.len(), replicas as usize, "no server twice");
            let in_zones: BTreeSet<u8> =
                servers.iter().map(|server| zones[server.0 as usize - 1]).collect();
            prop_assert_eq!(in_zones.len(), there.len().min(replicas as usize), "{:?}", servers);
        }
    }

    /// Within a zone always; over all servers when zones are of one size.
    #[test]
    fn servers_are_balanced(
        zones in 1u8..5,
        per_zone in 1usize..4,
        odd in prop::collection::vec(0u8..3, 0..4),
        partitions in 1u32..60,
        replicas in 1u32..6,
    ) {
        let even: Vec<u8> = (0..zones).flat_map(|zone| vec![zone; per_zone]).collect();
        let uneven: Vec<u8> = even.iter().copied().chain(odd).collect();
        for (zones, is_even) in [(even, true), (uneven, false)] {
            let candidates = empty(&zones);
            if candidates.len() < replicas as usize {
                continue;
            }
            let placed = place(partitions, replicas, &candidates).unwrap();
            let counts = count(placed.iter().flatten().copied(), &candidates);
            for zone in zones.iter().collect::<BTreeSet<_>>() {
                let here = counts
                    .iter()
                    .filter(|(server, _)| zones[server.0 as usize - 1] == *zone)
                    .map(|(_, count)| *count);
                prop_assert!(spread(here) <= 1, "zone {}: {:?}", zone, counts);
            }
            if is_even {
                prop_assert!(spread(counts.values().copied()) <= 1, "{:?}", counts);
            }
            let again = place(partitions, replicas, &candidates).unwrap();
            prop_assert_eq!(again, placed, "the same again");
        }
    }

    /// If every server holds everything, or servers are alike, leaders differ by at
    /// most one.
    #[test]
    fn leaders_are_even(servers in 1usize..7, partitions in 1u32..60, replicas in 1u32..4) {
        let candidates = empty(&vec![0; servers]);
        prop_assume!(servers >= replicas as usize);
        let placed = place(partitions, replicas, &candidates).unwrap();
        let counts = count(placed.iter().map(|servers| servers[0]), &candidates);
        prop_assert!(spread(counts.values().copied()) <= 1, "{:?}", counts);
    }

    /// Whatever the first leaders and live servers are: orders are to able servers, after
    /// a few rounds there are none, and nobody who could pass one on to somebody with two
    /// fewer still has it.
    #[test]
    fn balancing_comes_to_rest(
        servers in 1usize..7,
        partitions in 1u32..40,
        replicas in 1u32..4,
        dead in prop::collection::vec(any::<bool>(), 7),
        first in prop::collection::vec(any::<prop::sample::Index>(), 40),
    ) {
        prop_assume!(servers >= replicas as usize);
        let placed = place(partitions, replicas, &empty(&vec![0; servers])).unwrap();
        let mut led: Vec<LedPartition> = placed.iter().zip(0..).map(|(servers, index)| {
            let is_live = |server: &ServerId| !dead[server.0 as usize - 1];
            let able: Vec<ServerId> = servers.iter().copied().filter(is_live).collect();
            let leader = (!able.is_empty()).then(|| able[first[index as usize].index(able.len())]);
            let partition = PartitionId { table: TableId(1), index };
            LedPartition { partition, leader, preferred: servers[0], able }
        }).collect();
        let mut rounds = 0;
        loop {
            let moves = balance(&led);
            if moves.is_empty() {
                break;
            }
            rounds += 1;
            prop_assert!(rounds <= 5, "it does not come to rest: {:?}", moves);
            for (partition, to) in moves {
                let one = &mut led[partition.index as usize];
                prop_assert!(one.able.contains(&to) && one.leader != Some(to));
                one.leader = Some(to);
            }
        }
        let counts = count(led.iter().filter_map(|one| one.leader), &empty(&vec![0; servers]));
        for one in led.iter().filter(|one| one.leader.is_some()) {
            let leader = one.leader.unwrap();
            let is_even = one.able.iter().all(|other| counts[other] + 2 > counts[&leader]);
            prop_assert!(is_even, "{:?} {:?}", one, counts);
        }
        if dead[..servers].iter().all(|dead| !dead) {
            prop_assert!(spread(counts.values().copied()) <= 1);
        }
    }
}

#[test]
fn the_preferred_leads_again() {
    let partition = |index| PartitionId { table: TableId(1), index };
    let led = |index, leader, preferred| LedPartition {
        partition: partition(index),
        leader: Some(ServerId(leader)),
        preferred: ServerId(preferred),
        able: vec![ServerId(1), ServerId(2), ServerId(3)],
    };
    assert_eq!(balance(&[led(0, 1, 1), led(1, 1, 2), led(2, 3, 3)]), [(partition(1), ServerId(2))]);
    assert_eq!(
        balance(&[led(0, 2, 1), led(1, 1, 2), led(2, 3, 3)]),
        [(partition(0), ServerId(1)), (partition(1), ServerId(2))]
    );
    // Nobody leads: there is nothing to hand over.
    assert_eq!(balance(&[LedPartition { leader: None, ..led(0, 1, 1) }]), []);
    // The preferred one is not able.
    assert_eq!(balance(&[LedPartition { able: vec![ServerId(1)], ..led(0, 1, 2) }]), []);
}
