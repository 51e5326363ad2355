//! Glob patterns as Redis matches them (`stringmatchlen`), without its exponential worst
//! case.
//!
//! Redis recurses at each `*` and tries every continuation. Every other element takes
//! exactly one byte, so that it is enough to backtrack to the last `*` passed: time is at
//! most pattern times text, and there is no recursion. For long patterns and long texts
//! that is still seconds. For these, each segment between two `*` is searched with one
//! bit an element (the Shift-And algorithm of Baeza-Yates and Gonnet), in a 64th of the
//! time.

/// The largest product of the lengths of a pattern and a text that are matched by
/// backtracking, which needs no preparation.
const BACKTRACKING_STEPS_MAX: u64 = 1 << 16;

/// The longest segment between two `*`, in bytes of the pattern, that is searched byte by
/// byte.
const SEGMENT_SHORT: usize = 32;

/// The time of one match in the worst case, ns, roughly.
pub fn worst_case_ns(pattern: &[u8], text: &[u8]) -> u64 {
    let steps = (pattern.len() as u64).saturating_mul(text.len() as u64);
    if steps <= BACKTRACKING_STEPS_MAX {
        steps
    } else {
        (steps / 32).saturating_add(64 * (pattern.len() + text.len()) as u64)
    }
}

/// Matches `text`: `*` any bytes, `?` one byte, `[a-c]` `[^a-c]` one of (not of) a set,
/// `\` takes the next byte literally.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    run(pattern, text, false)
}

/// As [`matches()`], ASCII case ignored.
pub fn matches_nocase(pattern: &[u8], text: &[u8]) -> bool {
    run(pattern, text, true)
}

fn run(pattern: &[u8], text: &[u8], nocase: bool) -> bool {
    if text.is_empty() {
        return pattern.is_empty(); // Redis's own: "*" does not match the empty string
    }
    if (pattern.len() as u64).saturating_mul(text.len() as u64) > BACKTRACKING_STEPS_MAX {
        return match_by_segments(pattern, text, nocase);
    }
    match_by_backtracking(pattern, text, nocase)
}

fn match_by_backtracking(pattern: &[u8], text: &[u8], nocase: bool) -> bool {
    let (mut p, mut t) = (pattern, text);
    // The pattern behind the last `*`, and the text that this `*` has not yet taken.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = p {
            if rest.is_empty() {
                return true;
            }
            star = Some((rest, t));
            p = rest;
            continue;
        }
        match t.split_first() {
            None if p.is_empty() => return true,
            None => return false, // a later start for the last `*` leaves even less text
            Some((&byte, rest)) => match element(p, byte, nocase) {
                (true, after) => (p, t) = (after, rest),
                (false, _) => {
                    let Some((after_star, taken)) = &mut star else { return false };
                    *taken = &taken[1..];
                    (p, t) = (*after_star, *taken);
                }
            },
        }
    }
}

/// Tries the first element of a pattern (not a `*`) on a byte. Returns the rest of the
/// pattern, too, which is the same for all bytes.
fn element(pattern: &[u8], byte: u8, nocase: bool) -> (bool, &[u8]) {
    let fold = |b: u8| if nocase { b.to_ascii_lowercase() } else { b };
    match pattern {
        [] => (false, pattern),
        [b'?', rest @ ..] => (true, rest),
        [b'[', b'^', rest @ ..] => {
            let (hit, rest) = set(rest, byte, fold);
            (!hit, rest)
        }
        [b'[', rest @ ..] => set(rest, byte, fold),
        [b'\\', escaped, rest @ ..] => (fold(*escaped) == fold(byte), rest),
        [literal, rest @ ..] => (fold(*literal) == fold(byte), rest),
    }
}

/// The elements between two `*`, each as written in the pattern.
type Segment<'a> = Vec<&'a [u8]>;

