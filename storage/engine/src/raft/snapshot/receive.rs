//! The receiving side of a state transfer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::storage::Snapshot;

use super::RECEIVED;
use super::manifest::{
    self, SnapshotChunk, SnapshotFile, SnapshotInstall, SnapshotOffer, SnapshotOfferReply,
};
use crate::raft::group::Inner;
use crate::raft::machine::SnapshotSource;
use crate::raft::message;
use crate::raft::receive::ReceiveError;
use crate::raft::transport::MessageKind;
use crate::store::StoreHealth;

/// How long what was received is kept for a transfer that broke.
const KEPT: Duration = Duration::from_secs(600);

/// What has been received, if anything.
#[derive(Default)]
pub(in crate::raft) struct Receiving(Option<Arrivals>);

struct Arrivals {
    /// The transfer under way.
    id: u64,
    directory: PathBuf,
    files: Vec<Arrival>,
    touched: Instant,
}

struct Arrival {
    entry: SnapshotFile,
    /// Bytes that are there, from the start, and their checksum.
    bytes: u64,
    crc: u32,
    /// Open while it is being received.
    file: Option<File>,
}

impl Inner {
    /// Takes a letter of a state transfer.
    pub(in crate::raft) async fn arrivals(
        &self,
        kind: MessageKind,
        body: Bytes,
    ) -> Result<Bytes, ReceiveError> {
        // One letter at a time; the lock goes with the work to its thread, so that a
        // sender that gives up does not leave two of them at work.
        let receiving = self.receiving.clone().lock_owned().await;
        let term = self.role.borrow().term;
        let directory = self.store.path().join(RECEIVED);
        // What is here already comes first: a state must not take the space that its
        // replica needs to go on.
        if let StoreHealth::DiskFull(why) = self.store.health() {
            return Err(ReceiveError::Unavailable(why));
        }
        match kind {
            MessageKind::SnapshotOffer => Receiving::offer(receiving, &body, directory, term).await,
            MessageKind::SnapshotChunk => Receiving::piece(receiving, body).await,
            _ => {
                let (install, mut receiving) = Receiving::whole(receiving, &body).await?;
                self.agree(&install.vote, install.meta.last_log_id, std::iter::empty()).await?;
                let snapshot = Snapshot {
                    meta: install.meta,
                    snapshot: SnapshotSource::Received(directory.clone()),
                };
                let installed = self.raft.install_full_snapshot(install.vote, snapshot).await;
                let response =
                    installed.map_err(|error| ReceiveError::Stopped(error.to_string()))?;
                tracing::info!(group = self.number, "a state has arrived and is in place");
                // Consumed, or of no use: a later state is here already.
                receiving.forget();
                blocking(move || remove(&directory).map_err(told("remove what was received")))
                    .await?;
                drop(receiving);
                message::encode(&response).map_err(ReceiveError::Malformed)
            }
        }
    }

