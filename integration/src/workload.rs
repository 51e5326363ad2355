//! Clients that write and read a few hot keys through several proxies, and write down
//! what they saw, for [`crate::lin`] to judge.
//!
//! Each client is a thread with one connection and one command under way. It never
//! repeats anything: what was answered, what was refused and what nobody knows are
//! written down as such. Values are unique. Keys are used for some hundreds of calls and
//! then replaced by fresh ones, so that histories stay short; all keys are read once more
//! at the end.
//!
//! Some clients hold a row under WATCH for up to seconds, and then EXEC what changes
//! nothing; and now and then there is a *lull*, in which nobody writes. Both are for
//! leaders that come back: what they remember of their earlier leadership shows as long
//! as no write of theirs has failed.
//!
//! # Invariants
//! - Times are taken from one monotonic clock, before the first byte is sent and after
//!   the last is read.
//! - What is not known to have been refused is of unknown outcome.

mod client;
mod mix;
mod rng;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::client::Worker;
use self::mix::{KINDS, KeyKind};
pub use self::rng::{Rng, seed};
use crate::lin::{Call, Limits, Row, RowOp, Verdict, check};
use crate::{Client, Value};

/// What to do.
#[derive(Debug, Clone)]
pub struct WorkloadOptions {
    /// Where clients connect, each to one of these at random.
    pub proxies: Vec<SocketAddr>,
    /// How many there are.
    pub clients: usize,
    /// How many more that hold rows under WATCH.
    pub holders: usize,
    /// Hot keys of each of the five kinds.
    pub keys_per_kind: u64,
    /// A key is replaced by a fresh one after about so many calls.
    pub calls_per_key: u64,
    /// A client rests so long between calls, on average.
    pub pause: Duration,
    /// A reply that takes longer is given up; its outcome is unknown.
    pub timeout: Duration,
    /// What chance makes of it.
    pub seed: u64,
}

impl WorkloadOptions {
    /// Ten clients, and four that hold, on ten hot keys.
    pub fn new(proxies: Vec<SocketAddr>, seed: u64) -> WorkloadOptions {
        let (pause, timeout) = (Duration::from_millis(2), Duration::from_secs(8));
        WorkloadOptions {
            proxies,
            clients: 10,
            holders: 4,
            keys_per_kind: 2,
            calls_per_key: 1_500,
            pause,
            timeout,
            seed,
        }
    }
}

/// How often there is a lull, and how long it is, ms.
const LULL_PERIOD_MS: u128 = 2_400;
const LULL_MS: u128 = 800;

/// What clients share.
#[derive(Debug)]
struct WorkloadState {
    began: Instant,
    stop: AtomicBool,
    /// Calls to each slot of each kind.
    calls: Vec<AtomicU64>,
    slots: usize,
}

impl WorkloadState {
    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Nobody writes now.
    fn is_lull(&self) -> bool {
        self.began.elapsed().as_millis() % LULL_PERIOD_MS >= LULL_PERIOD_MS - LULL_MS
    }

    fn key(&self, kind: KeyKind, slot: usize, calls_per_key: u64) -> String {
        let place =
            KINDS.iter().position(|other| *other == kind).unwrap_or_default() * self.slots + slot;
        let calls = self.calls[place].fetch_add(1, Ordering::Relaxed);
        // Values of lists grow with each call, and so does what may have expired.
        let most = if matches!(kind, KeyKind::List | KeyKind::Session) {
            calls_per_key.min(500)
        } else {
            calls_per_key
        };
        format!("{}:{slot}:{}", kind.name(), calls / most)
    }
}

/// What clients saw.
#[derive(Debug, Default)]
pub struct History {
    /// The history of each key.
    pub keys: BTreeMap<String, Vec<Call<RowOp>>>,
    /// Calls that were answered.
    pub answered: u64,
    /// Calls that were refused: nothing was done.
    pub refused: u64,
    /// Calls of unknown outcome.
    pub unknown: u64,
    /// EXEC that did nothing because another was quicker.
    pub aborted: u64,
    /// What was said, how often.
    pub errors: BTreeMap<String, u64>,
}

impl History {
    fn record(
        &mut self,
        client: usize,
        key: &str,
        op: RowOp,
        invoked_ns: u64,
        returned_ns: Option<u64>,
    ) {
        self.answered += u64::from(returned_ns.is_some());
        let call = Call { client, op, invoked_ns, returned_ns };
        match self.keys.get_mut(key) {
            Some(calls) => calls.push(call),
            None => _ = self.keys.insert(key.to_owned(), vec![call]),
        }
    }

    fn refused(&mut self, why: String) {
        self.refused += 1;
        *self.errors.entry(why).or_default() += 1;
    }

    fn unknown(&mut self, why: String) {
        self.unknown += 1;
        *self.errors.entry(why).or_default() += 1;
    }

