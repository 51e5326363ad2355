//! Key specifications: the positions of a command's keys among its arguments, and the
//! access to them.
//!
//! An entry declares Redis's key specifications, as COMMAND INFO shows them, in a short
//! notation:
//!
//! | declaration | for example |
//! |---|---|
//! | `Keys::ONE` | GET |
//! | `Keys::ALL.with("RM delete")` | DEL |
//! | `Keys::ONE.with("RW access delete").and(Keys::SECOND.with("OW update"))` | RENAME |
//! | `Keys::range(1, -2, 1)` | BLPOP: all arguments but the last |
//! | `Keys::counted(2)` | EVAL: the second argument is the number of keys |
//! | `Keys::ONE.with("OW update").and(Keys::counted(2).with("RO access"))` | ZUNIONSTORE |
//! | `Keys::after("STREAMS", 1).to_end().halved()` | XREAD |
//! | `Keys::ONE.and(Keys::after("STORE", 6).with("OW update"))` | GEORADIUS |
//! | `Keys::ONE.and(Keys::unknown(&["STORE"])).found_by(sort_keys)` | SORT |
//!
//! The function of `found_by` is needed only where specifications are unknown, incomplete
//! or of variable flags. It stands in for them too when they contradict the arguments.
//!
//! # Invariants
//! - No arguments make the search panic, and it finds no position beyond them
//!   (`any_arguments_have_keys_only_among_them`).
//! - Positions, access and errors are those of Redis (`keys_are_those_of_redis`).

use std::iter::StepBy;
use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::args::integer;

#[cfg(test)]
mod tests;

/// The largest number of specifications of a command (GEORADIUS, SORT).
const SPECS_MAX: usize = 3;

/// The key specifications of a command.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    specs: [KeySpec; SPECS_MAX],
    len: usize,
    found_by: Option<KeyFinder>,
}

/// The keys among the arguments of a command, where its specifications do not tell.
/// Without keys the arguments are invalid.
pub type KeyFinder = fn(&[Bytes]) -> FoundKeys;

/// Keys among the arguments of one call, in the order of the specifications.
pub type FoundKeys = SmallVec<[FoundKey; 4]>;

/// A key among the arguments of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundKey {
    /// Its position; the command's name is at 0.
    pub at: usize,
    /// The access to it.
    pub flags: KeyFlags,
}

/// One specification.
#[derive(Debug, Clone, Copy)]
pub struct KeySpec {
    /// The argument at which the search begins.
    pub begin: BeginSearch,
    /// The keys from there on.
    pub find: FindKeys,
    /// The access to them; none: as the flags of the command imply.
    pub flags: KeyFlags,
    /// A remark in COMMAND INFO, or empty.
    pub notes: &'static str,
}

/// The argument at which the search for keys begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeginSearch {
    /// This position; the command's name is at 0.
    Index(u8),
    /// The argument after a keyword, in any case. Without it there are no such keys.
    Keyword {
        /// In upper case.
        keyword: &'static str,
        /// The position where its search begins; negative: from the end, backwards.
        start_from: i8,
    },
    /// Anywhere: only a [`KeyFinder`] knows.
    Unknown {
        /// The options that name such keys.
        options: &'static [&'static str],
    },
}

/// The keys from the argument at which the search begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindKeys {
    /// This argument and further ones.
    Range {
        /// The last one, counted from the first one; negative: from the end.
        last: i8,
        /// The distance of keys.
        step: u8,
        /// If not 0, the rest has this number of equal parts, and keys are the first.
        limit: u8,
    },
    /// This argument is the number of keys, which follow.
    Counted,
    /// Not told.
    Unknown,
}

/// COMMAND's older notation of key positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LegacyRange {
    /// Position of the first key; 0: none.
    pub first: i64,
    /// Position of the last key; negative: from the end.
    pub last: i64,
    /// The distance of keys.
    pub step: i64,
    /// There are keys that this notation can't express: flag `movablekeys`.
    pub is_incomplete: bool,
}

impl Keys {
    /// No keys.
    pub const NONE: Keys = Keys { specs: [KeySpec::ONE; SPECS_MAX], len: 0, found_by: None };
    /// The first argument.
    pub const ONE: Keys = Keys::range(1, 1, 1);
    /// The second argument, or the first of a subcommand.
    pub const SECOND: Keys = Keys::range(2, 2, 1);
    /// The first two arguments, accessed in the same way.
    pub const TWO: Keys = Keys::range(1, 2, 1);
    /// All arguments.
    pub const ALL: Keys = Keys::range(1, -1, 1);
    /// Every second argument: key value key value.
    pub const PAIRS: Keys = Keys::range(1, -1, 2);

    /// The arguments `first..=last` by `step`; a negative `last` counts from the end.
    pub const fn range(first: u8, last: i8, step: u8) -> Keys {
        let last = if last < 0 { last } else { last - first as i8 };
        Keys::begin(BeginSearch::Index(first), FindKeys::Range { last, step, limit: 0 })
    }

