//! A confirmed leader sees all acknowledged writes, whatever the network does and
//! whichever server restarts.
#![allow(clippy::unwrap_used)]

mod raft_kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::log::Durability;
use engine::raft::{Group, GroupError, LEADER_LEASE, QUORUM_ACK_AGE_MAX};
use raft_kit::{SERVERS, Three, acquire_leadership, batch, get, put};

async fn confirms(group: &Group) -> bool {
    matches!(
        tokio::time::timeout(Duration::from_millis(300), group.confirm_leadership()).await,
        Ok(Ok(_))
    )
}

/// openraft forgets at a restart what it promised its leader; a voter that restarts
/// during a lease must not elect another leader within it.
#[tokio::test(flavor = "multi_thread")]
async fn restarted_voter_keeps_its_promise() {
    let mut three = Three::start().await;
    for round in 0..3 {
        let old = three.leader().await;
        let [lonely, restarting] =
            SERVERS.into_iter().filter(|id| *id != old).collect::<Vec<_>>()[..]
        else {
            unreachable!()
        };
        three.put(round, b"old").await;
        three.until(lonely, round, b"old").await;
        // The isolated member receives nothing any more, and campaigns as soon as it may.
        // The leader goes on with the other.
        three.network.cut(old, lonely);
        tokio::time::sleep(LEADER_LEASE + Duration::from_millis(300)).await;
        let leader = three.group(old);
        assert!(confirms(&leader).await, "two of three are enough");
        // The lease was renewed a moment ago, by the member that now forgets.
        three.stop(restarting).await;
        three.network.cut(old, restarting);
        let cut = Instant::now();
        three.restart(restarting).await;
        let watched = leader.clone();
        let confirmed = tokio::spawn(async move {
            let mut last = None;
            while cut.elapsed() < Duration::from_secs(4) {
                if confirms(&watched).await {
                    last = Some(cut.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            last
        });
        let new = three.leader_among(&[lonely, restarting]).await;
        put(&three.group(new), round, b"new").await.unwrap();
        let committed = cut.elapsed();
        let confirmed = confirmed.await.unwrap();
        eprintln!(
            "the old leader was confirmed until {confirmed:?}, the new one committed at \
             {committed:?}"
        );
        // A confirmation is valid for that time.
        let relied_on = confirmed.unwrap_or_default() + QUORUM_ACK_AGE_MAX;
        assert!(relied_on < committed, "stale reads between {committed:?} and {relied_on:?}");
        three.network.heal();
        three.until(old, round, b"new").await;
    }
}

/// Readers on all servers ask for confirmation and then read; a writer counts up; the
/// network is cut and healed and servers restart at random.
#[tokio::test(flavor = "multi_thread")]
async fn confirmed_leader_has_all_acknowledged_writes() {
    let seed: u64 =
        std::env::var("BRIDLE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    eprintln!("seed {seed}; replay with BRIDLE_TEST_SEED={seed}");
    let mut three = Three::start().await;
    three.leader().await;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let groups = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let share = |three: &Three| {
        three
            .replicas
            .values()
            .map(|replica| (replica.group.clone(), replica.store.clone()))
            .collect::<Vec<_>>()
    };
    *groups.lock() = share(&three);
    let reads = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let (groups, acknowledged, stop, reads) =
            (groups.clone(), acknowledged.clone(), stop.clone(), reads.clone());
        tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let all = groups.lock().clone();
                for (group, store) in all {
                    let floor = acknowledged.load(Ordering::SeqCst);
                    if confirms(&group).await {
                        let Ok(found) = store.get(engine::batch::Family::Head, &0u64.to_be_bytes())
                        else {
                            continue;
                        };
                        let found = found
                            .map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()));
                        assert!(
                            found >= floor,
                            "a stale read: {found}, and {floor} was acknowledged"
                        );
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }));
    }
    let writer = {
        let (groups, acknowledged, stop) = (groups.clone(), acknowledged.clone(), stop.clone());
        tokio::spawn(async move {
            let mut next = 1u64;
            while !stop.load(Ordering::Relaxed) {
                let all = groups.lock().clone();
                for (group, _) in all.into_iter().filter(|(group, _)| group.stats().is_leader) {
                    let Ok(leadership) = acquire_leadership(&group).await else { continue };
                    let proposed = tokio::time::timeout(
                        Duration::from_secs(1),
                        group.propose(&leadership, batch(0, &next.to_be_bytes())),
                    );
                    if matches!(proposed.await, Ok(Ok(()))) {
                        acknowledged.store(next, Ordering::SeqCst);
                    }
                    next += 1;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    let noise = raft_kit::noise(seed, 64);
    for dice in noise.chunks(3).take(14) {
        let server = SERVERS[usize::from(dice[0]) % 3];
        match dice[1] % 5 {
            0 => three.network.isolate(server, &SERVERS),
            1 => three.network.cut_one_way(server, SERVERS[usize::from(dice[2]) % 3]),
            2 => {
                three.stop(server).await;
                three.restart(server).await;
                *groups.lock() = share(&three);
            }
            3 => three.network.slow(Duration::from_millis(u64::from(dice[2] % 40)), 1),
            _ => three.network.heal(),
        }
        tokio::time::sleep(Duration::from_millis(200 + u64::from(dice[2]) * 4)).await;
        if dice[2] % 2 == 0 {
            three.network.heal();
        }
    }
    three.network.heal();
    let before = acknowledged.load(Ordering::SeqCst);
    raft_kit::wait_for("writes go on", || acknowledged.load(Ordering::SeqCst) > before).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    writer.await.unwrap();
    eprintln!(
        "{} confirmed reads, {} writes",
        reads.load(Ordering::Relaxed),
        acknowledged.load(Ordering::SeqCst)
    );
    assert!(reads.load(Ordering::Relaxed) > 100);
}

/// Raft's clock stands still while a machine is suspended: an acknowledgement from before
/// looks fresh afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn acks_from_before_a_suspend_confirm_no_leader() {
    let three = Three::start().await;
    for (round, is_suspended) in [(1, true), (2, false)] {
        let leader = three.leader().await;
        let group = three.group(leader);
        let clocks = &three.servers[&leader].clocks;
        three.put(round, b"x").await;
        let mut clock_jumps = three.servers[&leader].ticker.clock_jumps();
        // The jump of the round before is over.
        let is_over = || clock_jumps.borrow().is_none_or(|until| Instant::now() >= until);
        raft_kit::wait_for("acknowledgements count again", is_over).await;
        clock_jumps.mark_unchanged();
        assert!(confirms(&group).await);
        three.network.isolate(leader, &SERVERS);
        assert!(confirms(&group).await, "by what was acknowledged just now");
        let stood_still = if is_suspended { &clocks.boot_ms } else { &clocks.wall_ms };
        stood_still.fetch_add(5_000, Ordering::SeqCst);
        assert!(!confirms(&group).await, "others may lead by now");
        assert!(clock_jumps.has_changed().unwrap(), "leases are revoked");
        three.network.heal();
        three.leader().await;
    }
}

/// Entries that only the old leader has were never acknowledged, and are dropped.
#[tokio::test(flavor = "multi_thread")]
async fn log_tail_of_an_old_leader_is_replaced() {
    let mut three = Three::start_with(Durability::Always).await;
    let old = three.leader().await;
    three.put(1, b"kept").await;
    let group = three.group(old);
    let leadership = acquire_leadership(&group).await.unwrap();
    three.network.isolate(old, &SERVERS);
    let proposing = {
        let group = group.clone();
        tokio::spawn(async move { group.propose(&leadership, batch(2, b"tail")).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(group.stats().last_log > group.stats().committed, "it is in the log");
    three.stop(old).await;
    let answered = proposing.await.unwrap();
    assert!(matches!(answered, Err(GroupError::Unknown(_) | GroupError::Fatal(_))), "{answered:?}");
    three.network.heal();
    let new = three.leader().await;
    put(&three.group(new), 3, b"after").await.unwrap();
    three.restart(old).await;
    three.until(old, 3, b"after").await;
    assert_eq!(get(&three.replicas[&old].store, 1).unwrap(), "kept");
    assert_eq!(get(&three.replicas[&old].store, 2), None);
}
