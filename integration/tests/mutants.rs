//! Mutants, which break one safety rule each, are caught by the proofs of the real
//! binary: clients, faults, and the linearizability checker.
//!
//! `make mutants` builds such a binary next to the usual one and runs this test (the
//! rules: `storage/engine/src/mutants.rs`). Each mutant undergoes faults that expose its
//! broken rule, and must be caught within a few tries: the history is not linearizable,
//! or a process reports that its own data is wrong. Any other failure, a timeout on a
//! busy machine for example, proves nothing, and the try is repeated. Without a broken
//! rule (`BRIDLE_MUTANT=none`), the same binary passes as many tries of the same faults.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use integration::cluster::{Cluster, ClusterBuilder};
use integration::lin::{Call, Command, Limits, Row, RowOp, Verdict, check};
use integration::nemesis::{Fault, Nemesis};
use integration::netns::Network;
use integration::workload::{Rng, Workload, WorkloadOptions, check_all, seed};
use integration::{Value, within};

/// Maximum number of tries until a mutant is caught, which is the number that the
/// unbroken binary must pass, and maximum number of consecutive tries without a result.
const TRIES: usize = 6;

/// Messages of a process that finds its own data wrong, at the start or later.
const FOUND_WRONG: [&str; 4] = [
    "a partition could not be opened",
    "replica stopped",
    "bridle: open the Raft log: ",
    "bridle: open the table catalogue: ",
];

/// Result of a try.
enum Try {
    /// Caught, with the reason.
    Caught(String),
    Passed,
    /// A failure that need not come from the mutant.
    ShowsNothing(String),
}

/// The faults of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// Clients work while these faults are injected for this many seconds.
    Faults(&'static [Fault], u64),
    /// A voter that has followed another leader since is killed, and then meets the old
    /// one.
    VoterForgets,
    /// A leader on which a client watches a row leads again, after another leader under
    /// which the row was written.
    LeaderComesBack,
}

impl Trial {
    fn needs_network(self) -> bool {
        match self {
            Trial::Faults(faults, _) => {
                faults.iter().any(|fault| integration::nemesis::NETWORK.contains(fault))
            }
            Trial::VoterForgets => true,
            Trial::LeaderComesBack => false,
        }
    }

    /// The violation in a history, if there is one.
    fn run(
        self,
        cluster: &mut Cluster,
        network: Option<Arc<Network>>,
        seed: u64,
    ) -> Option<String> {
        match (self, network) {
            (Trial::Faults(faults, seconds), network) => {
                let workload = Workload::start(WorkloadOptions::new(cluster.all_proxies(), seed));
                Nemesis::new(faults, seed, network).run(cluster, Duration::from_secs(seconds));
                let seen = workload.finish();
                assert!(seen.answered > 500, "the trial shows nothing: {} answered", seen.answered);
                check_all(&seen, &Limits::default())
                    .violations
                    .into_iter()
                    .next()
                    .map(|(key, why)| format!("{key}: {why}"))
            }
            (Trial::VoterForgets, Some(network)) => voter_forgets(cluster, &network),
            (Trial::VoterForgets, None) => panic!("this trial has a network"),
            (Trial::LeaderComesBack, _) => leader_comes_back(cluster),
        }
    }
}

/// The binary with the mutants, next to the usual one.
fn program() -> PathBuf {
    integration::binary().with_file_name("bridle-mutants")
}

fn builder(mutant: &str) -> ClusterBuilder {
    Cluster::builder().program(program()).env("BRIDLE_MUTANT", mutant).partitions(1)
}

fn try_once(mutant: &str, trial: Trial, seed: u64) -> Try {
    let network = trial
        .needs_network()
        .then(|| Arc::new(Network::new(3, seed).expect("a network of our own: run this as root")));
    let builder = match &network {
        Some(network) => builder(mutant).network(network),
        None => builder(mutant),
    };
    let mut cluster = builder.start();
    let ended = catch_unwind(AssertUnwindSafe(|| trial.run(&mut cluster, network, seed)));
    let logs = (0..cluster.len()).map(|number| cluster.output(number)).collect::<String>();
    let wrong = logs
        .lines()
        .find(|line| FOUND_WRONG.iter().any(|known| line.contains(known)))
        .map(str::to_owned);
    match ended {
        Ok(Some(violation)) => Try::Caught(violation),
        Ok(None) => wrong.map_or(Try::Passed, Try::Caught),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            wrong.map_or_else(|| Try::ShowsNothing(text.unwrap_or_default()), Try::Caught)
        }
    }
}

