//! The tree is tidy: crates depend on each other as the architecture says, and pages name
//! only what exists. Each file checks one kind of rule; [`tree`] reads the files.

mod docs;
mod examples;
mod layers;
mod names;
mod pages;
mod text;
mod tree;

use std::process::Command;

use tree::{crates, root, sources};

/// A reader of any file learns first what it is.
#[test]
fn every_file_begins_with_what_it_is() {
    for (name, info) in crates() {
        let all = sources(&info, &["src", "tests", "benches", "examples"]);
        assert!(!all.is_empty(), "{name} has no files");
        for path in all {
            let text = std::fs::read_to_string(&path).expect("a source file is text");
            let first =
                text.lines().next().and_then(|line| line.strip_prefix("//! ")).unwrap_or_default();
            assert!(
                !first.is_empty(),
                "{} does not begin with a line `//! ` that says what it is",
                path.display()
            );
        }
    }
}

#[test]
fn make_run_passes_on_what_it_is_given() {
    let out = Command::new("make")
        .args(["-n", "run", "PORT=1", "HTTP_PORT=2", "DATA=d", "ARGS=--x"])
        .current_dir(root())
        .output();
    let out = String::from_utf8(out.expect("make runs the tests").stdout).expect("text");
    assert!(out.contains("standalone --port 1 --http-port 2 --data \"d\" --x"), "{out}");
}
