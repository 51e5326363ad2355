//! Random numbers that follow from a seed, so that ops and commands stay pure.

use std::collections::BTreeSet;

/// splitmix64 (Steele, Lea, Flood 2014): random enough for draws, and the same on every
/// machine for the same seed.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `n`, by multiplication (Lemire): the bias is n / 2^64.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(n)) >> 64) as u64
    }

    /// `many` distinct numbers below `n` (`many` is at most that), by Floyd's method, then
    /// shuffled.
    pub fn distinct(&mut self, many: u64, n: u64) -> Vec<u64> {
        let mut seen = BTreeSet::new();
        let mut drawn = Vec::new();
        for top in n - many..n {
            let candidate = self.below(top + 1);
            let pick = if seen.insert(candidate) { candidate } else { top };
            seen.insert(pick);
            drawn.push(pick);
        }
        for i in (1..drawn.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            drawn.swap(i, j);
        }
        drawn
    }
}
