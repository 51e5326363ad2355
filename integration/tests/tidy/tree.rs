//! The files of the tree: crates, sources, pages, and the few things that the checks need
//! to know of their text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Directories of the top level; a name in backticks that begins with one is a path.
pub(crate) const DIRECTORIES: [&str; 6] =
    ["proxy/", "storage/", "meta/", "integration/", "deploy/", ".ci/"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("integration lies in the workspace")
        .to_owned()
}

/// A file's text, by its path from the top.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One of our crates.
pub(crate) struct CrateInfo {
    pub(crate) directory: PathBuf,
    /// Libraries by name, ours and others'.
    pub(crate) uses: BTreeSet<String>,
    /// Libraries that only its tests use.
    pub(crate) tests_use: BTreeSet<String>,
}

/// Our crates by name, as cargo sees them.
pub(crate) fn crates() -> BTreeMap<String, CrateInfo> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs, it runs this test");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let info = |package: &Value| {
        let named = |kind: Option<&str>| {
            let dependencies = package["dependencies"].as_array().expect("a list of dependencies");
            dependencies
                .iter()
                .filter(|found| found["kind"].as_str() == kind)
                .map(|found| text(&found["name"]))
                .collect()
        };
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        let directory = manifest.parent().expect("a manifest lies in a directory").to_owned();
        (
            text(&package["name"]),
            CrateInfo { directory, uses: named(None), tests_use: named(Some("dev")) },
        )
    };
    packages.iter().map(info).collect()
}

/// All files below a directory with this ending.
pub(crate) fn files_below(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("a directory can be read to its end").path()) {
        match path.is_dir() {
            true => found.extend(files_below(&path, ending)),
            false if path.to_string_lossy().ends_with(ending) => found.push(path),
            false => (),
        }
    }
    found.sort();
    found
}

/// A crate's Rust files, those of crates that lie within its directory left out.
pub(crate) fn sources(info: &CrateInfo, folders: &[&str]) -> Vec<PathBuf> {
    folders.iter().flat_map(|folder| files_below(&info.directory.join(folder), ".rs")).collect()
}

/// The lines of code: comments left out, strings that go on on the next line put
/// together.
pub(crate) fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        match code.strip_suffix('\\') {
            Some(begun) => {
                code.truncate(begun.len());
                code += line.trim_start();
            }
            None if code.is_empty() => code += line,
            None => {
                code.push('\n');
                code += line;
            }
        }
    }
    code
}

/// True if `word` stands in the text and is not part of a longer name.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let end = at + word.len();
        !text[..at].ends_with(is_name) && !text[end..].starts_with(is_name)
    })
}

/// True if an item of this name is defined in the text.
pub(crate) fn defines(text: &str, name: &str) -> bool {
    ["fn", "struct", "enum", "trait", "const", "static", "type", "mod", "macro_rules!", "pub use"]
        .iter()
        .any(|kind| has_word(text, &format!("{kind} {name}")))
}

/// The words in backticks of a line.
pub(crate) fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

#[test]
fn code_and_definitions_are_found() {
    assert_eq!(code("//! use a::b;\n    // a::c\na::d"), "a::d");
    assert!(
        defines("pub(crate) fn eval(op: &Op)", "eval")
            && !defines("fn evaluate()", "eval")
            && !defines("eval()", "eval")
    );
}
