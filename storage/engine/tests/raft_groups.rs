//! Groups of three over a network in memory: they elect, replicate, fail over, and take back who was away.
#![allow(clippy::unwrap_used)]

mod raft_kit;

use std::time::{Duration, Instant};

use engine::raft::GroupError;
use raft_kit::{SERVERS, Three, establish, put, raft_id};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_group_elects_its_first_member_at_once_and_replicates() {
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
    assert_eq!(follower.figures().leader.map(|leader| (leader.raft_id, leader.server)), Some((raft_id(1), 1)));
    let Err(GroupError::NotLeader { leader: Some(hint), .. }) = follower.confirm().await else { panic!("a follower confirms") };
    assert_eq!((hint.server, hint.raft_id, hint.term), (1, raft_id(1), follower.figures().term));
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
async fn all_come_back_and_lose_nothing() {
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
async fn the_others_form_a_new_group_when_the_first_never_comes() {
    let mut three = Three::start().await;
    // Not quite "never": it had formed the group and is cut off before anybody else heard of it.
    for server in SERVERS {
        three.stop(server).await;
    }
    let network = std::sync::Arc::<raft_kit::Network>::default();
    let directory = tempfile::tempdir().unwrap();
    let servers: Vec<_> = [2, 3].map(|id| raft_kit::Server::start(id, &directory.path().join(id.to_string()), &network)).into();
    let mut replicas = Vec::new();
    for server in &servers {
        replicas.push(server.replica(9, Some(&SERVERS)).await);
    }
    let started = Instant::now();
    while !replicas.iter().any(|replica| replica.group.figures().is_leader) {
        assert!(started.elapsed() < Duration::from_secs(15), "no leader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eprintln!("formed by others after {:?}", started.elapsed());
    let leader = replicas.iter().find(|replica| replica.group.figures().is_leader).unwrap();
    put(&leader.group, 1, b"v").await.unwrap();
    // The first comes late, forms the group for itself, and finds that it has been formed.
    let late = raft_kit::Server::start(1, &directory.path().join("1"), &network);
    let first = late.replica(9, Some(&SERVERS)).await;
    raft_kit::wait_for("the first has caught up", || raft_kit::get(&first.store, 1).is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_and_lossy_network_slows_writes_only() {
    let three = Three::start().await;
    three.leader().await;
    three.network.slow(Duration::from_millis(5), 2);
    let mut written = 0;
    let deadline = Instant::now() + Duration::from_secs(30);
    for key in 0..50 {
        loop {
            let leader = three.leader().await;
            let tried = tokio::time::timeout(Duration::from_secs(5), put(&three.group(leader), key, b"v")).await;
            if matches!(tried, Ok(Ok(()))) {
                break;
            }
            assert!(Instant::now() < deadline, "{written} written");
        }
        written += 1;
    }
    three.network.heal();
    for server in SERVERS {
        three.until(server, 49, b"v").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_the_others_refuses_within_the_lease() {
    let three = Three::start().await;
    let old = three.leader().await;
    three.put(1, b"v").await;
    let group = three.group(old);
    let leadership = establish(&group).await.unwrap();
    three.network.isolate(old, &SERVERS);
    tokio::time::sleep(engine::raft::LEASE + Duration::from_millis(50)).await;
    let refused = group.propose(&leadership, raft_kit::batch(2, b"lost")).await;
    assert!(matches!(refused, Err(GroupError::NotLeader { .. })), "{refused:?}");
    let refused = tokio::time::timeout(Duration::from_secs(2), group.confirm()).await;
    assert!(!matches!(refused, Ok(Ok(()))), "{refused:?}");
    let others: Vec<u64> = SERVERS.into_iter().filter(|id| *id != old).collect();
    let new = three.leader_among(&others).await;
    put(&three.group(new), 3, b"w").await.unwrap();
    three.network.heal();
    three.until(old, 3, b"w").await;
    assert_eq!(three.get(old, 2), None);
    assert!(!group.figures().is_leader);
}
