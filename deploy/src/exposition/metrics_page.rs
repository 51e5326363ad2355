//! The table of `deploy/METRICS.md`, written from the lists of metrics by `make pages`.

use std::path::Path;

use super::METRICS;

const BEGIN: &str = "<!-- metrics -->\n";
const END: &str = "<!-- /metrics -->";

/// All metrics by name, with kind and meaning.
fn table() -> String {
    let ours = METRICS.iter().map(|(name, kind, help)| (*name, format!("{kind:?}"), *help));
    let of_the_proxy = proxy::metrics::descriptors()
        .iter()
        .map(|metric| (metric.name, format!("{:?}", metric.kind), metric.help));
    let mut rows: Vec<_> = ours.chain(of_the_proxy).collect();
    rows.sort();
    let mut table = String::from("| metric | kind | meaning |\n|---|---|---|\n");
    for (name, kind, help) in rows {
        table += &format!("| `{name}` | {} | {help} |\n", kind.to_lowercase());
    }
    table
}

/// Compares the page with the lists, or writes it where `BRIDLE_WRITE_PAGES` is set.
#[test]
fn the_metrics_page_is_as_generated() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("METRICS.md");
    let page = std::fs::read_to_string(&path).expect("the page is there");
    let (before, rest) = page.split_once(BEGIN).expect("the table's marker");
    let (_, after) = rest.split_once(END).expect("the table's other marker");
    let current = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os("BRIDLE_WRITE_PAGES").is_some() {
        std::fs::write(&path, current).expect("the page is writable");
        return;
    }
    assert!(page == current, "deploy/METRICS.md is not as generated: run `make pages`");
}
