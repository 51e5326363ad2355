//! The proxy's metrics for Prometheus.
//!
//! Nothing is recorded through the `metrics` crate while commands run. [`crate::stats`]
//! counts in its own atomics; for a scrape, [`publish`] passes the sums on and
//! [`histograms`] writes the two histograms in Prometheus's text format, to be appended
//! to the exporter's page. The reason is the exporter's histogram: it keeps every sample
//! (24 bytes each) until it is drained, which is 12 MB per second at half a million
//! commands per second. Bridle's histograms have a fixed number of buckets.
//!
//! # Invariants
//! - Every exported metric is in [`descriptors`], and vice versa (test
//!   `exported_metrics_are_documented`).

use std::collections::HashMap;
use std::fmt::Write as _;

use parking_lot::Mutex;

use crate::stats::Stats;
use crate::{Proxy, info};

/// Types of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only increases, until a restart.
    Counter,
    /// Increases and decreases.
    Gauge,
    /// `_bucket{le}`, `_sum` and `_count`; reset by CONFIG RESETSTAT.
    Histogram,
}

/// Name, type, labels and help of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricDescriptor {
    /// The exported name; for a histogram, without suffixes.
    pub name: &'static str,
    /// Type of the metric.
    pub kind: MetricKind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

const fn metric(
    kind: MetricKind,
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> MetricDescriptor {
    MetricDescriptor { name, kind, labels, help }
}

use MetricKind::{Counter, Gauge, Histogram};

const COMMANDS: &str = "bridle_commands_total";
const REJECTED: &str = "bridle_commands_rejected_total";
const ERRORS: &str = "bridle_command_errors_total";
const SECONDS: &str = "bridle_command_seconds";
const BATCHES: &str = "bridle_batch_ops";

/// Every metric of the proxy. Storage and engine document theirs in the same way.
static DESCRIPTORS: &[MetricDescriptor] = &[
    metric(Counter, COMMANDS, &["cmd"], "Commands executed."),
    metric(
        Counter,
        REJECTED,
        &["cmd"],
        "Commands refused before they ran: wrong arity, syntax, NOAUTH.",
    ),
    metric(
        Counter,
        ERRORS,
        &["cmd", "error"],
        "Error replies, by command and the error's first word.",
    ),
    metric(
        Histogram,
        SECONDS,
        &["cmd"],
        "Time from when a command's pipeline chunk was taken up until its answer was there.",
    ),
    metric(Histogram, BATCHES, &[], "Operations carried by one request to a partition."),
    metric(Gauge, "bridle_connections", &[], "Connected clients."),
    metric(
        Gauge,
        "bridle_blocked_clients",
        &[],
        "Clients that wait in a command or a CLIENT PAUSE.",
    ),
    metric(
        Gauge,
        "bridle_client_buffer_bytes",
        &["direction"],
        "Bytes in the clients' query (in) and output (out) buffers.",
    ),
    metric(Counter, "bridle_connections_received_total", &[], "Connections accepted."),
    metric(
        Counter,
        "bridle_connections_rejected_total",
        &[],
        "Connections turned away: maxclients, protected mode.",
    ),
    metric(
        Counter,
        "bridle_client_disconnects_total",
        &["buffer"],
        "Clients cut because a buffer was over its limit, or (request) an argument or a command \
         too large.",
    ),
    metric(
        Counter,
        "bridle_evicted_clients_total",
        &[],
        "Clients cut because all together held more than maxmemory-clients, and these most.",
    ),
    metric(
        Gauge,
        "bridle_clients_memory_bytes",
        &[],
        "What all clients hold: what they have sent, queued and not read, and answers being made.",
    ),
    metric(Counter, "bridle_auth_failures_total", &[], "Wrong passwords."),
    metric(
        Counter,
        "bridle_keyspace_lookups_total",
        &["result"],
        "Keys that commands looked up: there (hit) or not (miss).",
    ),
    metric(Counter, "bridle_received_bytes_total", &[], "Bytes read from clients."),
    metric(Counter, "bridle_sent_bytes_total", &[], "Bytes written to clients."),
    metric(
        Counter,
        "bridle_socket_reads_total",
        &[],
        "Reads from client sockets; commands divided by it is the pipelining.",
    ),
    metric(Counter, "bridle_socket_writes_total", &[], "Writes to client sockets."),
    metric(
        Gauge,
        "bridle_table_rows",
        &["table"],
        "Rows of the partitions in this process, those of which it is not the leader included.",
    ),
    metric(Gauge, "bridle_table_rows_with_expiry", &["table"], "Rows that have an expiry."),
    metric(Gauge, "bridle_table_disk_bytes", &["table"], "Bytes on disk, estimated."),
    metric(
        Gauge,
        "bridle_memory_bytes",
        &["kind"],
        "Memory by what holds it: allocated, active, resident, and the caches and buffers within \
         allocated.",
    ),
    metric(Gauge, "bridle_uptime_seconds", &[], "Since the process started serving."),
    metric(Gauge, "bridle_info", &["version", "durability"], "Always 1."),
    metric(Gauge, "process_resident_memory_bytes", &[], "Resident set of the process."),
    metric(Gauge, "process_threads", &[], "Threads of the process."),
    metric(Counter, "process_cpu_seconds_total", &[], "CPU time of the process, user and system."),
];

/// Every metric that this crate exports.
pub fn descriptors() -> &'static [MetricDescriptor] {
    DESCRIPTORS
}

