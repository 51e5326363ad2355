//! LATENCY: events that took longer than `latency-monitor-threshold`, and latency
//! histograms of commands.
//!
//! Events are `command` and `fast-command` (by the command's FAST flag), as in Redis, and
//! those that storage reports through [`Latency::add`]: `fsync`, `flush` (the binary
//! connects them). Redis's `fork` has no counterpart.
//!
//! # Invariants
//! - At most [`SAMPLES_MAX`] samples per event, at most one per second; event names are
//!   compiled in, so there are few.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use commands::Reply;
use commands::latency::LatencyCommand;
use parking_lot::Mutex;

use crate::Proxy;
use crate::stats::{CommandStats, Stats};

/// Samples kept per event. Redis's number.
pub const SAMPLES_MAX: usize = 160;

/// The events of one proxy.
#[derive(Debug, Default)]
pub struct Latency(Mutex<BTreeMap<&'static str, LatencyEvent>>);

#[derive(Debug, Default)]
struct LatencyEvent {
    max_ms: u64,
    /// (second since the epoch, ms), oldest first.
    samples: VecDeque<(u64, u64)>,
}

/// Runs a LATENCY command.
pub(crate) fn run(proxy: &Proxy, command: LatencyCommand) -> Reply {
    match command {
        LatencyCommand::Latest => proxy.latency.latest(),
        LatencyCommand::History { event } => proxy.latency.history(&event),
        LatencyCommand::Reset { events } => proxy.latency.reset(&events),
        LatencyCommand::Doctor => proxy.latency.doctor(proxy.settings.load().latency_threshold_ms),
        LatencyCommand::Histogram { names } => histogram(&proxy.stats, &names),
    }
}

impl Latency {
    /// Records an event that took `took`, if that is at or over the threshold (0 = off).
    pub fn add(&self, event: &'static str, took: Duration, threshold_ms: u64) {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        if threshold_ms > 0 && took_ms >= threshold_ms {
            self.add_at(event, crate::now_ms() / 1000, took_ms);
        }
    }

    fn add_at(&self, event: &'static str, second: u64, took_ms: u64) {
        let mut events = self.0.lock();
        let event = events.entry(event).or_default();
        event.max_ms = event.max_ms.max(took_ms);
        match event.samples.back_mut() {
            Some((at, ms)) if *at == second => *ms = (*ms).max(took_ms),
            _ => {
                if event.samples.len() == SAMPLES_MAX {
                    event.samples.pop_front();
                }
                event.samples.push_back((second, took_ms));
            }
        }
    }

    /// LATENCY LATEST: each event's name, last time, last and largest latency.
    fn latest(&self) -> Reply {
        let events = self.0.lock();
        let row = |(name, event): (&&'static str, &LatencyEvent)| {
            let (at, ms) = *event.samples.back()?;
            let figures = [at, ms, event.max_ms].map(|number| Reply::Int(number as i64));
            Some(Reply::Array(
                std::iter::once(Reply::Bulk(Bytes::from_static(name.as_bytes())))
                    .chain(figures)
                    .collect(),
            ))
        };
        Reply::Array(events.iter().filter_map(row).collect())
    }

    /// LATENCY HISTORY: an event's samples, oldest first.
    fn history(&self, event: &[u8]) -> Reply {
        let events = self.0.lock();
        let samples = std::str::from_utf8(event)
            .ok()
            .and_then(|name| events.get(name))
            .map(|event| &event.samples);
        let pair = |&(at, ms): &(u64, u64)| {
            Reply::Array(vec![Reply::Int(at as i64), Reply::Int(ms as i64)])
        };
        Reply::Array(samples.into_iter().flatten().map(pair).collect())
    }

    /// LATENCY RESET: removes these events, or all; returns the number of removed events.
    fn reset(&self, names: &[Bytes]) -> Reply {
        let mut events = self.0.lock();
        let before = events.len();
        let named = |event: &str| {
            names.is_empty() || names.iter().any(|name| name.eq_ignore_ascii_case(event.as_bytes()))
        };
        events.retain(|event, _| !named(event));
        Reply::Int((before - events.len()) as i64)
    }

    /// LATENCY DOCTOR: slow events in words, with common remedies.
    fn doctor(&self, threshold_ms: u64) -> Reply {
        if threshold_ms == 0 {
            return Reply::Text(OFF.into());
        }
        let events = self.0.lock();
        if events.is_empty() {
            return Reply::Text(NOTHING.into());
        }
        let mut text = String::from("Latency spikes were observed:\n\n");
        for (number, (name, event)) in events.iter().enumerate() {
            let figures = Spikes::of(event);
            writeln!(
                text,
                "{}. {name}: {} latency spikes (average {}ms, mean deviation {}ms, period {:.2} \
                 sec). Worst all time event {}ms.",
                number + 1,
                event.samples.len(),
                figures.average_ms,
                figures.deviation_ms,
                figures.period_s,
                event.max_ms
            )
            .expect("writing to a string cannot fail");
        }
        text.push_str("\nWhat usually helps:\n\n");
        for (event, advice) in ADVICE {
            if events.contains_key(event) {
                writeln!(text, "- {advice}").expect("writing to a string cannot fail");
            }
        }
        Reply::Text(text)
    }
}

