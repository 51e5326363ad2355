//! The process's allocator: jemalloc, for Rust and RocksDB alike, because it gives memory back and says where it is.

use tikv_jemalloc_ctl::{epoch, stats};
pub use tikv_jemallocator::Jemalloc;

/// The allocator's name, as INFO tells it.
pub const ALLOCATOR: &str = "jemalloc";

/// Bytes, as the allocator counts them. All 0 in a process that does not use it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Asked for and not given back.
    pub allocated: u64,
    /// In pages that are in use, at least in part.
    pub active: u64,
    /// In pages that are in physical memory.
    pub resident: u64,
}

/// The figures of this moment.
pub fn figures() -> Figures {
    // Without this the figures are those of the last time.
    let _ = epoch::advance();
    let bytes = |read: tikv_jemalloc_ctl::Result<usize>| read.map_or(0, |bytes| bytes as u64);
    Figures { allocated: bytes(stats::allocated::read()), active: bytes(stats::active::read()), resident: bytes(stats::resident::read()) }
}
