//! Statistics: calls, failures and latency of every command, connections, bytes, batches.
//!
//! Counting must cost next to nothing where commands run, so it is a relaxed addition to
//! an atomic, once per command and *chunk* (sixteen GETs of one pipeline are one record).
//! INFO, LATENCY HISTOGRAM and the Prometheus page read the same numbers; see
//! [`crate::metrics`] for the latter.
//!
//! # Invariants
//! - Memory is fixed at start, except for the error names, of which at most
//!   [`ERRORS_MAX`] are kept apart.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use commands::{COMMANDS, Command};
use parking_lot::Mutex;

use crate::histogram::Histogram;

/// Error prefixes that are counted separately; all others count as `other`. Redis's
/// number.
pub const ERRORS_MAX: usize = 128;

/// Number of size classes of requests: 1, 2, 4, ... ops.
const BATCH_BOUNDS: usize = 13;

/// Samples behind the "instantaneous" fields, as in Redis.
const SAMPLES: usize = 16;

/// A command's index in the table, over all families. Determined once, when the command
/// is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandIndex(u16);

impl CommandIndex {
    /// The index of `command` in [`COMMANDS`]; `None` for an entry that is not in it.
    pub fn of(command: &'static Command) -> Option<CommandIndex> {
        let mut base = 0;
        for family in COMMANDS {
            if family.as_ptr_range().contains(&std::ptr::from_ref(command)) {
                let offset = (std::ptr::from_ref(command).addr() - family.as_ptr().addr())
                    / size_of::<Command>();
                return u16::try_from(base + offset).ok().map(CommandIndex);
            }
            base += family.len();
        }
        None
    }
}

/// A command and its index in the statistics.
#[derive(Clone, Copy)]
pub(crate) struct ResolvedCommand {
    pub(crate) command: &'static Command,
    pub(crate) index: Option<CommandIndex>,
}

/// Counters of one command.
#[derive(Debug)]
struct PerCommand {
    calls: AtomicU64,
    /// Its share of the time of its chunks.
    nanos: AtomicU64,
    /// The sum of `latency`.
    waited_nanos: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    /// ns, from 128 ns to 68 s.
    latency: Histogram,
}

/// Statistics of one command, for INFO commandstats and others.
#[derive(Debug, Clone, Copy)]
pub struct CommandStats<'a> {
    /// The name in the table: `get`, `client|id`.
    pub name: &'static str,
    /// Executed.
    pub calls: u64,
    /// Total time of all calls; commands of one chunk share its time equally.
    pub total: Duration,
    /// Total time that clients waited, the sum of `latency`.
    pub waited: Duration,
    /// Refused before execution: arity, NOAUTH, syntax.
    pub rejected: u64,
    /// Executed and answered with an error.
    pub failed: u64,
    /// Latencies in ns.
    pub latency: &'a Histogram,
}

/// All counters of one proxy.
#[derive(Debug)]
pub struct Stats {
    commands: Box<[PerCommand]>,
    errors: Mutex<Errors>,
    /// Open connections.
    pub connections: Gauge,
    /// Connections accepted since the start.
    pub connections_received: Counter,
    /// Connections rejected: `maxclients`, protected mode.
    pub connections_rejected: Counter,
    /// Disconnections over the output buffer limit.
    pub output_limit_disconnections: Counter,
    /// Disconnections over the query buffer limit.
    pub query_limit_disconnections: Counter,
    /// Disconnections for an oversized argument or command.
    pub oversized_disconnections: Counter,
    /// Clients evicted because all clients used more than `maxmemory-clients`.
    pub evicted_clients: Counter,
    /// Bytes read from clients.
    pub bytes_in: Counter,
    /// Bytes written to clients.
    pub bytes_out: Counter,
    /// Reads from sockets that returned data.
    pub reads: Counter,
    /// Writes to sockets.
    pub writes: Counter,
    /// Error replies sent.
    pub error_replies: Counter,
    /// Failed AUTH and HELLO AUTH.
    pub auth_failures: Counter,
    /// Look-ups that found the key.
    pub keyspace_hits: Counter,
    /// Look-ups that did not find the key.
    pub keyspace_misses: Counter,
    /// Requests to partitions with up to 1, 2, 4, ... ops; the last class holds all
    /// larger ones.
    batches: [AtomicU64; BATCH_BOUNDS + 1],
    /// Ops in these requests.
    pub batch_ops: Counter,
    rates: Mutex<RateSamples>,
    /// [`Stats::sample`] is being called periodically.
    pub(crate) is_sampled: AtomicBool,
}

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The current sum.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

