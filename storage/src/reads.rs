//! Reads of a replica's applied state: the view that ops get, and requests that only
//! read.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use cluster::{CallError, blocking};
use engine::store::Snapshot;
use row::edits::{Edits, Family};
use row::eval::{self, EvalError, EvalResult};
use row::op::{Op, Refusal, Request, Response};
use row::registry::{Effect, Look};
use row::view::{Fault, Rules, Stamp, Tx, View};
use row::{PartitionOp, key, value};

use crate::batch::of;
use crate::expiry::cycle::STEP_TIME_MAX;
use crate::fault::of_view;
use crate::replica::Replica;
use crate::row_cache::Version;

/// A view of the applied state: the latest, or a snapshot.
pub(crate) struct ReadView<'a> {
    replica: &'a Replica,
    /// The row cache's version, noted before the first read of the store.
    version: Version,
    /// True when records that were read go into the row cache. They do not before a
    /// write, which puts its own.
    inserts: bool,
    snapshot: Option<Snapshot>,
    /// The number of records that may still be walked past before all ranges end.
    cells_left: Cell<u64>,
    /// The latest time that was taken for past, ms; 0 when none was.
    observed_expiry_ms: Cell<u64>,
    /// The end of the time that the current step of the expiry cycle has on the executor,
    /// by the node's clock for steps.
    step_ends_at: Cell<Duration>,
}

impl<'a> ReadView<'a> {
    fn new(replica: &'a Replica, inserts: bool) -> ReadView<'a> {
        ReadView {
            replica,
            version: replica.row_cache.version(),
            inserts,
            snapshot: None,
            cells_left: Cell::new(u64::MAX),
            observed_expiry_ms: Cell::new(0),
            step_ends_at: Cell::new(Duration::MAX),
        }
    }

    /// The latest applied state at each get; [`SingleRowView`] makes it consistent.
    fn latest(replica: &'a Replica) -> ReadView<'a> {
        ReadView::new(replica, true)
    }

    /// A view for the executor. Only batches in flight are applied meanwhile, and the
    /// executor reads through their edits.
    pub(crate) fn for_executor(replica: &'a Replica) -> ReadView<'a> {
        ReadView::new(replica, false)
    }

    /// The state as of now; all ranges end when more than `cells_max` records were walked
    /// past.
    pub(crate) fn snapshot(
        replica: &'a Replica,
        cells_max: u64,
    ) -> Result<ReadView<'a>, CallError> {
        let view = ReadView::new(replica, true);
        let snapshot = replica.store.snapshot().map_err(|error| replica.fault(error))?;
        Ok(ReadView { snapshot: Some(snapshot), cells_left: Cell::new(cells_max), ..view })
    }

    /// The latest time that the evaluation [depends on](View::depends_on_time), ms.
    pub(crate) fn observed_expiry_ms(&self) -> u64 {
        self.observed_expiry_ms.get()
    }

    /// Begins a step of the expiry cycle. The step [is spent](View::is_spent) when it has
    /// held the executor for [`STEP_TIME_MAX`].
    pub(crate) fn begin_step(&self) -> Duration {
        let began = (self.replica.step_clock)();
        self.step_ends_at.set(began + STEP_TIME_MAX);
        began
    }

    /// The time since a step began.
    pub(crate) fn since(&self, began: Duration) -> Duration {
        (self.replica.step_clock)().saturating_sub(began)
    }

    /// True when a range ended before its end because it took too long: its result is
    /// useless.
    fn is_over_budget(&self) -> bool {
        self.cells_left.get() == 0
    }

    /// Counts records that are walked past, or something else that takes as long;
    /// `false`: there is no time for it.
    fn charge(&self, records: u64) -> bool {
        blocking::yield_permit();
        self.cells_left.set(self.cells_left.get().saturating_sub(records));
        !self.is_over_budget()
    }
}

impl ReadView<'_> {
    fn get_stored(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match &self.snapshot {
            Some(snapshot) => snapshot.get(of(family), key),
            None if self.inserts => self.replica.store.get(of(family), key),
            None => self.replica.store.get_replaced(of(family), key),
        }
        .map_err(|fault| of_view(&fault))
    }
}

impl View for ReadView<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        // The row cache holds heads and cells only.
        if family == Family::State {
            return self.get_stored(family, key);
        }
        let Replica { row_cache, cache_scope, .. } = self.replica;
        if let Some(record) = row_cache.get(cache_scope, family, key, self.version) {
            return Ok(Some(record));
        }
        let record = self.get_stored(family, key)?;
        if let Some(record) = record.as_ref().filter(|_| self.inserts) {
            row_cache.insert(cache_scope, family, key, record, self.version);
        }
        Ok(record)
    }

    fn metadata(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let Replica { row_cache, cache_scope, .. } = self.replica;
        match row_cache.metadata(cache_scope, family, key, self.version) {
            Some(metadata) => Ok(Some(metadata)),
            None => self.get_stored(family, key),
        }
    }

    fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let each = &mut |key: &[u8], value: &[u8]| {
            let records = 1 + (key.len() + value.len()) as u64 / RECORD_BYTES;
            if self.charge(records) { each(key, value) } else { ControlFlow::Break(()) }
        };
        match &self.snapshot {
            Some(snapshot) => snapshot.range(of(family), from, to, reverse, each),
            None => self.replica.store.range(of(family), from, to, reverse, each),
        }
        .map_err(|fault| of_view(&fault))
    }

    fn recall_cursor(&self, row: &[u8], cursor: u64) -> Option<Bytes> {
        self.replica.cursors.recall_cursor(row, cursor)
    }

    fn remember_cursor(&self, row: &[u8], cursor: u64, sortkey: &[u8]) -> bool {
        self.replica.cursors.remember_cursor(row, cursor, sortkey)
    }

    fn is_spent(&self) -> bool {
        (self.replica.step_clock)() >= self.step_ends_at.get()
    }

    fn depends_on_time(&self, observed_expiry_ms: u64) {
        self.observed_expiry_ms.set(self.observed_expiry_ms.get().max(observed_expiry_ms));
    }

    fn has_time_for(&self, ns: u64) -> bool {
        self.charge(ns / RECORD_NS)
    }
}

