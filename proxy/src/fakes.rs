//! A proxy with a fake backend, for unit tests that need no rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cluster::{Boxed, CallError, CallPartition, Catalogue, Fault, PartitionId, Table, TableId};
use parking_lot::Mutex;
use row::PartitionOp;
use row::op::{Op, Request, Response};
use tokio_util::sync::CancellationToken;

use crate::client::Endpoint;
use crate::config::{FileChange, RewriteError};
use crate::host::{Durability, Host, InfoSection, InfoValue, ProcessMemory, TableStats};
use crate::{Client, Proxy, ServerInfo, Settings};

/// Records requests and returns fixed answers.
#[derive(Default)]
pub(crate) struct FakeBackend {
    /// Number of requests to partitions.
    pub(crate) called: AtomicU64,
    /// Settings written to the file.
    pub(crate) written: Mutex<Vec<FileChange>>,
    /// `sync` fails.
    pub(crate) disk_fails: bool,
    /// The durability is `Os` and not `Always`.
    pub(crate) lazy: bool,
    /// No partition has a leader.
    pub(crate) leaderless: bool,
    /// Partitions whose leader has synced.
    pub(crate) synced: Mutex<Vec<PartitionId>>,
}

impl CallPartition<Request, Response> for FakeBackend {
    fn read_now(&self, _: PartitionId, _: &Request) -> Option<Result<Response, CallError>> {
        None
    }

    fn call(
        &self,
        partition: PartitionId,
        request: Request,
    ) -> Boxed<'_, Result<Response, CallError>> {
        self.called.fetch_add(1, Relaxed);
        let answer = |op: &Op| match op {
            Op::Partition(PartitionOp::Sync) => {
                self.synced.lock().push(partition);
                Ok(row::Answer::Int(7))
            }
            _ => Ok(row::Answer::Ok),
        };
        let done = match request.ops[..] {
            _ if self.leaderless => Err(CallError::NoLeader("an election".into())),
            [Op::Partition(PartitionOp::Sync)] if self.disk_fails => {
                Err(CallError::Fault(Fault::io("disk")))
            }
            _ => Ok(Response::Done(request.ops.iter().map(answer).collect())),
        };
        Box::pin(async { done })
    }
}

impl Catalogue for FakeBackend {
    fn table(&self, name: &str) -> Option<Arc<Table>> {
        Catalogue::tables(self).into_iter().find(|table| table.name == name)
    }

    fn tables(&self) -> Vec<Arc<Table>> {
        let table = |id: u32, name: &str, number| Table {
            id: TableId(id),
            name: name.into(),
            number,
            partitions: 4,
            replicas: 1,
            envs: Default::default(),
            default_ttl_since_ms: 0,
        };
        vec![Arc::new(table(1, "db0", 0)), Arc::new(table(2, "users", 17))]
    }

    fn find(&self, name: &str) -> Boxed<'_, Result<Option<Arc<Table>>, CallError>> {
        let table = self.table(name);
        Box::pin(async { Ok(table) })
    }

    fn find_all(&self) -> Boxed<'_, Result<Vec<Arc<Table>>, CallError>> {
        Box::pin(async { Ok(Catalogue::tables(self)) })
    }

    fn ensure(&self, name: &str) -> Boxed<'_, Result<Arc<Table>, CallError>> {
        let table = self.table(name).ok_or(CallError::NoTable);
        Box::pin(async { table })
    }

    fn partitions_of_new(&self) -> Boxed<'_, Result<u32, CallError>> {
        Box::pin(async { Ok(4) })
    }

    fn version(&self) -> u64 {
        1
    }
}

impl Host for FakeBackend {
    fn sections(&self) -> Vec<InfoSection> {
        vec![
            InfoSection {
                name: "persistence",
                fields: vec![("aof_last_write_status".into(), InfoValue::Text("err".into()))],
            },
            InfoSection { name: "raft", fields: vec![("raft_groups".into(), InfoValue::Int(8))] },
        ]
    }

    fn tables(&self) -> Vec<TableStats> {
        let table = |name: &str, number, rows| TableStats {
            name: name.into(),
            number,
            rows,
            expires: 1,
            disk_bytes: 1000,
        };
        vec![table("db0", 0, 3), table("db1", 1, 0), table("users", 17, 5)]
    }

    fn durability(&self) -> Durability {
        if self.lazy { Durability::Os } else { Durability::Always }
    }

    fn replicas(&self, partition: PartitionId) -> u32 {
        2 - partition.index.min(1)
    }

    fn synced_copies<'a>(
        &'a self,
        _: PartitionId,
        index: u64,
        wanted: u32,
        _: Boxed<'a, ()>,
    ) -> Boxed<'a, u32> {
        assert_eq!(index, 7, "what the leader said");
        Box::pin(async move { wanted.min(1) })
    }

    fn set_active_expire(&self, _: bool) {}

    fn sync(&self) -> Boxed<'_, Result<(), CallError>> {
        let fails = self.disk_fails;
        Box::pin(
            async move { if fails { Err(CallError::Fault(Fault::io("disk"))) } else { Ok(()) } },
        )
    }

    fn memory(&self) -> ProcessMemory {
        let shares = vec![("block_cache", 500), ("clients", 125)];
        ProcessMemory {
            allocated: 100,
            active: 150,
            resident: 300,
            allocator: "jemalloc",
            parts: vec![("block_cache", 40)],
            budget: 1000,
            shares,
        }
    }

    fn rewrite_config(&self, changes: &[FileChange]) -> Result<(), RewriteError> {
        self.written.lock().extend_from_slice(changes);
        if self.disk_fails { Err(RewriteError::Io("disk\r\nfull".into())) } else { Ok(()) }
    }
}

/// A proxy on this backend.
pub(crate) fn proxy(backend: &Arc<FakeBackend>) -> Arc<Proxy> {
    let server_info = ServerInfo {
        version: "1.2.3".into(),
        mode: "standalone",
        port: 6379,
        fixed: vec![("bind", "127.0.0.1".into())],
        ..ServerInfo::default()
    };
    Proxy::new(
        Settings::default(),
        server_info,
        backend.clone(),
        backend.clone(),
        backend.clone(),
        CancellationToken::new(),
    )
}

/// Addresses of a client.
pub(crate) fn endpoint() -> Endpoint {
    Endpoint {
        address: "127.0.0.1:5".into(),
        local_address: "127.0.0.1:6379".into(),
        fd: 1,
        is_loopback: true,
        is_unix: false,
    }
}

/// A client of the proxy.
pub(crate) fn client(id: u64) -> Arc<Client> {
    Arc::new(Client::new(id, endpoint(), "db0".into(), Arc::default()))
}
