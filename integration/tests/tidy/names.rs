//! Retired names: `integration/renamed.tsv` lists old and new names, which the design
//! pages still use. Identifiers of the old names are gone from code (comments and strings
//! may use the English words), and old metrics and configuration keys from everything but
//! the change log and the table of refused keys.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::pages::pages;
use super::tree::{DIRECTORIES, files_below, has_word, quoted, read, root};

/// Files that speak of old metrics and configuration keys: to refuse them, or to tell
/// users what has become of them.
const MAY_NAME_OLD_STRINGS: [&str; 2] = ["deploy/CHANGELOG.md", "deploy/src/config/renamed.rs"];

/// Endings of the files in which retired strings are searched.
const TEXTS: [&str; 11] =
    [".rs", ".md", ".toml", ".yaml", ".yml", ".json", ".sh", ".txt", ".script", ".service", ".py"];

/// One row: `kind`, `old`, `new`, `scope`, divided by tabs.
#[derive(Debug)]
struct Renamed {
    kind: String,
    old: String,
    new: String,
    /// Path prefixes below which the old identifier is retired; `.` is everywhere.
    scope: Vec<String>,
}

impl Renamed {
    fn read(line: &str) -> Renamed {
        let columns: Vec<&str> = line.split('\t').collect();
        let [kind, old, new, scope] = columns[..] else {
            panic!("a row of the renames has four columns: {line:?}")
        };
        let scope = scope.split(',').map(|prefix| prefix.trim().to_owned()).collect();
        Renamed { kind: kind.to_owned(), old: old.to_owned(), new: new.to_owned(), scope }
    }

    fn is_retired_in(&self, path: &str) -> bool {
        self.scope.iter().any(|prefix| prefix == "." || path.starts_with(prefix.as_str()))
    }

    /// True if the row is about an identifier of Rust code.
    fn is_identifier(&self) -> bool {
        !matches!(self.kind.as_str(), "file" | "string")
    }
}

fn renames() -> Vec<Renamed> {
    let table = read("integration/renamed.tsv");
    let rows: Vec<_> =
        table.lines().filter(|line| !line.starts_with('#')).map(Renamed::read).collect();
    assert!(!rows.is_empty(), "the table of renames is gone");
    rows
}

/// Files of the tree with one of these endings, by their path from the top.
fn texts(endings: &[&str]) -> BTreeMap<String, String> {
    let root = root();
    let mut paths: Vec<_> =
        ["README.md", "Makefile", "Cargo.toml", "clippy.toml"].map(|name| root.join(name)).into();
    for directory in DIRECTORIES {
        for ending in endings {
            paths.extend(files_below(&root.join(directory), ending));
        }
    }
    let text = |path: PathBuf| {
        let name = path.strip_prefix(&root).expect("below the top").to_string_lossy().into_owned();
        let is_ours = name != "integration/renamed.tsv"
            && !name.contains("/base2histogram/")
            && !name.contains("/node_modules/");
        is_ours.then(|| (name, read(&path)))
    };
    paths.into_iter().filter_map(text).collect()
}

/// The identifiers of Rust code: comments, strings, characters, lifetimes and numbers
/// left out.
fn identifiers(text: &str) -> BTreeSet<&str> {
    let bytes = text.as_bytes();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
    let end_of_name = |from: usize| {
        from + bytes[from..].iter().position(|byte| !is_name(*byte)).unwrap_or(text.len() - from)
    };
    let mut found = BTreeSet::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        at = match bytes[at] {
            b'/' if rest.starts_with("//") => at + rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => at + block_comment(rest),
            b'"' => at + string(rest),
            b'\'' => at + character(rest).unwrap_or_else(|| end_of_name(at + 1) - at),
            byte if byte.is_ascii_digit() => end_of_name(at),
            byte if is_name(byte) => {
                let end = end_of_name(at);
                let (name, behind) = (&text[at..end], &text[end..]);
                let is_raw = matches!(name, "r" | "br" | "cr");
                match raw_string(behind) {
                    Some(length) if is_raw => end + length,
                    _ if is_raw && behind.starts_with('#') => end + 1,
                    _ if matches!(name, "b" | "c") && behind.starts_with(['"', '\'']) => end,
                    _ => {
                        found.insert(name);
                        end
                    }
                }
            }
            _ => at + 1,
        };
    }
    found
}

/// The length of a comment that may hold others.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let pair = &text.as_bytes()[at..text.len().min(at + 2)];
        match pair {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string, its quotes included.
fn string(text: &str) -> usize {
    let mut bytes = text.bytes().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'"' => return at + 1,
            _ => (),
        }
    }
    text.len()
}

/// The length of a raw string, behind its `r`.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.bytes().take_while(|byte| *byte == b'#').count();
    let end = format!("\"{}", &text[..hashes]);
    let inside = text[hashes..].strip_prefix('"')?;
    Some(hashes + 1 + inside.find(&end).map_or(inside.len(), |at| at + end.len()))
}

/// The length of a character in quotes; `None` for a lifetime.
fn character(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        let (escaped, _) = chars.next()?;
        let from = escaped + 1;
        return Some(from + text[from..].find('\'')? + 1);
    }
    chars.next().filter(|(_, second)| *second == '\'').map(|(at, _)| at + 1)
}

#[test]
fn retired_identifiers_are_gone() {
    let rows = renames();
    let mut wrong = Vec::new();
    for (path, text) in texts(&[".rs"]).iter().filter(|(path, _)| path.ends_with(".rs")) {
        let names = identifiers(text);
        let retired = |row: &&Renamed| {
            row.is_identifier() && names.contains(row.old.as_str()) && row.is_retired_in(path)
        };
        for row in rows.iter().filter(retired) {
            wrong.push(format!("{path}: {} is {} now", row.old, row.new));
        }
    }
    for page in pages() {
        let words = quoted(&page.text);
        let retired = |row: &&Renamed| {
            row.is_identifier()
                && row.is_retired_in("")
                && words.iter().any(|word| has_word(word, &row.old))
        };
        for row in rows.iter().filter(retired) {
            wrong.push(format!("{}: `{}` is `{}` now", page.path, row.old, row.new));
        }
    }
    assert!(wrong.is_empty(), "retired identifiers (renamed.tsv):\n{}", wrong.join("\n"));
}

#[test]
fn retired_files_and_strings_are_gone() {
    let rows = renames();
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row.kind == "file") {
        if root().join(&row.old).exists() {
            wrong.push(format!("{} is {} now", row.old, row.new));
        }
    }
    for (path, text) in texts(&TEXTS) {
        if MAY_NAME_OLD_STRINGS.contains(&path.as_str()) {
            continue;
        }
        let retired = |row: &&Renamed| {
            row.kind == "string" && row.is_retired_in(&path) && has_word(&text, &row.old)
        };
        for row in rows.iter().filter(retired) {
            wrong.push(format!("{path}: {} is {} now", row.old, row.new));
        }
    }
    assert!(wrong.is_empty(), "retired names (renamed.tsv):\n{}", wrong.join("\n"));
}

#[test]
fn identifiers_are_told_from_words() {
    let code = r##"
        // comment /* word
        /* word /* nested */ word */
        fn name<'lifetime>(r#type: &'lifetime str) -> u8 {
            let text = "word \" word" ; let raw = r#"word " word"#;
            let byte = b'\''; let quote = '"'; let letter = 'w'; 0xff_u64 + b"word"[0]
        }
    "##;
    let expected =
        ["byte", "fn", "let", "letter", "name", "quote", "raw", "str", "text", "type", "u8"];
    assert_eq!(identifiers(code), BTreeSet::from(expected));
}
