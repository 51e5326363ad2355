//! The table of all commands.

use crate::{Args, Planned};

/// One command, whole.
pub struct Command {
    /// Lower case; a subcommand is `"client|id"`.
    pub name: &'static str,
    /// As Redis counts: the name included; negative = at least.
    pub arity: i8,
    /// See [`flags`].
    pub flags: u32,
    /// Where its keys are.
    pub keys: Keys,
    /// Redis's group: string, hash, generic, connection, server, transactions, bridle.
    pub group: &'static str,
    /// The Redis version that brought it (or Bridle's).
    pub since: &'static str,
    /// Big-O, in Redis's notation, true for Bridle.
    pub complexity: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// The arguments in Redis's notation (`key [NX | XX] [EX seconds]`); COMMAND DOCS' argument tree is parsed from it.
    pub syntax: &'static str,
    /// Arguments to plan.
    pub plan: fn(Args) -> Planned,
}

/// Where keys stand among a command's words: `first..=last` by `step` (`last` < 0 counts from the end); `first` 0 = none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Keys {
    pub first: i8,
    pub last: i8,
    pub step: i8,
}

impl Keys {
    /// None.
    pub const NONE: Keys = Keys { first: 0, last: 0, step: 0 };
    /// The first argument.
    pub const ONE: Keys = Keys { first: 1, last: 1, step: 1 };
    /// The first two arguments.
    pub const TWO: Keys = Keys { first: 1, last: 2, step: 1 };
    /// All arguments.
    pub const ALL: Keys = Keys { first: 1, last: -1, step: 1 };
    /// Every second argument: key value key value.
    pub const PAIRS: Keys = Keys { first: 1, last: -1, step: 2 };
}

/// What COMMAND tells about a command, and what the proxy goes by.
pub mod flags {
    /// May change rows.
    pub const WRITE: u32 = 1 << 0;
    /// Only reads rows.
    pub const READONLY: u32 = 1 << 1;
    /// Takes room: refused when the disk is full.
    pub const DENYOOM: u32 = 1 << 2;
    /// Constant or logarithmic time.
    pub const FAST: u32 = 1 << 3;
}

/// Every command.
pub static COMMANDS: &[&[Command]] = &[];

/// The entry for a name in any case; for a container (`client`), the subcommand's name comes second.
pub fn find(_name: &[u8], _sub: Option<&[u8]>) -> Option<&'static Command> {
    None
}
