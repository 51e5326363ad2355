//! Pages: paths, symbols and tests that they name exist, links lead somewhere, generated
//! blocks are current, and the front page stays a front page.

use std::collections::BTreeSet;
use std::path::Path;

use super::tree::{
    CrateInfo, DIRECTORIES, code, crates, defines, files_below, has_word, quoted, read, root,
    sources,
};

/// Directories with a page of their own.
const DOORS: [&str; 5] = ["proxy", "storage", "meta", "deploy", "integration"];

/// The front page's bounds.
const FRONT_PAGE_LINES: usize = 200;
const FRONT_PAGE_BYTES: usize = 12 << 10;

/// The glossary's bound.
const GLOSSARY_ROWS: usize = 40;

/// A page: its path from the top, and its text.
pub(crate) struct Page {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// All pages of the tree.
pub(crate) fn pages() -> Vec<Page> {
    let root = root();
    let mut paths = vec![root.join("README.md")];
    paths
        .extend(DIRECTORIES.iter().flat_map(|directory| files_below(&root.join(directory), ".md")));
    let page = |path: &Path| {
        let path = path.strip_prefix(&root).expect("pages lie below the top");
        Page { path: path.to_string_lossy().into_owned(), text: read(path) }
    };
    let is_ours = |path: &str| !path.contains("/target/") && !path.contains("/node_modules/");
    paths.iter().map(|path| page(path)).filter(|page| is_ours(&page.path)).collect()
}

/// The text between `<!-- name -->` and `<!-- /name -->`.
pub(crate) fn block<'a>(page: &'a str, name: &str) -> &'a str {
    let (_, rest) = page
        .split_once(&format!("<!-- {name} -->\n"))
        .unwrap_or_else(|| panic!("the page has no <!-- {name} -->"));
    rest.split_once(&format!("<!-- /{name} -->"))
        .unwrap_or_else(|| panic!("the page has no <!-- /{name} -->"))
        .0
}