/// A gauge.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds one.
    pub fn up(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Subtracts one.
    pub fn down(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        u64::try_from(self.0.load(Relaxed)).unwrap_or(0)
    }
}

/// Error replies by prefix, and for each prefix by command (`None`: unknown command).
type Errors = HashMap<Box<str>, HashMap<Option<CommandIndex>, u64>>;

impl Default for Stats {
    fn default() -> Self {
        Stats::new()
    }
}

impl Stats {
    /// All zero.
    pub fn new() -> Stats {
        let per_command = || PerCommand {
            calls: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            waited_nanos: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latency: Histogram::new(7, 29),
        };
        let commands = COMMANDS.iter().map(|family| family.len()).sum();
        Stats {
            commands: (0..commands).map(|_| per_command()).collect(),
            errors: Mutex::default(),
            connections: Gauge::default(),
            connections_received: Counter::default(),
            connections_rejected: Counter::default(),
            output_limit_disconnections: Counter::default(),
            query_limit_disconnections: Counter::default(),
            oversized_disconnections: Counter::default(),
            evicted_clients: Counter::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            reads: Counter::default(),
            writes: Counter::default(),
            error_replies: Counter::default(),
            auth_failures: Counter::default(),
            keyspace_hits: Counter::default(),
            keyspace_misses: Counter::default(),
            batches: std::array::from_fn(|_| AtomicU64::new(0)),
            batch_ops: Counter::default(),
            rates: Mutex::new(RateSamples::new(Instant::now())),
            is_sampled: AtomicBool::new(false),
        }
    }

