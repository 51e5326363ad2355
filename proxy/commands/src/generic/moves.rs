//! Commands that carry a row to another table: MOVE, COPY with DB.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use row::op::{Answer, Deadline, Op, Refusal, RowContent, Ttl, WatchToken};
use row::{Key, RowOp};

use crate::rounds::{
    Answers, Failure, InTransaction, Outcome, Round, RoundResult, Rounds, TableFacts, TableHandle,
    TableQuestion, UnitAnswer,
};
use crate::{Reply, errors};

/// Attempts of MOVE when other clients write to the row.
const MOVE_TRIES: usize = 16;

/// The search for both tables, with which each of these commands begins.
#[derive(Debug)]
enum BothTables {
    Begin {
        /// The target, as the client names it.
        arg: Bytes,
        /// Refuses the selected table as the target.
        must_differ: bool,
    },
    Name {
        must_differ: bool,
    },
    Source(Arc<str>),
}

/// The next question of the search, or its end.
enum Search {
    Ask(Round, BothTables),
    /// The source, `None` if it is missing, and the name of the target.
    Found(Option<TableFacts>, Arc<str>),
}

impl BothTables {
    fn next(self, answers: Answers) -> Result<Search, Reply> {
        match self {
            BothTables::Begin { arg, must_differ } => Ok(Search::Ask(
                Round::Table(TableQuestion::Argument(arg)),
                BothTables::Name { must_differ },
            )),
            BothTables::Name { must_differ } => {
                let (name, is_selected) = answers.name()?;
                if must_differ && is_selected {
                    return Err(errors::same_object());
                }
                let ask = Round::Table(TableQuestion::Selected);
                Ok(Search::Ask(ask, BothTables::Source(name)))
            }
            BothTables::Source(name) => Ok(Search::Found(answers.table()?, name)),
        }
    }
}

/// The reply to a row that cannot be copied: a row too large to be read or written as a
/// whole gives RENAME's error.
fn not_copied(refusal: Refusal) -> Reply {
    errors::refusal(match refusal {
        Refusal::TooLarge | Refusal::AnswerTooLarge => Refusal::RowTooLarge,
        other => other,
    })
}

/// A whole row, as DUMP reads it.
#[derive(Debug)]
struct DumpedRow {
    content: RowContent,
    expires_at_ms: Option<u64>,
}

impl DumpedRow {
    /// `None`: there is no row.
    fn of(answer: Answer) -> Result<Option<DumpedRow>, Reply> {
        match answer {
            Answer::Nil => Ok(None),
            Answer::RowContent { content, expires_at_ms } => {
                Ok(Some(DumpedRow { content, expires_at_ms }))
            }
            _ => Err(errors::no_answer()),
        }
    }

    /// The op that writes the row.
    fn restore(&self, key: Bytes, replace: bool) -> Op {
        let until = |at| Ttl::Until(Deadline::At(i64::try_from(at).unwrap_or(i64::MAX)));
        let ttl = self.expires_at_ms.map_or(Ttl::Default, until);
        RowOp::Restore { key: key.into(), content: self.content.clone(), ttl, replace }.into()
    }

    fn has_fields_that_expire(&self) -> bool {
        match &self.content {
            RowContent::String(_) => false,
            RowContent::Hash(fields) => fields.iter().any(|(.., at)| at.is_some()),
        }
    }
}

/// `false`: the key exists.
fn is_restored(outcome: Outcome) -> Result<bool, Reply> {
    match outcome {
        Ok(_) => Ok(true),
        Err(Refusal::BusyKey) => Ok(false),
        Err(refusal) => Err(not_copied(refusal)),
    }
}

/// COPY source destination DB n.
#[derive(Debug)]
pub(super) struct CopyTo {
    from: Bytes,
    to: Bytes,
    replace: bool,
    step: CopyStep,
}

#[derive(Debug)]
enum CopyStep {
    Tables(BothTables),
    Dump { target: Arc<str> },
    Create(DumpedRow),
    Restore,
}

impl CopyTo {
    pub(super) fn new(from: Bytes, to: Bytes, table: Bytes, replace: bool) -> CopyTo {
        let must_differ = from == to;
        let tables = BothTables::Begin { arg: table, must_differ };
        CopyTo { from, to, replace, step: CopyStep::Tables(tables) }
    }

    fn ask(&mut self, round: impl Into<Round>, step: CopyStep) -> RoundResult {
        self.step = step;
        Ok(round.into())
    }
}

