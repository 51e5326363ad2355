//! The receiving side of a snapshot's transfer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::storage::Snapshot;

use super::INCOMING_DIR;
use super::manifest::{
    self, SnapshotChunk, SnapshotFile, SnapshotInstall, SnapshotOffer, SnapshotOfferReply,
};
use crate::raft::group::Inner;
use crate::raft::machine::SnapshotSource;
use crate::raft::message;
use crate::raft::receive::ReceiveError;
use crate::raft::transport::MessageKind;
use crate::store::StoreHealth;

/// The time that received files are kept after a transfer broke.
const PARTIAL_TTL: Duration = Duration::from_secs(600);

/// A partly received snapshot, if there is one.
#[derive(Default)]
pub(in crate::raft) struct IncomingSnapshot(Option<PartialSnapshot>);

struct PartialSnapshot {
    /// The transfer in progress.
    id: u64,
    directory: PathBuf,
    files: Vec<PartialFile>,
    touched: Instant,
}

struct PartialFile {
    entry: SnapshotFile,
    /// Bytes received, from the start of the file, and their checksum.
    bytes: u64,
    crc: u32,
    /// Open while it is being received.
    file: Option<File>,
}

impl Inner {
    /// Handles a message of a snapshot's transfer.
    pub(in crate::raft) async fn receive_snapshot(
        &self,
        kind: MessageKind,
        body: Bytes,
    ) -> Result<Bytes, ReceiveError> {
        // One message at a time. The lock goes with the work to its thread, so that a
        // sender that gives up does not leave two of them at work.
        let incoming = self.incoming.clone().lock_owned().await;
        let term = self.role.borrow().term;
        let directory = self.store.path().join(INCOMING_DIR);
        // A snapshot must not take the space that the replica's own state needs.
        if let StoreHealth::DiskFull(why) = self.store.health() {
            return Err(ReceiveError::Unavailable(why));
        }
        match kind {
            MessageKind::SnapshotOffer => {
                IncomingSnapshot::offer(incoming, &body, directory, term).await
            }
            MessageKind::SnapshotChunk => IncomingSnapshot::chunk(incoming, body).await,
            _ => {
                let (install, mut incoming) = IncomingSnapshot::complete(incoming, &body).await?;
                self.check_consistency(&install.vote, install.meta.last_log_id, std::iter::empty())
                    .await?;
                let snapshot = Snapshot {
                    meta: install.meta,
                    snapshot: SnapshotSource::Received(directory.clone()),
                };
                let installed = self.raft.install_full_snapshot(install.vote, snapshot).await;
                let response =
                    installed.map_err(|error| ReceiveError::Stopped(error.to_string()))?;
                tracing::info!(group = self.number, "a snapshot was received and installed");
                // Consumed, or of no use: a later state is here already.
                incoming.clear();
                blocking(move || {
                    remove(&directory).map_err(unavailable("remove the received files"))
                })
                .await?;
                drop(incoming);
                message::encode(&response).map_err(ReceiveError::Malformed)
            }
        }
    }

    /// Removes the files of a transfer that was not continued.
    pub(in crate::raft) fn expire_incoming(&self, now: Instant) {
        let Ok(mut incoming) = self.incoming.clone().try_lock_owned() else { return };
        if incoming.0.as_ref().is_some_and(|partial| now > partial.touched + PARTIAL_TTL) {
            drop(tokio::task::spawn_blocking(move || {
                if let Some(partial) = incoming.0.take()
                    && let Err(error) = remove(&partial.directory)
                {
                    tracing::warn!(%error, "remove the received files");
                }
            }));
        }
    }
}

pub(in crate::raft) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReceiveError> + Send + 'static,
) -> Result<T, ReceiveError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ReceiveError::Unavailable(error.to_string()))?
}

fn unavailable(doing: &'static str) -> impl Fn(std::io::Error) -> ReceiveError {
    move |error| ReceiveError::Unavailable(format!("{doing}: {error}"))
}

