//! The members of one row: reads, and writes that keep the members, their count and their
//! expiries consistent.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::edits::Family;
use crate::head::{Row, expired_members, expiry_key};
use crate::key::{self, KeyBuf};
use crate::op::Refusal;
use crate::value::{Body, Cell, Expiries, HashHead, Header, MemberExpiry};
use crate::view::{Fault, Tx};

/// A stored member's header and value; `None` if it has expired.
pub(crate) type StoredMember<'a> = Option<(Header, &'a [u8])>;

/// The members of a live hash, for reading.
#[derive(Debug)]
pub(crate) struct Members {
    hash: HashHead,
    /// The prefix of all members' keys; it ends with the space.
    prefix: KeyBuf,
}

impl Members {
    /// `None` when there is no such row; refuses other kinds.
    pub(crate) fn of(row: &Row) -> Result<Option<Members>, Refusal> {
        Ok(row.hash()?.map(|hash| Members::new(row, hash)))
    }

    fn new(row: &Row, hash: HashHead) -> Members {
        Members { prefix: key::cells(row.hashkey(), hash.generation, key::MEMBERS), hash }
    }

    /// The generation of the row that they belong to.
    pub(crate) fn generation(&self) -> u64 {
        self.hash.generation
    }

    /// The floor of the members' expiries.
    pub(crate) fn floor(&self) -> &MemberExpiry {
        &self.hash.expiries.floor
    }

    /// The prefix of all members' keys.
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The number of stored members, expired ones that are not yet removed included.
    pub(crate) fn count(&self) -> u64 {
        self.hash.count
    }

    /// The number of live members.
    pub(crate) fn live(&self, tx: &Tx<'_>) -> Result<u64, Fault> {
        Ok(self.hash.count - self.expired(tx, self.hash.count)?)
    }

    /// The number of members that have expired and are not yet removed, counted up to
    /// `max`.
    pub(crate) fn expired(&self, tx: &Tx<'_>, max: u64) -> Result<u64, Fault> {
        expired_members(tx, &self.space(), &self.hash.expiries, max)
    }

    /// Deletes a member's cell; its expiry has already been removed.
    fn delete_cell(&mut self, tx: &mut Tx<'_>, name: &[u8]) -> Result<(), Fault> {
        tx.delete(Family::Cell, Bytes::copy_from_slice(&self.key(name)));
        self.hash.count = self
            .hash
            .count
            .checked_sub(1)
            .ok_or_else(|| Fault("a hash has more members than its count".into()))?;
        Ok(())
    }

    fn key(&self, name: &[u8]) -> KeyBuf {
        let mut out = self.prefix.clone();
        out.extend_from_slice(name);
        out
    }

    /// The prefix of the keys of all members' expiries.
    fn space(&self) -> KeyBuf {
        let mut out = self.prefix.clone();
        *out.last_mut().expect("a prefix ends with the space") = key::EXPIRIES;
        out
    }

    fn expiry_key(&self, at: u64, name: &[u8]) -> Bytes {
        let mut out = self.space();
        out.extend_from_slice(&at.to_be_bytes());
        out.extend_from_slice(name);
        Bytes::copy_from_slice(&out)
    }

    /// The header of a member as stored, expired or not.
    fn header(&self, tx: &Tx<'_>, name: &[u8]) -> Result<Option<Header>, Fault> {
        tx.metadata(Family::Cell, &self.key(name))?
            .map(|bytes| Ok(Cell::decode_slice(&bytes)?.0))
            .transpose()
    }

    /// A live member.
    pub(crate) fn get(&self, tx: &Tx<'_>, name: &[u8]) -> Result<Option<Cell>, Fault> {
        let stored =
            tx.get(Family::Cell, &self.key(name))?.map(|bytes| Cell::decode(&bytes)).transpose()?;
        Ok(stored.filter(|cell| !tx.is_expired(cell.header.expires_at_ms)))
    }