/// A view of a row's head and one of its cells as of one point in time, without a
/// snapshot of the store. Each record is read as it is applied by then, and the head once
/// more after the cell.
///
/// # Consistency
/// Let the head be read at `a`, the cell at `b` and the head again at `c`, and let both
/// heads name the generation `g`. A partition gives each generation once: a row that was
/// deleted, or replaced by another, never has `g` again. So the row had `g` all the time
/// from `a` to `c`, and the cell that is found under `g` at `b`, or found missing, is the
/// row's own at `b`. The op takes one more fact from the head read at `a`: the row's
/// expiry, by which the row lives or not. Suppose that a write changed the expiry between
/// `a` and `b`. If the cell stayed as it was from `a` to `b`, the op's place is before
/// that write. Otherwise its place is right after the last write of the cell before `b`:
/// the row lived for that write, or it would have got another generation.
///
/// An op that reads more than that is evaluated again, on a snapshot
/// ([`SingleRowView::is_consistent`]).
struct SingleRowView<'a> {
    state: ReadView<'a>,
    heads: Cell<u32>,
    cells: Cell<u32>,
    /// The generation in the head that was read.
    generation: Cell<Option<u64>>,
    /// True when something else was read.
    is_more: Cell<bool>,
}

impl<'a> SingleRowView<'a> {
    fn new(replica: &'a Replica) -> SingleRowView<'a> {
        let (heads, cells) = (Cell::new(0), Cell::new(0));
        SingleRowView {
            state: ReadView::latest(replica),
            heads,
            cells,
            generation: Cell::new(None),
            is_more: Cell::new(false),
        }
    }

    /// Counts a record that was read.
    fn note_read(&self, family: Family, record: Option<&Bytes>) -> Result<(), Fault> {
        match family {
            Family::Head => {
                self.heads.set(self.heads.get() + 1);
                self.generation.set(generation(record)?);
            }
            Family::Cell => self.cells.set(self.cells.get() + 1),
            Family::State => self.is_more.set(true),
        }
        Ok(())
    }

    /// True when everything read of the row with this key is of one point in time; the
    /// last call on the view.
    fn is_consistent(&self, key: &[u8]) -> Result<bool, Fault> {
        match (self.is_more.get(), self.heads.get(), self.cells.get()) {
            (false, 0 | 1, 0) => Ok(true),
            (false, 1, 1) => {
                // The view's own version is from before the read of the cell; this read
                // of the head must come after it.
                let head =
                    ReadView::latest(self.state.replica).metadata(Family::Head, &key::head(key))?;
                Ok(self.generation.get().is_some()
                    && generation(head.as_ref())? == self.generation.get())
            }
            _ => Ok(false),
        }
    }
}

/// The generation that a head names.
fn generation(head: Option<&Bytes>) -> Result<Option<u64>, Fault> {
    head.map_or(Ok(None), |head| Ok(value::Head::summary(head)?.generation))
}

impl View for SingleRowView<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let record = self.state.get(family, key)?;
        self.note_read(family, record.as_ref())?;
        Ok(record)
    }

    fn metadata(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let metadata = self.state.metadata(family, key)?;
        self.note_read(family, metadata.as_ref())?;
        Ok(metadata)
    }

    /// Walks nothing: the op is evaluated again on a snapshot, and this result is
    /// dropped.
    fn range(
        &self,
        _: Family,
        _: &[u8],
        _: &[u8],
        _: bool,
        _: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.is_more.set(true);
        Ok(())
    }

    fn depends_on_time(&self, observed_expiry_ms: u64) {
        self.state.depends_on_time(observed_expiry_ms);
    }
}

