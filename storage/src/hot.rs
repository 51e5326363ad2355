//! Heads and cells read or written lately, in memory: a string's GET, and the look that a
//! write takes at the record before, without RocksDB.
//!
//! One cache serves all replicas of a node, within one budget of bytes. A write seldom
//! asks what a record's value was: of large heads and of all cells that are written only
//! the [metadata](row::value::metadata) is kept, so that many more fit. A head or cell that is
//! read by its key is kept whole.
//!
//! # Why no reader sees the past
//! Time is counted in *moments*: each applied batch ends at a new one. A view notes the
//! moment before it looks at the store, so it sees at least every batch that had ended by
//! then. An entry knows the moment since which its value is known to hold.
//! - From before a batch is proposed until it has ended, and every batch proposed behind
//!   it with the same key as well, entries of its keys are shut: nobody uses or fills
//!   them ([`Hot::begin`], [`Hot::end`]). So once the batch is visible in the store, no
//!   old value of its is seen.
//! - A view fills only if no batch has ended in the shard since the moment it noted: what
//!   it read is then the newest.
//! - While everything is being cleared, the replica's part is shut; then it gets a new
//!   number, under which nothing old lies.
//! - What a replica applies without leading passes by unseen. So it gets a new number
//!   whenever it begins to lead ([`Hot::forget`]), and a batch that began before leaves
//!   nothing under it.
//! - A view uses an entry only if it holds since the view's own moment or earlier, so
//!   that one snapshot is one state.

mod ring;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hashbrown::HashTable;
use parking_lot::Mutex;
use row::edits::{Edits, Family};
use row::{key, value};
use smallvec::SmallVec;

use ring::{Kept, Name, Ring};

const SHARDS: usize = 64;
/// So many records are fetched from memory side by side.
const AHEAD: usize = 64;
/// A head that is written is kept whole when it has no more bytes than this: as much as
/// the rest of its entry, about.
const SMALL_BYTES: usize = 128;
/// The owner's number while its replica is being cleared: nothing is used and nothing is
/// filled.
const NOBODY: u64 = 0;

/// A count of applied batches of the node.
pub(crate) type Moment = u64;

/// The records of a node's replicas.
pub(crate) struct Hot {
    shards: Box<[Mutex<Shard>]>,
    moment: AtomicU64,
    owners: AtomicU64,
}

/// One replica's part.
#[derive(Debug)]
pub(crate) struct Owner {
    /// Stays as it is: by it, keys are shut.
    id: u64,
    /// Under which entries lie. A new number forgets all of them.
    number: AtomicU64,
    /// Batches under way that clear everything.
    clearing: AtomicU64,
    /// How often everything was forgotten.
    era: AtomicU64,
}

/// A batch that has begun, of the era in which it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Begun(u64);

struct Shard {
    records: Ring,
    /// Hashes of keys whose batches have begun and not ended, and how many these are.
    pending: HashTable<(u64, usize)>,
    /// When the last batch with a key of this shard ended.
    last_end: Moment,
}

/// What tells an owner's cells from its heads.
const CELLS: u64 = 1 << 63;

/// Under which a family's records lie in the ring: heads under the owner's number, cells
/// under that with [`CELLS`].
fn lane(owner: u64, family: Family) -> u64 {
    if family == Family::Cell { owner | CELLS } else { owner }
}

/// A head key begins with a hash: that is hash enough. All cells of a row begin with the
/// same.
fn place(lane: u64, key: &[u8]) -> u64 {
    let hash = if lane & CELLS == 0 {
        key::head_position(key).unwrap_or_default()
    } else {
        key::hash48(key)
    };
    mix(lane, hash)
}

