//! The metrics page: metrics of storage, Raft, RocksDB and the log, read at the time of a
//! scrape, and those of the proxy ([`proxy::metrics`]).
//!
//! # Invariants
//! - Every exported metric is in [`METRICS`] or the proxy's list, with its help text
//!   (`integration/tests/prometheus.rs`, `every_metric_is_described_and_exported`).

#[cfg(test)]
mod metrics_page;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cluster::TableId;
use cluster::meta_protocol::Replica;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use storage::Node;

use crate::process_info::ProcessInfo;
use crate::stores::Stores;

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

use MetricKind::{Counter, Gauge, Histogram};

/// Name, kind and meaning of everything that is gathered here. `deploy/METRICS.md` and
/// the page's HELP lines.
const METRICS: &[(&str, MetricKind, &str)] = &[
    (
        "bridle_ready",
        Gauge,
        "1 when the process is ready: it serves clients, all its replicas are healthy, and the \
         leader of some partition is reached.",
    ),
    (
        "bridle_log_writable",
        Gauge,
        "1 when writes are accepted; 0 when the disk is full or the log has stopped.",
    ),
    ("bridle_log_fsyncs_total", Counter, "fdatasyncs of the Raft log."),
    ("bridle_log_fsync_seconds", Histogram, "Duration of each fdatasync."),
    (
        "bridle_log_disk_unhealthy",
        Gauge,
        "1 while a disk of this server is slow, full or failed, and for a minute after: other \
         servers lead meanwhile.",
    ),
    ("bridle_log_batches_total", Counter, "Batches written to the log; at most one fsync each."),
    ("bridle_log_records_total", Counter, "Records in these batches."),
    ("bridle_log_written_bytes_total", Counter, "Bytes in these batches."),
    (
        "bridle_log_relocated_entries_total",
        Counter,
        "Entries rewritten so that an old segment could be deleted.",
    ),
    ("bridle_batch_requests", Histogram, "Client requests per entry of the Raft log."),
    ("bridle_batch_bytes", Histogram, "Bytes per entry of the Raft log."),
    (
        "bridle_expiry_step_seconds",
        Histogram,
        "Time for which a step of the expiry cycle blocked the writes of its partition.",
    ),
    (
        "bridle_expired_rows_total",
        Counter,
        "Rows removed by the expiry cycle, in partitions led by this process.",
    ),
    (
        "bridle_expired_fields_total",
        Counter,
        "Fields removed by the expiry cycle from rows that stay, in partitions led by this \
         process.",
    ),
    (
        "bridle_gauges_age_seconds",
        Gauge,
        "Age of the gauges of stores, log and readiness on this page; above 1, gathering them \
         waits for a disk.",
    ),
    (
        "bridle_clock_ahead_seconds",
        Gauge,
        "Seconds by which the expiry clock is ahead of this machine's wall clock, in the \
         partition led by this process where they differ most; negative: behind a clock that has \
         jumped.",
    ),
    ("bridle_log_segments", Gauge, "Segment files in use."),
    ("bridle_log_disk_bytes", Gauge, "Disk space of the log, including preallocated segments."),
    ("bridle_raft_groups", Gauge, "Raft groups on this process, by leadership."),
    (
        "bridle_task_panics_total",
        Counter,
        "Panics in background tasks of partitions, which are bugs; the log has the messages.",
    ),
    (
        "bridle_raft_abstaining",
        Gauge,
        "Raft groups on this process that do not vote, since they were not stopped cleanly and \
         may lack acknowledged entries.",
    ),
    (
        "bridle_raft_applied_entries",
        Gauge,
        "By table: entries applied since its groups were created.",
    ),
    ("bridle_raft_log_entries", Gauge, "By table: entries in the log that are not purged yet."),
    (
        "bridle_raft_leader_transfers_total",
        Counter,
        "Leaderships transferred to other servers, by reason: asked, stopping, or the state of \
         the disk.",
    ),
    (
        "bridle_raft_term",
        Gauge,
        "By table: the highest term of its groups; a term is at least the time of its election \
         in milliseconds since 1970.",
    ),
    (
        "bridle_raft_unclean_votes_total",
        Counter,
        "By group: times that the group's members voted by incomplete logs, since too many of \
         them were not stopped cleanly: recently acknowledged writes may be lost.",
    ),
    ("bridle_raft_leaders", Gauge, "By table: partitions led by this process."),
    (
        "bridle_table_rows_led",
        Gauge,
        "By table: rows of the partitions led by this process; in the sum over all processes \
         each row counts once.",
    ),
    (
        "bridle_raft_follower_lag_entries",
        Gauge,
        "By table: maximum lag in entries of a follower of a partition led by this process.",
    ),
    ("bridle_cluster_meta_connected", Gauge, "In a cluster: 1 while connected to the meta leader."),
    (
        "bridle_cluster_routes",
        Gauge,
        "In a cluster: known partitions, by whether their leader is reached.",
    ),
    (
        "bridle_partitions_without_leader",
        Gauge,
        "In a cluster, by table: partitions whose leader has not been reached for 5 s.",
    ),
    (
        "bridle_tls_seconds_left",
        Gauge,
        "Seconds until the first certificate in use expires, of clients, clients_ca, cluster and \
         cluster_ca; negative after that.",
    ),
    (
        "bridle_partitions_not_serving",
        Gauge,
        "By table: partitions that do not serve because of a fault.",
    ),
    ("bridle_rocksdb_block_cache_bytes", Gauge, "Block cache, all tables."),
    (
        "bridle_rocksdb_memtable_budget_bytes",
        Gauge,
        "Memtables as charged to RocksDB's write buffer manager, and the write buffer in front \
         of them, all tables.",
    ),
    (
        "bridle_rocksdb_memtable_bytes",
        Gauge,
        "By table: memtables, and the write buffer in front of them.",
    ),
    ("bridle_rocksdb_file_bytes", Gauge, "By table: table files, including those to be deleted."),
    ("bridle_rocksdb_live_file_bytes", Gauge, "By table: live table files."),
    ("bridle_rocksdb_files", Gauge, "By table: number of table files."),
    (
        "bridle_rocksdb_level0_files",
        Gauge,
        "By table: files at level 0, which every read must search.",
    ),
    (
        "bridle_rocksdb_table_reader_bytes",
        Gauge,
        "By table: memory of table readers outside of the block cache.",
    ),
    (
        "bridle_rocksdb_pending_compaction_bytes",
        Gauge,
        "By table: estimated bytes that compactions have yet to rewrite.",
    ),
    ("bridle_rocksdb_running_flushes", Gauge, "By table: running background jobs."),
    ("bridle_rocksdb_running_compactions", Gauge, "By table: running background jobs."),
    (
        "bridle_rocksdb_write_stopped",
        Gauge,
        "By table: partitions in which RocksDB has stopped writes.",
    ),
    (
        "bridle_rocksdb_delayed_write_rate_bytes",
        Gauge,
        "By table: rate to which RocksDB delays writes, bytes per second; 0: no delay.",
    ),
    ("bridle_rocksdb_snapshots", Gauge, "By table: snapshots held by readers."),
    (
        "bridle_rocksdb_background_errors",
        Gauge,
        "By table: failed flushes and compactions since the partitions were opened.",
    ),
    (
        "bridle_rocksdb_filtered_cells",
        Gauge,
        "By table: dead cells dropped by compaction filters since the partitions were opened.",
    ),
    (
        "bridle_rocksdb_filtered_bytes",
        Gauge,
        "By table: bytes of the cells dropped by compaction filters.",
    ),
];

