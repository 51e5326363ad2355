//! A small stand-in for the crate `base2histogram`, which openraft asks for.
//!
//! openraft counts the sizes of its replication batches in it, and reads the counts only with its feature `runtime-stats`, which is off here. The original
//! precomputes tables for sixteen precisions when the first group starts: 26 MB that are written once and never looked at again, half of what an
//! idle Bridle took. This one has the same API, as far as openraft uses it, four buckets per power of two, and no tables.
//!
//! When openraft is upgraded: see whether the original still does that (`LOG_SCALES` in its `log_scale.rs`), and if not, delete this and the
//! `[patch]`. An openraft that uses more of the API than there is here does not compile.

use std::fmt;
use std::marker::PhantomData;

/// log2 of the buckets per power of two.
const PART_BITS: u32 = 2;
const PARTS: usize = 1 << PART_BITS;
/// Values below this have a bucket each.
const EXACT: u64 = 1 << (PART_BITS + 1);
const BUCKETS: usize = EXACT as usize + (64 - PART_BITS as usize - 1) * PARTS;

/// Counts of values, by size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    data: PhantomData<T>,
}

/// What most values are below. Each is the least value of the bucket that it falls into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

fn bucket_of(value: u64) -> usize {
    if value < EXACT {
        return value as usize;
    }
    let octave = 63 - value.leading_zeros();
    let part = (value >> (octave - PART_BITS)) as usize - PARTS;
    EXACT as usize + (octave - PART_BITS - 1) as usize * PARTS + part
}

fn least_of(bucket: usize) -> u64 {
    if bucket < EXACT as usize {
        return bucket as u64;
    }
    let (octave, part) = ((bucket - EXACT as usize) / PARTS, (bucket - EXACT as usize) % PARTS);
    ((PARTS + part) as u64) << (octave + 1)
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// Without values. Takes no memory before the first.
    pub fn new() -> Self {
        Self { counts: Vec::new(), data: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
        self.counts[bucket_of(value)] += count;
    }

    fn percentile(&self, samples: u64, permille: u64) -> u64 {
        let rank = (samples * permille).div_ceil(1000).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map_or(0, least_of)
    }

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.counts.iter().sum();
        let at = |permille| self.percentile(samples, permille);
        PercentileStats {
            samples,
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "[samples: {}, P0.1: {}, P1: {}, P5: {}, P10: {}, P50: {}, P90: {}, P99: {}, P99.9: {}]",
            self.samples, self.p0_1, self.p1, self.p5, self.p10, self.p50, self.p90, self.p99, self.p99_9
        )
    }
}

/// Several histograms under names; shown as a line of percentiles each.
#[derive(Debug, Clone)]
pub struct AsciiChart<T = ()> {
    series: Vec<(String, Histogram<T>)>,
}

impl<T> Default for AsciiChart<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> AsciiChart<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self { series: Vec::new() }
    }

    /// With one more.
    #[allow(clippy::should_implement_trait)]
    pub fn add(mut self, name: &str, histogram: Histogram<T>) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }

    /// To be printed.
    pub fn detailed(&self) -> &Self {
        self
    }
}

impl<T> fmt::Display for AsciiChart<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.series.iter().try_for_each(|(name, histogram)| writeln!(f, "{name}: {}", histogram.percentile_stats()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another_without_gaps() {
        for bucket in 0..BUCKETS - 1 {
            let (least, next) = (least_of(bucket), least_of(bucket + 1));
            assert!(least < next);
            assert_eq!((bucket_of(least), bucket_of(next - 1)), (bucket, bucket));
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_within_a_quarter() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        (1..=1000).for_each(|value| histogram.record(value));
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 1000);
        assert!((400..=500).contains(&stats.p50) && (792..=990).contains(&stats.p99), "{stats}");
    }
}