/// As backtracking, for long patterns and texts: the first and the last segment match at
/// the ends of the text, and each of the others at its earliest match behind the one
/// before.
fn match_by_segments(pattern: &[u8], text: &[u8], nocase: bool) -> bool {
    let mut segments = vec![Segment::new()];
    let mut left = pattern;
    while let Some(first) = left.first() {
        if *first == b'*' {
            segments.push(Segment::new());
            left = &left[1..];
        } else {
            let (_, rest) = element(left, 0, nocase);
            segments
                .last_mut()
                .expect("`segments` begins with one and only grows")
                .push(&left[..left.len() - rest.len()]);
            left = rest;
        }
    }
    let fits = |segment: &Segment<'_>, text: &[u8]| {
        segment.iter().zip(text).all(|(one, byte)| element(one, *byte, nocase).0)
    };
    let (first, between, last) = match segments.as_slice() {
        [] => return false,
        [only] => return only.len() == text.len() && fits(only, text),
        [first, between @ .., last] => (first, between, last),
    };
    let Some(end) = text.len().checked_sub(last.len()).filter(|end| *end >= first.len()) else {
        return false;
    };
    if !fits(first, text) || !fits(last, &text[end..]) {
        return false;
    }
    let mut text = &text[first.len()..end];
    between.iter().all(|segment| match end_of(segment, text, nocase) {
        Some(end) => {
            text = &text[end..];
            true
        }
        None => false,
    })
}

/// The end of the first match of a segment.
fn end_of(segment: &Segment<'_>, text: &[u8], nocase: bool) -> Option<usize> {
    if segment.len() > text.len() {
        return None;
    }
    if segment.iter().map(|one| one.len()).sum::<usize>() <= SEGMENT_SHORT {
        let fits = |window: &[u8]| {
            segment.iter().zip(window).all(|(one, byte)| element(one, *byte, nocase).0)
        };
        return (segment.len()..=text.len()).find(|end| fits(&text[end - segment.len()..*end]));
    }
    // Bit i of `state`: the first i + 1 elements match the bytes that end here.
    let words = segment.len().div_ceil(64);
    let (last_word, last_bit) = ((segment.len() - 1) / 64, 1u64 << ((segment.len() - 1) % 64));
    let mut takers: Vec<Option<Vec<u64>>> = vec![None; 256];
    let mut state = vec![0u64; words];
    for (at, &byte) in text.iter().enumerate() {
        let takers =
            takers[usize::from(byte)].get_or_insert_with(|| takers_of(segment, byte, nocase));
        let mut carry = 1;
        for (word, takers) in state.iter_mut().zip(takers.iter()) {
            let shifted = *word << 1 | carry;
            carry = *word >> 63;
            *word = shifted & takers;
        }
        if state[last_word] & last_bit != 0 {
            return Some(at + 1);
        }
    }
    None
}

/// The elements of a segment that take a byte, one bit each.
fn takers_of(segment: &Segment<'_>, byte: u8, nocase: bool) -> Vec<u64> {
    let mut bits = vec![0; segment.len().div_ceil(64)];
    for (at, one) in segment.iter().enumerate() {
        bits[at / 64] |= u64::from(element(one, byte, nocase).0) << (at % 64);
    }
    bits
}

