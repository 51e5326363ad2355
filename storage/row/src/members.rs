//! The members of one row: reads, and writes that keep the members, their count and their
//! expiries consistent.
//!
//! All of it is the same for each [`Collection`]: opening a row, its generation, its
//! head, and walks of its space. What is for [`NamedMembers`] needs one cell a member.
//! Names and sortkeys are told apart: a kind may put more than the name into the sortkey.

mod buffer;
mod random;
mod scan;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::edits::Family;
use crate::eval::EvalError;
use crate::form::{CheckSize, Collection, CollectionHead, NamedMembers};
use crate::head::{Row, expired_members};
use crate::key::{self, KeyBuf, KeySpace};
use crate::op::Refusal;
use crate::value::{Cell, Expiries, Header, MemberExpiry};
use crate::view::{Fault, Tx};

pub(crate) use buffer::CellBuffer;
pub(crate) use random::random;
pub(crate) use scan::scan;

/// The smaller of two limits of which 0 means none.
pub(crate) fn smaller_limit(a: usize, b: usize) -> usize {
    if a == 0 || b == 0 { a.max(b) } else { a.min(b) }
}

/// A stored member's header and value; `None` if it has expired.
pub(crate) type StoredMember<'a> = Option<(Header, &'a [u8])>;

/// The members of a live row, for reading.
#[derive(Debug)]
pub(crate) struct Members<K> {
    head: CollectionHead<K>,
    /// The prefix of all members' keys; it ends with the space.
    prefix: KeyBuf,
}

impl<K: Collection> Members<K> {
    /// `None` when there is no such row; refuses other kinds.
    pub(crate) fn of(row: &Row) -> Result<Option<Members<K>>, Refusal> {
        Ok(row.collection()?.map(|head| Members::new(row, head.clone())))
    }

    pub(crate) fn new(row: &Row, head: CollectionHead<K>) -> Members<K> {
        Members { prefix: key::cells(row.hashkey(), head.generation, K::SPACE), head }
    }

    /// The head of the row.
    pub(crate) fn head(&self) -> &CollectionHead<K> {
        &self.head
    }

    /// The prefix of all members' keys.
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The number of stored members, expired ones that are not yet removed included.
    pub(crate) fn count(&self) -> u64 {
        self.head.count
    }

    /// The number of live members.
    pub(crate) fn live(&self, tx: &Tx<'_>) -> Result<u64, Fault> {
        Ok(self.head.count - self.expired(tx, self.head.count)?)
    }

    /// The number of members that have expired and are not yet removed, counted up to
    /// `max`.
    pub(crate) fn expired(&self, tx: &Tx<'_>, max: u64) -> Result<u64, Fault> {
        match self.head.own.expiries() {
            Some(expiries) => expired_members(tx, &self.expiry_space(), expiries, max),
            None => Ok(0),
        }
    }

    fn key_at(&self, sortkey: &[u8]) -> KeyBuf {
        let mut out = self.prefix.clone();
        out.extend_from_slice(sortkey);
        out
    }

    /// The prefix of the keys of all members' expiries.
    fn expiry_space(&self) -> KeyBuf {
        let mut out = self.prefix.clone();
        *out.last_mut().expect("a prefix ends with the space") = KeySpace::Expiries as u8;
        out
    }

    /// Walks the sortkeys of stored members within bounds (`from` in, `to` out), until
    /// `each` breaks. It includes members that have expired and are not yet removed,
    /// without their values: bounded walks count them.
    pub(crate) fn walk_stored(
        &self,
        tx: &Tx<'_>,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        reverse: bool,
        each: &mut dyn FnMut(&[u8], StoredMember<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let from = self.key_at(from.unwrap_or_default());
        let to = to.map_or_else(|| key::after_prefix(&self.prefix), |to| self.key_at(to));
        if from >= to {
            return Ok(());
        }
        let mut fault = None;
        tx.range(Family::Cell, &from, &to, reverse, &mut |key, value| match Cell::decode_slice(
            value,
        ) {
            Ok((header, _)) if tx.is_expired(header.expires_at_ms) => {
                each(&key[self.prefix.len()..], None)
            }
            Ok((header, value)) => each(&key[self.prefix.len()..], Some((header, value))),
            Err(found) => {
                fault = Some(found);
                ControlFlow::Break(())
            }
        })?;
        fault.map_or(Ok(()), Err)
    }
}

impl<K: NamedMembers> Members<K> {
    fn key(&self, name: &[u8]) -> KeyBuf {
        let mut out = self.prefix.clone();
        K::push_sortkey(&mut out, self.head.generation, name);
        out
    }

    /// A live member.
    pub(crate) fn get(&self, tx: &Tx<'_>, name: &[u8]) -> Result<Option<Cell>, Fault> {
        let stored =
            tx.get(Family::Cell, &self.key(name))?.map(|bytes| Cell::decode(&bytes)).transpose()?;
        Ok(stored.filter(|cell| !tx.is_expired(cell.header.expires_at_ms)))
    }

