//! The applied state of a replica as ops see it, and requests that only read.

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;
use cluster::{CallError, blocking};
use engine::store::{self, Snapshot};
use row::edits::{Edits, Family};
use row::eval::{self, Failed};
use row::op::{Content, Op, Refusal, Request, Response};
use row::view::{Fault, Tx, View};
use row::{key, value};

use crate::batch::of;
use crate::hot::Moment;
use crate::replica::Replica;

/// Applied state: the latest, or that of one moment.
pub(crate) struct Applied<'a> {
    replica: &'a Replica,
    /// Noted before the look at the store.
    moment: Moment,
    /// Whether heads that were read are kept: not before a write, which keeps its own.
    fills: bool,
    snapshot: Option<Snapshot>,
    /// How many more records may be walked past before all ranges end.
    patience: Cell<u64>,
    /// The latest moment that was taken for past, ms; 0 when none was.
    past_ms: Cell<u64>,
}

impl<'a> Applied<'a> {
    fn new(replica: &'a Replica, fills: bool) -> Applied<'a> {
        Applied { replica, moment: replica.hot.moment(), fills, snapshot: None, patience: Cell::new(u64::MAX), past_ms: Cell::new(0) }
    }

    /// Whatever is applied at each get: for a single get.
    pub(crate) fn latest(replica: &'a Replica) -> Applied<'a> {
        Applied::new(replica, true)
    }

    /// For the executor: nothing is applied meanwhile.
    pub(crate) fn at_rest(replica: &'a Replica) -> Applied<'a> {
        Applied::new(replica, false)
    }

    /// As of now.
    pub(crate) fn snapshot(replica: &'a Replica) -> Result<Applied<'a>, CallError> {
        let applied = Applied::new(replica, true);
        let snapshot = replica.store.snapshot().map_err(|error| replica.fault(error))?;
        Ok(Applied { snapshot: Some(snapshot), ..applied })
    }

    /// The latest moment that what was evaluated [rests on](View::rests_on), ms.
    pub(crate) fn past_ms(&self) -> u64 {
        self.past_ms.get()
    }

    /// Whether a range ended before its end because it took too long: what was made of it is worth nothing.
    fn is_out_of_patience(&self) -> bool {
        self.patience.get() == 0
    }

    /// Walks past so many more records, or takes as long for something else; `false`: there is no time for it.
    fn takes(&self, records: u64) -> bool {
        blocking::give_way();
        self.patience.set(self.patience.get().saturating_sub(records));
        !self.is_out_of_patience()
    }
}

impl Applied<'_> {
    fn get_stored(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match &self.snapshot {
            Some(snapshot) => snapshot.get(of(family), key),
            None => self.replica.store.get(of(family), key),
        }
        .map_err(fault)
    }
}

impl View for Applied<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        if family != Family::Head {
            return self.get_stored(family, key);
        }
        let Replica { hot, owner, .. } = self.replica;
        if let Some(head) = hot.get(owner, key, self.moment) {
            return Ok(Some(head));
        }
        let head = self.get_stored(family, key)?;
        if let Some(head) = head.as_ref().filter(|_| self.fills) {
            hot.fill(owner, key, head, self.moment);
        }
        Ok(head)
    }

    fn gist(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let Replica { hot, owner, .. } = self.replica;
        match hot.gist(owner, family, key, self.moment) {
            Some(gist) => Ok(Some(gist)),
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
            if self.takes(records) { each(key, value) } else { ControlFlow::Break(()) }
        };
        match &self.snapshot {
            Some(snapshot) => snapshot.range(of(family), from, to, reverse, each),
            None => self.replica.store.range(of(family), from, to, reverse, each),
        }
        .map_err(fault)
    }

    fn recall(&self, cursor: u64) -> Option<Bytes> {
        self.replica.cursors.recall(cursor)
    }

    fn remember(&self, cursor: u64, sortkey: &[u8]) {
        self.replica.cursors.remember(cursor, sortkey);
    }

    fn rests_on(&self, past_ms: u64) {
        self.past_ms.set(self.past_ms.get().max(past_ms));
    }

    fn has_time_for(&self, ns: u64) -> bool {
        self.takes(ns / RECORD_NS)
    }
}

fn fault(error: store::Fault) -> Fault {
    Fault(error.to_string())
}

/// Answers beyond so many bytes are left for the caller to ask for again, so that one request of many large reads does not fill the memory; except
/// where they must be one look, up to what one answer may have. A batch of the executor ends there, too.
pub(crate) const ANSWERS_BYTES: usize = 8 << 20;

/// By which time a look judges what has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The partition's, now.
    Now,
    /// The last that is committed: all that is past by it is past for good.
    Committed,
}

