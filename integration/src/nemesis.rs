//! Injects faults into a cluster while clients use it: one at a time, at random moments.
//!
//! Each fault lasts a few seconds and is then undone; it is printed with its time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::netns::{Link, Network};
use crate::workload::Rng;

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of the leader of a partition, which is restarted later.
    KillLeader,
    /// `kill -9` of the leader of the metas.
    KillMeta,
    /// `kill -9` of any process.
    KillAny,
    /// `kill -9` of all processes.
    KillAll,
    /// SIGTERM and a restart.
    Restart,
    /// SIGSTOP of a leader, for longer than any lease.
    Freeze,
    /// A leader is cut off from all but its clients.
    IsolateLeader,
    /// The cluster is split into two halves.
    Split,
    /// All reach only the one in the middle, which reaches all.
    Bridge,
    /// Packets from a leader are lost, packets to it arrive.
    Mute,
    /// Packets to a leader are lost, packets from it arrive.
    Deaf,
    /// All links are slow, by up to 100 ms.
    Slow,
    /// All links lose packets, up to one in five.
    Lossy,
    /// A leadership is transferred.
    Transfer,
    /// A leadership is transferred, and back soon after.
    ThereAndBack,
    /// A wall clock jumps by up to an hour in either direction.
    Clock,
}

/// Faults of processes, which need no test network and no clocks.
pub const PROCESSES: [Fault; 8] = [
    Fault::KillLeader,
    Fault::KillMeta,
    Fault::KillAny,
    Fault::KillAll,
    Fault::Restart,
    Fault::Freeze,
    Fault::Transfer,
    Fault::ThereAndBack,
];

/// Faults of a test network.
pub const NETWORK: [Fault; 7] = [
    Fault::IsolateLeader,
    Fault::Split,
    Fault::Bridge,
    Fault::Mute,
    Fault::Deaf,
    Fault::Slow,
    Fault::Lossy,
];

/// A source of faults.
#[derive(Debug)]
pub struct Nemesis {
    faults: Vec<Fault>,
    rng: Rng,
    network: Option<Arc<Network>>,
    table: String,
    began: Instant,
    /// Number of times that each fault was injected.
    pub done: BTreeMap<Fault, u32>,
}

impl Nemesis {
    /// A nemesis with these faults.
    ///
    /// # Panics
    /// When there are none.
    pub fn new(faults: &[Fault], seed: u64, network: Option<Arc<Network>>) -> Nemesis {
        assert!(!faults.is_empty(), "a nemesis does something");
        let rng = Rng::new(seed);
        Nemesis {
            faults: faults.to_vec(),
            rng,
            network,
            table: "db0".to_owned(),
            began: Instant::now(),
            done: BTreeMap::new(),
        }
    }

