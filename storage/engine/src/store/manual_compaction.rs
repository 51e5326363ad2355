//! Compaction of a whole store on request, with progress.
//!
//! It rewrites the lowest level as well, so that the filters see every cell and replaced
//! data frees its space. It works in steps of a few files, so that its progress is known
//! and a closing store does not wait long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rocksdb::{BottommostLevelCompaction, CompactOptions};

use super::Fault;
use super::db::Db;
use crate::batch::Family;

/// Bytes that one step rewrites, approximately.
const STEP_BYTES: u64 = 256 << 20;
/// The time to wait for readers of older states. Later, the records that they see are
/// kept.
const READERS_TIMEOUT: Duration = Duration::from_secs(5);

/// A compaction of a whole store, running or done.
#[derive(Debug, Default)]
pub struct ManualCompaction {
    permille: AtomicU32,
    cancelled: AtomicBool,
    outcome: Mutex<Option<Result<(), Fault>>>,
    done: Condvar,
}

impl ManualCompaction {
    /// The rewritten part of the store: 0 to 1, and 1 only at the end.
    pub fn progress(&self) -> f64 {
        f64::from(self.permille.load(Ordering::Relaxed)) / 1000.0
    }

    /// The result; `None` while it runs.
    pub fn outcome(&self) -> Option<Result<(), Fault>> {
        self.outcome.lock().clone()
    }

    /// Waits for the end.
    pub fn wait(&self) -> Result<(), Fault> {
        let mut outcome = self.outcome.lock();
        loop {
            if let Some(outcome) = &*outcome {
                return outcome.clone();
            }
            self.done.wait(&mut outcome);
        }
    }

    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn run(&self, db: &Db) {
        let outcome = self.steps(db);
        if outcome.is_ok() {
            self.permille.store(1000, Ordering::Relaxed);
        }
        *self.outcome.lock() = Some(outcome);
        self.done.notify_all();
    }

    fn steps(&self, db: &Db) -> Result<(), Fault> {
        // Filters drop only what is dead on disk and for every reader, so both are
        // brought up to date.
        db.flush()?;
        db.open_snapshots().wait_for_older(Instant::now() + READERS_TIMEOUT);
        let mut steps = Vec::new();
        for family in Family::ALL {
            steps.extend(plan(db, family)?.into_iter().map(|step| (family, step)));
        }
        let total: u64 = steps.iter().map(|(_, step)| step.bytes.max(1)).sum();
        let mut done = 0;
        for (family, step) in &steps {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(Fault::Closed);
            }
            compact_range(db, *family, step.from.as_deref(), step.to.as_deref());
            if let Some(error) = db.reported() {
                return Err(error);
            }
            done += step.bytes.max(1);
            self.permille.store((done * 999 / total.max(1)) as u32, Ordering::Relaxed);
        }
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(Fault::Closed),
            false => Ok(()),
        }
    }
}

struct CompactionStep {
    from: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
    bytes: u64,
}

/// Divides a family into steps at the first keys of files of its lowest level, so that no
/// file is rewritten twice.
fn plan(db: &Db, family: Family) -> Result<Vec<CompactionStep>, Fault> {
    let files = db.raw().live_files().map_err(|error| db.fault("list the files of", error))?;
    let mut files: Vec<_> =
        files.into_iter().filter(|file| file.column_family_name == family.name()).collect();
    let lowest = files.iter().map(|file| file.level).max().unwrap_or(0);
    let mut above = 0;
    files.retain(|file| {
        let keep = file.level == lowest && lowest > 0;
        above += if keep { 0 } else { file.size as u64 };
        keep
    });
    files.sort_by(|a, b| a.start_key.cmp(&b.start_key));
    let mut steps = vec![CompactionStep { from: None, to: None, bytes: above }];
    for file in files {
        let last = steps.last_mut().expect("starts with one step and only grows");
        if last.bytes >= STEP_BYTES && file.start_key.is_some() {
            last.to.clone_from(&file.start_key);
            steps.push(CompactionStep { from: file.start_key, to: None, bytes: file.size as u64 });
        } else {
            last.bytes += file.size as u64;
        }
    }
    Ok(steps)
}

/// Compacts a range of a family down to the lowest level, with filters. RocksDB's C API
/// does not return the result: failures are found in `Db::reported`.
pub(super) fn compact_range(db: &Db, family: Family, from: Option<&[u8]>, to: Option<&[u8]>) {
    let mut options = CompactOptions::default();
    options.set_exclusive_manual_compaction(false);
    options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
    db.raw().compact_range_cf_opt(db.family(family), from, to, &options);
}

/// Cleared families with leftovers. One thread compacts them away, however many clears
/// there are.
#[derive(Debug, Default)]
pub(super) struct ClearedFamilies(Mutex<PendingFamilies>);

#[derive(Debug, Default)]
struct PendingFamilies {
    /// By family number.
    families: [bool; 3],
    is_running: bool,
}

impl ClearedFamilies {
    /// Adds families; true if the caller must start the thread.
    fn add(&self, families: [bool; 3]) -> bool {
        let mut left = self.0.lock();
        std::iter::zip(&mut left.families, families).for_each(|(left, more)| *left |= more);
        !std::mem::replace(&mut left.is_running, true)
    }

    /// Takes the added families; `None` ends the thread, and the next addition starts
    /// another.
    fn take(&self) -> Option<[bool; 3]> {
        let mut left = self.0.lock();
        let families = std::mem::take(&mut left.families);
        left.is_running = families.contains(&true);
        left.is_running.then_some(families)
    }
}

/// Compacts the leftovers of cleared families on the thread that does so already, or on a
/// new one.
pub(super) fn compact_cleared(db: &Arc<Db>, families: [bool; 3]) -> Result<(), Fault> {
    if !db.cleared_families.add(families) {
        return Ok(());
    }
    let running = db.clone();
    let run = move || {
        while let Some(families) = running.cleared_families.take() {
            let families = Family::ALL.into_iter().filter(|family| families[*family as usize]);
            families.for_each(|family| compact_range(&running, family, None, None));
        }
    };
    let started = std::thread::Builder::new().name("clear".into()).spawn(run);
    started.map(drop).map_err(|error| {
        // The next clear tries again.
        db.cleared_families.0.lock().is_running = false;
        Fault::io("start a thread for", error)
    })
}

/// Starts a compaction of everything on a thread of its own.
pub(super) fn start(db: Arc<Db>) -> Result<Arc<ManualCompaction>, Fault> {
    let compaction = Arc::new(ManualCompaction::default());
    let running = compaction.clone();
    std::thread::Builder::new()
        .name("compact".into())
        .spawn(move || running.run(&db))
        .map_err(|error| Fault::io("start a thread for compaction of", error))?;
    Ok(compaction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clears_share_one_thread() {
        let cleared_families = ClearedFamilies::default();
        assert!(cleared_families.add([false, true, false]), "the first begins");
        assert_eq!(cleared_families.take(), Some([false, true, false]));
        assert!(
            !cleared_families.add([false, true, false])
                && !cleared_families.add([false, false, true]),
            "while it runs, others add to it"
        );
        assert_eq!(cleared_families.take(), Some([false, true, true]));
        assert_eq!(cleared_families.take(), None);
        assert!(cleared_families.add([true, false, false]));
    }
}