/// Beyond this many bytes of answers, the remaining ops are left for the caller to send
/// again. One request of many large reads then does not fill the memory. Ops that must
/// see one snapshot go on, up to the largest answer. A batch of the executor ends at this
/// size, too.
pub(crate) const ANSWERS_BYTES: usize = 8 << 20;

/// The time by which a read decides which rows have expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadTime {
    /// The partition's time, now.
    Now,
    /// The last committed time: what is past by it is past under every later leader.
    Committed,
}

/// The outcome of a local read.
pub(crate) enum ReadOutcome {
    /// The request is answered.
    Done(Response),
    /// An answer depends on this time (ms) being past, and the log did not hold that
    /// before the read. The time must be committed, and then the state is read again: a
    /// write that was under way before may have given the row another expiry.
    ClockNotCommitted(Response, u64),
    /// The lease had run out by the end of the read.
    LeaseExpired,
    /// More records must be walked past than the caller has time for.
    TooExpensive,
}

/// Answers a request that only reads, on the calling thread, at least its first op (see
/// [`ANSWERS_BYTES`]), unless more than `cells_max` records must be walked past, or
/// something else takes as long.
///
/// The lease that was valid before the read must still be valid after it: however long
/// the thread was held up in between, the state that it read was then the latest. Another
/// lease does not cover the read: leadership that was lost and won again meanwhile put
/// the writes of other leaders behind the read.
pub(crate) fn answer(
    replica: &Replica,
    request: &Request,
    cells_max: u64,
    by: ReadTime,
) -> Result<ReadOutcome, CallError> {
    let Some(epoch) = replica.lease.epoch() else { return Ok(ReadOutcome::LeaseExpired) };
    // Before the read as well: a time that is committed after it may be committed behind
    // a write that the read does not see.
    let committed_ms = replica.clock.committed_ms();
    // Ops that are not joined need not see one snapshot: each sees the state of the op
    // before it, or a later one.
    let is_each_single =
        request.joined.is_empty() && request.ops.iter().all(|op| single_row(op).is_some());
    let snapshot =
        if is_each_single { None } else { Some(ReadView::snapshot(replica, cells_max)?) };
    // A snapshot stays as it is, so the lease need only cover the time at which it was
    // taken.
    if !is_each_single && !replica.lease.covers(epoch) {
        return Ok(ReadOutcome::LeaseExpired);
    }
    let stamp = match by {
        ReadTime::Now => replica.clock.now(),
        ReadTime::Committed => replica.clock.at(committed_ms),
    };
    let rules = replica.rules();
    if is_each_single && request.ops.len() > 1 {
        replica.row_cache.prefetch(
            &replica.cache_scope,
            request.ops.iter().filter_map(single_row).map(|key| key::position(key)),
        );
    }
    let mut outcomes = Vec::with_capacity(request.ops.len());
    let (mut bytes, mut observed_expiry_ms) = (0, 0);
    let mut joined = request.joined.iter().peekable();
    for (at, op) in request.ops.iter().enumerate() {
        let is_joined = joined.next_if(|joined| **joined as usize == at).is_some();
        if bytes > ANSWERS_BYTES && !is_joined {
            break;
        }
        // Copying more takes as long as walking past records.
        if bytes > ANSWERS_BYTES && cells_max < u64::MAX {
            return Ok(ReadOutcome::TooExpensive);
        }
        if rules.answer_bytes_max > 0 && bytes > rules.answer_bytes_max {
            outcomes.push(Err(Refusal::AnswerTooLarge));
            continue;
        }
        let evaluated = match &snapshot {
            Some(view) => evaluate_on(view, op, stamp, rules),
            None => evaluate_single(replica, op, stamp, rules, cells_max)?,
        };
        let Some((answered, expiry_ms)) = evaluated else { return Ok(ReadOutcome::TooExpensive) };
        observed_expiry_ms = observed_expiry_ms.max(expiry_ms);
        outcomes.push(match answered {
            Ok(answer) => {
                bytes += answer.bytes();
                Ok(answer)
            }
            Err(EvalError::Refused(refusal)) => Err(refusal),
            Err(EvalError::Fault(fault)) => return Err(replica.fault(fault)),
        });
    }
    // These ops read the latest state until now, so the lease must cover all of them.
    if is_each_single && !replica.lease.covers(epoch) {
        return Ok(ReadOutcome::LeaseExpired);
    }
    let response = Response::Done(outcomes);
    Ok(if observed_expiry_ms <= committed_ms {
        ReadOutcome::Done(response)
    } else {
        ReadOutcome::ClockNotCommitted(response, observed_expiry_ms)
    })
}