const OFF: &str = "Latency monitoring is disabled. You may use \"CONFIG SET \
                   latency-monitor-threshold <milliseconds>\" in order to enable it.\n";
const NOTHING: &str =
    "No latency spike was observed during the lifetime of this server, not in the slightest bit.\n";

/// Advice by event.
const ADVICE: [(&str, &str); 4] = [
    (
        "command",
        "SLOWLOG GET shows which commands were slow: KEYS, HGETALL of large hashes and large \
         pipelines take time. Use SCAN and HSCAN.",
    ),
    (
        "fast-command",
        "Fast commands were slow: the machine may be short of CPU (see INFO cpu), or the disk \
         slow for reads that miss the block cache.",
    ),
    (
        "fsync",
        "The disk takes long to fsync: put the data directory on a faster disk, or choose \
         durability = \"interval\" if losing its last writes in a power cut is acceptable.",
    ),
    (
        "flush",
        "Flushes or compactions hold up writes: the disk is slower than what is written, see the \
         rocksdb_ figures in the metrics.",
    ),
];

/// Statistics of an event's samples.
#[derive(Debug, PartialEq)]
struct Spikes {
    average_ms: u64,
    deviation_ms: u64,
    period_s: f64,
}

impl Spikes {
    fn of(event: &LatencyEvent) -> Spikes {
        let count = event.samples.len().max(1) as u64;
        let average_ms = event.samples.iter().map(|(_, ms)| ms).sum::<u64>() / count;
        let deviation_ms =
            event.samples.iter().map(|(_, ms)| ms.abs_diff(average_ms)).sum::<u64>() / count;
        let span_s = match (event.samples.front(), event.samples.back()) {
            (Some((first, _)), Some((last, _))) => last.saturating_sub(*first),
            _ => 0,
        };
        Spikes { average_ms, deviation_ms, period_s: span_s as f64 / count as f64 }
    }
}