    /// Walks live members by name within bounds (`from` in, `to` out), until `each`
    /// breaks.
    pub(crate) fn walk(
        &self,
        tx: &Tx<'_>,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        reverse: bool,
        each: &mut dyn FnMut(&[u8], Header, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.walk_stored(tx, from, to, reverse, &mut |name, member| match member {
            Some((header, value)) => each(name, header, value),
            None => ControlFlow::Continue(()),
        })
    }

    /// As [`Members::walk`], and includes members that have expired and are not yet
    /// removed, without their values: bounded walks count them.
    pub(crate) fn walk_stored(
        &self,
        tx: &Tx<'_>,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        reverse: bool,
        each: &mut dyn FnMut(&[u8], StoredMember<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let from = self.key(from.unwrap_or_default());
        let to = to.map_or_else(|| key::after_prefix(&self.prefix), |to| self.key(to));
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

    /// Walks the expiries from the floor on by time, past or not, until `each` breaks.
    pub(crate) fn walk_expiries(
        &self,
        tx: &Tx<'_>,
        each: &mut dyn FnMut(MemberExpiry) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let space = self.space();
        tx.range(
            Family::Cell,
            &expiry_key(&space, &self.hash.expiries.floor),
            &key::after_prefix(&space),
            false,
            &mut |key, _| match key[space.len()..].split_first_chunk() {
                Some((at, name)) => each(MemberExpiry::of(u64::from_be_bytes(*at), name)),
                None => ControlFlow::Continue(()),
            },
        )
    }
}

/// A hash being written. Nothing is edited before the first [`put`](Writer::put) or
/// [`remove`](Writer::remove), so an op may still refuse after opening it. Every writer
/// that has edited ends with [`save`](Writer::save).
#[derive(Debug)]
pub(crate) struct Writer {
    row: Row,
    /// `None` until the first put of a row that is new or replaces a dead one.
    members: Option<Members>,
    fresh: bool,
}

impl Writer {
    /// Opens a row for writing; refuses other kinds. A missing row begins without
    /// members.
    pub(crate) fn open(row: Row) -> Result<Writer, Refusal> {
        let members = Members::of(&row)?;
        Ok(Writer { fresh: members.is_none(), members, row })
    }

    /// A hash that replaces whatever the row was.
    pub(crate) fn replace(row: Row) -> Writer {
        Writer { row, members: None, fresh: true }
    }

    /// True if there is a live row to write to.
    pub(crate) fn exists(&self) -> bool {
        self.members.is_some()
    }

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
        if self.members.is_none() {
            let hash = HashHead {
                generation: tx.next_generation()?,
                count: 0,
                expiries: Expiries::default(),
            };
            self.members = Some(Members::new(&self.row, hash));
        }
        let members = self.members.as_mut().expect("made above");
        // A new generation has only the cells that this writer put: the first put need
        // not read the view below.
        let old =
            if self.fresh && members.hash.count == 0 { None } else { members.header(tx, name)? };
        let old_expiry = old.and_then(|header| header.expires_at_ms);
        if old_expiry != expires_at_ms {
            if let Some(at) = old_expiry {
                tx.delete(Family::Cell, members.expiry_key(at, name));
                members.hash.expiries.remove()?;
            }
            if let Some(at) = expires_at_ms {
                tx.put(Family::Cell, members.expiry_key(at, name), Bytes::new());
                members.hash.expiries.add(at);
            }
        }
        members.hash.count += u64::from(old.is_none());
        let cell = Cell { header: tx.header(expires_at_ms), value };
        tx.put(Family::Cell, Bytes::copy_from_slice(&members.key(name)), cell.encode());
        Ok(old.is_none_or(|header| tx.is_expired(header.expires_at_ms)))
    }

    /// Deletes a member, expired or not; returns true if it was live.
    pub(crate) fn remove(&mut self, tx: &mut Tx<'_>, name: &[u8]) -> Result<bool, Fault> {
        let Some(members) = &mut self.members else { return Ok(false) };
        let Some(old) = members.header(tx, name)? else { return Ok(false) };
        if let Some(at) = old.expires_at_ms {
            tx.delete(Family::Cell, members.expiry_key(at, name));
            members.hash.expiries.remove()?;
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
        members.hash.expiries.remove()?;
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
        if let Some(members) =
            self.members.as_mut().filter(|members| members.hash.expiries.floor == *from)
        {
            members.hash.expiries.raise(to, tx.stamp.now_ms);
        }
    }

    /// The earliest time at which a member may expire, ms.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        self.members.as_ref().and_then(|members| members.hash.expiries.due_ms())
    }

    /// Writes the head, if anything in it changed. A hash without members is no row and
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
        let Some(members) = &self.members else { return Ok(()) };
        if members.hash.count == 0 {
            return self.row.remove(tx);
        }
        let body = Body::Hash(members.hash.clone());
        let unchanged = self.row.head().is_some_and(|head| head.body == body)
            && self.row.expires_at_ms() == expires_at_ms;
        if unchanged { Ok(()) } else { self.row.write(tx, expires_at_ms, body) }
    }
}
