//! A replica that is too far behind for the log gets a snapshot: in chunks, complete or
//! not at all, and resumed where it broke off.
#![allow(clippy::unwrap_used)]

mod raft_kit;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::log::Durability;
use engine::raft::purge::LogPolicy;
use engine::raft::{MessageKind, finish_rebuild};
use engine::store::Store;
use openraft::RaftLogReader;
use parking_lot::Mutex;
use raft_kit::{GROUP, SERVERS, Server, Three, delivered_messages, noise, put, wait_for};

/// A log that is purged soon.
const SHORT: LogPolicy = LogPolicy {
    bytes_max: 2 << 20,
    entries_max: 50,
    age_max: Duration::from_secs(1),
    retention_bytes: 4 << 20,
    retention_total_bytes: 2 << 30,
    retention_entries: 100,
    retention_time: Duration::from_secs(60),
};

const VALUE: usize = 1 << 20;
const VALUES: u64 = 24;

/// Three servers, the third of which was down while the entries that it lacks were
/// purged.
async fn one_lagging() -> Three {
    let mut three = Three::start_as(Durability::Os, SHORT).await;
    three.leader().await;
    three.put(1000, b"before").await;
    three.until(3, 1000, b"before").await;
    three.stop(3).await;
    let leader = three.leader().await;
    let group = three.group(leader);
    let lost = group.stats().last_log;
    for key in 0..VALUES {
        put(&group, key, &noise(key, VALUE)).await.unwrap();
    }
    // A few more writes from time to time, so that the policy is checked.
    for key in 2000.. {
        put(&group, key, b"more").await.unwrap();
        if group.stats().purged > lost {
            break;
        }
        assert!(key < 2600, "the log is not purged: {:?}", group.status());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    three
}

fn check(three: &Three) {
    for key in 0..VALUES {
        assert_eq!(three.get(3, key).unwrap(), noise(key, VALUE), "key {key}");
    }
    assert_eq!(three.get(3, 1000).unwrap(), "before");
}

async fn no_leftovers(three: &Three) {
    let left = || {
        let names = |path: &std::path::Path| {
            std::fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect::<Vec<_>>()
        };
        three
            .replicas
            .values()
            .flat_map(|replica| names(&replica.dir))
            .any(|name| name.starts_with("send-") || name.starts_with("recv"))
    };
    wait_for("checkpoints and what was received are removed", || !left()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lagging_replica_gets_a_snapshot_and_then_the_log() {
    let mut three = one_lagging().await;
    three.restart(3).await;
    three.put(1001, b"after").await;
    three.until(3, 1001, b"after").await;
    check(&three);
    assert!(
        delivered_messages(&three.network, MessageKind::SnapshotChunk) >= VALUES,
        "it came in chunks"
    );
    no_leftovers(&three).await;
    // It is a member like any other: it can lead.
    let leader = three.leader().await;
    if leader != 3 {
        three.network.isolate(leader, &raft_kit::SERVERS);
        let others: Vec<u64> = raft_kit::SERVERS.into_iter().filter(|id| *id != leader).collect();
        three.leader_among(&others).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_is_retained_for_the_slowest_follower_that_is_up() {
    let three = Three::start_as(
        Durability::Os,
        LogPolicy { retention_bytes: 64 << 20, retention_entries: 10_000, ..SHORT },
    )
    .await;
    let leader = three.leader().await;
    three.put(1000, b"before").await;
    let late = raft_kit::SERVERS.into_iter().find(|id| *id != leader).unwrap();
    three.until(late, 1000, b"before").await;
    three.network.isolate(late, &raft_kit::SERVERS);
    let (group, store) = (three.group(leader), three.replicas[&leader].store.clone());
    let lost = group.stats().last_log;
    for key in 0..VALUES {
        put(&group, key, &noise(key, VALUE)).await.unwrap();
    }
    wait_for("nearly all is flushed", || {
        store.flushed().unwrap().is_some_and(|flushed| flushed.index > lost + VALUES / 2)
    })
    .await;
    // The policy was checked meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(group.stats().purged <= lost, "{:?}", group.status());
    three.network.heal();
    three.until(late, VALUES - 1, &noise(VALUES - 1, VALUE)).await;
    assert_eq!(
        delivered_messages(&three.network, MessageKind::SnapshotChunk),
        0,
        "it came from the log"
    );
    wait_for("no follower needs it any more", || group.stats().purged > lost).await;
}

/// No snapshot is made for a member whose process is dead or does not answer: that costs
/// a flush and a read of every byte.
#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_is_made_for_a_dead_member() {
    let mut three = one_lagging().await;
    let leader = three.leader().await;
    let dir = three.replicas[&leader].dir.clone();
    for is_frozen in [false, true] {
        if is_frozen {
            three.network.filter_messages(|message| message.target != raft_kit::raft_id(3));
            three.restart(3).await;
        }
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            let made = std::fs::read_dir(&dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap());
            assert_eq!(
                made.filter(|name| name.starts_with("send-")).collect::<Vec<_>>(),
                Vec::<String>::new()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    three.network.heal();
    three.put(1001, b"after").await;
    three.until(3, 1001, b"after").await;
    check(&three);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_snapshot_transfer_resumes() {
    let mut three = one_lagging().await;
    // So that no compaction replaces the files during the transfer.
    for replica in three.replicas.values() {
        let store = replica.store.clone();
        tokio::task::spawn_blocking(move || store.compact().unwrap().wait().unwrap())
            .await
            .unwrap();
    }
    let seen = Arc::new(Mutex::new((0u64, 0u64)));
    let counted = seen.clone();
    // Ten chunks arrive; then none for a while, and then the rest.
    let started = Arc::new(Mutex::new(None));
    three.network.filter_messages(move |message| {
        if !message.kind.is_bulk() {
            return true;
        }
        let mut seen = counted.lock();
        let is_broken = seen.0 >= 10
            && started.lock().get_or_insert_with(std::time::Instant::now).elapsed()
                < Duration::from_secs(2);
        seen.0 += u64::from(message.kind == MessageKind::SnapshotChunk && !is_broken);
        seen.1 += u64::from(message.kind == MessageKind::SnapshotOffer && !is_broken);
        !is_broken
    });
    three.restart(3).await;
    let last = VALUES - 1;
    three.until(3, last, &noise(last, VALUE)).await;
    check(&three);
    let (chunks, offers) = *seen.lock();
    eprintln!("{chunks} chunks in {offers} transfers");
    assert!(offers >= 2, "it broke");
    assert!(chunks < VALUES + VALUES / 2 + 10, "{chunks} chunks for {VALUES} MiB");
    no_leftovers(&three).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_snapshot_chunk_is_sent_again() {
    let mut three = one_lagging().await;
    let damaged = Arc::new(Mutex::new(0));
    let count = damaged.clone();
    three.network.filter_messages(move |message| {
        let mut count = count.lock();
        if message.kind == MessageKind::SnapshotChunk && message.body.len() > 1000 && *count < 3 {
            let mut body = message.body.to_vec();
            body[500 + *count * 100] ^= 0x40;
            message.body = body.into();
            *count += 1;
        }
        true
    });
    three.restart(3).await;
    let last = VALUES - 1;
    three.until(3, last, &noise(last, VALUE)).await;
    check(&three);
    assert_eq!(*damaged.lock(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_do_not_restart_a_slow_snapshot_transfer() {
    let mut three = one_lagging().await;
    for server in three.servers.values() {
        server.ticker.set_snapshot_rate(8 << 20);
    }
    let offers = delivered_messages(&three.network, MessageKind::SnapshotOffer);
    let leader = three.leader().await;
    let group = three.group(leader);
    three.restart(3).await;
    let mut latest = Duration::ZERO;
    let mut written = 0;
    for key in 5000.. {
        let started = std::time::Instant::now();
        put(&group, key, b"meanwhile").await.unwrap();
        latest = latest.max(started.elapsed());
        written += 1;
        if three.get(3, VALUES - 1).is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let last = 5000 + written - 1;
    three.until(3, last, b"meanwhile").await;
    check(&three);
    let offers = delivered_messages(&three.network, MessageKind::SnapshotOffer) - offers;
    eprintln!("{written} writes meanwhile, the slowest in {latest:?}; {offers} transfers");
    assert_eq!(offers, 1, "the log that follows the state was held");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_misaddressed_messages_are_refused() {
    let three = Three::start().await;
    three.leader().await;
    three.put(1, b"v").await;
    // Arbitrary bytes, of any kind, to a running replica.
    let group = three.group(2);
    let mut refused = BTreeMap::new();
    for seed in 0..400u64 {
        let bytes = noise(seed, (seed % 90) as usize);
        let kinds = [
            MessageKind::Append,
            MessageKind::Vote,
            MessageKind::PreVote,
            MessageKind::TransferLeader,
            MessageKind::SnapshotOffer,
            MessageKind::SnapshotChunk,
            MessageKind::SnapshotInstall,
        ];
        let kind = kinds[(seed % 7) as usize];
        let mut body = bytes;
        if let Some(first) = body.first_mut() {
            *first = 1;
        }
        let message = engine::raft::RaftMessage {
            group: raft_kit::GROUP,
            from: 1,
            target: raft_kit::raft_id(2),
            kind,
            body: body.into(),
            timeout: Duration::from_secs(1),
        };
        let wrong = engine::raft::RaftMessage { target: 9, ..message.clone() };
        assert!(group.receive(wrong).await.is_err(), "it is for another replica");
        if tokio::time::timeout(Duration::from_secs(5), group.receive(message))
            .await
            .unwrap()
            .is_err()
        {
            *refused.entry(kind as u8).or_insert(0) += 1;
        }
    }
    eprintln!("refused: {refused:?}");
    assert!(group.running().is_ok());
}

/// The process of a rebuild ended while the new store took the place of the damaged one.
#[tokio::test(flavor = "multi_thread")]
async fn next_process_finishes_an_interrupted_rebuild() {
    let mut three = one_lagging().await;
    let leader = three.leader().await;
    let dir = three.path(3).join(format!("store-{GROUP}"));
    let beside = |what: &str| PathBuf::from(format!("{}.{what}", dir.display()));
    three.replicas[&leader].store.checkpoint(&beside("received")).unwrap();
    std::fs::create_dir(beside("ready")).unwrap();
    Store::make(&beside("received"), &beside("ready")).unwrap();
    std::fs::rename(&dir, beside("damaged")).unwrap();
    let server = Server::start(3, &three.path(3), &three.network);
    let log = server.log.group_log(GROUP);
    let vote = log.clone().read_vote().await.unwrap();
    finish_rebuild(&dir, &log, &server.shared).await.unwrap();
    assert!(!beside("ready").exists() && beside("damaged").exists());
    assert!(log.range().is_empty(), "what is before the state is of no use");
    assert_eq!(log.clone().read_vote().await.unwrap(), vote);
    let replica = server.replica(GROUP, Some(&SERVERS)).await;
    assert_eq!(
        raft_kit::get(&replica.store, VALUES - 1).unwrap(),
        noise(VALUES - 1, VALUE),
        "it has it before anything is sent"
    );
    three.servers.insert(3, server);
    three.replicas.insert(3, replica);
    three.put(1001, b"after").await;
    three.until(3, 1001, b"after").await;
    check(&three);
}
