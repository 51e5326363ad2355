//! Waiting times of clients when a leader is killed, stopped, transferred or frozen.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration::cluster::Cluster;
use integration::workload::{Rng, seed};
use integration::{Client, Value, within};

/// Default number of leader kills; `BRIDLE_KILLS` sets another.
fn kills() -> usize {
    std::env::var("BRIDLE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(25)
}

/// Three nodes, one partition.
fn cluster() -> Cluster {
    Cluster::builder().partitions(1).start()
}

/// The leader of the partition, once all processes agree on one.
fn leader(cluster: &Cluster) -> usize {
    let mut found = None;
    within(30, "there is a leader", || {
        found = cluster
            .leaders("db0")
            .ok()
            .and_then(|leaders| leaders[0])
            .filter(|leader| cluster.runs(*leader));
        found.is_some()
    });
    found.expect("just found")
}

/// Writes until a write is acknowledged. Every command gets a reply, or the connection
/// ends.
fn write_until_acknowledged(
    cluster: &Cluster,
    through: usize,
    key: &str,
    value: &str,
) -> (Duration, Vec<String>) {
    let began = Instant::now();
    let mut errors = Vec::new();
    loop {
        let output =
            cluster.client(through).and_then(|mut client| client.call(&["SET", key, value]));
        match output {
            Ok(Value::Status(_)) => return (began.elapsed(), errors),
            Ok(other) => errors.push(other.text()),
            Err(error) => errors.push(error.to_string()),
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no write in a minute: {errors:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

#[test]
fn clients_write_within_three_seconds_of_a_leader_kill() {
    let mut rng = Rng::new(seed());
    let mut cluster = cluster();
    let (mut waits, mut with_errors) = (Vec::new(), 0);
    for kill in 0..kills() {
        let victim = leader(&cluster);
        let through = (victim + 1 + rng.below(2) as usize) % 3;
        // Kills happen at any time between two heartbeats.
        std::thread::sleep(Duration::from_millis(rng.below(400)));
        cluster.kill(victim);
        let (wait, errors) =
            write_until_acknowledged(&cluster, through, "failover", &kill.to_string());
        with_errors += usize::from(!errors.is_empty());
        waits.push(wait);
        // The cluster must be complete before the next kill.
        cluster.launch(victim);
        cluster.wait_until_serving();
        let read = cluster.client(victim).expect("it serves").run("GET failover");
        assert_eq!(
            read,
            Value::bulk(&kill.to_string()),
            "acknowledged, and not read through the node that was away"
        );
    }
    waits.sort();
    let (p50, p90, p99, most) = (
        percentile(&waits, 50),
        percentile(&waits, 90),
        percentile(&waits, 99),
        waits[waits.len() - 1],
    );
    println!(
        "{} kills of the leader, until a client of another proxy writes: p50 {p50:.2?}, p90 \
         {p90:.2?}, p99 {p99:.2?}, max {most:.2?}",
        waits.len()
    );
    println!("all: {waits:.2?}; {with_errors} of them saw an error");
    assert!(p99 < Duration::from_secs(3), "p99 is {p99:?}");
}

/// A quiescent group sends fewer heartbeats, so its failover takes up to a second longer.
#[test]
fn a_quiescent_group_fails_over_within_three_seconds() {
    let mut cluster = cluster();
    let victim = leader(&cluster);
    assert!(write_until_acknowledged(&cluster, victim, "rest", "before").1.is_empty());
    // After five seconds without a request the group is quiescent.
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(leader(&cluster), victim, "no other node had a reason to campaign");
    cluster.kill(victim);
    let (wait, _) = write_until_acknowledged(&cluster, (victim + 1) % 3, "rest", "after");
    println!("a group at rest is written to {wait:.2?} after its leader was killed");
    assert!(wait < Duration::from_secs(3), "{wait:?}");
}

/// Writes through one proxy from before an event until after it; returns the longest wait
/// and all errors.
fn hammer(address: SocketAddr, meanwhile: impl FnOnce()) -> (Duration, u64, Vec<String>) {
    let stop = AtomicBool::new(false);
    let work = || {
        let mut client = Client::reach(address, Duration::from_secs(20)).expect("it serves");
        let (mut longest, mut calls, mut errors) = (Duration::ZERO, 0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            calls += 1;
            match client.call(&["INCR", "hammered"]) {
                Ok(Value::Int(_)) => {}
                other => errors.push(format!("{other:?}")),
            }
            longest = longest.max(began.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        (longest, calls, errors)
    };
    std::thread::scope(|scope| {
        let worker = scope.spawn(work);
        std::thread::sleep(Duration::from_millis(300));
        meanwhile();
        std::thread::sleep(Duration::from_millis(700));
        stop.store(true, Ordering::Relaxed);
        worker.join().expect("the client does not panic")
    })
}

#[test]
fn a_leader_transfer_is_barely_noticed() {
    let cluster = cluster();
    let (mut waits, mut total) = (Vec::new(), 0);
    for round in 0..20 {
        let from = leader(&cluster);
        let (to, through) = ((from + 1 + round % 2) % 3, (from + round) % 3);
        let (longest, calls, errors) = hammer(cluster.proxy(through), || {
            cluster.transfer("db0", 0, to).expect("a healthy follower takes over");
        });
        assert!(errors.is_empty(), "clients saw {errors:?}");
        within(10, "the wanted one leads", || {
            cluster.leaders("db0").is_ok_and(|leaders| leaders[0] == Some(to))
        });
        waits.push(longest);
        total += calls;
    }
    waits.sort();
    println!("20 hand-overs, the longest a client waited: {waits:.1?}");
    assert!(waits[waits.len() - 1] <= Duration::from_millis(200), "{waits:?}");
    let counted = cluster.client(0).expect("it serves").run("GET hammered").text();
    assert_eq!(counted, total.to_string(), "each INCR was acknowledged once, and counted once");
    // Each transfer is logged on both sides, with its reason.
    let logs: String = (0..3).map(|number| cluster.output(number)).collect();
    let lines = |what: &str, why: &str| {
        logs.lines().filter(|line| line.contains(what) && line.contains(why)).count()
    };
    assert_eq!(
        lines(
            "this server does not lead the partition any more",
            "leadership is transferred to member"
        ),
        20
    );
    assert_eq!(
        lines("this server leads the partition", "transferred leadership to this replica"),
        20
    );
}

#[test]
fn a_stopping_leader_transfers_leadership_first() {
    let mut cluster = cluster();
    let mut waits = Vec::new();
    for round in 0..9 {
        let victim = leader(&cluster);
        let through = (victim + 1 + round % 2) % 3;
        let (longest, _, errors) = hammer(cluster.proxy(through), || _ = cluster.stop(victim));
        assert!(errors.is_empty(), "clients of another node saw {errors:?}");
        waits.push(longest);
        cluster.launch(victim);
        cluster.wait_until_serving();
    }
    waits.sort();
    println!("9 leaders were asked to stop, the longest a client waited: {waits:.1?}");
    assert!(waits[waits.len() - 1] <= Duration::from_millis(200), "{waits:?}");
}

#[test]
fn a_frozen_leader_answers_no_stale_read_after_resuming() {
    let mut rng = Rng::new(seed());
    let cluster = cluster();
    for round in 0..4 {
        let frozen = leader(&cluster);
        let through = (frozen + 1) % 3;
        cluster.client(frozen).expect("it serves").run(&format!("SET frozen {round}:old"));
        // Reads that wait in the socket are answered when it resumes: the most dangerous
        // ones.
        let mut readers: Vec<Client> =
            (0..20).map(|_| cluster.client(frozen).expect("it serves")).collect();
        cluster.freeze(frozen);
        let (wait, _) =
            write_until_acknowledged(&cluster, through, "frozen", &format!("{round}:new"));
        // Sent after the acknowledgement of the write: every answer must be the new
        // value.
        readers.iter_mut().for_each(|reader| {
            reader.send(&["GET", "frozen"]).expect("a socket takes a few bytes")
        });
        std::thread::sleep(Duration::from_millis(rng.below(500)));
        cluster.thaw(frozen);
        let mut answered_reads = 0;
        for reader in &mut readers {
            match reader.reply() {
                Ok(Value::Bulk(bytes)) => {
                    assert_eq!(
                        String::from_utf8_lossy(&bytes),
                        format!("{round}:new"),
                        "a stale read"
                    );
                    answered_reads += 1;
                }
                Ok(Value::Error(_)) | Err(_) => {}
                other => panic!("{other:?}"),
            }
        }
        println!(
            "round {round}: others wrote after {wait:.2?}; {answered_reads} of 20 reads \
             answered, none stale"
        );
        within(20, "the frozen one serves again", || {
            cluster
                .client(frozen)
                .and_then(|mut client| client.call(&["GET", "frozen"]))
                .is_ok_and(|output| output == Value::bulk(&format!("{round}:new")))
        });
    }
}

/// Readiness as reported to load balancers and orchestrators, by page, metric and INFO.
#[test]
fn a_node_without_a_quorum_is_not_ready() {
    let mut cluster = cluster();
    cluster.admin(0, &["create", "thin", "--partitions", "3", "--replicas", "1"]);
    let says = |cluster: &Cluster, status: u16, line: &str, ready: &str| {
        let (got, body) = cluster.page(0, "/health/ready");
        let info = cluster
            .client(0)
            .map(|mut client| client.run("INFO cluster").text())
            .unwrap_or_default();
        let metrics = cluster.page(0, "/metrics").1;
        let words = [format!("\nbridle_ready {ready}\n"), format!("\r\nbridle_ready:{ready}\r\n")];
        got == status
            && body.contains(line)
            && metrics.contains(&words[0])
            && info.contains(&words[1])
    };
    within(10, "all is well", || cluster.page(0, "/health/ready") == (200, "ok\n".to_owned()));
    cluster.kill(2);
    // Partitions that are only on this node are missing, the others serve.
    within(20, "the lost partition is named", || says(&cluster, 200, ": no leader reached\n", "1"));
    let (_, body) = cluster.page(0, "/health/ready");
    assert!(body.starts_with("ok\nthin partition ") && body.lines().count() == 2, "{body}");
    assert!(
        cluster
            .page(0, "/metrics")
            .1
            .contains("\nbridle_partitions_without_leader{table=\"thin\"} 1\n")
    );
    cluster.admin(0, &["drop", "thin"]);
    cluster.kill(1);
    within(20, "it is not ready", || {
        says(&cluster, 503, "no leader of any of the 1 partitions has been reached for ", "0")
    });
    assert_eq!(
        cluster.ask("GET", "/v1/status", None).expect("it answers for itself")["ready"],
        false
    );
    cluster.launch(1);
    within(20, "it is ready again", || says(&cluster, 200, "ok\n", "1"));
}