/// What became of a look at the state.
pub(crate) enum Look {
    /// All is answered that was to be.
    Done(Response),
    /// An answer rests on it that this moment (ms) is past, and the log did not know that before the look. It must be written down first, and then
    /// looked at again: a write that was under way before that may have given the row another expiry.
    Ahead(Response, u64),
    /// The lease had run out by the time the state was looked at.
    TooLate,
    /// There is more to walk past than the caller has time for.
    TooLong,
}

/// Answers a request that only reads, on the calling thread, at least its first op (see [`ANSWERS_BYTES`]), unless more than `walked_max` records must be walked past, or
/// something else takes as long.
///
/// The lease that was valid before the look must still be valid after it: however long the thread was held up in between, what it saw was then
/// the latest. Another lease would not do: leadership that went and came back meanwhile left what others wrote behind the look.
pub(crate) fn answer(replica: &Replica, request: &Request, walked_max: u64, by: By) -> Result<Look, CallError> {
    let Some(epoch) = replica.lease.epoch() else { return Ok(Look::TooLate) };
    // Before the look, too: what is committed after it may have come behind a write that the look has not seen.
    let committed_ms = replica.clock.committed_ms();
    let is_one_get = matches!(request.ops.as_slice(), [op] if one_get(op));
    let view = if is_one_get { Applied::latest(replica) } else { Applied::snapshot(replica)? };
    view.patience.set(walked_max);
    if !is_one_get && !replica.lease.covers(epoch) {
        return Ok(Look::TooLate);
    }
    let stamp = match by {
        By::Now => replica.clock.now(),
        By::Committed => replica.clock.at(committed_ms),
    };
    let rules = replica.rules();
    let mut edits = Edits::default();
    let mut outcomes = Vec::with_capacity(request.ops.len());
    let mut bytes = 0;
    let mut joined = request.joined.iter().peekable();
    for (at, op) in request.ops.iter().enumerate() {
        let is_joined = joined.next_if(|joined| **joined as usize == at).is_some();
        if bytes > ANSWERS_BYTES && !is_joined {
            break;
        }
        // Copying more takes as long as walking.
        if bytes > ANSWERS_BYTES && walked_max < u64::MAX {
            return Ok(Look::TooLong);
        }
        if rules.answer_bytes_max > 0 && bytes > rules.answer_bytes_max {
            outcomes.push(Err(Refusal::AnswerTooLarge));
            continue;
        }
        let mut tx = Tx { view: &view, edits: &mut edits, stamp, rules };
        let answered = eval::eval(op, &mut tx);
        if view.is_out_of_patience() {
            return Ok(Look::TooLong);
        }
        outcomes.push(match answered {
            Ok(answer) => {
                bytes += answer.bytes();
                Ok(answer)
            }
            Err(Failed::Refused(refusal)) => Err(refusal),
            Err(Failed::Fault(fault)) => return Err(replica.fault(fault)),
        });
    }
    assert!(edits.is_empty(), "an op that only reads leaves no edits");
    if is_one_get && !replica.lease.covers(epoch) {
        return Ok(Look::TooLate);
    }
    let (response, past_ms) = (Response::Done(outcomes), view.past_ms());
    Ok(if past_ms <= committed_ms { Look::Done(response) } else { Look::Ahead(response, past_ms) })
}

