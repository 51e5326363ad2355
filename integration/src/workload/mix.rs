//! Which commands are sent to which kind of key.

use super::Dice;
use crate::lin::{Command, Expiry, Row};

/// What a key is used for. Each kind keeps its values unique, so that a read tells which
/// write it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
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
pub(super) enum Next {
    /// One command.
    One(Command),
    /// WATCH, this read, MULTI, what follows from the row read, EXEC.
    Watched(Command),
}

pub(super) const KINDS: [Kind; 5] =
    [Kind::Register, Kind::Counter, Kind::List, Kind::Hash, Kind::Session];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Register => "register",
            Kind::Counter => "counter",
            Kind::List => "list",
            Kind::Hash => "hash",
            Kind::Session => "session",
        }
    }

    /// What shows the whole row.
    pub(super) fn whole(self) -> Command {
        match self {
            Kind::Hash => Command::HGetAll,
            _ => Command::Get,
        }
    }

    /// The next thing to do; `unique` is a value that nobody else writes, `soon` a moment
    /// that nobody else gives, `seen` what this client saw in the key's field "a" last.
    pub(super) fn next(self, dice: &mut Dice, unique: String, soon: Expiry, seen: &str) -> Next {
        let field = || ["a", "b", "c"][unique.len() % 3].to_owned();
        Next::One(match (self, dice.below(20)) {
            (_, 0..2) => return Next::Watched(self.whole()),
            (Kind::Register, 2..10) | (Kind::Counter, 2..9) | (Kind::List, 2..11) => Command::Get,
            (Kind::Register, 10..17) => Command::Set(unique),
            (Kind::Register, 17..19) => Command::SetNx(unique),
            (Kind::Register, _) => Command::Del,
            (Kind::Counter, _) => Command::Incr,
            (Kind::List, _) => Command::Append(unique),
            (Kind::Hash, 2..4) => Command::HGetAll,
            (Kind::Hash, 4..8) => Command::HGet("a".to_owned()),
            (Kind::Hash, 8) => Command::HLen,
            (Kind::Hash, 9) => Command::HDel(field()),
            (Kind::Hash, 10..13) => Command::HIncrBy("n".to_owned(), 1),
            (Kind::Hash, 13..15) => Command::HCheckSet("a".to_owned(), seen.to_owned(), unique),
            (Kind::Hash, 15..18) => Command::HSet("a".to_owned(), unique),
            (Kind::Hash, _) => Command::HSet(field(), unique),
            (Kind::Session, 2..6) => Command::Get,
            (Kind::Session, 6..8) => Command::Pttl,
            (Kind::Session, 8..11) => Command::SetFor(unique, soon),
            (Kind::Session, 11) => Command::Set(unique),
            (Kind::Session, 12) => Command::SetNx(unique),
            (Kind::Session, 13) => Command::Del,
            (Kind::Session, 14) => Command::Expire(soon),
            (Kind::Session, 15) => Command::Expire(Expiry::Late),
            (Kind::Session, 16) => Command::GetEx(soon),
            (Kind::Session, 17) => Command::GetEx(Expiry::Late),
            (Kind::Session, 18) => Command::GetEx(Expiry::Never),
            (Kind::Session, _) => Command::Persist,
        })
    }

    /// What EXEC carries out, given the row read under WATCH.
    pub(super) fn exec(self, row: &Row, unique: String) -> Vec<Command> {
        match (self, row) {
            (Kind::Counter, Row::Text(number)) => {
                let next = number.parse::<i64>().map_or(1, |number| number + 1);
                vec![Command::Set(next.to_string()), Command::Get]
            }
            (Kind::Counter, _) => vec![Command::Incr],
            (Kind::Register | Kind::Session, _) => {
                vec![Command::Get, Command::Set(unique), Command::Get]
            }
            (Kind::List, _) => vec![Command::Append(unique), Command::Get],
            (Kind::Hash, _) => {
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
            (Kind::Hash, _) => {
                vec![Command::HGetAll, Command::HDel("nobody's".to_owned()), Command::HLen]
            }
            (_, Row::Nothing) => vec![Command::Get, Command::Expire(Expiry::Late), Command::Del],
            (Kind::Session, _) => vec![Command::Get, Command::Pttl],
            _ => vec![Command::SetNx(unique), Command::Get, Command::Persist],
        }
    }
}