    /// Counts `n` executed calls of a command. They were in a chunk of `commands`, which
    /// took `took` from its start until its answers were there, and each of them waited
    /// that long. The time of a single command is unknown, so they share it equally.
    pub fn record(&self, command: CommandIndex, n: u64, took: Duration, commands: u64) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let waited = nanos.saturating_mul(n);
        let command = &self.commands[usize::from(command.0)];
        command.calls.fetch_add(n, Relaxed);
        command.nanos.fetch_add(waited / commands.max(1), Relaxed);
        command.waited_nanos.fetch_add(waited, Relaxed);
        command.latency.record(nanos, n);
    }

    /// Counts a command that was refused before it ran, by its error line (`ERR wrong
    /// number ...`, without `-`). `None`: unknown command.
    pub fn rejected(&self, command: Option<CommandIndex>, line: &str) {
        if let Some(command) = command {
            self.commands[usize::from(command.0)].rejected.fetch_add(1, Relaxed);
        }
        self.error(command, line);
    }

    /// Counts a command that ran (it is in [`Stats::record`] as well) and replied with an
    /// error line.
    pub fn failed(&self, command: CommandIndex, line: &str) {
        self.commands[usize::from(command.0)].failed.fetch_add(1, Relaxed);
        self.error(Some(command), line);
    }

    fn error(&self, command: Option<CommandIndex>, line: &str) {
        self.error_replies.add(1);
        let prefix = prefix(line);
        let mut errors = self.errors.lock();
        // Prefixes come from our own code; the limit is there in case one ever comes from
        // a client.
        let name =
            if errors.contains_key(prefix) || errors.len() < ERRORS_MAX { prefix } else { "other" };
        if !errors.contains_key(name) {
            errors.insert(name.into(), HashMap::new());
        }
        if let Some(commands) = errors.get_mut(name) {
            *commands.entry(command).or_default() += 1;
        }
    }

    /// Counts a request to a partition with `ops` ops.
    pub fn batch(&self, ops: usize) {
        let bucket = ops.saturating_sub(1).checked_ilog2().map_or(0, |bits| bits as usize + 1);
        self.batches[bucket.min(BATCH_BOUNDS)].fetch_add(1, Relaxed);
        self.batch_ops.add(ops as u64);
    }

    /// Requests to partitions: (size, number of requests with at most this size), and the
    /// total.
    pub fn batches(&self) -> (Vec<(u64, u64)>, u64) {
        let mut sum = 0;
        let mut counts = self.batches.iter().map(|count| {
            sum += count.load(Relaxed);
            sum
        });
        let bounds = (0..BATCH_BOUNDS).map(|bits| 1 << bits).zip(counts.by_ref()).collect();
        (bounds, counts.next().unwrap_or(0))
    }

    /// All commands, in the table's order.
    pub fn commands(&self) -> impl Iterator<Item = CommandStats<'_>> {
        names().zip(&self.commands).map(|(name, command)| CommandStats {
            name,
            calls: command.calls.load(Relaxed),
            total: Duration::from_nanos(command.nanos.load(Relaxed)),
            waited: Duration::from_nanos(command.waited_nanos.load(Relaxed)),
            rejected: command.rejected.load(Relaxed),
            failed: command.failed.load(Relaxed),
            latency: &command.latency,
        })
    }

    /// Executed commands in total.
    pub fn commands_processed(&self) -> u64 {
        self.commands.iter().map(|command| command.calls.load(Relaxed)).sum()
    }

    /// Error replies by prefix, sorted.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.errors
            .lock()
            .iter()
            .map(|(prefix, commands)| (prefix.to_string(), commands.values().sum()))
            .collect()
    }

    /// Error replies: (command, `None` if unknown; prefix; count).
    pub fn command_errors(&self) -> Vec<(Option<&'static str>, String, u64)> {
        let names: Vec<_> = names().collect();
        let name = |index: &Option<CommandIndex>| {
            index.and_then(|CommandIndex(at)| names.get(usize::from(at)).copied())
        };
        let errors = self.errors.lock();
        let counts = errors.iter().flat_map(|(prefix, commands)| {
            commands.iter().map(move |(index, count)| (prefix, index, count))
        });
        counts.map(|(prefix, index, count)| (name(index), prefix.to_string(), *count)).collect()
    }

    /// Samples the rates. Called several times a second.
    pub fn sample(&self, now: Instant) {
        self.rates
            .lock()
            .sample(now, [self.commands_processed(), self.bytes_in.get(), self.bytes_out.get()]);
    }

    /// Commands, bytes read and bytes written per second, over the last samples.
    pub fn per_second(&self) -> [f64; 3] {
        self.rates.lock().per_second()
    }

    /// CONFIG RESETSTAT: resets everything but the gauges. Prometheus sees counters
    /// restart from 0, as after a restart.
    pub fn reset(&self) {
        for command in &self.commands {
            for count in [
                &command.calls,
                &command.nanos,
                &command.waited_nanos,
                &command.rejected,
                &command.failed,
            ] {
                count.store(0, Relaxed);
            }
            command.latency.reset();
        }
        self.errors.lock().clear();
        self.batches.iter().for_each(|count| count.store(0, Relaxed));
        let counts = [
            &self.connections_received,
            &self.connections_rejected,
            &self.output_limit_disconnections,
            &self.query_limit_disconnections,
            &self.oversized_disconnections,
            &self.evicted_clients,
            &self.bytes_in,
            &self.bytes_out,
            &self.reads,
            &self.writes,
            &self.error_replies,
            &self.auth_failures,
            &self.keyspace_hits,
            &self.keyspace_misses,
            &self.batch_ops,
        ];
        counts.into_iter().for_each(Counter::reset);
        *self.rates.lock() = RateSamples::new(Instant::now());
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().flat_map(|family| family.iter()).map(|command| command.name)
}

/// The first word of an error line. Redis counts a line without an upper-case first word
/// as ERR.
fn prefix(line: &str) -> &str {
    let word = line.split(' ').next().unwrap_or_default();
    if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
        word
    } else {
        "ERR"
    }
}

/// The last samples of three growing sums.
#[derive(Debug)]
struct RateSamples {
    at: usize,
    last: Instant,
    sums: [u64; 3],
    samples: [[f64; 3]; SAMPLES],
}

impl RateSamples {
    fn new(now: Instant) -> RateSamples {
        RateSamples { at: 0, last: now, sums: [0; 3], samples: [[0.0; 3]; SAMPLES] }
    }

    fn sample(&mut self, now: Instant, sums: [u64; 3]) {
        let seconds = now.saturating_duration_since(self.last).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let rate = |which: usize| sums[which].saturating_sub(self.sums[which]) as f64 / seconds;
        self.samples[self.at] = [rate(0), rate(1), rate(2)];
        self.at = (self.at + 1) % SAMPLES;
        (self.last, self.sums) = (now, sums);
    }