    /// The arguments after the one at this position, which is their number.
    pub const fn counted(at: u8) -> Keys {
        Keys::begin(BeginSearch::Index(at), FindKeys::Counted)
    }

    /// The argument after a keyword, which is searched from this position on; if negative,
    /// from this position from the end, backwards.
    pub const fn after(keyword: &'static str, start_from: i8) -> Keys {
        let begin = BeginSearch::Keyword { keyword, start_from };
        Keys::begin(begin, FindKeys::Range { last: 0, step: 1, limit: 0 })
    }

    /// Keys that these options name, and that only a [`KeyFinder`] finds.
    pub const fn unknown(options: &'static [&'static str]) -> Keys {
        Keys::begin(BeginSearch::Unknown { options }, FindKeys::Unknown)
    }

    const fn begin(begin: BeginSearch, find: FindKeys) -> Keys {
        let spec = KeySpec { begin, find, flags: KeyFlags::NONE, notes: "" };
        Keys { specs: [spec; SPECS_MAX], len: 1, found_by: None }
    }

    /// The same keys, and all further arguments.
    pub const fn to_end(mut self) -> Keys {
        self.specs[self.len - 1].find = FindKeys::Range { last: -1, step: 1, limit: 0 };
        self
    }

    /// The same arguments, of which only the first half are keys.
    pub const fn halved(mut self) -> Keys {
        self.specs[self.len - 1].find = FindKeys::Range { last: -1, step: 1, limit: 2 };
        self
    }

    /// The same positions with an access that differs from the default of commands that
    /// read (`RO access`) or write (`RW access update`).
    pub const fn with(mut self, flags: &'static str) -> Keys {
        self.specs[self.len - 1].flags = KeyFlags::of(flags);
        self
    }

    /// The same keys with a remark in COMMAND INFO.
    pub const fn noting(mut self, notes: &'static str) -> Keys {
        self.specs[self.len - 1].notes = notes;
        self
    }

    /// These and further keys.
    pub const fn and(mut self, further: Keys) -> Keys {
        let mut at = 0;
        while at < further.len {
            self.specs[self.len] = further.specs[at];
            self.len += 1;
            at += 1;
        }
        self
    }

    /// The same keys, found by a function where the specifications do not tell.
    pub const fn found_by(mut self, find: KeyFinder) -> Keys {
        self.found_by = Some(find);
        self
    }

    /// The specifications.
    pub fn specs(&self) -> &[KeySpec] {
        &self.specs[..self.len]
    }

    /// `true` if a call may have keys. Channels (`not_key`) are none.
    pub fn may_exist(&self) -> bool {
        self.found_by.is_some() || self.specs().iter().any(|spec| !spec.is(KeyFlags::NOT_KEY))
    }

    /// The keys among these arguments; `implied` is the access where a specification names
    /// none.
    pub(super) fn find(&self, argv: &[Bytes], implied: KeyFlags) -> FoundKeys {
        let mut found = self
            .find_by_specs(argv, implied)
            .or_else(|| self.found_by.map(|find| find(argv)))
            .unwrap_or_default();
        found.retain(|key| key.at < argv.len());
        found
    }

    /// `None`: the specifications do not tell.
    fn find_by_specs(&self, argv: &[Bytes], implied: KeyFlags) -> Option<FoundKeys> {
        if self.specs().iter().any(|spec| spec.is(KeyFlags::VARIABLE_FLAGS)) {
            return None;
        }
        let mut found = FoundKeys::new();
        for spec in self.specs().iter().filter(|spec| !spec.is(KeyFlags::NOT_KEY)) {
            let positions = spec.positions(argv)?;
            if spec.is(KeyFlags::INCOMPLETE) && positions.len() > 0 {
                return None;
            }
            let flags = spec.flags_or(implied);
            found.extend(positions.map(|at| FoundKey { at, flags }));
        }
        Some(found)
    }

    /// COMMAND's older notation, as Redis derives it: the first ranges that follow one
    /// another.
    pub fn legacy_range(&self) -> LegacyRange {
        let mut legacy = LegacyRange::default();
        for spec in self.specs() {
            let (BeginSearch::Index(first), FindKeys::Range { last, step, .. }) =
                (spec.begin, spec.find)
            else {
                legacy.is_incomplete = true;
                continue;
            };
            let first = i64::from(first);
            let follows = legacy.last == 0 || legacy.last == first - 1;
            if self.len > 1 && (step != 1 || !follows) {
                legacy.is_incomplete = true;
                continue;
            }
            legacy.is_incomplete |= spec.is(KeyFlags::INCOMPLETE);
            if legacy.first == 0 {
                legacy.first = first;
            }
            legacy.last = i64::from(last) + if last < 0 { 0 } else { first };
            legacy.step = step.into();
        }
        legacy
    }

    /// The index of the specification of the keys that an option names.
    pub(crate) fn spec_of_option(&self, option: &str) -> Option<usize> {
        self.specs().iter().position(|spec| match spec.begin {
            BeginSearch::Index(_) => false,
            BeginSearch::Keyword { keyword, .. } => keyword == option,
            BeginSearch::Unknown { options } => options.contains(&option),
        })
    }
}

