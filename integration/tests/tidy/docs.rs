//! Documentation in code: the tests and files that it names exist.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::tree::{DIRECTORIES, code, crates, files_below, has_word, quoted, read, root, sources};

/// All Rust files of our crates.
fn rust_files() -> Vec<PathBuf> {
    let folders = ["src", "tests", "benches", "examples"];
    crates().values().flat_map(|info| sources(info, &folders)).collect()
}

/// Tests that module docs name under `# Invariants` are there. (Only names of three words
/// and more: shorter ones may be anything.)
#[test]
fn invariants_in_module_docs_name_what_exists() {
    let paths = rust_files();
    let texts: Vec<_> = paths.iter().map(read).collect();
    let all: String = texts.iter().map(|text| code(text)).collect();
    let is_long = |word: &&str| {
        word.matches('_').count() >= 2
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (path, text) in paths.iter().zip(&texts) {
        let doc = text.lines().map_while(|line| line.strip_prefix("//!"));
        let invariants = doc
            .skip_while(|line| *line != " # Invariants")
            .skip(1)
            .take_while(|line| !line.starts_with(" # "));
        for word in invariants.flat_map(quoted).filter(is_long) {
            seen += 1;
            if !has_word(&all, word) {
                wrong.push(format!("{}: {word}", path.display()));
            }
        }
    }
    assert!(seen > 0, "no module doc names a test any more");
    assert!(wrong.is_empty(), "invariants name what is not there:\n{}", wrong.join("\n"));
}

/// Files in backticks in comments exist: by their path from the top, or by its end.
#[test]
fn files_that_comments_name_exist() {
    let root = root();
    let mut ends = BTreeSet::new();
    for path in DIRECTORIES.iter().flat_map(|name| files_below(&root.join(name), "")) {
        let path = path.strip_prefix(&root).expect("below the top").to_string_lossy().into_owned();
        let starts = path.match_indices('/').map(|(at, _)| at + 1).chain([0]);
        ends.extend(starts.map(|at| path[at..].to_owned()));
    }
    let is_file = |word: &&str| {
        [".rs", ".md", ".toml", ".txt", ".sh"].iter().any(|ending| word.ends_with(ending))
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
    };
    let mut wrong = Vec::new();
    for path in rust_files() {
        let text = read(&path);
        for line in text.lines().filter(|line| line.trim_start().starts_with("//")) {
            for word in quoted(line).into_iter().filter(is_file) {
                if !ends.contains(word) && !root.join(word).exists() {
                    wrong.push(format!("{}: {word}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "comments name what is not there:\n{}", wrong.join("\n"));
}