/// Describes the metrics to the recorder of the `metrics` crate. Called once, after the
/// recorder is installed.
pub fn describe() {
    for metric in DESCRIPTORS {
        match metric.kind {
            Counter => ::metrics::describe_counter!(metric.name, metric.help),
            Gauge => ::metrics::describe_gauge!(metric.name, metric.help),
            Histogram => (),
        }
    }
}

/// The current value of a metric.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: &'static str,
    labels: Vec<(&'static str, String)>,
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Counter(u64),
    Gauge(f64),
}

/// The values passed on last. The recorder's counters only increase and the proxy's are
/// reset by CONFIG RESETSTAT, so differences are passed on.
#[derive(Debug, Default)]
pub struct LastPublished(Mutex<HashMap<(&'static str, Vec<(&'static str, String)>), u64>>);

/// Passes all counters and gauges to the recorder of the `metrics` crate. Called before
/// each scrape.
pub fn publish(proxy: &Proxy) {
    let mut last = proxy.last_published.0.lock();
    for Sample { name, labels, value } in
        proxy_samples(proxy).into_iter().chain(counted(&proxy.stats))
    {
        match value {
            Value::Gauge(value) => ::metrics::gauge!(name, &labels).set(value),
            Value::Counter(value) => {
                let handle = ::metrics::counter!(name, &labels);
                let before = last.insert((name, labels), value).unwrap_or(0);
                handle.increment(grown(before, value));
            }
        }
    }
}

/// The increase of a counter that may have been reset in between.
fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// The histograms, and metrics with fractions, in Prometheus's text format, to be
/// appended to the exporter's page.
pub fn histograms(proxy: &Proxy) -> String {
    let mut page = String::with_capacity(16 << 10);
    command_seconds(&proxy.stats, &mut page);
    batch_ops(&proxy.stats, &mut page);
    if let Some(status) = info::process_status() {
        head("process_cpu_seconds_total", &mut page);
        line(
            &mut page,
            format_args!("process_cpu_seconds_total {:.2}", status.user_s + status.system_s),
        );
    }
    page
}

fn sample(name: &'static str, labels: &[(&'static str, &str)], value: Value) -> Sample {
    Sample {
        name,
        labels: labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
        value,
    }
}

