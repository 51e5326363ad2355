//! The expiries of a collection's members, summarised in its head.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::view::Fault;

/// The expiries of a collection's members, summarised in its head. Every kind with
/// members that expire stores this after its count.
///
/// It answers in one seek the question that every op on a row asks, whether the row is
/// live: a member without an expiry is live, and otherwise one that expires in the
/// future. Removed members leave tombstones below the floor, so walks over expired
/// members begin at the floor.
///
/// # Invariants
/// Held by `tests/model/` after any sequence of ops.
/// - `expiring` is exact; expired members that are not yet removed are counted.
/// - No expiry of a member lies below the floor. Setting an expiry lowers the floor to it
///   if need be; only the expiry cycle raises it.
/// - No expiry that was set since the floor got its value is before `soonest_ms`.
///   Therefore a search that has seen the members of one state with this floor also
///   bounds the expiries of every later state with the same floor, without reading it:
///   this is how the expiry cycle finds the next floor outside the partition's writer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expiries {
    /// The number of stored members that have an expiry.
    pub expiring: u64,
    /// The floor; its time is that of the row's entry in the time index,
    /// [`ExpiryTarget::Field`](crate::key::ExpiryTarget::Field).
    pub floor: MemberExpiry,
    /// The earliest expiry that was set since the floor got its value, ms; 0 = none.
    pub soonest_ms: u64,
}

/// A position among the expiries of a collection's members, which are ordered by time,
/// then by name.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
pub struct MemberExpiry {
    /// Ms since the epoch.
    pub at_ms: u64,
    /// The first bytes of a member's name, or all of it.
    pub name: Bytes,
}

/// The longest prefix of a name that a floor keeps, bytes. Names that share a longer
/// prefix are walked past one by one.
const FLOOR_NAME_MAX: usize = 256;

impl MemberExpiry {
    /// The first position at a time.
    pub fn at(at_ms: u64) -> MemberExpiry {
        MemberExpiry { at_ms, name: Bytes::new() }
    }

    /// The position of the expiry of the member `name`.
    pub fn of(at_ms: u64, name: &[u8]) -> MemberExpiry {
        MemberExpiry { at_ms, name: Bytes::copy_from_slice(name) }
    }
}

impl Expiries {
    /// The earliest time at which a member may have expired, ms; `None` when none
    /// expires.
    pub fn due_ms(&self) -> Option<u64> {
        (self.expiring > 0).then_some(self.floor.at_ms)
    }

    /// Counts a member that gets an expiry and had none.
    pub(crate) fn add(&mut self, at_ms: u64) {
        self.expiring += 1;
        if self.expiring == 1 || at_ms < self.floor.at_ms {
            (self.floor, self.soonest_ms) = (MemberExpiry::at(at_ms), 0);
        } else {
            self.soonest_ms = if self.soonest_ms == 0 { at_ms } else { at_ms.min(self.soonest_ms) };
        }
    }

    /// Counts a member that loses its expiry.
    pub(crate) fn remove(&mut self) -> Result<(), Fault> {
        self.expiring = self
            .expiring
            .checked_sub(1)
            .ok_or_else(|| Fault::damaged("more members of a row expire than its head counts"))?;
        if self.expiring == 0 {
            *self = Expiries::default();
        }
        Ok(())
    }

    /// Raises the floor: in a state with the present floor, `next` was the first expiry
    /// of a member that is still stored.
    pub(crate) fn raise(&mut self, next: Option<&MemberExpiry>, now_ms: u64) {
        // A floor in the future has no name: earlier names may still be added at that
        // time.
        let name = |next: &MemberExpiry| {
            next.name
                .slice(..if next.at_ms <= now_ms { next.name.len().min(FLOOR_NAME_MAX) } else { 0 })
        };
        let next = next.map(|next| MemberExpiry { at_ms: next.at_ms, name: name(next) });
        let soonest = (self.soonest_ms > 0).then(|| MemberExpiry::at(self.soonest_ms));
        match next.into_iter().chain(soonest).min() {
            Some(floor) if self.expiring > 0 => (self.floor, self.soonest_ms) = (floor, 0),
            // No expiring member is left, whatever the count says.
            _ => *self = Expiries::default(),
        }
    }

    /// The size of its encoding, bytes.
    pub(crate) fn encoded_len(&self) -> usize {
        8 + if self.expiring > 0 { 16 + self.floor.name.len() } else { 0 }
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.expiring);
        if self.expiring > 0 {
            out.put_u64(self.floor.at_ms);
            out.put_u64(self.soonest_ms);
            out.put_slice(&self.floor.name);
        }
    }

    /// Decodes all of `rest`; `keep` makes the floor's name of its part of it.
    pub(crate) fn decode(mut rest: &[u8], keep: impl Fn(&[u8]) -> Bytes) -> Option<Expiries> {
        let expiring = rest.try_get_u64().ok()?;
        if expiring == 0 {
            return rest.is_empty().then(Expiries::default);
        }
        let (at_ms, soonest_ms) = (rest.try_get_u64().ok()?, rest.try_get_u64().ok()?);
        (rest.len() <= FLOOR_NAME_MAX).then(|| Expiries {
            expiring,
            floor: MemberExpiry { at_ms, name: keep(rest) },
            soonest_ms,
        })
    }
}
