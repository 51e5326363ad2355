//! The row cache: heads and cells that were read or written lately, in memory. A string's
//! GET, and a write's read of the old record, need no RocksDB.
//!
//! One cache serves all replicas of a node, within one budget of bytes. A write seldom
//! needs a record's old value: of large heads and of all cells that are written only the
//! [metadata](row::value::metadata) is kept, so that many more fit. A head or cell that
//! is read by its key is kept whole.
//!
//! # Coherence
//! Time is counted in *versions*: each applied batch ends at a new one. A view notes the
//! version before it reads the store, so it sees at least every batch that had ended by
//! then. An entry has the version since which its value is known to hold.
//! - From before a batch is proposed until it has ended, and every batch proposed behind
//!   it with the same key as well, entries of its keys are pending: no view uses or
//!   inserts them ([`RowCache::begin_write`], [`RowCache::end_write`]). So once the batch
//!   is visible in the store, no reader sees an old value of its keys.
//! - A view inserts a record only if no batch has ended in the shard since the version
//!   that it noted: the record that it read is then the newest.
//! - While a replica's rows are being cleared, its scope is closed ([`CLEARING`]); then
//!   it gets a new namespace, which is empty.
//! - A follower applies entries past the cache. So a scope gets a new namespace whenever
//!   its replica begins to lead ([`RowCache::invalidate_all`]), and a batch that began
//!   before leaves nothing in it.
//! - A view uses an entry only if it holds since the view's own version or an earlier
//!   one, so that one snapshot is one state.

mod clock_ring;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hashbrown::HashTable;
use parking_lot::Mutex;
use row::edits::{Edits, Family};
use row::{key, value};
use smallvec::SmallVec;

use clock_ring::{CacheKey, CachedRecord, ClockRing};

const SHARDS: usize = 64;
/// The number of records that are fetched from memory side by side.
const PREFETCH_MAX: usize = 64;
/// A head that is written is kept whole when it has no more bytes than this: as much as
/// the rest of its entry, about.
const WHOLE_HEAD_BYTES_MAX: usize = 128;
/// The namespace of a scope while its replica is being cleared: no entry is used or
/// inserted.
const CLEARING: u64 = 0;

/// A count of applied batches of the node.
pub(crate) type Version = u64;

/// The records of a node's replicas.
pub(crate) struct RowCache {
    shards: Box<[Mutex<Shard>]>,
    version: AtomicU64,
    namespaces: AtomicU64,
}

/// One replica's part.
#[derive(Debug)]
pub(crate) struct CacheScope {
    /// Never changes: keys are marked as pending by it.
    id: u64,
    /// The namespace of the scope's entries. A new one forgets all of them.
    namespace: AtomicU64,
    /// Batches under way that clear everything.
    clearing: AtomicU64,
    /// Counts [`RowCache::invalidate_all`].
    epoch: AtomicU64,
}

/// A batch that has begun, with the scope's epoch at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteTicket(u64);

struct Shard {
    records: ClockRing,
    /// Hashes of keys whose batches have begun and not ended, and how many these are.
    pending: HashTable<(u64, usize)>,
    /// The version at which the last batch with a key of this shard ended.
    last_write_end: Version,
}

/// The bit that distinguishes cells from heads in a namespace.
const CELLS: u64 = 1 << 63;

/// The namespace of a family's records in the ring: the scope's for heads, and that with
/// [`CELLS`] for cells.
fn of_family(namespace: u64, family: Family) -> u64 {
    if family == Family::Cell { namespace | CELLS } else { namespace }
}

/// A head key begins with a hash, which is hash enough. All cells of a row begin with the
/// same one, so that a cell's key is hashed.
fn hash_of(namespace: u64, key: &[u8]) -> u64 {
    let hash = if namespace & CELLS == 0 {
        key::head_position(key).unwrap_or_default()
    } else {
        key::hash48(key)
    };
    mix(namespace, hash)
}

