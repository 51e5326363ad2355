//! Histograms of constant size that record in a few nanoseconds.
//!
//! Buckets are octaves split into eight equal parts, as in HdrHistogram, so values are
//! known to within an eighth. Each bucket is an atomic; recording is one relaxed
//! addition. Nothing is allocated after the start.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Sub-buckets of an octave, as a power of two.
const SUB_BUCKET_BITS: u32 = 3;
const PARTS: usize = 1 << SUB_BUCKET_BITS;

/// Counts of values from `2^LOW` to `2^(LOW + octaves)`; smaller and larger values count
/// in the first and last bucket.
#[derive(Debug)]
pub struct Histogram {
    low_bits: u32,
    buckets: Box<[AtomicU64]>,
}

impl Histogram {
    /// Buckets for `2^low_bits ..= 2^(low_bits + octaves)`. `low_bits` is at least 3.
    pub fn new(low_bits: u32, octaves: usize) -> Histogram {
        assert!(low_bits >= SUB_BUCKET_BITS, "an octave has {PARTS} parts");
        Histogram { low_bits, buckets: (0..octaves * PARTS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Counts `n` values of `value`.
    pub fn record(&self, value: u64, n: u64) {
        self.buckets[self.bucket(value)].fetch_add(n, Relaxed);
    }

    /// Clears the histogram.
    pub fn reset(&self) {
        for bucket in &self.buckets {
            bucket.store(0, Relaxed);
        }
    }

    /// Number of values below `2^bits`.
    pub fn below(&self, bits: u32) -> u64 {
        let end = (bits.saturating_sub(self.low_bits) as usize * PARTS).min(self.buckets.len());
        self.buckets[..end].iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    /// The upper bound of the bucket that contains the `percentile` (0 to 100); 0 when
    /// there are no values.
    pub fn percentile(&self, percentile: f64) -> u64 {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let wanted = ((percentile / 100.0 * total as f64).ceil() as u64).clamp(1, total.max(1));
        let mut sum = 0;
        let found = counts.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        found.map_or(0, |bucket| self.start(bucket + 1) - 1)
    }

    /// Octaves that hold values: (end of the octave as a power of two, number of values
    /// below it).
    pub fn octaves(&self) -> Vec<(u32, u64)> {
        let mut sum = 0;
        let mut found = Vec::new();
        for (octave, parts) in self.buckets.chunks(PARTS).enumerate() {
            let here: u64 = parts.iter().map(|part| part.load(Relaxed)).sum();
            sum += here;
            if here > 0 {
                found.push((self.low_bits + octave as u32 + 1, sum));
            }
        }
        found
    }

    fn bucket(&self, value: u64) -> usize {
        let bits = value.max(1).ilog2();
        if bits < self.low_bits {
            return 0;
        }
        let part = (value >> (bits - SUB_BUCKET_BITS)) as usize & (PARTS - 1);
        ((bits - self.low_bits) as usize * PARTS + part).min(self.buckets.len() - 1)
    }

    /// The first value of a bucket.
    fn start(&self, bucket: usize) -> u64 {
        let (octave, part) = ((bucket / PARTS) as u32, (bucket % PARTS) as u64);
        (PARTS as u64 + part) << (self.low_bits + octave - SUB_BUCKET_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_every_value_in_order() {
        let histogram = Histogram::new(7, 29);
        let mut last = 0;
        for value in (0..4096u64).chain(
            (12..36).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + (1 << (bits - 2))]),
        ) {
            let bucket = histogram.bucket(value);
            assert!(bucket >= last, "{value}");
            if value >= 128 {
                assert!(
                    (histogram.start(bucket)..histogram.start(bucket + 1)).contains(&value),
                    "{value}"
                );
            }
            last = bucket;
        }
        assert_eq!(histogram.bucket(u64::MAX), 29 * PARTS - 1);
    }

    #[test]
    fn percentiles_are_within_an_eighth() {
        let histogram = Histogram::new(7, 29);
        assert_eq!(histogram.percentile(50.0), 0);
        for micros in 1..=1000u64 {
            histogram.record(micros * 1000, 1);
        }
        for (percentile, exact) in
            [(0.0, 1_000u64), (50.0, 500_000), (99.0, 990_000), (99.9, 999_000), (100.0, 1_000_000)]
        {
            let found = histogram.percentile(percentile);
            assert!(found >= exact && found <= exact + exact / 8 + 1, "p{percentile}: {found}");
        }
    }

    #[test]
    fn octaves_are_cumulative_and_skip_what_is_empty() {
        let histogram = Histogram::new(7, 29);
        histogram.record(1_000, 2);
        histogram.record(1_500, 3);
        histogram.record(1 << 20, 1);
        assert_eq!(histogram.octaves(), vec![(10, 2), (11, 5), (21, 6)]);
        assert_eq!(
            (histogram.below(10), histogram.below(20), histogram.below(64), histogram.count()),
            (2, 5, 6, 6)
        );
        histogram.reset();
        assert_eq!((histogram.octaves(), histogram.count()), (vec![], 0));
    }
}