/// Whether a request needs the executor: it writes, or asks what only the executor knows.
pub(crate) fn is_for_executor(request: &Request) -> bool {
    !request.watched.is_empty() || request.ops.iter().any(|op| op.is_write() || matches!(op, Op::Watch { .. }))
}

/// Ops that read one record, and so need no snapshot to see one moment.
fn one_get(op: &Op) -> bool {
    matches!(op, Op::Get { .. } | Op::GetRange { .. } | Op::Length { .. })
}

/// How many records a request may look at on a thread that serves connections.
const LONG: u64 = 1000;

/// What walking past a record takes, about, and how many bytes can be copied in that time.
const RECORD_NS: u64 = 1000;
const RECORD_BYTES: u64 = 1024;

/// Past how many records such a thread walks at most. Not all are known before: fields that have expired are walked past as well, and those before the
/// one that a forgotten HSCAN cursor stands for.
pub(crate) const WALKED_MAX: u64 = 2 * LONG;

/// Whether a request is known to look at very many records: not on a thread that serves connections.
pub(crate) fn is_long(replica: &Replica, request: &Request) -> bool {
    let mut records: u64 = 0;
    request.ops.iter().any(|op| {
        records = records.saturating_add(looked_at(replica, op));
        records > LONG
    })
}

/// Whether requests will keep the executor so long that others had better be served by another thread meanwhile.
pub(crate) fn are_long<'a>(replica: &Replica, requests: impl Iterator<Item = &'a Request>) -> bool {
    let ops = requests.flat_map(|request| &request.ops);
    ops.fold(0u64, |records, op| records.saturating_add(looked_at(replica, op))) > WALKED_MAX
}

/// About how many records an op looks at or changes, as far as that is known before.
fn looked_at(replica: &Replica, op: &Op) -> u64 {
    match op {
        Op::HashPut { pairs, .. } | Op::SetAllNew { pairs } => pairs.len() as u64,
        Op::HashDelete { fields, .. } | Op::HashGetDelete { fields, .. } | Op::HashGetExpire { fields, .. } => fields.len() as u64,
        Op::HashExpire { fields, .. } => fields.len() as u64,
        Op::Restore { content: Content::Hash(fields), .. } => fields.len() as u64,
        Op::Copy { from, .. } | Op::Rename { from, .. } => fields(replica, from),
        Op::HashRangeDelete { key, .. } => fields(replica, key),
        Op::ExpireDue { max, .. } => *max,
        Op::Append { value, .. } | Op::Set { value, .. } | Op::SetRange { value, .. } => 1 + value.len() as u64 / RECORD_BYTES,
        // The one that the next page begins with is looked at as well.
        Op::Scan { count, .. } | Op::HashScan { count, .. } => count.saturating_add(1),
        Op::HashGet { fields, .. } => fields.len() as u64,
        Op::HashExpiry { fields, .. } => fields.len() as u64,
        Op::HashRange { key, .. } | Op::HashRangeCount { key, .. } | Op::Dump { key } | Op::Size { key, samples: 0 } => {
            fields(replica, key)
        }
        Op::Size { samples, .. } => *samples,
        Op::HashRandom { key, count, .. } => fields(replica, key).saturating_add(count.min(&0).unsigned_abs()),
        _ => 1,
    }
}

/// How many fields a hash has; 0 for anything else. What can't be read is found out by the op itself.
fn fields(replica: &Replica, key: &[u8]) -> u64 {
    let Ok(Some(head)) = replica.store.get(engine::batch::Family::Head, &key::head(key)) else { return 0 };
    match value::Head::decode(&head) {
        Ok(value::Head { body: value::Body::Hash(hash), .. }) => hash.count,
        _ => 0,
    }
}
