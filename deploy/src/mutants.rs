//! A test build that breaks one safety rule announces it, and refuses to run without the
//! name of a rule (`make mutants`, `integration/tests/mutants.rs`). Binaries that are
//! built without the feature `mutants` contain none of it.

use std::io::Write;

/// Values of `BRIDLE_MUTANT`, and the rule that each breaks (`engine::mutants::Rule`,
/// `meta/cluster/src/row_client.rs`).
const MUTANTS: [(&str, &str); 8] = [
    ("none", "nothing: the baseline of the others"),
    ("answer-before-fsync", "writes are acknowledged before they are written and fsynced"),
    (
        "forget-the-vote",
        "a restart loses the vote, and a process that has just started votes immediately",
    ),
    ("purge-too-far", "the log is purged beyond the flushed index"),
    ("read-without-lease", "a leader whose lease may have expired answers reads"),
    ("keep-old-rows", "a new leader trusts the cached rows of its earlier leadership"),
    ("keep-an-old-leadership", "a new leader continues its earlier leadership until a write fails"),
    ("apply-a-retry-twice", "a write of unknown outcome is sent again"),
];

/// Prints the broken rule on standard error.
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
    // A closed standard error is no reason to stop: the rule was chosen on purpose.
    let _ = writeln!(
        std::io::stderr(),
        "NOT A BRIDLE TO TRUST: a test build with BRIDLE_MUTANT={name}: {broken}"
    );
    Ok(())
}
