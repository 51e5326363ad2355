//! The house is as the README says: which crate may know which, and every path, name and
//! list on that page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crates that run as servers: they meet in the binary only.
const SERVERS: [&str; 3] = ["storage", "meta", "proxy"];

/// Libraries with a home: what names them, and the only crates that may.
const HOMES: &[(&str, &[&str])] = &[
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

/// Directories of the top level; a name in backticks that begins with one is a path.
const CHAPTERS: [&str; 6] = ["proxy/", "storage/", "meta/", "integration/", "deploy/", ".ci/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("integration lies in the workspace")
        .to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn readme() -> String {
    read("README.md")
}

/// One of our crates.
struct House {
    directory: PathBuf,
    /// Libraries by name, ours and others'.
    uses: BTreeSet<String>,
    /// Those of its tests.
    tests_use: BTreeSet<String>,
}

/// Our crates by name, as cargo sees them.
fn crates() -> BTreeMap<String, House> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs, it runs this test");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let house = |package: &Value| {
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
            House { directory, uses: named(None), tests_use: named(Some("dev")) },
        )
    };
    packages.iter().map(house).collect()
}

/// What stands between `<!-- name -->` and `<!-- /name -->`.
fn section<'a>(page: &'a str, name: &str) -> &'a str {
    let (_, rest) = page
        .split_once(&format!("<!-- {name} -->\n"))
        .unwrap_or_else(|| panic!("README.md has no <!-- {name} -->"));
    rest.split_once(&format!("<!-- /{name} -->"))
        .unwrap_or_else(|| panic!("README.md has no <!-- /{name} -->"))
        .0
}

/// The cells of a table's rows, its head left out.
fn rows(table: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = table.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// What stands in backticks in a line.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// The README's sentences and tables: no examples, no generated lists.
fn prose(page: &str) -> String {
    let (before, rest) = page.split_once("<!-- commands -->").expect("the table's marker");
    let (_, after) = rest.split_once("<!-- /commands -->").expect("the table's other marker");
    let mut is_example = false;
    let lines = before.lines().chain(after.lines()).filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_example ^= is_fence;
        !is_example && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// All files below a directory with this ending.
fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("a directory can be read to its end").path()) {
        match path.is_dir() {
            true => found.extend(files(&path, ending)),
            false if path.to_string_lossy().ends_with(ending) => found.push(path),
            false => (),
        }
    }
    found.sort();
    found
}

/// A crate's Rust files, those of crates that lie within its directory left out.
fn sources(house: &House, folders: &[&str]) -> Vec<PathBuf> {
    folders.iter().flat_map(|folder| files(&house.directory.join(folder), ".rs")).collect()
}

/// The lines of code: comments left out, strings that go on on the next line put together.
fn code(text: &str) -> String {
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

/// Whether `word` stands in the text and is not part of a longer name.
fn has_word(text: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let end = at + word.len();
        !text[..at].ends_with(is_name) && !text[end..].starts_with(is_name)
    })
}

/// Whether something of this name is defined in the text.
fn defines(text: &str, name: &str) -> bool {
    ["fn", "struct", "enum", "trait", "const", "static", "type", "mod", "macro_rules!", "pub use"]
        .iter()
        .any(|kind| has_word(text, &format!("{kind} {name}")))
}

/// Whether code names a library.
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
    let page = readme();
    let mut declared = BTreeMap::new();
    for cells in rows(section(&page, "house")) {
        let [name, directory, _, uses] = cells[..] else {
            panic!("a row of the house has four cells: {cells:?}")
        };
        let name = quoted(name)[0].to_owned();
        let found = crates
            .get(&name)
            .unwrap_or_else(|| panic!("the README names a crate {name}, which is not there"));
        assert_eq!(root().join(quoted(directory)[0]), found.directory, "where {name} lies");
        declared.insert(name, quoted(uses).into_iter().map(str::to_owned).collect::<BTreeSet<_>>());
    }
    let ours = |uses: &BTreeSet<String>| {
        uses.iter().filter(|name| crates.contains_key(*name)).cloned().collect::<BTreeSet<_>>()
    };
    let actual: BTreeMap<_, _> =
        crates.iter().map(|(name, house)| (name.clone(), ours(&house.uses))).collect();
    assert_eq!(declared, actual, "the README's table (left) and Cargo.toml (right)");
}