/// The cells of a table's rows, its head left out.
pub(crate) fn table_rows(table: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = table.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// A page's sentences and tables: no examples, no generated command table.
fn prose(page: &str) -> String {
    let (mut is_example, mut is_generated) = (false, false);
    let lines = page.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_example ^= is_fence;
        is_generated ^= matches!(*line, "<!-- commands -->" | "<!-- /commands -->");
        !is_example && !is_fence && !is_generated && !line.starts_with("<!--")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// GitHub's name for a heading.
fn anchor(title: &str) -> String {
    let kept = title.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

/// Paths exist; names in brackets behind a path are defined in that file; `crate::name`
/// is defined in that crate.
#[test]
fn what_pages_name_exists() {
    let crates = crates();
    let mut wrong = Vec::new();
    for page in pages() {
        for block in prose(&page.text).split("\n\n") {
            names_exist(&page.path, block, &crates, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "pages name what is not there:\n{}", wrong.join("\n"));
}

fn names_exist(
    page: &str,
    block: &str,
    crates: &std::collections::BTreeMap<String, CrateInfo>,
    wrong: &mut Vec<String>,
) {
    assert!(block.matches('`').count().is_multiple_of(2), "{page} has an odd backtick in: {block}");
    let mut pieces = block.split('`');
    let mut before = pieces.next().unwrap_or_default();
    // The file whose names follow in brackets.
    let mut file: Option<String> = None;
    while let (Some(word), Some(after)) = (pieces.next(), pieces.next()) {
        if DIRECTORIES.iter().any(|directory| word.starts_with(directory)) {
            if !root().join(word).exists() {
                wrong.push(format!("{page}: {word} does not exist"));
            }
            file = word
                .ends_with(".rs")
                .then(|| word.to_owned())
                .filter(|_| after.trim_start().starts_with('('));
        } else if let Some(path) = &file {
            if !before.contains(')') && root().join(path).exists() && !defines(&read(path), word) {
                wrong.push(format!("{page}: {path} defines no {word}"));
            }
            if after.contains(')') {
                file = None;
            }
        } else if let Some((name, symbol)) =
            word.split_once("::").and_then(|(name, rest)| Some((name, rest.rsplit("::").next()?)))
        {
            let is_defined =
                |info| sources(info, &["src"]).iter().any(|path| defines(&read(path), symbol));
            if !crates.get(name).is_some_and(is_defined) {
                wrong.push(format!("{page}: no crate {name} with {symbol}"));
            }
        } else if ["Makefile", "LICENSE"].contains(&word) && !root().join(word).exists() {
            wrong.push(format!("{page}: {word} does not exist"));
        }
        before = after;
    }
}

/// Links within a page and to other files of the tree, their headings included.
#[test]
fn links_lead_somewhere() {
    let headings = |text: &str| {
        prose(text)
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| anchor(line.trim_start_matches('#')))
            .collect::<BTreeSet<_>>()
    };
    let (mut wrong, mut links) = (Vec::new(), 0);
    for page in pages() {
        let text = prose(&page.text);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("https://") {
                continue;
            }
            links += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let here = root().join(&page.path);
            let path = match file {
                "" => here,
                file => here.parent().expect("a page lies in a directory").join(file),
            };
            let is_there = path.exists()
                && (heading.is_empty()
                    || headings(&std::fs::read_to_string(&path).unwrap_or_default())
                        .contains(heading)
                    || generated_headings(&path).contains(heading));
            if !is_there {
                wrong.push(format!("{}: {target}", page.path));
            }
        }
    }
    assert!(wrong.is_empty(), "links lead nowhere:\n{}", wrong.join("\n"));
    assert!(links > 20, "the links are gone: {links}");
}

/// Headings of the command table, which [`prose`] leaves out.
fn generated_headings(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect()
}

/// Each directory's page has a table of invariants, and each row names test functions.
#[test]
fn every_invariant_names_its_test() {
    for page in pages() {
        let is_door = DOORS.iter().any(|door| page.path == format!("{door}/README.md"));
        let Some((_, table)) = page.text.split_once("| invariant | test |") else {
            assert!(!is_door, "{} has no table of invariants", page.path);
            continue;
        };
        let table = table.split("\n\n").next().unwrap_or_default();
        for line in table.lines().skip(2) {
            let (claim, tests) = line.trim_matches('|').split_once(" | ").expect("two cells");
            tests_exist(claim, tests);
        }
    }
}

fn tests_exist(claim: &str, tests: &str) {
    let (paths, functions): (Vec<&str>, Vec<&str>) =
        quoted(tests).into_iter().partition(|word| word.contains('/'));
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

#[test]
fn the_command_table_is_as_generated() {
    let page = read("proxy/COMMANDS.md");
    assert!(
        block(&page, "commands") == commands::docs::command_tables(),
        "the tables of proxy/COMMANDS.md are not the generated ones: run `make pages`"
    );
}

/// The list of metrics has all names that the sources export; the dashboard asks for no
/// others. (`deploy/src/exposition/metrics_page.rs` holds its sentences.)
#[test]
fn the_metrics_are_those_exported() {
    let page = read("deploy/METRICS.md");
    let sources = code(&read("deploy/src/exposition.rs")) + &code(&read("proxy/src/metrics.rs"));
    let is_metric = |word: &&str| {
        let is_named = word.starts_with("bridle_") || word.starts_with("process_");
        is_named
            && !word.ends_with('_')
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let exported: BTreeSet<&str> =
        sources.split('"').skip(1).step_by(2).filter(is_metric).collect();
    let shown: BTreeSet<&str> =
        table_rows(block(&page, "metrics")).map(|cells| quoted(cells[0])[0]).collect();
    let (missing, gone): (Vec<_>, Vec<_>) =
        (exported.difference(&shown).collect(), shown.difference(&exported).collect());
    assert!(
        missing.is_empty() && gone.is_empty(),
        "deploy/METRICS.md lacks {missing:?}, and has {gone:?}, which are not exported"
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

/// The glossary's words in backticks are types, and there are few enough words to learn.
#[test]
fn the_glossary_is_short_and_its_types_exist() {
    let page = read("storage/README.md");
    let (_, glossary) = page.split_once("\n## Glossary\n").expect("storage has the glossary");
    let (glossary, _) = glossary.split_once("\n## ").unwrap_or((glossary, ""));
    let rows: Vec<_> = table_rows(glossary).collect();
    assert!(
        (1..=GLOSSARY_ROWS).contains(&rows.len()),
        "{} rows, at most {GLOSSARY_ROWS}: not every word needs one",
        rows.len()
    );
    let texts: Vec<_> = crates()
        .values()
        .flat_map(|info| sources(info, &["src"]))
        .map(|path| code(&read(path)))
        .collect();
    let mut words = BTreeSet::new();
    for cells in rows {
        let [word, _, _] = cells[..] else {
            panic!("a row of the glossary has three cells: {cells:?}")
        };
        assert!(words.insert(word), "{word} is explained twice");
        for name in quoted(word) {
            let is_type = |text: &String| {
                ["struct", "enum", "trait", "type"]
                    .iter()
                    .any(|kind| has_word(text, &format!("{kind} {name}")))
            };
            assert!(texts.iter().any(is_type), "the glossary names a type {name}: there is none");
        }
    }
}

/// The front page can be read in one sitting.
#[test]
fn the_front_page_is_short() {
    let page = read("README.md");
    let (lines, bytes) = (page.lines().count(), page.len());
    assert!(
        lines <= FRONT_PAGE_LINES && bytes <= FRONT_PAGE_BYTES,
        "README.md has {lines} lines and {bytes} bytes; at most {FRONT_PAGE_LINES} and \
         {FRONT_PAGE_BYTES}: move details to a directory's page"
    );
}

#[test]
fn prose_and_anchors_are_found() {
    assert_eq!(
        prose("a\n```\nb\n```\nc\n<!-- commands -->\nd\n<!-- /commands -->\ne")
            .lines()
            .collect::<String>(),
        "ace"
    );
    assert_eq!(anchor(" Bridle's own commands"), "bridles-own-commands");
    assert_eq!(anchor("Hashes, beyond Redis"), "hashes-beyond-redis");
}
