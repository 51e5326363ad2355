//! Heads read or written lately, in memory: a string's GET, and the look that a write takes at the row before, without RocksDB.
//!
//! One cache serves all replicas of a node, within one budget of bytes.
//!
//! # Why no reader sees the past
//! Time is counted in *moments*: each applied batch ends at a new one. A view notes the moment before it looks at the store, so it sees at least
//! every batch that had ended by then. An entry knows the moment since which its value is known to hold.
//! - Before a batch is proposed, its keys' entries are shut, and nobody may fill them until it has ended ([`Heads::begin`], [`Heads::end`]), and
//!   every batch proposed behind it with the same key as well. So once the batch is visible in the store, no old value of its is in the cache.
//! - A view fills only if no batch has ended in the shard since the moment it noted: what it read is then the newest.
//! - While everything is being cleared, the replica's part is shut; then it gets a new number, under which nothing old lies.
//! - What a replica applies without leading passes by unseen. So it gets a new number whenever it begins to lead ([`Heads::forget`]).
//! - A view uses an entry only if it holds since the view's own moment or earlier, so that one snapshot is one state.

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::unsync::Cache;
use quick_cache::{Equivalent, Weighter};
use row::edits::{Edits, Family};

const SHARDS: usize = 64;
/// Larger values are left to RocksDB's block cache.
const VALUE_BYTES_MAX: usize = 16 << 10;
/// What an entry takes besides its key and value, about: its place in a table that is grown by doubling, and what the allocator adds to key and
/// value.
const ENTRY_BYTES: usize = 200;

/// The owner's number while its replica is being cleared: nothing is used and nothing is filled.
const NOBODY: u64 = 0;

/// The moment of an entry whose batch has not ended: no view is that late.
const NOT_NOW: Moment = Moment::MAX;

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
}

struct Shard {
    cache: Cache<Key, Entry, Bytewise, BuildHasherDefault<Place>>,
    /// Hashes of keys whose batch has begun and not ended.
    pending: Vec<u64>,
    /// When the last batch with a key of this shard ended.
    last_end: Moment,
}

#[derive(PartialEq, Eq)]
struct Key {
    owner: u64,
    head_key: Box<[u8]>,
}

struct Wanted<'a> {
    owner: u64,
    head_key: &'a [u8],
}

struct Entry {
    value: Bytes,
    since: Moment,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(place(self.owner, &self.head_key));
    }
}

impl Hash for Wanted<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(place(self.owner, self.head_key));
    }
}

impl Equivalent<Key> for Wanted<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.owner == key.owner && self.head_key == &key.head_key[..]
    }
}

