//! A node that was down for longer than the log's retention gets snapshots of its
//! partitions, even if sender and receiver are killed meanwhile.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration::cluster::Cluster;
use integration::workload::Rng;
use integration::{Client, Value, files, within};

/// Partitions with more writes than the retention, which is 1 MiB each.
const HEAVY: usize = 2;
const VALUES: u64 = 192;
const VALUE_BYTES: usize = 64 << 10;
/// The node that is down and catches up.
const AWAY: usize = 2;

/// Incompressible values.
fn noise(key: u64) -> Vec<u8> {
    let mut rng = Rng::new(key);
    (0..VALUE_BYTES).map(|_| rng.below(256) as u8).collect()
}

/// Bytes of partial snapshots of a process: files in directories of this name.
fn on_the_way(cluster: &Cluster, number: usize, directory: &str) -> u64 {
    let is_in = |path: &Path| path.iter().any(|part| part.to_string_lossy().starts_with(directory));
    files(&cluster.data(number))
        .iter()
        .filter(|file| is_in(file))
        .map(|file| file.metadata().map_or(0, |file| file.len()))
        .sum()
}

/// The sender of a snapshot, once this much of it has arrived.
fn sender(cluster: &Cluster, arrived: u64) -> usize {
    let mut found = None;
    within(20, "a state arrives", || {
        if on_the_way(cluster, AWAY, "recv") >= arrived {
            found = (0..AWAY).find(|number| on_the_way(cluster, *number, "send-") > 0);
        }
        found.is_some()
    });
    found.expect("just found")
}

/// Writes to partitions that need no snapshot, until stopped; returns the number of
/// writes and the longest one.
fn light_work(proxies: &[SocketAddr], stop: &AtomicBool) -> (u32, Duration) {
    let (mut writes, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let key = format!("light:{}", writes % 16);
        // One of the processes is down at times.
        let is_done = |address: &SocketAddr| {
            let output = Client::reach(*address, Duration::from_secs(5))
                .and_then(|mut client| client.call(&["INCR", &key]));
            matches!(output, Ok(Value::Int(_)))
        };
        while !proxies.iter().any(is_done) {
            std::thread::sleep(Duration::from_millis(10));
        }
        longest = longest.max(began.elapsed());
        writes += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    (writes, longest)
}

/// Number of entries of the heavy table in a process's log.
fn log_entries(cluster: &Cluster, number: usize) -> u64 {
    let page = ureq::get(format!("{}/metrics", cluster.url(number)))
        .call()
        .expect("the HTTP port answers");
    let page = page.into_body().read_to_string().expect("a page of text");
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix("bridle_raft_log_entries{table=\"heavy\"} "));
    line.expect("the table's log is measured").parse().expect("a number")
}

fn is_current(cluster: &Cluster, table: &str) -> bool {
    let partitions =
        cluster.ask("GET", &format!("/v1/tables/{table}/partitions"), None).unwrap_or_default();
    let members: Vec<_> = partitions
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|partition| partition["members"].as_array())
        .flatten()
        .collect();
    !members.is_empty()
        && members.iter().all(|member| member["state"] == "running" && member["lag"] == 0)
}

/// A node that was down for longer than the log's retention gets snapshots, while sender
/// and receiver are killed.
#[test]
fn a_lagging_node_catches_up_by_snapshot_despite_kills() {
    let cluster = Cluster::builder()
        .partitions(4)
        .durability("os")
        .set("raft_log.retention_size=1MiB")
        .set("storage.memtables=1MiB");
    let mut cluster = cluster.set("cluster.snapshot_rate=2MiB").start();
    cluster.admin(0, &["create", "heavy", "--partitions", &HEAVY.to_string()]);
    let mut client = cluster.client(0).expect("it serves");
    assert_eq!(
        (client.run("SELECT heavy"), client.run("SET before it")),
        (Value::ok(), Value::ok())
    );
    within(20, "all replicas are there", || is_current(&cluster, "heavy"));
    cluster.kill(AWAY);
    for key in 0..VALUES {
        let output = client
            .call(&[&b"SET"[..], format!("key:{key}").as_bytes(), &noise(key)])
            .expect("a reply");
        assert_eq!(output, Value::ok());
    }
    // More than one of the two partitions could have in its log, if it were kept.
    within(20, "the log is let go of", || {
        (0..AWAY).all(|number| log_entries(&cluster, number) < VALUES / HEAVY as u64 * 3 / 4)
    });

    let (stop, proxies) = (Arc::new(AtomicBool::new(false)), cluster.all_proxies());
    let light = {
        let stop = stop.clone();
        std::thread::spawn(move || light_work(&proxies, &stop))
    };
    cluster.launch(AWAY);
    let first = sender(&cluster, 1 << 20);
    cluster.kill(AWAY);
    cluster.launch(AWAY);
    let second = sender(&cluster, 2 << 20);
    cluster.kill(second);
    std::thread::sleep(Duration::from_millis(500));
    cluster.launch(second);
    within(60, "no replica lags", || {
        ["heavy", "db0"].into_iter().all(|table| is_current(&cluster, table))
    });
    stop.store(true, Ordering::Relaxed);
    let (writes, longest) = light.join().expect("the client does not panic");
    println!(
        "{first} sent, {AWAY} was killed; {second} sent, and was killed; meanwhile {writes} \
         writes to others, the longest {longest:.2?}"
    );
    assert!(
        writes > 100 && longest < Duration::from_secs(5),
        "{writes} writes, one of which took {longest:?}"
    );

    let arrived = cluster.output(AWAY).matches("a snapshot was received and installed").count();
    let sent = (0..AWAY)
        .map(|number| cluster.output(number).matches("sending a snapshot").count())
        .sum::<usize>();
    println!("{sent} states were begun, {arrived} have arrived");
    assert!(arrived >= HEAVY && sent > arrived, "{sent} begun, {arrived} arrived");
    // Reads come from this node alone now.
    for partition in 0..HEAVY {
        within(20, "it leads", || {
            let leads =
                || cluster.leaders("heavy").is_ok_and(|leaders| leaders[partition] == Some(AWAY));
            leads() || cluster.transfer("heavy", partition, AWAY).is_ok() && leads()
        });
    }
    let mut client = cluster.client(AWAY).expect("it serves");
    assert_eq!(
        (client.run("SELECT heavy"), client.run("GET before")),
        (Value::ok(), Value::bulk("it"))
    );
    for key in 0..VALUES {
        assert_eq!(
            client.call(&["GET", &format!("key:{key}")]).expect("a reply"),
            Value::Bulk(noise(key)),
            "key:{key}"
        );
    }
    assert_eq!(client.run("DBSIZE"), Value::Int(VALUES as i64 + 1));
}
