//! Heads read or written lately, in memory: a string's GET, and the look that a write takes at the row before, without RocksDB.
//!
//! One cache serves all replicas of a node, within one budget of bytes.
//!
//! # Why no reader sees the past
//! Time is counted in *moments*: each applied batch ends at a new one. A view notes the moment before it looks at the store, so it sees at least
//! every batch that had ended by then. An entry knows the moment since which its value is known to hold.
//! - From before a batch is proposed until it has ended, and every batch proposed behind it with the same key as well, entries of its keys are
//!   shut: nobody uses or fills them ([`Heads::begin`], [`Heads::end`]). So once the batch is visible in the store, no old value of its is seen.
//! - A view fills only if no batch has ended in the shard since the moment it noted: what it read is then the newest.
//! - While everything is being cleared, the replica's part is shut; then it gets a new number, under which nothing old lies.
//! - What a replica applies without leading passes by unseen. So it gets a new number whenever it begins to lead ([`Heads::forget`]), and a batch
//!   that began before leaves nothing under it.
//! - A view uses an entry only if it holds since the view's own moment or earlier, so that one snapshot is one state.

mod ring;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use row::edits::{Edits, Family};
use row::key;
use smallvec::SmallVec;

use ring::{Name, Ring};

const SHARDS: usize = 64;
/// The owner's number while its replica is being cleared: nothing is used and nothing is filled.
const NOBODY: u64 = 0;

/// A count of applied batches of the node.
pub(crate) type Moment = u64;

/// The heads of a node's replicas.
pub(crate) struct Heads {
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
    /// Hashes of keys whose batch has begun and not ended.
    pending: Vec<u64>,
    /// When the last batch with a key of this shard ended.
    last_end: Moment,
}

/// A head key begins with a hash: that is hash enough.
fn place(owner: u64, head_key: &[u8]) -> u64 {
    mix(owner, key::head_position(head_key).unwrap_or_default())
}

