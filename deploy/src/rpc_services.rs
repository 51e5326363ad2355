//! RPC services of a process: an adapter that hands requests from the cluster's other
//! processes to storage and meta.
//!
//! It serves before storage and meta are open; until then its answers say so, and differ
//! from those of a failure.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use cluster::meta_protocol::{self, MetaIndexStatus, MetaRequest, MetaResponse};
use cluster::net::{Channel, Peer, Service, ServiceError, ServiceReply, Services};
use cluster::row_client::{LocalReplicas, SyncRequest, serve_rows};
use cluster::{Boxed, CallError, CallPartition, Leader, PartitionId, ServerId};
use engine::raft::RaftMessage;
use futures::FutureExt;
use meta::Meta;
use row::op::{Request, Response};
use storage::Node;

use crate::process_info::ProcessInfo;

/// The request changes nothing and may be executed twice.
pub(crate) fn is_read(request: &Request) -> bool {
    !request.ops.iter().any(|op| op.is_write())
}

const NO_META: ServiceError = ServiceError::NotOpen("no meta is open here");
const NO_STORAGE: ServiceError = ServiceError::NotOpen("no storage is open here");

fn failed(error: &dyn std::error::Error) -> ServiceError {
    ServiceError::NotDone(error.to_string())
}

/// The services of a process.
pub(crate) struct RpcServices {
    meta: OnceLock<Arc<Meta>>,
    /// Of a meta: it has data of the meta group, or already belongs to a cluster.
    has_history: OnceLock<bool>,
    node: OnceLock<Arc<Node>>,
    replicas: OnceLock<Arc<dyn LocalReplicas<Request, Response>>>,
    no_replicas: Arc<dyn LocalReplicas<Request, Response>>,
    process: OnceLock<Arc<ProcessInfo>>,
}

impl RpcServices {
    pub(crate) fn new(server: ServerId) -> Arc<RpcServices> {
        Arc::new(RpcServices {
            meta: OnceLock::new(),
            has_history: OnceLock::new(),
            node: OnceLock::new(),
            replicas: OnceLock::new(),
            no_replicas: Arc::new(NoReplicas(server)),
            process: OnceLock::new(),
        })
    }

    /// Meta is open. Once.
    pub(crate) fn set_meta(&self, meta: &Arc<Meta>) {
        self.meta.get_or_init(|| meta.clone());
    }

    /// Sets whether this process's meta, not open yet, has earlier data. Once.
    pub(crate) fn set_has_history(&self, has_history: bool) {
        self.has_history.get_or_init(|| has_history);
    }

    /// Answers a meta with an empty directory. The question may come before this meta is
    /// open.
    fn meta_index(&self, index: u32, server: ServerId) -> ServiceReply {
        if let Some(meta) = self.meta.get().cloned() {
            return ServiceReply::Later(Box::pin(async move {
                Ok(meta_protocol::encode(&MetaResponse::MetaIndex(
                    meta.meta_index_status(index, server).await,
                )))
            }));
        }
        let word = match self.has_history.get() {
            Some(true) => MetaIndexStatus::Unknown,
            Some(false) => MetaIndexStatus::NoCluster,
            None => {
                return ServiceReply::Now(Err(ServiceError::NotOpen(
                    "the data directory is not open yet",
                )));
            }
        };
        ServiceReply::Now(Ok(meta_protocol::encode(&MetaResponse::MetaIndex(word))))
    }

    /// Storage is open. Once.
    pub(crate) fn set_node(&self, node: &Arc<Node>) {
        self.node.get_or_init(|| node.clone());
        self.replicas.get_or_init(|| node.clone());
    }

    /// The process is open. Once.
    pub(crate) fn set_process(&self, process: &Arc<ProcessInfo>) {
        self.process.get_or_init(|| process.clone());
    }

    fn message(&self, from: &Peer, body: Bytes) -> ServiceReply {
        let message = match RaftMessage::decode(body) {
            Ok(message) => message,
            Err(why) => return ServiceReply::Now(Err(ServiceError::BadRequest(why.to_string()))),
        };
        if message.group == meta::GROUP {
            return match self.meta.get().cloned() {
                Some(meta) if !meta.owns_meta_index(message.from, from.server) => {
                    ServiceReply::Now(Err(ServiceError::BadRequest(format!(
                        "meta {} of the list is not server {}",
                        message.from, from.server
                    ))))
                }
                Some(meta) => start_now(Box::pin(async move {
                    meta.group().receive(message).await.map_err(|error| failed(&error))
                })),
                None => ServiceReply::Now(Err(NO_META)),
            };
        }
        match self.node.get().cloned() {
            Some(node) => start_now(Box::pin(async move {
                node.receive(message).await.map_err(|error| failed(&error))
            })),
            None => ServiceReply::Now(Err(NO_STORAGE)),
        }
    }
}

