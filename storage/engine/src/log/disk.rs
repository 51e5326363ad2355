//! The log's disk: writing, syncing, and monitoring.
//!
//! A problem of one server's disk (slow, full or failed) must not become a problem of the
//! cluster. A leader on such a disk transfers its leadership to a member with a healthy
//! one ([`DiskProblem`], [`Log::disk_problem`](super::Log::disk_problem)), and the server
//! receives no leaderships for [`DISK_PROBATION`].
//!
//! # Invariants
//! - A sync that hangs is detected while it hangs
//!   (`a_hanging_sync_is_a_disk_problem_while_it_hangs`).
//! - A problem is reported for another minute after it has ended
//!   (`a_disk_problem_is_recent_for_a_minute`).

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A sync that takes longer is a problem of the disk.
const SLOW_FSYNC_MIN: Duration = Duration::from_secs(1);
/// A member that takes over because of another's disk must have synced faster than this.
pub const HEALTHY_FSYNC_MAX: Duration = Duration::from_millis(100);
/// Usage at which a disk counts as full, percent.
const FULL_PERCENT: u8 = 95;
/// A server leads nothing new for this long after its last disk problem.
pub const DISK_PROBATION: Duration = Duration::from_secs(60);

/// Space of a file system, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Used space.
    pub used: u64,
    /// Space that this process may still use.
    pub free: u64,
}

impl DiskSpace {
    /// The usage as `df` computes it, percent.
    pub fn used_percent(&self) -> u8 {
        let all = u128::from(self.used) + u128::from(self.free);
        (u128::from(self.used) * 100).checked_div(all).unwrap_or(0) as u8
    }
}

/// The disk operations of the log. Tests replace them by a disk that is slow, fails or is
/// full.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Writes all bytes at an offset.
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    /// Makes everything written durable (fdatasync).
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// The space of the file system of a directory; `None` if it cannot be read.
    fn space(&self, dir: &Path) -> Option<DiskSpace> {
        let stat = rustix::fs::statvfs(dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Some(DiskSpace {
            used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
            free: bytes(stat.f_bavail),
        })
    }
}

/// The disk of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl Disk for OsDisk {}

/// A problem of a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskProblem {
    /// The running or the last fsync takes more than a second.
    #[error("an fsync of the log takes {:.1} s", .0.as_secs_f64())]
    Slow(Duration),
    /// The disk is nearly full.
    #[error("a disk is {0} % full")]
    Full(u8),
    /// The log has stopped.
    #[error("{0}")]
    Failed(String),
    /// More bytes wait for the disk than the bound allows.
    #[error("the log's disk does not keep up: {0} bytes wait for it")]
    Behind(u64),
}

impl DiskProblem {
    /// A name of two words, for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            DiskProblem::Slow(_) => "slow disk",
            DiskProblem::Full(_) => "full disk",
            DiskProblem::Failed(_) => "failed disk",
            DiskProblem::Behind(_) => "log behind",
        }
    }
}

/// The present and the recent state of a disk.
#[derive(Debug)]
pub(crate) struct DiskMonitor {
    began: Instant,
    /// Start times of the running syncs, two at most.
    in_progress: Mutex<Vec<Instant>>,
    last_nanos: AtomicU64,
    /// Threads with other work do no syncs until this time, nanoseconds since `began`; 0
    /// if no sync was slow yet.
    slow_until: AtomicU64,
    used_percent: AtomicU8,
    /// The last problem, and the time at which it was last seen.
    last_problem: Mutex<Option<(Instant, DiskProblem)>>,
}

impl DiskMonitor {
    pub(crate) fn new() -> DiskMonitor {
        DiskMonitor {
            began: Instant::now(),
            in_progress: Mutex::default(),
            last_nanos: AtomicU64::new(0),
            slow_until: AtomicU64::new(0),
            used_percent: AtomicU8::new(0),
            last_problem: Mutex::default(),
        }
    }

    /// Records the start of a sync.
    pub(crate) fn begin(&self, now: Instant) -> Instant {
        self.in_progress.lock().push(now);
        now
    }

    /// Records the end of a sync, and returns its duration.
    pub(crate) fn end(&self, began: Instant, now: Instant) -> Duration {
        let mut in_progress = self.in_progress.lock();
        if let Some(at) = in_progress.iter().position(|other| *other == began) {
            in_progress.swap_remove(at);
        }
        drop(in_progress);
        let took = now.saturating_duration_since(began);
        self.last_nanos.store(took.as_nanos() as u64, Ordering::Relaxed);
        if took > HEALTHY_FSYNC_MAX {
            let until = now.saturating_duration_since(self.began) + DISK_PROBATION;
            self.slow_until.store(until.as_nanos() as u64, Ordering::Relaxed);
        }
        // Recorded now, as the next sync may be fast before anything else checks.
        let _ = self.disk_problem(now, None);
        took
    }

    /// True if a sync took more than [`HEALTHY_FSYNC_MAX`] within the last minute.
    /// Threads with other work then leave syncs to the log's own thread.
    pub(crate) fn was_slow_lately(&self, now: impl FnOnce() -> Instant) -> bool {
        let until = self.slow_until.load(Ordering::Relaxed);
        until != 0 && now().saturating_duration_since(self.began).as_nanos() < u128::from(until)
    }

