//! The client of rows: carries requests from a proxy to the leading replica of their
//! partition, and from the network into that replica.
//!
//! # Life of a call
//! 1. When the leader is in this process, the call is a function call.
//! 2. Else the believed leader is asked over the network ([`Routes`]). Who does not lead
//!    says so, and who does if it knows: that one is asked next, without a pause; a few
//!    hops at most, nobody twice but for news of a later term.
//! 3. When nobody leads, the caller is told [`CallError::NoLeader`] and tries again after
//!    a pause, until its deadline.
//!
//! # Layout
//! ```text
//! request    version u8 = 2 | partition, request      (postcard)
//! response   version u8 = 2 | RowResponse             (postcard)
//! sync       version u8 = 2 | SyncRequest             (postcard), answered with nothing
//! ```
//!
//! # Invariants
//! - A write is sent on again only when it is certain that it was not proposed; a write
//!   that was lost on the way is [`CallError::Unknown`] (`tests/rows.rs`,
//!   `a_write_that_was_lost_is_not_sent_again`, `no_write_is_applied_twice`).
//! - A call ends: hops are bounded, and each has a timeout (`tests/rows.rs`,
//!   `hints_that_loop_end`).

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::net::{Destination, Net, NetError, Service, ServiceError, ServiceReply};
use crate::routes::Routes;
use crate::{Boxed, CallError, CallPartition, Fault, Leader, PartitionId, ServerId, blocking};

/// The version of requests and responses.
const VERSION: u8 = 2;

/// Maximum number of servers asked in one call.
const REDIRECTS_MAX: usize = 5;

/// Reason why the bytes are no message on rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowDecodeError {
    /// No message is empty.
    #[error("a message on rows is empty")]
    Empty,
    /// Another build's, whose messages differ.
    #[error("a message on rows has version {0}, this server knows {known}", known = VERSION)]
    Version(u8),
    /// Damaged, or of another shape.
    #[error("a message on rows cannot be read: {0}")]
    Malformed(postcard::Error),
}

/// A message on rows that postcard does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a message cannot be encoded: {0}")]
struct RowEncodeError(#[from] postcard::Error);

impl From<RowEncodeError> for ServiceError {
    fn from(error: RowEncodeError) -> Self {
        ServiceError::NotDone(error.to_string())
    }
}

/// A question to the server of a replica, whether it leads or not ([`Service::Sync`]): to
/// be answered with nothing once the replica has applied an entry and has its log on
/// disk, or with why that can't be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRequest {
    /// Of which partition.
    pub partition: PartitionId,
    /// The entry's index in its log.
    pub index: u64,
}

impl SyncRequest {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        encode(self).expect("a few numbers are serialised to memory")
    }

    /// From bytes.
    ///
    /// # Errors
    /// As [`RowDecodeError`].
    pub fn decode(body: &[u8]) -> Result<SyncRequest, RowDecodeError> {
        decode(body)
    }
}

/// The replicas of this process.
pub trait LocalReplicas<Q, A>: CallPartition<Q, A> {
    /// This process.
    fn server(&self) -> ServerId;

    /// A partition's leader, as its replica here sees it; `None`: there is no replica
    /// here, or it knows no leader.
    fn leader(&self, partition: PartitionId) -> Option<Leader>;
}

/// Transport of requests to other servers: the network, or a test's.
pub trait RowTransport: Send + Sync + 'static {
    /// Sends a request and waits for its response.
    fn send(
        &self,
        to: ServerId,
        body: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<Bytes, NetError>> + Send;

    /// True if there is a connection: a request that was then not sent met a full outbox,
    /// and the server is not to blame.
    fn is_up(&self, server: ServerId) -> bool;
}

impl RowTransport for Arc<Net> {
    async fn send(&self, to: ServerId, body: Bytes, timeout: Duration) -> Result<Bytes, NetError> {
        self.call(Destination::Server(to), Service::Rows, body, timeout).await
    }

    fn is_up(&self, server: ServerId) -> bool {
        self.is_connected(&Destination::Server(server))
    }
}

/// A server's response to a request.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum RowResponse<A> {
    /// The answer.
    Answer(A),
    /// No answer, and why; never `NoLeader`.
    Failed(CallError),
    /// Nothing was proposed: it does not lead. Who does, if it knows, and what it is
    /// doing.
    NotLeader { hint: Option<Leader>, why: String },
    /// Nothing was done: it cannot read the request.
    Malformed(String),
}

