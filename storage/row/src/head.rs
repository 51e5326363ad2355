//! A row as an op finds it and leaves it: its liveness, its head, its entries in the time
//! index and in the counters of rows.

use bytes::Bytes;
use std::ops::{ControlFlow, Deref};

use crate::edits::Family;
use crate::eval::EvalError;
use crate::form::{Collection, CollectionHead, CollectionSummary};
use crate::key::{self, ExpiryTarget, KeyBuf, KeySpace};
use crate::op::{Refusal, RowKind};
use crate::value::{Body, Expiries, Head, MemberExpiry};
use crate::view::{Fault, Tx};

/// A stored row without the value of a string: enough to replace or delete it. Writing it
/// keeps the `rows` counter and the time index exact.
#[derive(Debug)]
pub(crate) struct RowMetadata {
    head_key: KeyBuf,
    /// As stored, expired or not; a string's value may be missing.
    stored: Option<Head>,
    live: bool,
    /// The expiry of a live row, `default_ttl` included.
    expires_at_ms: Option<u64>,
}

/// A stored row with the value of a string.
#[derive(Debug)]
pub(crate) struct Row(RowMetadata);

impl Row {
    /// Reads the head of a row; refuses keys that no row can have.
    pub(crate) fn load(tx: &Tx<'_>, key: &[u8]) -> Result<Row, EvalError> {
        RowMetadata::read(tx, key, |head_key| tx.get(Family::Head, head_key)).map(Row)
    }

    /// Makes a row of a head that was already read.
    pub(crate) fn of(tx: &Tx<'_>, head_key: KeyBuf, stored: Option<Head>) -> Result<Row, Fault> {
        RowMetadata::of(tx, head_key, stored).map(Row)
    }

    /// The head of a live row.
    pub(crate) fn head(&self) -> Option<&Head> {
        self.0.head()
    }

    /// The string that a live row holds; refuses other kinds.
    pub(crate) fn string(&self) -> Result<Option<&Bytes>, Refusal> {
        match self.head().map(|head| &head.body) {
            None => Ok(None),
            Some(Body::String(value)) => Ok(Some(value)),
            Some(_) => Err(Refusal::WrongType),
        }
    }
}

impl Deref for Row {
    type Target = RowMetadata;

    fn deref(&self) -> &RowMetadata {
        &self.0
    }
}

impl From<Row> for RowMetadata {
    fn from(row: Row) -> RowMetadata {
        row.0
    }
}

impl RowMetadata {
    /// Reads the head of a row without a string's value; refuses keys that no row can
    /// have.
    pub(crate) fn load(tx: &Tx<'_>, key: &[u8]) -> Result<RowMetadata, EvalError> {
        RowMetadata::read(tx, key, |head_key| tx.metadata(Family::Head, head_key))
    }

    fn read(
        tx: &Tx<'_>,
        key: &[u8],
        head: impl Fn(&[u8]) -> Result<Option<Bytes>, Fault>,
    ) -> Result<RowMetadata, EvalError> {
        if key.len() > key::HASHKEY_BYTES_MAX {
            return Err(Refusal::KeyTooLong.into());
        }
        let head_key = key::head(key);
        let stored = head(&head_key)?.map(|bytes| Head::decode(&bytes)).transpose()?;
        Ok(RowMetadata::of(tx, head_key, stored)?)
    }

    fn of(tx: &Tx<'_>, head_key: KeyBuf, stored: Option<Head>) -> Result<RowMetadata, Fault> {
        let expires_at_ms = stored.as_ref().and_then(|head| tx.rules.expires_at_ms(&head.header));
        let live = match &stored {
            None => false,
            Some(_) if tx.is_expired(expires_at_ms) => false,
            Some(head) => match head.body.collection() {
                Some(CollectionSummary { generation, count, expiries: Some(expiries) }) => {
                    let hashkey = key::head_hashkey(&head_key).unwrap_or_default();
                    has_live_member(tx, count, expiries, || {
                        key::cells(hashkey, generation, KeySpace::Expiries)
                    })?
                }
                Some(CollectionSummary { expiries: None, .. }) | None => true,
            },
        };
        Ok(RowMetadata {
            head_key,
            stored,
            live,
            expires_at_ms: if live { expires_at_ms } else { None },
        })
    }

    pub(crate) fn hashkey(&self) -> &[u8] {
        key::head_hashkey(&self.head_key).expect("a head key was built from a hashkey")
    }

    pub(crate) fn head_key(&self) -> &[u8] {
        &self.head_key
    }

