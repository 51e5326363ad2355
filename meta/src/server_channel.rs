//! Meta's side of the channels to servers: registration, reports, deltas, instructions;
//! and the requests of [`Service::Meta`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use cluster::meta_protocol::{
    self, Assignment, Instruction, MetaIndexStatus, MetaMessage, MetaRequest, MetaResponse,
    NotLeading, RegisterAccepted, RegisterRequest, ServerMessage,
};
use cluster::net::{
    Channel, ChannelReceiver, ChannelSender, Destination, NetError, Peer, Service, ServiceError,
};
use cluster::{Boxed, ServerId, TableId};
use tokio::sync::mpsc;
use tower::util::ServiceExt;

use crate::admin::{self, HostProcess};
use crate::error::MetaError;
use crate::image::{MetadataImage, deltas};
use crate::meta::{Meta, MetaMode};
use crate::state::MetaCommand;

/// Interval of meta's heartbeats to each server.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// The largest body of a request or an answer of the admin API that goes from meta to
/// meta, bytes.
const ADMIN_BYTES_MAX: usize = 32 << 20;
/// Timeout for a majority to confirm the owner of a meta index.
const META_INDEX_TIMEOUT: Duration = Duration::from_millis(500);
/// Timeout of a request of the admin API that is forwarded to the leading meta.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(60);

impl Meta {
    fn not_leading(&self) -> NotLeading {
        NotLeading { leader: self.leader_address() }
    }

    /// Takes a channel of a server ([`Service::Meta`]) and serves it on a task of its
    /// own, until either side ends it.
    pub fn channel(self: &Arc<Self>, peer: &Peer, hello: Bytes, channel: Channel) {
        let (meta, peer) = (self.clone(), peer.clone());
        tokio::spawn(async move {
            let (sender, receiver) = channel.split();
            let last = match meta.register_server(&peer, &hello).await {
                Ok(admitted) => meta.serve(admitted, &sender, receiver).await,
                Err(last) => last,
            };
            if let Err(error) = sender.send(meta_protocol::encode(&last)).await {
                tracing::debug!(server = %peer.server, %error, "server disconnected");
            }
        });
    }

    /// Registers a server; otherwise the last word to it.
    async fn register_server(
        &self,
        peer: &Peer,
        hello: &[u8],
    ) -> Result<Registration, MetaMessage> {
        let refused = |why: String| {
            let remote = peer.remote;
            tracing::warn!(server = %peer.server, %remote, why, "server rejected");
            MetaMessage::Refused(why)
        };
        let RegisterRequest { server, cluster, software } =
            meta_protocol::decode(hello).map_err(|bad| refused(bad.to_string()))?;
        if server.id != peer.server {
            return Err(refused(format!("server {} says that it is {}", peer.server, server.id)));
        }
        if software.len() > 64 {
            return Err(refused("a version has at most 64 bytes".to_owned()));
        }
        let image = self.image().map_err(|_| MetaMessage::NotLeading(self.not_leading()))?;
        if cluster.is_some() && cluster != image.state.cluster {
            return Err(refused(
                "this is another cluster's meta: the server's data belongs elsewhere".to_owned(),
            ));
        }
        let id = server.id;
        let sits = self
            .meta_index_at(&server.address)
            .map(|index| MetaCommand::ClaimMetaIndex { index, server: id });
        // The meta index first: a server that may not have it must not be registered.
        for command in sits.into_iter().chain([MetaCommand::Register(server)]) {
            match self.command(command).await {
                Ok(_) => {}
                Err(MetaError::Refused(refusal)) => return Err(refused(refusal.to_string())),
                Err(error) => {
                    tracing::info!(server = %id, %error, "server cannot be registered now");
                    return Err(MetaMessage::NotLeading(self.not_leading()));
                }
            }
        }
        let mut tracker = self.tracker.lock();
        let image = self.image().map_err(|_| MetaMessage::NotLeading(self.not_leading()))?;
        let (Some(cluster), Some(term)) = (image.state.cluster, image.term) else {
            return Err(MetaMessage::NotLeading(self.not_leading()));
        };
        let session = tracker.on_connected(id, software, Instant::now());
        drop(tracker);
        let instructions = self.controller.lock().open(id, session);
        Ok(Registration { id, session, term, cluster, instructions })
    }

    /// Serves a channel until its end; the last word.
    async fn serve(
        &self,
        admitted: Registration,
        sender: &ChannelSender,
        receiver: ChannelReceiver,
    ) -> MetaMessage {
        let (id, session) = (admitted.id, admitted.session);
        let address = self.image.borrow().servers.get(&id).map(|server| server.address.clone());
        tracing::info!(server = %id, address, "server is up");
        tokio::select! {
            () = self.receive_reports(id, session, receiver) => {}
            () = self.send_updates(admitted, sender) => {}
        }
        if self.tracker.lock().on_disconnected(id, session) {
            let address = self.image.borrow().servers.get(&id).map(|server| server.address.clone());
            tracing::warn!(server = %id, address, "server is down: connection closed or lost");
        }
        self.controller.lock().close(id, session);
        self.wake();
        MetaMessage::NotLeading(self.not_leading())
    }