/// The client of the rows of all servers.
pub struct RowClient<Q, A, C = Arc<Net>> {
    transport: C,
    routes: Arc<Routes>,
    local: Option<Arc<dyn LocalReplicas<Q, A>>>,
    is_read: fn(&Q) -> bool,
    timeout: Duration,
}

impl<Q, A, C> RowClient<Q, A, C>
where
    Q: Serialize + Send + Sync + 'static,
    A: DeserializeOwned + Send + 'static,
    C: RowTransport,
{
    /// A door to the servers that `routes` names.
    ///
    /// `local`: the replicas of this process, called without a network. `is_read`:
    /// whether a request changes nothing, so that it may be sent again whatever became of
    /// it. `timeout`: after so long a request that was sent is given up; dead connections
    /// are noticed sooner.
    pub fn new(
        transport: C,
        routes: Arc<Routes>,
        local: Option<Arc<dyn LocalReplicas<Q, A>>>,
        is_read: fn(&Q) -> bool,
        timeout: Duration,
    ) -> Self {
        RowClient { transport, routes, local, is_read, timeout }
    }

    async fn call_leader(&self, partition: PartitionId, request: Q) -> Result<A, CallError> {
        if let Some(local) = &self.local {
            match local.leader(partition) {
                Some(leader) if leader.server == local.server() => {
                    return call_local(local.as_ref(), partition, request).await;
                }
                Some(leader) => self.routes.learn(partition, leader),
                None => {}
            }
        }
        let is_read = (self.is_read)(&request);
        let mut body = None;
        let mut tried = SmallVec::<[ServerId; 4]>::new();
        let mut term = self.routes.term(partition);
        let mut why = String::new();
        for _ in 0..REDIRECTS_MAX {
            let Some(server) = self.routes.next(partition, &tried) else { break };
            tried.push(server);
            if let Some(local) = self.local.as_ref().filter(|local| local.server() == server) {
                // It was asked for its leader above.
                self.routes.doubt(partition, local.server());
                continue;
            }
            let body = match &body {
                Some(body) => Bytes::clone(body),
                None => body.insert(encode_request(partition, &request)?).clone(),
            };
            match self.transport.send(server, body, self.timeout).await {
                Ok(response) => {
                    match if_large(response.len(), || decode::<RowResponse<A>>(&response)) {
                        Ok(RowResponse::Answer(answer)) => {
                            self.routes.confirm(partition, server);
                            return Ok(answer);
                        }
                        Ok(RowResponse::NotLeader { hint, why: told }) => {
                            self.routes.doubt(partition, server);
                            if let Some(hint) = hint {
                                self.routes.learn(partition, hint);
                                if hint.term > term {
                                    // It may name one that did not lead yet when it was
                                    // asked.
                                    term = hint.term;
                                    tried.retain(|server| *server != hint.server);
                                }
                            }
                            why = told;
                        }
                        // The replica has moved away, or is not there yet.
                        Ok(RowResponse::Failed(CallError::NoTable)) => {
                            self.routes.doubt(partition, server)
                        }
                        Ok(RowResponse::Failed(error)) => return Err(error),
                        Ok(RowResponse::Malformed(told)) => {
                            self.routes.doubt(partition, server);
                            why = told;
                        }
                        Err(bad) if is_read => {
                            return Err(CallError::Fault(Fault::internal(bad.to_string())));
                        }
                        Err(bad) => return Err(CallError::Unknown(bad.to_string())),
                    }
                }
                // It has too much to do. A pause helps, asking others does not.
                Err(NetError::NotSent(told)) if self.transport.is_up(server) => {
                    return Err(CallError::NoLeader(told));
                }
                Err(NetError::NotSent(told)) => {
                    self.routes.avoid(partition, server);
                    why = told;
                }
                Err(NetError::TooLarge(told)) => return Err(CallError::TooLarge(told)),
                // The answer is too large, or the service has panicked: again would be no
                // better.
                Err(NetError::Refused(told)) if is_read => {
                    return Err(CallError::Fault(Fault::internal(told)));
                }
                Err(NetError::Refused(told)) => return Err(CallError::Unknown(told)),
                Err(NetError::Lost(told)) => {
                    self.routes.avoid(partition, server);
                    return Err(if is_read || resends_lost_writes() {
                        CallError::NoLeader(told)
                    } else {
                        CallError::Unknown(told)
                    });
                }
            }
        }
        if self.routes.is_dropped(partition.table) {
            return Err(CallError::NoTable);
        }
        Err(CallError::NoLeader(if why.is_empty() {
            "none of its replicas is known to lead".to_owned()
        } else {
            why
        }))
    }
}

