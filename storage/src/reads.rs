//! The applied state of a replica as ops see it, and requests that only read.

use std::ops::ControlFlow;

use bytes::Bytes;
use cluster::CallError;
use engine::store::{self, Snapshot};
use row::edits::{Edits, Family};
use row::eval::{self, Failed};
use row::op::{Answer, Content, Op, Refusal, Request, Response};
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
}

impl<'a> Applied<'a> {
    /// Whatever is applied at each get: for a single get.
    pub(crate) fn latest(replica: &'a Replica) -> Applied<'a> {
        Applied { replica, moment: replica.heads.moment(), fills: true, snapshot: None }
    }

    /// For the executor: nothing is applied meanwhile.
    pub(crate) fn at_rest(replica: &'a Replica) -> Applied<'a> {
        Applied { replica, moment: replica.heads.moment(), fills: false, snapshot: None }
    }

    /// As of now.
    pub(crate) fn snapshot(replica: &'a Replica) -> Result<Applied<'a>, CallError> {
        let moment = replica.heads.moment();
        let snapshot = replica.store.snapshot().map_err(|error| replica.fault(error))?;
        Ok(Applied { replica, moment, fills: true, snapshot: Some(snapshot) })
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
        let Replica { heads, owner, .. } = self.replica;
        if let Some(head) = heads.get(owner, key, self.moment) {
            return Ok(Some(head));
        }
        let head = self.get_stored(family, key)?;
        if let Some(head) = head.as_ref().filter(|_| self.fills) {
            heads.fill(owner, key, head, self.moment);
        }
        Ok(head)
    }

    fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
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
}

fn fault(error: store::Fault) -> Fault {
    Fault(error.to_string())
}

/// Answers beyond so many bytes are left for the caller to ask for again, so that one request of many large reads does not fill the memory; except where they must be
/// one look, up to what one answer may have.
const ANSWERS_BYTES: usize = 8 << 20;

/// The bytes of an answer that may be large.
fn large_bytes(answer: &Answer) -> usize {
    match answer {
        Answer::Bytes(bytes) => bytes.len(),
        Answer::Values(values) => values.iter().flatten().map(Bytes::len).sum(),
        Answer::Cells { cells, .. } | Answer::CellsPage { cells, .. } => cells.iter().map(|(name, value)| name.len() + value.len()).sum(),
        Answer::Page { keys, .. } => keys.iter().map(Bytes::len).sum(),
        Answer::Content { content: Content::String(value), .. } => value.len(),
        Answer::Content { content: Content::Hash(fields), .. } => fields.iter().map(|(name, value, _)| name.len() + value.len()).sum(),
        _ => 0,
    }
}

/// Answers a request that only reads, on the calling thread, at least its first op (see [`ANSWERS_BYTES`]). `None`: the lease had run out by the time the state was looked at.
///
/// The lease is checked after the look, not before: however long the thread was held up in between, what it saw was then the latest.
pub(crate) fn answer(replica: &Replica, request: &Request) -> Result<Option<Response>, CallError> {
    let is_one_get = matches!(request.ops.as_slice(), [op] if one_get(op));
    let view = if is_one_get { Applied::latest(replica) } else { Applied::snapshot(replica)? };
    if !is_one_get && !replica.lease.is_valid() {
        return Ok(None);
    }
    let stamp = replica.clock.read();
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
        if rules.answer_bytes_max > 0 && bytes > rules.answer_bytes_max {
            outcomes.push(Err(Refusal::AnswerTooLarge));
            continue;
        }
        let mut tx = Tx { view: &view, edits: &mut edits, stamp, rules };
        outcomes.push(match eval::eval(op, &mut tx) {
            Ok(answer) => {
                bytes += large_bytes(&answer);
                Ok(answer)
            }
            Err(Failed::Refused(refusal)) => Err(refusal),
            Err(Failed::Fault(fault)) => return Err(replica.fault(fault)),
        });
    }
    assert!(edits.is_empty(), "an op that only reads leaves no edits");
    Ok((!is_one_get || replica.lease.is_valid()).then_some(Response::Done(outcomes)))
}

/// Whether a request needs the executor: it writes, or asks what only the executor knows.
pub(crate) fn is_for_executor(request: &Request) -> bool {
    !request.watched.is_empty() || request.ops.iter().any(|op| op.is_write() || matches!(op, Op::Watch { .. }))
}

/// Ops that read one record, and so need no snapshot to see one moment.
fn one_get(op: &Op) -> bool {
    matches!(op, Op::Get { .. } | Op::GetRange { .. } | Op::Length { .. })
}

/// How many records an op may look at on a thread that serves connections.
const LONG: u64 = 1000;

/// Ops that may look at very many records: not on a thread that serves connections.
pub(crate) fn is_long(replica: &Replica, op: &Op) -> bool {
    match op {
        Op::Scan { count, .. } | Op::HashScan { count, .. } => *count > LONG,
        Op::HashRange { key, .. } | Op::HashRangeCount { key, .. } | Op::HashRandom { key, .. } | Op::Dump { key } => {
            fields(replica, key) > LONG
        }
        _ => false,
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
