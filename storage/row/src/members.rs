//! The members of one row, and keeping them, their count and their expiries in step.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::edits::Family;
use crate::head::{Row, expired_members};
use crate::key::{self, KeyBuf};
use crate::op::Refusal;
use crate::value::{Body, Cell, HashHead, Header};
use crate::view::{Fault, Tx};

/// The members of a live hash, for reading.
#[derive(Debug)]
pub(crate) struct Members {
    hash: HashHead,
    /// What the keys of all members begin with; it ends with the space.
    prefix: KeyBuf,
}

impl Members {
    /// `None` when there is no such row; refuses other kinds.
    pub(crate) fn of(row: &Row) -> Result<Option<Members>, Refusal> {
        Ok(row.hash()?.map(|hash| Members::new(row, hash)))
    }

    fn new(row: &Row, hash: HashHead) -> Members {
        Members { hash, prefix: key::cells(row.hashkey(), hash.generation, key::MEMBERS) }
    }

    /// The head's figures.
    pub(crate) fn hash(&self) -> HashHead {
        self.hash
    }

    /// How many live.
    pub(crate) fn live(&self, tx: &Tx<'_>) -> Result<u64, Fault> {
        Ok(self.hash.count - expired_members(tx, &self.expiries(), &self.hash, self.hash.count)?)
    }

    fn key(&self, name: &[u8]) -> KeyBuf {
        let mut out = self.prefix.clone();
        out.extend_from_slice(name);
        out
    }

    /// What the keys of all expiries of members begin with.
    fn expiries(&self) -> KeyBuf {
        let mut out = self.prefix.clone();
        *out.last_mut().expect("a prefix ends with the space") = key::EXPIRIES;
        out
    }

    fn expiry_key(&self, at: u64, name: &[u8]) -> Bytes {
        let mut out = self.expiries();
        out.extend_from_slice(&at.to_be_bytes());
        out.extend_from_slice(name);
        Bytes::copy_from_slice(&out)
    }

    /// The header of a member as stored, expired or not.
    fn header(&self, tx: &Tx<'_>, name: &[u8]) -> Result<Option<Header>, Fault> {
        tx.gist(Family::Cell, &self.key(name))?.map(|bytes| Ok(Cell::decode_slice(&bytes)?.0)).transpose()
    }

    /// A live member.
    pub(crate) fn get(&self, tx: &Tx<'_>, name: &[u8]) -> Result<Option<Cell>, Fault> {
        let stored = tx.get(Family::Cell, &self.key(name))?.map(|bytes| Cell::decode(&bytes)).transpose()?;
        Ok(stored.filter(|cell| !tx.past(cell.header.expires_at_ms)))
    }

