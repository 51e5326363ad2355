//! Safety rules that a test build can break, one at a time, to show that the tests
//! notice.
//!
//! Only with the cargo feature `mutants`, which no shipped binary has: without it
//! [`breaks`] is a constant `false`, and what it guards is gone from the binary. With it,
//! the rule is named by the environment variable `BRIDLE_MUTANT`; `make mutants` goes
//! through all of them (`integration/tests/mutants.rs`).

/// A rule that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// An append is called back after its fsync. Broken, it is called back at once and
    /// written 300 ms later: `kill -9` does lose it then, and would not lose what the
    /// kernel has.
    SyncBeforeAnswer,
    /// A vote outlives a restart.
    KeepVote,
    /// The log is purged no further than what is flushed. Broken, whatever is applied
    /// counts as flushed.
    PurgeFlushed,
    /// Reads need a lease that has not run out.
    Lease,
    /// Who begins to lead forgets what it knew of rows as an earlier leader.
    Adopt,
    /// Nothing is evaluated or answered under another term than that of the lease.
    /// Broken, a leadership is kept until a write under it fails.
    Term,
}

#[cfg(feature = "mutants")]
impl Rule {
    /// What `BRIDLE_MUTANT` calls its breach.
    fn mutant(self) -> &'static str {
        match self {
            Rule::SyncBeforeAnswer => "answer-before-fsync",
            Rule::KeepVote => "forget-the-vote",
            Rule::PurgeFlushed => "purge-too-far",
            Rule::Lease => "read-without-lease",
            Rule::Adopt => "keep-old-rows",
            Rule::Term => "keep-an-old-leadership",
        }
    }
}

/// Whether this process is to break a rule.
#[cfg(feature = "mutants")]
pub fn breaks(rule: Rule) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("BRIDLE_MUTANT").unwrap_or_default()) == rule.mutant()
}

/// Whether logs are flushed and purged every second, so that a test of seconds sees it.
pub const SHORT_LOGS: bool = cfg!(feature = "mutants");

/// Whether this process is to break a rule: never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn breaks(_rule: Rule) -> bool {
    false
}
