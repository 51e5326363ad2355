//! A process without replicas reports the durability of the storage servers, and WAITAOF
//! makes them fsync.

use std::time::{Duration, Instant};

use integration::cluster::Cluster;
use integration::{Client, Value};

/// Number of fsyncs of a process's log.
fn fsyncs(cluster: &Cluster, number: usize) -> u64 {
    let page = cluster.page(number, "/metrics").1;
    let count = page.lines().find_map(|line| line.strip_prefix("bridle_log_fsyncs_total "));
    count.expect("it is exported").parse().expect("a number")
}

fn disks(client: &mut Client, words: &str) -> (i64, i64) {
    match client.run(words) {
        Value::Array(numbers) => match numbers[..] {
            [Value::Int(local), Value::Int(others)] => (local, others),
            _ => panic!("{words}: {numbers:?}"),
        },
        other => panic!("{words}: {other:?}"),
    }
}

/// Two nodes have durability "os", one "interval", and the proxy "always".
#[test]
fn a_proxy_reports_durability_and_waitaof_syncs_the_storage() {
    let builder = Cluster::builder().partitions(1).durability("os").proxies(1);
    let cluster = builder
        .set_for(2, "storage.durability=interval")
        .set_for(3, "storage.durability=always")
        .start();
    let mut client = cluster.client(3).expect("a connection");
    let info = client.run("INFO durability").text();
    assert!(info.contains("\r\ndurability:os\r\n") && !info.contains("fsynced before"), "{info}");
    assert_eq!(client.setting("appendfsync"), "no");
    assert_eq!(cluster.admin(3, &["status"])["durability"], "os");
    let nodes = cluster.admin(3, &["nodes"]);
    let output = |number: usize| {
        nodes
            .as_array()
            .expect("a list")
            .iter()
            .find(|node| node["address"] == cluster.address(number).as_str())
    };
    let words: Vec<_> = (0..4)
        .map(|number| output(number).expect("it is there")["durability"].to_string())
        .collect();
    assert_eq!(words, ["\"os\"", "\"os\"", "\"interval\"", "null"]);
    assert!(
        cluster.output(3).contains("storage servers differ in durability"),
        "{}",
        cluster.output(3)
    );

    assert_eq!(client.run("SET a 1"), Value::ok());
    let before = [0, 1].map(|number| fsyncs(&cluster, number));
    assert_eq!(client.run("SET a 2"), Value::ok());
    assert_eq!(disks(&mut client, "WAITAOF 0 0 0"), (0, 0));
    assert_eq!([0, 1].map(|number| fsyncs(&cluster, number)), before, "no fsync was requested");
    assert_eq!(disks(&mut client, "WAITAOF 1 0 0"), (1, 0));
    assert_eq!(client.run("SET a 3"), Value::ok());
    assert_eq!(disks(&mut client, "WAITAOF 1 2 10000"), (1, 2));
    let after = [0, 1].map(|number| fsyncs(&cluster, number));
    assert!(after[0] > before[0] && after[1] > before[1], "{before:?} {after:?}");
    // Through a node, wherever the leader is.
    let mut near = cluster.client(0).expect("a connection");
    assert_eq!(near.run("SET b 1"), Value::ok());
    assert_eq!(disks(&mut near, "WAITAOF 1 1 10000"), (1, 1));

    // No server can sync: none is counted, and the wait ends at its timeout.
    assert_eq!(client.run("SET a 4"), Value::ok());
    (0..3).for_each(|number| cluster.freeze(number));
    let began = Instant::now();
    assert_eq!(disks(&mut client, "WAITAOF 1 0 300"), (0, 0));
    assert!(
        (Duration::from_millis(300)..Duration::from_secs(3)).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
    (0..3).for_each(|number| cluster.thaw(number));
}
