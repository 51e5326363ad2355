//! Bridles that break one safety rule each are caught by what proves the whole one: clients, faults, and the judge of what they saw.
//!
//! `make mutants` builds such a binary beside the usual one and runs this (the rules: `storage/engine/src/mutants.rs`). Each mutant lives
//! through faults that hurt whoever breaks its rule, and must be caught within a few tries: what clients saw has no linearization, or the
//! cluster does not come back by itself. Without a broken rule (`BRIDLE_MUTANT=none`), the same binary passes the same faults each time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration::cluster::{Cluster, ClusterBuilder};
use integration::lin::{Call, Command, Limits, Row, RowOp, Verdict, check};
use integration::nemesis::{Fault, Nemesis};
use integration::netns::{Link, Network};
use integration::workload::{Dice, Plan, Workload, judge, seed};
use integration::{Client, Value, within};

/// How often a mutant may get away with it.
const TRIES: usize = 4;

/// What happens to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// Clients work, and these faults are done for so many seconds.
    Faults(&'static [Fault], u64),
    /// A leader loses sight of one follower; then the other is killed, started again, and out of the leader's sight, too.
    VoterRestarts,
}

impl Trial {
    fn needs_network(self) -> bool {
        match self {
            Trial::Faults(faults, _) => faults.iter().any(|fault| integration::nemesis::NETWORK.contains(fault)),
            Trial::VoterRestarts => true,
        }
    }

    /// What is wrong with what clients saw, if anything.
    fn run(self, cluster: &mut Cluster, network: Option<Arc<Network>>, seed: u64) -> Option<String> {
        match (self, network) {
            (Trial::Faults(faults, seconds), network) => {
                let workload = Workload::start(Plan::new(cluster.all_proxies(), seed));
                Nemesis::new(faults, seed, network).run(cluster, Duration::from_secs(seconds));
                let seen = workload.finish();
                assert!(seen.told > 500, "the trial shows nothing: {} answered", seen.told);
                judge(&seen, &Limits::default()).violations.into_iter().next().map(|(key, why)| format!("{key}: {why}"))
            }
            (Trial::VoterRestarts, Some(network)) => (0..4).find_map(|round| voter_restarts(cluster, &network, round)),
            (Trial::VoterRestarts, None) => panic!("this trial has a network"),
        }
    }
}

/// The binary that breaks rules, beside the usual one.
fn program() -> PathBuf {
    integration::binary().with_file_name("bridle-mutants")
}

fn builder(mutant: &str) -> ClusterBuilder {
    Cluster::builder().program(program()).env("BRIDLE_MUTANT", mutant).partitions(1)
}

/// One try; says how the mutant was caught, if it was.
fn try_once(mutant: &str, trial: Trial, seed: u64) -> Option<String> {
    let network = trial.needs_network().then(|| Arc::new(Network::new(3, seed).expect("a network of our own: run this as root")));
    let builder = match &network {
        Some(network) => builder(mutant).network(network),
        None => builder(mutant),
    };
    let mut cluster = builder.start();
    // A cluster that does not come back is caught, too: nobody else can make it come back either.
    match catch_unwind(AssertUnwindSafe(|| trial.run(&mut cluster, network, seed))) {
        Ok(found) => found,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(format!("{}\n{}", text.unwrap_or_default(), cluster.tails()))
        }
    }
}

/// The mutant is caught within [`TRIES`], and the whole Bridle is not, in the same trial.
fn caught(mutant: &str, trial: Trial) {
    let mut dice = Dice::new(seed());
    let began = Instant::now();
    let mut seeds = (0..TRIES).map(|_| dice.below(u64::MAX));
    let found = seeds.find_map(|seed| try_once(mutant, trial, seed)).unwrap_or_else(|| panic!("{mutant} got away with it, {TRIES} times"));
    println!("{mutant} was caught after {:.0?}: {found}", began.elapsed());
    if let Some(found) = try_once("none", trial, dice.below(u64::MAX)) {
        panic!("nothing is broken, and this was found: {found}");
    }
    println!("{mutant}: and without it, nothing was found");
}

#[test]
fn who_answers_before_the_fsync_is_caught() {
    caught("answer-before-fsync", Trial::Faults(&[Fault::KillAll], 12));
}

#[test]
fn who_reads_without_a_lease_is_caught() {
    caught("read-without-lease", Trial::Faults(&[Fault::IsolateLeader, Fault::Freeze], 15));
}

#[test]
fn who_applies_a_retry_twice_is_caught() {
    caught("apply-a-retry-twice", Trial::Faults(&[Fault::KillLeader], 25));
}

#[test]
fn who_forgets_the_vote_is_caught() {
    caught("forget-the-vote", Trial::VoterRestarts);
}

