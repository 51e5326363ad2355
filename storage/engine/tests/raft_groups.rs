//! Groups of three over a network in memory: elections, replication, failover, and
//! restarts.
#![allow(clippy::unwrap_used)]

mod raft_kit;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::raft::types::{LeaderId, Types, Vote};
use engine::raft::{ChangeError, GroupError, MessageKind, RaftMessage};
use openraft::raft::TransferLeaderRequest;
use parking_lot::Mutex;
use raft_kit::{GROUP, SERVERS, Three, acquire_leadership, delivered_messages, put, raft_id};

#[tokio::test(flavor = "multi_thread")]
async fn new_group_elects_its_first_member_and_replicates() {
    let started = Instant::now();
    let three = Three::start().await;
    let leader = three.leader().await;
    eprintln!("a leader after {:?}", started.elapsed());
    assert_eq!(leader, 1, "the first member forms the group");
    for key in 0..200 {
        three.put(key, b"v").await;
    }
    for server in SERVERS {
        three.until(server, 199, b"v").await;
    }
    let follower = three.group(2);
    assert_eq!(
        follower.stats().leader.map(|leader| (leader.raft_id, leader.server)),
        Some((raft_id(1), 1))
    );
    let Err(GroupError::NotLeader { leader: Some(hint), .. }) = follower.confirm_leadership().await
    else {
        panic!("a follower confirms")
    };
    assert_eq!((hint.server, hint.raft_id, hint.term), (1, raft_id(1), follower.stats().term));
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_takes_about_a_lease() {
    let mut three = Three::start().await;
    let mut took = Vec::new();
    for round in 0..5 {
        let leader = three.leader().await;
        three.put(round, b"v").await;
        let stopped = Instant::now();
        three.stop(leader).await;
        let next = three.leader().await;
        put(&three.group(next), 100 + round, b"w").await.unwrap();
        took.push(stopped.elapsed());
        three.restart(leader).await;
        three.until(leader, 100 + round, b"w").await;
    }
    took.sort();
    eprintln!("failover: {took:?}");
    assert!(took[2] < Duration::from_millis(2000), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_of_all_members_loses_nothing() {
    let mut three = Three::start().await;
    for key in 0..100 {
        three.put(key, b"v").await;
    }
    for server in SERVERS {
        three.stop(server).await;
    }
    for server in SERVERS {
        three.restart(server).await;
    }
    three.put(100, b"w").await;
    for server in SERVERS {
        three.until(server, 100, b"w").await;
        for key in 0..100 {
            assert_eq!(three.get(server, key).unwrap(), "v");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_members_bootstrap_a_group_without_the_first() {
    let mut three = Three::start().await;
    // The first has bootstrapped the group, and is cut off before any other member learns
    // of it.
    for server in SERVERS {
        three.stop(server).await;
    }
    let network = std::sync::Arc::<raft_kit::Network>::default();
    let directory = tempfile::tempdir().unwrap();
    let servers: Vec<_> = [2, 3]
        .map(|id| raft_kit::Server::start(id, &directory.path().join(id.to_string()), &network))
        .into();
    let mut replicas = Vec::new();
    for server in &servers {
        replicas.push(server.replica(9, Some(&SERVERS)).await);
    }
    let started = Instant::now();
    while !replicas.iter().any(|replica| replica.group.stats().is_leader) {
        assert!(started.elapsed() < Duration::from_secs(15), "no leader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eprintln!("formed by others after {:?}", started.elapsed());
    let leader = replicas.iter().find(|replica| replica.group.stats().is_leader).unwrap();
    put(&leader.group, 1, b"v").await.unwrap();
    // The first comes back, bootstraps the group for itself, and finds it bootstrapped.
    let late = raft_kit::Server::start(1, &directory.path().join("1"), &network);
    let first = late.replica(9, Some(&SERVERS)).await;
    raft_kit::wait_for("the first has caught up", || raft_kit::get(&first.store, 1).is_some())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_lossy_network_only_slows_writes() {
    let three = Three::start().await;
    three.leader().await;
    three.network.slow(Duration::from_millis(5), 2);
    let deadline = Instant::now() + Duration::from_secs(30);
    for key in 0..50 {
        loop {
            let leader = three.leader().await;
            let tried =
                tokio::time::timeout(Duration::from_secs(5), put(&three.group(leader), key, b"v"))
                    .await;
            if matches!(tried, Ok(Ok(()))) {
                break;
            }
            assert!(Instant::now() < deadline, "{key} written");
        }
    }
    three.network.heal();
    for server in SERVERS {
        three.until(server, 49, b"v").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn isolated_leader_refuses_within_the_lease() {
    let three = Three::start().await;
    let old = three.leader().await;
    three.put(1, b"v").await;
    let group = three.group(old);
    let leadership = acquire_leadership(&group).await.unwrap();
    three.network.isolate(old, &SERVERS);
    tokio::time::sleep(engine::raft::LEADER_LEASE + Duration::from_millis(50)).await;
    let refused = group.propose(&leadership, raft_kit::batch(2, b"lost")).await;
    assert!(matches!(refused, Err(GroupError::NotLeader { .. })), "{refused:?}");
    let refused = tokio::time::timeout(Duration::from_secs(2), group.confirm_leadership()).await;
    assert!(!matches!(refused, Ok(Ok(_))), "{refused:?}");
    let others: Vec<u64> = SERVERS.into_iter().filter(|id| *id != old).collect();
    let new = three.leader_among(&others).await;
    put(&three.group(new), 3, b"w").await.unwrap();
    three.network.heal();
    three.until(old, 3, b"w").await;
    assert_eq!(three.get(old, 2), None);
    assert!(!group.stats().is_leader);
}

/// The leader, and another member that has everything up to a write of `key`.
async fn leader_and_successor(three: &Three, key: u64) -> (u64, u64) {
    let leader = three.leader().await;
    three.put(key, b"v").await;
    let heir = SERVERS[(SERVERS.iter().position(|id| *id == leader).unwrap() + 1) % 3];
    three.until(heir, key, b"v").await;
    (leader, heir)
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_transfer_causes_no_pause() {
    let three = Three::start().await;
    for round in 0..6 {
        let (from, to) = leader_and_successor(&three, round).await;
        let revoked = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (group, flag) = (three.group(from), revoked.clone());
        let started = Instant::now();
        group
            .transfer_leader(
                raft_id(to),
                Box::new(move || flag.store(true, std::sync::atomic::Ordering::SeqCst)),
            )
            .await
            .unwrap();
        let took = started.elapsed();
        assert!(revoked.load(std::sync::atomic::Ordering::SeqCst));
        assert!(group.confirm_leadership().await.is_err(), "it is over");
        put(&three.group(to), 100 + round, b"w").await.unwrap();
        eprintln!("handed over in {took:?}, written after {:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_millis(800));
    }
    let leader = three.leader().await;
    let group = three.group(leader);
    let unknown = group.transfer_leader(4711, Box::new(|| panic!("nothing begins"))).await;
    assert!(matches!(unknown, Err(ChangeError::Refused(_))), "{unknown:?}");
    let away = SERVERS.into_iter().find(|id| *id != leader).unwrap();
    three.network.isolate(away, &SERVERS);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let refused = group.transfer_leader(raft_id(away), Box::new(|| panic!("nothing begins"))).await;
    assert!(matches!(refused, Err(ChangeError::Refused(_))), "{refused:?}");
    put(&group, 200, b"goes on").await.unwrap();
    let follower =
        three.group(SERVERS.into_iter().find(|id| ![leader, away].contains(id)).unwrap());
    let elsewhere =
        follower.transfer_leader(raft_id(leader), Box::new(|| panic!("nothing begins"))).await;
    assert!(
        matches!(elsewhere, Err(ChangeError::Group(GroupError::NotLeader { leader: Some(_), .. }))),
        "{elsewhere:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_to_a_dead_member_ends_in_an_election() {
    let three = Three::start().await;
    for round in 0..3 {
        let (from, to) = leader_and_successor(&three, round).await;
        let third = SERVERS.into_iter().find(|id| ![from, to].contains(id)).unwrap();
        let (group, network) = (three.group(from), three.network.clone());
        let started = Instant::now();
        // It has said that it is ready to lead, and is dead.
        group
            .transfer_leader(raft_id(to), Box::new(move || network.isolate(to, &SERVERS)))
            .await
            .unwrap();
        assert_eq!(three.leader_among(&[from, third]).await, third);
        put(&three.group(third), 100 + round, b"w").await.unwrap();
        let took = started.elapsed();
        eprintln!("written after {took:?}");
        assert!(took < engine::raft::LEADER_LEASE, "{took:?}");
        three.network.heal();
        three.until(to, 100 + round, b"w").await;
    }
}

/// The new leader's first messages are lost for longer than a tick. The old leader has
/// had no contact with a leader for a long time, and knows only its own vote.
#[tokio::test(flavor = "multi_thread")]
async fn voter_lets_its_candidate_win() {
    let three = Three::start().await;
    for round in 0..3 {
        let (from, to) = leader_and_successor(&three, round).await;
        tokio::time::sleep(engine::raft::LEADER_LEASE.mul_f64(1.2)).await;
        let (group, candidates) = (three.group(from), Arc::<Mutex<Vec<(u64, Bytes)>>>::default());
        let (started, seen) = (Instant::now(), candidates.clone());
        let is_late = move || started.elapsed() < Duration::from_millis(150);
        three.network.filter_messages(move |message| {
            if message.kind == MessageKind::Vote {
                seen.lock().push((message.from, message.body.clone()));
            }
            message.kind != MessageKind::Append || message.from != raft_id(to) || !is_late()
        });
        group.transfer_leader(raft_id(to), Box::new(|| ())).await.unwrap();
        assert_eq!(three.leader().await, to);
        let mut candidates = std::mem::take(&mut *candidates.lock());
        candidates.dedup();
        assert!(
            matches!(candidates[..], [(from, _)] if from == raft_id(to)),
            "one election, of the heir: {candidates:?}"
        );
        put(&three.group(to), 200 + round, b"w").await.unwrap();
        eprintln!("written after {:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn member_is_replaced_by_another() {
    let three = Three::start().await;
    let leader = three.leader().await;
    three.put(1, b"v").await;
    let fourth = raft_kit::Server::start(4, &three.path(4), &three.network);
    let added = fourth.replica_as(raft_kit::GROUP, 900, None).await;
    let group = three.group(leader);
    let removed = SERVERS.into_iter().find(|id| *id != leader).unwrap();
    let voters: std::collections::BTreeSet<u64> =
        SERVERS.into_iter().filter(|id| *id != removed).map(raft_id).chain([900]).collect();
    let early = group.change_members(&voters).await;
    assert!(matches!(early, Err(ChangeError::Refused(_))), "it is no member yet: {early:?}");
    group.add_learner(900, engine::raft::Node { server: 4 }).await.unwrap();
    group.add_learner(900, engine::raft::Node { server: 4 }).await.unwrap();
    raft_kit::wait_for("the learner has the state", || raft_kit::get(&added.store, 1).is_some())
        .await;
    let without_me: std::collections::BTreeSet<u64> =
        SERVERS.into_iter().filter(|id| *id != leader).map(raft_id).chain([900]).collect();
    let refused = group.change_members(&without_me).await;
    assert!(matches!(refused, Err(ChangeError::Refused(_))), "the leader stays: {refused:?}");
    // It has the state, and may not have answered a heartbeat yet.
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(refused) = group.change_members(&voters).await {
        assert!(
            matches!(&refused, ChangeError::Refused(why) if why.contains("no recent contact")),
            "{refused:?}"
        );
        assert!(Instant::now() < deadline, "{refused:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    group.change_members(&voters).await.unwrap();
    let status = group.status();
    assert!(!status.is_changing);
    assert_eq!(
        status.members.iter().map(|(id, ..)| *id).collect::<std::collections::BTreeSet<_>>(),
        voters
    );
    // With the removed one and another down, leader and newcomer are a majority.
    let other = SERVERS.into_iter().find(|id| ![leader, removed].contains(id)).unwrap();
    three.network.cut(leader, removed);
    three.network.cut(leader, other);
    put(&group, 2, b"w").await.unwrap();
    raft_kit::wait_for("the newcomer follows", || raft_kit::get(&added.store, 2).is_some()).await;
    // Messages to a removed replica are not taken by its successor.
    assert!(!three.group(removed).stats().is_leader);
}

/// CPU time of 64 idle groups of three: printed, for three servers in one process.
#[tokio::test(flavor = "multi_thread")]
async fn idle_groups_cost_little() {
    let network = std::sync::Arc::<raft_kit::Network>::default();
    let directory = tempfile::tempdir().unwrap();
    let servers = SERVERS
        .map(|id| raft_kit::Server::start(id, &directory.path().join(id.to_string()), &network));
    let mut replicas = Vec::new();
    for number in 100..164 {
        for server in &servers {
            replicas.push(server.replica(number, Some(&SERVERS)).await);
        }
    }
    raft_kit::wait_for("all have a leader", || {
        replicas.iter().all(|replica| replica.group.stats().leader.is_some())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cpu = || {
        let text = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
    };
    let (before, started) = (cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    // Clock ticks of 10 ms.
    let percent = (cpu() - before) / started.elapsed().as_secs_f64();
    eprintln!("64 idle groups of three: {percent:.1} % of a core, all three servers together");
    assert!(percent < 60.0);
}

/// A transfer is ignored from a term that nobody has reached, and from a leader that is
/// not followed: a replica that believed it would campaign for ever.
#[tokio::test(flavor = "multi_thread")]
async fn transfer_by_a_foreign_leader_causes_no_campaign() {
    let three = Three::start().await;
    let leader = three.leader().await;
    let [follower, other] = SERVERS.into_iter().filter(|id| *id != leader).collect::<Vec<_>>()[..]
    else {
        unreachable!()
    };
    three.put(1, b"v").await;
    three.until(follower, 1, b"v").await;
    let term = three.group(leader).stats().term;
    let asked = delivered_messages(&three.network, MessageKind::PreVote);
    for (term, from) in [(term + 1000, leader), (term + 1000, other), (term, other)] {
        let vote = Vote {
            leader_id: LeaderId { term: term.into(), node_id: raft_id(from) },
            committed: true,
        };
        let request = TransferLeaderRequest::<Types>::new(vote, raft_id(other), None);
        let body = postcard::to_extend(&request, vec![1u8]).unwrap().into();
        let (group, target, timeout) = (GROUP, raft_id(follower), Duration::from_secs(1));
        let message = RaftMessage {
            group,
            from: raft_id(from),
            target,
            kind: MessageKind::TransferLeader,
            body,
            timeout,
        };
        three.group(follower).receive(message).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(
        delivered_messages(&three.network, MessageKind::PreVote),
        asked,
        "it does not campaign"
    );
    assert_eq!(three.group(leader).stats().term, term);
}
