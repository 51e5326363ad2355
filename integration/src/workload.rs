//! Clients that write and read a few hot keys through several proxies and record a
//! history of their calls, which [`crate::lin`] checks.
//!
//! Each client is a thread with one connection and one command in flight. It never
//! retries: answered calls, refused calls and those of unknown outcome are recorded as
//! such. Values are unique. Keys are used for some hundreds of calls and then replaced by
//! fresh ones, so that histories stay short; all keys are read once more at the end.
//!
//! Some clients hold a row under WATCH for up to seconds, and then EXEC commands that
//! change nothing; and from time to time there is a *lull* without writes. Both test
//! leaders that lead again: stale state of an earlier leadership is visible only until
//! their first write fails.
//!
//! # Invariants
//! - Times are taken from one monotonic clock, before the first byte is sent and after
//!   the last is read.
//! - A call that is not known to be refused is of unknown outcome.

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

/// Options of a workload.
#[derive(Debug, Clone)]
pub struct WorkloadOptions {
    /// Addresses of the proxies; each client connects to a random one.
    pub proxies: Vec<SocketAddr>,
    /// Number of clients.
    pub clients: usize,
    /// Number of additional clients that hold rows under WATCH.
    pub holders: usize,
    /// Number of hot keys of each of the five kinds.
    pub keys_per_kind: u64,
    /// A key is replaced by a fresh one after about this many calls.
    pub calls_per_key: u64,
    /// Average pause of a client between calls.
    pub pause: Duration,
    /// Timeout of a reply; the outcome is then unknown.
    pub timeout: Duration,
    /// Seed of all random choices.
    pub seed: u64,
}

impl WorkloadOptions {
    /// Ten clients, and four that hold rows, on ten hot keys.
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

/// Interval and length of lulls, ms.
const LULL_PERIOD_MS: u128 = 2_400;
const LULL_MS: u128 = 800;

/// State shared by the clients.
#[derive(Debug)]
struct WorkloadState {
    began: Instant,
    stop: AtomicBool,
    /// Number of calls to each slot of each kind.
    calls: Vec<AtomicU64>,
    slots: usize,
}

impl WorkloadState {
    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// No client writes now.
    fn is_lull(&self) -> bool {
        self.began.elapsed().as_millis() % LULL_PERIOD_MS >= LULL_PERIOD_MS - LULL_MS
    }

    fn key(&self, kind: KeyKind, slot: usize, calls_per_key: u64) -> String {
        let place =
            KINDS.iter().position(|other| *other == kind).unwrap_or_default() * self.slots + slot;
        let calls = self.calls[place].fetch_add(1, Ordering::Relaxed);
        // Values of lists grow with each call, and so does the number of possible
        // expiries.
        let most = if matches!(kind, KeyKind::List | KeyKind::Session) {
            calls_per_key.min(500)
        } else {
            calls_per_key
        };
        format!("{}:{slot}:{}", kind.name(), calls / most)
    }
}

/// The recorded calls of all clients.
#[derive(Debug, Default)]
pub struct History {
    /// The history of each key.
    pub keys: BTreeMap<String, Vec<Call<RowOp>>>,
    /// Number of answered calls.
    pub answered: u64,
    /// Number of refused calls, which had no effect.
    pub refused: u64,
    /// Number of calls of unknown outcome.
    pub unknown: u64,
    /// Number of EXEC that failed because a watched row had changed.
    pub aborted: u64,
    /// Errors and their counts.
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

/// Running clients.
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

    /// Stops the clients, reads every key once more (with retries, since all faults must
    /// be over), and returns the history.
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
                assert!(Instant::now() < deadline, "all faults are over, and {key} can't be read");
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

/// Result of checking a history.
#[derive(Debug, Default)]
pub struct CheckResult {
    /// Number of keys whose history is linearizable.
    pub linearizable: usize,
    /// Keys for which a limit was reached, and the limit.
    pub undecided: Vec<(String, String)>,
    /// Keys whose history is not linearizable, and the reason.
    pub violations: Vec<(String, String)>,
}

/// Checks every key's history, on two threads, and prints a summary.
pub fn check_all(seen: &History, limits: &Limits) -> CheckResult {
    let began = Instant::now();
    let keys: Vec<_> = seen.keys.iter().collect();
    let next = AtomicU64::new(0);
    let work = || {
        let mut result = CheckResult::default();
        while let Some((key, calls)) = keys.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            match check::<Row>(calls, limits) {
                Verdict::Linearizable => result.linearizable += 1,
                Verdict::Violation(why) => result.violations.push(((*key).clone(), why)),
                Verdict::Undecided(why) => result.undecided.push(((*key).clone(), why)),
            }
        }
        result
    };
    let mut all = CheckResult::default();
    std::thread::scope(|scope| {
        for thread in [scope.spawn(work), scope.spawn(work)] {
            let result = thread.join().expect("the checker does not panic");
            all.linearizable += result.linearizable;
            all.undecided.extend(result.undecided);
            all.violations.extend(result.violations);
        }
    });
    eprintln!(
        "{} calls answered, {} refused, {} of unknown outcome, {} EXEC too late; {} keys: {} \
         linearizable, {} undecided, {} not (checked in {:.1?})",
        seen.answered,
        seen.refused,
        seen.unknown,
        seen.aborted,
        keys.len(),
        all.linearizable,
        all.undecided.len(),
        all.violations.len(),
        began.elapsed()
    );
    eprintln!("errors: {:?}", seen.errors);
    all
}

impl CheckResult {
    /// Panics unless every history is linearizable (one in fifty may be undecided).
    ///
    /// # Panics
    /// As described.
    pub fn assert_linearizable(&self) {
        for (key, why) in &self.violations {
            eprintln!("NOT LINEARIZABLE: {key}: {why}\n");
        }
        for (key, why) in &self.undecided {
            eprintln!("undecided: {key}: {why}");
        }
        let keys = self.linearizable + self.undecided.len() + self.violations.len();
        assert!(
            self.violations.is_empty(),
            "{} of {keys} keys were not linearizable",
            self.violations.len()
        );
        assert!(
            self.undecided.len() * 50 <= keys,
            "{} of {keys} keys are undecided",
            self.undecided.len()
        );
    }
}