/// In a test build (`storage/engine/src/mutants.rs`) that is to apply a retry twice, a
/// lost write is sent again.
#[cfg(feature = "mutants")]
fn resends_lost_writes() -> bool {
    std::env::var("BRIDLE_MUTANT").is_ok_and(|mutant| mutant == "apply-a-retry-twice")
}

#[cfg(not(feature = "mutants"))]
const fn resends_lost_writes() -> bool {
    false
}

/// The leader is here. When it has just lost its leadership, the next try finds the new
/// one.
async fn call_local<Q: 'static, A: 'static>(
    local: &dyn LocalReplicas<Q, A>,
    partition: PartitionId,
    request: Q,
) -> Result<A, CallError> {
    match local.call(partition, request).await {
        Err(CallError::NoTable) => {
            Err(CallError::NoLeader("its replica has left this server".to_owned()))
        }
        other => other,
    }
}

impl<Q, A, C> CallPartition<Q, A> for RowClient<Q, A, C>
where
    Q: Serialize + Send + Sync + 'static,
    A: DeserializeOwned + Send + 'static,
    C: RowTransport,
{
    fn read_now(&self, partition: PartitionId, request: &Q) -> Option<Result<A, CallError>> {
        self.local.as_ref()?.read_now(partition, request)
    }

    fn call(&self, partition: PartitionId, request: Q) -> Boxed<'_, Result<A, CallError>> {
        Box::pin(self.call_leader(partition, request))
    }
}

/// Answers a request from the network out of this process's replicas: reads at once when
/// they can be, everything else later.
pub fn serve_rows<Q, A>(
    replicas: &Arc<dyn LocalReplicas<Q, A>>,
    is_read: fn(&Q) -> bool,
    body: &[u8],
) -> ServiceReply
where
    Q: DeserializeOwned + Send + Sync + 'static,
    A: Serialize + Send + 'static,
{
    let (partition, request) = match decode::<(PartitionId, Q)>(body) {
        Ok(asked) => asked,
        Err(bad) => {
            return ServiceReply::Now(encode_answer(&RowResponse::<A>::Malformed(bad.to_string())));
        }
    };
    let reads = is_read(&request);
    if reads
        && let Some(answer) = replicas.read_now(partition, &request)
        && !matches!(answer, Err(CallError::NoLeader(_)))
    {
        return ServiceReply::Now(encode_answer(&to_response(
            replicas.as_ref(),
            partition,
            answer,
        )));
    }
    let leader = replicas.leader(partition);
    if leader.is_some_and(|leader| leader.server != replicas.server()) {
        return ServiceReply::Now(encode_answer(&RowResponse::<A>::NotLeader {
            hint: leader,
            why: "another replica leads".to_owned(),
        }));
    }
    let replicas = replicas.clone();
    ServiceReply::Later(Box::pin(async move {
        let answer = replicas.call(partition, request).await;
        let to_response = to_response(replicas.as_ref(), partition, answer);
        // How large it is shows only when it is encoded.
        if reads {
            blocking::block_in_place(|| encode_answer(&to_response))
        } else {
            encode_answer(&to_response)
        }
    }))
}

/// Messages from this size on take long to read.
const LARGE_BYTES: usize = 1 << 20;

fn if_large<R>(bytes: usize, work: impl FnOnce() -> R) -> R {
    if bytes >= LARGE_BYTES { blocking::block_in_place(work) } else { work() }
}

fn to_response<Q: 'static, A: 'static>(
    replicas: &dyn LocalReplicas<Q, A>,
    partition: PartitionId,
    answer: Result<A, CallError>,
) -> RowResponse<A> {
    match answer {
        Ok(answer) => RowResponse::Answer(answer),
        Err(CallError::NoLeader(why)) => {
            let other =
                replicas.leader(partition).filter(|leader| leader.server != replicas.server());
            RowResponse::NotLeader { hint: other, why }
        }
        Err(error) => RowResponse::Failed(error),
    }
}

