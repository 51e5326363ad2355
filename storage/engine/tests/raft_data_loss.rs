//! Replicas that have lost data: neither they nor replicas that hold lost entries ever
//! pass for intact.
#![allow(clippy::unwrap_used)]

mod raft_kit;

use std::time::{Duration, Instant};

use engine::FaultKind;
use engine::log::Durability;
use engine::raft::purge::LogPolicy;
use engine::raft::{Group, GroupError};
use raft_kit::{GROUP, SERVERS, Three, put, wait_for};

/// A log that is purged as soon as it is flushed.
const SHORT: LogPolicy = LogPolicy {
    bytes_max: 1 << 20,
    entries_max: 10,
    age_max: Duration::from_millis(100),
    retention_bytes: 1 << 20,
    retention_entries: 10,
    retention_total_bytes: 1 << 20,
    retention_time: Duration::from_millis(100),
};

/// Restores two of three servers to before a write that all three had; they continue with
/// another. The third is alone with what it has applied.
async fn two_restored_from_backup(policy: LogPolicy, lost: u64, writes: u64) -> (Three, u64) {
    let mut three = Three::start_as(Durability::Os, policy).await;
    let odd = three.leader().await;
    three.put(1, b"before").await;
    for server in SERVERS {
        three.until(server, 1, b"before").await;
    }
    for server in SERVERS {
        three.stop(server).await;
    }
    let others = SERVERS.into_iter().filter(|server| *server != odd).collect::<Vec<_>>();
    others.iter().for_each(|server| three.back_up(*server));
    for server in SERVERS {
        three.restart(server).await;
    }
    for key in 2..2 + lost {
        three.put(key, b"lost").await;
    }
    for server in SERVERS {
        three.until(server, 1 + lost, b"lost").await;
    }
    for server in SERVERS {
        three.stop(server).await;
    }
    for server in &others {
        three.restore_backup(*server);
        three.restart(*server).await;
    }
    let leader = three.leader_among(&others).await;
    let group = three.group(leader);
    for key in 0..writes {
        put(&group, 100 + key, b"after").await.unwrap();
    }
    (three, odd)
}

async fn is_diverged(three: &Three, odd: u64) {
    let replica = &three.replicas[&odd];
    let fault = tokio::time::timeout(Duration::from_secs(10), replica.group.ended())
        .await
        .unwrap_or_else(|_| {
            let groups: Vec<_> = three
                .replicas
                .values()
                .map(|replica| (replica.server, replica.group.stats()))
                .collect();
            panic!("replica {odd} goes on: {groups:#?}");
        });
    assert_eq!(fault.kind, FaultKind::Damaged);
    assert!(fault.why.contains("without entries that this replica had applied"), "{fault}");
    assert!(replica.store.damage().is_some(), "it is to be rebuilt");
    assert!(matches!(replica.group.running(), Err(GroupError::Fatal(_))));
}

/// openraft compares no log ids up to the commit index: it would append behind them.
#[tokio::test(flavor = "multi_thread")]
async fn replica_with_entries_the_group_lacks_is_diverged() {
    for writes in [0, 1, 5] {
        let (mut three, odd) = two_restored_from_backup(LogPolicy::default(), 1, writes).await;
        three.restart(odd).await;
        is_diverged(&three, odd).await;
        // Nor after another restart: it took in nothing of the other history.
        three.stop(odd).await;
        three.restart(odd).await;
        is_diverged(&three, odd).await;
    }
}

