//! Inline commands: a line of arguments with Redis's quoting, as typed into telnet.

use bytes::Bytes;
use commands::args::Argv;

/// The arguments of a line; `None` when quotes are unbalanced.
///
/// In double quotes `\n \r \t \b \a \xHH` mean what they mean in C, and any other
/// character after a backslash means itself; in single quotes only `\'` is special. A NUL
/// ends the line, as it ends Redis's C string.
pub(super) fn split(line: &[u8]) -> Option<Argv> {
    let end = line.iter().position(|&byte| byte == 0).unwrap_or(line.len());
    let mut rest = line[..end].strip_suffix(b"\n").unwrap_or(&line[..end]);
    let mut argv = Argv::new();
    loop {
        rest = rest.trim_ascii_start_c();
        if rest.is_empty() {
            return Some(argv);
        }
        let (word, after) = word(rest)?;
        argv.push(Bytes::from(word));
        rest = after;
    }
}

/// One argument, and the rest of the line.
fn word(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut word = Vec::new();
    let mut at = 0;
    loop {
        match text.get(at) {
            None => return Some((word, &[])),
            Some(b'"') => {
                let length = double_quoted(&text[at + 1..], &mut word)?;
                return closed(&text[at + 1 + length..]).map(|rest| (word, rest));
            }
            Some(b'\'') => {
                let length = single_quoted(&text[at + 1..], &mut word)?;
                return closed(&text[at + 1 + length..]).map(|rest| (word, rest));
            }
            Some(&byte) if is_space(byte) => return Some((word, &text[at..])),
            Some(&byte) => word.push(byte),
        }
        at += 1;
    }
}

/// Reads to the closing quote and returns the length, quote included.
fn double_quoted(text: &[u8], word: &mut Vec<u8>) -> Option<usize> {
    let mut at = 0;
    loop {
        match text[at..] {
            [b'"', ..] => return Some(at + 1),
            [b'\\', b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                word.push(hex(high) << 4 | hex(low));
                at += 4;
            }
            [b'\\', escaped, ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => other,
                });
                at += 2;
            }
            [byte, ..] => {
                word.push(byte);
                at += 1;
            }
            [] => return None,
        }
    }
}

/// Reads to the closing quote and returns the length, quote included.
fn single_quoted(text: &[u8], word: &mut Vec<u8>) -> Option<usize> {
    let mut at = 0;
    loop {
        match text[at..] {
            [b'\'', ..] => return Some(at + 1),
            [b'\\', b'\'', ..] => {
                word.push(b'\'');
                at += 2;
            }
            [byte, ..] => {
                word.push(byte);
                at += 1;
            }
            [] => return None,
        }
    }
}

/// A closing quote must be followed by a blank or nothing.
fn closed(rest: &[u8]) -> Option<&[u8]> {
    rest.first().is_none_or(|&byte| is_space(byte)).then_some(rest)
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

trait TrimC {
    fn trim_ascii_start_c(&self) -> &[u8];
}

impl TrimC for [u8] {
    fn trim_ascii_start_c(&self) -> &[u8] {
        let blanks = self.iter().take_while(|&&byte| is_space(byte)).count();
        &self[blanks..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(line: &str) -> Option<Vec<String>> {
        split(line.as_bytes()).map(|argv| {
            argv.iter().map(|word| word.iter().map(|&byte| char::from(byte)).collect()).collect()
        })
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
