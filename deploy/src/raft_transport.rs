//! Raft's transport between processes: an adapter that sends engine's messages over
//! cluster's connections, for partitions and meta alike.

use std::sync::Arc;

use bytes::Bytes;
use cluster::ServerId;
use cluster::net::{Net, NetError, Service, To};
use engine::raft::{Letter, Node, Wire, WireError};
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
    fn to(&self, server: ServerId) -> Result<To, WireError> {
        let Some(seat) = server.as_seat() else { return Ok(To::Server(server)) };
        let address = self.metas.get(seat as usize - 1);
        address
            .map(|address| To::Address(address.clone()))
            .ok_or_else(|| WireError::NotSent(format!("there is no meta {seat}")))
    }
}

impl Wire for NetTransport {
    fn send(&self, to: &Node, letter: Letter) -> BoxFuture<'_, Result<Bytes, WireError>> {
        let to = self.to(ServerId(to.server));
        Box::pin(async move {
            let service = if letter.kind.is_bulk() { Service::RaftBulk } else { Service::Raft };
            self.net.call(to?, service, letter.encode(), letter.timeout).await.map_err(|error| {
                match error {
                    NetError::NotSent(why) => WireError::NotSent(why),
                    NetError::Lost(why) => WireError::Lost(why),
                    NetError::Refused(why) | NetError::TooLarge(why) => WireError::Refused(why),
                }
            })
        })
    }
}
