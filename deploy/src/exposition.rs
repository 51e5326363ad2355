//! The metrics page: what storage, Raft, RocksDB and the log say at the moment of a
//! scrape, beside what the proxy says of itself ([`proxy::metrics`]).
//!
//! # Invariants
//! - What is exported stands in [`METRICS`], the engine's and the proxy's lists
//!   (`integration`, the Prometheus test).

#[cfg(test)]
mod metrics_page;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cluster::TableId;
use cluster::news::Replica;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use storage::Node;

use crate::process_info::ProcessInfo;
use crate::stores::Stores;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

use MetricKind::{Counter, Gauge, Histogram};

/// Name, kind and meaning of everything that is gathered here. `deploy/METRICS.md` and the
/// page's HELP lines.
const METRICS: &[(&str, MetricKind, &str)] = &[
    (
        "bridle_ready",
        Gauge,
        "1 when Redis clients are served, every partition here is sound, and the leader of some \
         partition is reached.",
    ),
    (
        "bridle_log_writable",
        Gauge,
        "1 when writes are taken; 0 when the disk is full or the log has stopped.",
    ),
    ("bridle_log_fsyncs_total", Counter, "fdatasyncs of the Raft log."),
    ("bridle_log_fsync_seconds", Histogram, "How long each took."),
    (
        "bridle_log_disk_unhealthy",
        Gauge,
        "1 while a disk of this server is slow, full or failed, and a minute beyond: others lead \
         meanwhile.",
    ),
    ("bridle_log_batches_total", Counter, "Batches written to the log; one fsync at most each."),
    ("bridle_log_records_total", Counter, "Records in these batches."),
    ("bridle_log_written_bytes_total", Counter, "Bytes in these batches."),
    (
        "bridle_log_relocated_entries_total",
        Counter,
        "Entries written again so that an old segment could go.",
    ),
    (
        "bridle_batch_requests",
        Histogram,
        "Clients' requests that went into one entry of the Raft log.",
    ),
    ("bridle_batch_bytes", Histogram, "Bytes of one entry."),
    (
        "bridle_expiry_step_seconds",
        Histogram,
        "How long a step of the expiry cycle held the writer of its partition.",
    ),
    (
        "bridle_expired_rows_total",
        Counter,
        "Rows that the expiry cycle removed, in partitions that are led here.",
    ),
    (
        "bridle_expired_fields_total",
        Counter,
        "Fields that the expiry cycle removed, of rows that stay, in partitions that are led here.",
    ),
    (
        "bridle_gauges_age_seconds",
        Gauge,
        "How old the gauges of stores, log and readiness on this page are: above 1, gathering \
         them waits for a disk.",
    ),
    (
        "bridle_clock_ahead_seconds",
        Gauge,
        "By how much the time by which keys expire is ahead of this machine's wall clock, where \
         it is led here and differs most; negative: behind a clock that has jumped.",
    ),
    ("bridle_log_segments", Gauge, "Segments in use."),
    ("bridle_log_disk_bytes", Gauge, "Bytes that the log takes on disk, allocated ones included."),
    ("bridle_raft_groups", Gauge, "Raft groups on this node, by whether it leads them."),
    (
        "bridle_task_panics_total",
        Counter,
        "Background tasks of partitions that panicked, which is a bug; the log has its words.",
    ),
    (
        "bridle_raft_abstaining",
        Gauge,
        "Raft groups on this node that do not vote, as they were not stopped in order and may \
         lack what they had acknowledged.",
    ),
    (
        "bridle_raft_applied_entries",
        Gauge,
        "By table: entries applied since its groups were formed.",
    ),
    ("bridle_raft_log_entries", Gauge, "By table: entries in the log that are not purged yet."),
    (
        "bridle_raft_leader_transfers_total",
        Counter,
        "Leaderships that this server has handed over, by why: asked, stopping, or what ails its \
         disk.",
    ),
    (
        "bridle_raft_term",
        Gauge,
        "By table: the highest term of its groups; a term is at least the millisecond, since \
         1970, of its election.",
    ),
    (
        "bridle_raft_unclean_votes_total",
        Counter,
        "By group: that it votes by what is left of its log, since more members than it can spare \
         were not stopped in order: what was acknowledged shortly before may be lost.",
    ),
    ("bridle_raft_leaders", Gauge, "By table: partitions that are led here."),
    (
        "bridle_table_rows_led",
        Gauge,
        "By table: rows of the partitions that are led here: summed over all processes, each row \
         counts once.",
    ),
    (
        "bridle_raft_follower_lag_entries",
        Gauge,
        "By table: the most entries that a follower of a partition led here is known to lack.",
    ),
    (
        "bridle_cluster_meta_connected",
        Gauge,
        "In a cluster: 1 while a meta that leads is being followed.",
    ),
    (
        "bridle_cluster_routes",
        Gauge,
        "In a cluster: partitions that this process knows, by whether it reaches their leader now.",
    ),
    (
        "bridle_partitions_without_leader",
        Gauge,
        "In a cluster, by table: partitions whose leader this process has not reached for 5 s.",
    ),
    (
        "bridle_tls_seconds_left",
        Gauge,
        "Seconds until the first of the certificates in use ends, of clients, clients_ca, cluster \
         and cluster_ca; below zero: it has.",
    ),
    ("bridle_partitions_not_serving", Gauge, "By table: partitions that do not serve."),
    ("bridle_rocksdb_block_cache_bytes", Gauge, "Block cache of all tables."),
    (
        "bridle_rocksdb_memtable_budget_bytes",
        Gauge,
        "Memtables of all tables, as RocksDB charges them to their budget, and what waits to be \
         written to them.",
    ),
    (
        "bridle_rocksdb_memtable_bytes",
        Gauge,
        "By table: memtables, and what waits to be written to them.",
    ),
    (
        "bridle_rocksdb_file_bytes",
        Gauge,
        "By table: table files, those waiting to be deleted included.",
    ),
    ("bridle_rocksdb_live_file_bytes", Gauge, "By table: table files of the current state."),
    ("bridle_rocksdb_files", Gauge, "By table: how many table files."),
    (
        "bridle_rocksdb_level0_files",
        Gauge,
        "By table: files at level 0, which every read looks into.",
    ),
    (
        "bridle_rocksdb_table_reader_bytes",
        Gauge,
        "By table: memory of table readers outside of the cache.",
    ),
    (
        "bridle_rocksdb_pending_compaction_bytes",
        Gauge,
        "By table: bytes that compaction has yet to rewrite, estimated.",
    ),
    ("bridle_rocksdb_running_flushes", Gauge, "By table."),
    ("bridle_rocksdb_running_compactions", Gauge, "By table."),
    (
        "bridle_rocksdb_write_stopped",
        Gauge,
        "By table: partitions in which RocksDB has stopped writes.",
    ),
    (
        "bridle_rocksdb_delayed_write_rate_bytes",
        Gauge,
        "By table: bytes per second to which writes are slowed; 0: not slowed.",
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
        "By table: dead cells that compaction dropped since the partitions were opened.",
    ),
    ("bridle_rocksdb_filtered_bytes", Gauge, "By table: their bytes."),
];