fn mix(owner: u64, position: u64) -> u64 {
    (position ^ owner.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Heads {
    /// A cache of so many bytes.
    pub(crate) fn new(bytes: usize) -> Heads {
        let shard = || Mutex::new(Shard { records: Ring::new(bytes / SHARDS, place), pending: Vec::new(), last_end: 0 });
        Heads { shards: (0..SHARDS).map(|_| shard()).collect(), moment: AtomicU64::new(0), owners: AtomicU64::new(0) }
    }

    /// A part for one replica.
    pub(crate) fn owner(&self) -> Owner {
        let number = self.new_number();
        Owner { id: number, number: AtomicU64::new(number), clearing: AtomicU64::new(0), era: AtomicU64::new(0) }
    }

    /// Forgets everything of a replica, and what batches that have begun and not ended will say of it.
    pub(crate) fn forget(&self, owner: &Owner) {
        owner.era.fetch_add(1, Ordering::AcqRel);
        self.shards.iter().for_each(|shard| shard.lock().last_end = self.moment.fetch_add(1, Ordering::AcqRel) + 1);
        owner.number.store(self.new_number(), Ordering::Release);
    }

    fn new_number(&self) -> u64 {
        self.owners.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Now. A view asks before it looks at the store.
    pub(crate) fn moment(&self) -> Moment {
        self.moment.load(Ordering::Acquire)
    }

    /// A head as a view of this moment sees it, if it is here.
    pub(crate) fn get(&self, owner: &Owner, head_key: &[u8], at: Moment) -> Option<Bytes> {
        let number = owner.number();
        if number == NOBODY {
            return None;
        }
        let hash = place(owner.id, head_key);
        let mut shard = self.shard(hash).lock();
        if shard.pending.contains(&hash) {
            return None;
        }
        shard
            .records
            .get(Name { owner: number, key: head_key })
            .filter(|(since, _)| *since <= at)
            .map(|(_, value)| Bytes::copy_from_slice(value))
    }

    /// Heads at these positions are about to be asked for: their records come from memory side by side rather than one after the other.
    pub(crate) fn expect(&self, owner: &Owner, positions: impl Iterator<Item = u64>) {
        let number = owner.number();
        let hashes: SmallVec<[_; 64]> = positions.map(|position| (mix(owner.id, position), mix(number, position))).collect();
        for (shard, hash) in &hashes {
            self.shard(*shard).lock().records.expect_bucket(*hash);
        }
        for (shard, hash) in &hashes {
            self.shard(*shard).lock().records.expect_record(*hash);
        }
    }

    /// What a view of this moment read from the store.
    pub(crate) fn fill(&self, owner: &Owner, head_key: &[u8], value: &Bytes, at: Moment) {
        let number = owner.number();
        if number == NOBODY {
            return;
        }
        let hash = place(owner.id, head_key);
        let mut shard = self.shard(hash).lock();
        if shard.last_end <= at && !shard.pending.contains(&hash) {
            shard.records.put(Name { owner: number, key: head_key }, value, at);
        }
    }

    /// A batch is about to be proposed.
    pub(crate) fn begin(&self, owner: &Owner, edits: &Edits) -> Begun {
        let era = owner.era.load(Ordering::Acquire);
        if edits.clear {
            owner.clearing.fetch_add(1, Ordering::AcqRel);
            owner.number.store(NOBODY, Ordering::Release);
        }
        for (head_key, _) in heads(edits) {
            let hash = place(owner.id, head_key);
            self.shard(hash).lock().pending.push(hash);
        }
        Begun(era)
    }

    /// The batch that began first has been applied (`applied`), or nobody knows what became of it.
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
        for (head_key, value) in heads(edits) {
            let hash = place(owner.id, head_key);
            let mut shard = self.shard(hash).lock();
            shard.last_end = moment;
            if let Some(index) = shard.pending.iter().position(|pending| *pending == hash) {
                shard.pending.swap_remove(index);
            }
            // A later batch with this key is under way, and may be visible before it ends: the entry stays shut, and is settled then.
            if is_kept && !shard.pending.contains(&hash) {
                match value.filter(|_| applied) {
                    Some(value) => shard.records.put(Name { owner: number, key: head_key }, value, moment),
                    // Deleted, or not known.
                    None => shard.records.remove(Name { owner: number, key: head_key }),
                }
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

fn heads(edits: &Edits) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
    edits.iter().filter(|(family, ..)| *family == Family::Head).map(|(_, key, value)| (&key[..], value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"\x00\x01abcdefkey";

    fn put(value: &'static str) -> Edits {
        let mut edits = Edits::default();
        edits.put(Family::Head, Bytes::from_static(KEY), Bytes::from_static(value.as_bytes()));
        edits
    }

    #[test]
    fn an_applied_batch_is_seen_by_later_views_only() {
        let heads = Heads::new(1 << 20);
        let owner = heads.owner();
        let before = heads.moment();
        let new = heads.begin(&owner, &put("new"));
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None);
        heads.end(&owner, &put("new"), new, true);
        assert_eq!(heads.get(&owner, KEY, before), None, "a view of before the batch must not see it");
        assert_eq!(heads.get(&owner, KEY, heads.moment()), Some(Bytes::from_static(b"new")));
    }

    #[test]
    fn a_view_that_was_overtaken_by_a_batch_fills_nothing() {
        let heads = Heads::new(1 << 20);
        let owner = heads.owner();
        let at = heads.moment();
        let new = heads.begin(&owner, &put("new"));
        heads.fill(&owner, KEY, &Bytes::from_static(b"old"), at);
        heads.end(&owner, &put("new"), new, false);
        heads.fill(&owner, KEY, &Bytes::from_static(b"old"), at);
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None);
        heads.fill(&owner, KEY, &Bytes::from_static(b"new"), heads.moment());
        assert_eq!(heads.get(&owner, KEY, heads.moment()), Some(Bytes::from_static(b"new")));
    }

    #[test]
    fn a_key_is_shut_until_the_last_batch_with_it_has_ended() {
        let heads = Heads::new(1 << 20);
        let owner = heads.owner();
        let first = heads.begin(&owner, &put("first"));
        let second = heads.begin(&owner, &put("second"));
        heads.end(&owner, &put("first"), first, true);
        heads.fill(&owner, KEY, &Bytes::from_static(b"first"), heads.moment());
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None, "the second may be visible already");
        heads.end(&owner, &put("second"), second, true);
        assert_eq!(heads.get(&owner, KEY, heads.moment()), Some(Bytes::from_static(b"second")));
    }

    #[test]
    fn a_clear_forgets_everything_of_its_replica() {
        let heads = Heads::new(1 << 20);
        let (owner, other) = (heads.owner(), heads.owner());
        for owner in [&owner, &other] {
            heads.fill(owner, KEY, &Bytes::from_static(b"old"), heads.moment());
        }
        let mut clear = Edits::default();
        clear.forget_rows();
        let at = heads.moment();
        let clearing = heads.begin(&owner, &clear);
        heads.fill(&owner, KEY, &Bytes::from_static(b"old"), at);
        heads.end(&owner, &clear, clearing, true);
        heads.fill(&owner, KEY, &Bytes::from_static(b"old"), at);
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None);
        assert!(heads.get(&other, KEY, heads.moment()).is_some());
    }

    #[test]
    fn a_batch_behind_a_clear_stays_shut_until_it_ends() {
        let heads = Heads::new(1 << 20);
        let owner = heads.owner();
        let mut clear = Edits::default();
        clear.forget_rows();
        let clearing = heads.begin(&owner, &clear);
        let new = heads.begin(&owner, &put("new"));
        heads.end(&owner, &clear, clearing, true);
        heads.fill(&owner, KEY, &Bytes::from_static(b"old"), heads.moment());
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None);
        heads.end(&owner, &put("new"), new, true);
        assert_eq!(heads.get(&owner, KEY, heads.moment()), Some(Bytes::from_static(b"new")));
        let old = heads.begin(&owner, &put("old"));
        heads.forget(&owner);
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None);
        heads.end(&owner, &put("old"), old, true);
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None, "others may have led since it was applied");
    }
}
