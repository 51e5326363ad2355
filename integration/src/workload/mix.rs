//! Which commands are sent to which kind of key.

use super::Rng;
use crate::lin::{Command, Expiry, Row};

/// What a key is used for. Each kind keeps its values unique, so that a read tells which
/// write it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    /// Overwritten and deleted.
    Register,
    /// Counted up.
    Counter,
    /// Appended to: each value has its whole past in it.
    List,
    /// Fields, set, counted, checked and deleted.
    Hash,
    /// Expires soon, is given more time, is made to stay.
    Session,
}

/// What a client does next to a key.
pub(super) enum NextCall {
    /// One command.
    One(Command),
    /// WATCH, this read, MULTI, what follows from the row read, EXEC.
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

    /// What shows the whole row.
    pub(super) fn whole(self) -> Command {
        match self {
            KeyKind::Hash => Command::HGetAll,
            _ => Command::Get,
        }
    }

    /// The next thing to do; `unique` is a value that nobody else writes, `soon` a moment
    /// that nobody else gives, `seen` what this client saw in the key's field "a" last.
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

    /// What EXEC carries out, given the row read under WATCH.
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

    /// What EXEC carries out that changes nothing as long as the row is as it was read
    /// under WATCH: it must not be so by then that it changes something.
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
