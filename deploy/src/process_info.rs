//! The process as seen by the proxy (INFO, CONFIG) and the admin API (status, faults).

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use cluster::meta_protocol::ServerStats;
use cluster::row_client::SyncRequest;
use cluster::{Boxed, CallError, Catalogue, PartitionId, Table};
use engine::raft::GroupStats;
use engine::store::StoreHealth;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use meta::Meta;
use meta::admin::{CompactionStatus, NodeStatus, TableUsage};
use proxy::Proxy;
use proxy::config::{FileChange, RewriteError};
use proxy::host::{
    CertificateError, Durability, InfoSection, InfoValue, ProcessMemory, TableStats,
};
use proxy::tls::TlsFiles;
use storage::Node;
use subtle::ConstantTimeEq;

use crate::certificates::Certificates;
use crate::compaction::Compactions;
use crate::config::{self, Config};
use crate::data_dir::DataDir;
use crate::member::ClusterView;
use crate::server::Mode;
use crate::stores::Stores;

/// Minimum difference of clocks that is reported, ms.
const CLOCK_OFFSET_MS: u64 = 1_000;

/// The state of this process, shared by its front ends.
pub(crate) struct ProcessInfo {
    pub(crate) mode: Mode,
    pub(crate) config: Config,
    /// The configuration file, if one was given.
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) data_dir: Arc<DataDir>,
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) meta: Option<Arc<Meta>>,
    pub(crate) stores: Option<Stores>,
    pub(crate) catalogue: Arc<dyn Catalogue>,
    /// The cluster, if the process is part of one.
    pub(crate) cluster: Option<Arc<ClusterView>>,
    pub(crate) started: Instant,
    /// Addresses for Redis clients.
    pub(crate) addresses: Vec<String>,
    /// Compactions of a standalone server; in a cluster, meta starts them.
    pub(crate) compactions: Compactions,
    pub(crate) certificates: Arc<Certificates>,
    /// Set once: the proxy is created after this struct, and refers to it.
    pub(crate) proxy: OnceLock<Weak<Proxy>>,
    pub(crate) serving: AtomicBool,
}

impl ProcessInfo {
    /// The proxy, while it exists.
    pub(crate) fn proxy(&self) -> Option<Arc<Proxy>> {
        self.proxy.get().and_then(Weak::upgrade)
    }

    /// The process serves its roles.
    pub(crate) fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    /// Every serving table with its statistics on this process.
    pub(crate) fn local_tables(&self) -> Vec<(Arc<Table>, storage::TableStats)> {
        let Some(node) = &self.node else { return Vec::new() };
        self.catalogue
            .tables()
            .into_iter()
            .map(|table| (table.clone(), node.table_stats(table.id)))
            .collect()
    }

    /// All Raft groups of this process.
    pub(crate) fn groups(&self) -> Vec<GroupStats> {
        let partitions =
            self.node.iter().flat_map(|node| node.replicas()).map(|replica| replica.figures());
        partitions.chain(self.meta.iter().map(|meta| meta.figures())).collect()
    }

    /// Checks that writes are possible; the error is the reason.
    pub(crate) fn writable(&self) -> Result<(), String> {
        let Some(stores) = &self.stores else { return Ok(()) };
        stores.log.writable().map_err(|full| full.to_string())?;
        // All stores are on one disk, so one full store stops all writes.
        self.node.iter().flat_map(|node| node.replicas()).try_for_each(|replica| {
            match replica.store().health() {
                StoreHealth::DiskFull(why) => Err(why),
                StoreHealth::Good | StoreHealth::Failing(_) => Ok(()),
            }
        })
    }

