//! The disk under the log: how it is written and synced, and how it has been lately.
//!
//! A slow, full or failed disk is its server's trouble and is not to be the cluster's:
//! whoever leads on one hands over to a member whose disk is well ([`DiskProblem`],
//! [`Log::disk_problem`](super::Log::ailment)), and is not given leaderships back for
//! [`DISK_PROBATION`].
//!
//! # Invariants
//! - A sync that hangs is seen while it hangs, not when it ends
//!   (`a_hanging_sync_is_a_disk_problem_while_it_hangs`).
//! - Who was ailing says so for a minute after it is well
//!   (`a_disk_problem_is_recent_for_a_minute`).

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A sync that takes longer is a slow disk's.
const SLOW_FSYNC_MIN: Duration = Duration::from_secs(1);
/// Who is to take over from another because of its disk must have synced faster.
pub const HEALTHY_FSYNC_MAX: Duration = Duration::from_millis(100);
/// A disk that is so full is left to others, percent.
const FULL_PERCENT: u8 = 95;
/// For so long after it was ailing a disk is not trusted with leaderships.
pub const DISK_PROBATION: Duration = Duration::from_secs(60);

/// Space of a file system, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// What is used.
    pub used: u64,
    /// What this process may still use.
    pub free: u64,
}

impl DiskSpace {
    /// How much is used of what can be, percent, as `df` says it.
    pub fn used_percent(&self) -> u8 {
        let all = u128::from(self.used) + u128::from(self.free);
        (u128::from(self.used) * 100).checked_div(all).unwrap_or(0) as u8
    }
}

/// What the log asks of a disk. Tests put another in its place, which is slow, fails or
/// is full.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Writes all bytes at an offset.
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    /// Has what was written on the disk (fdatasync).
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// The space of the file system that a directory is on; `None`: it can't be asked.
    fn space(&self, dir: &Path) -> Option<DiskSpace> {
        let stat = rustix::fs::statvfs(dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Some(DiskSpace {
            used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
            free: bytes(stat.f_bavail),
        })
    }
}

/// The operating system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl Disk for OsDisk {}

/// What is wrong with a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskProblem {
    /// An fsync takes, or the last one took, more than a second.
    #[error("an fsync of the log takes {:.1} s", .0.as_secs_f64())]
    Slow(Duration),
    /// It is nearly full.
    #[error("a disk is {0} % full")]
    Full(u8),
    /// The log has stopped.
    #[error("{0}")]
    Failed(String),
    /// More log waits for the disk than may.
    #[error("the log's disk does not keep up: {0} bytes wait for it")]
    Behind(u64),
}

impl DiskProblem {
    /// In two words, for a metric.
    pub fn name(&self) -> &'static str {
        match self {
            DiskProblem::Slow(_) => "slow disk",
            DiskProblem::Full(_) => "full disk",
            DiskProblem::Failed(_) => "failed disk",
            DiskProblem::Behind(_) => "log behind",
        }
    }
}

/// How a disk is and has been.
#[derive(Debug)]
pub(crate) struct DiskMonitor {
    began: Instant,
    /// When the syncs that are under way began; two at most.
    in_progress: Mutex<Vec<Instant>>,
    last_nanos: AtomicU64,
    /// Up to when, in nanoseconds from `began`, nobody is to sync who has other things to
    /// do; 0: nothing happened yet.
    slow_until: AtomicU64,
    used_percent: AtomicU8,
    /// The last ailment and when it was last seen.
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

    /// A sync begins.
    pub(crate) fn begin(&self, now: Instant) -> Instant {
        self.in_progress.lock().push(now);
        now
    }

    /// It has ended; how long it took.
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
        // Noted now: the next one may be quick before anybody looks.
        let _ = self.disk_problem(now, None);
        took
    }

    /// Whether a sync took more than [`HEALTHY_FSYNC_MAX`] within the last minute: whoever has other
    /// things to do leaves syncs to the log's own thread.
    pub(crate) fn was_slow_lately(&self, now: impl FnOnce() -> Instant) -> bool {
        let until = self.slow_until.load(Ordering::Relaxed);
        until != 0 && now().saturating_duration_since(self.began).as_nanos() < u128::from(until)
    }

    /// How long the last sync took, or one that is under way takes if that is longer.
    pub(crate) fn last(&self, now: Instant) -> Duration {
        let in_progress =
            self.in_progress.lock().iter().map(|began| now.saturating_duration_since(*began)).max();
        Duration::from_nanos(self.last_nanos.load(Ordering::Relaxed))
            .max(in_progress.unwrap_or_default())
    }

    /// Looks how full the disks of these directories are.
    pub(crate) fn check_space<'d>(&self, disk: &dyn Disk, dirs: impl Iterator<Item = &'d PathBuf>) {
        let used = dirs.filter_map(|dir| disk.space(dir)).map(|space| space.used_percent()).max();
        self.used_percent.store(used.unwrap_or(0), Ordering::Relaxed);
    }

    /// What is wrong now; `failed`: why the log has stopped.
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

    /// What is wrong now, or was within the last minute.
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
        // One that is not slow yet, but too slow for threads that have other things to
        // do.
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