/// A head key begins with a hash: that is hash enough.
fn place(owner: u64, head_key: &[u8]) -> u64 {
    let hash = head_key.first_chunk().map_or(0, |place| u64::from_be_bytes(*place));
    (hash ^ owner.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Hands a hash through that was made already.
#[derive(Default)]
struct Place(u64);

impl Hasher for Place {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys hash as one number");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Clone)]
struct Bytewise;

impl Weighter<Key, Entry> for Bytewise {
    fn weight(&self, key: &Key, entry: &Entry) -> u64 {
        (ENTRY_BYTES + key.head_key.len() + entry.value.len()) as u64
    }
}

impl Heads {
    /// A cache of about so many bytes.
    pub(crate) fn new(bytes: usize) -> Heads {
        let per_shard = (bytes / SHARDS) as u64;
        let items = per_shard as usize / 256;
        let shard = || {
            let cache = Cache::with(items.max(1), per_shard, Bytewise, BuildHasherDefault::default(), Default::default());
            Mutex::new(Shard { cache, pending: Vec::new(), last_end: 0 })
        };
        Heads { shards: (0..SHARDS).map(|_| shard()).collect(), moment: AtomicU64::new(0), owners: AtomicU64::new(0) }
    }

    /// A part for one replica.
    pub(crate) fn owner(&self) -> Owner {
        let number = self.new_number();
        Owner { id: number, number: AtomicU64::new(number), clearing: AtomicU64::new(0) }
    }

    /// Forgets everything of a replica. Batches of it may be under way only if they will not be applied any more.
    pub(crate) fn forget(&self, owner: &Owner) {
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
        let wanted = Wanted { owner: owner.number(), head_key };
        if wanted.owner == NOBODY {
            return None;
        }
        let shard = self.shard(place(owner.id, head_key)).lock();
        shard.cache.get(&wanted).filter(|entry| entry.since <= at).map(|entry| entry.value.clone())
    }

    /// What a view of this moment read from the store.
    pub(crate) fn fill(&self, owner: &Owner, head_key: &[u8], value: &Bytes, at: Moment) {
        let number = owner.number();
        if value.len() > VALUE_BYTES_MAX || number == NOBODY {
            return;
        }
        let hash = place(owner.id, head_key);
        let mut shard = self.shard(hash).lock();
        if shard.last_end <= at && !shard.pending.contains(&hash) {
            let key = Key { owner: number, head_key: head_key.into() };
            shard.cache.insert(key, Entry { value: value.clone(), since: at });
        }
    }

    /// A batch is about to be proposed.
    pub(crate) fn begin(&self, owner: &Owner, edits: &Edits) {
        if edits.clear {
            owner.clearing.fetch_add(1, Ordering::AcqRel);
            owner.number.store(NOBODY, Ordering::Release);
        }
        let number = owner.number();
        for (head_key, _) in heads(edits) {
            let hash = place(owner.id, head_key);
            let mut shard = self.shard(hash).lock();
            if let Some(mut entry) = shard.cache.peek_mut(&Wanted { owner: number, head_key }) {
                entry.since = NOT_NOW;
            }
            shard.pending.push(hash);
        }
    }

    /// The batch that began first has been applied (`applied`), or nobody knows what became of it.
    pub(crate) fn end(&self, owner: &Owner, edits: &Edits, applied: bool) {
        let moment = self.moment.fetch_add(1, Ordering::AcqRel) + 1;
        if edits.clear {
            self.shards.iter().for_each(|shard| shard.lock().last_end = moment);
            if owner.clearing.fetch_sub(1, Ordering::AcqRel) == 1 {
                owner.number.store(self.new_number(), Ordering::Release);
            }
        }
        let number = owner.number();
        for (head_key, value) in heads(edits) {
            let hash = place(owner.id, head_key);
            let mut shard = self.shard(hash).lock();
            shard.last_end = moment;
            if let Some(index) = shard.pending.iter().position(|pending| *pending == hash) {
                shard.pending.swap_remove(index);
            }
            // A later batch with this key is under way, and may be visible before it ends: its entry stays shut.
            if number != NOBODY && !shard.pending.contains(&hash) {
                shard.settle(number, head_key, value.filter(|_| applied), moment);
            }
        }
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[(hash >> 40) as usize % SHARDS]
    }
}

impl Shard {
    /// The value of a key since a batch ended; `None`: deleted, or not known.
    fn settle(&mut self, number: u64, head_key: &[u8], value: Option<&Bytes>, since: Moment) {
        let wanted = Wanted { owner: number, head_key };
        let Some(value) = value.filter(|value| value.len() <= VALUE_BYTES_MAX) else {
            self.cache.remove(&wanted);
            return;
        };
        if let Some(mut entry) = self.cache.peek_mut(&wanted) {
            *entry = Entry { value: value.clone(), since };
            return;
        }
        self.cache.insert(Key { owner: number, head_key: head_key.into() }, Entry { value: value.clone(), since });
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
        heads.begin(&owner, &put("new"));
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None);
        heads.end(&owner, &put("new"), true);
        assert_eq!(heads.get(&owner, KEY, before), None, "a view of before the batch must not see it");
        assert_eq!(heads.get(&owner, KEY, heads.moment()), Some(Bytes::from_static(b"new")));
    }

    #[test]
    fn a_view_that_was_overtaken_by_a_batch_fills_nothing() {
        let heads = Heads::new(1 << 20);
        let owner = heads.owner();
        let at = heads.moment();
        heads.begin(&owner, &put("new"));
        heads.fill(&owner, KEY, &Bytes::from_static(b"old"), at);
        heads.end(&owner, &put("new"), false);
        heads.fill(&owner, KEY, &Bytes::from_static(b"old"), at);
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None);
        heads.fill(&owner, KEY, &Bytes::from_static(b"new"), heads.moment());
        assert_eq!(heads.get(&owner, KEY, heads.moment()), Some(Bytes::from_static(b"new")));
    }

    #[test]
    fn a_key_is_shut_until_the_last_batch_with_it_has_ended() {
        let heads = Heads::new(1 << 20);
        let owner = heads.owner();
        heads.begin(&owner, &put("first"));
        heads.begin(&owner, &put("second"));
        heads.end(&owner, &put("first"), true);
        heads.fill(&owner, KEY, &Bytes::from_static(b"first"), heads.moment());
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None, "the second may be visible already");
        heads.end(&owner, &put("second"), true);
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
        heads.begin(&owner, &clear);
        heads.fill(&owner, KEY, &Bytes::from_static(b"old"), at);
        heads.end(&owner, &clear, true);
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
        heads.begin(&owner, &clear);
        heads.begin(&owner, &put("new"));
        heads.end(&owner, &clear, true);
        heads.fill(&owner, KEY, &Bytes::from_static(b"old"), heads.moment());
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None);
        heads.end(&owner, &put("new"), true);
        assert_eq!(heads.get(&owner, KEY, heads.moment()), Some(Bytes::from_static(b"new")));
        heads.forget(&owner);
        assert_eq!(heads.get(&owner, KEY, heads.moment()), None);
    }

    #[test]
    fn the_budget_holds() {
        let heads = Heads::new(1 << 20);
        let owner = heads.owner();
        for n in 0..100_000_u64 {
            let key = [&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[..], b"key"].concat();
            heads.fill(&owner, &key, &Bytes::from(vec![b'v'; 64]), heads.moment());
        }
        let weight: u64 = heads.shards.iter().map(|shard| shard.lock().cache.weight()).sum();
        assert!(weight <= 1 << 20, "{weight}");
    }
}