impl Rounds for CopyTo {
    fn next(&mut self, answers: Answers) -> RoundResult {
        match std::mem::replace(&mut self.step, CopyStep::Restore) {
            CopyStep::Tables(tables) => match tables.next(answers)? {
                Search::Ask(round, tables) => self.ask(round, CopyStep::Tables(tables)),
                Search::Found(None, _) => Ok(Round::Done(Reply::Int(0))),
                Search::Found(Some(source), target) => {
                    let dump = source
                        .unit(vec![RowOp::Dump { key: self.from.clone().into() }.into()])
                        .counted();
                    self.ask(dump, CopyStep::Dump { target })
                }
            },
            CopyStep::Dump { target } => {
                let row = answers.outcome()?.map_err(not_copied)?;
                match DumpedRow::of(row)? {
                    None => Ok(Round::Done(Reply::Int(0))),
                    Some(row) => {
                        self.ask(Round::Table(TableQuestion::Create(target)), CopyStep::Create(row))
                    }
                }
            }
            CopyStep::Create(row) => {
                let restore = row.restore(self.to.clone(), self.replace);
                self.ask(answers.created()?.unit(vec![restore]), CopyStep::Restore)
            }
            CopyStep::Restore => {
                let is_new = is_restored(answers.outcome()?)?;
                Ok(Round::Done(Reply::Int(i64::from(is_new))))
            }
        }
    }

    fn held_bytes(&self) -> usize {
        match &self.step {
            CopyStep::Create(row) => row.content.bytes(),
            CopyStep::Tables(_) | CopyStep::Dump { .. } | CopyStep::Restore => 0,
        }
    }

    fn too_large(&self, _: &dyn fmt::Display) -> Reply {
        not_copied(Refusal::AnswerTooLarge)
    }

    fn in_transaction(self: Box<Self>) -> InTransaction {
        InTransaction::Refused
    }
}

/// MOVE key db: copies the row, then deletes it if no other client has touched it. For a
/// moment a reader may find the key in both tables.
///
/// Other clients may write to the target at any time. The first copy requires that the
/// target has no such key, and it is replaced or deleted only while no other client has
/// written to it.
#[derive(Debug)]
pub(super) struct Move {
    key: Bytes,
    step: MoveStep,
}

#[derive(Debug)]
enum MoveStep {
    Tables(BothTables),
    Between(Between, BetweenStep),
    Ended,
}

/// A move whose tables are known.
#[derive(Debug)]
struct Between {
    key: Bytes,
    source: TableHandle,
    source_name: Arc<str>,
    target_name: Arc<str>,
    tries: usize,
}

/// A copy made by MOVE, and its watch token.
#[derive(Debug)]
struct Copied {
    target: TableHandle,
    watched: WatchToken,
}

/// The row as it was read from the source, and its watch token there.
#[derive(Debug)]
struct SourceRow {
    row: DumpedRow,
    watched: WatchToken,
}

/// The question of a move that was asked last.
#[derive(Debug)]
enum BetweenStep {
    /// The row in the source is read.
    Look { copy: Option<Copied> },
    /// The target is looked up, or created.
    Create(SourceRow),
    /// The row is written to the target, where no such key may be.
    Copy(TableHandle, SourceRow),
    /// The row is written over its earlier copy.
    Replace(TableHandle, SourceRow),
    /// The copy is read before the row is deleted from the source: it may be replaced only
    /// if it is still this one.
    LookAtCopy(TableHandle, SourceRow),
    /// The row is deleted from the source.
    Delete { copy: Option<Copied>, has_fields_that_expire: bool },
    /// The copy is deleted, since the source has no such row any more.
    TakeBack,
    /// The copy is deleted, since the row has changed too often.
    GiveUp,
}

impl Move {
    pub(super) fn new(key: Bytes, table: Bytes) -> Move {
        let tables = BothTables::Begin { arg: table, must_differ: true };
        Move { key, step: MoveStep::Tables(tables) }
    }
}

