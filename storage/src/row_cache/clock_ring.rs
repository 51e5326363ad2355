//! A ring of bytes with small records side by side, evicted by CLOCK (second chance). A
//! record takes 36 bytes besides its key and value, and no allocation.
//!
//! New records are written at the head. The oldest, at the tail, make room for them; one
//! that was read since it was written or promoted is promoted to the head instead. So
//! records in use stay, and a record that was read once only goes first.
//!
//! # Layout
//! ```text
//! record   slot u16, in units of 8 bytes | key length u16 | value length u16 | state u16 |
//!          next u32 | whole u16 | 2 bytes unused | namespace u64 | since u64 |
//!          key | value | up to 7 bytes unused
//! ```
//! In the host's byte order. `state` is a [`SlotState`]; a vacant slot may be of 8 bytes.
//! `next` is the number of the next record with the same bucket: its place in units of 8
//! bytes, and 1. `whole` is 0 when only the value's first part is kept.
//!
//! # Invariants
//! - Slots lie without gaps from tail to head; no record crosses the ring's end
//!   (`a_lookup_finds_the_last_put` checks both after each step).
//! - A record is in the chain of its bucket if and only if it is not vacant.

use super::Version;

const UNIT: usize = 8;
const RECORD_BYTES: usize = 32;
/// Keys and values that fit the lengths, and leave room for many in a ring.
const KEY_BYTES_MAX: usize = 4 << 10;
const VALUE_BYTES_MAX: usize = 16 << 10;
/// A record may take this part of the ring.
const RECORD_FRACTION: usize = 8;
/// Bytes of a typical record: there are as many buckets as such records.
const TYPICAL_RECORD_BYTES: usize = 128;
/// Records that are promoted at most before one is evicted.
const PROMOTIONS_MAX: usize = 8;
/// The number of a hash's highest bits that choose the bucket before any others do.
const BUCKET_BITS: u32 = 18;
/// The end of a chain. Zero, so that buckets that were never used take no memory: the
/// system gives it when it is first written to.
const NONE: u32 = 0;

const KEY_LEN: usize = 2;
const VALUE_LEN: usize = 4;
const STATE: usize = 6;
const NEXT: usize = 8;
const WHOLE: usize = 12;
const NAMESPACE: usize = 16;
const SINCE: usize = 24;

/// The state of a slot, which decides over an oldest record.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum SlotState {
    Vacant = 0,
    /// Not read since it was written or moved.
    Unreferenced = 1,
    Referenced = 2,
}

/// Under which a record is found.
#[derive(Clone, Copy)]
pub(super) struct CacheKey<'a> {
    pub(super) namespace: u64,
    pub(super) key: &'a [u8],
}

/// A record as it is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CachedRecord<'a> {
    /// The version since which it is known to hold.
    pub(super) since: Version,
    pub(super) value: &'a [u8],
    /// All of the value is there, not only its first part.
    pub(super) is_whole: bool,
}

/// The number of the record at this place.
fn number(at: usize) -> u32 {
    (at / UNIT + 1) as u32
}

/// The place of the record with this number.
fn place_of(number: u32) -> usize {
    (number as usize - 1) * UNIT
}

/// See the module.
pub(super) struct ClockRing {
    bytes: Box<[u8]>,
    /// The number of each chain's first record; a power of two.
    buckets: Box<[u32]>,
    head: usize,
    tail: usize,
    used: usize,
    /// Chooses a record's bucket.
    hash: fn(namespace: u64, key: &[u8]) -> u64,
}

impl ClockRing {
    /// A ring that takes at most `bytes` bytes, its buckets included.
    pub(super) fn new(bytes: usize, hash: fn(namespace: u64, key: &[u8]) -> u64) -> ClockRing {
        let buckets = (bytes / TYPICAL_RECORD_BYTES + 1).next_power_of_two();
        let room =
            bytes.saturating_sub(buckets * size_of::<u32>()).min((u32::MAX - 1) as usize * UNIT)
                / UNIT
                * UNIT;
        ClockRing {
            bytes: vec![0; room].into_boxed_slice(),
            buckets: vec![NONE; buckets.max(1)].into_boxed_slice(),
            head: 0,
            tail: 0,
            used: 0,
            hash,
        }
    }

