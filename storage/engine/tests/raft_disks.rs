//! Groups whose members' disks are slow, full, or do not keep up.
#![allow(clippy::unwrap_used)]

mod raft_kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::log::{DiskProblem, Durability, LogError};
use engine::raft::{ChangeError, MessageKind, RaftMessage, ReceiveError, TransferReason};
use parking_lot::Mutex;
use raft_kit::*;

/// As a node does a few times a second: a leader with a disk problem transfers its
/// leadership.
async fn evict_leader(three: &Three, server: u64) -> Result<Option<u64>, ChangeError> {
    let group = three.group(server);
    match group.disk_problem() {
        Some(disk_problem) => group.evict_leader(disk_problem, Box::new(|| ())).await,
        None => Ok(None),
    }
}

fn set_slow(three: &Three, server: u64, ms: u64) {
    three.disks[&server].slow_ms.store(ms, Ordering::Relaxed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_on_a_slow_disk_transfers_and_writes_go_on() {
    let three = Three::start_with(Durability::Always).await;
    let leader = three.leader().await;
    three.put(1, b"before").await;
    let others: Vec<u64> = SERVERS.into_iter().filter(|server| *server != leader).collect();
    let term = three.group(leader).stats().term;

    set_slow(&three, leader, 2000);
    let slow_since = Instant::now();
    // Writes do not wait for the leader's own disk.
    put(&three.group(leader), 2, b"while it hangs").await.unwrap();
    assert!(slow_since.elapsed() < Duration::from_secs(1), "{:?}", slow_since.elapsed());
    wait_for("the hanging sync is noticed", || {
        matches!(three.group(leader).disk_problem(), Some(DiskProblem::Slow(_)))
    })
    .await;
    assert_eq!(
        three.group(leader).stats().term,
        term,
        "heartbeats go on: no member has campaigned"
    );
    // The target's disk counts, not only whether it is up: one of the two is slow, too.
    set_slow(&three, others[0], 300);
    three.servers[&others[0]].log.flush().await.unwrap();
    wait_for("its sync is slow", || {
        three.servers[&others[0]].log.last_fsync() >= Duration::from_millis(100)
    })
    .await;
    let leaving = tokio::spawn({
        let (group, disk_problem) =
            (three.group(leader), three.group(leader).disk_problem().unwrap());
        async move { group.evict_leader(disk_problem, Box::new(|| ())).await }
    });
    assert_eq!(three.leader_among(&others).await, others[1]);
    assert!(
        slow_since.elapsed() < Duration::from_secs(6),
        "within a few seconds: {:?}",
        slow_since.elapsed()
    );
    put(&three.group(others[1]), 3, b"after").await.unwrap();
    assert_eq!(leaving.await.unwrap().unwrap(), Some(raft_id(others[1])));

    // Its disk is healthy again; no leadership returns to it for a minute.
    set_slow(&three, leader, 0);
    set_slow(&three, others[0], 0);
    three.servers[&leader].log.flush().await.unwrap();
    wait_for("the disk is quick again", || three.servers[&leader].log.disk_problem().is_none())
        .await;
    assert!(three.servers[&leader].log.recent_disk_problem().is_some());
    three.until(leader, 3, b"after").await;
    let refused = three
        .group(others[1])
        .transfer_leader(raft_id(leader), Box::new(|| panic!("nothing begins")))
        .await;
    assert!(
        matches!(
            &refused,
            Err(ChangeError::Refused(why)) if why.contains("its disk has a problem")
        ),
        "{refused:?}"
    );
    // Except when no other can lead: a leader that stops accepts any target.
    let stopping = three
        .group(others[1])
        .transfer_leader_with(raft_id(leader), TransferReason::Stopping, Box::new(|| ()))
        .await;
    stopping.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_on_a_full_disk_transfers_unless_all_are_full() {
    let three = Three::start_with(Durability::Always).await;
    let leader = three.leader().await;
    let others: Vec<u64> = SERVERS.into_iter().filter(|server| *server != leader).collect();
    let fill =
        |server: &u64, percent| three.disks[server].used_percent.store(percent, Ordering::Relaxed);
    SERVERS.iter().for_each(|server| fill(server, 96));
    wait_for("all notice it", || {
        SERVERS
            .iter()
            .all(|server| three.servers[server].log.disk_problem() == Some(DiskProblem::Full(96)))
    })
    .await;
    let refused = evict_leader(&three, leader).await;
    assert!(
        matches!(&refused, Err(ChangeError::Refused(why)) if why.contains("96 % full")),
        "{refused:?}"
    );
    assert!(three.group(leader).stats().is_leader);
    assert_eq!(evict_leader(&three, leader).await.unwrap(), None, "it is not tried all the time");
    put(&three.group(leader), 1, b"it serves").await.unwrap();
    others.iter().for_each(|server| fill(server, 50));
    // The problems count for a minute. A restart forgets them, which saves the test that
    // time.
    let mut three = three;
    for server in &others {
        three.stop(*server).await;
        three.restart(*server).await;
    }
    wait_for("they are well", || {
        others.iter().all(|server| three.servers[server].log.recent_disk_problem().is_none())
    })
    .await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let to = loop {
        // Restarted members may not vote for a moment.
        match evict_leader(&three, leader).await {
            Ok(Some(to)) => break to,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(others.contains(&(to - 100)));
}

/// While a disk hangs, the proposals that wait for it are bounded, and further ones are
/// refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_waiting_for_a_leaders_disk_are_bounded() {
    let three = Three::start_with(Durability::Always).await;
    let leader = three.leader().await;
    let group = three.group(leader);
    put(&group, 1, b"before").await.unwrap();
    set_slow(&three, leader, 4000);
    let value = vec![7; 8 << 20];
    let mut taken = 0;
    let behind = loop {
        if let Err(why) = group.writable() {
            break why;
        }
        put(&group, 2, &value).await.unwrap();
        taken += value.len();
        assert!(taken < 256 << 20, "it is not bounded");
    };
    assert!(matches!(behind, LogError::Behind { bytes } if bytes > 64 << 20), "{behind}");
    assert!((64 << 20..96 << 20).contains(&taken), "{taken}");
    assert!(group.disk_problem().is_some());
    set_slow(&three, leader, 0);
    wait_for("it keeps up again", || group.writable().is_ok()).await;
}

/// Of repeated messages with entries whose sender has given up, one is taken in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_waiting_for_its_disk_takes_one_append() {
    let three = Three::start_with(Durability::Always).await;
    let leader = three.leader().await;
    three.put(1, b"before").await;
    let follower = *SERVERS.iter().find(|server| **server != leader).unwrap();
    three.until(follower, 1, b"before").await;
    let (seen, is_on) =
        (Arc::new(Mutex::new(Vec::<RaftMessage>::new())), Arc::new(AtomicBool::new(true)));
    three.network.filter_messages({
        let (seen, is_on) = (seen.clone(), is_on.clone());
        move |message| {
            let is_it = message.kind == MessageKind::Append
                && message.target == raft_id(follower)
                && message.body.len() > 10_000;
            if is_it && is_on.load(Ordering::Relaxed) {
                seen.lock().push(message.clone());
            }
            // The test delivers it itself.
            !is_it
        }
    });
    put(&three.group(leader), 2, &[9; 20_000]).await.unwrap();
    wait_for("the message is on its way", || !seen.lock().is_empty()).await;
    is_on.store(false, Ordering::Relaxed);
    let message = seen.lock()[0].clone();
    set_slow(&three, follower, 1500);
    let group = three.group(follower);
    let copies: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn({
                let (group, message) = (group.clone(), message.clone());
                async move { group.receive(message).await }
            })
        })
        .collect();
    let mut taken = 0;
    for copy in copies {
        match copy.await.unwrap() {
            Ok(_reply) => taken += 1,
            Err(ReceiveError::Unavailable(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(taken, 1);
    set_slow(&three, follower, 0);
    // Messages without entries are taken meanwhile, and entries are when it is done.
    assert_ne!(
        group.receive(message).await.map(|_: Bytes| ()),
        Err(ReceiveError::Unavailable(String::new()))
    );
    three.network.heal();
    three.until(follower, 2, &[9; 20_000]).await;
}