#[test]
fn who_purges_the_log_too_far_is_caught() {
    caught("purge-too-far", Trial::Faults(&[Fault::KillAll], 12));
}

#[test]
fn who_keeps_old_rows_is_caught() {
    caught("keep-old-rows", Trial::Faults(&[Fault::Transfer], 15));
}

/// The binary for everybody has no such switch.
#[test]
fn the_usual_binary_breaks_no_rules() {
    let has_switch = |path: PathBuf| {
        let bytes = std::fs::read(&path).expect("a binary can be read");
        bytes.windows(13).any(|window| window == b"BRIDLE_MUTANT")
    };
    assert!(!has_switch(integration::binary()) && has_switch(program()));
}

/// Nothing runs by accident.
#[test]
fn without_a_name_it_refuses_to_run() {
    for name in [None, Some("anything")] {
        let mut command = std::process::Command::new(program());
        command.args(["admin", "status"]).env_remove("BRIDLE_MUTANT").envs(name.map(|name| ("BRIDLE_MUTANT", name)));
        let ended = command.output().expect("it starts");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success() && said.contains("LOSES DATA on purpose"), "{said}");
    }
}

/// A history that is being written down.
struct Watcher {
    began: Instant,
    calls: Vec<Call<RowOp>>,
}

impl Watcher {
    /// One command; its answer, if it was carried out.
    fn call(&mut self, number: usize, client: &mut Client, key: &str, command: Command) -> Option<Value> {
        let invoked_ns = self.began.elapsed().as_nanos() as u64;
        let words = command.words(key);
        let reply = client.pipeline(&[words]).map(|mut replies| replies.remove(0)).ok();
        let returned_ns = self.began.elapsed().as_nanos() as u64;
        let told = reply.filter(|reply| !matches!(reply, Value::Error(_))).map(|reply| command.normal(reply));
        let is_write = !matches!(command, Command::Get);
        if told.is_some() || is_write {
            let returned_ns = told.is_some().then_some(returned_ns);
            self.calls.push(Call { client: number, op: RowOp::one(command, told.clone()), invoked_ns, returned_ns });
        }
        told
    }
}

/// A write that all replicas have; then the leader sees one follower only, which is killed and comes back where the leader does not see it.
/// The other follower writes as soon as it can, while clients go on reading at the leader. What is wrong with what they read?
fn voter_restarts(cluster: &mut Cluster, network: &Network, round: u64) -> Option<String> {
    let mut leader = None;
    within(30, "somebody leads", || {
        leader = cluster.leaders("db0").ok().and_then(|leaders| leaders[0]);
        leader.is_some()
    });
    let leader = leader.expect("just found");
    let (candidate, voter) = ((leader + 1) % 3, (leader + 2) % 3);
    let key = format!("vote:{round}");
    let mut first = Watcher { began: Instant::now(), calls: Vec::new() };
    let mut at_leader = cluster.client(leader).expect("it serves");
    first.call(0, &mut at_leader, &key, Command::Set("old".to_owned()));
    std::thread::sleep(Duration::from_millis(600));
    let cut = Link { cut: true, ..Link::default() };
    network.set_both(leader + 1, candidate + 1, cut);
    // Longer than the lease that the candidate grants.
    std::thread::sleep(Duration::from_millis(1_500));
    let stop = AtomicBool::new(false);
    let began = first.began;
    let mut calls = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut watcher = Watcher { began, calls: Vec::new() };
            while !stop.load(Ordering::Relaxed) {
                watcher.call(1, &mut at_leader, &key, Command::Get);
                std::thread::sleep(Duration::from_millis(1));
            }
            watcher.calls
        });
        network.set_both(leader + 1, voter + 1, cut);
        cluster.kill(voter);
        cluster.launch(voter);
        let writer = scope.spawn(|| {
            let mut watcher = Watcher { began, calls: Vec::new() };
            let end = Instant::now() + Duration::from_secs(5);
            let mut tries = 0;
            while Instant::now() < end {
                tries += 1;
                if let Ok(mut client) = cluster.client(candidate)
                    && watcher.call(1 + tries, &mut client, &key, Command::Set(format!("new:{tries}"))).is_some()
                {
                    eprintln!("round {round}: the candidate wrote after {:.2?}", began.elapsed());
                    break;
                }
            }
            watcher.calls
        });
        let mut calls = writer.join().expect("writers don't panic");
        std::thread::sleep(Duration::from_millis(1_000));
        stop.store(true, Ordering::Relaxed);
        calls.extend(reader.join().expect("readers don't panic"));
        calls
    });
    calls.extend(first.calls);
    network.heal();
    cluster.wait_until_serving();
    match check::<Row>(&calls, &Limits::default()) {
        Verdict::Violation(why) => Some(why),
        Verdict::Linearizable | Verdict::Undecided(_) => None,
    }
}