    /// Walks live members by name within bounds (`from` in, `to` out), until `each` breaks.
    pub(crate) fn walk(
        &self,
        tx: &Tx<'_>,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        reverse: bool,
        each: &mut dyn FnMut(&[u8], Header, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let from = self.key(from.unwrap_or_default());
        let to = to.map_or_else(|| key::after_prefix(&self.prefix), |to| self.key(to));
        if from >= to {
            return Ok(());
        }
        let mut fault = None;
        tx.range(Family::Cell, &from, &to, reverse, &mut |key, value| match Cell::decode_slice(value) {
            Ok((header, _)) if tx.past(header.expires_at_ms) => ControlFlow::Continue(()),
            Ok((header, value)) => each(&key[self.prefix.len()..], header, value),
            Err(found) => {
                fault = Some(found);
                ControlFlow::Break(())
            }
        })?;
        fault.map_or(Ok(()), Err)
    }

    /// The members that expired by now, at most `max`.
    pub(crate) fn expired(&self, tx: &Tx<'_>, max: u64) -> Result<Vec<Bytes>, Fault> {
        let from = self.expiries();
        let mut to = from.clone();
        to.extend_from_slice(&tx.stamp.now_ms.saturating_add(1).to_be_bytes());
        let mut names = Vec::new();
        tx.range(Family::Cell, &from, &to, false, &mut |key, _| {
            names.extend(key.get(from.len() + 8..).map(Bytes::copy_from_slice));
            if (names.len() as u64) < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(names)
    }

    /// The earliest expiry of a member, 0 when none expires.
    fn first_expiry(&self, tx: &Tx<'_>) -> Result<u64, Fault> {
        let from = self.expiries();
        let mut first = 0;
        tx.range(Family::Cell, &from, &key::after_prefix(&from), false, &mut |key, _| {
            first = key[from.len()..].first_chunk().map_or(0, |at| u64::from_be_bytes(*at));
            ControlFlow::Break(())
        })?;
        Ok(first)
    }
}

/// A hash being written. Nothing is edited before the first [`put`](Writer::put) or [`remove`](Writer::remove), so an op may still
/// refuse after opening it; every writer that wrote ends with [`save`](Writer::save).
#[derive(Debug)]
pub(crate) struct Writer {
    row: Row,
    /// `None` until the first put of a row that is new, or replaces what is dead.
    members: Option<Members>,
    fresh: bool,
    /// The member that would have expired first is gone.
    first_gone: bool,
}

impl Writer {
    /// Refuses other kinds. A row that is not there begins without members.
    pub(crate) fn open(row: Row) -> Result<Writer, Refusal> {
        let members = Members::of(&row)?;
        Ok(Writer { fresh: members.is_none(), members, row, first_gone: false })
    }

    /// A hash that replaces whatever the row was.
    pub(crate) fn replace(row: Row) -> Writer {
        Writer { row, members: None, fresh: true, first_gone: false }
    }

    /// Whether there is a live row to write to.
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

    /// Sets a member; whether it is new.
    pub(crate) fn put(&mut self, tx: &mut Tx<'_>, name: &[u8], value: Bytes, expires_at_ms: Option<u64>) -> Result<bool, Fault> {
        if self.members.is_none() {
            let hash = HashHead { generation: tx.next_generation()?, count: 0, first_field_expiry_ms: 0 };
            self.members = Some(Members::new(&self.row, hash));
        }
        let members = self.members.as_mut().expect("made above");
        // A new generation has no cells but those this writer put: nothing is read below for the first.
        let old = if self.fresh && members.hash.count == 0 { None } else { members.header(tx, name)? };
        let old_expiry = old.and_then(|header| header.expires_at_ms);
        if old_expiry != expires_at_ms {
            if let Some(at) = old_expiry {
                tx.delete(Family::Cell, members.expiry_key(at, name));
                self.first_gone |= at == members.hash.first_field_expiry_ms;
            }
            if let Some(at) = expires_at_ms {
                tx.put(Family::Cell, members.expiry_key(at, name), Bytes::new());
                let first = &mut members.hash.first_field_expiry_ms;
                *first = if *first == 0 { at } else { at.min(*first) };
            }
        }
        members.hash.count += u64::from(old.is_none());
        let cell = Cell { header: tx.header(expires_at_ms), value };
        tx.put(Family::Cell, Bytes::copy_from_slice(&members.key(name)), cell.encode());
        Ok(old.is_none_or(|header| tx.past(header.expires_at_ms)))
    }

    /// Deletes a member, expired or not; whether it was there and alive.
    pub(crate) fn remove(&mut self, tx: &mut Tx<'_>, name: &[u8]) -> Result<bool, Fault> {
        let Some(members) = &mut self.members else { return Ok(false) };
        let Some(old) = members.header(tx, name)? else { return Ok(false) };
        if let Some(at) = old.expires_at_ms {
            tx.delete(Family::Cell, members.expiry_key(at, name));
            self.first_gone |= at == members.hash.first_field_expiry_ms;
        }
        tx.delete(Family::Cell, Bytes::copy_from_slice(&members.key(name)));
        members.hash.count = members.hash.count.checked_sub(1).ok_or_else(|| Fault("a hash has more members than its count".into()))?;
        Ok(!tx.past(old.expires_at_ms))
    }

    /// Writes the head, if anything in it changed; a hash without members is no row. A new row gets the table's expiry.
    pub(crate) fn save(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let expires_at_ms = if self.fresh { tx.default_expiry() } else { self.row.expires_at_ms() };
        self.save_until(tx, expires_at_ms)
    }

    /// As [`Writer::save`], with the row's expiry.
    pub(crate) fn save_until(mut self, tx: &mut Tx<'_>, expires_at_ms: Option<u64>) -> Result<(), Fault> {
        let Some(members) = &mut self.members else { return Ok(()) };
        if members.hash.count == 0 {
            return self.row.remove(tx);
        }
        if self.first_gone {
            members.hash.first_field_expiry_ms = members.first_expiry(tx)?;
        }
        let body = Body::Hash(members.hash);
        let unchanged = self.row.head().is_some_and(|head| head.body == body) && self.row.expires_at_ms() == expires_at_ms;
        if unchanged { Ok(()) } else { self.row.write(tx, expires_at_ms, body) }
    }
}
