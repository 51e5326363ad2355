//! Raft's transport between processes: an adapter that sends engine's messages over
//! cluster's connections, for partitions and meta alike.

use std::sync::Arc;

use bytes::Bytes;
use cluster::ServerId;
use cluster::net::{Destination, Net, NetError, Service};
use engine::raft::{Node, RaftMessage, Transport, TransportError};
use futures::future::BoxFuture;

/// The Raft transport of a process.
pub(crate) struct NetTransport {
    net: Arc<Net>,
    /// Addresses of the metas, in the order of the configuration.
    metas: Vec<String>,
}

impl NetTransport {
    pub(crate) fn new(net: Arc<Net>, metas: Vec<String>) -> NetTransport {
        NetTransport { net, metas }
    }

    /// Metas are dialed at their configured addresses, servers at those known to meta.
    fn to(&self, server: ServerId) -> Result<Destination, TransportError> {
        let Some(index) = server.meta_index() else { return Ok(Destination::Server(server)) };
        let address = self.metas.get(index as usize - 1);
        address
            .map(|address| Destination::Address(address.clone()))
            .ok_or_else(|| TransportError::NotSent(format!("cluster.metas has no meta {index}")))
    }
}

impl Transport for NetTransport {
    fn send(
        &self,
        to: &Node,
        message: RaftMessage,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        let to = self.to(ServerId(to.server));
        Box::pin(async move {
            let service = if message.kind.is_bulk() { Service::RaftBulk } else { Service::Raft };
            self.net.call(to?, service, message.encode(), message.timeout).await.map_err(|error| {
                match error {
                    NetError::NotSent(why) => TransportError::NotSent(why),
                    NetError::Lost(why) => TransportError::Lost(why),
                    NetError::Refused(why) | NetError::TooLarge(why) => {
                        TransportError::Refused(why)
                    }
                }
            })
        })
    }
}
