//! A test build that breaks one safety rule says so, and does nothing without being told
//! which (`make mutants`, `integration/tests/mutants.rs`). Not in any binary that is
//! built without the feature `mutants`.

use std::io::Write;

/// What `BRIDLE_MUTANT` may be, and what is broken then (`engine::mutants::Rule`,
/// `meta/cluster/src/rows.rs`).
const MUTANTS: [(&str, &str); 8] = [
    ("none", "nothing: what the others are measured against"),
    ("answer-before-fsync", "writes are answered before they are written, let alone synced"),
    ("forget-the-vote", "votes are forgotten by a restart, and who has just started votes at once"),
    ("purge-too-far", "the log is purged beyond what is on disk"),
    ("read-without-lease", "a leader that may be none any more answers reads"),
    ("keep-old-rows", "who begins to lead again believes what it knew of rows before"),
    (
        "keep-an-old-leadership",
        "who leads again goes on from its earlier leadership until a write fails",
    ),
    ("apply-a-retry-twice", "a write of unknown outcome is sent again"),
];

/// Says on standard error what is broken.
///
/// # Errors
/// `BRIDLE_MUTANT` is not one of [`MUTANTS`].
pub(crate) fn announce() -> anyhow::Result<()> {
    let chosen = std::env::var("BRIDLE_MUTANT").unwrap_or_default();
    let Some((name, broken)) = MUTANTS.iter().find(|(name, _)| *name == chosen) else {
        let known = MUTANTS.map(|(name, _)| name).join(", ");
        anyhow::bail!(
            "this is a test build that LOSES DATA on purpose; it runs only when BRIDLE_MUTANT is \
             one of {known}"
        );
    };
    // Nobody to tell is no reason to stop: the name was given.
    let _ = writeln!(
        std::io::stderr(),
        "NOT A BRIDLE TO TRUST: a test build with BRIDLE_MUTANT={name}: {broken}"
    );
    Ok(())
}