fn mix(lane: u64, hash: u64) -> u64 {
    (hash ^ lane.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Shard {
    fn shut(&mut self, hash: u64) {
        let entry =
            self.pending.entry(hash, |(pending, _)| *pending == hash, |(pending, _)| *pending);
        entry.or_insert((hash, 0)).into_mut().1 += 1;
    }

    fn open(&mut self, hash: u64) {
        if let Ok(mut entry) = self.pending.find_entry(hash, |(pending, _)| *pending == hash) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
    }

    fn is_shut(&self, hash: u64) -> bool {
        self.pending.find(hash, |(pending, _)| *pending == hash).is_some()
    }
}

impl Hot {
    /// A cache of so many bytes.
    pub(crate) fn new(bytes: usize) -> Hot {
        let shard = || {
            Mutex::new(Shard {
                records: Ring::new(bytes / SHARDS, place),
                pending: HashTable::new(),
                last_end: 0,
            })
        };
        Hot {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            moment: AtomicU64::new(0),
            owners: AtomicU64::new(0),
        }
    }

    /// Bytes of records, of all replicas.
    pub(crate) fn used(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().records.used()).sum()
    }

    /// A part for one replica.
    pub(crate) fn owner(&self) -> Owner {
        let number = self.new_number();
        Owner {
            id: number,
            number: AtomicU64::new(number),
            clearing: AtomicU64::new(0),
            era: AtomicU64::new(0),
        }
    }

    /// Forgets everything of a replica, and what batches that have begun and not ended
    /// will say of it.
    pub(crate) fn forget(&self, owner: &Owner) {
        owner.era.fetch_add(1, Ordering::AcqRel);
        self.shards.iter().for_each(|shard| {
            shard.lock().last_end = self.moment.fetch_add(1, Ordering::AcqRel) + 1
        });
        owner.number.store(self.new_number(), Ordering::Release);
    }

    fn new_number(&self) -> u64 {
        self.owners.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Now. A view asks before it looks at the store.
    pub(crate) fn moment(&self) -> Moment {
        self.moment.load(Ordering::Acquire)
    }

    /// A head or cell as a view of this moment sees it, if it is here whole.
    pub(crate) fn get(
        &self,
        owner: &Owner,
        family: Family,
        key: &[u8],
        at: Moment,
    ) -> Option<Bytes> {
        self.find(owner, family, key, at, |kept| kept.is_whole)
    }

    /// The gist of a head or cell as a view of this moment sees it, or all of it, if that
    /// is here.
    pub(crate) fn metadata(
        &self,
        owner: &Owner,
        family: Family,
        key: &[u8],
        at: Moment,
    ) -> Option<Bytes> {
        self.find(owner, family, key, at, |_| true)
    }

    fn find(
        &self,
        owner: &Owner,
        family: Family,
        key: &[u8],
        at: Moment,
        is_enough: fn(&Kept<'_>) -> bool,
    ) -> Option<Bytes> {
        let number = owner.number();
        if number == NOBODY {
            return None;
        }
        let hash = place(lane(owner.id, family), key);
        let mut shard = self.shard(hash).lock();
        if shard.is_shut(hash) {
            return None;
        }
        let kept = shard.records.get(Name { owner: lane(number, family), key })?;
        (kept.since <= at && is_enough(&kept)).then(|| Bytes::copy_from_slice(kept.value))
    }

    /// Heads at these positions are about to be asked for: their records come from memory
    /// side by side rather than one after the other.
    pub(crate) fn expect(&self, owner: &Owner, positions: impl Iterator<Item = u64>) {
        let number = owner.number();
        let places: SmallVec<[_; AHEAD]> =
            positions.map(|position| (mix(owner.id, position), mix(number, position))).collect();
        self.fetch_ahead(&places);
    }

    /// Records in these shards and buckets are about to be looked at: by the hashes under
    /// which they are shut, and under which they are kept.
    fn fetch_ahead(&self, places: &[(u64, u64)]) {
        for (shard, hash) in places {
            self.shard(*shard).lock().records.expect_bucket(*hash);
        }
        for (shard, hash) in places {
            self.shard(*shard).lock().records.expect_record(*hash);
        }
    }

    /// A head or cell that a view of this moment read from the store.
    pub(crate) fn fill(
        &self,
        owner: &Owner,
        family: Family,
        key: &[u8],
        value: &Bytes,
        at: Moment,
    ) {
        let number = owner.number();
        if number == NOBODY {
            return;
        }
        let hash = place(lane(owner.id, family), key);
        let mut shard = self.shard(hash).lock();
        if shard.last_end <= at && !shard.is_shut(hash) {
            shard.records.put(Name { owner: lane(number, family), key }, value, value.len(), at);
        }
    }

    /// A batch is about to be proposed.
    pub(crate) fn begin(&self, owner: &Owner, edits: &Edits) -> Begun {
        let era = owner.era.load(Ordering::Acquire);
        if edits.clear {
            owner.clearing.fetch_add(1, Ordering::AcqRel);
            owner.number.store(NOBODY, Ordering::Release);
        }
        for (family, key, _) in rows(edits) {
            let hash = place(lane(owner.id, family), key);
            self.shard(hash).lock().shut(hash);
        }
        Begun(era)
    }

    /// The batch that began first has been applied (`applied`), or nobody knows what
    /// became of it.
    pub(crate) fn end(&self, owner: &Owner, edits: &Edits, begun: Begun, applied: bool) {
        let moment = self.moment.fetch_add(1, Ordering::AcqRel) + 1;
        if edits.clear {
            self.shards.iter().for_each(|shard| shard.lock().last_end = moment);
            if owner.clearing.fetch_sub(1, Ordering::AcqRel) == 1 {
                owner.number.store(self.new_number(), Ordering::Release);
            }
        }
        // The number first: a new one comes after its era.
        let number = owner.number();
        let is_kept = number != NOBODY && owner.era.load(Ordering::Acquire) == begun.0;
        let mut rows = rows(edits);
        loop {
            let some: SmallVec<[_; AHEAD]> = rows.by_ref().take(AHEAD).collect();
            self.settle(owner, is_kept.then_some(number), &some, applied, moment);
            if some.len() < AHEAD {
                return;
            }
        }
    }

    /// Opens entries of a batch that has ended, and keeps what it has written under a
    /// number.
    ///
    /// Fetching ahead pays where records are in this cache and not in the processor's:
    /// SET and HSET of 64 bytes at pipeline 16, 50 clients, durability `os`, `memory` at
    /// 4 GiB, seven turns with it and without. CPU of the server, 2 million keys: 0.86
    /// (SET) and 0.83 (HSET: 5.8 us, not 7.3); 1 million: 0.97 and 0.93. With 256 MiB,
    /// where most keys are not in this cache: 0.95 to 1.05.
    fn settle(
        &self,
        owner: &Owner,
        number: Option<u64>,
        rows: &[Changed<'_>],
        applied: bool,
        moment: Moment,
    ) {
        let kept_at = |family, key| number.map_or(0, |number| place(lane(number, family), key));
        let places = rows
            .iter()
            .map(|(family, key, _)| (place(lane(owner.id, *family), key), kept_at(*family, key)));
        let places: SmallVec<[_; AHEAD]> = places.collect();
        if number.is_some() && rows.len() > 1 {
            self.fetch_ahead(&places);
        }
        for ((family, key, value), (hash, _)) in rows.iter().zip(&places) {
            let mut shard = self.shard(*hash).lock();
            shard.last_end = moment;
            shard.open(*hash);
            // A later batch with this key is under way, and may be visible before it
            // ends: the entry stays shut, and is settled then.
            let Some(number) = number.filter(|_| !shard.is_shut(*hash)) else { continue };
            let name = Name { owner: lane(number, *family), key };
            match value.filter(|_| applied) {
                Some(value) => shard.records.put(name, value, least(*family, value), moment),
                // Deleted, or not known.
                None => shard.records.remove(name),
            }
        }
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[(hash >> 40) as usize % SHARDS]
    }
}

impl Owner {
    fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }
}

/// A record that was changed: its key and its value now.
type Changed<'a> = (Family, &'a [u8], Option<&'a Bytes>);

fn rows(edits: &Edits) -> impl Iterator<Item = Changed<'_>> {
    edits
        .iter()
        .filter(|(family, ..)| *family != Family::State)
        .map(|(family, key, value)| (family, &key[..], value))
}

/// How much of a record that was written is kept at least.
fn least(family: Family, value: &[u8]) -> usize {
    let is_small = family == Family::Head && value.len() <= SMALL_BYTES;
    if is_small { value.len() } else { value::metadata(family, value).len() }
}

#[cfg(test)]
mod tests {
    use row::value::{Body, Cell, Head, Header};

    use super::*;

    const KEY: &[u8] = b"\x00\x01abcdefkey";

    fn put(value: &'static str) -> Edits {
        let mut edits = Edits::default();
        edits.put(Family::Head, Bytes::from_static(KEY), Bytes::from_static(value.as_bytes()));
        edits
    }

    #[test]
    fn an_applied_batch_is_seen_by_later_views_only() {
        let hot = Hot::new(1 << 20);
        let owner = hot.owner();
        let before = hot.moment();
        let new = hot.begin(&owner, &put("new"));
        assert_eq!(hot.get(&owner, Family::Head, KEY, hot.moment()), None);
        hot.end(&owner, &put("new"), new, true);
        assert_eq!(
            hot.get(&owner, Family::Head, KEY, before),
            None,
            "a view of before the batch must not see it"
        );
        assert_eq!(
            hot.get(&owner, Family::Head, KEY, hot.moment()),
            Some(Bytes::from_static(b"new"))
        );
    }

    #[test]
    fn a_view_that_was_overtaken_by_a_batch_fills_nothing() {
        let hot = Hot::new(1 << 20);
        let owner = hot.owner();
        let at = hot.moment();
        let new = hot.begin(&owner, &put("new"));
        hot.fill(&owner, Family::Head, KEY, &Bytes::from_static(b"old"), at);
        hot.end(&owner, &put("new"), new, false);
        hot.fill(&owner, Family::Head, KEY, &Bytes::from_static(b"old"), at);
        assert_eq!(hot.get(&owner, Family::Head, KEY, hot.moment()), None);
        hot.fill(&owner, Family::Head, KEY, &Bytes::from_static(b"new"), hot.moment());
        assert_eq!(
            hot.get(&owner, Family::Head, KEY, hot.moment()),
            Some(Bytes::from_static(b"new"))
        );
    }

    #[test]
    fn a_key_is_shut_until_the_last_batch_with_it_has_ended() {
        let hot = Hot::new(1 << 20);
        let owner = hot.owner();
        let first = hot.begin(&owner, &put("first"));
        let second = hot.begin(&owner, &put("second"));
        hot.end(&owner, &put("first"), first, true);
        hot.fill(&owner, Family::Head, KEY, &Bytes::from_static(b"first"), hot.moment());
        assert_eq!(
            hot.get(&owner, Family::Head, KEY, hot.moment()),
            None,
            "the second may be visible already"
        );
        hot.end(&owner, &put("second"), second, true);
        assert_eq!(
            hot.get(&owner, Family::Head, KEY, hot.moment()),
            Some(Bytes::from_static(b"second"))
        );
    }

    #[test]
    fn of_what_is_written_the_gist_is_kept_and_of_what_is_read_all() {
        let head = |value: &[u8]| {
            let body = Body::String(Bytes::copy_from_slice(value));
            Head { header: Header { timetag: 7, expires_at_ms: Some(9) }, body }.encode()
        };
        let (small, large) = (head(&[b's'; SMALL_BYTES - 18]), head(&[b'l'; SMALL_BYTES]));
        let cell = Cell {
            header: Header { timetag: 8, expires_at_ms: None },
            value: Bytes::from_static(b"value"),
        }
        .encode();
        let hot = Hot::new(1 << 20);
        let owner = hot.owner();
        let write = |family: Family, value: Option<&Bytes>| {
            let mut edits = Edits::default();
            let key = Bytes::from_static(KEY);
            match value {
                Some(value) => edits.put(family, key, value.clone()),
                None => edits.delete(family, key),
            }
            let begun = hot.begin(&owner, &edits);
            assert_eq!(hot.metadata(&owner, family, KEY, hot.moment()), None, "shut");
            hot.end(&owner, &edits, begun, true);
        };
        let get = || hot.get(&owner, Family::Head, KEY, hot.moment());
        let metadata = |family: Family| hot.metadata(&owner, family, KEY, hot.moment());
        write(Family::Head, Some(&small));
        assert_eq!((get(), metadata(Family::Head)), (Some(small.clone()), Some(small)));
        write(Family::Head, Some(&large));
        assert_eq!((get(), metadata(Family::Head)), (None, Some(large.slice(..18))));
        hot.fill(&owner, Family::Head, KEY, &large, hot.moment());
        assert_eq!((get(), metadata(Family::Head)), (Some(large.clone()), Some(large)));
        assert_eq!(metadata(Family::Cell), None, "a cell is no head");
        write(Family::Cell, Some(&cell));
        let whole = || hot.get(&owner, Family::Cell, KEY, hot.moment());
        assert_eq!((whole(), metadata(Family::Cell)), (None, Some(cell.slice(..9))));
        hot.fill(&owner, Family::Cell, KEY, &cell, hot.moment());
        assert_eq!((whole(), metadata(Family::Cell)), (Some(cell.clone()), Some(cell.clone())));
        write(Family::Cell, None);
        assert_eq!(metadata(Family::Cell), None);
        assert!(get().is_some(), "a head is no cell");
        hot.forget(&owner);
        assert_eq!((get(), metadata(Family::Head)), (None, None));
    }

    #[test]
    fn a_clear_forgets_everything_of_its_replica() {
        let hot = Hot::new(1 << 20);
        let (owner, other) = (hot.owner(), hot.owner());
        for owner in [&owner, &other] {
            hot.fill(owner, Family::Head, KEY, &Bytes::from_static(b"old"), hot.moment());
        }
        let mut clear = Edits::default();
        clear.forget_rows();
        let at = hot.moment();
        let clearing = hot.begin(&owner, &clear);
        hot.fill(&owner, Family::Head, KEY, &Bytes::from_static(b"old"), at);
        hot.end(&owner, &clear, clearing, true);
        hot.fill(&owner, Family::Head, KEY, &Bytes::from_static(b"old"), at);
        assert_eq!(hot.get(&owner, Family::Head, KEY, hot.moment()), None);
        assert!(hot.get(&other, Family::Head, KEY, hot.moment()).is_some());
    }

    #[test]
    fn a_batch_behind_a_clear_stays_shut_until_it_ends() {
        let hot = Hot::new(1 << 20);
        let owner = hot.owner();
        let mut clear = Edits::default();
        clear.forget_rows();
        let clearing = hot.begin(&owner, &clear);
        let new = hot.begin(&owner, &put("new"));
        hot.end(&owner, &clear, clearing, true);
        hot.fill(&owner, Family::Head, KEY, &Bytes::from_static(b"old"), hot.moment());
        assert_eq!(hot.get(&owner, Family::Head, KEY, hot.moment()), None);
        hot.end(&owner, &put("new"), new, true);
        assert_eq!(
            hot.get(&owner, Family::Head, KEY, hot.moment()),
            Some(Bytes::from_static(b"new"))
        );
        let old = hot.begin(&owner, &put("old"));
        hot.forget(&owner);
        assert_eq!(hot.get(&owner, Family::Head, KEY, hot.moment()), None);
        hot.end(&owner, &put("old"), old, true);
        assert_eq!(
            hot.get(&owner, Family::Head, KEY, hot.moment()),
            None,
            "others may have led since it was applied"
        );
    }
}
