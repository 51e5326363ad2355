//! Placement of replicas and choice of leaders, as pure functions.
//!
//! # Placing
//! One partition after the other, one replica after the other: first a zone with the
//! fewest of the partition's replicas, then the zone that carries the least per server,
//! then its server with the fewest replicas, then the smallest id. So the replicas of a
//! partition are in as many zones as possible, and within a zone servers differ by at
//! most one. Leaders are evened out in the end, over servers whose disks are well.
//!
//! # Evening out leaders
//! A server that leads at least two partitions more than another can pass one on,
//! directly or along a chain of servers that share partitions. Passing on along shortest
//! chains until there is none left gives leaders as even as the placements allow (the
//! classical argument for unit jobs on machines: Harvey, Ladner, Lovász and Tamir,
//! "Semi-matchings for bipartite graphs and load balancing", 2006).
//!
//! # Invariants
//! Held by `tests`: spread over zones (`replicas_are_spread_over_zones`), balance within
//! one (`servers_are_balanced`, `leaders_are_even`), no first leader on a disk that ails
//! while another replica's is well (`no_first_leader_is_on_a_bad_disk`), the same
//! input gives the same output, and balancing comes to rest (`balancing_comes_to_rest`).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cluster::{PartitionId, ServerId};

/// A server that may be given replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub id: ServerId,
    /// Its zone.
    pub zone: String,
    /// Replicas that it has.
    pub replicas: u64,
    /// Partitions that it is to lead.
    pub leaders: u64,
    /// True if its disk is slow, full or failed: it should lead nothing for now.
    pub is_unhealthy: bool,
}

/// Fewer servers than replicas.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{replicas} replicas need {replicas} storage servers that are alive, and there {}",
    are(*.live)
)]
pub struct NotEnoughServers {
    /// Replicas wanted of each partition.
    pub replicas: u32,
    /// Servers that are alive.
    pub live: usize,
}

fn are(live: usize) -> String {
    match live {
        0 => "is none".to_owned(),
        1 => "is 1".to_owned(),
        more => format!("are {more}"),
    }
}

/// A zone while partitions are placed.
struct Zone {
    /// Indices of its candidates.
    servers: Vec<usize>,
    replicas: u64,
}

/// The servers of each partition of a new table, the one that is to lead first.
///
/// # Errors
/// [`NotEnoughServers`].
pub fn place(
    partitions: u32,
    replicas: u32,
    candidates: &[Candidate],
) -> Result<Vec<Vec<ServerId>>, NotEnoughServers> {
    if candidates.len() < replicas as usize {
        return Err(NotEnoughServers { replicas, live: candidates.len() });
    }
    let mut candidates = candidates.to_vec();
    candidates.sort_by_key(|candidate| candidate.id);
    let mut zones = BTreeMap::<&str, Zone>::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let zone =
            zones.entry(&candidate.zone).or_insert(Zone { servers: Vec::new(), replicas: 0 });
        zone.servers.push(index);
        zone.replicas += candidate.replicas;
    }
    let mut zones: Vec<Zone> = zones.into_values().collect();
    let mut load: Vec<u64> = candidates.iter().map(|candidate| candidate.replicas).collect();
    let mut placed = Vec::new();
    for _ in 0..partitions {
        let mut chosen: Vec<usize> = Vec::new();
        for _ in 0..replicas {
            let free = |zone: &Zone| {
                zone.servers
                    .iter()
                    .copied()
                    .filter(|server| !chosen.contains(server))
                    .min_by_key(|server| load[*server])
            };
            let here =
                |zone: &Zone| zone.servers.iter().filter(|server| chosen.contains(server)).count();
            let (zone, server) = zones
                .iter()
                .enumerate()
                .filter_map(|(index, zone)| Some((index, zone, free(zone)?)))
                .min_by(|(_, a, one), (_, b, other)| {
                    // Replicas per server, without fractions.
                    let (carries, than) =
                        (a.replicas * b.servers.len() as u64, b.replicas * a.servers.len() as u64);
                    (here(a), carries, load[*one]).cmp(&(here(b), than, load[*other]))
                })
                .map(|(index, _, server)| (index, server))
                .expect("there are at least as many candidates as replicas");
            zones[zone].replicas += 1;
            load[server] += 1;
            chosen.push(server);
        }
        placed.push(chosen.into_iter().map(|server| candidates[server].id).collect::<Vec<_>>());
    }
    let mut leading: BTreeMap<ServerId, u64> =
        candidates.iter().map(|candidate| (candidate.id, candidate.leaders)).collect();
    // Of a partition all of whose disks ail, somebody has to lead.
    let unhealthy: BTreeSet<ServerId> = candidates
        .iter()
        .filter(|candidate| candidate.is_unhealthy)
        .map(|candidate| candidate.id)
        .collect();
    let healthy = |servers: &Vec<ServerId>| -> Vec<ServerId> {
        let healthy: Vec<ServerId> =
            servers.iter().copied().filter(|server| !unhealthy.contains(server)).collect();
        if healthy.is_empty() { servers.clone() } else { healthy }
    };
    let able: Vec<Vec<ServerId>> = placed.iter().map(healthy).collect();
    let mut leaders = Vec::new();
    for servers in &able {
        let leader = servers
            .iter()
            .copied()
            .min_by_key(|server| leading[server])
            .expect("a table has a replica, and `healthy` keeps all if none is healthy");
        *leading
            .get_mut(&leader)
            .expect("every replica was placed on a candidate, and `leading` has them all") += 1;
        leaders.push(Some(leader));
    }
    let choices: Vec<&[ServerId]> = able.iter().map(Vec::as_slice).collect();
    equalize(&choices, &mut leaders, leading);
    for (servers, leader) in placed.iter_mut().zip(leaders) {
        let first = servers
            .iter()
            .position(|server| Some(*server) == leader)
            .expect("`equalize` chooses leaders among the partition's replicas only");
        servers[..=first].rotate_right(1);
    }
    Ok(placed)
}