impl Rounds for Move {
    fn next(&mut self, answers: Answers) -> RoundResult {
        let (round, step) = match std::mem::replace(&mut self.step, MoveStep::Ended) {
            MoveStep::Ended => return Err(errors::no_answer()),
            MoveStep::Tables(tables) => match tables.next(answers)? {
                Search::Ask(round, tables) => (round, MoveStep::Tables(tables)),
                Search::Found(None, _) => return Ok(Round::Done(Reply::Int(0))),
                Search::Found(Some(source), target_name) => {
                    let between = Between {
                        key: self.key.clone(),
                        source: source.handle,
                        source_name: source.name,
                        target_name,
                        tries: 0,
                    };
                    let (round, step) = between.look(None);
                    (round, MoveStep::Between(between, step))
                }
            },
            MoveStep::Between(mut between, step) => match between.next(step, answers)? {
                Progress::Moved(moved) => {
                    return Ok(Round::Done(Reply::Int(i64::from(moved))));
                }
                Progress::Ask(round, step) => (round, MoveStep::Between(between, step)),
            },
        };
        self.step = step;
        Ok(round)
    }

    fn held_bytes(&self) -> usize {
        let MoveStep::Between(_, step) = &self.step else { return 0 };
        match step {
            BetweenStep::Create(row)
            | BetweenStep::Copy(_, row)
            | BetweenStep::Replace(_, row)
            | BetweenStep::LookAtCopy(_, row) => row.row.content.bytes(),
            BetweenStep::Look { .. }
            | BetweenStep::Delete { .. }
            | BetweenStep::TakeBack
            | BetweenStep::GiveUp => 0,
        }
    }

    fn too_large(&self, _: &dyn fmt::Display) -> Reply {
        let why = not_copied(Refusal::AnswerTooLarge);
        let MoveStep::Between(between, step) = &self.step else { return why };
        match step {
            BetweenStep::Look { copy: None }
            | BetweenStep::Create(_)
            | BetweenStep::Copy(..)
            | BetweenStep::TakeBack => why,
            BetweenStep::Look { copy: Some(_) }
            | BetweenStep::Replace(..)
            | BetweenStep::LookAtCopy(..)
            | BetweenStep::Delete { .. }
            | BetweenStep::GiveUp => between.in_both(&why),
        }
    }

    fn in_transaction(self: Box<Self>) -> InTransaction {
        InTransaction::Refused
    }
}

enum Progress {
    Ask(Round, BetweenStep),
    /// `false`: there was nothing to move, or the key is in the target.
    Moved(bool),
}

impl Between {
    fn next(&mut self, step: BetweenStep, answers: Answers) -> Result<Progress, Reply> {
        let (round, step) = match step {
            BetweenStep::Look { copy } => match (looked_at(answers), copy) {
                (Err(why), Some(_)) => return Err(self.in_both(&why)),
                (Err(why), None) => return Err(why),
                // The row never existed, or was deleted in the meantime: its copy is
                // deleted as well.
                (Ok((_, None)), None) => return Ok(Progress::Moved(false)),
                (Ok((_, None)), Some(copy)) => {
                    (self.delete(copy.target, copy.watched), BetweenStep::TakeBack)
                }
                (Ok((watched, Some(row))), None) => self.create(SourceRow { row, watched }),
                (Ok((watched, Some(row))), Some(copy)) => {
                    let replace = row.restore(self.key.clone(), true);
                    let replace = copy.target.unit(vec![replace]).guarded_by(copy.watched);
                    let found = SourceRow { row, watched };
                    (replace.into(), BetweenStep::Replace(copy.target, found))
                }
            },
            BetweenStep::Create(found) => {
                let target = answers.created()?.handle;
                let copy = target.unit(vec![found.row.restore(self.key.clone(), false)]);
                (copy.into(), BetweenStep::Copy(target, found))
            }
            BetweenStep::Copy(target, found) => {
                if !is_restored(answers.outcome()?)? {
                    return Ok(Progress::Moved(false));
                }
                (self.read(target), BetweenStep::LookAtCopy(target, found))
            }
            BetweenStep::Replace(target, found) => match answers.unit()? {
                // Another client has written there: the row is moved as if there had been
                // no copy.
                UnitAnswer::Touched => self.create(found),
                answer => {
                    let replaced = answer.outcome().and_then(|done| done.map_err(not_copied));
                    replaced.map_err(|why| self.in_both(&why))?;
                    (self.read(target), BetweenStep::LookAtCopy(target, found))
                }
            },
            BetweenStep::LookAtCopy(target, found) => {
                let (watched, seen) = looked_at(answers).map_err(|why| self.in_both(&why))?;
                let is_own = seen.is_some_and(|seen| seen.content == found.row.content);
                let copy = is_own.then_some(Copied { target, watched });
                let has_fields_that_expire = found.row.has_fields_that_expire();
                let delete = self.delete(self.source, found.watched);
                (delete, BetweenStep::Delete { copy, has_fields_that_expire })
            }
            BetweenStep::Delete { copy, has_fields_that_expire } => match answers.unit()? {
                UnitAnswer::Done(_) => return Ok(Progress::Moved(true)),
                // The target holds the copy without some of its fields, which have
                // expired, or another client's row.
                UnitAnswer::Touched if copy.is_none() && has_fields_that_expire => {
                    return Err(self.in_both(&Reply::error("ERR both have changed since")));
                }
                UnitAnswer::Touched => {
                    self.tries += 1;
                    match copy {
                        copy if self.tries < MOVE_TRIES => self.look(copy),
                        Some(copy) => (self.delete(copy.target, copy.watched), BetweenStep::GiveUp),
                        None => return Err(changes_too_fast()),
                    }
                }
                UnitAnswer::Failed(Failure::Unknown(why)) => {
                    return Err(self.perhaps_in_both(&why));
                }
                UnitAnswer::Failed(Failure::NotDone(why)) => return Err(self.in_both(&why)),
            },
            BetweenStep::TakeBack => {
                taken_back(answers.unit()?).map_err(|why| self.only_in_target(&why))?;
                return Ok(Progress::Moved(false));
            }
            BetweenStep::GiveUp => {
                taken_back(answers.unit()?).map_err(|why| self.in_both(&why))?;
                return Err(changes_too_fast());
            }
        };
        Ok(Progress::Ask(round, step))
    }