impl RpcServices {
    fn sync(&self, body: &[u8]) -> ServiceReply {
        match (SyncRequest::decode(body), self.node.get().cloned()) {
            (Ok(asked), Some(node)) => ServiceReply::Later(Box::pin(async move {
                let copied = node.sync_copy(asked.partition, asked.index).await;
                copied.map(|()| Bytes::new()).map_err(|error| failed(&error))
            })),
            (Ok(_), None) => ServiceReply::Now(Err(NO_STORAGE)),
            (Err(bad), _) => ServiceReply::Now(Err(ServiceError::BadRequest(bad.to_string()))),
        }
    }
}

impl Services for RpcServices {
    fn call(&self, from: &Peer, service: Service, body: Bytes) -> ServiceReply {
        match service {
            Service::Rows => {
                serve_rows(self.replicas.get().unwrap_or(&self.no_replicas), is_read, &body)
            }
            Service::Raft | Service::RaftBulk => self.message(from, body),
            Service::Sync => self.sync(&body),
            Service::Leads => {
                let led: Vec<PartitionId> =
                    self.node.get().map(|node| node.led()).unwrap_or_default();
                ServiceReply::Now(Ok(cluster::meta_protocol::encode(&led)))
            }
            Service::Meta => {
                match (meta_protocol::decode(&body), self.meta.get(), self.process.get()) {
                    (Ok(MetaRequest::MetaIndex { index, server }), ..) => {
                        self.meta_index(index, server)
                    }
                    (_, Some(meta), Some(process)) => {
                        ServiceReply::Later(meta.answer(body, process.clone()))
                    }
                    _ => ServiceReply::Now(Err(NO_META)),
                }
            }
        }
    }

    fn channel(&self, from: &Peer, service: Service, hello: Bytes, channel: Channel) {
        // Dropping the channel ends it, and the client tries another meta.
        if let (Service::Meta, Some(meta)) = (service, self.meta.get()) {
            meta.channel(from, hello, channel);
        }
    }
}

/// Starts a future immediately: Raft must receive messages in the order in which they
/// arrived, and spawned tasks may overtake each other.
fn start_now(mut answer: Boxed<'static, Result<Bytes, ServiceError>>) -> ServiceReply {
    match (&mut answer).now_or_never() {
        Some(answer) => ServiceReply::Now(answer),
        None => ServiceReply::Later(answer),
    }
}

/// The replicas of a process that stores none.
struct NoReplicas(ServerId);

impl CallPartition<Request, Response> for NoReplicas {
    fn read_now(
        &self,
        _partition: PartitionId,
        _request: &Request,
    ) -> Option<Result<Response, CallError>> {
        None
    }

    fn call(
        &self,
        _partition: PartitionId,
        _request: Request,
    ) -> Boxed<'_, Result<Response, CallError>> {
        Box::pin(std::future::ready(Err(CallError::NoTable)))
    }
}

impl LocalReplicas<Request, Response> for NoReplicas {
    fn server(&self) -> ServerId {
        self.0
    }

    fn leader(&self, _partition: PartitionId) -> Option<Leader> {
        None
    }
}

#[cfg(test)]
mod tests {
    use cluster::TableId;

    use super::*;

    /// The answer to [`Service::Leads`]: the version, a count, then table and index of
    /// each partition.
    #[test]
    fn the_answer_of_led_partitions_has_frozen_bytes() {
        let led = |table, index| PartitionId { table: TableId(table), index };
        assert_eq!(meta_protocol::encode(&Vec::<PartitionId>::new()), Bytes::from_static(&[1, 0]));
        assert_eq!(
            meta_protocol::encode(&vec![led(1, 0), led(300, 1023)]),
            Bytes::from_static(&[1, 2, 1, 0, 0xac, 0x02, 0xff, 0x07])
        );
    }
}