    fn per_second(&self) -> [f64; 3] {
        [0, 1, 2].map(|which| {
            self.samples.iter().map(|sample| sample[which]).sum::<f64>() / SAMPLES as f64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(name: &str) -> CommandIndex {
        let command =
            COMMANDS.iter().flat_map(|family| family.iter()).find(|command| command.name == name);
        CommandIndex::of(command.expect("it is in the table")).expect("it is in the table")
    }

    fn figures<'a>(stats: &'a Stats, name: &str) -> CommandStats<'a> {
        stats.commands().find(|command| command.name == name).expect("it is in the table")
    }

    #[test]
    fn every_command_has_an_index_of_its_own() {
        let indexes: Vec<_> = COMMANDS
            .iter()
            .flat_map(|family| family.iter())
            .map(|command| CommandIndex::of(command).expect("it is in the table"))
            .collect();
        assert_eq!(indexes, (0..indexes.len() as u16).map(CommandIndex).collect::<Vec<_>>());
    }

    #[test]
    fn calls_failures_and_rejections_are_told_apart() {
        let stats = Stats::new();
        stats.record(index("get"), 16, Duration::from_micros(20), 16);
        stats.record(index("get"), 1, Duration::from_micros(100), 2);
        stats.failed(
            index("get"),
            "WRONGTYPE Operation against a key holding the wrong kind of value",
        );
        stats.rejected(Some(index("set")), "ERR wrong number of arguments for 'set' command");
        stats.rejected(None, "ERR unknown command 'nosuch', with args beginning with: ");
        let get = figures(&stats, "get");
        assert_eq!((get.calls, get.rejected, get.failed), (17, 0, 1));
        assert_eq!(
            (get.total, get.waited),
            (Duration::from_micros(70), Duration::from_micros(420))
        );
        assert_eq!(get.latency.count(), 17);
        let set = figures(&stats, "set");
        assert_eq!((set.calls, set.rejected, set.failed), (0, 1, 0));
        assert_eq!(
            stats.errors().into_iter().collect::<Vec<_>>(),
            vec![("ERR".into(), 2), ("WRONGTYPE".into(), 1)]
        );
        assert!(stats.command_errors().contains(&(None, "ERR".into(), 1)));
        assert_eq!((stats.commands_processed(), stats.error_replies.get()), (17, 3));
        stats.reset();
        assert_eq!(
            (figures(&stats, "get").calls, stats.errors().len(), stats.commands_processed()),
            (0, 0, 0)
        );
    }

    #[test]
    fn error_names_are_bounded() {
        let stats = Stats::new();
        for n in 0..10_000u32 {
            let word: String =
                n.to_string().bytes().map(|digit| char::from(digit - b'0' + b'A')).collect();
            stats.rejected(None, &format!("{word} x"));
        }
        stats.rejected(None, "no prefix at all");
        assert_eq!(stats.errors().len(), ERRORS_MAX + 1);
        assert_eq!(stats.errors().values().sum::<u64>(), 10_001);
    }

    #[test]
    fn batch_sizes_are_cumulative_and_their_bounds_inclusive() {
        let stats = Stats::new();
        for ops in [1, 1, 2, 3, 4, 5, 16, 17, 100_000] {
            stats.batch(ops);
        }
        let (bounds, total) = stats.batches();
        let at = |most| bounds.iter().find(|(bound, _)| *bound == most).expect("a bound").1;
        assert_eq!(
            (at(1), at(2), at(4), at(8), at(16), at(32), at(4096), total),
            (2, 3, 5, 6, 7, 8, 8, 9)
        );
    }

    #[test]
    fn rates_are_means_of_the_last_samples() {
        let start = Instant::now();
        let mut rates = RateSamples::new(start);
        for n in 1..=SAMPLES as u64 {
            rates.sample(start + Duration::from_millis(100 * n), [n * 10, n * 1000, 0]);
        }
        let [ops, bytes_in, bytes_out] = rates.per_second();
        assert!(
            (ops - 100.0).abs() < 0.1 && (bytes_in - 10_000.0).abs() < 10.0 && bytes_out == 0.0
        );
    }
}
