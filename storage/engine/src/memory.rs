//! The process's allocator: jemalloc, for Rust and RocksDB alike, because it returns
//! memory to the system and reports its use.

use std::time::Duration;

use tikv_jemalloc_ctl::{arenas, epoch, raw, stats};
pub use tikv_jemallocator::Jemalloc;

/// The allocator's name for INFO.
pub const ALLOCATOR: &str = "jemalloc";

/// The allocator's statistics, bytes. All are 0 in a process that does not use it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AllocatorStats {
    /// Allocated and not freed.
    pub allocated: u64,
    /// In pages that are at least partly in use.
    pub active: u64,
    /// In pages of physical memory.
    pub resident: u64,
}

/// An error of the allocator.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct AllocatorError(tikv_jemalloc_ctl::Error);

/// The present statistics.
pub fn stats() -> AllocatorStats {
    // Without this the statistics are those of the last call.
    let _ = epoch::advance();
    let bytes = |read: tikv_jemalloc_ctl::Result<usize>| read.map_or(0, |bytes| bytes as u64);
    AllocatorStats {
        allocated: bytes(stats::allocated::read()),
        active: bytes(stats::active::read()),
        resident: bytes(stats::resident::read()),
    }
}

/// Sets the time after which freed pages are returned to the system, in all of the
/// allocator's arenas, including future ones.
///
/// # Errors
/// The allocator's error.
pub fn set_decay_time(time: Duration) -> Result<(), AllocatorError> {
    let ms = time.as_millis() as isize;
    // SAFETY: these names take, and give, values of these types (jemalloc's manual).
    let set = |name: String| unsafe { raw::write(name.as_bytes(), ms) };
    let is_there = |name: String| unsafe { raw::read::<bool>(name.as_bytes()) };
    let set_all = || {
        set("arenas.dirty_decay_ms\0".to_owned())?;
        for arena in 0..arenas::narenas::read()? {
            if is_there(format!("arena.{arena}.initialized\0"))? {
                set(format!("arena.{arena}.dirty_decay_ms\0"))?;
            }
        }
        Ok(())
    };
    set_all().map_err(AllocatorError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_pages_stay_for_as_long_as_they_are_told() {
        set_decay_time(Duration::from_millis(321)).unwrap();
        for name in [&b"arenas.dirty_decay_ms\0"[..], b"arena.0.dirty_decay_ms\0"] {
            // SAFETY: the values are of this type.
            assert_eq!(unsafe { raw::read::<isize>(name) }, Ok(321));
        }
    }
}
