//! openraft's state machine over a [`Store`].
//!
//! An entry's payload is a finished batch, so to apply it is to write it: all entries
//! that openraft hands over at once are applied as one write, with the last one's log id.
//!
//! # Life of an entry
//! A committed entry is read from the log, checked, and applied on the Raft runtime's own
//! thread (microseconds). When RocksDB would stall the writer (flushes behind, disk full)
//! or the write is large, it moves to a blocking thread, so that heartbeats of other
//! groups go on. Then its proposer is answered, and [`Progress`] moves.
//!
//! # Snapshots
//! openraft's snapshot is here the state on disk: nothing is copied until a replica asks
//! for it. openraft purges the log only up to its snapshot, so only entries that RocksDB
//! has flushed are ever purged. To send a snapshot, [`SnapshotSource::Local`] makes a
//! RocksDB checkpoint (hard links) of the current state, which may be newer than
//! announced.
//!
//! # Invariants
//! - The log is never purged beyond the flushed entry
//!   (`only_flushed_entries_are_purged`).
//! - openraft is told of no state on disk that is newer than what it has handed over
//!   (`installed_snapshot_keeps_its_announced_meta`).
//! - On a full disk an entry waits until it can be written; nothing stops
//!   (`tests/disk_full.rs`).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{
    ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot,
};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::types::{
    Entry, EntryPayload, LeaderId, LogId, Node, SnapshotMeta, StoredMembership, Types,
};
#[cfg(test)]
use super::vectors::{self, Sample};
use crate::mutants::{self, Rule};
use crate::store::{AppliedPoint, EntryWrite, Fault, OnStall, Store, StoreHealth};

/// Version of the encoded log ids and memberships in the store.
const VERSION: u8 = 1;
/// Larger writes leave the Raft runtime's thread.
const INLINE_BYTES_MAX: usize = 128 << 10;
/// The most bytes of entries that become one RocksDB write.
const WRITE_BYTES_MAX: usize = 4 << 20;
/// Interval between two attempts to write to a full disk.
const DISK_FULL_RETRY: Duration = Duration::from_millis(100);

/// The last entry that a group has applied, as a channel.
pub type Progress = watch::Receiver<Option<LogId>>;

/// The state machine of one replica.
pub struct Machine {
    store: Store,
    applied: Option<LogId>,
    membership: StoredMembership,
    progress: watch::Sender<Option<LogId>>,
    announced: AnnouncedIndex,
    ahead: SnapshotAhead,
}

/// The meta that openraft knows of an installed snapshot, as long as the state holds more
/// than that. openraft must not learn of a state on disk that is newer than what it has
/// handed over itself: it would take a leader's snapshot of that age for one that is
/// installed already, and answer so.
#[derive(Clone, Default)]
struct SnapshotAhead(Arc<Mutex<Option<SnapshotMeta>>>);

/// Index of the newest state on disk that openraft was told of.
#[derive(Debug, Clone, Default)]
pub(super) struct AnnouncedIndex(Arc<AtomicU64>);

impl AnnouncedIndex {
    pub(super) fn index(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl SnapshotAhead {
    /// Records a snapshot that is about to be installed.
    fn announced(&self, meta: &SnapshotMeta) {
        *self.0.lock() = Some(meta.clone());
    }

    /// Records that openraft has handed over everything up to an entry; `applied` is the
    /// store's last one.
    fn handed_over(&self, index: u64, applied: Option<LogId>) {
        if applied.is_none_or(|applied| index >= applied.index) {
            *self.0.lock() = None;
        }
    }

    /// The state on disk, with the meta that openraft may know.
    fn or(
        &self,
        mut on_disk: Snapshot<LeaderId, u64, Node, SnapshotSource>,
    ) -> Snapshot<LeaderId, u64, Node, SnapshotSource> {
        if let Some(meta) =
            self.0.lock().as_ref().filter(|meta| meta.last_log_id < on_disk.meta.last_log_id)
        {
            on_disk.meta = meta.clone();
        }
        on_disk
    }
}

/// The files of a snapshot, at the sender or at the receiver.
#[derive(Clone)]
pub enum SnapshotSource {
    /// This replica's live state; [`SnapshotSource::checkpoint`] makes files of it.
    Local(Store),
    /// A directory of received files, checkpointed by the sender. Installing consumes it.
    Received(PathBuf),
}

impl std::fmt::Debug for SnapshotSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SnapshotSource::Local(store) => write!(f, "Local({})", store.path().display()),
            SnapshotSource::Received(directory) => write!(f, "Received({})", directory.display()),
        }
    }
}