pub(in crate::raft) fn remove(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

type Guard = tokio::sync::OwnedMutexGuard<IncomingSnapshot>;

impl IncomingSnapshot {
    /// Handles an offer; the reply says how much of each file is here. `term` is the
    /// receiver's.
    pub(in crate::raft) async fn offer(
        mut incoming: Guard,
        body: &[u8],
        directory: PathBuf,
        term: u64,
    ) -> Result<Bytes, ReceiveError> {
        let offer: SnapshotOffer = message::decode(body).map_err(ReceiveError::Malformed)?;
        manifest::check(&offer.files).map_err(ReceiveError::Malformed)?;
        if offer.vote.leader_id.term.0 < term {
            return Err(ReceiveError::Unavailable(format!(
                "an offer of term {}, while the current term is {term}",
                offer.vote.leader_id.term
            )));
        }
        let taken = move || {
            let partial = PartialSnapshot::take(&mut incoming, offer, directory)?;
            Ok(SnapshotOfferReply { bytes: partial.files.iter().map(|file| file.bytes).collect() })
        };
        message::encode(&blocking(taken).await?).map_err(ReceiveError::Malformed)
    }

    /// Handles a chunk.
    pub(in crate::raft) async fn chunk(
        mut incoming: Guard,
        body: Bytes,
    ) -> Result<Bytes, ReceiveError> {
        let chunk = SnapshotChunk::decode(body).map_err(ReceiveError::Malformed)?;
        let written = move || incoming.of(chunk.id)?.write(&chunk);
        blocking(written).await?;
        Ok(Bytes::new())
    }

    /// Makes sure that all files are complete and on the disk; returns the install
    /// message.
    pub(in crate::raft) async fn complete(
        mut incoming: Guard,
        body: &[u8],
    ) -> Result<(SnapshotInstall, Guard), ReceiveError> {
        let install: SnapshotInstall = message::decode(body).map_err(ReceiveError::Malformed)?;
        let complete = move || {
            incoming.of(install.id)?.finish()?;
            Ok((install, incoming))
        };
        blocking(complete).await
    }

    /// Forgets the transfer: its files are installed, or of no use.
    pub(in crate::raft) fn clear(&mut self) {
        self.0 = None;
    }

    fn of(&mut self, id: u64) -> Result<&mut PartialSnapshot, ReceiveError> {
        let partial = self.0.as_mut().filter(|partial| partial.id == id);
        partial.ok_or_else(|| {
            ReceiveError::Unavailable("no such snapshot transfer is in progress here".to_owned())
        })
    }
}

impl PartialSnapshot {
    /// Prepares for an offer: keeps received files that the offer has, too.
    fn take(
        incoming: &mut IncomingSnapshot,
        offer: SnapshotOffer,
        directory: PathBuf,
    ) -> Result<&mut PartialSnapshot, ReceiveError> {
        let old = incoming.0.take().map(|partial| partial.files).unwrap_or_default();
        std::fs::create_dir_all(&directory)
            .map_err(unavailable("create the directory for a snapshot"))?;
        let mut kept: std::collections::HashMap<String, PartialFile> = old
            .into_iter()
            .filter(|file| file.bytes > 0)
            .map(|file| (file.entry.name.clone(), file))
            .collect();
        let mut files = Vec::with_capacity(offer.files.len());
        for entry in offer.files {
            let partial = kept.remove(&entry.name).filter(|kept| kept.entry == entry);
            files.push(partial.unwrap_or(PartialFile { entry, bytes: 0, crc: 0, file: None }));
        }
        for found in
            std::fs::read_dir(&directory).map_err(unavailable("list the received files"))?
        {
            let found = found.map_err(unavailable("list the received files"))?;
            let is_kept = |file: &PartialFile| {
                file.bytes > 0 && found.file_name() == file.entry.name.as_str()
            };
            if !files.iter().any(is_kept) {
                std::fs::remove_file(found.path())
                    .map_err(unavailable("remove the received files"))?;
            }
        }
        // Empty files have no chunks.
        for file in files.iter().filter(|file| file.entry.bytes == 0) {
            File::create(directory.join(&file.entry.name)).map_err(unavailable("create a file"))?;
        }
        Ok(incoming.0.insert(PartialSnapshot {
            id: offer.id,
            directory,
            files,
            touched: Instant::now(),
        }))
    }

    fn write(&mut self, chunk: &SnapshotChunk) -> Result<(), ReceiveError> {
        self.touched = Instant::now();
        let partial = self.files.get_mut(chunk.file as usize).ok_or_else(|| {
            ReceiveError::Malformed("a chunk of no file of the snapshot".to_owned())
        })?;
        let end = chunk
            .offset
            .checked_add(chunk.data.len() as u64)
            .filter(|end| *end <= partial.entry.bytes);
        let end = end.ok_or_else(|| {
            ReceiveError::Malformed("a chunk beyond the end of its file".to_owned())
        })?;
        if end <= partial.bytes {
            // A repeated chunk, whose first reply was lost.
            return Ok(());
        }
        if chunk.offset != partial.bytes {
            return Err(ReceiveError::Unavailable(format!(
                "{} was received up to byte {}, not {}",
                partial.entry.name, partial.bytes, chunk.offset
            )));
        }
        let file = match &partial.file {
            Some(file) => file,
            None => {
                let path = self.directory.join(&partial.entry.name);
                let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
                partial.file.insert(opened.map_err(unavailable("create a file"))?)
            }
        };
        file.write_all_at(&chunk.data, chunk.offset).map_err(unavailable("write a chunk"))?;
        partial.bytes = end;
        partial.crc = crc32c::crc32c_append(partial.crc, &chunk.data);
        if partial.bytes == partial.entry.bytes
            && let Some(file) = partial.file.take()
        {
            // Each file at its end, so that the syncs are spread over the transfer.
            file.sync_all().map_err(unavailable("sync a file"))?;
            if partial.crc != partial.entry.crc {
                let name = partial.entry.name.clone();
                (partial.bytes, partial.crc) = (0, 0);
                return Err(ReceiveError::Unavailable(format!(
                    "{name} differs from the offer: checksum mismatch"
                )));
            }
        }
        Ok(())
    }

    /// Makes sure that all files are complete and on the disk.
    fn finish(&mut self) -> Result<(), ReceiveError> {
        self.touched = Instant::now();
        if let Some(file) = self
            .files
            .iter()
            .find(|file| file.bytes != file.entry.bytes || file.crc != file.entry.crc)
        {
            return Err(ReceiveError::Unavailable(format!("{} is incomplete", file.entry.name)));
        }
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(unavailable("sync the received files"))
    }
}
