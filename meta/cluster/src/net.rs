//! Calls and channels between processes.
//!
//! Every process has one [`Net`]. It dials others when it has something to ask, one
//! connection for calls, one for Raft, one for meta and one for bulk, and serves those
//! who dial it. Who dials asks; who is dialed answers: so two processes that ask each
//! other have a connection in each direction.
//!
//! # Life of a call
//! The caller's task appends a frame to the connection's outbox and waits. If nothing
//! else is under way it writes the frame itself; else the writer's task takes all frames
//! that have gathered and writes them at once. The other side reads many frames at a
//! time, has each answered ([`Services::call`], where rows are served:
//! [`NetOptions::rows_runtime`]), and writes the answers that are there at once together;
//! those that take longer go out as they come. The answers of one read wake their
//! callers.
//!
//! # What a caller may rely on
//! - [`NetError::NotSent`]: the request did not reach the service, it is safe to try
//!   again. [`NetError::Lost`]: it may have. [`NetError::Refused`]: it has come, and this
//!   is the service's word. [`NetError::TooLarge`]: it was not sent, and never will be.
//! - Connections to different processes do not wait for each other. While one is down,
//!   calls over it fail at once or within 50 ms, and it is tried again every 100 ms. A
//!   dead one, however silently, is found within 2.4 s.
//! - A server that stops answers first what it was asked.
//!
//! # Invariants
//! - However long a call takes to be answered, connections are read, written and greeted,
//!   and give signs of life (`a_service_that_blocks_silences_no_connection`).
//! - Nobody is served who has not greeted: of the same cluster, meant for this server,
//!   with the secret and the certificate if there are any
//!   (`the_secret_is_asked_for_both_ways`,
//!   `foreign_certificates_are_refused`, `clusters_do_not_mix`).
//! - What waits is bounded: outboxes, channels, calls under way, half-open connections,
//!   of which nobody can take all (`a_slow_consumer_holds_its_sender_back`,
//!   `unauthenticated_peers_keep_no_member_out`).
//! - An announced length alone costs little (`an_announced_length_takes_no_room`).
//! - No bytes from the network panic (`any_bytes_are_frames_or_an_error`,
//!   `garbage_closes_the_connection_and_nothing_else`).

mod channel;
mod connection;
mod frame;
mod handshake;
mod outbox;
mod peer_connection;
mod reader;
mod serve;
mod socket;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
pub use channel::{Channel, ChannelReceiver, ChannelSender};
use connection::{CallRefused, Connection};
use parking_lot::Mutex;
use peer_connection::{Lane, PeerConnection};
use serde::{Deserialize, Serialize};
use slab::Slab;
pub use tls::NetTls;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Boxed, ServerId};

/// Which cluster a process belongs to: drawn when the cluster is made, so that two never
/// mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId(pub u64);

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The secret of a cluster's processes. Never sent, never shown.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// From a text of any length but 0; random and of 16 bytes or more is what a secret
    /// should be.
    pub fn new(text: impl AsRef<[u8]>) -> Result<Self, NetSetupError> {
        let bytes = text.as_ref();
        if bytes.is_empty() { Err(NetSetupError::EmptySecret) } else { Ok(Secret(bytes.into())) }
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Maximum number of connections in handshake, by default.
pub const HALF_OPEN_MAX: usize = 256;

/// Options of a process's [`Net`].
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// This process.
    pub server: ServerId,
    /// Its cluster; `None`: not known yet, any will do. See [`Net::join`].
    pub cluster: Option<ClusterId>,
    /// Its address for others, host:port; sent in the handshake.
    pub address: String,
    /// Asked of everybody, and proved to everybody.
    pub secret: Option<Secret>,
    /// TLS on every connection, both sides with certificates.
    pub tls: Option<NetTls>,
    /// Largest request, answer or message that is taken in.
    pub frame_bytes_max: usize,
    /// For resolving a name, and for each attempt to connect.
    pub connect_timeout: Duration,
    /// For TLS and greeting together.
    pub handshake_timeout: Duration,
    /// A sign of life is given in every such period; after five without one from the
    /// other side the connection is dead.
    pub ping_every: Duration,
    /// Connections that have not greeted yet; more are closed unheard.
    pub half_open_max: usize,
    /// Of these, how many from one address: a stranger must not keep out those who belong
    /// here.
    pub half_open_per_ip_max: usize,
    /// Connections of others in all.
    pub connections_max: usize,
    /// When it stops, calls that have come may take so long to be answered.
    pub drain_timeout: Duration,
    /// Runtime of the connections for Raft's messages; `None`: that of all others.
    /// Clients' load must not delay heartbeats, and a message is cheaper on Raft's own
    /// runtime.
    pub raft_runtime: Option<tokio::runtime::Handle>,
    /// Runtime that answers calls for rows and receives snapshots; `None`: that of the
    /// connections. A long command must not silence connections.
    pub rows_runtime: Option<tokio::runtime::Handle>,
}