/// A partition whose leader can be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedPartition {
    /// Which.
    pub partition: PartitionId,
    /// Its leader, if known.
    pub leader: Option<ServerId>,
    /// Its preferred leader.
    pub preferred: ServerId,
    /// Servers that could lead it now: alive, and their replica is about up to date.
    pub able: Vec<ServerId>,
}

/// Which partitions are to be led by somebody else, so that leaders are even over live
/// servers. In order of partitions.
///
/// The first choice is the preferred leader if it is able, else the present one. Leaders
/// are then balanced from there. Nothing moves if the result is no better.
pub fn balance(partitions: &[LedPartition]) -> Vec<(PartitionId, ServerId)> {
    let mut sorted: Vec<&LedPartition> =
        partitions.iter().filter(|led| led.leader.is_some()).collect();
    sorted.sort_by_key(|led| led.partition);
    let first_choice = |led: &&LedPartition| {
        let able = |server: &ServerId| led.able.contains(server);
        Some(led.preferred).filter(able).or(led.leader.filter(able)).or(led.able.first().copied())
    };
    let mut leaders: Vec<Option<ServerId>> = sorted.iter().map(first_choice).collect();
    let mut leading: BTreeMap<ServerId, u64> =
        sorted.iter().flat_map(|led| led.able.iter().map(|server| (*server, 0))).collect();
    for leader in leaders.iter().flatten() {
        *leading.entry(*leader).or_default() += 1;
    }
    let choices: Vec<&[ServerId]> = sorted.iter().map(|led| led.able.as_slice()).collect();
    equalize(&choices, &mut leaders, leading);
    let ordered =
        || sorted.iter().zip(&leaders).filter_map(|(led, leader)| Some((*led, (*leader)?)));
    // Ways to be even are many: only what is better is worth a move, or one might lead to
    // another for ever.
    if cost(ordered()) >= cost(ordered().filter_map(|(led, _)| Some((led, led.leader?)))) {
        return Vec::new();
    }
    ordered()
        .filter(|(led, leader)| led.leader != Some(*leader))
        .map(|(led, leader)| (led.partition, leader))
        .collect()
}

/// Cost of a set of leaders, compared in order: the number that are unable, the
/// imbalance, the number that are not preferred.
fn cost<'l>(leaders: impl Iterator<Item = (&'l LedPartition, ServerId)>) -> (usize, u64, usize) {
    let (mut unable, mut others) = (0, 0);
    let mut leading: BTreeMap<ServerId, u64> = BTreeMap::new();
    for (led, leader) in leaders {
        unable += usize::from(!led.able.contains(&leader));
        others += usize::from(led.preferred != leader);
        *leading.entry(leader).or_default() += 1;
    }
    (unable, leading.values().map(|count| count * count).sum(), others)
}

/// Passes leaders on until no server leads two more than one that it could pass on to.
/// `choices[n]` are those who could lead partition `n`, `leaders[n]` is one of them.
fn equalize(
    choices: &[&[ServerId]],
    leaders: &mut [Option<ServerId>],
    mut leading: BTreeMap<ServerId, u64>,
) {
    let mut leads: BTreeMap<ServerId, Vec<usize>> = BTreeMap::new();
    for (partition, leader) in leaders.iter().enumerate() {
        if let Some(leader) = leader {
            leads.entry(*leader).or_default().push(partition);
        }
    }
    loop {
        // From those who lead most; each passes along the shortest chain to somebody who
        // leads at least two fewer.
        let mut sources: Vec<ServerId> = leading.keys().copied().collect();
        sources.sort_by_key(|server| (std::cmp::Reverse(leading[server]), *server));
        let Some(chain) =
            sources.into_iter().find_map(|from| chain_from(from, choices, &leads, &leading))
        else {
            return;
        };
        let (from, to) = (
            leaders[chain[0].0].expect("a chain passes on partitions with a leader"),
            chain[chain.len() - 1].1,
        );
        for (partition, to) in chain {
            let before =
                leaders[partition].replace(to).expect("a chain passes on partitions with a leader");
            leads
                .get_mut(&before)
                .expect("`leads` has every server that leads, by its partitions")
                .retain(|led| *led != partition);
            leads.entry(to).or_default().push(partition);
        }
        *leading.get_mut(&from).expect("chains begin at the servers of `leading`") -= 1;
        *leading.get_mut(&to).expect("`chain_from` ends at a server of `leading`") += 1;
    }
}

/// The shortest chain of (partition, who takes it over) from a server to one that leads
/// at least two fewer.
fn chain_from(
    from: ServerId,
    choices: &[&[ServerId]],
    leads: &BTreeMap<ServerId, Vec<usize>>,
    leading: &BTreeMap<ServerId, u64>,
) -> Option<Vec<(usize, ServerId)>> {
    let mut came: BTreeMap<ServerId, Option<(ServerId, usize)>> = BTreeMap::from([(from, None)]);
    let mut queue = VecDeque::from([from]);
    while let Some(server) = queue.pop_front() {
        if leading[&server] + 2 <= leading[&from] {
            let (mut chain, mut at) = (Vec::new(), server);
            while let Some(&Some((before, partition))) = came.get(&at) {
                chain.push((partition, at));
                at = before;
            }
            chain.reverse();
            return Some(chain);
        }
        for &partition in leads.get(&server).into_iter().flatten() {
            for next in choices[partition] {
                if leading.contains_key(next) && !came.contains_key(next) {
                    came.insert(*next, Some((server, partition)));
                    queue.push_back(*next);
                }
            }
        }
    }
    None
}