    fn add(&mut self, other: History) {
        other
            .keys
            .into_iter()
            .for_each(|(key, calls)| self.keys.entry(key).or_default().extend(calls));
        other
            .errors
            .into_iter()
            .for_each(|(why, times)| *self.errors.entry(why).or_default() += times);
        self.answered += other.answered;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.aborted += other.aborted;
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Workload {
    plan: Arc<WorkloadOptions>,
    shared: Arc<WorkloadState>,
    threads: Vec<JoinHandle<History>>,
}

impl Workload {
    /// Starts the clients.
    pub fn start(plan: WorkloadOptions) -> Workload {
        let slots = plan.keys_per_kind as usize;
        let calls = (0..KINDS.len() * slots).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(WorkloadState {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            calls,
            slots,
        });
        let mut rng = Rng::new(plan.seed);
        let plan = Arc::new(plan);
        let work = |number| {
            let (plan, shared, rng) = (plan.clone(), shared.clone(), rng.another());
            std::thread::spawn(move || {
                let worker = Worker::new(number, &plan, &shared, rng);
                if number < plan.clients { worker.work() } else { worker.hold() }
            })
        };
        let threads = (0..plan.clients + plan.holders).map(work).collect();
        Workload { plan, shared, threads }
    }

    /// Ends the clients, reads every key once more (trying until it can be read: all must
    /// be well by now), and says what was seen.
    ///
    /// # Panics
    /// When a client panicked, or a key can't be read for a minute.
    pub fn finish(mut self) -> History {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut seen = History::default();
        self.threads
            .drain(..)
            .for_each(|thread| seen.add(thread.join().expect("clients don't panic")));
        let keys: Vec<String> = seen.keys.keys().cloned().collect();
        let mut client = None;
        for key in keys {
            let kind = KINDS
                .into_iter()
                .find(|kind| key.starts_with(kind.name()))
                .expect("keys are named by their kind");
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                let invoked_ns = self.shared.now_ns();
                let reply = self.read(&mut client, kind, &key);
                let returned_ns = self.shared.now_ns();
                match reply {
                    Ok(Value::Error(_)) | Err(_) => client = None,
                    Ok(value) => {
                        let reply = kind.whole().normal(value);
                        seen.record(
                            self.plan.clients + self.plan.holders,
                            &key,
                            RowOp::one(kind.whole(), Some(reply)),
                            invoked_ns,
                            Some(returned_ns),
                        );
                        break;
                    }
                }
                assert!(Instant::now() < deadline, "all is well again, and {key} can't be read");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        seen
    }

    /// Reads a whole row through any proxy.
    fn read(
        &self,
        client: &mut Option<Client>,
        kind: KeyKind,
        key: &str,
    ) -> std::io::Result<Value> {
        if client.is_none() {
            let proxies = &self.plan.proxies;
            let address = proxies[self.shared.now_ns() as usize % proxies.len()];
            *client = Some(Client::reach(address, self.plan.timeout)?);
        }
        let client = client.as_mut().expect("just connected");
        client.call(&kind.whole().words(key))
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// What became of the judgement.
#[derive(Debug, Default)]
pub struct CheckResult {
    /// Keys whose history has a linearization.
    pub fine: usize,
    /// Keys for which a limit was reached, and which.
    pub undecided: Vec<(String, String)>,
    /// Keys whose history has none, and why.
    pub violations: Vec<(String, String)>,
}

/// Judges every key's history, on two threads, and prints what was seen.
pub fn check_all(seen: &History, limits: &Limits) -> CheckResult {
    let began = Instant::now();
    let keys: Vec<_> = seen.keys.iter().collect();
    let next = AtomicU64::new(0);
    let work = || {
        let mut judged = CheckResult::default();
        while let Some((key, calls)) = keys.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            match check::<Row>(calls, limits) {
                Verdict::Linearizable => judged.fine += 1,
                Verdict::Violation(why) => judged.violations.push(((*key).clone(), why)),
                Verdict::Undecided(why) => judged.undecided.push(((*key).clone(), why)),
            }
        }
        judged
    };
    let mut all = CheckResult::default();
    std::thread::scope(|scope| {
        for thread in [scope.spawn(work), scope.spawn(work)] {
            let judged = thread.join().expect("the checker does not panic");
            all.fine += judged.fine;
            all.undecided.extend(judged.undecided);
            all.violations.extend(judged.violations);
        }
    });
    eprintln!(
        "{} calls answered, {} refused, {} of unknown outcome, {} EXEC too late; {} keys: {} \
         linearizable, {} undecided, {} not (judged in {:.1?})",
        seen.answered,
        seen.refused,
        seen.unknown,
        seen.aborted,
        keys.len(),
        all.fine,
        all.undecided.len(),
        all.violations.len(),
        began.elapsed()
    );
    eprintln!("errors: {:?}", seen.errors);
    all
}

impl CheckResult {
    /// Panics unless every history has a linearization (a few may be undecided: one in
    /// fifty).
    ///
    /// # Panics
    /// As said.
    pub fn assert_linearizable(&self) {
        for (key, why) in &self.violations {
            eprintln!("NOT LINEARIZABLE: {key}: {why}\n");
        }
        for (key, why) in &self.undecided {
            eprintln!("undecided: {key}: {why}");
        }
        let keys = self.fine + self.undecided.len() + self.violations.len();
        assert!(
            self.violations.is_empty(),
            "{} of {keys} keys were not linearizable",
            self.violations.len()
        );
        assert!(
            self.undecided.len() * 50 <= keys,
            "{} of {keys} keys could not be judged",
            self.undecided.len()
        );
    }
}
