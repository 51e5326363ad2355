//! Glob patterns as Redis matches them (`stringmatchlen`), without its exponential worst case.
//!
//! Redis recurses at each `*` and tries every continuation. Every other element takes exactly one byte, so it is enough to fall back to the
//! last `*` passed: time is at most pattern times text, and there is no recursion.

/// Whether `text` matches: `*` any bytes, `?` one byte, `[a-c]` `[^a-c]` one of (not of) a set, `\` takes the next byte as it is.
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
    let (mut p, mut t) = (pattern, text);
    let mut star: Option<(&[u8], &[u8])> = None; // where to go on after the last `*`, and the text it has not yet taken
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
                Some(after) => (p, t) = (after, rest),
                None => {
                    let Some((after_star, taken)) = &mut star else { return false };
                    *taken = &taken[1..];
                    (p, t) = (*after_star, *taken);
                }
            },
        }
    }
}

/// Matches the first element of a pattern (not a `*`) with one byte; the rest of the pattern, if it does.
fn element(pattern: &[u8], byte: u8, nocase: bool) -> Option<&[u8]> {
    let fold = |b: u8| if nocase { b.to_ascii_lowercase() } else { b };
    let (hit, rest) = match pattern {
        [] => (false, pattern),
        [b'?', rest @ ..] => (true, rest),
        [b'[', b'^', rest @ ..] => {
            let (hit, rest) = set(rest, byte, fold);
            (!hit, rest)
        }
        [b'[', rest @ ..] => set(rest, byte, fold),
        [b'\\', escaped, rest @ ..] => (fold(*escaped) == fold(byte), rest),
        [literal, rest @ ..] => (fold(*literal) == fold(byte), rest),
    };
    hit.then_some(rest)
}

/// Whether a set (behind its `[` or `[^`) holds a byte, and the pattern behind its `]`; an unclosed set ends with the pattern.
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
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
        };
        for line in include_str!("../tests/vectors/globs.txt").lines().filter(|line| !line.starts_with('#')) {
            let [hit, pattern, text] = line.split(" | ").collect::<Vec<_>>()[..] else { panic!("three columns: {line}") };
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

    /// Redis's way, by recursion.
    fn naive(p: &[u8], t: &[u8]) -> bool {
        match (p, t) {
            ([b'*'], t) => !t.is_empty() || t.is_empty(),
            ([b'*', rest @ ..], t) => (0..t.len()).any(|n| naive(rest, &t[n..])) || (t.is_empty() && rest.iter().all(|b| *b == b'*')),
            (p, []) => p.is_empty(),
            (p, [byte, t @ ..]) => element(p, *byte, false).is_some_and(|p| naive(p, t)),
        }
    }

    proptest::proptest! {
        #[test]
        fn as_by_recursion(pattern in "[ab*?\\[\\]^\\\\-]{0,9}", text in "[ab\\-]{1,9}") {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), naive(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }
}