impl NetOptions {
    /// A process without secret and TLS, of no cluster yet.
    pub fn new(server: ServerId, address: &str) -> Self {
        NetOptions {
            server,
            cluster: None,
            address: address.to_owned(),
            secret: None,
            tls: None,
            frame_bytes_max: 64 << 20,
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(3),
            ping_every: Duration::from_millis(400),
            half_open_max: HALF_OPEN_MAX,
            half_open_per_ip_max: 32,
            connections_max: 4096,
            drain_timeout: Duration::from_secs(5),
            raft_runtime: None,
            rows_runtime: None,
        }
    }
}

/// Why there is no [`Net`].
#[derive(Debug, thiserror::Error)]
pub enum NetSetupError {
    /// A file is missing or no PEM.
    #[error("read {file}: {why}")]
    File {
        /// Which.
        file: PathBuf,
        /// The error.
        why: String,
    },
    /// The key does not belong to the certificate, or the like.
    #[error("use the certificates: {0}")]
    Tls(String),
    /// An empty text is no secret.
    #[error("the cluster's secret is empty")]
    EmptySecret,
    /// The connections' tasks need a runtime.
    #[error("made outside of a tokio runtime: {0}")]
    NoRuntime(String),
    /// The address does not fit into a greeting.
    #[error("the address has {0} bytes, at most 512 will do")]
    Address(usize),
    /// The cap is 1 KiB at least and 1 GiB at most.
    #[error("frames of at most {0} bytes: 1024 to 1073741824 will do")]
    FrameCap(usize),
}

/// Destination of a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A server by its id, at the address that was last learned. Somebody else who
    /// answers there is refused.
    Server(ServerId),
    /// Any server that answers at host:port.
    Address(String),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Destination::Server(server) => write!(f, "server {server}"),
            Destination::Address(address) => f.write_str(address),
        }
    }
}

/// A service. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Service {
    /// Requests for rows of a partition.
    Rows = 1,
    /// Raft's messages: over a connection of their own.
    Raft = 2,
    /// Raft's snapshots: over a connection of their own.
    RaftBulk = 3,
    /// The metadata group: registration, reports, what is to be learned. Over a
    /// connection of their own.
    Meta = 4,
    /// Asks a replica, leading or not, if its log is on disk:
    /// [`SyncRequest`](crate::row_client::SyncRequest).
    Sync = 5,
    /// Asks a server which partitions it leads; the request is empty, the answer a list
    /// of [`PartitionId`](crate::PartitionId)
    /// ([`meta_protocol::encode`](crate::meta_protocol::encode)).
    Leads = 6,
}

impl Service {
    fn of(byte: u8) -> Option<Service> {
        [
            Service::Rows,
            Service::Raft,
            Service::RaftBulk,
            Service::Meta,
            Service::Sync,
            Service::Leads,
        ]
        .into_iter()
        .find(|service| *service as u8 == byte)
    }

    fn lane(self) -> Lane {
        match self {
            Service::Rows | Service::Sync => Lane::Calls,
            Service::Raft => Lane::Raft,
            Service::RaftBulk => Lane::Bulk,
            Service::Meta | Service::Leads => Lane::Meta,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The request did not reach the service: safe to try again.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It was sent, and no answer came (in time): outcome unknown.
    #[error("lost: {0}")]
    Lost(String),
    /// The other side's word.
    #[error("refused: {0}")]
    Refused(String),
    /// Larger than the other side takes: it was not sent, and trying again won't help.
    #[error("too large: {0}")]
    TooLarge(String),
}

/// The process at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id, as it said.
    pub server: ServerId,
    /// Its cluster, if it knew it when it connected.
    pub cluster: Option<ClusterId>,
    /// Its own address, as it says, host:port.
    pub address: String,
    /// Remote address of the socket.
    pub remote: SocketAddr,
}

/// Reason why a service has no answer to a call. The caller gets its text
/// ([`NetError::Refused`]); answers that callers react to are the service's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// The service needs a part that is not in this process, or not open yet.
    #[error("{0}")]
    NotOpen(&'static str),
    /// The request can't be read, or is not the caller's to make.
    #[error("{0}")]
    BadRequest(String),
    /// The service has tried and failed.
    #[error("{0}")]
    NotDone(String),
}

/// A service's answer to a call.
pub enum ServiceReply {
    /// Here it is: written together with others.
    Now(Result<Bytes, ServiceError>),
    /// It takes time: spawned.
    Later(Boxed<'static, Result<Bytes, ServiceError>>),
}

/// Services of a process for others.
pub trait Services: Send + Sync + 'static {
    /// Answers a call. Runs on the connection's reading task, or on one of the rows'
    /// runtime, so must not block: what takes time is [`ServiceReply::Later`]. `body` is
    /// a slice of what was read, up to 512 KiB with its neighbours: copy what is to be
    /// kept for long.
    fn call(&self, from: &Peer, service: Service, body: Bytes) -> ServiceReply;

