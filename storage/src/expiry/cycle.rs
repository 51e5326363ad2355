//! The expiry cycle at work: searches for what is due, and steps of the executor that
//! remove it.
//!
//! Partitions are worked in side by side, each for itself: one whose writer is stuck
//! holds up nobody else. A search runs on a thread of its own and takes as long as it
//! takes. A step holds the executor for [`STEP_TIME_MAX`] at most, whatever it finds, and
//! clients' writes are evaluated between two steps; how many steps follow each other
//! depends on how much is due.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster::{CallError, Fault};
use row::edits::Edits;
use row::expire::{self, DueItem, DueItems};
use row::op::{Answer, Op, Request, Response};
use row::{PartitionOp, Tx};
use tokio::sync::Semaphore;

use super::{ExpiryWork, Search, WorkGuard};
use crate::fault;
use crate::reads::ReadView;
use crate::replica::Replica;

/// A step ends when it has held the executor for so long; what it has begun takes
/// microseconds more.
pub(crate) const STEP_TIME_MAX: Duration = Duration::from_millis(1);

/// Bounds of one search and of one step, in rows and fields; a step may leave some.
const SEARCH_ITEMS_MAX: usize = 8192;
const STEP_ITEMS_MAX: usize = 512;

/// A partition removes no more than so many rows and fields a second: the processors are
/// there for clients first.
const REMOVALS_PER_SECOND_MAX: u32 = 64_000;

/// A step that takes longer than the first lets others have its turn, and of one that
/// takes longer than the second the log tells: the partition is stuck.
const STEP_PERMIT_TIME_MAX: Duration = Duration::from_millis(100);
const STEP_WARN_AFTER: Duration = Duration::from_secs(10);

/// The delay after a step that failed.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// The state that the cycles of a node share.
#[derive(Debug)]
pub(crate) struct ExpiryCycles {
    /// The cycles run (DEBUG SET-ACTIVE-EXPIRE).
    pub(crate) is_active: AtomicBool,
    /// The numbers of rows, and of fields of other rows, that they have removed.
    pub(crate) rows: AtomicU64,
    pub(crate) fields: AtomicU64,
    /// Searches at one time.
    search_permits: Semaphore,
    /// Steps at one time.
    step_permits: Semaphore,
}

impl ExpiryCycles {
    pub(crate) fn new() -> ExpiryCycles {
        // Half of the processors stay with others; two steps at least, so that one that
        // waits for its disk is not waited for.
        let half = std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
        ExpiryCycles {
            is_active: AtomicBool::new(true),
            rows: AtomicU64::new(0),
            fields: AtomicU64::new(0),
            search_permits: Semaphore::new(half.max(1)),
            step_permits: Semaphore::new(half.max(2)),
        }
    }

    /// Removes what is due in a partition, until nothing is, or a step does not go
    /// through.
    pub(crate) async fn work(self: Arc<ExpiryCycles>, replica: Arc<Replica>, _work: WorkGuard) {
        if let Err(error) = self.rounds(&replica).await {
            tracing::debug!(
                partition = ?replica.partition(),
                %error,
                "an expiry step failed; the search begins anew"
            );
            // What was found and not removed is to be found again; not at once.
            tokio::time::sleep(RETRY_DELAY).await;
            replica.expiry.reset();
        }
    }

    async fn rounds(&self, replica: &Arc<Replica>) -> Result<(), CallError> {
        while self.is_active.load(Ordering::Relaxed) && replica.leads() {
            let items = self.search(replica).await?;
            if items.is_empty()
                && replica.expiry.due(replica.clock.now().now_ms, &replica.rules())
                    != ExpiryWork::Now
            {
                return Ok(());
            }
            self.remove(replica, items.into()).await?;
        }
        Ok(())
    }

    /// Searches the latest state, away from the threads that serve.
    async fn search(&self, replica: &Arc<Replica>) -> Result<Vec<DueItem>, CallError> {
        let _one = self.search_permits.acquire().await.expect("the semaphore is never closed");
        let replica = replica.clone();
        tokio::task::spawn_blocking(move || search(&replica)).await.map_err(fault::call_error)?
    }

    async fn remove(
        &self,
        replica: &Arc<Replica>,
        mut items: VecDeque<DueItem>,
    ) -> Result<(), CallError> {
        while !items.is_empty() {
            if !self.is_active.load(Ordering::Relaxed) {
                return Err(CallError::NoLeader("the expiry cycle was stopped".to_owned()));
            }
            let began = Instant::now();
            let step = take(&mut items, STEP_ITEMS_MAX);
            let (done, removed) = self.step(replica, step.clone()).await?;
            done.left(step).rev().for_each(|item| items.push_front(item));
            tokio::time::sleep_until(
                (began + Duration::from_secs(1) * removed / REMOVALS_PER_SECOND_MAX).into(),
            )
            .await;
        }
        Ok(())
    }