    /// Takes in a server's reports until its channel ends.
    async fn receive_reports(&self, id: ServerId, session: u64, mut receiver: ChannelReceiver) {
        while let Some(message) = receiver.recv().await {
            match meta_protocol::decode::<ServerMessage>(&message) {
                Ok(ServerMessage::Report(report)) => {
                    let mut tracker = self.tracker.lock();
                    let image = self.image.borrow().clone();
                    tracker.report(id, session, report, &image.state, Instant::now());
                    drop(tracker);
                    self.wake();
                }
                Err(bad) => {
                    tracing::warn!(server = %id, %bad, "protocol error: channel closed");
                    return;
                }
            }
        }
    }

    /// Sends a server what has changed until this meta no longer leads, the server has
    /// opened a newer channel, or the channel ends.
    async fn send_updates(&self, admitted: Registration, sender: &ChannelSender) {
        let Registration { id, session, term, cluster, mut instructions } = admitted;
        let mut images = self.image.subscribe();
        let mut sent = SentImage::default();
        if sender
            .send(meta_protocol::encode(&MetaMessage::RegisterAccepted(RegisterAccepted {
                cluster,
                term,
            })))
            .await
            .is_err()
        {
            return;
        }
        loop {
            let image = images.borrow_and_update().clone();
            if image.term != Some(term) || !self.tracker.lock().is_current(id, session) {
                return;
            }
            for message in sent.deltas(id, &image) {
                if sender.send(meta_protocol::encode(&message)).await.is_err() {
                    return;
                }
            }
            let message = tokio::select! {
                changed = images.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                instruction = instructions.recv() => match instruction {
                    Some(instruction) => MetaMessage::Instruction(instruction),
                    None => return,
                },
                () = tokio::time::sleep(HEARTBEAT_INTERVAL) => MetaMessage::Heartbeat,
            };
            if sender.send(meta_protocol::encode(&message)).await.is_err() {
                return;
            }
        }
    }

    /// Answers a question that came by [`Service::Meta`].
    pub fn answer(
        self: &Arc<Self>,
        body: Bytes,
        local: Arc<dyn HostProcess>,
    ) -> Boxed<'static, Result<Bytes, ServiceError>> {
        let meta = self.clone();
        Box::pin(async move {
            let response = match meta_protocol::decode::<MetaRequest>(&body)
                .map_err(|bad| ServiceError::BadRequest(bad.to_string()))?
            {
                MetaRequest::EnsureTable { name } => match meta.ensure_table(&name).await {
                    Ok(table) => MetaResponse::Table((*table).clone()),
                    Err(error) => meta.error_response(error),
                },
                MetaRequest::FindTable { name } => match meta.find_table(&name).await {
                    Ok(found) => MetaResponse::Found(found.map(|table| (*table).clone())),
                    Err(error) => meta.error_response(error),
                },
                MetaRequest::ListTables => match meta.confirmed().await {
                    Ok(image) => MetaResponse::Tables(
                        image.tables.values().map(|table| (**table).clone()).collect(),
                    ),
                    Err(error) => meta.error_response(error),
                },
                MetaRequest::NewTable => match meta.confirmed().await {
                    Ok(_) => MetaResponse::NewTable { partitions: meta.options.partitions },
                    Err(error) => meta.error_response(error),
                },
                MetaRequest::MetaIndex { index, server } => {
                    MetaResponse::MetaIndex(meta.meta_index_status(index, server).await)
                }
                MetaRequest::Admin { method, path, body } => match meta.image() {
                    Ok(_) => admin_answer(meta, local, &method, &path, body).await?,
                    Err(error) => meta.error_response(error),
                },
            };
            Ok(meta_protocol::encode(&response))
        })
    }

    /// The meta index of an address.
    fn meta_index_at(&self, address: &str) -> Option<u32> {
        let MetaMode::Member { members, .. } = &self.options.mode else { return None };
        members
            .iter()
            .position(|member| member == address)
            .and_then(|place| u32::try_from(place + 1).ok())
    }

    /// The status of a meta index for a server whose meta has no votes.
    pub async fn meta_index_status(&self, index: u32, server: ServerId) -> MetaIndexStatus {
        match tokio::time::timeout(META_INDEX_TIMEOUT, self.confirmed()).await {
            Ok(Ok(image)) => match image.state.meta_members.get(&index) {
                Some(known) if *known != server => MetaIndexStatus::Taken(*known),
                _ => MetaIndexStatus::Free,
            },
            _ if self.has_cluster_id() => MetaIndexStatus::Unknown,
            _ => MetaIndexStatus::NoCluster,
        }
    }

    fn error_response(&self, error: MetaError) -> MetaResponse {
        match error {
            MetaError::NotLeading { .. } => MetaResponse::NotLeading(self.not_leading()),
            // More servers may come.
            MetaError::Refused(crate::state::Refusal::NotEnoughServers(why)) => {
                MetaResponse::NotNow(why.to_string())
            }
            MetaError::Refused(refusal) => MetaResponse::Refused(refusal.to_string()),
            MetaError::DiskFull(why) => MetaResponse::Refused(why),
            MetaError::NotNow(why) | MetaError::NotYet(why) => MetaResponse::NotNow(why),
            MetaError::Unknown(why) => MetaResponse::Unknown(why),
            MetaError::Fault(fault) => MetaResponse::Fault(fault),
        }
    }

    /// Has the meta that leads answer a request of the admin API; `None`: that is this
    /// one. With the status and JSON.
    ///
    /// # Errors
    /// [`MetaError::NotNow`]: nothing was changed. [`MetaError::Unknown`]: the request or
    /// its answer got lost.
    pub(crate) async fn forward(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> Option<Result<(u16, Bytes), MetaError>> {
        let MetaMode::Member { net, .. } = &self.options.mode else { return None };
        if self.image().is_ok() {
            return None;
        }
        let not_now = |why: String| MetaError::NotNow(why);
        let Some(leader) = self.leader_address() else {
            return Some(Err(not_now("no meta leads now".to_owned())));
        };
        let ask = MetaRequest::Admin { method: method.to_owned(), path: path.to_owned(), body };
        let asked = net
            .call(
                Destination::Address(leader.clone()),
                Service::Meta,
                meta_protocol::encode(&ask),
                ADMIN_TIMEOUT,
            )
            .await;
        let at = |why: &dyn std::fmt::Display| format!("the meta at {leader}: {why}");
        Some(match asked.map(|answer| meta_protocol::decode::<MetaResponse>(&answer)) {
            Ok(Ok(MetaResponse::Admin { status, body })) => Ok((status, body)),
            Ok(Ok(_)) => Err(not_now(format!("the meta at {leader} no longer leads"))),
            Ok(Err(bad)) => Err(MetaError::Unknown(at(&bad))),
            Err(NetError::Lost(why)) if method != "GET" => Err(MetaError::Unknown(at(&why))),
            Err(error) => Err(not_now(at(&error))),
        })
    }
}