    fn look(&self, copy: Option<Copied>) -> (Round, BetweenStep) {
        (self.read(self.source), BetweenStep::Look { copy })
    }

    fn create(&self, found: SourceRow) -> (Round, BetweenStep) {
        let create = TableQuestion::Create(self.target_name.clone());
        (Round::Table(create), BetweenStep::Create(found))
    }

    /// Asks for the row and its watch token.
    fn read(&self, table: TableHandle) -> Round {
        let key = Key(self.key.clone());
        let watch = RowOp::Watch { key: key.clone() };
        table.unit(vec![watch.into(), RowOp::Dump { key }.into()]).into()
    }

    /// Deletes the row unless another client has touched it.
    fn delete(&self, table: TableHandle, watched: WatchToken) -> Round {
        table
            .unit(vec![RowOp::Delete { key: self.key.clone().into() }.into()])
            .guarded_by(watched)
            .into()
    }

    /// The reply when the key was copied, and not deleted from the source.
    fn in_both(&self, why: &Reply) -> Reply {
        let (to, from) = (&self.target_name, &self.source_name);
        let what =
            format!("The key was copied to '{to}' and not deleted from '{from}', it is in both");
        moved_partly(&what, why)
    }

    /// As [`Between::in_both`], when the outcome of the deletion is unknown.
    fn perhaps_in_both(&self, why: &Reply) -> Reply {
        let (to, from) = (&self.target_name, &self.source_name);
        let what = format!(
            "The key was copied to '{to}', and whether it was deleted from '{from}' is not known"
        );
        moved_partly(&what, why)
    }

    /// As [`Between::in_both`], when another client has deleted the key from the source.
    fn only_in_target(&self, why: &Reply) -> Reply {
        let (to, from) = (&self.target_name, &self.source_name);
        let what = format!(
            "The key was copied to '{to}', others have then deleted it from '{from}', and the \
             copy may still be there"
        );
        moved_partly(&what, why)
    }
}

fn moved_partly(what: &str, why: &Reply) -> Reply {
    let why = if let Reply::Error(line) = why { line } else { "" };
    Reply::error(format!("UNKNOWNOUTCOME {what}: {why}"))
}

fn changes_too_fast() -> Reply {
    Reply::error("ERR the key changes too fast to be moved")
}

/// A row, if it exists, and its watch token.
fn looked_at(answers: Answers) -> Result<(WatchToken, Option<DumpedRow>), Reply> {
    let mut outcomes = answers.unit()?.outcomes()?.into_iter();
    match (outcomes.next(), outcomes.next()) {
        (Some(Ok(Answer::WatchToken(watched))), Some(Ok(row))) => {
            Ok((watched, DumpedRow::of(row)?))
        }
        (_, Some(Err(refusal))) => Err(not_copied(refusal)),
        _ => Err(errors::no_answer()),
    }
}

/// The end of a copy, which is kept if another client has written to it.
fn taken_back(answer: UnitAnswer) -> Result<(), Reply> {
    match answer {
        UnitAnswer::Done(_) | UnitAnswer::Touched => Ok(()),
        UnitAnswer::Failed(failure) => Err(failure.into_reply()),
    }
}
