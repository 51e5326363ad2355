//! The longest common subsequence of two strings, for LCS.
//!
//! The textbook table, computed row by row; one bit of each cell is kept, the direction
//! of the path back. The matches are those that Redis finds, in Redis's order: from the
//! ends of the strings to their beginnings.

/// Two strings whose table would have more cells than this are refused: 16 Mi cells are 2
/// MiB of bits and about 60 ms of a thread.
pub(crate) const CELLS_MAX: usize = 1 << 24;

/// A run of bytes common to both strings; offsets of its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) in_a: usize,
    pub(crate) in_b: usize,
    pub(crate) len: usize,
}

/// `true` if the table of two strings is within [`CELLS_MAX`].
pub(crate) fn fits(a: &[u8], b: &[u8]) -> bool {
    (a.len() + 1).checked_mul(b.len() + 1).is_some_and(|cells| cells <= CELLS_MAX)
}

/// The length of the longest common subsequence.
pub(crate) fn len(a: &[u8], b: &[u8]) -> usize {
    table(a, b, |_, _, _| ())
}

/// The runs of the subsequence, the last first. Their lengths add up to [`len`].
pub(crate) fn matches(a: &[u8], b: &[u8]) -> Vec<Match> {
    let cells = a.len() * b.len();
    let mut up = vec![0u64; cells.div_ceil(64)];
    table(a, b, |i, j, better| {
        let at = i * b.len() + j;
        up[at / 64] |= u64::from(better) << (at % 64);
    });
    let mut matches = Vec::new();
    let mut run: Option<Match> = None;
    let (mut i, mut j) = (a.len(), b.len());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            (i, j) = (i - 1, j - 1);
            run = Some(Match { in_a: i, in_b: j, len: run.map_or(1, |run| run.len + 1) });
            continue;
        }
        matches.extend(run.take());
        let at = (i - 1) * b.len() + j - 1;
        if up[at / 64] >> (at % 64) & 1 == 1 { i -= 1 } else { j -= 1 }
    }
    matches.extend(run);
    matches
}

/// Fills the table in one pass by rows and returns its last cell. `way(i, j, up)` is
/// called for each cell (counted from 0): `up` is `true` if leaving out `a[i]` is better
/// than leaving out `b[j]`, which matters where the two differ. Without branches, as
/// strings are not predictable.
fn table(a: &[u8], b: &[u8], mut way: impl FnMut(usize, usize, bool)) -> usize {
    let mut row = vec![0u32; b.len()];
    for (i, x) in a.iter().enumerate() {
        let (mut diagonal, mut left) = (0, 0);
        for (j, (y, cell)) in b.iter().zip(&mut row).enumerate() {
            let above = *cell;
            way(i, j, above > left);
            left = if x == y { diagonal + 1 } else { above.max(left) };
            diagonal = above;
            *cell = left;
        }
    }
    row.last().map_or(0, |&last| last as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_redis_finds() {
        let (a, b) = (b"ohmytext", b"mynewtext");
        assert_eq!(len(a, b), 6);
        assert_eq!(
            matches(a, b),
            [Match { in_a: 4, in_b: 5, len: 4 }, Match { in_a: 2, in_b: 0, len: 2 }]
        );
    }

    #[test]
    fn lengths_of_matches_add_up() {
        for (a, b) in [
            ("", ""),
            ("", "x"),
            ("abc", "abc"),
            ("abcdef", "fedcba"),
            ("aaaa", "aa"),
            ("xaxbxc", "abc"),
        ] {
            let (a, b) = (a.as_bytes(), b.as_bytes());
            let matches = matches(a, b);
            assert_eq!(matches.iter().map(|run| run.len).sum::<usize>(), len(a, b));
            for run in matches {
                assert_eq!(a[run.in_a..][..run.len], b[run.in_b..][..run.len]);
            }
        }
    }

    #[test]
    fn large_strings_are_refused() {
        let long = vec![b'x'; 1 << 13];
        assert!(fits(&long[..4000], &long[..4000]));
        assert!(fits(&long, b""));
        assert!(!fits(&long, &long));
    }
}