    /// Faults of the process, as sentences.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Err(why) = self.writable() {
            faults.push(format!("no writes: {why}"));
        }
        if let Some(node) = &self.node {
            for table in self.catalogue.tables() {
                faults.extend(
                    node.faults(table.id)
                        .iter()
                        .map(|(index, why)| format!("{} partition {index}: {why}", table.name)),
                );
            }
        }
        if let Some(Err(why)) = self.meta.as_ref().map(|meta| meta.group().running()) {
            faults.push(format!("the meta group's member has stopped: {why}"));
        }
        if let Some(why) =
            self.cluster.as_ref().and_then(|cluster| cluster.meta_client.refused().borrow().clone())
        {
            faults.push(format!("registration rejected by meta: {why}"));
        }
        if let Some(why) =
            self.cluster.as_ref().and_then(|cluster| cluster.reachability.fault(Instant::now()))
        {
            faults.push(why);
        }
        faults
    }

    /// Reasons to send clients elsewhere; empty: the process is ready.
    pub(crate) fn unready(&self) -> Vec<String> {
        match self.is_serving() {
            true => self.faults(),
            false => vec!["not serving: starting or stopping".to_owned()],
        }
    }

    /// Problems that leave the process ready.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = self.partition_notes();
        notes.extend(self.clock_note());
        notes
    }

    fn partition_notes(&self) -> Vec<String> {
        let Some(cluster) = &self.cluster else { return Vec::new() };
        let name = |partition: PartitionId| match cluster.catalogue.table_of(partition.table) {
            Some(table) => format!("{} partition {}", table.name, partition.index),
            None => format!("table {} partition {}", partition.table.0, partition.index),
        };
        cluster.reachability.notes(Instant::now(), name)
    }

    fn clock_note(&self) -> Option<String> {
        let ahead_ms = self.node.as_ref()?.clock_ahead_ms();
        if ahead_ms.unsigned_abs() < CLOCK_OFFSET_MS {
            return None;
        }
        let seconds = ahead_ms.unsigned_abs().div_ceil(1000);
        Some(match ahead_ms > 0 {
            true => format!(
                "clock: the expiry clock is {seconds} s ahead of the wall clock, and runs 10 % \
                 slower until they agree"
            ),
            false => format!(
                "clock: the expiry clock is {seconds} s behind the wall clock, which has jumped, \
                 and runs 10 % faster until they agree"
            ),
        })
    }
}

fn int(count: u64) -> InfoValue {
    InfoValue::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

fn section(name: &'static str, fields: Vec<(&'static str, InfoValue)>) -> InfoSection {
    InfoSection {
        name,
        fields: fields.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect(),
    }
}

impl ProcessInfo {
    fn raft_fields(&self, stores: &Stores) -> Vec<(&'static str, InfoValue)> {
        let (log, groups) = (stores.log.stats(), self.groups());
        vec![
            ("raft_groups", int(groups.len() as u64)),
            ("raft_leaders", int(groups.iter().filter(|group| group.is_leader).count() as u64)),
            ("raft_entries_applied", int(groups.iter().map(|group| group.applied).sum())),
            ("raft_log_bytes", int(log.disk_bytes())),
            ("raft_log_segments", int(log.segments())),
            ("raft_log_fsyncs", int(log.fsyncs())),
            ("raft_log_fsync_usec", int(log.fsync_nanos() / 1000)),
            ("raft_log_batches", int(log.batches())),
            ("raft_log_records", int(log.records())),
            ("raft_log_written_bytes", int(log.bytes())),
        ]
    }

    fn rocksdb_fields(&self, stores: &Stores) -> Vec<(&'static str, InfoValue)> {
        let replicas = self.node.iter().flat_map(|node| node.replicas());
        let stats: Vec<_> = replicas.filter_map(|replica| replica.store().stats().ok()).collect();
        let sum = |of: fn(&engine::store::StoreStats) -> u64| int(stats.iter().map(of).sum());
        vec![
            ("rocksdb_block_cache_bytes", int(stores.shared.cache_used() as u64)),
            ("rocksdb_memtable_bytes", int(stores.shared.memtable_bytes_used() as u64)),
            ("rocksdb_file_bytes", sum(|store| store.file_bytes)),
            ("rocksdb_files", sum(|store| store.files)),
            ("rocksdb_level0_files", sum(|store| store.level0_files)),
            ("rocksdb_pending_compaction_bytes", sum(|store| store.pending_compaction_bytes)),
            ("rocksdb_running_flushes", sum(|store| store.running_flushes)),
            ("rocksdb_running_compactions", sum(|store| store.running_compactions)),
            ("rocksdb_background_errors", sum(|store| store.background_errors)),
            ("rocksdb_write_stopped", sum(|store| store.write_stopped)),
            ("rocksdb_filtered_bytes", sum(|store| store.filtered_bytes)),
        ]
    }

    fn of_cluster(&self, cluster: &ClusterView) -> Vec<(&'static str, InfoValue)> {
        let (routes, led) = cluster.reachability.count();
        let leader = cluster.meta_client.leader().borrow().clone();
        vec![
            ("bridle_server_id", InfoValue::Text(cluster.id.to_string().into())),
            (
                "bridle_cluster_id",
                InfoValue::Text(self.data_dir.identity().cluster_id.unwrap_or_default().into()),
            ),
            ("bridle_roles", InfoValue::Text(role_names(self.mode).join(",").into())),
            ("bridle_meta", InfoValue::Text(leader.unwrap_or_default().into())),
            ("bridle_routes", int(routes as u64)),
            ("bridle_routes_with_leader", int(led as u64)),
            ("bridle_ready", int(u64::from(self.unready().is_empty()))),
        ]
    }
}

/// The names of a process's roles.
pub(crate) fn role_names(mode: Mode) -> Vec<&'static str> {
    let roles = mode.roles();
    [("meta", roles.meta), ("storage", roles.storage), ("proxy", roles.proxy)]
        .into_iter()
        .filter(|(_, has)| *has)
        .map(|(role, _)| role)
        .collect()
}