impl SnapshotSource {
    /// Writes the state as files into `directory`, which must not exist; the files of the
    /// store are linked, not copied. Blocks.
    pub fn checkpoint(&self, directory: &std::path::Path) -> Result<(), Fault> {
        match self {
            SnapshotSource::Local(store) => store.checkpoint(directory),
            SnapshotSource::Received(received) => Err(Fault::Io {
                doing: format!("checkpoint {}", received.display()),
                reason: "these are received files, not a live store".into(),
            }),
        }
    }
}

impl Machine {
    /// The state machine of `store`, and the channel of its progress.
    pub fn new(store: Store) -> Result<(Self, Progress), Fault> {
        let (applied, membership) = read_state(store.applied()?)?;
        let (progress, news) = watch::channel(applied);
        Ok((
            Self {
                store,
                applied,
                membership,
                progress,
                announced: AnnouncedIndex::default(),
                ahead: SnapshotAhead::default(),
            },
            news,
        ))
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The index of the newest state on disk that openraft was told of.
    pub(super) fn announced(&self) -> AnnouncedIndex {
        self.announced.clone()
    }

    fn snapshot_builder(&self) -> SnapshotBuilder {
        SnapshotBuilder {
            store: self.store.clone(),
            announced: self.announced.clone(),
            ahead: self.ahead.clone(),
        }
    }

    async fn write(&mut self, pending: &mut ApplyBatch) -> io::Result<()> {
        let Some(last) = pending.last.take() else { return Ok(()) };
        let writes = std::mem::take(&mut pending.writes);
        let inline = pending.bytes <= INLINE_BYTES_MAX;
        pending.bytes = 0;
        let outcome =
            if inline { self.store.apply(&writes, OnStall::Fail) } else { Err(Fault::Stalled) };
        match outcome {
            Ok(()) => {}
            Err(Fault::Stalled | Fault::DiskFull(_)) => {
                let store = self.store.clone();
                tokio::task::spawn_blocking(move || write_until_space(&store, &writes))
                    .await
                    .map_err(io::Error::other)??;
            }
            Err(fault) => return Err(fault.into()),
        }
        if let Some(membership) = pending.membership.take() {
            self.membership = membership;
        }
        self.applied = Some(last);
        self.progress.send_replace(Some(last));
        for responder in pending.responders.drain(..) {
            responder.send(());
        }
        Ok(())
    }
}

/// Writes until it succeeds or the store is broken or closed. It waits out a full disk,
/// because a committed entry cannot be refused.
fn write_until_space(store: &Store, writes: &[EntryWrite]) -> Result<(), Fault> {
    let mut was_logged = false;
    loop {
        match store.apply(writes, OnStall::Wait) {
            Err(Fault::DiskFull(reason)) => {
                if !was_logged {
                    tracing::error!(
                        store = %store.path().display(),
                        %reason,
                        "the disk is full: writes wait until there is space, reads go on"
                    );
                    was_logged = true;
                }
                std::thread::sleep(DISK_FULL_RETRY);
            }
            Ok(()) => {
                if was_logged {
                    tracing::info!(
                        store = %store.path().display(),
                        "the disk has space again: writes go on"
                    );
                }
                return Ok(());
            }
            Err(fault) => return Err(fault),
        }
    }
}

/// Entries collected for one write.
#[derive(Default)]
struct ApplyBatch {
    writes: Vec<EntryWrite>,
    bytes: usize,
    last: Option<LogId>,
    membership: Option<StoredMembership>,
    responders: Vec<ApplyResponder<Types>>,
}

impl ApplyBatch {
    fn add(&mut self, entry: Entry, responder: Option<ApplyResponder<Types>>) -> io::Result<()> {
        let log_id = entry.log_id;
        let membership = entry
            .get_membership()
            .map(|membership| StoredMembership::new(Some(log_id), membership));
        let batch = match entry.payload {
            EntryPayload::Normal(payload) => payload.0,
            EntryPayload::Blank | EntryPayload::Membership(_) => Bytes::new(),
        };
        self.bytes += batch.len();
        self.writes.push(EntryWrite {
            index: log_id.index,
            log_id: encode(&log_id)?,
            batch,
            membership: membership.as_ref().map(encode).transpose()?,
        });
        self.membership = membership.or(self.membership.take());
        self.last = Some(log_id);
        self.responders.extend(responder);
        Ok(())
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotSource;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + Send,
    {
        let mut pending = ApplyBatch::default();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            // An installed snapshot may be newer than announced: entries that it holds
            // already are not applied again, or readers would see older values again.
            if self.applied.is_some_and(|applied| entry.log_id.index <= applied.index) {
                self.ahead.handed_over(entry.log_id.index, self.applied);
                if let Some(responder) = responder {
                    responder.send(());
                }
                continue;
            }
            pending.add(entry, responder)?;
            if pending.bytes >= WRITE_BYTES_MAX {
                self.write(&mut pending).await?;
            }
        }
        self.write(&mut pending).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let is_pointless = !force && matches!(self.store.health(), StoreHealth::DiskFull(_));
        (!is_pointless).then(|| self.snapshot_builder())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.snapshot_builder()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotSource,
    ) -> Result<(), io::Error> {
        let SnapshotSource::Received(directory) = snapshot else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a replica's own store cannot be installed over itself",
            ));
        };
        let store = self.store.clone();
        // Before the install: another task may be reading the state on disk at this
        // moment.
        self.ahead.announced(meta);
        tokio::task::spawn_blocking(move || store.install(&directory))
            .await
            .map_err(io::Error::other)??;
        (self.applied, self.membership) = read_state(self.store.applied()?)?;
        if self.applied < meta.last_log_id {
            let reason = format!(
                "the received snapshot ends at {:?}, before the announced {:?}",
                self.applied, meta.last_log_id
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        self.ahead.handed_over(meta.last_log_id.map_or(0, |id| id.index), self.applied);
        self.progress.send_replace(self.applied);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<LeaderId, u64, Node, SnapshotSource>>, io::Error> {
        match self.store.flushed()? {
            Some(flushed) => Ok(Some(self.ahead.or(snapshot(&self.store, Some(flushed))?))),
            None => Ok(None),
        }
    }
}

/// Makes openraft's snapshot: returns the entry up to which everything is on disk, after
/// a flush if openraft knows that entry already.
pub struct SnapshotBuilder {
    store: Store,
    announced: AnnouncedIndex,
    ahead: SnapshotAhead,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = SnapshotSource;

    async fn build_snapshot(
        &mut self,
    ) -> Result<Snapshot<LeaderId, u64, Node, SnapshotSource>, io::Error> {
        let store = self.store.clone();
        if mutants::breaks(Rule::PurgeFlushed) {
            return Ok(snapshot(&store, store.applied()?)?);
        }
        let mut flushed = self.store.flushed()?;
        let index =
            |flushed: &Option<AppliedPoint>| flushed.as_ref().map_or(0, |flushed| flushed.index);
        if index(&flushed) <= self.announced.index() {
            match tokio::task::spawn_blocking(move || store.flush())
                .await
                .map_err(io::Error::other)?
            {
                // Without disk space the state on disk stays as it was; that is a
                // snapshot, too, only an older one.
                Ok(()) | Err(Fault::DiskFull(_)) => flushed = self.store.flushed()?,
                Err(fault) => return Err(fault.into()),
            }
        }
        self.announced.0.store(index(&flushed), Ordering::Release);
        Ok(self.ahead.or(snapshot(&self.store, flushed)?))
    }
}

pub(super) fn snapshot(
    store: &Store,
    flushed: Option<AppliedPoint>,
) -> Result<Snapshot<LeaderId, u64, Node, SnapshotSource>, Fault> {
    let (last_log_id, last_membership) = read_state(flushed)?;
    Ok(Snapshot {
        meta: SnapshotMeta { last_log_id, last_membership },
        snapshot: SnapshotSource::Local(store.clone()),
    })
}

pub(super) fn read_state(
    applied: Option<AppliedPoint>,
) -> Result<(Option<LogId>, StoredMembership), Fault> {
    let Some(applied) = applied else { return Ok((None, StoredMembership::default())) };
    let membership =
        applied.membership.map(|membership| decode(&membership, "membership")).transpose()?;
    Ok((Some(decode(&applied.log_id, "log id")?), membership.unwrap_or_default()))
}

fn encode<T: Serialize>(value: &T) -> io::Result<Bytes> {
    let mut record = BytesMut::with_capacity(32);
    record.put_u8(VERSION);
    let body = postcard::to_stdvec(value).map_err(io::Error::other)?;
    record.put_slice(&body);
    Ok(record.freeze())
}

fn decode<T: DeserializeOwned>(record: &[u8], what: &str) -> Result<T, Fault> {
    let bad = |reason: String| Fault::Corrupt { file: format!("the stored {what}"), reason };
    match record.split_first() {
        Some((&VERSION, body)) => {
            postcard::from_bytes(body).map_err(|error| bad(error.to_string()))
        }
        _ => Err(bad("an unknown version".into())),
    }
}

/// Records in the store, for their frozen bytes.
#[cfg(test)]
pub(super) fn samples() -> Vec<Sample> {
    let SnapshotMeta { last_log_id, last_membership } = vectors::snapshot_meta();
    let id = encode(&last_log_id.expect("one")).unwrap();
    let membership = encode(&last_membership).unwrap();
    vec![
        Sample::new("stored log id", id, |bytes| {
            encode(&decode::<LogId>(&bytes, "log id").unwrap()).unwrap()
        }),
        Sample::new("stored membership", membership, |bytes| {
            encode(&decode::<StoredMembership>(&bytes, "membership").unwrap()).unwrap()
        }),
    ]
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use openraft::vote::RaftLeaderIdExt as _;

    use super::*;
    use crate::store::{SharedResources, StoreSettings};

    fn id(index: u64) -> LogId {
        LogId { leader_id: LeaderId::new_committed(1.into(), 4), index }
    }

    fn blank(index: u64) -> Entry {
        Entry { log_id: id(index), payload: EntryPayload::Blank }
    }

    #[tokio::test]
    async fn installed_snapshot_keeps_its_announced_meta() {
        let dir = tempfile::tempdir().unwrap();
        let shared = SharedResources::new(StoreSettings::default()).unwrap();
        let open = |name: &str| {
            Machine::new(Store::open(&shared, dir.path().join(name)).unwrap()).unwrap().0
        };
        let (mut sender, mut receiver) = (open("sender"), open("receiver"));
        sender.apply(stream::iter((1..=8).map(|index| Ok((blank(index), None))))).await.unwrap();
        let received = dir.path().join("received");
        sender.store.checkpoint(&received).unwrap();
        let meta =
            SnapshotMeta { last_log_id: Some(id(5)), last_membership: StoredMembership::default() };
        receiver.install_snapshot(&meta, SnapshotSource::Received(received)).await.unwrap();
        assert_eq!(
            receiver.applied_state().await.unwrap().0,
            Some(id(8)),
            "it is newer than it was announced"
        );
        for index in 5..=8 {
            let is_known = index == 8;
            if index > 5 {
                receiver.apply(stream::iter([Ok((blank(index), None))])).await.unwrap();
            }
            let announced =
                receiver.get_snapshot_builder().await.build_snapshot().await.unwrap().meta;
            assert_eq!(
                announced.last_log_id,
                Some(id(if is_known { 8 } else { 5 })),
                "openraft has handed over {index}"
            );
            assert_eq!(receiver.get_current_snapshot().await.unwrap().unwrap().meta, announced);
        }
    }
}