fn mix(namespace: u64, hash: u64) -> u64 {
    (hash ^ namespace.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Shard {
    fn mark_pending(&mut self, hash: u64) {
        let entry =
            self.pending.entry(hash, |(pending, _)| *pending == hash, |(pending, _)| *pending);
        entry.or_insert((hash, 0)).into_mut().1 += 1;
    }

    fn clear_pending(&mut self, hash: u64) {
        if let Ok(mut entry) = self.pending.find_entry(hash, |(pending, _)| *pending == hash) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
    }

    fn is_pending(&self, hash: u64) -> bool {
        self.pending.find(hash, |(pending, _)| *pending == hash).is_some()
    }
}

impl RowCache {
    /// A cache of `bytes` bytes, over all shards.
    pub(crate) fn new(bytes: usize) -> RowCache {
        let shard = || {
            Mutex::new(Shard {
                records: ClockRing::new(bytes / SHARDS, hash_of),
                pending: HashTable::new(),
                last_write_end: 0,
            })
        };
        RowCache {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            version: AtomicU64::new(0),
            namespaces: AtomicU64::new(0),
        }
    }

    /// Bytes of records, of all replicas.
    pub(crate) fn used(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().records.used()).sum()
    }

    /// A part for one replica.
    pub(crate) fn new_scope(&self) -> CacheScope {
        let namespace = self.new_namespace();
        CacheScope {
            id: namespace,
            namespace: AtomicU64::new(namespace),
            clearing: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
        }
    }

    /// Forgets everything of a replica, and whatever the batches that have begun and not
    /// ended are going to put.
    pub(crate) fn invalidate_all(&self, scope: &CacheScope) {
        // Epoch, versions, namespace, in this order: a view or batch from before that
        // finds the new namespace also finds that its record or ticket is too old.
        scope.epoch.fetch_add(1, Ordering::AcqRel);
        self.shards.iter().for_each(|shard| {
            shard.lock().last_write_end = self.version.fetch_add(1, Ordering::AcqRel) + 1
        });
        scope.namespace.store(self.new_namespace(), Ordering::Release);
    }

    fn new_namespace(&self) -> u64 {
        self.namespaces.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The current version. A view notes it before it reads the store.
    pub(crate) fn version(&self) -> Version {
        self.version.load(Ordering::Acquire)
    }

    /// A head or cell as a view of this version sees it, if it is here whole.
    pub(crate) fn get(
        &self,
        scope: &CacheScope,
        family: Family,
        key: &[u8],
        at: Version,
    ) -> Option<Bytes> {
        self.find(scope, family, key, at, |record| record.is_whole)
    }

    /// The metadata of a head or cell as a view of this version sees it, or the whole
    /// record, if that is here.
    pub(crate) fn metadata(
        &self,
        scope: &CacheScope,
        family: Family,
        key: &[u8],
        at: Version,
    ) -> Option<Bytes> {
        self.find(scope, family, key, at, |_| true)
    }

    fn find(
        &self,
        scope: &CacheScope,
        family: Family,
        key: &[u8],
        at: Version,
        is_enough: fn(&CachedRecord<'_>) -> bool,
    ) -> Option<Bytes> {
        let namespace = scope.namespace();
        if namespace == CLEARING {
            return None;
        }
        let hash = hash_of(of_family(scope.id, family), key);
        let mut shard = self.shard(hash).lock();
        // A batch with this key may be visible in the store already: the entry would be a
        // stale read.
        if shard.is_pending(hash) {
            return None;
        }
        let record =
            shard.records.get(CacheKey { namespace: of_family(namespace, family), key })?;
        // An entry that is newer than the view would mix two states in one snapshot.
        (record.since <= at && is_enough(&record)).then(|| Bytes::copy_from_slice(record.value))
    }

    /// Fetches ahead the heads at these positions, which are read next: their records
    /// come from memory side by side rather than one after the other.
    pub(crate) fn prefetch(&self, scope: &CacheScope, positions: impl Iterator<Item = u64>) {
        let namespace = scope.namespace();
        let places: SmallVec<[_; PREFETCH_MAX]> =
            positions.map(|position| (mix(scope.id, position), mix(namespace, position))).collect();
        self.fetch_ahead(&places);
    }

    /// Fetches ahead the records in these shards and buckets, which are read next. A
    /// place is the hash under which a key is pending, and the hash under which its
    /// record is kept.
    fn fetch_ahead(&self, places: &[(u64, u64)]) {
        for (shard, hash) in places {
            self.shard(*shard).lock().records.prefetch_bucket(*hash);
        }
        for (shard, hash) in places {
            self.shard(*shard).lock().records.prefetch_record(*hash);
        }
    }

    /// Inserts a head or cell that a view of this version read from the store.
    pub(crate) fn insert(
        &self,
        scope: &CacheScope,
        family: Family,
        key: &[u8],
        value: &Bytes,
        at: Version,
    ) {
        let namespace = scope.namespace();
        if namespace == CLEARING {
            return;
        }
        let hash = hash_of(of_family(scope.id, family), key);
        let mut shard = self.shard(hash).lock();
        // A batch that has ended since the view's version may have replaced the record.
        if shard.last_write_end <= at && !shard.is_pending(hash) {
            shard.records.put(
                CacheKey { namespace: of_family(namespace, family), key },
                value,
                value.len(),
                at,
            );
        }
    }

    /// Begins a batch before it is proposed: its keys are pending.
    pub(crate) fn begin_write(&self, scope: &CacheScope, edits: &Edits) -> WriteTicket {
        let epoch = scope.epoch.load(Ordering::Acquire);
        if edits.clear {
            scope.clearing.fetch_add(1, Ordering::AcqRel);
            scope.namespace.store(CLEARING, Ordering::Release);
        }
        for (family, key, _) in rows(edits) {
            let hash = hash_of(of_family(scope.id, family), key);
            self.shard(hash).lock().mark_pending(hash);
        }
        WriteTicket(epoch)
    }

    /// Ends a batch: it has been applied (`applied`), or its outcome is unknown.
    pub(crate) fn end_write(
        &self,
        scope: &CacheScope,
        edits: &Edits,
        ticket: WriteTicket,
        applied: bool,
    ) {
        let version = self.version.fetch_add(1, Ordering::AcqRel) + 1;
        if edits.clear {
            self.shards.iter().for_each(|shard| shard.lock().last_write_end = version);
            // With another clear in flight the scope stays closed until that ends.
            if scope.clearing.fetch_sub(1, Ordering::AcqRel) == 1 {
                scope.namespace.store(self.new_namespace(), Ordering::Release);
            }
        }
        // The namespace before the epoch: a new namespace is stored after its epoch.
        let namespace = scope.namespace();
        let is_kept = namespace != CLEARING && scope.epoch.load(Ordering::Acquire) == ticket.0;
        let mut rows = rows(edits);
        loop {
            let some: SmallVec<[_; PREFETCH_MAX]> = rows.by_ref().take(PREFETCH_MAX).collect();
            self.finish_writes(scope, is_kept.then_some(namespace), &some, applied, version);
            if some.len() < PREFETCH_MAX {
                return;
            }
        }
    }

    /// Ends the pending state of a batch's keys, and keeps the written records in a
    /// namespace.
    ///
    /// Fetching ahead pays where records are in this cache and not in the processor's:
    /// SET and HSET of 64 bytes at pipeline 16, 50 clients, durability `os`, `memory` at
    /// 4 GiB, seven turns with it and without. CPU of the server, 2 million keys: 0.86
    /// (SET) and 0.83 (HSET: 5.8 us, not 7.3); 1 million: 0.97 and 0.93. With 256 MiB,
    /// where most keys are not in this cache: 0.95 to 1.05.
    fn finish_writes(
        &self,
        scope: &CacheScope,
        namespace: Option<u64>,
        rows: &[Changed<'_>],
        applied: bool,
        version: Version,
    ) {
        let kept_at = |family, key| {
            namespace.map_or(0, |namespace| hash_of(of_family(namespace, family), key))
        };
        let places = rows.iter().map(|(family, key, _)| {
            (hash_of(of_family(scope.id, *family), key), kept_at(*family, key))
        });
        let places: SmallVec<[_; PREFETCH_MAX]> = places.collect();
        if namespace.is_some() && rows.len() > 1 {
            self.fetch_ahead(&places);
        }
        for ((family, key, value), (hash, _)) in rows.iter().zip(&places) {
            let mut shard = self.shard(*hash).lock();
            shard.last_write_end = version;
            shard.clear_pending(*hash);
            // A later batch with this key is in flight, and may be visible before it
            // ends: the entry stays pending until then.
            let Some(namespace) = namespace.filter(|_| !shard.is_pending(*hash)) else { continue };
            let cache_key = CacheKey { namespace: of_family(namespace, *family), key };
            match value.filter(|_| applied) {
                Some(value) => {
                    shard.records.put(cache_key, value, kept_at_least(*family, value), version)
                }
                // The record is deleted, or its value is not known.
                None => shard.records.remove(cache_key),
            }
        }
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[(hash >> 40) as usize % SHARDS]
    }
}

impl CacheScope {
    fn namespace(&self) -> u64 {
        self.namespace.load(Ordering::Acquire)
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

/// The bytes of a written record that are kept at least.
fn kept_at_least(family: Family, value: &[u8]) -> usize {
    let is_small = family == Family::Head && value.len() <= WHOLE_HEAD_BYTES_MAX;
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
        let cache = RowCache::new(1 << 20);
        let scope = cache.new_scope();
        let before = cache.version();
        let new = cache.begin_write(&scope, &put("new"));
        assert_eq!(cache.get(&scope, Family::Head, KEY, cache.version()), None);
        cache.end_write(&scope, &put("new"), new, true);
        assert_eq!(
            cache.get(&scope, Family::Head, KEY, before),
            None,
            "a view of before the batch must not see it"
        );
        assert_eq!(
            cache.get(&scope, Family::Head, KEY, cache.version()),
            Some(Bytes::from_static(b"new"))
        );
    }

    #[test]
    fn a_view_overtaken_by_a_batch_caches_nothing() {
        let cache = RowCache::new(1 << 20);
        let scope = cache.new_scope();
        let at = cache.version();
        let new = cache.begin_write(&scope, &put("new"));
        cache.insert(&scope, Family::Head, KEY, &Bytes::from_static(b"old"), at);
        cache.end_write(&scope, &put("new"), new, false);
        cache.insert(&scope, Family::Head, KEY, &Bytes::from_static(b"old"), at);
        assert_eq!(cache.get(&scope, Family::Head, KEY, cache.version()), None);
        cache.insert(&scope, Family::Head, KEY, &Bytes::from_static(b"new"), cache.version());
        assert_eq!(
            cache.get(&scope, Family::Head, KEY, cache.version()),
            Some(Bytes::from_static(b"new"))
        );
    }

    #[test]
    fn a_key_is_pending_until_its_last_batch_has_ended() {
        let cache = RowCache::new(1 << 20);
        let scope = cache.new_scope();
        let first = cache.begin_write(&scope, &put("first"));
        let second = cache.begin_write(&scope, &put("second"));
        cache.end_write(&scope, &put("first"), first, true);
        cache.insert(&scope, Family::Head, KEY, &Bytes::from_static(b"first"), cache.version());
        assert_eq!(
            cache.get(&scope, Family::Head, KEY, cache.version()),
            None,
            "the second may be visible already"
        );
        cache.end_write(&scope, &put("second"), second, true);
        assert_eq!(
            cache.get(&scope, Family::Head, KEY, cache.version()),
            Some(Bytes::from_static(b"second"))
        );
    }

    #[test]
    fn writes_cache_metadata_and_reads_whole_records() {
        let head = |value: &[u8]| {
            let body = Body::String(Bytes::copy_from_slice(value));
            Head { header: Header { timetag: 7, expires_at_ms: Some(9) }, body }.encode()
        };
        let (small, large) =
            (head(&[b's'; WHOLE_HEAD_BYTES_MAX - 18]), head(&[b'l'; WHOLE_HEAD_BYTES_MAX]));
        let cell = Cell {
            header: Header { timetag: 8, expires_at_ms: None },
            value: Bytes::from_static(b"value"),
        }
        .encode();
        let cache = RowCache::new(1 << 20);
        let scope = cache.new_scope();
        let write = |family: Family, value: Option<&Bytes>| {
            let mut edits = Edits::default();
            let key = Bytes::from_static(KEY);
            match value {
                Some(value) => edits.put(family, key, value.clone()),
                None => edits.delete(family, key),
            }
            let ticket = cache.begin_write(&scope, &edits);
            assert_eq!(cache.metadata(&scope, family, KEY, cache.version()), None, "shut");
            cache.end_write(&scope, &edits, ticket, true);
        };
        let get = || cache.get(&scope, Family::Head, KEY, cache.version());
        let metadata = |family: Family| cache.metadata(&scope, family, KEY, cache.version());
        write(Family::Head, Some(&small));
        assert_eq!((get(), metadata(Family::Head)), (Some(small.clone()), Some(small)));
        write(Family::Head, Some(&large));
        assert_eq!((get(), metadata(Family::Head)), (None, Some(large.slice(..18))));
        cache.insert(&scope, Family::Head, KEY, &large, cache.version());
        assert_eq!((get(), metadata(Family::Head)), (Some(large.clone()), Some(large)));
        assert_eq!(metadata(Family::Cell), None, "a cell is no head");
        write(Family::Cell, Some(&cell));
        let whole = || cache.get(&scope, Family::Cell, KEY, cache.version());
        assert_eq!((whole(), metadata(Family::Cell)), (None, Some(cell.slice(..9))));
        cache.insert(&scope, Family::Cell, KEY, &cell, cache.version());
        assert_eq!((whole(), metadata(Family::Cell)), (Some(cell.clone()), Some(cell.clone())));
        write(Family::Cell, None);
        assert_eq!(metadata(Family::Cell), None);
        assert!(get().is_some(), "a head is no cell");
        cache.invalidate_all(&scope);
        assert_eq!((get(), metadata(Family::Head)), (None, None));
    }

    #[test]
    fn a_clear_invalidates_its_replicas_records() {
        let cache = RowCache::new(1 << 20);
        let (scope, other) = (cache.new_scope(), cache.new_scope());
        for scope in [&scope, &other] {
            cache.insert(scope, Family::Head, KEY, &Bytes::from_static(b"old"), cache.version());
        }
        let mut clear = Edits::default();
        clear.clear_rows();
        let at = cache.version();
        let clearing = cache.begin_write(&scope, &clear);
        cache.insert(&scope, Family::Head, KEY, &Bytes::from_static(b"old"), at);
        cache.end_write(&scope, &clear, clearing, true);
        cache.insert(&scope, Family::Head, KEY, &Bytes::from_static(b"old"), at);
        assert_eq!(cache.get(&scope, Family::Head, KEY, cache.version()), None);
        assert!(cache.get(&other, Family::Head, KEY, cache.version()).is_some());
    }

    #[test]
    fn a_batch_behind_a_clear_stays_pending_until_it_ends() {
        let cache = RowCache::new(1 << 20);
        let scope = cache.new_scope();
        let mut clear = Edits::default();
        clear.clear_rows();
        let clearing = cache.begin_write(&scope, &clear);
        let new = cache.begin_write(&scope, &put("new"));
        cache.end_write(&scope, &clear, clearing, true);
        cache.insert(&scope, Family::Head, KEY, &Bytes::from_static(b"old"), cache.version());
        assert_eq!(cache.get(&scope, Family::Head, KEY, cache.version()), None);
        cache.end_write(&scope, &put("new"), new, true);
        assert_eq!(
            cache.get(&scope, Family::Head, KEY, cache.version()),
            Some(Bytes::from_static(b"new"))
        );
        let old = cache.begin_write(&scope, &put("old"));
        cache.invalidate_all(&scope);
        assert_eq!(cache.get(&scope, Family::Head, KEY, cache.version()), None);
        cache.end_write(&scope, &put("old"), old, true);
        assert_eq!(
            cache.get(&scope, Family::Head, KEY, cache.version()),
            None,
            "others may have led since it was applied"
        );
    }
}