    /// Takes a channel that was opened; dropping it ends it. Runs on the connection's
    /// reading task, too.
    fn channel(&self, from: &Peer, service: Service, hello: Bytes, channel: Channel);
}

/// Certificates that were read and fit each other.
pub struct NetCredentials(tls::Tls);

/// This process's end: what it is, whom it knows, its connections. Dropping it closes
/// those that it has dialed.
pub struct Net {
    options: NetOptions,
    tls: Option<ArcSwap<tls::Tls>>,
    runtime: tokio::runtime::Handle,
    cluster: Mutex<Option<ClusterId>>,
    addresses: Mutex<HashMap<ServerId, String>>,
    /// Bounded by the servers that were ever learned and the configured addresses.
    peer_connections: ArcSwap<HashMap<(Destination, Lane), Arc<PeerConnection>>>,
    peer_connections_change: Mutex<()>,
    accepted: Mutex<Slab<Arc<Connection>>>,
    stopped: CancellationToken,
}

impl Net {
    /// Reads the certificates, if any. Its tasks run on the runtime that this is called
    /// in.
    pub fn new(options: NetOptions) -> Result<Arc<Net>, NetSetupError> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| NetSetupError::NoRuntime(error.to_string()))?;
        if options.address.len() > 512 {
            return Err(NetSetupError::Address(options.address.len()));
        }
        if !(1 << 10..=1 << 30).contains(&options.frame_bytes_max) {
            return Err(NetSetupError::FrameCap(options.frame_bytes_max));
        }
        Ok(Arc::new(Net {
            tls: options.tls.as_ref().map(tls::Tls::new).transpose()?.map(ArcSwap::from_pointee),
            runtime,
            cluster: Mutex::new(options.cluster),
            addresses: Mutex::default(),
            peer_connections: ArcSwap::default(),
            peer_connections_change: Mutex::new(()),
            accepted: Mutex::default(),
            stopped: CancellationToken::new(),
            options,
        }))
    }

    /// This process.
    pub fn server(&self) -> ServerId {
        self.options.server
    }

    /// Its cluster, once known.
    pub fn cluster(&self) -> Option<ClusterId> {
        *self.cluster.lock()
    }

    /// The cluster has become known. Connections with members of another one, made while
    /// it was not, are closed.
    pub fn join(&self, cluster: ClusterId) {
        *self.cluster.lock() = Some(cluster);
        let dialed: Vec<_> = self
            .peer_connections
            .load()
            .values()
            .filter_map(|peer_connection| peer_connection.current())
            .collect();
        let accepted: Vec<_> =
            self.accepted.lock().iter().map(|(_, connection)| connection.clone()).collect();
        for connection in dialed.iter().chain(&accepted) {
            if let Some(theirs) = connection.peer.cluster.filter(|theirs| *theirs != cluster) {
                connection.close(&format!(
                    "this server belongs to cluster {cluster}, the other to {theirs}"
                ));
            }
        }
    }

    /// Address book: where a server is, host:port. May change at any time; names are
    /// resolved at each connect. A connection that is up stays.
    pub fn set_address(&self, server: ServerId, address: &str) {
        let before = self.addresses.lock().insert(server, address.to_owned());
        if before.as_deref() != Some(address) {
            let peer_connections = self.peer_connections.load();
            let all =
                Lane::ALL.map(|lane| peer_connections.get(&(Destination::Server(server), lane)));
            all.into_iter().flatten().for_each(|peer_connection| peer_connection.address_changed());
        }
    }

    /// The address that was last set.
    pub fn address_of(&self, server: ServerId) -> Option<String> {
        self.addresses.lock().get(&server).cloned()
    }

    /// True if the connection for calls is up.
    pub fn is_connected(&self, to: &Destination) -> bool {
        self.peer_connections
            .load()
            .get(&(to.clone(), Lane::Calls))
            .is_some_and(|peer_connection| peer_connection.current().is_some())
    }

    /// Serves others until `stop`, and then until what they asked is answered
    /// ([`NetOptions::drain_timeout`] at most).
    pub async fn serve(
        self: &Arc<Self>,
        listener: TcpListener,
        services: Arc<dyn Services>,
        stop: CancellationToken,
    ) {
        serve::serve(self.clone(), listener, services, stop).await;
    }

    /// Asks, and waits for the answer at most so long. Dropping the future withdraws the
    /// request if it has not gone out yet.
    pub async fn call(
        self: &Arc<Self>,
        to: Destination,
        service: Service,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, NetError> {
        let deadline = Instant::now() + timeout;
        let peer_connection = self.peer_connection(to, service.lane());
        loop {
            let connection = peer_connection.connected(self, deadline).await?;
            if body.len() > connection.frame_bytes_max() {
                return Err(connection.too_large("request", body.len()));
            }
            match connection.call(service, &body) {
                Ok(call) => return call.answer(deadline).await,
                Err(blocked) => wait(&connection, blocked, deadline).await?,
            }
        }
    }

    /// The name that the certificates of all servers bear, if they bear one; `None`:
    /// there is no TLS.
    pub fn tls_name(&self) -> Option<Option<&str>> {
        self.options.tls.as_ref().map(|files| files.name.as_deref())
    }

    /// Reads certificates. They are used when they are handed to [`Net::renew_tls`].
    ///
    /// # Errors
    /// Those that can't be used.
    pub fn read_tls(&self, files: &NetTls) -> Result<NetCredentials, NetSetupError> {
        tls::Tls::new(files).map(NetCredentials)
    }

    /// Connections that are made from now on use these certificates.
    pub fn renew_tls(&self, credentials: NetCredentials) {
        if let Some(tls) = &self.tls {
            tls.store(Arc::new(credentials.0));
        }
    }

    /// The certificates that are in use, DER: this server's chain, and its authorities.
    pub fn certificates(&self) -> Option<(Vec<Vec<u8>>, Vec<Vec<u8>>)> {
        let tls = self.tls.as_ref()?.load();
        let bytes = |certificates: &[rustls::pki_types::CertificateDer<'static>]| {
            certificates.iter().map(|one| one.to_vec()).collect()
        };
        Some((bytes(&tls.chain), bytes(&tls.authorities)))
    }

    /// Opens a two-way stream of messages. `hello` comes first and says what it is about.
    /// It has been sent when this returns, no more is known: a service that does not want
    /// it ends it.
    pub async fn open(
        self: &Arc<Self>,
        to: Destination,
        service: Service,
        hello: Bytes,
    ) -> Result<Channel, NetError> {
        // Longer than any connection takes to be made.
        let deadline =
            Instant::now() + 2 * (self.options.connect_timeout + self.options.handshake_timeout);
        let peer_connection = self.peer_connection(to, service.lane());
        loop {
            let connection = peer_connection.connected(self, deadline).await?;
            if hello.len() > connection.frame_bytes_max() {
                return Err(connection.too_large("greeting", hello.len()));
            }
            match connection.open(service, &hello) {
                Ok(channel) => return Ok(channel),
                Err(blocked) => wait(&connection, blocked, deadline).await?,
            }
        }
    }

    fn peer_connection(&self, to: Destination, lane: Lane) -> Arc<PeerConnection> {
        let key = (to, lane);
        if let Some(peer_connection) = self.peer_connections.load().get(&key) {
            return peer_connection.clone();
        }
        let _changing = self.peer_connections_change.lock();
        let mut peer_connections = HashMap::clone(&self.peer_connections.load());
        let peer_connection = peer_connections
            .entry(key.clone())
            .or_insert_with(|| PeerConnection::new(key.0, key.1))
            .clone();
        self.peer_connections.store(Arc::new(peer_connections));
        peer_connection
    }

    fn runtime(&self, lane: Lane) -> &tokio::runtime::Handle {
        match (lane, &self.options.raft_runtime) {
            (Lane::Raft, Some(raft)) => raft,
            _ => &self.runtime,
        }
    }

    /// Runtime that answers a lane's calls, if not that of its connections.
    fn answering_runtime(&self, lane: Lane) -> Option<tokio::runtime::Handle> {
        match lane {
            Lane::Calls | Lane::Bulk => self.options.rows_runtime.clone(),
            Lane::Raft | Lane::Meta => None,
        }
    }

    fn peer_info(&self) -> handshake::PeerInfo {
        handshake::PeerInfo {
            cluster: self.cluster(),
            server: self.options.server,
            address: self.options.address.clone(),
            frame_bytes_max: u32::try_from(self.options.frame_bytes_max).unwrap_or(u32::MAX),
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

/// Waits until it is worth trying again.
async fn wait(
    connection: &Connection,
    blocked: CallRefused,
    deadline: Instant,
) -> Result<(), NetError> {
    match blocked {
        CallRefused::Full(room) => tokio::time::timeout_at(deadline, room)
            .await
            .map_err(|_| NetError::NotSent(format!("{} takes nothing in", connection.peer.server))),
        // Its task ends, and dials again.
        CallRefused::Gone(why) if Instant::now() >= deadline => Err(NetError::NotSent(why)),
        CallRefused::Gone(_) => {
            tokio::task::yield_now().await;
            Ok(())
        }
    }
}

/// As every socket is set up.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)
}
