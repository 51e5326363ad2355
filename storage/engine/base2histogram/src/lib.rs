//! A stand-in for the crate `base2histogram`, which openraft asks for. It counts nothing.
//!
//! openraft counts the sizes of its batches in it, and reads the counts only with its feature `runtime-stats`, which is off here. The original
//! precomputes tables for sixteen precisions when the first group starts: 26 MB that are written once and never looked at again, half of what an
//! idle Bridle took. And each group counts a dozen figures at each of its steps, in memory that is cold by then when there are hundreds of groups:
//! a twentieth of what idle groups use. This one has the same API, as far as openraft uses it.
//!
//! When openraft is upgraded: see whether it still does that, and if not, delete this and the `[patch]`. An openraft that uses more of the
//! API than there is here does not compile.

use std::fmt;
use std::marker::PhantomData;

/// Takes values, and forgets them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()>(PhantomData<T>);

/// A percentile: nothing is recorded, so all are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// Without values.
    pub fn new() -> Self {
        Self(PhantomData)
    }

    /// Forgets a value.
    pub fn record(&mut self, _value: u64) {}

    /// Forgets a value `count` times.
    pub fn record_n(&mut self, _value: u64, _count: u64) {}

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing was counted")
    }
}

/// Several histograms; shows as nothing.
#[derive(Debug, Clone)]
pub struct AsciiChart<T = ()>(PhantomData<T>);

impl<T> Default for AsciiChart<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> AsciiChart<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self(PhantomData)
    }

    /// With one more.
    #[allow(clippy::should_implement_trait)]
    pub fn add(self, _name: &str, _histogram: Histogram<T>) -> Self {
        self
    }

    /// To be printed.
    pub fn detailed(&self) -> &Self {
        self
    }
}

impl<T> fmt::Display for AsciiChart<T> {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