/// LATENCY HISTOGRAM: of these commands (a container's name stands for its subcommands),
/// or of all commands that were called.
fn histogram(stats: &Stats, names: &[Bytes]) -> Reply {
    let named = |name: &str, wanted: &Bytes| {
        let container = name.split('|').next().unwrap_or_default();
        [name, container].iter().any(|name| wanted.eq_ignore_ascii_case(name.as_bytes()))
    };
    let wanted = |command: &CommandStats<'_>| {
        command.calls > 0
            && (names.is_empty() || names.iter().any(|name| named(command.name, name)))
    };
    let entry = |command: CommandStats<'_>| {
        // A bucket's bound as HdrHistogram prints it: the largest value in the bucket, in
        // microseconds.
        let micros = |bits: u32| ((1u64 << bits) + (1 << bits.saturating_sub(7)) - 1) / 1000;
        let octaves =
            command.latency.octaves().into_iter().map(|(bits, count)| (bits.max(10), count));
        let mut cumulative = BTreeMap::new();
        // Octaves below a microsecond share a bound; the last and largest sum stays.
        cumulative.extend(octaves);
        let pair = |(bits, count)| (Reply::Int(micros(bits) as i64), Reply::Int(count as i64));
        let figures = vec![
            (Reply::Bulk("calls".into()), Reply::Int(command.calls as i64)),
            (
                Reply::Bulk("histogram_usec".into()),
                Reply::Map(cumulative.into_iter().map(pair).collect()),
            ),
        ];
        (Reply::Bulk(Bytes::from_static(command.name.as_bytes())), Reply::Map(figures))
    };
    Reply::Map(stats.commands().filter(wanted).map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(reply: Reply) -> Vec<Vec<i64>> {
        let Reply::Array(rows) = reply else { panic!("{reply:?}") };
        let int = |reply| if let Reply::Int(number) = reply { Some(number) } else { None };
        let row = |row| {
            if let Reply::Array(row) = row {
                row.into_iter().filter_map(int).collect()
            } else {
                panic!("{row:?}")
            }
        };
        rows.into_iter().map(row).collect()
    }

    #[test]
    fn only_what_reaches_the_threshold_counts() {
        let latency = Latency::default();
        latency.add("command", Duration::from_millis(100), 0);
        latency.add("command", Duration::from_millis(99), 100);
        assert_eq!(latency.latest(), Reply::Array(vec![]));
        latency.add("command", Duration::from_millis(100), 100);
        assert_eq!(ints(latency.latest())[0][1..], [100, 100]);
    }

    #[test]
    fn a_second_keeps_its_worst_and_the_oldest_samples_go() {
        let latency = Latency::default();
        latency.add_at("fsync", 1, 500);
        latency.add_at("fsync", 1, 300);
        assert_eq!(ints(latency.history(b"fsync")), [[1, 500]]);
        for second in 2..=SAMPLES_MAX as u64 + 1 {
            latency.add_at("fsync", second, 5);
        }
        let history = ints(latency.history(b"fsync"));
        assert_eq!((history.len(), &history[0]), (SAMPLES_MAX, &vec![2, 5]));
        assert_eq!(ints(latency.latest()), [[SAMPLES_MAX as i64 + 1, 5, 500]]);
        assert_eq!(latency.history(b"nosuch"), Reply::Array(vec![]));
    }

    #[test]
    fn reset_counts_what_it_forgets() {
        let latency = Latency::default();
        for event in ["command", "fast-command", "fsync"] {
            latency.add_at(event, 1, 5);
        }
        assert_eq!(latency.reset(&["FSYNC".into(), "nosuch".into()]), Reply::Int(1));
        assert_eq!(latency.reset(&[]), Reply::Int(2));
        assert_eq!(latency.reset(&[]), Reply::Int(0));
    }

    #[test]
    fn the_doctor_says_what_was_slow() {
        let latency = Latency::default();
        let text = |reply| if let Reply::Text(text) = reply { text } else { panic!("{reply:?}") };
        assert!(text(latency.doctor(0)).contains("latency-monitor-threshold"));
        assert!(text(latency.doctor(10)).starts_with("No latency spike"));
        latency.add_at("fsync", 100, 10);
        latency.add_at("fsync", 110, 30);
        let report = text(latency.doctor(10));
        assert!(
            report.contains(
                "1. fsync: 2 latency spikes (average 20ms, mean deviation 10ms, period 5.00 sec). \
                 Worst all time event 30ms."
            ),
            "{report}"
        );
        assert!(report.contains("fsync: put the data directory"), "{report}");
    }
}
