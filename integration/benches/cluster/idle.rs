//! The cost of 256 idle groups of three replicas.

use std::time::Duration;

use crate::Settings;
use crate::process::cpu_seconds;

const GROUPS: u32 = 256;
const WINDOW: Duration = Duration::from_secs(20);

pub(crate) fn report(settings: &Settings) {
    let cluster = settings.cluster().partitions(GROUPS).start();
    // The start's background work is done by then.
    std::thread::sleep(Duration::from_secs(10));
    let pids = cluster.pids();
    let before: Vec<f64> = pids.iter().map(|pid| cpu_seconds(&[*pid])).collect();
    std::thread::sleep(WINDOW);
    let percent = |(pid, before): (&u32, &f64)| {
        (cpu_seconds(&[*pid]) - before) / WINDOW.as_secs_f64() * 100.0
    };
    let each: Vec<f64> = pids.iter().zip(&before).map(percent).collect();
    let all: f64 = each.iter().sum();
    println!(
        "Idle: {GROUPS} groups of three replicas on three nodes, durability always, over \
         {WINDOW:?}\n"
    );
    let verdict = if all < 10.0 { "yes" } else { "NO" };
    println!(
        "- CPU of all three: {all:.2} % of a core (goal: under 10; met: {verdict}; stretch: 3); \
         of each: {each:.2?}\n"
    );
}