/// One try with a result: the reason if it was caught.
fn conclusive_try(mutant: &str, trial: Trial, rng: &mut Rng) -> Option<String> {
    for _ in 0..TRIES {
        match try_once(mutant, trial, rng.below(u64::MAX)) {
            Try::Caught(found) => return Some(found),
            Try::Passed => return None,
            Try::ShowsNothing(why) => {
                eprintln!("{mutant}: this shows nothing, and is tried again: {why}")
            }
        }
    }
    panic!("{mutant}: {TRIES} tries in a row show nothing");
}

/// Asserts that the mutant is caught within [`TRIES`], and that the unbroken binary
/// passes as many tries of the same trial.
fn caught(mutant: &str, trial: Trial) {
    let mut rng = Rng::new(seed());
    let began = Instant::now();
    let found = (0..TRIES)
        .find_map(|_| conclusive_try(mutant, trial, &mut rng))
        .unwrap_or_else(|| panic!("{mutant} got away with it, {TRIES} times"));
    eprintln!("{mutant} was caught after {:.0?}: {found}", began.elapsed());
    for _ in 0..TRIES {
        if let Some(found) = conclusive_try("none", trial, &mut rng) {
            panic!("nothing is broken, and this was found: {found}");
        }
    }
    eprintln!("{mutant}: and without it, nothing was found in {TRIES} tries");
}

#[test]
fn a_reply_before_the_fsync_is_caught() {
    caught("answer-before-fsync", Trial::Faults(&[Fault::KillAll], 12));
}

#[test]
fn a_read_without_a_lease_is_caught() {
    caught("read-without-lease", Trial::Faults(&[Fault::IsolateLeader, Fault::Freeze], 15));
}

#[test]
fn a_retry_applied_twice_is_caught() {
    caught("apply-a-retry-twice", Trial::Faults(&[Fault::KillLeader], 25));
}

#[test]
fn a_forgotten_vote_is_caught() {
    caught("forget-the-vote", Trial::VoterForgets);
}

#[test]
fn a_log_purged_too_far_is_caught() {
    caught("purge-too-far", Trial::Faults(&[Fault::KillAll], 12));
}

#[test]
fn stale_rows_in_the_cache_are_caught() {
    caught("keep-old-rows", Trial::Faults(&[Fault::Transfer], 15));
}

#[test]
fn a_stale_leadership_is_caught() {
    caught("keep-an-old-leadership", Trial::LeaderComesBack);
}

/// The usual binary has no such switch.
#[test]
fn the_usual_binary_breaks_no_rules() {
    let has_switch = |path: PathBuf| {
        let bytes = std::fs::read(&path).expect("a binary can be read");
        bytes.windows(13).any(|window| window == b"BRIDLE_MUTANT")
    };
    assert!(!has_switch(integration::binary()) && has_switch(program()));
}

/// The mutants binary never runs by accident.
#[test]
fn the_mutants_binary_needs_the_name_of_a_mutant() {
    for name in [None, Some("anything")] {
        let mut command = std::process::Command::new(program());
        command
            .args(["admin", "status"])
            .env_remove("BRIDLE_MUTANT")
            .envs(name.map(|name| ("BRIDLE_MUTANT", name)));
        let ended = command.output().expect("it starts");
        let output = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success() && output.contains("LOSES DATA on purpose"), "{output}");
    }
}

/// A recorded history of one row.
struct History {
    began: Instant,
    key: String,
    calls: Vec<Call<RowOp>>,
}

