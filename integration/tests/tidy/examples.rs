//! Examples on pages are taken from the tree: Rust code, command scripts, lines of the
//! log.

use super::pages::pages;
use super::tree::{code, crates, files_below, read, root, sources};

/// The fenced blocks of a page, each with its language.
fn examples(page: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (fence, &mut open) {
            (Some(language), None) => open = Some((language.trim().to_owned(), String::new())),
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some((_, text))) => {
                *text += line;
                text.push('\n');
            }
            (None, None) => (),
        }
    }
    found
}

/// The words of a text, one blank between two.
fn normalized(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn rust_on_pages_is_in_the_sources() {
    let all: Vec<_> = crates()
        .values()
        .flat_map(|info| sources(info, &["src"]))
        .map(|path| normalized(&read(path)))
        .collect();
    let mut seen = 0;
    for page in pages() {
        for (_, example) in examples(&page.text).iter().filter(|(language, _)| language == "rust") {
            seen += 1;
            let example = normalized(example);
            assert!(
                all.iter().any(|text| text.contains(&example)),
                "{} shows code that is in no source: {example}",
                page.path
            );
        }
    }
    assert!(seen > 0, "pages show no code any more");
}

/// An example whose first line is a comment and whose second is a command is a part of a
/// command script.
#[test]
fn scripts_on_pages_are_those_of_the_tests() {
    let folder = root().join("proxy/commands/tests/scripts");
    let all: String = files_below(&folder, ".script").iter().map(read).collect();
    let is_script = |text: &str| {
        let mut lines = text.lines();
        lines.next().is_some_and(|line| line.starts_with("# "))
            && lines.next().is_some_and(|line| line.starts_with("> "))
    };
    let mut seen = 0;
    for page in pages() {
        for (_, example) in examples(&page.text).iter().filter(|(_, text)| is_script(text)) {
            seen += 1;
            assert!(all.contains(example), "{} shows another script: {example}", page.path);
        }
    }
    assert!(seen > 0, "pages show no script any more");
}

/// The first words of errors that Redis does not have are those of the sources.
#[test]
fn errors_on_pages_are_those_of_the_sources() {
    let page = read("proxy/COMPATIBILITY.md");
    let (_, table) = page.split_once("| begins with | meaning |").expect("the table of errors");
    let table = table.split("\n\n").next().unwrap_or_default();
    let crates = crates();
    let all: String = ["proxy", "commands"]
        .iter()
        .flat_map(|name| sources(&crates[*name], &["src"]))
        .map(|path| code(&read(path)))
        .collect();
    let errors: Vec<_> = table.lines().skip(2).filter_map(|line| line.split('`').nth(1)).collect();
    assert!(!errors.is_empty(), "the page shows no errors any more");
    for error in errors {
        assert!(all.contains(error), "proxy/COMPATIBILITY.md: no error begins with {error}");
    }
}

/// `LEVEL crate::module: message key=...`: the module has this message.
#[test]
fn log_lines_on_pages_are_those_of_the_sources() {
    let crates = crates();
    let mut seen = 0;
    for page in pages() {
        for line in examples(&page.text).iter().flat_map(|(_, text)| text.lines()) {
            let Some((_, rest)) =
                line.split_once(' ').filter(|(level, _)| ["INFO", "WARN"].contains(level))
            else {
                continue;
            };
            seen += 1;
            let (target, rest) = rest.split_once(": ").expect("a line of the log has a target");
            let (name, module) = target.split_once("::").expect("crate and module");
            let (message, _) = rest.split_once('=').unwrap_or((rest, ""));
            let (message, _) = message.rsplit_once(' ').expect("words before the first field");
            let path = format!("src/{}.rs", module.replace("::", "/"));
            let text = code(&read(crates[name].directory.join(path)));
            assert!(text.contains(message), "{}: {target} does not log: {message}", page.path);
        }
    }
    assert!(seen > 0, "pages show no line of the log any more");
}
