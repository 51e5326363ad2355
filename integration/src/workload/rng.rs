//! A seeded random number generator, so that a run can be repeated.

use std::time::UNIX_EPOCH;

/// A small seeded generator (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

/// The seed of this run: `BRIDLE_SEED`, or a new one. Printed, so that the run can be
/// repeated.
pub fn seed() -> u64 {
    let now = || UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64;
    let seed =
        std::env::var("BRIDLE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(now);
    eprintln!("BRIDLE_SEED={seed}");
    seed
}

impl Rng {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// An independent generator, seeded from this one.
    pub fn another(&mut self) -> Rng {
        Rng(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n` - 1.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A random item.
    ///
    /// # Panics
    /// When there is no item.
    pub fn one_of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}
