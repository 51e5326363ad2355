//! The sending side of a snapshot's transfer.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::alias::VoteOf;
use openraft::errors::{NetworkError, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use openraft::storage::Snapshot;

use super::manifest::{
    self, SnapshotChunk, SnapshotFile, SnapshotInstall, SnapshotOffer, SnapshotOfferReply,
};
use super::{CHUNK_BYTES, OUTGOING_PREFIX};
use crate::raft::machine::SnapshotSource;
use crate::raft::message;
use crate::raft::peers::Peer;
use crate::raft::transport::{MessageKind, TransportError};
use crate::raft::types::{LeaderId, Node, Types};
use crate::store::Store;

/// Timeout of the question whether the receiver is there.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout of an offer: the receiver compares it with its files.
const OFFER_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of a chunk.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
/// The most attempts to send one chunk.
const CHUNK_TRIES: u32 = 4;
/// Timeout of syncing and opening what was received, in addition to the time for its
/// bytes.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The slowest disk that a timeout allows for, bytes per second.
const THROUGHPUT_MIN: f64 = 20e6;

/// Sends a snapshot to a member, and waits until it is installed there.
///
/// # Errors
/// The transfer broke. openraft starts again with a newer snapshot, and the receiver
/// keeps the files that arrived.
pub(in crate::raft) async fn send(
    peer: &Peer,
    vote: VoteOf<Types>,
    snapshot: Snapshot<LeaderId, u64, Node, SnapshotSource>,
) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
    let SnapshotSource::Local(store) = snapshot.snapshot else {
        return Err(Unreachable::from_string("only a replica's own store can be sent").into());
    };
    let meta = snapshot.meta;
    // Without this question a checkpoint would be flushed and read for a dead member,
    // each time that openraft tries.
    peer.call(MessageKind::Ping, Bytes::new(), PING_TIMEOUT).await.map_err(transport_error)?;
    // Before the checkpoint is made: the entries after it must still be there when it has
    // arrived.
    let _pin = peer.peers.pins.pin(peer.target, meta.last_log_id.as_ref().map_or(0, |id| id.index));
    let _permit =
        peer.peers.throttle.permits.acquire().await.map_err(|error| aborted(error.to_string()))?;
    let target = peer.target;
    let checkpoint = tokio::task::spawn_blocking(move || Checkpoint::make(&store, target)).await;
    let checkpoint = checkpoint.map_err(|error| aborted(error.to_string()))?.map_err(aborted)?;
    let id = RandomState::new().build_hasher().finish();
    let total: u64 = checkpoint.files.iter().map(|file| file.bytes).sum();
    tracing::info!(
        group = peer.peers.group,
        target,
        bytes = total,
        files = checkpoint.files.len(),
        "sending a snapshot"
    );

    let offer = message::encode(&SnapshotOffer { id, vote, files: checkpoint.files.clone() })
        .map_err(aborted)?;
    let reply = peer
        .call(MessageKind::SnapshotOffer, offer, OFFER_TIMEOUT)
        .await
        .map_err(transport_error)?;
    let have: SnapshotOfferReply = message::decode(&reply).map_err(aborted)?;
    if have.bytes.len() != checkpoint.files.len() {
        return Err(aborted("the receiver's reply is about other files".to_owned()));
    }
    for (at, (file, have)) in checkpoint.files.iter().zip(have.bytes).enumerate() {
        send_file(peer, id, &checkpoint, at, file, have).await?;
    }
    let install = message::encode(&SnapshotInstall { id, vote, meta }).map_err(aborted)?;
    let timeout = INSTALL_TIMEOUT + Duration::from_secs_f64(total as f64 / THROUGHPUT_MIN);
    let reply =
        peer.call(MessageKind::SnapshotInstall, install, timeout).await.map_err(transport_error)?;
    message::decode(&reply).map_err(aborted)
}

async fn send_file(
    peer: &Peer,
    id: u64,
    checkpoint: &Checkpoint,
    at: usize,
    entry: &SnapshotFile,
    have: u64,
) -> Result<(), StreamingError<Types>> {
    if have >= entry.bytes {
        return Ok(());
    }
    let path = checkpoint.directory.join(&entry.name);
    let file = Arc::new(
        File::open(&path).map_err(|error| aborted(format!("open {}: {error}", path.display())))?,
    );
    let mut offset = have;
    while offset < entry.bytes {
        let bytes = CHUNK_BYTES.min(usize::try_from(entry.bytes - offset).unwrap_or(CHUNK_BYTES));
        let reader = file.clone();
        let read = move || {
            let mut data = vec![0; bytes];
            reader.read_exact_at(&mut data, offset).map(|()| Bytes::from(data))
        };
        let data =
            tokio::task::spawn_blocking(read).await.map_err(|error| aborted(error.to_string()))?;
        let data = data.map_err(|error| aborted(format!("read {}: {error}", path.display())))?;
        let chunk = SnapshotChunk { id, file: at as u32, offset, data }.encode();
        send_chunk(peer, chunk).await?;
        offset += bytes as u64;
    }
    Ok(())
}

/// Chunks may arrive twice: the receiver recognises them.
async fn send_chunk(peer: &Peer, chunk: Bytes) -> Result<(), StreamingError<Types>> {
    let mut tries = 0;
    loop {
        peer.peers.throttle.wait_for_bytes(chunk.len()).await;
        tries += 1;
        match peer.call(MessageKind::SnapshotChunk, chunk.clone(), CHUNK_TIMEOUT).await {
            Ok(_) => return Ok(()),
            Err(error) if tries >= CHUNK_TRIES => return Err(transport_error(error)),
            Err(error) => {
                tracing::warn!(
                    group = peer.peers.group,
                    target = peer.target,
                    %error,
                    "a chunk of a snapshot is sent again"
                )
            }
        }
    }
}

fn aborted(why: String) -> StreamingError<Types> {
    Unreachable::from_string(why).into()
}

fn transport_error(error: TransportError) -> StreamingError<Types> {
    match error {
        TransportError::Lost(why) => NetworkError::from_string(why).into(),
        TransportError::NotSent(why) | TransportError::Refused(why) => {
            Unreachable::from_string(why).into()
        }
    }
}

/// A checkpoint on disk, removed on drop.
struct Checkpoint {
    directory: PathBuf,
    files: Vec<SnapshotFile>,
}

impl Checkpoint {
    fn make(store: &Store, target: u64) -> Result<Checkpoint, String> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut checkpoint = Checkpoint {
            directory: store.path().join(format!("{OUTGOING_PREFIX}{target}-{number}")),
            files: Vec::new(),
        };
        store.checkpoint(&checkpoint.directory).map_err(|fault| fault.to_string())?;
        checkpoint.files =
            manifest::list(&checkpoint.directory).map_err(|error| error.to_string())?;
        Ok(checkpoint)
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        let directory = std::mem::take(&mut self.directory);
        let remove = move || match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, directory = %directory.display(), "remove a checkpoint");
            }
            _ => {}
        };
        // Removing the last link of a large file takes its time.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}