impl proxy::Host for ProcessInfo {
    fn sections(&self) -> Vec<InfoSection> {
        let mut sections = Vec::new();
        if let Some(stores) = &self.stores {
            let writes = if self.writable().is_ok() { "ok" } else { "err" };
            let persistence = vec![
                ("aof_last_write_status", InfoValue::Text(writes.into())),
                ("aof_current_size", int(stores.log.stats().disk_bytes())),
            ];
            sections.push(section("persistence", persistence));
            if let Some(node) = &self.node {
                let (rows, fields) = node.expired();
                sections.push(section(
                    "stats",
                    vec![("expired_subkeys", int(fields)), ("expired_keys", int(rows))],
                ));
            }
            sections.push(section("raft", self.raft_fields(stores)));
            sections.push(section("rocksdb", self.rocksdb_fields(stores)));
        }
        if let Some(cluster) = &self.cluster {
            sections.push(section("cluster", self.of_cluster(cluster)));
        }
        sections
    }

    fn tables(&self) -> Vec<TableStats> {
        let usage = |(table, stats): (Arc<Table>, storage::TableStats)| TableStats {
            name: table.name.clone(),
            number: table.number,
            rows: stats.rows,
            expires: stats.expiring,
            disk_bytes: stats.disk_bytes,
        };
        self.local_tables().into_iter().map(usage).collect()
    }

    fn durability(&self) -> Durability {
        let own = self.node.is_some().then(|| self.config.storage.durability.to_cluster());
        let others = self.cluster.as_ref().and_then(|cluster| cluster.durability());
        // An unknown durability counts as the weakest.
        own.into_iter().chain(others).min().unwrap_or(Durability::Os)
    }

    /// An acknowledged write is on a majority of a partition's replicas, including the
    /// leader's.
    fn replicas(&self, partition: PartitionId) -> u32 {
        let cluster = self.cluster.as_ref();
        cluster
            .and_then(|cluster| cluster.catalogue.table_of(partition.table))
            .map_or(0, |table| table.replicas / 2)
    }

    fn synced_copies<'a>(
        &'a self,
        partition: PartitionId,
        index: u64,
        wanted: u32,
        mut end: Boxed<'a, ()>,
    ) -> Boxed<'a, u32> {
        Box::pin(async move {
            let Some(cluster) = &self.cluster else { return 0 };
            let asked = SyncRequest { partition, index };
            let ask = |server| async move {
                match self.node.as_ref().filter(|_| server == cluster.id) {
                    Some(node) => node.sync_copy(partition, index).await.is_ok(),
                    None => {
                        cluster.sync_copy(server, asked).await;
                        true
                    }
                }
            };
            let mut asked: FuturesUnordered<_> =
                cluster.routes.members(partition).into_iter().map(ask).collect();
            // The leader is one of them and is not counted: it was fsynced before the
            // others were asked.
            let mut synced = 0u32;
            while synced <= wanted {
                let next = tokio::select! {
                    next = asked.next() => next,
                    () = &mut end => None,
                };
                let Some(is_synced) = next else { break };
                synced += u32::from(is_synced);
            }
            synced.saturating_sub(1)
        })
    }

    fn set_active_expire(&self, on: bool) {
        if let Some(node) = &self.node {
            node.set_active_expiry(on);
        }
    }

    fn sync(&self) -> Boxed<'_, Result<(), CallError>> {
        Box::pin(async {
            match &self.stores {
                Some(stores) => stores
                    .log
                    .flush()
                    .await
                    .map_err(|error| CallError::Fault(storage::log_fault(&error))),
                None => Ok(()),
            }
        })
    }

    fn memory(&self) -> ProcessMemory {
        let allocator = engine::memory::stats();
        let shared = self.stores.as_ref().map(|stores| &stores.shared);
        let of_stores = shared.map(|shared| {
            [("block_cache", shared.cache_used()), ("memtables", shared.memtable_bytes_used())]
        });
        let of_rows = self.node.as_ref().map(|node| ("row_cache", node.row_cache_used()));
        let parts = of_stores
            .into_iter()
            .flatten()
            .chain(of_rows)
            .map(|(name, bytes)| (name, bytes as u64));
        let shares = &self.config.shares;
        ProcessMemory {
            allocated: allocator.allocated,
            active: allocator.active,
            resident: allocator.resident,
            allocator: engine::memory::ALLOCATOR,
            parts: parts.collect(),
            budget: shares.memory.bytes(),
            shares: shares.parts().to_vec(),
        }
    }

    fn use_certificates(
        &self,
        for_clients: Option<&TlsFiles>,
        of_cluster: Option<&TlsFiles>,
    ) -> Result<(), CertificateError> {
        if for_clients.is_some() && !self.certificates.has_client_tls() {
            return Err(CertificateError::NoClientTls);
        }
        if of_cluster.is_some() && !self.certificates.has_cluster_tls() {
            return Err(CertificateError::NoClusterTls);
        }
        self.certificates.renew(for_clients, of_cluster).inspect_err(|error| {
            tracing::error!(
                %error,
                "CONFIG SET: cannot reload certificates, the previous ones stay in use"
            )
        })
    }

    fn rewrite_config(&self, changes: &[FileChange]) -> Result<(), RewriteError> {
        let path = self.config_file.as_ref().ok_or(RewriteError::NoFile)?;
        config::rewrite_file(path, changes).map_err(RewriteError::Io)
    }
}

