//! The components of an open process.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cluster::meta_protocol::Roles;
use cluster::{CallPartition, Catalogue};
use engine::time::SlewedClock;
use meta::Meta;
use parking_lot::Mutex;
use row::op::{Request, Response};
use storage::{Node, NodeOptions, Peers};
use tokio::task::AbortHandle;

use crate::config::Config;
use crate::data_dir::DataDir;
use crate::member::Membership;
use crate::ports::BoundAddresses;
use crate::runtimes::Runtimes;
use crate::stores::Stores;

/// Minimum memory for queued requests and batches in flight, which otherwise have an
/// eighth of the process's memory: a few of the largest requests that the defaults allow.
const REQUEST_MEMORY_MIN: u64 = 64 << 20;

/// Inputs of opening a process.
pub(crate) struct StartContext<'a> {
    pub(crate) config: &'a Config,
    pub(crate) roles: Roles,
    pub(crate) data_dir: &'a Arc<DataDir>,
    pub(crate) runtimes: &'a Runtimes,
    pub(crate) bound: &'a BoundAddresses,
    /// The process's clock, the source of all stamps.
    pub(crate) clock: Arc<SlewedClock>,
    /// The current phase of the start, shown to operators.
    pub(crate) phase: &'a StartupPhase,
}

impl StartContext<'_> {
    /// Options of the storage node.
    pub(crate) fn node_options(&self, cluster: u64, peers: Option<Peers>) -> NodeOptions {
        let storage = &self.config.storage;
        NodeOptions {
            step_clock: storage::monotonic,
            dir: self.data_dir.tables(),
            raft_runtime: self.runtimes.raft.handle().clone(),
            write_bytes_max: storage.max_write_size.0 as usize,
            answer_bytes_max: storage.max_answer_size.0 as usize,
            row_cache_bytes: self.config.shares.row_cache as usize,
            request_memory_max: (self.config.shares.memory.bytes() / 8).max(REQUEST_MEMORY_MIN)
                as usize,
            cluster_tag: cluster as u8,
            clock: self.clock.clone(),
            unknown_after: self.config.proxy.call_deadline.0,
            peers,
        }
    }
}

/// The phase of a process's start: what it waits for.
#[derive(Clone, Default)]
pub(crate) struct StartupPhase(Arc<Mutex<String>>);

impl StartupPhase {
    /// Enters a phase.
    pub(crate) fn set(&self, what: impl Into<String>) {
        *self.0.lock() = what.into();
    }

    /// The description of the phase.
    pub(crate) fn text(&self) -> String {
        self.0.lock().clone()
    }
}

/// The components of an open process.
pub(crate) struct Components {
    /// Of processes with the role storage or meta.
    pub(crate) stores: Option<Stores>,
    pub(crate) meta: Option<Arc<Meta>>,
    pub(crate) node: Option<Arc<Node>>,
    /// Of processes of a cluster.
    pub(crate) membership: Option<Membership>,
    pub(crate) rows: Arc<dyn CallPartition<Request, Response>>,
    pub(crate) catalogue: Arc<dyn Catalogue>,
    /// Tasks that run until the process stops.
    pub(crate) tasks: Vec<AbortHandle>,
}

impl Components {
    /// Transfers the process's leaderships to others, before clients are disconnected.
    pub(crate) async fn transfer_leaderships(&self, timeout: Duration) {
        if self.membership.is_none() || timeout.is_zero() {
            return;
        }
        let partitions = async {
            if let Some(node) = &self.node {
                node.hand_over(timeout).await;
            }
        };
        let meta = async {
            if let Some(meta) = &self.meta {
                crate::member::transfer_meta_leadership(meta, timeout).await;
            }
        };
        tokio::join!(partitions, meta);
    }

    /// Stops and flushes everything, the log last.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        self.tasks.iter().for_each(AbortHandle::abort);
        if let Some(membership) = self.membership {
            membership.leave().await;
        }
        if let Some(node) = &self.node {
            node.close().await;
        }
        if let Some(meta) = &self.meta {
            meta.close().await.context("close the table catalogue")?;
        }
        match &self.stores {
            Some(stores) => stores.close().await,
            None => Ok(()),
        }
    }
}