/// Postcard straight into the buffer that is sent.
struct BytesFlavor(BytesMut);

impl postcard::ser_flavors::Flavor for BytesFlavor {
    type Output = Bytes;

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.put_u8(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Bytes> {
        Ok(self.0.freeze())
    }
}

fn encode<T: Serialize>(message: &T) -> Result<Bytes, RowEncodeError> {
    let mut body = BytesMut::with_capacity(256);
    body.put_u8(VERSION);
    Ok(postcard::serialize_with_flavor(message, BytesFlavor(body))?)
}

/// A message of this server as a service's answer.
fn encode_answer<T: Serialize>(message: &T) -> Result<Bytes, ServiceError> {
    Ok(encode(message)?)
}

fn encode_request<Q: Serialize>(partition: PartitionId, request: &Q) -> Result<Bytes, CallError> {
    encode(&(partition, request)).map_err(|bad| CallError::Fault(Fault::internal(bad.to_string())))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, RowDecodeError> {
    match body.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(RowDecodeError::Malformed),
        Some((version, _)) => Err(RowDecodeError::Version(*version)),
        None => Err(RowDecodeError::Empty),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::{Vectors, variants_of};
    use crate::{FaultKind, TableId};

    const PARTITION: PartitionId = PartitionId { table: TableId(7), index: 300 };

    fn fault(kind: FaultKind) -> CallError {
        CallError::Fault(Fault::new(kind, "d"))
    }

    fn errors() -> Vec<(&'static str, CallError)> {
        vec![
            ("no-leader", CallError::NoLeader("a".into())),
            ("overloaded", CallError::Overloaded),
            ("read-only", CallError::ReadOnly("b".into())),
            ("no-table", CallError::NoTable),
            ("unknown", CallError::Unknown("c".into())),
            ("fault-damaged", fault(FaultKind::Damaged)),
            ("fault-full", fault(FaultKind::Full)),
            ("fault-stalled", fault(FaultKind::Stalled)),
            ("fault-io", fault(FaultKind::Io)),
            ("fault-internal", fault(FaultKind::Internal)),
            ("too-large", CallError::TooLarge("e".into())),
            ("out-of-memory", CallError::OutOfMemory),
        ]
    }

    /// Frozen: add lines for new versions and variants, never edit these. The requests
    /// and answers themselves are other crates'; a text and a number stand for them.
    #[test]
    fn the_envelope_is_frozen() {
        let mut vectors = Vectors::default();
        let request = encode_request(PARTITION, &"get".to_owned()).unwrap();
        assert_eq!(decode::<(PartitionId, String)>(&request), Ok((PARTITION, "get".to_owned())));
        vectors.push("request", &request);
        let sync = SyncRequest { partition: PARTITION, index: 1 << 35 };
        assert_eq!(SyncRequest::decode(&sync.encode()), Ok(sync));
        vectors.push("sync", &sync.encode());
        let hint = Some(Leader { server: ServerId(0x1234), term: 5 });
        let mut responses = vec![
            ("answer", RowResponse::Answer(300)),
            ("not-leader", RowResponse::NotLeader { hint: None, why: "f".into() }),
            ("not-leader-hint", RowResponse::NotLeader { hint, why: "g".into() }),
            ("strange", RowResponse::Malformed("h".into())),
        ];
        let failed = errors().into_iter().map(|(label, error)| (label, RowResponse::Failed(error)));
        responses.extend(failed);
        let bytes_of = |(label, to_response): (&'static str, RowResponse<u64>)| {
            let bytes = encode(&to_response).unwrap();
            assert_eq!(decode::<RowResponse<u64>>(&bytes), Ok(to_response));
            (label, bytes.to_vec())
        };
        let responses: Vec<_> = responses.into_iter().map(bytes_of).collect();
        for (number, name) in variants_of::<CallError>().iter().enumerate() {
            let is_shown = responses.iter().any(|(_, bytes)| bytes[1..3] == [1, number as u8]);
            assert!(is_shown, "give an example of the error {name}");
        }
        let faults =
            errors().into_iter().filter(|(_, error)| matches!(error, CallError::Fault(_))).count();
        assert_eq!(faults, variants_of::<FaultKind>().len(), "give an example of each kind");
        vectors.add::<RowResponse<u64>>("response", 1, responses);
        vectors.hold("rows.txt", include_str!("../tests/vectors/rows.txt"));
    }
}