/// Servers meet in the binary only; row, cluster and engine do not know each other;
/// nobody knows the binary or the tests.
#[test]
fn storeys_are_kept() {
    for (name, house) in crates() {
        let knows = |other: &&str| {
            *other != name && (house.uses.contains(*other) || house.tests_use.contains(*other))
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
            may_not.iter().chain(&["bridle", "integration"]).copied().filter(knows).collect();
        assert!(found.is_empty(), "{name} may not know {found:?}");
    }
}

#[test]
fn libraries_are_named_where_they_belong() {
    let crates = crates();
    for (library, homes) in HOMES {
        let mut is_used = false;
        for (name, house) in &crates {
            let is_home = homes.contains(&name.as_str());
            is_used |=
                is_home && (house.uses.contains(*library) || house.tests_use.contains(*library));
            // Tests may use more, but never what has one home.
            let is_named = house.uses.contains(*library)
                || (homes.len() == 1 && house.tests_use.contains(*library));
            assert!(
                is_home || !is_named,
                "{name}/Cargo.toml names {library}, which belongs to {homes:?}"
            );
            if is_home {
                continue;
            }
            for path in sources(house, &["src"]) {
                let text = std::fs::read_to_string(&path).expect("a source file is text");
                assert!(
                    !names(&code(&text), library),
                    "{} names {library}, which belongs to {homes:?}",
                    path.display()
                );
            }
        }
        assert!(is_used, "nobody uses {library} any more: take it from this list");
    }
}

#[test]
fn every_dependency_is_used() {
    let crates = crates();
    for (name, house) in &crates {
        let text = |folders: &[&str]| {
            let read = |path: PathBuf| {
                code(&std::fs::read_to_string(path).expect("a source file is text"))
            };
            sources(house, folders).into_iter().map(read).collect::<Vec<_>>().join("\n")
        };
        let (inside, around) = (text(&["src"]), text(&["src", "tests", "benches", "examples"]));
        for library in &house.uses {
            assert!(
                names(&inside, library),
                "{name}/Cargo.toml names {library}, and no file of its src does"
            );
        }
        for library in &house.tests_use {
            assert!(
                names(&around, library),
                "{name}/Cargo.toml names {library} for tests, and none uses it"
            );
        }
    }
    let manifest = read("Cargo.toml");
    let (_, shared) =
        manifest.split_once("[workspace.dependencies]\n").expect("the workspace has dependencies");
    let (shared, _) = shared.split_once("\n[").expect("something comes after them");
    for library in
        shared.lines().filter_map(|line| line.split_once(" = ")).map(|(library, _)| library)
    {
        let is_used = crates
            .values()
            .any(|house| house.uses.contains(library) || house.tests_use.contains(library));
        assert!(
            is_used || crates.contains_key(library),
            "[workspace.dependencies] has {library}, and no crate uses it"
        );
    }
}

/// Paths exist; names in brackets behind a path are defined in that file; `crate::name`
/// is defined in that crate.
#[test]
fn what_the_readme_names_exists() {
    let (page, crates) = (readme(), crates());
    let mut wrong = Vec::new();
    for block in prose(&page).split("\n\n") {
        assert!(
            block.matches('`').count().is_multiple_of(2),
            "README.md has an odd backtick in: {block}"
        );
        let mut pieces = block.split('`');
        let mut before = pieces.next().unwrap_or_default();
        // The file whose names are told in brackets.
        let mut file: Option<String> = None;
        while let (Some(word), Some(after)) = (pieces.next(), pieces.next()) {
            if CHAPTERS.iter().any(|chapter| word.starts_with(chapter)) {
                if !root().join(word).exists() {
                    wrong.push(format!("{word} does not exist"));
                }
                file = word
                    .ends_with(".rs")
                    .then(|| word.to_owned())
                    .filter(|_| after.trim_start().starts_with('('));
            } else if let Some(path) = &file {
                if !before.contains(')')
                    && root().join(path).exists()
                    && !defines(&read(path), word)
                {
                    wrong.push(format!("{path} defines no {word}"));
                }
                if after.contains(')') {
                    file = None;
                }
            } else if let Some((name, symbol)) = word
                .split_once("::")
                .and_then(|(name, rest)| Some((name, rest.rsplit("::").next()?)))
            {
                let house = crates.get(name);
                let is_defined = |house| {
                    sources(house, &["src"]).iter().any(|path| defines(&read(path), symbol))
                };
                if !house.is_some_and(is_defined) {
                    wrong.push(format!("no crate {name} with {symbol}"));
                }
            } else if ["Makefile", "LICENSE"].contains(&word) && !root().join(word).exists() {
                wrong.push(format!("{word} does not exist"));
            }
            before = after;
        }
    }
    assert!(wrong.is_empty(), "README.md:\n{}", wrong.join("\n"));
}

/// Headings that the contents link to are there.
#[test]
fn links_within_the_readme_lead_somewhere() {
    let page = readme();
    let slug = |title: &str| {
        let kept = title.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || *c == '-').collect::<String>()
    };
    let headings: BTreeSet<_> =
        page.lines().filter_map(|line| line.strip_prefix("## ")).map(slug).collect();
    let mut links = 0;
    for target in page.split("](#").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(headings.contains(target), "README.md links to #{target}, and has {headings:?}");
        links += 1;
    }
    assert!(links > 0, "the contents are gone");
}