    /// Removes what was received by a transfer that did not go on.
    pub(in crate::raft) fn forget_arrivals(&self, now: Instant) {
        let Ok(mut receiving) = self.receiving.clone().try_lock_owned() else { return };
        if receiving.0.as_ref().is_some_and(|arrivals| now > arrivals.touched + KEPT) {
            drop(tokio::task::spawn_blocking(move || {
                if let Some(arrivals) = receiving.0.take()
                    && let Err(error) = remove(&arrivals.directory)
                {
                    tracing::warn!(%error, "remove what was received");
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

fn told(doing: &'static str) -> impl Fn(std::io::Error) -> ReceiveError {
    move |error| ReceiveError::Unavailable(format!("{doing}: {error}"))
}

pub(in crate::raft) fn remove(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

type Guard = tokio::sync::OwnedMutexGuard<Receiving>;

impl Receiving {
    /// Takes an offer: what is there already of its files. `term` is that of the
    /// receiver.
    pub(in crate::raft) async fn offer(
        mut receiving: Guard,
        body: &[u8],
        directory: PathBuf,
        term: u64,
    ) -> Result<Bytes, ReceiveError> {
        let offer: SnapshotOffer = message::decode(body).map_err(ReceiveError::Malformed)?;
        manifest::check(&offer.files).map_err(ReceiveError::Malformed)?;
        if offer.vote.leader_id.term.0 < term {
            return Err(ReceiveError::Unavailable(format!(
                "an offer of term {}, and this is {term}",
                offer.vote.leader_id.term
            )));
        }
        let taken = move || {
            let arrivals = Arrivals::take(&mut receiving, offer, directory)?;
            Ok(SnapshotOfferReply { bytes: arrivals.files.iter().map(|file| file.bytes).collect() })
        };
        message::encode(&blocking(taken).await?).map_err(ReceiveError::Malformed)
    }

    /// Takes a piece.
    pub(in crate::raft) async fn piece(
        mut receiving: Guard,
        body: Bytes,
    ) -> Result<Bytes, ReceiveError> {
        let piece = SnapshotChunk::decode(body).map_err(ReceiveError::Malformed)?;
        let written = move || receiving.of(piece.id)?.write(&piece);
        blocking(written).await?;
        Ok(Bytes::new())
    }

    /// Makes sure that everything has come and is on the disk; what is to be put in
    /// place.
    pub(in crate::raft) async fn whole(
        mut receiving: Guard,
        body: &[u8],
    ) -> Result<(SnapshotInstall, Guard), ReceiveError> {
        let install: SnapshotInstall = message::decode(body).map_err(ReceiveError::Malformed)?;
        let whole = move || {
            receiving.of(install.id)?.finish()?;
            Ok((install, receiving))
        };
        blocking(whole).await
    }

    /// What has come is in place, or of no use.
    pub(in crate::raft) fn forget(&mut self) {
        self.0 = None;
    }

    fn of(&mut self, id: u64) -> Result<&mut Arrivals, ReceiveError> {
        let arrivals = self.0.as_mut().filter(|arrivals| arrivals.id == id);
        arrivals.ok_or_else(|| {
            ReceiveError::Unavailable("that transfer is not under way here".to_owned())
        })
    }
}

impl Arrivals {
    /// Gets ready for an offer: keeps of what is there what the offer has too.
    fn take(
        receiving: &mut Receiving,
        offer: SnapshotOffer,
        directory: PathBuf,
    ) -> Result<&mut Arrivals, ReceiveError> {
        let old = receiving.0.take().map(|arrivals| arrivals.files).unwrap_or_default();
        std::fs::create_dir_all(&directory).map_err(told("make room for a state"))?;
        let mut kept: std::collections::HashMap<String, Arrival> = old
            .into_iter()
            .filter(|file| file.bytes > 0)
            .map(|file| (file.entry.name.clone(), file))
            .collect();
        let mut files = Vec::with_capacity(offer.files.len());
        for entry in offer.files {
            let arrival = kept.remove(&entry.name).filter(|kept| kept.entry == entry);
            files.push(arrival.unwrap_or(Arrival { entry, bytes: 0, crc: 0, file: None }));
        }
        for found in std::fs::read_dir(&directory).map_err(told("list what was received"))? {
            let found = found.map_err(told("list what was received"))?;
            let is_kept =
                |file: &Arrival| file.bytes > 0 && found.file_name() == file.entry.name.as_str();
            if !files.iter().any(is_kept) {
                std::fs::remove_file(found.path()).map_err(told("remove what was received"))?;
            }
        }
        // What can't be in a piece.
        for file in files.iter().filter(|file| file.entry.bytes == 0) {
            File::create(directory.join(&file.entry.name)).map_err(told("create a file"))?;
        }
        Ok(receiving.0.insert(Arrivals { id: offer.id, directory, files, touched: Instant::now() }))
    }

    fn write(&mut self, piece: &SnapshotChunk) -> Result<(), ReceiveError> {
        self.touched = Instant::now();
        let arrival = self
            .files
            .get_mut(piece.file as usize)
            .ok_or_else(|| ReceiveError::Malformed("a piece of no file".to_owned()))?;
        let end = piece
            .offset
            .checked_add(piece.data.len() as u64)
            .filter(|end| *end <= arrival.entry.bytes);
        let end = end.ok_or_else(|| {
            ReceiveError::Malformed("a piece beyond the end of its file".to_owned())
        })?;
        if end <= arrival.bytes {
            // It came before, and its reply was lost.
            return Ok(());
        }
        if piece.offset != arrival.bytes {
            return Err(ReceiveError::Unavailable(format!(
                "{} is here up to byte {}, and not {}",
                arrival.entry.name, arrival.bytes, piece.offset
            )));
        }
        let file = match &arrival.file {
            Some(file) => file,
            None => {
                let path = self.directory.join(&arrival.entry.name);
                let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
                arrival.file.insert(opened.map_err(told("create a file"))?)
            }
        };
        file.write_all_at(&piece.data, piece.offset).map_err(told("write a piece"))?;
        arrival.bytes = end;
        arrival.crc = crc32c::crc32c_append(arrival.crc, &piece.data);
        if arrival.bytes == arrival.entry.bytes
            && let Some(file) = arrival.file.take()
        {
            // Spread over the transfer, not all at its end.
            file.sync_all().map_err(told("sync a file"))?;
            if arrival.crc != arrival.entry.crc {
                let name = arrival.entry.name.clone();
                (arrival.bytes, arrival.crc) = (0, 0);
                return Err(ReceiveError::Unavailable(format!("{name} is not what was offered")));
            }
        }
        Ok(())
    }

    /// Makes sure that everything is there and on the disk.
    fn finish(&mut self) -> Result<(), ReceiveError> {
        self.touched = Instant::now();
        if let Some(file) = self
            .files
            .iter()
            .find(|file| file.bytes != file.entry.bytes || file.crc != file.entry.crc)
        {
            return Err(ReceiveError::Unavailable(format!("{} is not whole", file.entry.name)));
        }
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(told("sync what was received"))
    }
}
