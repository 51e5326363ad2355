//! The mix of commands for each kind of key.

use super::Rng;
use crate::lin::{Command, Expiry, Row};

/// The use of a key. Values are unique, so that a read identifies the write that it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    /// Overwritten and deleted.
    Register,
    /// Counted up.
    Counter,
    /// Appended to: a value contains its whole history.
    List,
    /// Fields that are set, counted, checked and deleted.
    Hash,
    /// Expires soon, is extended, is persisted.
    Session,
}

/// The next call of a client to a key.
pub(super) enum NextCall {
    /// One command.
    One(Command),
    /// WATCH, this read, MULTI, commands that depend on the row, EXEC.
    Watched(Command),
}

pub(super) const KINDS: [KeyKind; 5] =
    [KeyKind::Register, KeyKind::Counter, KeyKind::List, KeyKind::Hash, KeyKind::Session];

impl KeyKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            KeyKind::Register => "register",
            KeyKind::Counter => "counter",
            KeyKind::List => "list",
            KeyKind::Hash => "hash",
            KeyKind::Session => "session",
        }
    }

    /// The command that reads the whole row.
    pub(super) fn whole(self) -> Command {
        match self {
            KeyKind::Hash => Command::HGetAll,
            _ => Command::Get,
        }
    }

    /// The next call; `unique` is a value that no other call writes, `soon` an expiry
    /// that no other call sets, `seen` the value that this client last saw in field "a".
    pub(super) fn next(self, rng: &mut Rng, unique: String, soon: Expiry, seen: &str) -> NextCall {
        let field = || ["a", "b", "c"][unique.len() % 3].to_owned();
        NextCall::One(match (self, rng.below(20)) {
            (_, 0..2) => return NextCall::Watched(self.whole()),
            (KeyKind::Register, 2..10) | (KeyKind::Counter, 2..9) | (KeyKind::List, 2..11) => {
                Command::Get
            }
            (KeyKind::Register, 10..17) => Command::Set(unique),
            (KeyKind::Register, 17..19) => Command::SetNx(unique),
            (KeyKind::Register, _) => Command::Del,
            (KeyKind::Counter, _) => Command::Incr,
            (KeyKind::List, _) => Command::Append(unique),
            (KeyKind::Hash, 2..4) => Command::HGetAll,
            (KeyKind::Hash, 4..8) => Command::HGet("a".to_owned()),
            (KeyKind::Hash, 8) => Command::HLen,
            (KeyKind::Hash, 9) => Command::HDel(field()),
            (KeyKind::Hash, 10..13) => Command::HIncrBy("n".to_owned(), 1),
            (KeyKind::Hash, 13..15) => Command::HCheckSet("a".to_owned(), seen.to_owned(), unique),
            (KeyKind::Hash, 15..18) => Command::HSet("a".to_owned(), unique),
            (KeyKind::Hash, _) => Command::HSet(field(), unique),
            (KeyKind::Session, 2..6) => Command::Get,
            (KeyKind::Session, 6..8) => Command::Pttl,
            (KeyKind::Session, 8..11) => Command::SetFor(unique, soon),
            (KeyKind::Session, 11) => Command::Set(unique),
            (KeyKind::Session, 12) => Command::SetNx(unique),
            (KeyKind::Session, 13) => Command::Del,
            (KeyKind::Session, 14) => Command::Expire(soon),
            (KeyKind::Session, 15) => Command::Expire(Expiry::Late),
            (KeyKind::Session, 16) => Command::GetEx(soon),
            (KeyKind::Session, 17) => Command::GetEx(Expiry::Late),
            (KeyKind::Session, 18) => Command::GetEx(Expiry::Never),
            (KeyKind::Session, _) => Command::Persist,
        })
    }

    /// The commands of EXEC, given the row read under WATCH.
    pub(super) fn exec(self, row: &Row, unique: String) -> Vec<Command> {
        match (self, row) {
            (KeyKind::Counter, Row::Text(number)) => {
                let next = number.parse::<i64>().map_or(1, |number| number + 1);
                vec![Command::Set(next.to_string()), Command::Get]
            }
            (KeyKind::Counter, _) => vec![Command::Incr],
            (KeyKind::Register | KeyKind::Session, _) => {
                vec![Command::Get, Command::Set(unique), Command::Get]
            }
            (KeyKind::List, _) => vec![Command::Append(unique), Command::Get],
            (KeyKind::Hash, _) => {
                vec![
                    Command::HSet("a".to_owned(), unique.clone()),
                    Command::HIncrBy("n".to_owned(), 1),
                    Command::HSet("b".to_owned(), unique),
                ]
            }
        }
    }

    /// Commands of EXEC that change nothing if the row is still as it was read under
    /// WATCH, which EXEC must ensure.
    pub(super) fn idle_exec(self, row: &Row, unique: String) -> Vec<Command> {
        match (self, row) {
            (KeyKind::Hash, _) => {
                vec![Command::HGetAll, Command::HDel("nobody's".to_owned()), Command::HLen]
            }
            (_, Row::Nothing) => vec![Command::Get, Command::Expire(Expiry::Late), Command::Del],
            (KeyKind::Session, _) => vec![Command::Get, Command::Pttl],
            _ => vec![Command::SetNx(unique), Command::Get, Command::Persist],
        }
    }
}