/// Each row of the invariants names a test function that is one.
#[test]
fn every_invariant_names_its_test() {
    let page = readme();
    let (_, table) = page.split_once("| invariant | test |").expect("the table of invariants");
    let table = table.split("\n\n").next().unwrap_or_default();
    for line in table.lines().skip(2) {
        let (claim, tests) = line.trim_matches('|').split_once(" | ").expect("two cells");
        let words = quoted(tests);
        let (paths, functions): (Vec<&str>, Vec<&str>) =
            words.into_iter().partition(|word| word.contains('/'));
        assert!(!paths.is_empty() && !functions.is_empty(), "no test holds this:{claim}");
        let text: String = paths.iter().map(read).collect();
        for function in functions {
            let (before, _) = text
                .split_once(&format!("fn {function}("))
                .unwrap_or_else(|| panic!("{paths:?} have no fn {function}"));
            let attributes: Vec<_> = before
                .rsplit('\n')
                .skip(1)
                .take_while(|line| line.trim_start().starts_with(['#', '/']))
                .collect();
            assert!(
                attributes.iter().any(|line| line.contains("test]") || line.contains("test(")),
                "{function} is no test"
            );
        }
    }
}

/// Tests that module docs name under `# Invariants` are there. (Only names of three words
/// and more: shorter ones may be anything.)
#[test]
fn invariants_in_module_docs_name_what_exists() {
    let paths: Vec<_> = crates()
        .values()
        .flat_map(|house| sources(house, &["src", "tests", "benches", "examples"]))
        .collect();
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

#[test]
fn the_command_table_is_as_generated() {
    let page = readme();
    let shown = section(&page, "commands");
    assert!(
        shown == commands::docs::readme_table(),
        "the README's command table is not the generated one: run `make readme`"
    );
}

/// The README's list of metrics has the names and sentences of the sources, and all of
/// them; the dashboard asks for no others.
#[test]
fn the_metrics_are_those_exported() {
    let (page, sources) =
        (readme(), code(&read("deploy/src/exposition.rs")) + &code(&read("proxy/src/metrics.rs")));
    let is_metric = |word: &&str| {
        let is_named = word.starts_with("bridle_") || word.starts_with("process_");
        is_named
            && !word.ends_with('_')
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let exported: BTreeSet<&str> =
        sources.split('"').skip(1).step_by(2).filter(is_metric).collect();
    let mut shown = BTreeSet::new();
    for cells in rows(section(&page, "metrics")) {
        let [name, _, help] = cells[..] else {
            panic!("a row of the metrics has three cells: {cells:?}")
        };
        assert!(sources.contains(&format!("\"{help}\"")), "no metric is described as: {help}");
        shown.insert(quoted(name)[0]);
    }
    let (missing, gone): (Vec<_>, Vec<_>) =
        (exported.difference(&shown).collect(), shown.difference(&exported).collect());
    assert!(
        missing.is_empty() && gone.is_empty(),
        "the README's metrics lack {missing:?}, and have {gone:?}, which are not exported"
    );
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let dashboard = read("deploy/grafana/bridle.json");
    let asked: BTreeSet<&str> = dashboard.split(|c| !is_name(c)).filter(is_metric).collect();
    assert!(!asked.is_empty(), "the dashboard shows nothing of ours");
    for name in asked {
        let whole = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|part| name.strip_suffix(part))
            .unwrap_or(name);
        assert!(exported.contains(whole), "the dashboard asks for {name}, which is not exported");
    }
}

/// Whoever opens a file is told first what it is.
#[test]
fn every_file_begins_with_what_it_is() {
    for (name, house) in crates() {
        let all = sources(&house, &["src", "tests", "benches", "examples"]);
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

/// What the tests above go by does tell right from wrong.
#[test]
fn names_are_told_apart() {
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
    assert_eq!(code("//! use a::b;\n    // a::c\na::d"), "a::d");
    assert!(
        defines("pub(crate) fn eval(op: &Op)", "eval")
            && !defines("fn evaluate()", "eval")
            && !defines("eval()", "eval")
    );
    assert_eq!(
        prose("a\n```\nb\n```\nc\n<!-- commands -->\nd\n<!-- /commands -->\ne")
            .lines()
            .collect::<String>(),
        "ace"
    );
}

#[test]
fn make_run_passes_on_what_it_is_given() {
    let said = Command::new("make")
        .args(["-n", "run", "PORT=1", "HTTP_PORT=2", "DATA=d", "ARGS=--x"])
        .current_dir(root())
        .output();
    let said = String::from_utf8(said.expect("make runs the tests").stdout).expect("text");
    assert!(said.contains("standalone --port 1 --http-port 2 --data \"d\" --x"), "{said}");
}
