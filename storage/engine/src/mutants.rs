//! Safety rules that a test build can break, one at a time, to show that tests detect it.
//!
//! Only with the cargo feature `mutants`, which no released binary has. Without it
//! [`breaks`] is a constant `false`, and the code that it guards is compiled out. With
//! it, the environment variable `BRIDLE_MUTANT` names the rule; `make mutants` breaks
//! each one (`integration/tests/mutants.rs`).

/// A rule that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// An append is acknowledged after its fsync. Broken, it is acknowledged at once and
    /// written 300 ms later: `kill -9` loses it then, whereas it would not lose what the
    /// kernel has.
    SyncBeforeAnswer,
    /// A vote survives a restart.
    KeepVote,
    /// The log is purged only up to the flushed entry. Broken, every applied entry counts
    /// as flushed.
    PurgeFlushed,
    /// Reads need a valid lease.
    Lease,
    /// A new leader drops the rows that it cached as an earlier leader.
    Adopt,
    /// Operations are evaluated and answered only in the term of the lease. Broken, a
    /// leadership is kept until a write under it fails.
    Term,
}

#[cfg(feature = "mutants")]
impl Rule {
    /// The value of `BRIDLE_MUTANT` that breaks the rule.
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

/// True if this process is to break a rule.
#[cfg(feature = "mutants")]
pub fn breaks(rule: Rule) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("BRIDLE_MUTANT").unwrap_or_default()) == rule.mutant()
}

/// Logs are flushed and purged every second, so that a short test reaches it.
pub const SHORT_LOGS: bool = cfg!(feature = "mutants");

/// True if this process is to break a rule: never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn breaks(_rule: Rule) -> bool {
    false
}
