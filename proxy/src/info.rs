//! INFO: state and statistics of the server, under the names that monitoring agents read.
//!
//! Fields are included when they are true of Bridle; fields of Redis without a
//! counterpart are omitted, except for a few constants that agents and clients look for
//! (`loading:0`, `evicted_keys:0`). Fields of storage, Raft and meta come from
//! [`crate::Host::sections`] and are merged into the sections of the same name, or form
//! their own.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use commands::Reply;
use procfs::Current;
use row::PartitionOp;
use row::op::Op;

use crate::host::{Durability, InfoValue};
use crate::memory::{self, percent, ratio};
use crate::{Proxy, REDIS_VERSION, router};

/// Limit of INFO's wait for the counts of all partitions of a cluster.
const KEYSPACE_TIMEOUT: Duration = Duration::from_secs(1);

/// Fields of a section, in order.
#[derive(Debug, Default)]
pub(crate) struct InfoFields(Vec<(String, String)>);

impl InfoFields {
    fn put(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        match self.0.iter_mut().find(|(other, _)| other == name) {
            Some(field) => field.1 = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    fn bytes(&mut self, name: &str, bytes: u64) {
        self.put(name, bytes);
        self.put(&format!("{name}_human"), human(bytes));
    }
}

/// A section: name, heading, shown by default or not, and the function that fills it.
struct SectionSpec {
    name: &'static str,
    heading: &'static str,
    by_default: bool,
    fill: fn(&Proxy, &mut InfoFields),
}

const fn section(
    name: &'static str,
    heading: &'static str,
    fill: fn(&Proxy, &mut InfoFields),
) -> SectionSpec {
    SectionSpec { name, heading, by_default: true, fill }
}

const fn on_demand(
    name: &'static str,
    heading: &'static str,
    fill: fn(&Proxy, &mut InfoFields),
) -> SectionSpec {
    SectionSpec { name, heading, by_default: false, fill }
}

/// In the order of the output.
static SECTIONS: &[SectionSpec] = &[
    section("server", "Server", server),
    section("clients", "Clients", clients),
    section("memory", "Memory", memory),
    section("persistence", "Persistence", persistence),
    section("durability", "Durability", durability),
    section("stats", "Stats", stats),
    section("replication", "Replication", replication),
    section("cpu", "CPU", cpu),
    section("modules", "Modules", |_, _| ()),
    on_demand("commandstats", "Commandstats", command_stats),
    section("errorstats", "Errorstats", error_stats),
    on_demand("latencystats", "Latencystats", latency_stats),
    section("cluster", "Cluster", cluster),
    section("storage", "Storage", storage),
    section("keyspace", "Keyspace", keyspace),
];

/// INFO [section ...]: nothing or `default`; `all` and `everything`; sections by name. As
/// in Redis, unknown names are no error.
pub async fn info(proxy: &Proxy, wanted: &[Bytes]) -> Reply {
    let counted = match is_asked(wanted, "keyspace", true) && is_cluster(proxy) {
        true => Some(rows_everywhere(proxy).await),
        false => None,
    };
    text_of(proxy, wanted, counted)
}

fn is_asked(wanted: &[Bytes], name: &str, by_default: bool) -> bool {
    let asked = |word: &str| wanted.iter().any(|other| other.eq_ignore_ascii_case(word.as_bytes()));
    asked(name)
        || asked("all")
        || asked("everything")
        || (by_default && (wanted.is_empty() || asked("default")))
}

fn is_cluster(proxy: &Proxy) -> bool {
    proxy.server_info.mode == "cluster"
}

/// Rows of each table over all its partitions, counted by their leaders. A table with a
/// partition that does not answer in time is named as such.
async fn rows_everywhere(proxy: &Proxy) -> InfoFields {
    let patience =
        KEYSPACE_TIMEOUT.min(Duration::from_millis(proxy.settings.load().call_deadline_ms));
    let deadline = Instant::now() + patience;
    let (mut fields, mut uncounted) = (InfoFields::default(), Vec::new());
    for table in proxy.catalogue.tables() {
        let name = format!("db{}", table.number);
        let counted = match router::count_rows(proxy, &table, deadline).await {
            Ok(counts) => {
                router::count(proxy, &table, &Op::Partition(PartitionOp::Expiring), deadline)
                    .await
                    .map(|expiring| (counts, expiring))
            }
            Err(error) => Err(error),
        };
        match counted {
            Ok((counts, expiring)) => {
                put_rows(&mut fields, &name, counts.iter().sum(), expiring.iter().sum())
            }
            Err(error) => {
                tracing::debug!(table = table.name, ?error, "INFO keyspace: cannot count a table");
                uncounted.push(name);
            }
        }
    }
    if !uncounted.is_empty() {
        fields.put("bridle_uncounted", uncounted.join(","));
    }
    fields
}

/// The line of a table that has rows, with the fields that agents expect. Mean TTLs and
/// rows with expiring fields are not counted.
fn put_rows(fields: &mut InfoFields, name: &str, rows: u64, expiring: u64) {
    if rows > 0 {
        fields.put(name, format_args!("keys={rows},expires={expiring},avg_ttl=0,subexpiry=0"));
    }
}

/// `counted` is the keyspace section, when this process does not hold all rows.
fn text_of(proxy: &Proxy, wanted: &[Bytes], mut counted: Option<InfoFields>) -> Reply {
    let is_wanted = |name: &str, by_default: bool| is_asked(wanted, name, by_default);
    let node = proxy.host.sections();
    let mut text = String::with_capacity(4096);
    for section in SECTIONS.iter().filter(|section| is_wanted(section.name, section.by_default)) {
        let mut fields = InfoFields::default();
        match counted.take_if(|_| section.name == "keyspace") {
            Some(counted) => fields = counted,
            None => (section.fill)(proxy, &mut fields),
        }
        merge(&mut fields, node.iter().filter(|other| other.name == section.name));
        show(&mut text, section.heading, &fields);
    }
    for other in &node {
        if SECTIONS.iter().all(|section| section.name != other.name) && is_wanted(other.name, true)
        {
            let mut fields = InfoFields::default();
            merge(&mut fields, [other]);
            show(&mut text, &capital(other.name), &fields);
        }
    }
    Reply::Text(text)
}

fn merge<'a>(
    fields: &mut InfoFields,
    sections: impl IntoIterator<Item = &'a crate::host::InfoSection>,
) {
    for (name, figure) in sections.into_iter().flat_map(|section| &section.fields) {
        match figure {
            InfoValue::Int(number) => fields.put(name, number),
            InfoValue::Float(number) => fields.put(name, format_args!("{number:.2}")),
            InfoValue::Text(text) => fields.put(name, one_line(text)),
        }
    }
}

fn show(text: &mut String, heading: &str, fields: &InfoFields) {
    let gap = if text.is_empty() { "" } else { "\r\n" };
    write!(text, "{gap}# {heading}\r\n").expect("writing to a string cannot fail");
    for (name, value) in &fields.0 {
        write!(text, "{name}:{value}\r\n").expect("writing to a string cannot fail");
    }
}

fn server(proxy: &Proxy, fields: &mut InfoFields) {
    let server_info = &proxy.server_info;
    let uptime = proxy.started.elapsed().as_secs();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    fields.put("redis_version", REDIS_VERSION);
    fields.put("redis_git_sha1", "00000000");
    fields.put("redis_git_dirty", 0);
    fields.put("redis_build_id", "0");
    fields.put("bridle_version", &server_info.version);
    // Bridle's clusters do not speak Redis Cluster's protocol: to clients, every proxy is
    // one large Redis.
    fields.put("redis_mode", "standalone");
    fields.put("bridle_mode", server_info.mode);
    fields.put("os", system());
    fields.put("arch_bits", usize::BITS);
    fields.put("multiplexing_api", "epoll");
    fields.put("process_id", std::process::id());
    fields.put("process_supervised", "no");
    fields.put("run_id", &proxy.run_id);
    fields.put("tcp_port", server_info.port);
    fields.put("tls_port", server_info.tls_port);
    fields.put("server_time_usec", now.as_micros());
    fields.put("uptime_in_seconds", uptime);
    fields.put("uptime_in_days", uptime / 86_400);
    fields.put(
        "executable",
        std::env::current_exe()
            .map_or_else(|_| String::new(), |path| one_line(&path.to_string_lossy())),
    );
    fields.put("config_file", one_line(&server_info.config_file));
    fields.put("io_threads_active", 0);
}

fn clients(proxy: &Proxy, fields: &mut InfoFields) {
    let clients = proxy.clients.all();
    let buffered: Vec<_> = clients.iter().map(|client| client.buffered_bytes()).collect();
    fields.put("connected_clients", clients.len());
    fields.put("cluster_connections", 0);
    fields.put("maxclients", proxy.settings.load().clients_max);
    fields.put(
        "client_recent_max_input_buffer",
        buffered.iter().map(|(_, query)| *query).max().unwrap_or(0),
    );
    fields.put(
        "client_recent_max_output_buffer",
        buffered.iter().map(|(output, _)| *output).max().unwrap_or(0),
    );
    fields.put("blocked_clients", clients.iter().filter(|client| client.is_blocked()).count());
    fields.put("tracking_clients", 0);
    fields.put("pubsub_clients", 0);
    if let Some((what, left)) = proxy.clients.paused() {
        let actions = if what == crate::client::Pause::All { "all" } else { "write" };
        fields.put("paused_actions", actions);
        fields.put("paused_timeout_milliseconds", left.as_millis());
    } else {
        fields.put("paused_actions", "none");
    }
}

fn memory(proxy: &Proxy, fields: &mut InfoFields) {
    let memory = memory::MemoryStats::of(proxy);
    let dataset = memory.dataset();
    fields.bytes("used_memory", memory.used);
    fields.bytes("used_memory_rss", memory.resident);
    fields.bytes("used_memory_peak", memory.peak);
    fields.put("used_memory_peak_perc", format_args!("{:.2}%", percent(memory.used, memory.peak)));
    fields.put("used_memory_overhead", memory.used.saturating_sub(dataset));
    fields.put("used_memory_dataset", dataset);
    fields.put("used_memory_dataset_perc", format_args!("{:.2}%", percent(dataset, memory.used)));
    fields.put("allocator_allocated", memory.process.allocated);
    fields.put("allocator_active", memory.process.active);
    fields.put("allocator_resident", memory.process.resident);
    fields.bytes("total_system_memory", memory.system);
    // Rows are on disk without a limit; their caches have limits of their own.
    fields.bytes("maxmemory", 0);
    fields.put("maxmemory_policy", "noeviction");
    fields.bytes("bridle_memory", memory.process.budget);
    for (name, bytes) in &memory.process.shares {
        fields.put(&format!("bridle_memory_{name}"), bytes);
    }
    fields.put(
        "allocator_frag_ratio",
        format_args!("{:.2}", ratio(memory.process.active, memory.process.allocated)),
    );
    fields.put(
        "allocator_frag_bytes",
        memory.process.active.saturating_sub(memory.process.allocated),
    );
    fields.put(
        "allocator_rss_ratio",
        format_args!("{:.2}", ratio(memory.process.resident, memory.process.active)),
    );
    fields
        .put("allocator_rss_bytes", memory.process.resident.saturating_sub(memory.process.active));
    fields
        .put("mem_fragmentation_ratio", format_args!("{:.2}", ratio(memory.resident, memory.used)));
    fields.put("mem_fragmentation_bytes", memory.resident as i64 - memory.used as i64);
    fields.put("mem_clients_normal", memory.clients);
    fields.put(
        "mem_allocator",
        if memory.process.allocator.is_empty() { "unknown" } else { memory.process.allocator },
    );
    for (name, bytes) in &memory.process.parts {
        fields.put(&format!("mem_{name}"), bytes);
    }
}

/// The Raft log corresponds to Redis's append-only file: it always exists, and
/// `durability` says when it is fsynced.
fn persistence(_: &Proxy, fields: &mut InfoFields) {
    fields.put("loading", 0);
    fields.put("async_loading", 0);
    fields.put("rdb_bgsave_in_progress", 0);
    fields.put("aof_enabled", 1);
    fields.put("aof_rewrite_in_progress", 0);
    fields.put("aof_rewrite_scheduled", 0);
    fields.put("aof_last_bgrewrite_status", "ok");
    fields.put("aof_last_write_status", "ok");
}

fn durability(proxy: &Proxy, fields: &mut InfoFields) {
    let (word, meaning) = match proxy.host.durability() {
        Durability::Always => ("always", "fsynced before the reply"),
        Durability::Interval => ("interval", "fsynced every 100 ms"),
        Durability::Os => ("os", "written by the operating system when it sees fit"),
    };
    fields.put("durability", word);
    fields.put("acknowledged_writes_are", meaning);
}

fn stats(proxy: &Proxy, fields: &mut InfoFields) {
    let stats = &proxy.stats;
    let [ops, bytes_in, bytes_out] = stats.per_second();
    let (_, batches) = stats.batches();
    fields.put("total_connections_received", stats.connections_received.get());
    fields.put("total_commands_processed", stats.commands_processed());
    fields.put("instantaneous_ops_per_sec", ops.round() as u64);
    fields.put("total_net_input_bytes", stats.bytes_in.get());
    fields.put("total_net_output_bytes", stats.bytes_out.get());
    fields.put("instantaneous_input_kbps", format_args!("{:.2}", bytes_in / 1024.0));
    fields.put("instantaneous_output_kbps", format_args!("{:.2}", bytes_out / 1024.0));
    fields.put("rejected_connections", stats.connections_rejected.get());
    fields.put("evicted_keys", 0);
    fields.put("keyspace_hits", stats.keyspace_hits.get());
    fields.put("keyspace_misses", stats.keyspace_misses.get());
    fields.put("evicted_clients", stats.evicted_clients.get());
    fields.put("pubsub_channels", 0);
    fields.put("pubsub_patterns", 0);
    fields.put("latest_fork_usec", 0);
    fields.put("total_forks", 0);
    fields.put("acl_access_denied_auth", stats.auth_failures.get());
    fields.put("total_error_replies", stats.error_replies.get());
    fields.put("total_reads_processed", stats.reads.get());
    fields.put("total_writes_processed", stats.writes.get());
    fields.put("client_query_buffer_limit_disconnections", stats.query_limit_disconnections.get());
    fields
        .put("client_output_buffer_limit_disconnections", stats.output_limit_disconnections.get());
    fields.put("client_oversized_request_disconnections", stats.oversized_disconnections.get());
    fields.put("total_partition_requests", batches);
    fields.put("total_partition_ops", stats.batch_ops.get());
}

/// Every proxy accepts writes. In a cluster each partition has its own replicas, shown by
/// `bridle admin partitions`.
fn replication(proxy: &Proxy, fields: &mut InfoFields) {
    fields.put("role", "master");
    fields.put("connected_slaves", 0);
    fields.put("master_failover_state", "no-failover");
    fields.put("master_replid", &proxy.run_id);
}

fn cpu(_: &Proxy, fields: &mut InfoFields) {
    if let Some(status) = process_status() {
        fields.put("used_cpu_sys", format_args!("{:.6}", status.system_s));
        fields.put("used_cpu_user", format_args!("{:.6}", status.user_s));
        fields.put("used_cpu_sys_children", "0.000000");
        fields.put("used_cpu_user_children", "0.000000");
    }
}

fn command_stats(proxy: &Proxy, fields: &mut InfoFields) {
    for command in proxy.stats.commands().filter(|command| command.calls + command.rejected > 0) {
        let micros = command.total.as_micros();
        let each = command.total.as_secs_f64() * 1e6 / command.calls.max(1) as f64;
        let (calls, rejected, failed) = (command.calls, command.rejected, command.failed);
        fields.put(
            &format!("cmdstat_{}", command.name),
            format_args!(
                "calls={calls},usec={micros},usec_per_call={each:.2},rejected_calls={rejected},\
                 failed_calls={failed}"
            ),
        );
    }
}

fn error_stats(proxy: &Proxy, fields: &mut InfoFields) {
    for (prefix, count) in proxy.stats.errors() {
        fields.put(&format!("errorstat_{prefix}"), format_args!("count={count}"));
    }
}

fn latency_stats(proxy: &Proxy, fields: &mut InfoFields) {
    for command in proxy.stats.commands().filter(|command| command.calls > 0) {
        let [p50, p99, p999] = [50.0, 99.0, 99.9]
            .map(|percentile| command.latency.percentile(percentile) as f64 / 1000.0);
        fields.put(
            &format!("latency_percentiles_usec_{}", command.name),
            format_args!("p50={p50:.3},p99={p99:.3},p99.9={p999:.3}"),
        );
    }
}

/// `cluster_enabled:1` would make clients speak Redis Cluster's protocol.
fn cluster(_: &Proxy, fields: &mut InfoFields) {
    fields.put("cluster_enabled", 0);
}

/// Storage in this process: in a cluster, its replicas.
fn storage(proxy: &Proxy, fields: &mut InfoFields) {
    let tables = proxy.host.tables();
    fields.put("tables", tables.len());
    fields.put("disk_bytes", tables.iter().map(|table| table.disk_bytes).sum::<u64>());
}

/// `db0:keys=..` as agents read it; named tables by their numbers as well. In a cluster,
/// the rows of all partitions ([`rows_everywhere`]); for what is not counted, see
/// [`put_rows`].
fn keyspace(proxy: &Proxy, fields: &mut InfoFields) {
    for table in proxy.host.tables().iter().filter(|table| table.rows > 0) {
        put_rows(fields, &format!("db{}", table.number), table.rows, table.expires);
    }
}

/// The operating system's view of this process.
pub(crate) struct ProcessStatus {
    /// Resident set, bytes.
    pub(crate) resident: u64,
    pub(crate) user_s: f64,
    pub(crate) system_s: f64,
    pub(crate) threads: i64,
}

/// `None` without procfs.
pub(crate) fn process_status() -> Option<ProcessStatus> {
    let stat = procfs::process::Process::myself().ok()?.stat().ok()?;
    let ticks = procfs::ticks_per_second() as f64;
    Some(ProcessStatus {
        resident: stat.rss * procfs::page_size(),
        user_s: stat.utime as f64 / ticks,
        system_s: stat.stime as f64 / ticks,
        threads: stat.num_threads,
    })
}

/// The machine's memory, bytes; 0 if unknown.
pub(crate) fn system_memory() -> u64 {
    procfs::Meminfo::current().map_or(0, |memory| memory.mem_total)
}

/// `Linux 6.1.0 x86_64`
fn system() -> String {
    let kernel = |file: &str| {
        std::fs::read_to_string(format!("/proc/sys/kernel/{file}")).unwrap_or_default()
    };
    let (name, release) = (kernel("ostype"), kernel("osrelease"));
    one_line(&format!("{} {} {}", name.trim(), release.trim(), std::env::consts::ARCH))
}

/// Bytes as Redis shows them to people: `1.50M`.
pub(crate) fn human(bytes: u64) -> String {
    let units = ["K", "M", "G", "T", "P", "E"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let power = (bytes.ilog2() / 10).min(6);
    format!("{:.2}{}", bytes as f64 / (1u64 << (10 * power)) as f64, units[power as usize - 1])
}

fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

fn capital(name: &str) -> String {
    let (first, rest) = name.split_at_checked(1).unwrap_or(("", name));
    first.to_ascii_uppercase() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people_as_redis_shows_them() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.00K"),
            (916_336, "894.86K"),
            (25_276_502_016, "23.54G"),
            (u64::MAX, "16.00E"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn host_overrides_and_adds_fields() {
        let mut shown = InfoFields::default();
        shown.put("aof_last_write_status", "ok");
        let fields = vec![
            ("aof_last_write_status".into(), InfoValue::Text("err\r\nx".into())),
            ("lag".into(), InfoValue::Float(1.5)),
        ];
        merge(&mut shown, [&crate::host::InfoSection { name: "persistence", fields }]);
        let mut text = String::new();
        show(&mut text, "Persistence", &shown);
        assert_eq!(text, "# Persistence\r\naof_last_write_status:err  x\r\nlag:1.50\r\n");
    }

    #[test]
    fn the_operating_system_tells_of_this_process() {
        let status = process_status().expect("procfs is there on Linux");
        assert!(status.resident > 1 << 20 && status.threads >= 1);
        assert!(system_memory() > status.resident);
        assert!(system().starts_with("Linux "));
    }

    fn shown(sections: &[&str]) -> String {
        let proxy = crate::fakes::proxy(&Default::default());
        let wanted: Vec<_> =
            sections.iter().map(|section| Bytes::copy_from_slice(section.as_bytes())).collect();
        let Reply::Text(text) = text_of(&proxy, &wanted, None) else { panic!("a text") };
        text
    }

    fn headings(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("# ")).collect()
    }

    #[test]
    fn sections_are_shown_as_asked() {
        assert_eq!(headings(&shown(&["SERVER", "keyspace", "nosuch"])), ["Server", "Keyspace"]);
        assert_eq!(headings(&shown(&["raft"])), ["Raft"]);
        assert_eq!(shown(&["nosuch"]), "");
        let (plain, all) = (shown(&[]), shown(&["everything"]));
        assert_eq!(headings(&plain), headings(&shown(&["default"])));
        assert!(
            !headings(&plain).contains(&"Commandstats") && headings(&all).contains(&"Commandstats")
        );
        assert!(headings(&plain).contains(&"Raft"), "{plain}");
        assert_eq!(
            headings(&shown(&["default", "commandstats"])).len(),
            headings(&plain).len() + 1
        );
    }

    #[test]
    fn every_line_is_a_heading_or_a_field() {
        for line in shown(&["all"]).split("\r\n").filter(|line| !line.is_empty()) {
            assert!(
                line.starts_with("# ")
                    || line.split_once(':').is_some_and(|(name, _)| !name.contains(' ')),
                "{line}"
            );
        }
    }

    #[test]
    fn info_has_the_fields_that_monitoring_agents_read() {
        let text = shown(&[]);
        let has = |line: &str| text.contains(&format!("\r\n{line}\r\n"));
        for line in [
            "redis_version:7.4.0",
            "bridle_version:1.2.3",
            "redis_mode:standalone",
            "bridle_mode:standalone",
            "tcp_port:6379",
            "maxclients:10000",
            "used_memory:100",
            "used_memory_human:100B",
            "maxmemory:0",
            "bridle_memory:1000",
            "bridle_memory_human:1000B",
            "bridle_memory_clients:125",
            "loading:0",
            "aof_enabled:1",
            "aof_last_write_status:err",
            "durability:always",
            "role:master",
            "cluster_enabled:0",
            "db0:keys=3,expires=1,avg_ttl=0,subexpiry=0",
            "db17:keys=5,expires=1,avg_ttl=0,subexpiry=0",
        ] {
            assert!(has(line), "{line} is not in\n{text}");
        }
        for name in [
            "uptime_in_seconds",
            "used_memory_rss",
            "used_cpu_sys",
            "instantaneous_ops_per_sec",
            "connected_clients",
            "run_id",
        ] {
            assert!(text.contains(&format!("\r\n{name}:")), "{name} is not in\n{text}");
        }
        assert!(!text.contains("db1:"));
    }

    #[test]
    fn commands_are_shown_by_what_they_took() {
        let proxy = crate::fakes::proxy(&Default::default());
        let command = commands::find(b"client", Some(b"id"))
            .and_then(crate::stats::CommandIndex::of)
            .expect("it is in the table");
        proxy.stats.record(command, 2, std::time::Duration::from_micros(3), 1);
        proxy.stats.failed(command, "ERR x");
        let Reply::Text(text) = text_of(&proxy, &["all".into()], None) else { panic!("a text") };
        assert!(
            text.contains(
                "\r\ncmdstat_client|id:calls=2,usec=6,usec_per_call=3.00,rejected_calls=0,\
                 failed_calls=1\r\n"
            ),
            "{text}"
        );
        assert!(text.contains("\r\nlatency_percentiles_usec_client|id:p50=3."), "{text}");
        assert!(text.contains("\r\nerrorstat_ERR:count=1\r\n"), "{text}");
    }
}
