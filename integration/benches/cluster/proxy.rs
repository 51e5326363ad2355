//! GET compared with redis-server's: through a proxy without data, and on the leader.

use integration::cluster::Cluster;

use crate::driver::{Ask, Figures, Load, Target, all_keys, drive, drive_by_all};
use crate::process::Redis;
use crate::table::Table;
use crate::{CLIENTS, Settings};

/// Keys of partitions that a process leads.
pub(crate) fn keys_led_by(cluster: &Cluster, process: usize) -> Target {
    let leaders = cluster.leaders("db0").expect("the admin API");
    let leads = |key: &&String| {
        leaders[usize::from(row::key::slot(key.as_bytes())) * leaders.len() / 16384]
            == Some(process)
    };
    Target {
        address: cluster.proxy(process),
        keys: all_keys().iter().filter(leads).cloned().collect(),
    }
}

pub(crate) fn report(settings: &Settings) {
    let redis = Redis::start(&["--appendonly", "no"]);
    let cluster = settings.cluster().proxies(1).start();
    let (theirs, ours) = ([redis.process.pid()], cluster.pids());
    let redis = [Target::new(redis.address)];
    let apart = [Target::new(cluster.proxy(3))];
    let together: Vec<Target> = (0..3)
        .map(|node| keys_led_by(&cluster, node))
        .max_by_key(|target| target.keys.len())
        .into_iter()
        .collect();
    let any = [Target::new(cluster.proxy(0))];
    // Writes the keys to get.
    let window = settings.window();
    for targets in [&redis, &apart] {
        drive(
            targets,
            Load {
                ask: Ask::Set,
                connections: CLIENTS,
                pipeline: 64,
                window: window.max(std::time::Duration::from_secs(5)),
            },
            &[],
        );
    }
    for pipeline in [1, 16] {
        let turn = |targets: &[Target], pids: &[u32]| {
            drive_by_all(targets, Ask::Get, pipeline, window, pids)
        };
        let rival = || {
            (
                "redis-server".to_owned(),
                Box::new(|| turn(&redis, &theirs)) as Box<dyn FnMut() -> Figures>,
            )
        };
        println!(
            "GET at pipeline {pipeline}: redis-server, and bridle's proxy in a process of its own \
             (three nodes lead)\n"
        );
        Table::of(
            settings.rounds,
            1,
            vec![
                rival(),
                ("bridle proxy, leaders elsewhere".to_owned(), Box::new(|| turn(&apart, &ours))),
                ("bridle node, a third led here".to_owned(), Box::new(|| turn(&any, &ours))),
            ],
        )
        .print(0.5);
        println!(
            "GET at pipeline {pipeline}: redis-server, and a bridle node that leads what it is \
             asked for\n"
        );
        let contenders = vec![
            rival(),
            ("bridle node, all led here".to_owned(), Box::new(|| turn(&together, &ours)) as Box<_>),
        ];
        Table::of(settings.rounds, 1, contenders).print(0.75);
    }
}
