//! Meta's side of the channels: hears what servers report, tells them what is new, and
//! passes orders on. And answers questions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use cluster::net::{Channel, ChannelReceiver, ChannelSender, NetError, Peer, Service, To};
use cluster::news::{
    self, Ask, Assignment, FromMeta, Hello, NotLeading, Order, SeatWord, ToMeta, Told, Welcome,
};
use cluster::{Boxed, ServerId, TableId};
use tokio::sync::mpsc;
use tower::util::ServiceExt;

use crate::admin::{self, Local};
use crate::catalogue::{Meta, Seat};
use crate::error::MetaError;
use crate::picture::{Picture, pages};
use crate::state::Command;

/// Something is said to every server at least so often.
const BEAT: Duration = Duration::from_secs(1);
/// The largest body of a request or an answer of the admin API that goes from meta to
/// meta, bytes.
const ADMIN_BYTES_MAX: usize = 32 << 20;
/// How long a majority may take to confirm who has a seat.
const SEAT_PATIENCE: Duration = Duration::from_millis(500);
/// How long the meta that leads may take for a request of the admin API.
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
            let last = match meta.admit(&peer, &hello).await {
                Ok(admitted) => meta.serve(admitted, &sender, receiver).await,
                Err(last) => last,
            };
            if let Err(error) = sender.send(news::encode(&last)).await {
                tracing::debug!(server = %peer.server, %error, "a server has gone");
            }
        });
    }

    /// Registers a server; otherwise the last word to it.
    async fn admit(&self, peer: &Peer, hello: &[u8]) -> Result<Admitted, FromMeta> {
        let refused = |why: String| {
            tracing::warn!(server = %peer.server, remote = %peer.remote, why, "a server is refused");
            FromMeta::Refused(why)
        };
        let Hello { server, cluster, software } =
            news::decode(hello).map_err(|bad| refused(bad.to_string()))?;
        if server.id != peer.server {
            return Err(refused(format!("server {} says that it is {}", peer.server, server.id)));
        }
        if software.len() > 64 {
            return Err(refused("a version has at most 64 bytes".to_owned()));
        }
        let picture = self.picture().map_err(|_| FromMeta::NotLeading(self.not_leading()))?;
        if cluster.is_some() && cluster != picture.state.cluster {
            return Err(refused(
                "this is another cluster's meta: the server's data belongs elsewhere".to_owned(),
            ));
        }
        let id = server.id;
        let sits = self.seat_at(&server.address).map(|seat| Command::Sit { seat, server: id });
        // The seat first: who may not have it is not to be known.
        for command in sits.into_iter().chain([Command::Register(server)]) {
            match self.command(command).await {
                Ok(_) => {}
                Err(MetaError::Refused(refusal)) => return Err(refused(refusal.to_string())),
                Err(error) => {
                    tracing::info!(server = %id, %error, "a server can't be registered now");
                    return Err(FromMeta::NotLeading(self.not_leading()));
                }
            }
        }
        let mut roster = self.roster.lock();
        let picture = self.picture().map_err(|_| FromMeta::NotLeading(self.not_leading()))?;
        let (Some(cluster), Some(term)) = (picture.state.cluster, picture.term) else {
            return Err(FromMeta::NotLeading(self.not_leading()));
        };
        let session = roster.arrive(id, software, Instant::now());
        drop(roster);
        let orders = self.desk.lock().open(id, session);
        Ok(Admitted { id, session, term, cluster, orders })
    }

    /// Serves a channel until its end; the last word.
    async fn serve(
        &self,
        admitted: Admitted,
        sender: &ChannelSender,
        receiver: ChannelReceiver,
    ) -> FromMeta {
        let (id, session) = (admitted.id, admitted.session);
        let address = self.picture.borrow().servers.get(&id).map(|server| server.address.clone());
        tracing::info!(server = %id, address, "server is up");
        tokio::select! {
            () = self.hear(id, session, receiver) => {}
            () = self.tell(admitted, sender) => {}
        }
        if self.roster.lock().leave(id, session) {
            let address =
                self.picture.borrow().servers.get(&id).map(|server| server.address.clone());
            tracing::warn!(server = %id, address, "server is down: it has closed its connection, or that was lost");
        }
        self.desk.lock().close(id, session);
        self.stir();
        FromMeta::NotLeading(self.not_leading())
    }

    /// Hears a server until it has gone.
    async fn hear(&self, id: ServerId, session: u64, mut receiver: ChannelReceiver) {
        while let Some(message) = receiver.recv().await {
            match news::decode::<ToMeta>(&message) {
                Ok(ToMeta::Report(report)) => {
                    let mut roster = self.roster.lock();
                    let picture = self.picture.borrow().clone();
                    roster.report(id, session, report, &picture.state, Instant::now());
                    drop(roster);
                    self.stir();
                }
                Err(bad) => {
                    tracing::warn!(server = %id, %bad, "a server's channel is ended");
                    return;
                }
            }
        }
    }

    /// Tells a server what is new until this meta does not lead any more, the server has
    /// opened a newer channel, or it has gone.
    async fn tell(&self, admitted: Admitted, sender: &ChannelSender) {
        let Admitted { id, session, term, cluster, mut orders } = admitted;
        let mut pictures = self.picture.subscribe();
        let mut told = Known::default();
        if sender.send(news::encode(&FromMeta::Welcome(Welcome { cluster, term }))).await.is_err() {
            return;
        }
        loop {
            let picture = pictures.borrow_and_update().clone();
            if picture.term != Some(term) || !self.roster.lock().is_current(id, session) {
                return;
            }
            for message in told.news(id, &picture) {
                if sender.send(news::encode(&message)).await.is_err() {
                    return;
                }
            }
            let message = tokio::select! {
                changed = pictures.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                order = orders.recv() => match order {
                    Some(order) => FromMeta::Order(order),
                    None => return,
                },
                () = tokio::time::sleep(BEAT) => FromMeta::Beat,
            };
            if sender.send(news::encode(&message)).await.is_err() {
                return;
            }
        }
    }

    /// Answers a question that came by [`Service::Meta`].
    pub fn answer(
        self: &Arc<Self>,
        body: Bytes,
        local: Arc<dyn Local>,
    ) -> Boxed<'static, Result<Bytes, String>> {
        let meta = self.clone();
        Box::pin(async move {
            let told = match news::decode::<Ask>(&body).map_err(|bad| bad.to_string())? {
                Ask::EnsureTable { name } => match meta.ensure_table(&name).await {
                    Ok(table) => Told::Table((*table).clone()),
                    Err(error) => meta.told(error),
                },
                Ask::FindTable { name } => match meta.find_table(&name).await {
                    Ok(found) => Told::Found(found.map(|table| (*table).clone())),
                    Err(error) => meta.told(error),
                },
                Ask::ListTables => match meta.confirmed().await {
                    Ok(picture) => Told::Tables(
                        picture.tables.values().map(|table| (**table).clone()).collect(),
                    ),
                    Err(error) => meta.told(error),
                },
                Ask::NewTable => match meta.confirmed().await {
                    Ok(_) => Told::NewTable { partitions: meta.options.partitions },
                    Err(error) => meta.told(error),
                },
                Ask::Seat { seat, server } => Told::Seat(meta.seat_word(seat, server).await),
                Ask::Admin { method, path, body } => match meta.picture() {
                    Ok(_) => admin_answer(meta, local, &method, &path, body).await?,
                    Err(error) => meta.told(error),
                },
            };
            Ok(news::encode(&told))
        })
    }

    /// The seat of the meta that is reached at an address.
    fn seat_at(&self, address: &str) -> Option<u32> {
        let Seat::Member { members, .. } = &self.options.seat else { return None };
        members
            .iter()
            .position(|member| member == address)
            .and_then(|place| u32::try_from(place + 1).ok())
    }

    /// What is known here of a seat that a server wants whose meta remembers nothing.
    pub async fn seat_word(&self, seat: u32, server: ServerId) -> SeatWord {
        match tokio::time::timeout(SEAT_PATIENCE, self.confirmed()).await {
            Ok(Ok(picture)) => match picture.state.seats.get(&seat) {
                Some(known) if *known != server => SeatWord::Taken(*known),
                _ => SeatWord::Free,
            },
            _ if self.is_founded() => SeatWord::Unknown,
            _ => SeatWord::Unfounded,
        }
    }

    fn told(&self, error: MetaError) -> Told {
        match error {
            MetaError::NotLeading { .. } => Told::NotLeading(self.not_leading()),
            // More servers may come.
            MetaError::Refused(crate::state::Refusal::NotEnough(why)) => {
                Told::NotNow(why.to_string())
            }
            MetaError::Refused(refusal) => Told::Refused(refusal.to_string()),
            MetaError::DiskFull(why) => Told::Refused(why),
            MetaError::NotNow(why) | MetaError::NotYet(why) => Told::NotNow(why),
            MetaError::Unknown(why) => Told::Unknown(why),
            MetaError::Fault(_) => Told::Unknown(error.to_string()),
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
        let Seat::Member { net, .. } = &self.options.seat else { return None };
        if self.picture().is_ok() {
            return None;
        }
        let not_now = |why: String| MetaError::NotNow(why);
        let Some(leader) = self.leader_address() else {
            return Some(Err(not_now("no meta leads now".to_owned())));
        };
        let ask = Ask::Admin { method: method.to_owned(), path: path.to_owned(), body };
        let asked = net
            .call(To::Address(leader.clone()), Service::Meta, news::encode(&ask), ADMIN_TIMEOUT)
            .await;
        let at = |why: &dyn std::fmt::Display| format!("the meta at {leader}: {why}");
        Some(match asked.map(|answer| news::decode::<Told>(&answer)) {
            Ok(Ok(Told::Admin { status, body })) => Ok((status, body)),
            Ok(Ok(_)) => Err(not_now(format!("the meta at {leader} does not lead any more"))),
            Ok(Err(bad)) => Err(MetaError::Unknown(at(&bad))),
            Err(NetError::Lost(why)) if method != "GET" => Err(MetaError::Unknown(at(&why))),
            Err(error) => Err(not_now(at(&error))),
        })
    }
}