    /// Bytes that records take.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// A record, if anything of it is kept.
    pub(super) fn get(&mut self, cache_key: CacheKey<'_>) -> Option<CachedRecord<'_>> {
        let at = self.find(cache_key)?;
        self.set_state(at, SlotState::Referenced);
        Some(CachedRecord {
            since: self.u64(at + SINCE),
            value: self.value(at),
            is_whole: self.u16(at + WHOLE) != 0,
        })
    }

    /// Sets a record. All of its value is kept if the room that the record has is enough
    /// for that, else the first `least` bytes; nothing if they are too many.
    pub(super) fn put(
        &mut self,
        cache_key: CacheKey<'_>,
        value: &[u8],
        least: usize,
        since: Version,
    ) {
        let slot_of =
            |kept: usize| (RECORD_BYTES + cache_key.key.len() + kept).next_multiple_of(UNIT);
        if let Some(at) = self.find(cache_key) {
            if let Some(kept) =
                [value.len(), least].into_iter().find(|kept| slot_of(*kept) <= self.slot(at))
            {
                return self.write_record(at, cache_key, value, kept, since);
            }
            // The old value goes even if the new one does not fit: it would be a stale
            // read.
            self.unlink(at);
        }
        let slot = slot_of(least);
        if cache_key.key.len() <= KEY_BYTES_MAX
            && least <= VALUE_BYTES_MAX
            && slot <= self.bytes.len() / RECORD_FRACTION
        {
            self.make_room(slot);
            let at = self.append(slot);
            self.write_record(at, cache_key, value, least, since);
            self.link(at);
        }
    }

    /// Writes a record, of its value the first bytes.
    fn write_record(
        &mut self,
        at: usize,
        cache_key: CacheKey<'_>,
        value: &[u8],
        kept: usize,
        since: Version,
    ) {
        self.set_u16(at + KEY_LEN, cache_key.key.len());
        self.set_u16(at + VALUE_LEN, kept);
        self.set_u16(at + WHOLE, usize::from(kept == value.len()));
        self.set_u64(at + NAMESPACE, cache_key.namespace);
        self.set_u64(at + SINCE, since);
        self.write(at + RECORD_BYTES, cache_key.key);
        self.write(at + RECORD_BYTES + cache_key.key.len(), &value[..kept]);
    }

    /// Forgets a record.
    pub(super) fn remove(&mut self, cache_key: CacheKey<'_>) {
        if let Some(at) = self.find(cache_key) {
            self.unlink(at);
        }
    }

    fn find(&self, cache_key: CacheKey<'_>) -> Option<usize> {
        let mut next = self.buckets[self.bucket(cache_key)];
        while next != NONE {
            let at = place_of(next);
            if self.u64(at + NAMESPACE) == cache_key.namespace && self.key(at) == cache_key.key {
                return Some(at);
            }
            next = self.u32(at + NEXT);
        }
        None
    }

    /// Evicts the oldest records until a slot fits at the head.
    fn make_room(&mut self, slot: usize) {
        let mut promotions = PROMOTIONS_MAX;
        loop {
            let to_end = self.bytes.len() - self.head;
            let needed = if to_end < slot { to_end + slot } else { slot };
            if self.bytes.len() - self.used < needed {
                self.evict_or_promote(&mut promotions);
                continue;
            }
            self.skip_end(slot);
            return;
        }
    }

    /// Goes on at the ring's beginning if a slot does not fit before its end; there is
    /// room for both.
    fn skip_end(&mut self, slot: usize) {
        let to_end = self.bytes.len() - self.head;
        if to_end < slot {
            // The filler leaves no gap between slots, and the tail passes it like a
            // record.
            let filler = self.append(to_end);
            self.set_state(filler, SlotState::Vacant);
        }
    }

    /// Moves the oldest record to the head, or forgets it.
    fn evict_or_promote(&mut self, promotions: &mut usize) {
        let (at, slot) = (self.tail, self.slot(self.tail));
        let is_used = self.state(at) == SlotState::Referenced;
        if self.state(at) != SlotState::Vacant {
            self.unlink(at);
        }
        self.tail = (at + slot) % self.bytes.len();
        self.used -= slot;
        // The bound on promotions makes room even when all records are in use.
        if is_used && *promotions > 0 {
            *promotions -= 1;
            // The room that it leaves is enough for it, with what lies before it, at the
            // ring's end too.
            self.skip_end(slot);
            let to = self.head;
            self.bytes.copy_within(at..at + slot, to);
            self.append(slot);
            self.link(to);
        }
    }

    /// Takes a slot at the head that is known to be there.
    fn append(&mut self, slot: usize) -> usize {
        let at = self.head;
        self.set_u16(at, slot / UNIT);
        self.head = (at + slot) % self.bytes.len();
        self.used += slot;
        at
    }

    fn link(&mut self, at: usize) {
        let bucket = self.bucket(self.cache_key(at));
        self.set_state(at, SlotState::Unreferenced);
        self.set_u32(at + NEXT, self.buckets[bucket]);
        self.buckets[bucket] = number(at);
    }

    /// Takes a record out of its chain; its slot stays until it is the oldest.
    fn unlink(&mut self, at: usize) {
        let bucket = self.bucket(self.cache_key(at));
        let (unit, next) = (number(at), self.u32(at + NEXT));
        self.set_state(at, SlotState::Vacant);
        if self.buckets[bucket] == unit {
            self.buckets[bucket] = next;
            return;
        }
        let mut before = self.buckets[bucket];
        while before != NONE {
            let place = place_of(before) + NEXT;
            before = self.u32(place);
            if before == unit {
                return self.set_u32(place, next);
            }
        }
    }

    fn bucket(&self, cache_key: CacheKey<'_>) -> usize {
        self.bucket_of((self.hash)(cache_key.namespace, cache_key.key))
    }

    /// Takes the highest bits first: bits below them have chosen the ring.
    fn bucket_of(&self, hash: u64) -> usize {
        hash.rotate_left(BUCKET_BITS) as usize & (self.buckets.len() - 1)
    }

    /// Fetches ahead the bucket of this hash, which is read next.
    pub(super) fn prefetch_bucket(&self, hash: u64) {
        prefetch(&self.buckets[self.bucket_of(hash)]);
    }

    /// Fetches ahead the first record with this hash, which is read next: its beginning
    /// and, most often, its key and value.
    pub(super) fn prefetch_record(&self, hash: u64) {
        let first = self.buckets[self.bucket_of(hash)];
        if first == NONE {
            return;
        }
        let at = place_of(first);
        [at, at + 64, at + 128].into_iter().filter_map(|at| self.bytes.get(at)).for_each(prefetch);
    }

    fn slot(&self, at: usize) -> usize {
        self.u16(at) * UNIT
    }

    fn state(&self, at: usize) -> SlotState {
        match self.u16(at + STATE) {
            0 => SlotState::Vacant,
            1 => SlotState::Unreferenced,
            _ => SlotState::Referenced,
        }
    }

    fn set_state(&mut self, at: usize, state: SlotState) {
        self.set_u16(at + STATE, state as usize);
    }

    fn cache_key(&self, at: usize) -> CacheKey<'_> {
        CacheKey { namespace: self.u64(at + NAMESPACE), key: self.key(at) }
    }

