//! The spare: the file of the next segment, made before it is needed.
//!
//! The maintenance thread makes it when the active segment is half full, of an obsolete
//! segment if there is one. Otherwise the writer makes it at the end of the active
//! segment, and waits while the disk is full.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::segment::{self, Segment};
use super::{LogError, LogInner};

/// The next segment's file.
pub(super) enum Spare {
    /// To be made when the active segment is half full, unless a segment is recycled
    /// before.
    Wanted,
    Making,
    Ready(File, PathBuf),
    /// The writer holds it; it does not have its own name yet.
    Taken,
}

impl LogInner {
    /// Makes the spare unless there is one, or another thread makes it. Returns false if
    /// that failed.
    pub(super) fn make_spare(&self) -> bool {
        if !self.claim_spare() {
            return true;
        }
        let failure = self.finish_spare(self.new_segment_file()).err();
        let made = failure.is_none();
        failure.map_or_else(|| self.admit(), |why| self.refuse(why));
        made
    }

    /// Claims the making of the spare; false if there is one, or another thread makes it.
    pub(super) fn claim_spare(&self) -> bool {
        let mut spare = self.spare.lock();
        let begins = matches!(*spare, Spare::Wanted);
        if begins {
            *spare = Spare::Making;
        }
        begins
    }

    /// Stores the spare, or the fact that it could not be made.
    pub(super) fn finish_spare(
        &self,
        made: Result<(File, PathBuf), LogError>,
    ) -> Result<(), LogError> {
        let (state, ended) = match made {
            Ok((file, path)) => (Spare::Ready(file, path), Ok(())),
            Err(e) => (Spare::Wanted, Err(e)),
        };
        *self.spare.lock() = state;
        self.spare_changed.notify_all();
        ended
    }

    /// True when it is time to make a spare.
    pub(super) fn needs_spare(&self) -> bool {
        // Read first: once the spare is taken, it is wanted again only after the next
        // segment has become the active one, which is less than half full then.
        let is_wanted = matches!(*self.spare.lock(), Spare::Wanted);
        let active = self.active.lock().clone();
        is_wanted && active.end() >= active.capacity / 2
    }

    /// Turns an obsolete segment into the spare, if none exists and the segment is not
    /// being read; otherwise returns it.
    pub(super) fn recycle(&self, segment: Arc<Segment>) -> Result<Option<Arc<Segment>>, LogError> {
        let segment = match Arc::try_unwrap(segment) {
            Ok(segment) if segment.bytes()? == u64::from(self.options.segment_bytes) => segment,
            Ok(segment) => return Ok(Some(Arc::new(segment))),
            Err(segment) => return Ok(Some(segment)),
        };
        if !self.claim_spare() {
            return Ok(Some(Arc::new(segment)));
        }
        self.finish_spare(segment::recycle(&self.options.dir, segment))?;
        self.admit();
        Ok(None)
    }

    pub(super) fn new_segment_file(&self) -> Result<(File, PathBuf), LogError> {
        #[cfg(test)]
        if self.faults.disk_full.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(LogError::io(
                "preallocate",
                &self.options.dir,
                std::io::ErrorKind::StorageFull.into(),
            ));
        }
        segment::spare(&self.options.dir, self.options.segment_bytes, self.options.preallocate)
    }

    /// The next segment's file. Normally the maintenance thread has made it. Otherwise it
    /// is made here, and retried until there is space; any other failure is the log's.
    pub(super) fn take_spare(&self) -> Result<(File, PathBuf), LogError> {
        loop {
            {
                let mut spare = self.spare.lock();
                if let Spare::Ready(..) = *spare
                    && let Spare::Ready(file, path) = std::mem::replace(&mut *spare, Spare::Taken)
                {
                    return Ok((file, path));
                }
                if matches!(*spare, Spare::Making) {
                    self.spare_changed.wait_for(&mut spare, Duration::from_millis(100));
                    continue;
                }
            }
            if !self.make_spare() {
                let refusal = self.refusal.lock().clone();
                match refusal {
                    Some(why) if !matches!(why, LogError::DiskFull { .. }) => return Err(why),
                    refusal => self.wait_for_space().map_err(|closed| refusal.unwrap_or(closed))?,
                }
            }
        }
    }

    /// The spare has its real name; another can be made.
    pub(super) fn spare_taken(&self) {
        *self.spare.lock() = Spare::Wanted;
        self.wake_maintenance();
    }
}
