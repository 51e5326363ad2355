//! Inline commands: a line of arguments with Redis's quoting, as typed into telnet.

use std::ops::Range;

use bytes::Bytes;

/// Appends the ranges of a line's arguments, quotes included; `None` when quotes are
/// unbalanced. A NUL ends the line, as it ends Redis's C string.
pub(super) fn split(line: &[u8], ranges: &mut Vec<Range<usize>>) -> Option<()> {
    let end = line.iter().position(|&byte| byte == 0).unwrap_or(line.len());
    let line = line[..end].strip_suffix(b"\n").unwrap_or(&line[..end]);
    let mut at = 0;
    loop {
        at += line[at..].iter().take_while(|&&byte| is_space(byte)).count();
        if at == line.len() {
            return Some(());
        }
        let start = at;
        at += word_len(&line[at..])?;
        ranges.push(start..at);
    }
}

/// The argument that a word means.
///
/// In double quotes `\n \r \t \b \a \xHH` mean what they mean in C, and any other
/// character after a backslash means itself; in single quotes only `\'` is special.
pub(super) fn unquoted(word: Bytes) -> Bytes {
    let Some(quote) = word.iter().position(|&byte| is_quote(byte)) else { return word };
    let mut plain = word[..quote].to_vec();
    // A quoted part ends a word.
    let quoted = &word[quote + 1..word.len() - 1];
    if word[quote] == b'"' {
        double_quoted(quoted, &mut plain);
    } else {
        single_quoted(quoted, &mut plain);
    }
    plain.into()
}

/// Length of the word that the text starts with, quotes included. A quote is closed in
/// the line, and its end is the end of the word.
fn word_len(text: &[u8]) -> Option<usize> {
    let plain = text.iter().take_while(|&&byte| !is_space(byte) && !is_quote(byte)).count();
    match text.get(plain) {
        Some(&quote) if is_quote(quote) => {
            let len = plain + 1 + quoted_len(&text[plain + 1..], quote)?;
            closed(&text[len..]).then_some(len)
        }
        _ => Some(plain),
    }
}

/// Length up to the closing quote, which is included.
fn quoted_len(text: &[u8], quote: u8) -> Option<usize> {
    let mut at = 0;
    loop {
        at += match text[at..] {
            [b'\\', _, ..] if quote == b'"' => 2,
            [b'\\', b'\'', ..] if quote == b'\'' => 2,
            [byte, ..] if byte == quote => return Some(at + 1),
            [_, ..] => 1,
            [] => return None,
        }
    }
}

fn double_quoted(mut text: &[u8], plain: &mut Vec<u8>) {
    loop {
        let (byte, rest) = match text {
            [b'\\', b'x', high, low, rest @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                (hex(*high) << 4 | hex(*low), rest)
            }
            [b'\\', escaped, rest @ ..] => {
                let byte = match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                };
                (byte, rest)
            }
            [byte, rest @ ..] => (*byte, rest),
            [] => return,
        };
        plain.push(byte);
        text = rest;
    }
}

fn single_quoted(mut text: &[u8], plain: &mut Vec<u8>) {
    loop {
        let (byte, rest) = match text {
            [b'\\', b'\'', rest @ ..] => (b'\'', rest),
            [byte, rest @ ..] => (*byte, rest),
            [] => return,
        };
        plain.push(byte);
        text = rest;
    }
}

/// A closing quote must be followed by a blank or nothing.
fn closed(rest: &[u8]) -> bool {
    rest.first().is_none_or(|&byte| is_space(byte))
}

fn is_quote(byte: u8) -> bool {
    matches!(byte, b'"' | b'\'')
}

/// C's `isspace`.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(line: &str) -> Option<Vec<String>> {
        let mut ranges = Vec::new();
        split(line.as_bytes(), &mut ranges)?;
        let word = |range| unquoted(Bytes::copy_from_slice(&line.as_bytes()[range]));
        let text = |word: Bytes| word.iter().map(|&byte| char::from(byte)).collect();
        Some(ranges.into_iter().map(|range| text(word(range))).collect())
    }

    #[test]
    fn words_and_quotes() {
        for (line, expected) in [
            ("", &[][..]),
            (" \t \r\n", &[]),
            ("PING\r\n", &["PING"]),
            ("  set  key\tvalue \n", &["set", "key", "value"]),
            (r#"set k "a b\n\x41\q\"" x"#, &["set", "k", "a b\nAq\"", "x"]),
            (r"set k 'a \n\' b' ''", &["set", "k", r"a \n' b", ""]),
            (r#"pre"fix""#, &["prefix"]),
            (r#""\x4""#, &["x4"]),
        ] {
            assert_eq!(
                argv(line),
                Some(expected.iter().map(|&word| word.to_owned()).collect()),
                "{line}"
            );
        }
    }

    #[test]
    fn unbalanced_quotes() {
        for line in [r#""abc"#, "'abc", r#""abc"def"#, "'abc'def", r#""abc\"#, r"'abc\'"] {
            assert_eq!(argv(line), None, "{line}");
        }
    }
}
