//! Rebuild of a replica from its leader's snapshot, after its store was damaged or
//! diverged. Its Raft group does not run meanwhile.
//!
//! Vote and log are kept: the replica keeps its promises, and entries that it has
//! acknowledged stay acknowledged. Meanwhile it neither votes nor takes entries.
//!
//! # Life of a rebuild
//! 1. The replica asks the other members for a snapshot
//!    ([`MessageKind::SnapshotRequest`]). The leader sends it as it does to a follower
//!    that lacks too much of the log.
//! 2. The received files become a store of their own, which is checked: it must reach as
//!    far as announced, and to the beginning of the log kept here.
//! 3. The leader's vote is saved, as with everything that a leader sends.
//! 4. [`finish_rebuild`] moves the damaged store aside and the new one into its place.
//!    Then the group is started as after any restart.
//!
//! # Layout
//! Beside a store at `<store>`: `<store>.fresh` is arriving, `<store>.ready` is complete
//! and about to take its place, `<store>.damaged` is the last one that was moved aside,
//! kept for people to look at and to remove.
//!
//! # Invariants
//! - The damaged store stays in its place until another is complete
//!   (`storage/tests/replication.rs`, `a_damaged_replica_is_taken_anew_from_the_leader`),
//!   and a complete one takes its place, whenever the process ends
//!   (`tests/raft_snapshots.rs`, `next_process_finishes_an_interrupted_rebuild`).
//! - No entry that may be committed is dropped: the log is kept when it has the
//!   snapshot's last entry, and else holds nothing after that entry that could be
//!   committed (Raft paper, figure 13, steps 6 and 7).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use openraft::RaftLogReader;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::SnapshotResponse;
use openraft::storage::RaftLogStorage;

use super::GroupLog;
use super::group::Group;
use super::machine::{read_state, snapshot};
use super::message;
use super::peers::Peer;
use super::receive::ReceiveError;
use super::snapshot::{self, INCOMING_DIR, IncomingSnapshot, SnapshotInstall, blocking};
use super::suspect::LogStatus;
use super::ticker::Ticker;
use super::transport::{MessageKind, RaftMessage, Transport};
use super::types::{LogId, Node, RaftId, Types};
use crate::store::{Fault, SharedResources, Store};

/// Timeout of a request for a snapshot.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

const FRESH: &str = "fresh";
const READY: &str = "ready";
const DAMAGED: &str = "damaged";

/// Options of a rebuild.
pub struct RebuildOptions {
    /// This replica's Raft id.
    pub id: RaftId,
    /// The group's part of the node's log; its Raft must have been shut down.
    pub log: GroupLog,
    /// The directory of its store, which must have been closed.
    pub directory: PathBuf,
    /// Resources that stores share.
    pub shared: SharedResources,
    /// The members of the group.
    pub members: Vec<(RaftId, Node)>,
    /// The transport to them.
    pub transport: Arc<dyn Transport>,
    /// The process's ticker.
    pub ticker: Arc<Ticker>,
}

/// A replica that is being rebuilt.
pub struct Rebuild {
    options: RebuildOptions,
    incoming: Arc<tokio::sync::Mutex<IncomingSnapshot>>,
    failed_requests: AtomicU32,
    is_done: AtomicBool,
}

impl Rebuild {
    /// Nothing happens before [`Rebuild::request_snapshot`].
    pub fn new(options: RebuildOptions) -> Rebuild {
        Rebuild {
            options,
            incoming: Arc::default(),
            failed_requests: 0.into(),
            is_done: false.into(),
        }
    }

    /// Asks the other members for a snapshot, once. Asking again, also while one is
    /// arriving, is harmless.
    pub async fn request_snapshot(&self) {
        let RebuildOptions { id, log, members, transport, .. } = &self.options;
        let asked = members.iter().filter(|(member, _)| member != id).map(|(member, node)| {
            let message = RaftMessage {
                group: log.id(),
                from: *id,
                target: *member,
                kind: MessageKind::SnapshotRequest,
                body: Bytes::new(),
                timeout: REQUEST_TIMEOUT,
            };
            transport.send(node, message)
        });
        let answers = join_all(asked).await;
        if answers.iter().any(Result::is_ok) {
            self.failed_requests.store(0, Ordering::Relaxed);
            return;
        }
        self.failed_requests.fetch_add(1, Ordering::Relaxed);
        for error in answers.into_iter().filter_map(Result::err) {
            tracing::debug!(group = log.id(), %error, "a member refuses to send its snapshot");
        }
    }