/// Bounds of latency histograms, seconds.
const SECONDS: [f64; 16] = [
    5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 1e-1,
    5e-1, 2.5,
];
/// Bounds of how many requests share an entry.
const REQUESTS: [f64; 12] = [1., 2., 4., 8., 16., 32., 64., 128., 256., 512., 1024., 4096.];
/// Bounds of an entry's size, bytes: 64 to 16 Mi.
const BYTES: [f64; 10] =
    [64., 256., 1024., 4096., 16384., 65536., 262144., 1048576., 4194304., 16777216.];
/// How long a figure stays on the page that nobody renews, such as those of a table that
/// was dropped.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes the recorder the process's own, before anything is recorded.
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

/// Sets what is not counted as it happens, as of now. May wait for a disk.
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
    // Rows of tables are among it.
    if let Some(proxy) = process.proxy() {
        proxy::metrics::publish(&proxy);
    }
}

/// The page, with what was [gathered](gather) so long ago. Waits for nothing.
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
            .set(f64::from(u8::from(cluster.follow.leader().borrow().is_some())));
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
    counter!("bridle_log_relocated_entries_total").absolute(log.moved());
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
    show("bridle_partitions_not_serving", node.table_figures(table.id).faults.len() as u64);
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

    /// In seconds, and not how long things took.
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
            .chain(proxy::metrics::documented().iter().map(|metric| &metric.name))
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "a name is used twice");
    }
}