    /// The header of a member as stored, expired or not.
    fn header(&self, tx: &Tx<'_>, name: &[u8]) -> Result<Option<Header>, Fault> {
        tx.metadata(Family::Cell, &self.key(name))?
            .map(|bytes| Ok(Cell::decode_slice(&bytes)?.0))
            .transpose()
    }

    /// Walks the names of all live members, their headers and values in the order of
    /// their sortkeys, until `each` breaks.
    pub(crate) fn walk(
        &self,
        tx: &Tx<'_>,
        each: &mut dyn FnMut(&[u8], Header, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.walk_stored(tx, None, None, false, &mut |sortkey, member| match member {
            Some((header, value)) => each(K::name_of(sortkey), header, value),
            None => ControlFlow::Continue(()),
        })
    }

    /// Deletes a member's cell; its expiry has already been removed.
    fn delete_cell(&mut self, tx: &mut Tx<'_>, name: &[u8]) -> Result<(), Fault> {
        tx.delete(Family::Cell, Bytes::copy_from_slice(&self.key(name)));
        self.head.count = self
            .head
            .count
            .checked_sub(1)
            .ok_or_else(|| Fault::damaged("a row has more members than its count"))?;
        Ok(())
    }

    fn expiry_key(&self, at: u64, name: &[u8]) -> Bytes {
        let mut out = self.expiry_space();
        out.extend_from_slice(&at.to_be_bytes());
        out.extend_from_slice(name);
        Bytes::copy_from_slice(&out)
    }

    fn expiries_mut(&mut self) -> Result<&mut Expiries, Fault> {
        self.head
            .own
            .expiries_mut()
            .ok_or_else(|| Fault::damaged(format!("a member of a {:?} expires", K::KIND)))
    }

    /// Deletes and uncounts a member's expiry.
    fn remove_expiry(&mut self, tx: &mut Tx<'_>, at: u64, name: &[u8]) -> Result<(), Fault> {
        tx.delete(Family::Cell, self.expiry_key(at, name));
        self.expiries_mut()?.remove()
    }

    /// Collects one item of each live member, in the order of their sortkeys. The bytes
    /// of names and values must pass `check`.
    pub(crate) fn collect<T>(
        &self,
        tx: &Tx<'_>,
        check: CheckSize<'_>,
        item: impl Fn(&[u8], Header, &[u8]) -> T,
    ) -> Result<Vec<T>, EvalError> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        self.walk(tx, &mut |name, header, value| {
            bytes += name.len() + value.len();
            items.push(item(name, header, value));
            if check(bytes).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        check(bytes)?;
        Ok(items)
    }

    /// The approximate size of all members on disk, bytes: that of the first `samples`
    /// (0 = all), scaled to the number of members.
    pub(crate) fn sampled_bytes(&self, tx: &Tx<'_>, samples: u64) -> Result<u64, Fault> {
        let (mut seen, mut bytes) = (0u64, 0u64);
        self.walk_stored(tx, None, None, false, &mut |sortkey, member| {
            let Some((_, value)) = member else { return ControlFlow::Continue(()) };
            seen += 1;
            bytes +=
                (self.prefix.len() + sortkey.len() + Header::BYTES_MAX - 8 + value.len()) as u64;
            if seen == samples { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok((u128::from(bytes) * u128::from(self.head.count) / u128::from(seen.max(1))) as u64)
    }
}

/// A collection being written. Nothing is edited before the first [`put`](Writer::put) or
/// [`remove`](Writer::remove), so an op may still refuse after opening it. Every writer
/// that has edited ends with [`save`](Writer::save).
#[derive(Debug)]
pub(crate) struct Writer<K> {
    row: Row,
    /// `None` until the first put of a row that is new or replaces a dead one.
    members: Option<Members<K>>,
    fresh: bool,
}

impl<K: Collection> Writer<K> {
    /// Opens a row for writing; refuses other kinds. A missing row begins without
    /// members.
    pub(crate) fn open(row: Row) -> Result<Writer<K>, Refusal> {
        let members = Members::of(&row)?;
        Ok(Writer { fresh: members.is_none(), members, row })
    }

    /// A collection that replaces whatever the row was.
    pub(crate) fn replace(row: Row) -> Writer<K> {
        Writer { row, members: None, fresh: true }
    }

    /// True if there is a live row to write to.
    pub(crate) fn exists(&self) -> bool {
        self.members.is_some()
    }

    /// The members; under a new generation if the row is new.
    fn members_mut(&mut self, tx: &mut Tx<'_>) -> Result<&mut Members<K>, Fault> {
        Ok(match &mut self.members {
            Some(members) => members,
            none => {
                let (generation, own) = (tx.next_generation()?, K::default());
                none.insert(Members::new(&self.row, CollectionHead { generation, count: 0, own }))
            }
        })
    }

    /// Writes the head, if anything in it changed. A row without members is none and
    /// is deleted; a new row gets the table's expiry.
    pub(crate) fn save(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let expires_at_ms = if self.fresh { tx.default_expiry() } else { self.row.expires_at_ms() };
        self.save_until(tx, expires_at_ms)
    }

    /// As [`Writer::save`], with the given expiry of the row.
    pub(crate) fn save_until(
        self,
        tx: &mut Tx<'_>,
        expires_at_ms: Option<u64>,
    ) -> Result<(), Fault> {
        let Some(Members { head, .. }) = self.members else { return Ok(()) };
        if head.count == 0 {
            return self.row.remove(tx);
        }
        let is_unchanged = self.row.expires_at_ms() == expires_at_ms
            && self.row.head().and_then(|old| K::head_in(&old.body)) == Some(&head);
        if is_unchanged { Ok(()) } else { self.row.write(tx, expires_at_ms, K::body_of(head)) }
    }
}

impl<K: NamedMembers> Writer<K> {
    /// A live member.
    pub(crate) fn get(&self, tx: &Tx<'_>, name: &[u8]) -> Result<Option<Cell>, Fault> {
        match &self.members {
            Some(members) => members.get(tx, name),
            None => Ok(None),
        }
    }

    /// Sets a member; returns true if it is new.
    pub(crate) fn put(
        &mut self,
        tx: &mut Tx<'_>,
        name: &[u8],
        value: Bytes,
        expires_at_ms: Option<u64>,
    ) -> Result<bool, Fault> {
        let fresh = self.fresh;
        let members = self.members_mut(tx)?;
        // A new generation has only the cells that this writer put: the first put need
        // not read the view below.
        let old = if fresh && members.head.count == 0 { None } else { members.header(tx, name)? };
        let old_expiry = old.and_then(|header| header.expires_at_ms);
        if old_expiry != expires_at_ms {
            if let Some(at) = old_expiry {
                members.remove_expiry(tx, at, name)?;
            }
            if let Some(at) = expires_at_ms {
                tx.put(Family::Cell, members.expiry_key(at, name), Bytes::new());
                members.expiries_mut()?.add(at);
            }
        }
        members.head.count += u64::from(old.is_none());
        let cell = Cell { header: tx.header(expires_at_ms), value };
        tx.put(Family::Cell, Bytes::copy_from_slice(&members.key(name)), cell.encode());
        Ok(old.is_none_or(|header| tx.is_expired(header.expires_at_ms)))
    }

    /// Deletes a member, expired or not; returns true if it was live.
    pub(crate) fn remove(&mut self, tx: &mut Tx<'_>, name: &[u8]) -> Result<bool, Fault> {
        let Some(members) = &mut self.members else { return Ok(false) };
        let Some(old) = members.header(tx, name)? else { return Ok(false) };
        if let Some(at) = old.expires_at_ms {
            members.remove_expiry(tx, at, name)?;
        }
        members.delete_cell(tx, name)?;
        Ok(!tx.is_expired(old.expires_at_ms))
    }

    /// Deletes the member of an expiry, if it is still stored, without reading it;
    /// returns true if it was.
    pub(crate) fn purge(&mut self, tx: &mut Tx<'_>, expiry: &MemberExpiry) -> Result<bool, Fault> {
        let Some(members) = &mut self.members else { return Ok(false) };
        let key = members.expiry_key(expiry.at_ms, &expiry.name);
        if tx.get(Family::Cell, &key)?.is_none() {
            return Ok(false);
        }
        tx.delete(Family::Cell, key);
        members.expiries_mut()?.remove()?;
        members.delete_cell(tx, &expiry.name)?;
        Ok(true)
    }

    /// Raises the floor of the members' expiries, if it is still `from`. `to` is the
    /// first expiry behind the purged ones, in a state in which the floor was `from`.
    pub(crate) fn raise_floor(
        &mut self,
        tx: &Tx<'_>,
        from: &MemberExpiry,
        to: Option<&MemberExpiry>,
    ) {
        let expiries = self.members.as_mut().and_then(|members| members.head.own.expiries_mut());
        if let Some(expiries) = expiries.filter(|expiries| expiries.floor == *from) {
            expiries.raise(to, tx.stamp.now_ms);
        }
    }

    /// The earliest time at which a member may expire, ms.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        self.members.as_ref().and_then(|members| members.head.own.expiries()?.due_ms())
    }
}

/// Replaces a row by a collection of members: name, value, expiry. Those that have
/// expired are left out, and without members there is no row.
pub(crate) fn replace<K: NamedMembers>(
    tx: &mut Tx<'_>,
    row: Row,
    expires_at_ms: Option<u64>,
    members: impl Iterator<Item = (Bytes, Bytes, Option<u64>)>,
) -> Result<(), Fault> {
    let now_ms = tx.stamp.now_ms;
    let mut members = members.filter(|(_, _, at)| at.is_none_or(|at| at > now_ms)).peekable();
    if members.peek().is_none() || tx.is_expired(expires_at_ms) {
        return row.remove(tx);
    }
    let mut writer = Writer::<K>::replace(row);
    for (name, value, at) in members {
        writer.put(tx, &name, value, at)?;
    }
    writer.save_until(tx, expires_at_ms)
}