/// Buckets of latency histograms, seconds.
const SECONDS: [f64; 16] = [
    5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 1e-1,
    5e-1, 2.5,
];
/// Buckets of requests per entry.
const REQUESTS: [f64; 12] = [1., 2., 4., 8., 16., 32., 64., 128., 256., 512., 1024., 4096.];
/// Buckets of an entry's size, bytes: 64 to 16 Mi.
const BYTES: [f64; 10] =
    [64., 256., 1024., 4096., 16384., 65536., 262144., 1048576., 4194304., 16777216.];
/// A gauge that is not updated for this long leaves the page: those of a dropped table.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Installs the process's recorder, before anything is recorded.
pub(crate) fn install() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Full("bridle_batch_requests".to_owned()), &REQUESTS)?
        .set_buckets_for_metric(Matcher::Full("bridle_batch_bytes".to_owned()), &BYTES)?
        .idle_timeout(MetricKindMask::GAUGE, Some(IDLE_TIMEOUT))
        .install_recorder()?;
    for (name, kind, help) in METRICS {
        match kind {
            Counter => describe_counter!(*name, *help),
            Gauge => describe_gauge!(*name, *help),
            Histogram => describe_histogram!(*name, *help),
        }
    }
    proxy::metrics::describe();
    Ok(handle)
}

