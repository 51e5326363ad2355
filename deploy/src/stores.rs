//! The stores on disk, the Raft log and RocksDB, opened with the configured options.

use std::sync::Arc;

use anyhow::Context;
use engine::log::{Log, LogOptions, WriteOnPark};
use engine::raft::purge::LogPolicy;
use engine::store::{SharedResources, StoreSettings};

use crate::config::{self, Config, Durability};
use crate::data_dir::DataDir;

/// The log of all Raft groups, and what all stores share.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) log: Arc<Log>,
    pub(crate) shared: SharedResources,
}

impl Stores {
    /// Opens the log; reads what a crash left of it.
    ///
    /// # Errors
    /// The log is damaged, or missing while stores that were written with it exist.
    pub(crate) async fn open(
        config: &Config,
        data_dir: &DataDir,
        write_on_park: &WriteOnPark,
    ) -> anyhow::Result<Stores> {
        let mut options = log_options(config, data_dir);
        options.write_on_park = Some(write_on_park.clone());
        // It is made, and on disk, before the first store is.
        for path in [data_dir.meta(), data_dir.tables()] {
            options.must_exist |=
                path.try_exists().with_context(|| format!("look for {}", path.display()))?;
        }
        let log = tokio::task::spawn_blocking(move || Log::open(options))
            .await?
            .context("open the Raft log")?;
        let shared = SharedResources::new(store_settings(config)).context("set up RocksDB")?;
        Ok(Stores { log, shared })
    }

    /// Closes the log, after all of its users.
    pub(crate) async fn close(&self) -> anyhow::Result<()> {
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close()).await?.context("close the Raft log")
    }
}

fn log_options(config: &Config, data_dir: &DataDir) -> LogOptions {
    let mut options = LogOptions::new(data_dir.log());
    options.durability = match config.storage.durability {
        Durability::Always => engine::log::Durability::Always,
        Durability::Interval => engine::log::Durability::Interval(config.storage.sync_interval.0),
        Durability::Os => engine::log::Durability::Os,
    };
    options.segment_bytes = config.raft_log.segment_size.0 as u32;
    options.tail_bytes_max = config.raft_log.tail_cache.0;
    options.unwritten_bytes_max = config.raft_log.write_queue_size.0;
    options.watched = vec![data_dir.path().to_owned()];
    options
}

/// Retention of the log for lagging replicas.
pub(crate) fn log_policy(config: &Config) -> LogPolicy {
    let log = &config.raft_log;
    LogPolicy {
        retention_bytes: log.retention_size.0,
        retention_total_bytes: log.retention_total_size.0,
        retention_entries: u64::from(log.retention_entries),
        retention_time: log.retention_time.0,
        ..LogPolicy::default()
    }
}

fn store_settings(config: &Config) -> StoreSettings {
    let (storage, shares) = (&config.storage, &config.shares);
    StoreSettings {
        cache_bytes: shares.block_cache as usize,
        memtable_bytes: shares.memtables as usize,
        flush_threads: storage.flush_threads as i32,
        compaction_threads: storage.compaction_threads as i32,
        zstd_bottom: storage.compression == config::Compression::Zstd,
        periodic_compaction_seconds: storage.periodic_compaction_after.0.as_secs(),
        disk_reserve_bytes: storage.disk_reserve.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_retention_defaults_are_the_engines() {
        assert_eq!(log_policy(&Config::defaults()), LogPolicy::default());
    }
}