    fn key(&self, at: usize) -> &[u8] {
        &self.bytes[at + RECORD_BYTES..][..self.u16(at + KEY_LEN)]
    }

    fn value(&self, at: usize) -> &[u8] {
        &self.bytes[at + RECORD_BYTES + self.u16(at + KEY_LEN)..][..self.u16(at + VALUE_LEN)]
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        *self.bytes[at..].first_chunk().expect("numbers lie within the ring")
    }

    fn u16(&self, at: usize) -> usize {
        usize::from(u16::from_ne_bytes(self.array(at)))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.array(at))
    }

    fn set_u16(&mut self, at: usize, number: usize) {
        self.write(at, &(number as u16).to_ne_bytes());
    }

    fn set_u32(&mut self, at: usize, number: u32) {
        self.write(at, &number.to_ne_bytes());
    }

    fn set_u64(&mut self, at: usize, number: u64) {
        self.write(at, &number.to_ne_bytes());
    }
}

/// Hints to the processor that this is read soon.
fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; nothing is read or written.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(place).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Few values, so that chains are long.
    fn hash(namespace: u64, key: &[u8]) -> u64 {
        namespace + key.first().map_or(0, |byte| u64::from(*byte))
    }

    fn cache_key(namespace: u64, key: &[u8]) -> CacheKey<'_> {
        CacheKey { namespace, key }
    }

    impl ClockRing {
        /// Every invariant of the module; gives how many records there are.
        fn check(&self) -> usize {
            let (mut at, mut left, mut records) = (self.tail, self.used, 0);
            while left > 0 {
                let slot = self.slot(at);
                assert!(slot > 0 && slot <= left && at + slot <= self.bytes.len());
                if self.state(at) != SlotState::Vacant {
                    records += 1;
                    assert_eq!(self.find(self.cache_key(at)), Some(at));
                }
                (at, left) = ((at + slot) % self.bytes.len(), left - slot);
            }
            assert_eq!(at, self.head);
            let some = |next: u32| (next != NONE).then_some(next);
            let chain = |first: u32| {
                std::iter::successors(some(first), |next| some(self.u32(place_of(*next) + NEXT)))
            };
            assert_eq!(
                self.buckets.iter().map(|first| chain(*first).count()).sum::<usize>(),
                records
            );
            records
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A key, its value's length, and how much of it is to be kept at least.
        Put(Vec<u8>, usize, usize),
        Remove(Vec<u8>),
        Get(Vec<u8>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = || prop::collection::vec(0u8..6, 0..4);
        let step = prop_oneof![
            3 => (key(), 0usize..400).prop_map(|(key, len)| Step::Put(key, len, len)),
            3 => (key(), 0usize..400, 0usize..30)
                .prop_map(|(key, len, least)| Step::Put(key, len, least.min(len))),
            1 => key().prop_map(Step::Remove),
            3 => key().prop_map(Step::Get),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn a_lookup_finds_the_last_put(steps in steps(), bytes in 0usize..6000) {
            let mut ring = ClockRing::new(bytes, hash);
            let mut model = HashMap::new();
            for (version, step) in steps.into_iter().enumerate() {
                let version = version as u64;
                match step {
                    Step::Put(key, len, least) => {
                        let byte = |at| (version as usize + at) as u8;
                        let value: Vec<u8> = (0..len).map(byte).collect();
                        ring.put(cache_key(7, &key), &value, least, version);
                        let kept = ring.get(cache_key(7, &key)).map(|kept| kept.value.len());
                        prop_assert!(kept.is_none_or(|kept| kept == len || kept == least));
                        model.insert(key, (version, value));
                    }
                    Step::Remove(key) => {
                        ring.remove(cache_key(7, &key));
                        model.remove(&key);
                        prop_assert!(ring.get(cache_key(7, &key)).is_none());
                    }
                    Step::Get(key) => {
                        if let Some(kept) = ring.get(cache_key(7, &key)) {
                            let (since, value) = &model[&key];
                            let is_whole = kept.value.len() == value.len();
                            prop_assert_eq!((kept.since, kept.is_whole), (*since, is_whole));
                            prop_assert!(value.starts_with(kept.value));
                        }
                        prop_assert!(ring.get(cache_key(8, &key)).is_none());
                    }
                }
                ring.check();
            }
        }
    }

    #[test]
    fn records_that_are_read_stay() {
        // The ring's end falls into records of all sizes.
        for (length, most) in (40..140).zip((64 << 10..).step_by(8)) {
            let mut ring = ClockRing::new(most, hash);
            ring.put(cache_key(1, b"read"), &vec![1; length], length, 0);
            for n in 0..3_000_u32 {
                ring.put(cache_key(1, &n.to_be_bytes()), &[0; 64], 64, 0);
                assert!(
                    ring.get(cache_key(1, b"read")).is_some(),
                    "{length} bytes, a ring of {most}"
                );
            }
            assert!(ring.get(cache_key(1, &0_u32.to_be_bytes())).is_none());
            assert!(ring.check() > 500, "records of 104 bytes in 64 KiB");
        }
    }

    #[test]
    fn a_record_that_has_the_room_is_kept_whole() {
        let mut ring = ClockRing::new(1 << 20, hash);
        let key = cache_key(1, b"key");
        let kept =
            |value: &'static [u8], is_whole: bool| Some(CachedRecord { since: 3, value, is_whole });
        ring.put(key, b"first and more than eight bytes", 5, 3);
        assert_eq!(ring.get(key), kept(b"first", false));
        ring.put(key, b"again", 2, 3);
        assert_eq!(ring.get(key), kept(b"again", true));
        ring.put(key, b"read: and more than eight bytes", 31, 3);
        assert_eq!(ring.get(key), kept(b"read: and more than eight bytes", true));
        ring.put(key, b"last, and more than eight bytes", 5, 3);
        assert_eq!(ring.get(key), kept(b"last, and more than eight bytes", true));
        assert_eq!(ring.check(), 1);
    }

    #[test]
    fn too_large_is_not_kept_and_the_old_value_goes() {
        let mut ring = ClockRing::new(1 << 20, hash);
        for large in [VALUE_BYTES_MAX + 1, 200 << 10] {
            ring.put(cache_key(1, b"key"), b"small", 5, 0);
            ring.put(cache_key(1, b"key"), &vec![0; large], large, 0);
            assert!(ring.get(cache_key(1, b"key")).is_none());
        }
        let long = vec![b'k'; KEY_BYTES_MAX + 1];
        ring.put(cache_key(1, &long), b"", 0, 0);
        assert_eq!(ring.check(), 0);
        ring.put(cache_key(1, &long[1..]), &[1; VALUE_BYTES_MAX], VALUE_BYTES_MAX, 0);
        assert_eq!(ring.check(), 1);
    }
}