/// A server that was let in.
struct Admitted {
    id: ServerId,
    session: u64,
    term: u64,
    cluster: u64,
    orders: mpsc::Receiver<Order>,
}

/// What a server was told last.
#[derive(Default)]
struct Known {
    picture: Option<Arc<Picture>>,
    assignments: Option<BTreeMap<TableId, Arc<Assignment>>>,
}

impl Known {
    /// What is new in a picture, in messages.
    fn news(&mut self, server: ServerId, picture: &Arc<Picture>) -> Vec<FromMeta> {
        let before = self.picture.replace(picture.clone());
        let mut messages = Vec::new();
        let version = picture.version;
        if before.as_ref().is_none_or(|before| !Arc::ptr_eq(&before.servers, &picture.servers)) {
            let known = before.as_ref().map(|before| &*before.servers);
            messages
                .extend(pages(known, &picture.servers, version).into_iter().map(FromMeta::Servers));
        }
        // Routes before tables: whoever sees a table is to find its partitions.
        if before.as_ref().is_none_or(|before| !Arc::ptr_eq(&before.routes, &picture.routes)) {
            let known = before.as_ref().map(|before| &*before.routes);
            messages
                .extend(pages(known, &picture.routes, version).into_iter().map(FromMeta::Routes));
        }
        if before.as_ref().is_none_or(|before| before.version != version) {
            let known = before.as_ref().map(|before| &*before.tables);
            messages
                .extend(pages(known, &picture.tables, version).into_iter().map(FromMeta::Tables));
            // Also when nothing is new for this server: it is to say that it has
            // followed.
            let now = picture.assignments(server);
            messages.extend(
                pages(self.assignments.as_ref(), &now, version).into_iter().map(FromMeta::Assign),
            );
            self.assignments = Some(now);
        }
        messages
    }
}

async fn admin_answer(
    meta: Arc<Meta>,
    local: Arc<dyn Local>,
    method: &str,
    path: &str,
    body: Bytes,
) -> Result<Told, String> {
    let mut request = axum::http::Request::builder().method(method).uri(path);
    if !body.is_empty() {
        request = request.header(axum::http::header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Body::from(body)).map_err(|error| error.to_string())?;
    let response = match admin::inner(meta, local).oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let status = response.status().as_u16();
    let body =
        to_bytes(response.into_body(), ADMIN_BYTES_MAX).await.map_err(|error| error.to_string())?;
    Ok(Told::Admin { status, body })
}