/// A server that was let in.
struct Registration {
    id: ServerId,
    session: u64,
    term: u64,
    cluster: u64,
    instructions: mpsc::Receiver<Instruction>,
}

/// The image that a server received last.
#[derive(Default)]
struct SentImage {
    image: Option<Arc<MetadataImage>>,
    assignments: Option<BTreeMap<TableId, Arc<Assignment>>>,
}

impl SentImage {
    /// Messages that bring the server up to an image.
    fn deltas(&mut self, server: ServerId, image: &Arc<MetadataImage>) -> Vec<MetaMessage> {
        let before = self.image.replace(image.clone());
        let mut messages = Vec::new();
        let version = image.version;
        if before.as_ref().is_none_or(|before| !Arc::ptr_eq(&before.servers, &image.servers)) {
            let known = before.as_ref().map(|before| &*before.servers);
            messages.extend(
                deltas(known, &image.servers, version).into_iter().map(MetaMessage::Servers),
            );
        }
        // Routes before tables: a proxy that sees a table must find its partitions.
        if before.as_ref().is_none_or(|before| !Arc::ptr_eq(&before.routes, &image.routes)) {
            let known = before.as_ref().map(|before| &*before.routes);
            messages
                .extend(deltas(known, &image.routes, version).into_iter().map(MetaMessage::Routes));
        }
        if before.as_ref().is_none_or(|before| before.version != version) {
            let known = before.as_ref().map(|before| &*before.tables);
            messages
                .extend(deltas(known, &image.tables, version).into_iter().map(MetaMessage::Tables));
            // Also when nothing is new for this server: it is to say that it has
            // followed.
            let now = image.assignments(server);
            messages.extend(
                deltas(self.assignments.as_ref(), &now, version)
                    .into_iter()
                    .map(MetaMessage::Assignments),
            );
            self.assignments = Some(now);
        }
        messages
    }
}

async fn admin_answer(
    meta: Arc<Meta>,
    local: Arc<dyn HostProcess>,
    method: &str,
    path: &str,
    body: Bytes,
) -> Result<MetaResponse, ServiceError> {
    let failed = |error: &dyn std::fmt::Display| ServiceError::NotDone(error.to_string());
    let mut request = axum::http::Request::builder().method(method).uri(path);
    if !body.is_empty() {
        request = request.header(axum::http::header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Body::from(body)).map_err(|error| failed(&error))?;
    let response = match admin::unguarded_router(meta, local).oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let status = response.status().as_u16();
    let body =
        to_bytes(response.into_body(), ADMIN_BYTES_MAX).await.map_err(|error| failed(&error))?;
    Ok(MetaResponse::Admin { status, body })
}