    /// Injects faults for this time; all are undone at the end.
    ///
    /// # Panics
    /// When the cluster does not recover.
    pub fn run(&mut self, cluster: &mut Cluster, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.rest(500, 2_500);
            let fault = *self.rng.one_of(&self.faults);
            self.strike(cluster, fault);
            *self.done.entry(fault).or_default() += 1;
        }
        self.say(format_args!("done: {:?}", self.done));
        cluster.wait_until_serving();
    }

    fn rest(&mut self, least_ms: u64, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(least_ms + self.rng.below(most_ms - least_ms)));
    }

    fn say(&self, what: fmt::Arguments<'_>) {
        eprintln!("{:8.3} nemesis: {what}", self.began.elapsed().as_secs_f64());
    }

    /// The leader of a random partition, or a random node when no leader is known.
    fn leader(&mut self, cluster: &Cluster) -> usize {
        let leaders: Vec<usize> =
            cluster.leaders(&self.table).unwrap_or_default().into_iter().flatten().collect();
        match leaders.is_empty() {
            true => self.rng.below(cluster.nodes() as u64) as usize,
            false => *self.rng.one_of(&leaders),
        }
    }

    fn strike(&mut self, cluster: &mut Cluster, fault: Fault) {
        match fault {
            Fault::KillLeader | Fault::KillMeta | Fault::KillAny => {
                let victim = match fault {
                    Fault::KillLeader => self.leader(cluster),
                    Fault::KillMeta => cluster.meta_leader().ok().flatten().unwrap_or(0),
                    _ => self.rng.below(cluster.len() as u64) as usize,
                };
                self.say(format_args!("{fault:?} {victim}"));
                cluster.kill(victim);
                self.rest(100, 4_000);
                cluster.launch(victim);
                self.say(format_args!("{victim} is restarted"));
                self.rest(500, 3_000);
            }
            Fault::KillAll => {
                self.say(format_args!("{fault:?}"));
                cluster.kill_all();
                self.rest(0, 500);
                (0..cluster.len()).for_each(|number| cluster.launch(number));
                self.rest(2_000, 4_000);
            }
            Fault::Restart => {
                let victim = self.rng.below(cluster.len() as u64) as usize;
                let took = cluster.stop(victim);
                self.say(format_args!("{fault:?} {victim}: stopped in {took:.1?}"));
                cluster.launch(victim);
                self.rest(500, 3_000);
            }
            Fault::Freeze => {
                let victim = self.leader(cluster);
                self.say(format_args!("{fault:?} {victim}"));
                cluster.freeze(victim);
                self.rest(200, 6_000);
                cluster.thaw(victim);
                self.say(format_args!("{victim} resumes"));
            }
            Fault::Transfer => {
                let partitions = cluster.leaders(&self.table).map_or(0, |leaders| leaders.len());
                if partitions > 0 {
                    let partition = self.rng.below(partitions as u64) as usize;
                    let to = self.rng.below(cluster.nodes() as u64) as usize;
                    let output = cluster.transfer(&self.table, partition, to);
                    self.say(format_args!(
                        "{fault:?} of partition {partition} to {to}: {output:?}"
                    ));
                }
            }
            Fault::ThereAndBack => {
                let leaders = cluster.leaders(&self.table).unwrap_or_default();
                let led: Vec<(usize, usize)> = leaders
                    .into_iter()
                    .enumerate()
                    .filter_map(|(partition, leader)| Some((partition, leader?)))
                    .collect();
                if !led.is_empty() {
                    let (partition, leader) = *self.rng.one_of(&led);
                    let to = (leader + 1 + self.rng.below(cluster.nodes() as u64 - 1) as usize)
                        % cluster.nodes();
                    let there = cluster.transfer(&self.table, partition, to);
                    self.rest(20, 700);
                    let back = cluster.transfer(&self.table, partition, leader);
                    self.say(format_args!(
                        "{fault:?}: partition {partition} from {leader} to {to}: {there:?}, \
                         {back:?}"
                    ));
                }
            }
            Fault::Clock => {
                let victim = self.rng.below(cluster.nodes() as u64) as usize;
                let most = *self.rng.one_of(&[1, 10, 60, 3_600]);
                let seconds = self.rng.below(2 * most + 1) as i64 - most as i64;
                self.say(format_args!("{fault:?} of {victim} goes {seconds:+} s off"));
                cluster.set_clock(victim, seconds);
            }
            _ => self.strike_network(cluster, fault),
        }
    }

    fn strike_network(&mut self, cluster: &Cluster, fault: Fault) {
        let Some(network) = self.network.clone() else { return };
        let cut = Link { cut: true, ..Link::default() };
        let victim = self.leader(cluster) + 1;
        let others: Vec<usize> = (1..=network.places()).filter(|place| *place != victim).collect();
        match fault {
            Fault::IsolateLeader => network.isolate(&[victim]),
            Fault::Split => {
                let group: Vec<usize> =
                    (1..=network.places()).filter(|_| self.rng.below(2) == 0).collect();
                network.isolate(&group);
            }
            Fault::Bridge => {
                for one in &others {
                    others
                        .iter()
                        .filter(|other| *other != one)
                        .for_each(|other| network.set(*one, *other, cut));
                }
            }
            Fault::Mute => others.iter().for_each(|other| network.set(victim, *other, cut)),
            Fault::Deaf => others.iter().for_each(|other| network.set(*other, victim, cut)),
            _ => {
                let delay = Duration::from_millis(if fault == Fault::Slow {
                    self.rng.below(50)
                } else {
                    0
                });
                let loss_permille =
                    if fault == Fault::Lossy { 10 + self.rng.below(190) } else { 0 };
                let link = Link { cut: false, delay, jitter: delay, loss_permille };
                for from in 1..=network.places() {
                    (1..=network.places())
                        .filter(|to| *to != from)
                        .for_each(|to| network.set(from, to, link));
                }
            }
        }
        self.say(format_args!("{fault:?} (victim {})", victim - 1));
        self.rest(500, 8_000);
        network.heal();
        self.say(format_args!("the network is healed"));
    }
}