impl History {
    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Executes a command through a process, with retries until it is answered; a call
    /// without an answer is of unknown outcome.
    fn call(&mut self, cluster: &Cluster, through: usize, command: &Command) -> Value {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let invoked_ns = self.now_ns();
            let reply = cluster
                .client(through)
                .and_then(|mut client| client.call(&command.words(&self.key)));
            let answered =
                reply.ok().filter(|reply| !reply.is_error()).map(|reply| command.normal(reply));
            self.record(command, answered.clone(), invoked_ns);
            if let Some(answered) = answered {
                return answered;
            }
            assert!(Instant::now() < end, "{command:?} is not carried out");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn record(&mut self, command: &Command, answered: Option<Value>, invoked_ns: u64) {
        let returned_ns = answered.is_some().then(|| self.now_ns());
        let client = self.calls.len();
        self.calls.push(Call {
            client,
            op: RowOp::one(command.clone(), answered),
            invoked_ns,
            returned_ns,
        });
    }
}

/// The leader of the partition.
fn leader_of(cluster: &Cluster) -> usize {
    let mut leader = None;
    within(30, "there is a leader", || {
        leader = cluster.leaders("db0").ok().and_then(|leaders| leaders[0]);
        leader.is_some()
    });
    leader.expect("just found")
}

fn hand_over(cluster: &Cluster, to: usize) {
    within(30, "leadership is handed over", || {
        let _refused_for_now = cluster.transfer("db0", 0, to);
        cluster.leaders("db0").is_ok_and(|leaders| leaders[0] == Some(to))
    });
}

/// A transaction that only reads, and watches a row that another leader has changed
/// meanwhile, must return nil.
fn leader_comes_back(cluster: &Cluster) -> Option<String> {
    let leader = leader_of(cluster);
    let other = (leader + 1) % 3;
    let mut history =
        History { began: Instant::now(), key: "watched".to_owned(), calls: Vec::new() };
    history.call(cluster, leader, &Command::Append("before,".to_owned()));
    let mut watching = cluster.client(leader).expect("it serves");
    let mut say = |words: &[&str]| watching.call(words).expect("it answers");
    assert!(!say(&["WATCH", "watched"]).is_error());
    hand_over(cluster, other);
    history.call(cluster, other, &Command::Append("after,".to_owned()));
    hand_over(cluster, leader);
    say(&["MULTI"]);
    say(&["GET", "watched"]);
    let answered = say(&["EXEC"]);
    eprintln!("EXEC replied {answered:?}");
    assert!(!answered.is_error(), "{answered:?}");
    (answered != Value::Nil).then(|| {
        format!(
            "EXEC replied {answered:?} although its watched row was written under another leader"
        )
    })
}

/// A leader is cut off with a write that no other replica has, and the others elect a new
/// leader, which acknowledges a write. Both others are killed, and one of them restarts
/// together with the old leader, which it must not follow: it has voted for the new one.
fn voter_forgets(cluster: &mut Cluster, network: &Network) -> Option<String> {
    let leader = leader_of(cluster);
    let (other, voter) = ((leader + 1) % 3, (leader + 2) % 3);
    let append = |text: &str| Command::Append(format!("{text},"));
    let mut history = History { began: Instant::now(), key: "grows".to_owned(), calls: Vec::new() };
    history.call(cluster, leader, &append("first"));
    let mut at_leader = cluster.client(leader).expect("it serves");
    network.isolate(&[leader + 1]);
    let (stuck, invoked_ns) = (append("stuck"), history.now_ns());
    at_leader.send(&stuck.words(&history.key)).expect("a socket takes a few bytes");
    history.record(&stuck, None, invoked_ns);
    history.call(cluster, other, &append("acknowledged"));
    eprintln!("{other} and {voter} go on without {leader} after {:.2?}", history.began.elapsed());
    cluster.kill(other);
    cluster.kill(voter);
    network.heal();
    cluster.launch(voter);
    history.call(cluster, voter, &Command::Get);
    history.call(cluster, voter, &append("after"));
    cluster.launch(other);
    cluster.wait_until_serving();
    let answered: Vec<String> =
        (0..3).map(|number| history.call(cluster, number, &Command::Get).text()).collect();
    eprintln!("at the end {answered:?}");
    match check::<Row>(&history.calls, &Limits::default()) {
        Verdict::Violation(why) => Some(why),
        Verdict::Linearizable | Verdict::Undecided(_) => None,
    }
}