impl KeySpec {
    const ONE: KeySpec = KeySpec {
        begin: BeginSearch::Index(1),
        find: FindKeys::Range { last: 0, step: 1, limit: 0 },
        flags: KeyFlags::NONE,
        notes: "",
    };

    const fn is(&self, flag: KeyFlags) -> bool {
        self.flags.has(flag)
    }

    /// Its flags, or what the command implies if it has none.
    pub(crate) fn flags_or(&self, implied: KeyFlags) -> KeyFlags {
        if self.flags == KeyFlags::NONE { implied } else { self.flags }
    }

    /// The positions of its keys, none of them beyond the arguments; `None` where the
    /// arguments contradict the specification, or it is unknown.
    fn positions(&self, argv: &[Bytes]) -> Option<StepBy<Range<usize>>> {
        let begin = match self.begin {
            BeginSearch::Index(at) => at.into(),
            BeginSearch::Keyword { keyword, start_from } => {
                match keyword_position(argv, keyword, start_from) {
                    Some(at) => at + 1,
                    None => return Some((0..0).step_by(1)),
                }
            }
            BeginSearch::Unknown { .. } => return None,
        };
        let (first, end, step) = match self.find {
            FindKeys::Range { last, step, limit } => {
                let rest = argv.len().checked_sub(begin)?;
                let from = match (last, limit) {
                    (0.., _) => begin,
                    (_, 0) => argv.len(),
                    (_, limit) => begin + rest / usize::from(limit),
                };
                (begin, (from + 1).checked_add_signed(last.into())?, step)
            }
            FindKeys::Counted => {
                let count = usize::try_from(integer(argv.get(begin)?)?).ok()?;
                (begin + 1, (begin + 1).checked_add(count)?, 1)
            }
            FindKeys::Unknown => return None,
        };
        let are_arguments = first < end && end <= argv.len();
        are_arguments.then(|| (first..end).step_by(step.max(1).into()))
    }
}

/// The position of a keyword. Forwards, the last argument is none, as no key follows it;
/// backwards, the first is none.
fn keyword_position(argv: &[Bytes], keyword: &str, start_from: i8) -> Option<usize> {
    let is_keyword = |at: &usize| argv[*at].eq_ignore_ascii_case(keyword.as_bytes());
    match usize::try_from(start_from) {
        Ok(first) => (first..argv.len().saturating_sub(1)).find(is_keyword),
        Err(_) => {
            let first = argv.len().checked_sub(start_from.unsigned_abs().into())?;
            (2..=first).rev().find(is_keyword)
        }
    }
}

/// A set of flags of a key specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyFlags(u16);

impl KeyFlags {
    /// No flags.
    pub const NONE: KeyFlags = KeyFlags(0);
    /// The access of commands that read.
    pub const READ: KeyFlags = KeyFlags::of("RO access");
    /// The access of commands that write.
    pub const WRITE: KeyFlags = KeyFlags::of("RW access update");
    /// A channel, routed like a key.
    pub const NOT_KEY: KeyFlags = KeyFlags::of("not_key");
    /// There are more keys than the specification tells.
    pub const INCOMPLETE: KeyFlags = KeyFlags::of("incomplete");
    /// The access depends on the arguments.
    pub const VARIABLE_FLAGS: KeyFlags = KeyFlags::of("variable_flags");

    const NAMES: [&str; 11] = [
        "RO",
        "RW",
        "OW",
        "RM",
        "access",
        "update",
        "insert",
        "delete",
        "not_key",
        "incomplete",
        "variable_flags",
    ];

    /// The flags of these names, between which are blanks.
    ///
    /// # Panics
    /// If one is unknown; in a constant, when it is compiled.
    pub const fn of(names: &str) -> KeyFlags {
        let (mut rest, mut flags) = (names.as_bytes(), 0);
        while !rest.is_empty() {
            let mut len = 0;
            while len < rest.len() && rest[len] != b' ' {
                len += 1;
            }
            let (name, behind) = rest.split_at(len);
            let mut at = 0;
            while !is_same(name, KeyFlags::NAMES[at].as_bytes()) {
                at += 1;
                assert!(at < KeyFlags::NAMES.len(), "an unknown flag of a key specification");
            }
            flags |= 1 << at;
            rest = if behind.is_empty() { behind } else { behind.split_at(1).1 };
        }
        KeyFlags(flags)
    }

    /// `true` if all of `flags` are among these.
    pub const fn has(self, flags: KeyFlags) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// The names, in Redis's order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let named = KeyFlags::NAMES.into_iter().enumerate();
        named.filter_map(move |(at, name)| (self.0 & 1 << at != 0).then_some(name))
    }
}

/// Equality of slices, which `==` does not offer in constants.
const fn is_same(left: &[u8], right: &[u8]) -> bool {
    let mut at = 0;
    while at < left.len() && at < right.len() && left[at] == right[at] {
        at += 1;
    }
    at == left.len() && at == right.len()
}