    /// The duration of the last sync, or of a running one if that is longer.
    pub(crate) fn last(&self, now: Instant) -> Duration {
        let in_progress =
            self.in_progress.lock().iter().map(|began| now.saturating_duration_since(*began)).max();
        Duration::from_nanos(self.last_nanos.load(Ordering::Relaxed))
            .max(in_progress.unwrap_or_default())
    }

    /// Reads the usage of the disks of these directories.
    pub(crate) fn check_space<'d>(&self, disk: &dyn Disk, dirs: impl Iterator<Item = &'d PathBuf>) {
        let used = dirs.filter_map(|dir| disk.space(dir)).map(|space| space.used_percent()).max();
        self.used_percent.store(used.unwrap_or(0), Ordering::Relaxed);
    }

    /// The present problem; `failed` is the reason why the log has stopped.
    pub(crate) fn disk_problem(&self, now: Instant, failed: Option<String>) -> Option<DiskProblem> {
        let (last, used) = (self.last(now), self.used_percent.load(Ordering::Relaxed));
        let disk_problem = match failed {
            Some(why) => Some(DiskProblem::Failed(why)),
            None if last > SLOW_FSYNC_MIN => Some(DiskProblem::Slow(last)),
            None if used >= FULL_PERCENT => Some(DiskProblem::Full(used)),
            None => None,
        };
        if let Some(disk_problem) = &disk_problem {
            *self.last_problem.lock() = Some((now, disk_problem.clone()));
        }
        disk_problem
    }

    /// The present problem, or one of the last minute.
    pub(crate) fn lately(&self, now: Instant, failed: Option<String>) -> Option<DiskProblem> {
        let lately = |(at, disk_problem): &(Instant, DiskProblem)| {
            (now.saturating_duration_since(*at) < DISK_PROBATION).then(|| disk_problem.clone())
        };
        self.disk_problem(now, failed)
            .or_else(|| self.last_problem.lock().as_ref().and_then(lately))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hanging_sync_is_a_disk_problem_while_it_hangs() {
        let (watch, start) = (DiskMonitor::new(), Instant::now());
        let began = watch.begin(start);
        assert_eq!(watch.disk_problem(start + SLOW_FSYNC_MIN, None), None);
        let late = start + SLOW_FSYNC_MIN * 3;
        assert_eq!(watch.disk_problem(late, None), Some(DiskProblem::Slow(SLOW_FSYNC_MIN * 3)));
        watch.end(began, late);
        assert_eq!(
            watch.disk_problem(late, None),
            Some(DiskProblem::Slow(SLOW_FSYNC_MIN * 3)),
            "until one is quicker"
        );
        watch.end(watch.begin(late), late + HEALTHY_FSYNC_MAX / 2);
        assert_eq!(watch.disk_problem(late + HEALTHY_FSYNC_MAX, None), None);
    }

    #[test]
    fn a_disk_problem_is_recent_for_a_minute() {
        let (watch, start) = (DiskMonitor::new(), Instant::now());
        let late = start + SLOW_FSYNC_MIN * 2;
        watch.end(watch.begin(start), late);
        watch.end(watch.begin(late), late + HEALTHY_FSYNC_MAX / 2);
        assert_eq!(watch.disk_problem(late + HEALTHY_FSYNC_MAX, None), None);
        assert_eq!(
            watch.lately(late + DISK_PROBATION / 2, None),
            Some(DiskProblem::Slow(SLOW_FSYNC_MIN * 2))
        );
        assert!(watch.was_slow_lately(|| late + DISK_PROBATION / 2));
        assert_eq!(watch.lately(late + DISK_PROBATION, None), None);
        assert!(!watch.was_slow_lately(|| late + DISK_PROBATION));
        // Not slow enough for a problem, but too slow for threads that have other work.
        watch
            .end(watch.begin(late + DISK_PROBATION), late + DISK_PROBATION + HEALTHY_FSYNC_MAX * 2);
        assert!(
            watch.was_slow_lately(|| late + DISK_PROBATION * 3 / 2)
                && watch.lately(late + DISK_PROBATION * 3 / 2, None).is_none()
        );
    }

    #[test]
    fn a_nearly_full_disk_is_a_disk_problem() {
        #[derive(Debug)]
        struct Filling(AtomicU64);
        impl Disk for Filling {
            fn space(&self, _dir: &Path) -> Option<DiskSpace> {
                let used = self.0.load(Ordering::Relaxed);
                Some(DiskSpace { used, free: 1000 - used })
            }
        }
        let (watch, disk, dirs) = (DiskMonitor::new(), Filling(940.into()), [PathBuf::new()]);
        watch.check_space(&disk, dirs.iter());
        assert_eq!(watch.disk_problem(Instant::now(), None), None);
        disk.0.store(950, Ordering::Relaxed);
        watch.check_space(&disk, dirs.iter());
        assert_eq!(watch.disk_problem(Instant::now(), None), Some(DiskProblem::Full(95)));
        assert_eq!(
            watch.disk_problem(Instant::now(), Some("it stopped".into())),
            Some(DiskProblem::Failed("it stopped".into()))
        );
    }
}