impl ProcessInfo {
    /// The cluster's secret, if one is set.
    fn secret(&self) -> Option<&[u8]> {
        let cluster = matches!(self.mode, Mode::Member(_)).then_some(&self.config.cluster);
        cluster
            .map(|cluster| cluster.secret.reveal().as_bytes())
            .filter(|secret| !secret.is_empty())
    }

    /// The admin API requires a password.
    pub(crate) fn wants_password(&self) -> bool {
        self.secret().is_some()
            || self.proxy().is_none_or(|proxy| proxy.settings.load().password.is_some())
    }

    /// Host names that the HTTP port accepts, in addition to addresses and `localhost`.
    pub(crate) fn allowed_hosts(&self) -> Vec<String> {
        let advertised =
            self.config.cluster.advertise.as_ref().map(|address| address.host().to_owned());
        self.config.http.allowed_hosts.iter().cloned().chain(advertised).collect()
    }
}

impl meta::admin::HostProcess for ProcessInfo {
    fn authorised(&self, from: Option<IpAddr>, password: Option<&[u8]>) -> bool {
        let settings = self.proxy().map(|proxy| proxy.settings.load_full());
        // The process is stopping: every request is rejected.
        let Some(settings) = settings else { return false };
        let cluster = matches!(self.mode, Mode::Member(_)).then_some(&self.config.cluster);
        let secret = self.secret();
        let wanted = [settings.password.as_deref(), secret];
        if wanted.iter().all(Option::is_none) {
            // The rule of protected mode: the password may have been removed long after
            // the start, which requires one where the port is open.
            let is_near = from.is_some_and(|from| from.to_canonical().is_loopback());
            return (is_near || !settings.protected_mode)
                && cluster.is_none_or(|cluster| !cluster.has_tls());
        }
        // Compares with all of them, so that the time does not reveal which one matches.
        password.is_some_and(|sent| {
            wanted
                .into_iter()
                .flatten()
                .fold(false, |is_right, wanted| bool::from(sent.ct_eq(wanted)) | is_right)
        })
    }

    fn status(&self) -> NodeStatus {
        let (tables, identity) = (self.local_tables(), self.data_dir.identity());
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: identity.cluster,
            cluster_id: identity.cluster_id.unwrap_or_default(),
            node_id: identity.node_id,
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: self.unready().is_empty(),
            durability: proxy::Host::durability(self).word().to_owned(),
            addresses: self.addresses.clone(),
            clients: self.proxy().map_or(0, |proxy| proxy.clients.len() as u64),
            tables: tables.len() as u32,
            partitions: tables.iter().map(|(table, _)| table.partitions).sum(),
            disk_bytes: tables.iter().map(|(_, stats)| stats.disk_bytes).sum(),
            log_bytes: self.stores.as_ref().map_or(0, |stores| stores.log.stats().disk_bytes()),
            memory_bytes: engine::memory::stats().resident,
            faults: self.faults(),
        }
    }

    fn server_figures(&self) -> ServerStats {
        let rows_disk_bytes = self.local_tables().iter().map(|(_, stats)| stats.disk_bytes).sum();
        let disk_problem = self.stores.as_ref().and_then(|stores| stores.log.recent_disk_problem());
        crate::reporter::server_stats(self, rows_disk_bytes, disk_problem)
    }

    fn figures(&self, table: &Table) -> TableUsage {
        let stats = self.node.as_ref().map(|node| node.table_stats(table.id)).unwrap_or_default();
        TableUsage {
            rows: stats.rows,
            expiring: stats.expiring,
            disk_bytes: stats.disk_bytes,
            memtable_bytes: stats.memtable_bytes,
            faults: stats.faults,
        }
    }

    fn compact(&self, table: &Arc<Table>) -> CompactionStatus {
        self.node.as_ref().map(|node| self.compactions.start(node, table)).unwrap_or_default()
    }

    fn compaction(&self, table: &Table) -> CompactionStatus {
        self.node.as_ref().map(|node| self.compactions.progress(node, table)).unwrap_or_default()
    }
}