/// Updates the metrics that are not counted as events happen. May wait for a disk.
pub(crate) fn gather(process: &ProcessInfo) {
    process_metrics(process);
    if let Some(node) = &process.node {
        let (rows, fields) = node.expired();
        counter!("bridle_expired_rows_total").absolute(rows);
        counter!("bridle_expired_fields_total").absolute(fields);
        gauge!("bridle_clock_ahead_seconds").set(node.clock_ahead_ms() as f64 / 1000.0);
        let reports = node.report();
        for table in process.catalogue.tables() {
            table_metrics(node, &reports, &table);
        }
    }
    // Includes the rows of tables.
    if let Some(proxy) = process.proxy() {
        proxy::metrics::publish(&proxy);
    }
}

/// The page, with metrics [gathered](gather) this long ago. Waits for nothing.
pub(crate) fn page(
    process: &ProcessInfo,
    gathered: Option<Duration>,
    handle: &PrometheusHandle,
) -> String {
    if let Some(age) = gathered {
        gauge!("bridle_gauges_age_seconds").set(age.as_secs_f64());
    }
    let mut page = handle.render();
    if let Some(proxy) = process.proxy() {
        page.push_str(&proxy::metrics::histograms(&proxy));
    }
    page
}

fn process_metrics(process: &ProcessInfo) {
    let ready = process.unready().is_empty();
    gauge!("bridle_ready").set(f64::from(u8::from(ready)));
    for (which, seconds) in process.certificates.seconds_left() {
        gauge!("bridle_tls_seconds_left", "certificates" => which).set(seconds as f64);
    }
    if let Some(stores) = &process.stores {
        store_metrics(process, stores);
    }
    if let Some(cluster) = &process.cluster {
        let (routes, led) = cluster.reachability.count();
        gauge!("bridle_cluster_meta_connected")
            .set(f64::from(u8::from(cluster.meta_client.leader().borrow().is_some())));
        gauge!("bridle_cluster_routes", "leader" => "known").set(led as f64);
        gauge!("bridle_cluster_routes", "leader" => "unknown").set((routes - led) as f64);
        let mut without = BTreeMap::<TableId, usize>::new();
        for partition in cluster.reachability.unreached(Instant::now()) {
            *without.entry(partition.table).or_default() += 1;
        }
        for table in process.catalogue.tables() {
            let count = without.get(&table.id).copied().unwrap_or(0);
            gauge!("bridle_partitions_without_leader", "table" => table.name.clone())
                .set(count as f64);
        }
    }
}

fn store_metrics(process: &ProcessInfo, stores: &Stores) {
    let log = stores.log.stats();
    gauge!("bridle_log_writable").set(f64::from(u8::from(process.writable().is_ok())));
    counter!("bridle_log_fsyncs_total").absolute(log.fsyncs());
    gauge!("bridle_log_disk_unhealthy")
        .set(f64::from(u8::from(stores.log.recent_disk_problem().is_some())));
    counter!("bridle_log_batches_total").absolute(log.batches());
    counter!("bridle_log_records_total").absolute(log.records());
    counter!("bridle_log_written_bytes_total").absolute(log.bytes());
    counter!("bridle_log_relocated_entries_total").absolute(log.relocated());
    gauge!("bridle_log_segments").set(log.segments() as f64);
    gauge!("bridle_log_disk_bytes").set(log.disk_bytes() as f64);
    gauge!("bridle_rocksdb_block_cache_bytes").set(stores.shared.cache_used() as f64);
    gauge!("bridle_rocksdb_memtable_budget_bytes").set(stores.shared.memtable_bytes_used() as f64);
    let groups = process.groups();
    let led = groups.iter().filter(|group| group.is_leader).count();
    gauge!("bridle_raft_groups", "leader" => "yes").set(led as f64);
    gauge!("bridle_raft_groups", "leader" => "no").set((groups.len() - led) as f64);
    gauge!("bridle_raft_abstaining")
        .set(groups.iter().filter(|group| group.abstains).count() as f64);
}