fn counted(stats: &Stats) -> Vec<Sample> {
    let count = |name, labels: &[(&'static str, &str)], value: u64| {
        sample(name, labels, Value::Counter(value))
    };
    let mut samples = vec![
        count("bridle_connections_received_total", &[], stats.connections_received.get()),
        count("bridle_connections_rejected_total", &[], stats.connections_rejected.get()),
        count(
            "bridle_client_disconnects_total",
            &[("buffer", "output")],
            stats.output_limit_disconnections.get(),
        ),
        count(
            "bridle_client_disconnects_total",
            &[("buffer", "query")],
            stats.query_limit_disconnections.get(),
        ),
        count(
            "bridle_client_disconnects_total",
            &[("buffer", "request")],
            stats.oversized_disconnections.get(),
        ),
        count("bridle_evicted_clients_total", &[], stats.evicted_clients.get()),
        count("bridle_auth_failures_total", &[], stats.auth_failures.get()),
        count("bridle_keyspace_lookups_total", &[("result", "hit")], stats.keyspace_hits.get()),
        count("bridle_keyspace_lookups_total", &[("result", "miss")], stats.keyspace_misses.get()),
        count("bridle_received_bytes_total", &[], stats.bytes_in.get()),
        count("bridle_sent_bytes_total", &[], stats.bytes_out.get()),
        count("bridle_socket_reads_total", &[], stats.reads.get()),
        count("bridle_socket_writes_total", &[], stats.writes.get()),
    ];
    for command in stats.commands().filter(|command| command.calls + command.rejected > 0) {
        let labels = [("cmd", command.name)];
        samples.push(count(COMMANDS, &labels, command.calls));
        samples.push(count(REJECTED, &labels, command.rejected));
    }
    for (command, error, errors) in stats.command_errors() {
        samples.push(count(
            ERRORS,
            &[("cmd", command.unwrap_or("unknown")), ("error", &error)],
            errors,
        ));
    }
    samples
}

fn proxy_samples(proxy: &Proxy) -> Vec<Sample> {
    let gauge = |name, labels: &[(&'static str, &str)], value: u64| {
        sample(name, labels, Value::Gauge(value as f64))
    };
    let clients = proxy.clients.all();
    let (output, query) = clients
        .iter()
        .map(|client| client.buffered_bytes())
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let durability = format!("{:?}", proxy.host.durability()).to_lowercase();
    let mut samples = vec![
        gauge("bridle_connections", &[], clients.len() as u64),
        gauge(
            "bridle_blocked_clients",
            &[],
            clients.iter().filter(|client| client.is_blocked()).count() as u64,
        ),
        gauge("bridle_client_buffer_bytes", &[("direction", "in")], query as u64),
        gauge("bridle_client_buffer_bytes", &[("direction", "out")], output as u64),
        gauge("bridle_clients_memory_bytes", &[], proxy.clients.used_bytes() as u64),
        gauge("bridle_uptime_seconds", &[], proxy.started.elapsed().as_secs()),
        gauge(
            "bridle_info",
            &[("version", &proxy.server_info.version), ("durability", &durability)],
            1,
        ),
    ];
    for table in proxy.host.tables() {
        let labels = [("table", table.name.as_str())];
        samples.push(gauge("bridle_table_rows", &labels, table.rows));
        samples.push(gauge("bridle_table_rows_with_expiry", &labels, table.expires));
        samples.push(gauge("bridle_table_disk_bytes", &labels, table.disk_bytes));
    }
    let memory = proxy.host.memory();
    let whole =
        [("allocated", memory.allocated), ("active", memory.active), ("resident", memory.resident)];
    for &(kind, bytes) in whole.iter().chain(&memory.parts) {
        samples.push(gauge("bridle_memory_bytes", &[("kind", kind)], bytes));
    }
    if let Some(status) = info::process_status() {
        samples.push(gauge("process_resident_memory_bytes", &[], status.resident));
        samples.push(gauge("process_threads", &[], u64::try_from(status.threads).unwrap_or(0)));
    }
    samples
}

/// Bucket bounds, as powers of two of ns: 4 us to 17 s.
const SECONDS_BITS: std::ops::RangeInclusive<u32> = 12..=34;

fn command_seconds(stats: &Stats, page: &mut String) {
    head(SECONDS, page);
    for command in stats.commands().filter(|command| command.calls > 0) {
        let cmd = command.name;
        let bounds =
            SECONDS_BITS.map(|bits| ((1u64 << bits) as f64 / 1e9, command.latency.below(bits)));
        for (bound, count) in bounds {
            line(page, format_args!("{SECONDS}_bucket{{cmd=\"{cmd}\",le=\"{bound}\"}} {count}"));
        }
        let count = command.latency.count();
        line(page, format_args!("{SECONDS}_bucket{{cmd=\"{cmd}\",le=\"+Inf\"}} {count}"));
        line(page, format_args!("{SECONDS}_sum{{cmd=\"{cmd}\"}} {}", command.waited.as_secs_f64()));
        line(page, format_args!("{SECONDS}_count{{cmd=\"{cmd}\"}} {count}"));
    }
}

fn batch_ops(stats: &Stats, page: &mut String) {
    head(BATCHES, page);
    let (bounds, count) = stats.batches();
    for (bound, count) in bounds {
        line(page, format_args!("{BATCHES}_bucket{{le=\"{bound}\"}} {count}"));
    }
    line(page, format_args!("{BATCHES}_bucket{{le=\"+Inf\"}} {count}"));
    line(page, format_args!("{BATCHES}_sum {}", stats.batch_ops.get()));
    line(page, format_args!("{BATCHES}_count {count}"));
}

fn head(name: &str, page: &mut String) {
    if let Some(metric) = DESCRIPTORS.iter().find(|metric| metric.name == name) {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        line(page, format_args!("# HELP {name} {}\n# TYPE {name} {kind}", metric.help));
    }
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(page, "{text}").expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stats::CommandIndex;

    fn used() -> Stats {
        let stats = Stats::new();
        let get = CommandIndex::of(commands::find(b"get", None).expect("GET is in the table"))
            .expect("GET is in the table");
        stats.record(get, 3, Duration::from_micros(10), 6);
        stats.failed(get, "WRONGTYPE x");
        stats.rejected(None, "ERR unknown command");
        stats.batch(4);
        stats
    }

    #[test]
    fn counted_metrics_are_documented_with_their_labels() {
        for sample in counted(&used()) {
            let metric = DESCRIPTORS
                .iter()
                .find(|metric| metric.name == sample.name)
                .unwrap_or_else(|| panic!("{} is not listed", sample.name));
            assert_eq!(metric.kind, Counter, "{}", sample.name);
            assert_eq!(
                sample.labels.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
                metric.labels,
                "{}",
                sample.name
            );
        }
    }

    #[test]
    fn names_follow_prometheus_conventions() {
        for metric in DESCRIPTORS {
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }

    #[test]
    fn histograms_are_cumulative_and_complete() {
        let stats = used();
        let mut page = String::new();
        command_seconds(&stats, &mut page);
        batch_ops(&stats, &mut page);
        for expected in [
            "# TYPE bridle_command_seconds histogram\n",
            "bridle_command_seconds_bucket{cmd=\"get\",le=\"0.000008192\"} 0\n",
            "bridle_command_seconds_bucket{cmd=\"get\",le=\"0.000016384\"} 3\n",
            "bridle_command_seconds_bucket{cmd=\"get\",le=\"+Inf\"} 3\n",
            "bridle_command_seconds_sum{cmd=\"get\"} 0.00003\n",
            "bridle_command_seconds_count{cmd=\"get\"} 3\n",
            "bridle_batch_ops_bucket{le=\"2\"} 0\n",
            "bridle_batch_ops_bucket{le=\"4\"} 1\n",
            "bridle_batch_ops_sum 4\n",
            "bridle_batch_ops_count 1\n",
        ] {
            assert!(page.contains(expected), "{expected} is not in\n{page}");
        }
    }

    #[test]
    fn counters_that_start_again_go_on_growing() {
        assert_eq!((grown(5, 8), grown(8, 8), grown(8, 3)), (3, 0, 3));
    }

    #[test]
    fn exported_metrics_are_documented() {
        let proxy = crate::fakes::proxy(&Default::default());
        let get = CommandIndex::of(commands::find(b"get", None).expect("GET is in the table"))
            .expect("GET is in the table");
        proxy.stats.record(get, 1, Duration::from_micros(10), 1);
        proxy.stats.failed(get, "WRONGTYPE x");
        let samples = proxy_samples(&proxy).into_iter().chain(counted(&proxy.stats));
        let mut exported: Vec<_> = samples
            .map(|sample| {
                let kind = if matches!(sample.value, Value::Counter(_)) { Counter } else { Gauge };
                (
                    sample.name.to_owned(),
                    kind,
                    sample.labels.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
                )
            })
            .collect();
        for line in histograms(&proxy).lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').expect("a name and a kind");
            let kind = if kind == "histogram" { Histogram } else { Counter };
            let descriptors =
                DESCRIPTORS.iter().find(|metric| metric.name == name).expect("it has a help text");
            exported.push((name.to_owned(), kind, descriptors.labels.to_vec()));
        }
        exported.sort_unstable_by(|one, two| one.0.cmp(&two.0));
        exported.dedup();
        let mut descriptors: Vec<_> = DESCRIPTORS
            .iter()
            .map(|metric| (metric.name.to_owned(), metric.kind, metric.labels.to_vec()))
            .collect();
        descriptors.sort_unstable_by(|one, two| one.0.cmp(&two.0));
        assert_eq!(exported, descriptors);
    }
}