    /// The head as stored, whether the row lives or not; a string's value may be missing.
    pub(crate) fn stored(&self) -> Option<&Head> {
        self.stored.as_ref()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// The head of a live row.
    fn head(&self) -> Option<&Head> {
        self.stored.as_ref().filter(|_| self.live)
    }

    /// The expiry of a live row.
    pub(crate) fn expires_at_ms(&self) -> Option<u64> {
        self.expires_at_ms
    }

    /// The head of the collection that a live row holds; refuses other kinds.
    pub(crate) fn collection<K: Collection>(&self) -> Result<Option<&CollectionHead<K>>, Refusal> {
        let Some(head) = self.head() else { return Ok(None) };
        K::head_in(&head.body).map(Some).ok_or(Refusal::WrongType)
    }

    /// The kind of a live row.
    pub(crate) fn kind(&self) -> Option<RowKind> {
        self.head().map(Head::kind)
    }

    /// Replaces the row, whatever its kind; the members of a replaced collection die with
    /// its generation. An expiry in the past deletes the row.
    pub(crate) fn write(
        &self,
        tx: &mut Tx<'_>,
        expires_at_ms: Option<u64>,
        body: Body,
    ) -> Result<(), Fault> {
        if tx.is_expired(expires_at_ms) {
            return self.remove(tx);
        }
        if self.stored.is_none() {
            count(tx, key::ROWS, 1)?;
        }
        let head = Head { header: tx.header(expires_at_ms), body };
        self.index(tx, self.stored.as_ref(), Some(&head))?;
        tx.put(Family::Head, Bytes::copy_from_slice(&self.head_key), head.encode());
        Ok(())
    }

    /// Deletes the row, stored or not.
    pub(crate) fn remove(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        if self.stored.is_none() {
            return Ok(());
        }
        count(tx, key::ROWS, -1)?;
        self.index(tx, self.stored.as_ref(), None)?;
        tx.delete(Family::Head, Bytes::copy_from_slice(&self.head_key));
        Ok(())
    }

    /// Replaces the old head's entries in the time index by those of the new head, and
    /// counts the rows that expire.
    fn index(&self, tx: &mut Tx<'_>, old: Option<&Head>, new: Option<&Head>) -> Result<(), Fault> {
        for due in [ExpiryTarget::Row, ExpiryTarget::Field] {
            let (old, new) =
                (old.and_then(|head| due_at(head, due)), new.and_then(|head| due_at(head, due)));
            if old == new {
                continue;
            }
            if due == ExpiryTarget::Row && old.is_some() != new.is_some() {
                count(tx, key::EXPIRING, if new.is_some() { 1 } else { -1 })?;
            }
            if let Some(at) = old {
                tx.delete(Family::State, key::time_index(at, due, &self.head_key));
            }
            if let Some(at) = new {
                tx.put(Family::State, key::time_index(at, due, &self.head_key), Bytes::new());
            }
        }
        Ok(())
    }
}

/// Adds to a counter of rows.
fn count(tx: &mut Tx<'_>, counter: &'static [u8], by: i64) -> Result<(), Fault> {
    let n = tx.counter(counter)?.checked_add_signed(by);
    let n = n.ok_or_else(|| {
        Fault::damaged(format!("the counter {} would leave its range", counter.escape_ascii()))
    })?;
    tx.set_counter(counter, n);
    Ok(())
}

/// The time of a head's entry in the time index.
pub(crate) fn due_at(head: &Head, due: ExpiryTarget) -> Option<u64> {
    match due {
        ExpiryTarget::Row => head.header.expires_at_ms,
        ExpiryTarget::Field => head.body.collection()?.expiries?.due_ms(),
    }
}

/// True if any of a collection's `count` members is live. It costs one seek at most,
/// however many members have expired. `space` is the key prefix of their expiries.
fn has_live_member(
    tx: &Tx<'_>,
    count: u64,
    expiries: &Expiries,
    space: impl FnOnce() -> KeyBuf,
) -> Result<bool, Fault> {
    if count > expiries.expiring || expiries.floor.at_ms > tx.stamp.now_ms {
        return Ok(true);
    }
    // Backwards, because removed and rescheduled expiries mostly leave their tombstones
    // at the front.
    let space = space();
    let mut last_ms = None;
    tx.range(Family::Cell, &space, &key::after_prefix(&space), true, &mut |key, _| {
        last_ms = key[space.len()..].first_chunk().map(|at| u64::from_be_bytes(*at));
        ControlFlow::Break(())
    })?;
    Ok(last_ms.is_some() && !tx.is_expired(last_ms))
}

/// The number of stored members of a collection that have expired, counted up to `max`.
/// `space` is the key prefix of their expiries. It reads nothing while the floor lies in
/// the future, and otherwise walks one step per expired member.
pub(crate) fn expired_members(
    tx: &Tx<'_>,
    space: &[u8],
    expiries: &Expiries,
    max: u64,
) -> Result<u64, Fault> {
    let now_ms = tx.stamp.now_ms;
    if expiries.due_ms().is_none_or(|due_ms| due_ms > now_ms) || max == 0 {
        return Ok(0);
    }
    let mut found = 0;
    tx.range(
        Family::Cell,
        &expiry_key(space, &expiries.floor),
        &expiry_key(space, &MemberExpiry::at(now_ms.saturating_add(1))),
        false,
        &mut |key, _| {
            tx.is_expired(key[space.len()..].first_chunk().map(|at| u64::from_be_bytes(*at)));
            found += 1;
            if found < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        },
    )?;
    Ok(found)
}

/// Walks the expiries of a collection's members from the floor on by time, past or not,
/// until `each` breaks. `space` is their key prefix.
pub(crate) fn walk_expiries(
    tx: &Tx<'_>,
    space: &[u8],
    floor: &MemberExpiry,
    each: &mut dyn FnMut(MemberExpiry) -> ControlFlow<()>,
) -> Result<(), Fault> {
    tx.range(
        Family::Cell,
        &expiry_key(space, floor),
        &key::after_prefix(space),
        false,
        &mut |key, _| match key[space.len()..].split_first_chunk() {
            Some((at, name)) => each(MemberExpiry::of(u64::from_be_bytes(*at), name)),
            None => ControlFlow::Continue(()),
        },
    )
}

/// The key of an expiry in a space of expiries.
fn expiry_key(space: &[u8], expiry: &MemberExpiry) -> KeyBuf {
    let mut out = KeyBuf::from_slice(space);
    out.extend_from_slice(&expiry.at_ms.to_be_bytes());
    out.extend_from_slice(&expiry.name);
    out
}