fn evaluate(view: &dyn View, op: &Op, stamp: Stamp, rules: Rules) -> EvalResult {
    let mut edits = Edits::default();
    let answered = eval::eval(op, &mut Tx { view, edits: &mut edits, stamp, rules });
    assert!(edits.is_empty(), "an op that only reads leaves no edits");
    answered
}

/// The answer of an op, and the latest time that it took for past, ms (see
/// [`View::depends_on_time`]); `None` when there are too many records to walk past.
fn evaluate_on(
    view: &ReadView<'_>,
    op: &Op,
    stamp: Stamp,
    rules: Rules,
) -> Option<(EvalResult, u64)> {
    let answered = evaluate(view, op, stamp, rules);
    (!view.is_over_budget()).then(|| (answered, view.observed_expiry_ms()))
}

/// Evaluates an op that reads one row like [`evaluate_on`], on the latest applied state.
fn evaluate_single(
    replica: &Replica,
    op: &Op,
    stamp: Stamp,
    rules: Rules,
    cells_max: u64,
) -> Result<Option<(EvalResult, u64)>, CallError> {
    let view = SingleRowView::new(replica);
    let answered = evaluate(&view, op, stamp, rules);
    let key = single_row(op).expect("only ops of one row are read without a snapshot");
    if view.is_consistent(key).map_err(|fault| replica.fault(fault))? {
        return Ok(Some((answered, view.state.observed_expiry_ms())));
    }
    // The op read more than a head and a cell, or the row was replaced between the reads.
    Ok(evaluate_on(&ReadView::snapshot(replica, cells_max)?, op, stamp, rules))
}

/// True for a request that needs the executor: it writes, or it asks for something that
/// only the executor, or the replica itself ([`is_sync`]), knows.
pub(crate) fn is_for_executor(request: &Request) -> bool {
    !request.watched.is_empty() || request.ops.iter().any(|op| op.effect() != Effect::Read)
}

/// True for a request that the replica itself answers: it asks that acknowledged writes
/// are on the disk.
pub(crate) fn is_sync(request: &Request) -> bool {
    request.watched.is_empty() && matches!(request.ops[..], [Op::Partition(PartitionOp::Sync)])
}

/// The row of an op that reads the row's head and at most one cell, and so needs no
/// snapshot to see one point in time.
fn single_row(op: &Op) -> Option<&Bytes> {
    if op.effect() != Effect::Read || op.look() != Look::One {
        return None;
    }
    match op.keys()[..] {
        [key] => Some(key),
        _ => None,
    }
}

/// The number of records that a request may examine on a thread that serves connections.
const LONG_SCAN_CELLS: u64 = 1000;

/// The approximate cost of walking past a record, ns, and the bytes that are copied in
/// that time.
const RECORD_NS: u64 = 1000;
const RECORD_BYTES: u64 = 1024;