    /// The number of requests in a row that no member granted.
    pub fn failed_requests(&self) -> u32 {
        self.failed_requests.load(Ordering::Relaxed)
    }

    /// True when a new store is in place, so that the group may be started; or after
    /// [`Rebuild::stop`].
    pub fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }

    /// Waits for the message in progress, and takes no more.
    pub async fn stop(&self) {
        let _receiving = self.incoming.lock().await;
        self.is_done.store(true, Ordering::Release);
    }

    /// Handles a message from the transport and returns the reply to send back.
    ///
    /// # Errors
    /// The reason why there is no reply; messages that have nothing to do with a snapshot
    /// are refused.
    pub fn receive(&self, message: RaftMessage) -> BoxFuture<'_, Result<Bytes, ReceiveError>> {
        async move {
            let RebuildOptions { id, log, directory, shared, .. } = &self.options;
            if (message.group, message.target) != (log.id(), *id) {
                return Err(ReceiveError::NoSuchReplica(message.target));
            }
            // One message at a time, as in a replica that runs.
            let incoming = self.incoming.clone().lock_owned().await;
            if self.is_done() {
                return Err(ReceiveError::Unavailable("this replica's rebuild is over".to_owned()));
            }
            match message.kind {
                MessageKind::Ping => Ok(Bytes::new()),
                // Until it has a state again it can neither vote nor lead.
                MessageKind::LogStatus => {
                    let log_status = LogStatus { is_suspect: true, has_leader: false, last: None };
                    message::encode(&log_status).map_err(ReceiveError::Malformed)
                }
                MessageKind::SnapshotOffer => {
                    shared.room(directory).map_err(unavailable)?;
                    let term = vote(log).await?.map_or(0, |vote| vote.leader_id.term.0);
                    IncomingSnapshot::offer(
                        incoming,
                        &message.body,
                        sibling(directory, FRESH).join(INCOMING_DIR),
                        term,
                    )
                    .await
                }
                MessageKind::SnapshotChunk => {
                    shared.room(directory).map_err(unavailable)?;
                    IncomingSnapshot::chunk(incoming, message.body).await
                }
                MessageKind::SnapshotInstall => {
                    let (install, mut incoming) =
                        IncomingSnapshot::complete(incoming, &message.body).await?;
                    // Consumed, also when the install fails.
                    incoming.clear();
                    self.install(&install).await?;
                    self.is_done.store(true, Ordering::Release);
                    message::encode(&SnapshotResponse::<Types>::new(install.vote))
                        .map_err(ReceiveError::Malformed)
                }
                _ => Err(ReceiveError::Unavailable("this replica is being rebuilt".to_owned())),
            }
        }
        .boxed()
    }

    async fn install(&self, install: &SnapshotInstall) -> Result<(), ReceiveError> {
        let RebuildOptions { log, directory, shared, ticker, .. } = &self.options;
        let own = vote(log).await?;
        if !install.vote.committed || own.is_some_and(|own| own > install.vote) {
            return Err(ReceiveError::Unavailable(
                "a snapshot from the leader of an earlier term".to_owned(),
            ));
        }
        let (fresh, ready) = (sibling(directory, FRESH), sibling(directory, READY));
        let made = {
            let (shared, fresh) = (shared.clone(), fresh.clone());
            move || {
                Store::make(&fresh.join(INCOMING_DIR), &fresh).map_err(unavailable)?;
                last_log_id_of(&shared, &fresh).map_err(unavailable)
            }
        };
        let last = blocking(made).await?;
        if last < install.meta.last_log_id || last < log.purged() {
            return Err(ReceiveError::Unavailable(format!(
                "the received snapshot ends at {last:?}, before the announced entry or the log"
            )));
        }
        log.clone().save_vote(&install.vote).await.map_err(unavailable)?;
        blocking(move || rename(&fresh, &ready).map_err(unavailable)).await?;
        finish_rebuild(directory, log, shared).await.map_err(unavailable)?;
        // The sender takes the reply for a promise to elect no other leader for one
        // lease.
        ticker.record_promise(log.id());
        Ok(())
    }
}

