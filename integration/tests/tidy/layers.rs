//! Layering: which crate may use which, and which libraries have one home.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::pages::{block, table_rows};
use super::tree::{CrateInfo, code, crates, quoted, read, root, sources};

/// Crates that run as servers: they meet in the binary only.
const SERVERS: [&str; 3] = ["storage", "meta", "proxy"];

/// Libraries and the only crates that may name them.
const ALLOWED_USERS: &[(&str, &[&str])] = &[
    ("rocksdb", &["engine"]),
    ("librocksdb-sys", &["engine"]),
    ("openraft", &["engine"]),
    ("tikv-jemallocator", &["engine"]),
    ("redis-protocol", &["proxy", "integration"]),
    ("clap", &["bridle"]),
    ("anyhow", &["bridle"]),
    ("ureq", &["bridle", "meta", "integration"]),
    ("axum", &["bridle", "meta"]),
    ("hyper-util", &["bridle"]),
    // No I/O, no clock, no randomness in `row` and `commands`.
    ("tokio", &["cluster", "engine", "storage", "meta", "proxy", "bridle", "integration"]),
    ("rand", &["cluster", "proxy", "bridle"]),
    ("tracing", &["cluster", "engine", "storage", "meta", "proxy", "bridle"]),
];

/// True if code names a library.
fn names(text: &str, library: &str) -> bool {
    let path = library.replace('-', "_");
    text.match_indices(&path).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + path.len()..]);
        let is_whole =
            !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '"');
        is_whole
            && (after.starts_with("::")
                || (before.ends_with("use ") && after.starts_with([';', ' '])))
    })
}

#[test]
fn crates_depend_as_the_readme_says() {
    let crates = crates();
    let page = read("README.md");
    let mut declared = BTreeMap::new();
    for cells in table_rows(block(&page, "crates")) {
        let [name, directory, _, uses] = cells[..] else {
            panic!("a row of the crates has four cells: {cells:?}")
        };
        let name = quoted(name)[0].to_owned();
        let found = crates
            .get(&name)
            .unwrap_or_else(|| panic!("README.md names a crate {name}, which is not there"));
        assert_eq!(root().join(quoted(directory)[0]), found.directory, "directory of {name}");
        declared.insert(name, quoted(uses).into_iter().map(str::to_owned).collect::<BTreeSet<_>>());
    }
    let ours = |uses: &BTreeSet<String>| {
        uses.iter().filter(|name| crates.contains_key(*name)).cloned().collect::<BTreeSet<_>>()
    };
    let actual: BTreeMap<_, _> =
        crates.iter().map(|(name, info)| (name.clone(), ours(&info.uses))).collect();
    assert_eq!(declared, actual, "README.md's table (left) and Cargo.toml (right)");
}

/// Servers meet in the binary only; row, cluster and engine do not use each other; no
/// crate uses the binary or the tests.
#[test]
fn layering_holds() {
    for (name, info) in crates() {
        let uses = |other: &&str| {
            *other != name && (info.uses.contains(*other) || info.tests_use.contains(*other))
        };
        let may_not: Vec<&str> = match name.as_str() {
            "row" | "cluster" | "engine" => {
                vec!["row", "commands", "cluster", "engine", "storage", "meta", "proxy"]
            }
            "commands" => vec!["cluster", "engine", "storage", "meta", "proxy"],
            server if SERVERS.contains(&server) => SERVERS.to_vec(),
            _ => vec![],
        };
        let found: Vec<_> =
            may_not.iter().chain(&["bridle", "integration"]).copied().filter(uses).collect();
        assert!(found.is_empty(), "{name} may not use {found:?}");
    }
}

#[test]
fn libraries_are_named_where_they_belong() {
    let crates = crates();
    for (library, users) in ALLOWED_USERS {
        let mut is_used = false;
        for (name, info) in &crates {
            let is_allowed = users.contains(&name.as_str());
            is_used |=
                is_allowed && (info.uses.contains(*library) || info.tests_use.contains(*library));
            // Tests may use more, but never a library with one home.
            let is_named = info.uses.contains(*library)
                || (users.len() == 1 && info.tests_use.contains(*library));
            assert!(
                is_allowed || !is_named,
                "{name}/Cargo.toml names {library}, which belongs to {users:?}"
            );
            if is_allowed {
                continue;
            }
            for path in sources(info, &["src"]) {
                let text = std::fs::read_to_string(&path).expect("a source file is text");
                assert!(
                    !names(&code(&text), library),
                    "{} names {library}, which belongs to {users:?}",
                    path.display()
                );
            }
        }
        assert!(is_used, "no crate uses {library} any more: take it from this list");
    }
}

#[test]
fn every_dependency_is_used() {
    let crates = crates();
    for (name, info) in &crates {
        let text = |folders: &[&str]| {
            let read = |path: PathBuf| {
                code(&std::fs::read_to_string(path).expect("a source file is text"))
            };
            sources(info, folders).into_iter().map(read).collect::<Vec<_>>().join("\n")
        };
        let (inside, around) = (text(&["src"]), text(&["src", "tests", "benches", "examples"]));
        for library in &info.uses {
            assert!(
                names(&inside, library),
                "{name}/Cargo.toml names {library}, and no file of its src does"
            );
        }
        for library in &info.tests_use {
            assert!(
                names(&around, library),
                "{name}/Cargo.toml names {library} for tests, and none uses it"
            );
        }
    }
    let manifest = read("Cargo.toml");
    let (_, shared) =
        manifest.split_once("[workspace.dependencies]\n").expect("the workspace has dependencies");
    let (shared, _) = shared.split_once("\n[").expect("another section follows them");
    for library in
        shared.lines().filter_map(|line| line.split_once(" = ")).map(|(library, _)| library)
    {
        let is_used =
            |info: &CrateInfo| info.uses.contains(library) || info.tests_use.contains(library);
        assert!(
            crates.values().any(is_used) || crates.contains_key(library),
            "[workspace.dependencies] has {library}, and no crate uses it"
        );
    }
}

#[test]
fn names_of_libraries_are_told_apart() {
    for line in [
        "use rocksdb::DB;",
        "let db = rocksdb::DB::open();",
        "    use rocksdb;",
        "extern crate a; (rocksdb::DB)",
    ] {
        assert!(names(line, "rocksdb"), "{line}");
    }
    for line in [
        "use librocksdb::DB;",
        "mod rocksdb { }",
        "let rocksdb = 1;",
        "rocksdb_sys::open()",
        "crate::rocksdb::open()",
    ] {
        assert!(!names(line, "rocksdb"), "{line}");
    }
    assert!(names("use redis_protocol::codec;", "redis-protocol"));
}
