//! Searches the end of a segment for intact records at any offset, in a time that depends
//! on the number of its bytes and not on their values.
//!
//! The bytes behind the last record may be a client's, and claim anything. A value made
//! of headers, each with a plausible length of megabytes, would have its checksum
//! computed over the same megabytes again and again, for hours. So the checksum of a
//! range is combined from the checksums of the prefixes that end at its two ends, as CRCs
//! can be (zlib's `crc32_combine`): a few dozen table look-ups for each offset.

use std::sync::LazyLock;

use super::record::{self, RecordHeader, RecordPosition};

/// Distance of the stored prefix checksums; the rest of a prefix is computed anew.
const STRIDE: usize = 256;
/// Bits of a segment's length.
const LENGTH_BITS: usize = 32;

/// For each power of two: the effect of that number of appended zero bytes on a checksum,
/// for each value of its four bytes.
static ZERO_TABLES: LazyLock<Vec<[[u32; 256]; 4]>> = LazyLock::new(|| {
    let table = |power: usize| {
        let columns: [u32; 32] =
            std::array::from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, 1 << power));
        let entry = |byte: usize, value: usize| {
            let bits = (0..8).filter(|bit| value >> bit & 1 == 1);
            bits.fold(0, |sum, bit| sum ^ columns[byte * 8 + bit])
        };
        std::array::from_fn(|byte| std::array::from_fn(|value| entry(byte, value)))
    };
    (0..LENGTH_BITS).map(table).collect()
});

/// Checksums of any range of a segment.
pub(super) struct RangeChecksums<'a> {
    bytes: &'a [u8],
    /// The start of all prefixes.
    from: usize,
    /// Checksums of `from..from + n * STRIDE`.
    prefixes: Vec<u32>,
}

impl<'a> RangeChecksums<'a> {
    pub(super) fn new(bytes: &'a [u8], from: usize) -> RangeChecksums<'a> {
        let mut prefixes = vec![crc32c::crc32c(&[])];
        for chunk in bytes[from..].chunks(STRIDE) {
            prefixes.push(crc32c::crc32c_append(prefixes[prefixes.len() - 1], chunk));
        }
        RangeChecksums { bytes, from, prefixes }
    }

    /// The checksum of `from..end`.
    fn whole(&self, end: usize) -> u32 {
        let strides = (end - self.from) / STRIDE;
        crc32c::crc32c_append(
            self.prefixes[strides],
            &self.bytes[self.from + strides * STRIDE..end],
        )
    }

    /// The checksum `seed`, continued over `range`.
    fn append(&self, seed: u32, range: std::ops::Range<usize>) -> u32 {
        // The range's own checksum is whole(end) ^ extend_by_zeros(whole(start)), and
        // extending by zeros is linear.
        self.whole(range.end) ^ extend_by_zeros(seed ^ self.whole(range.start), range.len())
    }

    /// The header of an intact record at an offset, of any kind, if there is one and its
    /// header is wanted.
    pub(super) fn record(
        &self,
        segment: u64,
        offset: usize,
        is_wanted: impl FnOnce(&RecordHeader) -> bool,
    ) -> Option<RecordHeader> {
        let position = RecordPosition { segment, offset: offset as u32 };
        let claim = RecordHeader::of(&self.bytes[offset..], position).ok().filter(is_wanted)?;
        let covered = claim.covered();
        let crc = self.append(
            record::seed(position, claim.length),
            offset + covered.start..offset + covered.end,
        );
        claim.is_sealed_by(crc).then_some(claim)
    }
}

/// A checksum, extended over this number of zero bytes.
fn extend_by_zeros(mut crc: u32, length: usize) -> u32 {
    for (power, table) in ZERO_TABLES.iter().enumerate() {
        if length >> power & 1 == 1 {
            let of = |byte: usize| table[byte][(crc >> (byte * 8)) as u8 as usize];
            crc = of(0) ^ of(1) ^ of(2) ^ of(3);
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::super::record::RecordKind;
    use super::*;

    #[test]
    fn a_range_has_the_checksum_that_it_has_alone() {
        let bytes: Vec<u8> =
            (0..5000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for from in [0, 1, 255, 256, 1000] {
            let ranges = RangeChecksums::new(&bytes, from);
            for (start, end) in
                [(0, 0), (0, 1), (3, 300), (255, 256), (256, 513), (700, 4000), (0, 4000)]
            {
                let (start, end) = (from + start, from + end);
                let expected = crc32c::crc32c_append(0xdead_beef, &bytes[start..end]);
                assert_eq!(
                    ranges.append(0xdead_beef, start..end),
                    expected,
                    "{from} {start} {end}"
                );
            }
        }
    }

    #[test]
    fn a_record_is_found_where_it_stands() {
        let mut bytes = vec![7; 700];
        let position = RecordPosition { segment: 5, offset: 700 };
        let len = record::put(&mut bytes, position, 650, RecordKind::Vote, 1, |body| {
            body.extend_from_slice(&[9; 400])
        }) as usize;
        bytes.extend_from_slice(&[8; 100]);
        let ranges = RangeChecksums::new(&bytes, 100);
        let found: Vec<usize> =
            (100..bytes.len()).filter(|at| ranges.record(5, *at, |_| true).is_some()).collect();
        assert_eq!(found, [700]);
        assert_eq!(ranges.record(5, 700, |_| true).map(|claim| claim.synced), Some(650));
        assert!(ranges.record(6, 700, |_| true).is_none(), "another segment's");
        bytes[700 + len - 1] ^= 1;
        assert!(RangeChecksums::new(&bytes, 100).record(5, 700, |_| true).is_none());
    }
}