/// Puts a complete rebuilt store into its place, if there is one, also from an earlier
/// process. To be called before the store at `directory` is opened.
///
/// # Errors
/// An error of the file system, the log or the store.
pub async fn finish_rebuild(
    directory: &Path,
    log: &GroupLog,
    shared: &SharedResources,
) -> io::Result<()> {
    let (fresh, ready) = (sibling(directory, FRESH), sibling(directory, READY));
    let found = {
        let (shared, ready) = (shared.clone(), ready.clone());
        move || -> io::Result<Option<Option<LogId>>> {
            // An earlier process had not received all of it.
            snapshot::remove(&fresh)?;
            Ok(if ready.exists() { Some(last_log_id_of(&shared, &ready)?) } else { None })
        }
    };
    let Some(last) = tokio::task::spawn_blocking(found).await.map_err(io::Error::other)?? else {
        return Ok(());
    };
    if let Some(last) = last {
        let is_in_log = log.purged() == Some(last) || log.log_id(last.index) == Some(last);
        if !is_in_log {
            log.restart_after(last).await?;
        }
    }
    let directory = directory.to_owned();
    let placed = move || {
        if directory.exists() {
            rename(&directory, &sibling(&directory, DAMAGED))?;
            let kept = sibling(&directory, DAMAGED);
            tracing::warn!(
                kept = %kept.display(),
                "a damaged store was moved aside; it may be removed"
            );
        }
        rename(&ready, &directory)
    };
    tokio::task::spawn_blocking(placed).await.map_err(io::Error::other)?
}

/// The directories that a rebuild may leave beside the store at `directory`.
pub fn rebuild_dirs(directory: &Path) -> [PathBuf; 3] {
    [FRESH, READY, DAMAGED].map(|what| sibling(directory, what))
}

fn sibling(directory: &Path, what: &str) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    PathBuf::from(name)
}

/// Replaces directory `to` by `from`, durably.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    snapshot::remove(to)?;
    fs::rename(from, to)?;
    to.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// The last entry of a closed store.
fn last_log_id_of(shared: &SharedResources, directory: &Path) -> Result<Option<LogId>, Fault> {
    let store = Store::open(shared, directory)?;
    let (last, _) = read_state(store.applied()?)?;
    store.close()?;
    Ok(last)
}

async fn vote(log: &GroupLog) -> Result<Option<super::types::Vote>, ReceiveError> {
    log.clone().read_vote().await.map_err(unavailable)
}

fn unavailable(error: impl std::fmt::Display) -> ReceiveError {
    ReceiveError::Unavailable(error.to_string())
}

impl Group {
    /// Starts to send this replica's snapshot to a member that asks for it.
    pub(super) async fn send_snapshot(&self, to: RaftId) -> Result<Bytes, ReceiveError> {
        let inner = &self.inner;
        // Then the snapshot has all that was committed before, and more than the other's
        // log can contradict.
        self.confirm_leadership().await.map_err(unavailable)?;
        let (vote, node) = {
            let server = inner.server.borrow_watched();
            (server.vote, server.membership_config.membership().get_node(&to).copied())
        };
        let node = node.ok_or_else(|| unavailable(format!("{to} is no member")))?;
        if !inner.peers.pins.is_pinned(to) {
            let state = snapshot(&inner.store, inner.store.applied().map_err(unavailable)?)
                .map_err(unavailable)?;
            let peer =
                Peer { peers: inner.peers.clone(), target: to, node, is_for_heartbeats: false };
            tokio::spawn(async move {
                if let Err(error) = snapshot::send(&peer, vote, state).await {
                    tracing::warn!(to, %error, "a requested snapshot cannot be sent");
                }
            });
        }
        Ok(Bytes::new())
    }
}