/// Writes until the leader of `servers` has purged `entries` entries more.
async fn write_until_purged(three: &Three, servers: &[u64], entries: u64) -> u64 {
    let leader = three.leader_among(servers).await;
    let group = three.group(leader);
    let enough = group.stats().last_log + entries;
    for key in 100.. {
        put(&group, key, b"after").await.unwrap();
        if group.stats().purged > enough {
            return key;
        }
        assert!(key < 2000, "the log is not purged: {:?}", group.status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    unreachable!()
}

/// openraft would take the leader's snapshot for older than the state here, or panic.
#[tokio::test(flavor = "multi_thread")]
async fn replica_with_entries_a_snapshot_lacks_is_diverged() {
    let (mut three, odd) = two_restored_from_backup(SHORT, 500, 0).await;
    let others = SERVERS.into_iter().filter(|server| *server != odd).collect::<Vec<_>>();
    write_until_purged(&three, &others, 0).await;
    three.restart(odd).await;
    is_diverged(&three, odd).await;
}

/// It is complete, and holds nothing that the group has lost.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_beyond_lost_entries_replaces_the_state() {
    let (mut three, odd) = two_restored_from_backup(SHORT, 1, 0).await;
    let others = SERVERS.into_iter().filter(|server| *server != odd).collect::<Vec<_>>();
    let last = write_until_purged(&three, &others, 2).await;
    three.restart(odd).await;
    three.until(odd, last, b"after").await;
    assert!(three.get(odd, 2).is_none());
    for key in 100..last {
        assert_eq!(three.get(odd, key).as_deref(), Some(&b"after"[..]), "{key}");
    }
    assert!(three.replicas[&odd].store.damage().is_none());
}

fn start_error(started: Result<Group, GroupError>) -> String {
    started.err().expect("it does not start").to_string()
}

/// The entries before the log's start were in the lost store.
#[tokio::test(flavor = "multi_thread")]
async fn replica_with_a_lost_or_old_store_is_diverged() {
    for is_gone in [true, false] {
        let mut three = Three::start_as(Durability::Os, SHORT).await;
        three.leader().await;
        three.put(1, b"before").await;
        three.until(3, 1, b"before").await;
        three.stop(3).await;
        three.back_up(3);
        three.restart(3).await;
        let leader = three.leader().await;
        let group = three.group(leader);
        let three_at = |three: &Three| three.group(3).stats();
        let before = three_at(&three).last_log;
        for key in 0.. {
            put(&group, 100 + key, b"more").await.unwrap();
            if three_at(&three).purged > before {
                break;
            }
            assert!(key < 2000, "the log is not purged: {:?}", group.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        three.stop(3).await;
        let store = three.path(3).join(format!("store-{GROUP}"));
        std::fs::remove_dir_all(&store).unwrap();
        if !is_gone {
            std::fs::rename(three.path(1003).join(format!("store-{GROUP}")), &store).unwrap();
        }
        let server = three.server(3);
        let (started, store) = server.try_replica(GROUP, Some(&SERVERS)).await;
        let why = start_error(started);
        assert!(why.contains("the log begins at"), "{why}");
        assert!(store.damage().is_some(), "it is to be rebuilt");
    }
}

/// A write that two of three acknowledged is not lost when one of the two forgets it.
#[tokio::test(flavor = "multi_thread")]
async fn replica_that_lost_its_log_tail_elects_no_leader() {
    let mut three = Three::start_as(Durability::Os, LogPolicy::default()).await;
    let keeps = three.leader().await;
    let [forgets, lacks] = SERVERS.into_iter().filter(|id| *id != keeps).collect::<Vec<_>>()[..]
    else {
        unreachable!()
    };
    three.put(1, b"before").await;
    for server in SERVERS {
        three.until(server, 1, b"before").await;
    }
    three.back_up(forgets);
    three.network.isolate(lacks, &SERVERS);
    put(&three.group(keeps), 2, b"acknowledged").await.unwrap();
    three.until(forgets, 2, b"acknowledged").await;
    three.stop(keeps).await;
    three.stop(forgets).await;
    three.restore_backup(forgets);
    three.network.heal();
    three.restart(forgets).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        assert!(
            [forgets, lacks].iter().all(|id| !three.group(*id).stats().is_leader),
            "a leader that lacks what was acknowledged"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(three.group(forgets).stats().abstains);
    three.restart(keeps).await;
    assert_eq!(three.leader().await, keeps, "the others lack an entry");
    for server in SERVERS {
        three.until(server, 2, b"acknowledged").await;
    }
    wait_for("it votes again", || !three.group(forgets).stats().abstains).await;
    // After a proper shutdown it votes at once.
    three.stop(forgets).await;
    three.restart(forgets).await;
    assert!(!three.group(forgets).stats().abstains);
}

/// A leader that stays sends the lost entries again; the replica needs nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn leader_sends_a_lost_log_tail_again() {
    let mut three = Three::start_as(Durability::Os, LogPolicy::default()).await;
    let leader = three.leader().await;
    let [forgets, lacks] = SERVERS.into_iter().filter(|id| *id != leader).collect::<Vec<_>>()[..]
    else {
        unreachable!()
    };
    three.put(1, b"before").await;
    three.until(forgets, 1, b"before").await;
    three.back_up(forgets);
    for key in 2..50 {
        three.put(key, b"acknowledged").await;
    }
    for server in [forgets, lacks] {
        three.until(server, 49, b"acknowledged").await;
    }
    three.stop(forgets).await;
    three.restore_backup(forgets);
    three.restart(forgets).await;
    assert!(three.get(forgets, 49).is_none());
    three.until(forgets, 49, b"acknowledged").await;
    three.put(50, b"after").await;
    three.until(forgets, 50, b"after").await;
    assert_eq!(three.leader().await, leader);
    wait_for("it votes again", || !three.group(forgets).stats().abstains).await;
    // It is needed for a majority now, and its acknowledgements count.
    three.network.isolate(lacks, &SERVERS);
    put(&three.group(leader), 51, b"two of three").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn longest_log_leads_when_all_members_are_suspects() {
    let mut three = Three::start_as(Durability::Os, LogPolicy::default()).await;
    let old = three.leader().await;
    let [longest, other] = SERVERS.into_iter().filter(|id| *id != old).collect::<Vec<_>>()[..]
    else {
        unreachable!()
    };
    for (key, backed_up) in [(1, old), (2, other), (3, longest)] {
        three.put(key, b"acknowledged").await;
        for server in SERVERS {
            three.until(server, key, b"acknowledged").await;
        }
        three.back_up(backed_up);
    }
    for server in SERVERS {
        three.stop(server).await;
    }
    let began = Instant::now();
    for server in SERVERS {
        three.restore_backup(server);
        three.restart(server).await;
    }
    let leader = three.leader().await;
    assert_eq!(leader, longest);
    assert!((9..18).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    for server in SERVERS {
        three.until(server, 3, b"acknowledged").await;
    }
    wait_for("all vote again", || SERVERS.iter().all(|id| !three.group(*id).stats().abstains))
        .await;
}