/// The number of records that such a thread walks past at most. Not all are known before:
/// fields that have expired are walked past as well, and so are the fields before the one
/// that a forgotten HSCAN cursor stands for.
pub(crate) const LOCAL_READ_CELLS_MAX: u64 = 2 * LONG_SCAN_CELLS;

/// True for a request that is known to walk past more than [`LONG_SCAN_CELLS`] records:
/// it must not run on a thread that serves connections.
pub(crate) fn is_long(replica: &Replica, request: &Request) -> bool {
    let mut records: u64 = 0;
    request.ops.iter().any(|op| {
        records = records.saturating_add(cells_examined(replica, op));
        records > LONG_SCAN_CELLS
    })
}

/// True for requests that hold the executor's thread for a long time: another thread
/// should run the other tasks meanwhile.
pub(crate) fn are_long<'a>(replica: &Replica, requests: impl Iterator<Item = &'a Request>) -> bool {
    let ops = requests.flat_map(|request| &request.ops);
    ops.fold(0u64, |records, op| records.saturating_add(cells_examined(replica, op)))
        > LOCAL_READ_CELLS_MAX
}

/// The approximate number of records that an op reads or changes, as far as it is known
/// before, and the kilobytes that it carries.
fn cells_examined(replica: &Replica, op: &Op) -> u64 {
    let records = match op.look() {
        Look::One => 1,
        Look::Some(records) => records,
        Look::Row(more) => {
            let members = op.first_key().map_or(0, |key| field_count(replica, key));
            members.saturating_add(more)
        }
    };
    records.saturating_add(op.bytes() as u64 / RECORD_BYTES)
}

/// The number of a collection's members; 0 for anything else. The op itself reports a
/// record that can't be read.
fn field_count(replica: &Replica, key: &[u8]) -> u64 {
    let Ok(Some(head)) = replica.store.get(engine::batch::Family::Head, &key::head(key)) else {
        return 0;
    };
    value::Head::decode(&head)
        .ok()
        .and_then(|head| Some(head.body.collection()?.count))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cluster::CallPartition;
    use row::key::KeySpace;
    use row::op::{Ttl, WriteCondition};
    use row::{HashOp, RowOp};

    use super::*;
    use crate::Node;
    use crate::kit::{self, DB0};

    const KEY: &[u8] = b"key";

    async fn open(dir: &std::path::Path) -> Arc<Node> {
        let (node, _) = kit::node(kit::options(dir), kit::log_options(dir));
        node.follow(&[kit::assigned(kit::table())]).await;
        node
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_row_replaced_between_two_reads_is_no_consistent_view() {
        let dir = tempfile::tempdir().expect("a directory");
        let node = open(dir.path()).await;
        let write = async |ops: Vec<Op>| {
            let joined = (1..ops.len() as u32).collect();
            node.call(DB0, Request { ops, joined, watched: Vec::new() })
                .await
                .expect("a healthy node");
        };
        let put = |value: &'static str| {
            Op::Hash(HashOp::Put {
                key: Bytes::from_static(KEY).into(),
                pairs: vec![(Bytes::from_static(b"field"), Bytes::from_static(value.as_bytes()))],
                only: WriteCondition::Always,
                ttl: Ttl::Default,
            })
        };
        let delete = || Op::Row(RowOp::Delete { key: Bytes::from_static(KEY).into() });
        write(vec![put("old")]).await;
        let replica = node.replica(DB0).expect("it is here");
        // The writes between the reads of head and cell, and if the view is consistent
        // then.
        let writes = [
            (vec![], true),
            (vec![put("new")], true),
            (vec![delete(), put("other")], false),
            (vec![delete()], false),
        ];
        for (ops, is_one) in writes {
            let view = SingleRowView::new(&replica);
            let head = view.get(Family::Head, &key::head(KEY)).unwrap();
            let generation = generation(head.as_ref()).unwrap().expect("a hash");
            if !ops.is_empty() {
                write(ops.clone()).await;
            }
            let mut cell = key::cells(KEY, generation, KeySpace::Members);
            cell.extend_from_slice(b"field");
            view.get(Family::Cell, &cell).unwrap();
            assert_eq!(view.is_consistent(KEY).unwrap(), is_one, "{ops:?}");
        }
        let view = SingleRowView::new(&replica);
        for key in [KEY, b"another"] {
            view.get(Family::Head, &key::head(key)).unwrap();
        }
        assert!(!view.is_consistent(KEY).unwrap(), "two rows");
        node.close().await;
    }
}
