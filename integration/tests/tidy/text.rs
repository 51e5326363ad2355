//! Text: lines fit 100 columns, documentation begins with the thing it is about, and
//! names of tests are short claims.

use super::pages::pages;
use super::tree::{crates, root, sources};

/// Code and comments are at most this wide, and so is the prose of pages.
const WIDTH: usize = 100;

/// Documentation does not begin with these: its first word names the thing.
const QUESTION_WORDS: [&str; 8] =
    ["What", "Who", "Whom", "Whose", "How", "Whether", "Where", "Whoever"];

const TEST_NAME_MAX: usize = 60;

/// All Rust files of our crates, by their path from the top.
fn rust_files() -> Vec<(String, String)> {
    let root = root();
    let folders = ["src", "tests", "benches", "examples"];
    crates()
        .values()
        .flat_map(|info| sources(info, &folders))
        .map(|path| {
            let name = path.strip_prefix(&root).expect("below the top");
            let text = std::fs::read_to_string(&path).expect("a source file is text");
            (name.to_string_lossy().into_owned(), text)
        })
        .collect()
}

#[test]
fn code_and_comments_fit_100_columns() {
    let mut wide = Vec::new();
    for (path, text) in rust_files() {
        for (at, line) in text.lines().enumerate() {
            if line.chars().count() > WIDTH {
                wide.push(format!("{path}:{}", at + 1));
            }
        }
    }
    assert!(wide.is_empty(), "wider than {WIDTH} columns:\n{}", wide.join("\n"));
}

/// Tables and examples may be wider.
#[test]
fn pages_fit_100_columns() {
    let mut wide = Vec::new();
    for page in pages() {
        let mut is_example = false;
        for (at, line) in page.text.lines().enumerate() {
            let is_fence = line.trim_start().starts_with("```");
            is_example ^= is_fence;
            let may_be_wide = is_example || line.starts_with('|');
            if line.chars().count() > WIDTH && !may_be_wide {
                wide.push(format!("{}:{}", page.path, at + 1));
            }
        }
    }
    assert!(wide.is_empty(), "wider than {WIDTH} columns:\n{}", wide.join("\n"));
}

#[test]
fn documentation_begins_with_its_subject() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files() {
        let mut is_inside = false;
        for (at, line) in text.lines().enumerate() {
            let doc = line.trim_start();
            let doc = doc.strip_prefix("///").or_else(|| doc.strip_prefix("//!"));
            let first = doc.unwrap_or_default().split_whitespace().next().unwrap_or_default();
            let word = first.trim_end_matches(|c: char| !c.is_alphanumeric());
            if !is_inside && QUESTION_WORDS.contains(&word) {
                wrong.push(format!("{path}:{}: {}", at + 1, line.trim_start()));
            }
            is_inside = doc.is_some_and(|doc| !doc.trim().is_empty());
        }
    }
    assert!(wrong.is_empty(), "documentation begins with a question word:\n{}", wrong.join("\n"));
}

#[test]
fn names_of_tests_are_short() {
    let mut long = Vec::new();
    for (path, text) in rust_files() {
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            let named = line.split_once("fn ").map(|(_, rest)| rest);
            match named.and_then(|rest| rest.split_once('(')) {
                Some((name, _)) if is_test && name.len() > TEST_NAME_MAX => {
                    long.push(format!("{path}: {name} ({})", name.len()));
                    is_test = false;
                }
                Some(_) => is_test = false,
                None => {
                    is_test |=
                        line.starts_with('#') && (line.contains("test]") || line.contains("test("));
                }
            }
        }
    }
    assert!(long.is_empty(), "names of more than {TEST_NAME_MAX}:\n{}", long.join("\n"));
}