    /// One step; how far it came, and how many rows and fields went.
    async fn step(
        &self,
        replica: &Replica,
        items: Vec<DueItem>,
    ) -> Result<(StepProgress, u32), CallError> {
        let permit = self.step_permits.acquire().await.expect("the semaphore is never closed");
        let step = Request {
            ops: vec![Op::Partition(PartitionOp::ExpireDue { items })],
            joined: Vec::new(),
            watched: Vec::new(),
        };
        let mut outcome = replica.queue.push(step)?;
        let outcome = match tokio::time::timeout(STEP_PERMIT_TIME_MAX, &mut outcome).await {
            Ok(outcome) => outcome,
            Err(_) => {
                drop(permit);
                match tokio::time::timeout(STEP_WARN_AFTER, &mut outcome).await {
                    Ok(outcome) => outcome,
                    Err(_) => {
                        tracing::warn!(
                            partition = ?replica.partition(),
                            "an expiry step has waited for {STEP_WARN_AFTER:?}; nothing expires \
                             in the partition until it is done"
                        );
                        outcome.await
                    }
                }
            }
        };
        let response = outcome
            .map_err(|_| CallError::Unknown("the partition's executor ended".to_owned()))??;
        let Response::Done(mut outcomes) = response else {
            return Err(CallError::Fault(Fault::internal("an expiry step watches nothing")));
        };
        match outcomes.pop() {
            Some(Ok(Answer::Expired { rows, fields, done, part, left_ms })) => {
                self.rows.fetch_add(rows, Ordering::Relaxed);
                self.fields.fetch_add(fields, Ordering::Relaxed);
                replica.expiry.note_expiry(left_ms.unwrap_or(u64::MAX));
                Ok((
                    StepProgress { items: done as usize, part: part as usize },
                    (rows + fields) as u32,
                ))
            }
            other => Err(CallError::Fault(Fault::internal(format!(
                "an expiry step was answered by {other:?}"
            )))),
        }
    }
}

/// The progress of a step.
struct StepProgress {
    items: usize,
    /// Members of the item behind these.
    part: usize,
}

impl StepProgress {
    /// The items that a step has left.
    fn left(&self, step: Vec<DueItem>) -> impl DoubleEndedIterator<Item = DueItem> {
        let mut left: VecDeque<DueItem> = step.into_iter().skip(self.items).collect();
        if self.part > 0
            && let Some(mut first) = left.pop_front()
            && let Some(rest) = first.cut(self.part)
        {
            left.push_front(rest);
        }
        left.into_iter()
    }
}

/// Takes rows and members from the front, about `max`.
fn take(items: &mut VecDeque<DueItem>, max: usize) -> Vec<DueItem> {
    let (mut taken, mut room) = (Vec::new(), max);
    while room > 0
        && let Some(mut item) = items.pop_front()
    {
        if let Some(rest) = item.cut(room) {
            items.push_front(rest);
        }
        room -= item.size().min(room);
        taken.push(item);
    }
    taken
}

/// Looks for what is due in the latest state.
fn search(replica: &Replica) -> Result<Vec<DueItem>, CallError> {
    let search: Search = replica.expiry.begin_search();
    let view = ReadView::snapshot(replica, u64::MAX)?;
    let tx = Tx {
        view: &view,
        edits: &mut Edits::default(),
        stamp: replica.clock.now(),
        rules: replica.rules(),
    };
    let found =
        expire::find(&tx, &search.from, SEARCH_ITEMS_MAX).map_err(|fault| replica.fault(fault))?;
    let (old, walked_to) = match search.walk {
        Some(from) => expire::find_old(&tx, from).map_err(|fault| replica.fault(fault))?,
        None => Default::default(),
    };
    replica.expiry.end_search(&search, &found, walked_to);
    let DueItems { mut items, .. } = found;
    items.extend(old);
    Ok(items)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use row::expire::DueMembers;
    use row::value::MemberExpiry;

    use super::*;

    fn members(expiries: std::ops::Range<u64>) -> DueItem {
        let expiry = |n| MemberExpiry::of(n, b"f");
        let (floor, next) = (expiry(expiries.start), Some(expiry(expiries.end)));
        DueItem::Members(DueMembers {
            head_key: Bytes::from_static(b"h"),
            generation: 1,
            floor,
            expiries: expiries.map(expiry).collect(),
            next,
        })
    }

    #[test]
    fn expiry_steps_take_items_in_order_and_requeue_the_rest() {
        let row =
            |n: u64| DueItem::Row { head_key: Bytes::from(format!("row{n}")), indexed_ms: Some(n) };
        let mut items = VecDeque::from([row(1), members(10..20), row(2)]);
        assert_eq!(take(&mut items, 4), [row(1), members(10..13)]);
        let step = take(&mut items, 100);
        assert_eq!((step.as_slice(), items.len()), (&[members(13..20), row(2)][..], 0));
        let left =
            |items, part| StepProgress { items, part }.left(step.clone()).collect::<Vec<_>>();
        assert_eq!(left(0, 3), [members(16..20), row(2)]);
        assert_eq!(left(1, 0), [row(2)]);
        assert_eq!(left(2, 0), []);
        assert_eq!(left(0, 0), step);
    }
}