fn table_metrics(node: &Node, reports: &[Replica], table: &cluster::Table) {
    let replicas: Vec<_> = node
        .replicas()
        .into_iter()
        .filter(|replica| replica.partition().table == table.id)
        .collect();
    let groups: Vec<_> = replicas.iter().map(|replica| replica.figures()).collect();
    let stores: Vec<_> =
        replicas.iter().filter_map(|replica| replica.store().stats().ok()).collect();
    let show = |name: &'static str, value: u64| {
        gauge!(name, "table" => table.name.clone()).set(value as f64)
    };
    show("bridle_raft_applied_entries", groups.iter().map(|group| group.applied).sum());
    show(
        "bridle_raft_log_entries",
        groups.iter().map(|group| group.last_log.saturating_sub(group.purged)).sum(),
    );
    show("bridle_raft_term", groups.iter().map(|group| group.term).max().unwrap_or(0));
    show("bridle_raft_leaders", groups.iter().filter(|group| group.is_leader).count() as u64);
    let led =
        || reports.iter().filter(|replica| replica.partition.table == table.id && replica.leads);
    show("bridle_table_rows_led", led().map(|replica| replica.rows).sum());
    let lag = |replica: &Replica| {
        replica.matched.iter().map(|(_, matched)| replica.last_log.saturating_sub(*matched)).max()
    };
    show("bridle_raft_follower_lag_entries", led().filter_map(lag).max().unwrap_or(0));
    show("bridle_partitions_not_serving", node.table_stats(table.id).faults.len() as u64);
    let store_metrics: [(&'static str, fn(&engine::store::StoreStats) -> u64); 15] = [
        ("bridle_rocksdb_memtable_bytes", |store| store.memtable_bytes),
        ("bridle_rocksdb_file_bytes", |store| store.file_bytes),
        ("bridle_rocksdb_live_file_bytes", |store| store.live_file_bytes),
        ("bridle_rocksdb_files", |store| store.files),
        ("bridle_rocksdb_level0_files", |store| store.level0_files),
        ("bridle_rocksdb_table_reader_bytes", |store| store.table_reader_bytes),
        ("bridle_rocksdb_pending_compaction_bytes", |store| store.pending_compaction_bytes),
        ("bridle_rocksdb_running_flushes", |store| store.running_flushes),
        ("bridle_rocksdb_running_compactions", |store| store.running_compactions),
        ("bridle_rocksdb_write_stopped", |store| store.write_stopped),
        ("bridle_rocksdb_delayed_write_rate_bytes", |store| store.delayed_write_rate),
        ("bridle_rocksdb_snapshots", |store| store.snapshots),
        ("bridle_rocksdb_background_errors", |store| store.background_errors),
        ("bridle_rocksdb_filtered_cells", |store| store.filtered_cells),
        ("bridle_rocksdb_filtered_bytes", |store| store.filtered_bytes),
    ];
    for (name, of) in store_metrics {
        show(name, stores.iter().map(of).sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gauges in seconds, which are no durations of events.
    const GAUGES_OF_TIME: [&str; 2] = ["bridle_clock_ahead_seconds", "bridle_gauges_age_seconds"];

    #[test]
    fn every_name_says_its_kind() {
        for (name, kind, _) in METRICS {
            assert!(name.starts_with("bridle_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Counter, "{name}");
            let is_measured = name.ends_with("_seconds") && !GAUGES_OF_TIME.contains(name);
            assert_eq!(
                is_measured || name.starts_with("bridle_batch_"),
                *kind == Histogram,
                "{name}"
            );
        }
        let mut names: Vec<_> = METRICS
            .iter()
            .map(|(name, ..)| name)
            .chain(proxy::metrics::descriptors().iter().map(|metric| &metric.name))
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "a name is used twice");
    }
}