/// Tests a set (behind its `[` or `[^`) for a byte, and returns the pattern behind its
/// `]`; an unclosed set ends with the pattern.
fn set(mut pattern: &[u8], byte: u8, fold: impl Fn(u8) -> u8) -> (bool, &[u8]) {
    let byte = fold(byte);
    let mut hit = false;
    loop {
        pattern = match pattern {
            [] => return (hit, pattern),
            [b'\\', escaped, rest @ ..] => {
                hit |= fold(*escaped) == byte;
                rest
            }
            [b']', rest @ ..] => return (hit, rest),
            [from, b'-', to, rest @ ..] => {
                let (from, to) = (fold(*from), fold(*to));
                hit |= (from.min(to)..=from.max(to)).contains(&byte);
                rest
            }
            [literal, rest @ ..] => {
                hit |= fold(*literal) == byte;
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_redis() {
        for (pattern, text, hit) in [
            ("*", "a", true),
            ("*", "", false),
            ("", "", true),
            ("a*", "a", true),
            ("*a", "bca", true),
            ("*a", "bcab", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-", "ha", true),
            ("[^", "x", true),
            ("[", "x", false),
            ("[]", "]", false),
            ("[\\]]", "]", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("a**b*c", "axxbyyc", true),
            ("a*b?", "ab", false),
            ("*ab*ab*x", "abababy", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), hit, "{pattern} {text}");
        }
        assert!(matches_nocase(b"H[A-C]*", b"hb"));
        assert!(!matches(b"H*", b"h"));
    }

    #[test]
    fn matches_what_redis_matches() {
        let unhex = |text: &str| -> Vec<u8> {
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex"))
                .collect()
        };
        for line in
            include_str!("../tests/vectors/globs.txt").lines().filter(|line| !line.starts_with('#'))
        {
            let [hit, pattern, text] = line.split(" | ").collect::<Vec<_>>()[..] else {
                panic!("three columns: {line}")
            };
            let (pattern, text) = (unhex(pattern), unhex(text));
            let shown = (String::from_utf8_lossy(&pattern), String::from_utf8_lossy(&text));
            assert_eq!(matches(&pattern, &text), hit == "1", "{shown:?}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = [&b"a*".repeat(200)[..], b"b"].concat();
        assert!(!matches(&pattern, &[b'a'; 5000]));
    }

    #[test]
    fn one_match_of_long_texts_takes_no_seconds() {
        let text = vec![b'a'; 60_000];
        let (plain, sets) = (b"a".repeat(30_000), b"[ab]".repeat(15_000));
        let (stars, mixed) =
            (b"*a".repeat(30_000), b"*aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab".repeat(100));
        let one_set = [b"[", &b"bc".repeat(30_000)[..], b"]"].concat();
        for needle in [plain, sets, stars, mixed, one_set] {
            let began = std::time::Instant::now();
            assert!(!matches(&[b"*", &needle[..], b"b*"].concat(), &text));
            let took = began.elapsed();
            assert!(took < std::time::Duration::from_secs(1), "{took:?}");
        }
    }

    /// Redis's way, by recursion.
    fn naive(p: &[u8], t: &[u8]) -> bool {
        match (p, t) {
            ([b'*'], t) => !t.is_empty() || t.is_empty(),
            ([b'*', rest @ ..], t) => {
                (0..t.len()).any(|n| naive(rest, &t[n..]))
                    || (t.is_empty() && rest.iter().all(|b| *b == b'*'))
            }
            (p, []) => p.is_empty(),
            (p, [byte, t @ ..]) => {
                let (hit, p) = element(p, *byte, false);
                hit && naive(p, t)
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn as_by_recursion(pattern in "[ab*?\\[\\]^\\\\-]{0,9}", text in "[ab\\-]{1,9}") {
            let (glob, bytes) = (pattern.as_bytes(), text.as_bytes());
            let expected = naive(glob, bytes);
            assert_eq!(matches(glob, bytes), expected, "{pattern} {text}");
            assert_eq!(match_by_segments(glob, bytes, false), expected, "{pattern} {text}");
        }

        #[test]
        fn long_segments_are_found_where_falling_back_finds_them(
            segments in proptest::collection::vec(
                "[ab?]{0,4}([ab]|\\[ab\\]){60,70}|[ab]{0,3}",
                1..4,
            ),
            text in "[abA]{1,400}",
        ) {
            let pattern = segments.join("*");
            // Wrapped into itself, so that some do match.
            let texts = [
                text.clone(),
                pattern.replace("[ab]", "a").replace(['*', '?'], "b"),
                format!("{text}{}", segments.concat()),
            ];
            for text in texts.iter().filter(|text| !text.is_empty()) {
                for nocase in [false, true] {
                    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
                    let expected = match_by_backtracking(pattern, text, nocase);
                    assert_eq!(match_by_segments(pattern, text, nocase), expected);
                }
            }
        }
    }
}
