//! Commands that take several rounds of questions: pure state machines.
//!
//! A command that reads here and writes there, or that walks over partitions, is no list
//! of ops: the next question depends on the answers before it. It implements [`Rounds`].
//! Questions and answers are data, so a machine does no I/O and knows neither sessions nor
//! nodes. The proxy has one driver for all machines (`proxy/src/rounds.rs`); tests have
//! another, with rows in memory ([`memory`]).
//!
//! # Life of a command with rounds
//! 1. Its plan is [`Plan::Rounds`](crate::Plan::Rounds) with a new machine, which is asked
//!    with [`Answers::Begin`].
//! 2. The machine asks about a table ([`TableQuestion`]) and gets a [`TableHandle`]. All
//!    questions about rows name the handle: should the table be dropped and made again
//!    under its name, the command does not go on in the new one.
//! 3. The machine asks for units ([`UnitQuestion`]): ops that one partition executes
//!    together or not at all, if no row with a watch token of the unit was touched. The
//!    units of one round run concurrently where they are in several partitions, else in
//!    their order.
//! 4. This goes on until the machine is [done](Round::Done) or fails (`Err`).
//!
//! # Not here
//! Deadlines, retries, yielding the thread, counting the memory, and the end of a client
//! that was killed are the driver's. A unit is sent again only while it is known not to
//! have been proposed; a unit that may have been done is [`Failure::Unknown`].
//!
//! # Invariants
//! - A machine whose [`Rounds::held_bytes`] exceed the limit of one command's answer ends
//!   with its [`Rounds::too_large`]; answers of a round that would exceed the limit are not
//!   collected (`proxy/tests/memory.rs`, `machines_hold_no_more_than_an_answer`).
//! - No answers make a machine panic (`tests/plans.rs`, `machines_never_panic`).
//! - A command whose machine cannot run in a transaction is refused when MULTI queues it
//!   (`tests/plans.rs`, `machines_never_panic`).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use row::key::{self, SLOTS};
use row::op::{Answer, Op, Refusal, WatchToken};

use crate::{Reply, RowPlan, errors};

pub mod memory;

/// The next round, or the error reply that ends the command.
pub type RoundResult = Result<Round, Reply>;

/// The outcome of one op.
pub type Outcome = Result<Answer, Refusal>;

/// A command that takes several rounds.
///
/// Nothing has a default: each machine says what it holds in memory, and what it is in a
/// transaction.
pub trait Rounds: Send + fmt::Debug {
    /// Takes the answers to the last round's questions, which have their order, and says
    /// what comes next. Answers that do not fit the questions are an error reply.
    fn next(&mut self, answers: Answers) -> RoundResult;

    /// Memory that the machine holds between rounds, or in the reply that it gives, bytes.
    /// The driver ends the command when this is more than the answer of one command may
    /// take. (A whole row counts as its storage counts it, which bounds it as an answer.)
    fn held_bytes(&self) -> usize;

    /// The reply when the machine would hold more than `limit`, which prints as a setting
    /// with its value. It says what was done up to then.
    fn too_large(&self, limit: &dyn fmt::Display) -> Reply;

    /// The command in a transaction.
    fn in_transaction(self: Box<Self>) -> InTransaction;
}

/// A command with rounds as part of a transaction, where all commands are one unit in one
/// partition.
#[derive(Debug)]
pub enum InTransaction {
    /// By these ops.
    Rows(RowPlan),
    /// The reply needs no rows.
    Reply(Reply),
    /// Not possible: MULTI refuses to queue the command, by
    /// [`Command::is_refused_by_multi`](crate::Command::is_refused_by_multi).
    Refused,
}

/// The next step of a machine.
#[derive(Debug)]
pub enum Round {
    /// A question about tables.
    Table(TableQuestion),
    /// Questions about rows, at least one.
    Units(Vec<UnitQuestion>),
    /// The end.
    Done(Reply),
}

/// A question about tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableQuestion {
    /// The table that the client has selected. -> [`TableAnswer::Found`] or
    /// [`TableAnswer::Missing`]
    Selected,
    /// The table that an argument means, as SELECT reads it: `3` is `db3`, which need not
    /// exist. -> [`TableAnswer::Name`]
    Argument(Bytes),
    /// The table with this name, which is created if it is missing and its first write
    /// would create it. -> [`TableAnswer::Found`]
    Create(Arc<str>),
}

/// The answer to a question about tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableAnswer {
    /// An existing table.
    Found(TableFacts),
    /// No table has this name; its first write creates it.
    Missing(Arc<str>),
    /// A table's name.
    Name {
        /// The name.
        name: Arc<str>,
        /// It is the table that the client has selected.
        is_selected: bool,
    },
}

/// A table that the driver has found, by the order in which the machine has asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableHandle(pub u32);

/// An existing table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableFacts {
    /// For questions.
    pub handle: TableHandle,
    /// The name.
    pub name: Arc<str>,
    /// The first slot of each partition, in slot order.
    pub first_slots: Arc<[u16]>,
}

impl TableFacts {
    /// Number of partitions.
    pub fn partitions(&self) -> u32 {
        self.first_slots.len() as u32
    }

    /// The partition that holds a slot.
    pub fn partition_of(&self, slot: u16) -> u32 {
        self.first_slots.partition_point(|first| *first <= slot).saturating_sub(1) as u32
    }

    /// The slots of a partition.
    pub fn slots(&self, partition: u32) -> Range<u16> {
        let first = |index: u32| self.first_slots.get(index as usize).copied().unwrap_or(SLOTS);
        first(partition)..first(partition.saturating_add(1))
    }

    /// The cursor at which a SCAN of a partition starts.
    pub fn first_cursor(&self, partition: u32) -> u64 {
        key::slot_cursor(self.slots(partition).start.min(SLOTS - 1))
    }

    /// A unit in the partition of the rows that its ops name.
    pub fn unit(&self, ops: Vec<Op>) -> UnitQuestion {
        self.handle.unit(ops)
    }

    /// A unit in one partition, for ops that name no row.
    pub fn unit_in(&self, partition: u32, ops: Vec<Op>) -> UnitQuestion {
        UnitQuestion { target: UnitTarget::Partition(partition), ..self.handle.unit(ops) }
    }

    /// One op in every partition, in slot order.
    pub fn in_all_partitions(&self, op: &Op) -> Round {
        Round::Units(
            (0..self.partitions())
                .map(|partition| self.unit_in(partition, vec![op.clone()]))
                .collect(),
        )
    }
}

impl TableHandle {
    /// A unit in the partition of the rows that its ops name.
    pub fn unit(self, ops: Vec<Op>) -> UnitQuestion {
        UnitQuestion {
            table: self,
            target: UnitTarget::OfRows,
            ops,
            watched: Vec::new(),
            is_lookup: false,
        }
    }
}

/// Ops that one partition executes together, or not at all.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitQuestion {
    /// The table.
    pub table: TableHandle,
    /// The partition.
    pub target: UnitTarget,
    /// The ops, at least one.
    pub ops: Vec<Op>,
    /// Rows that must be untouched; otherwise nothing is done.
    pub watched: Vec<WatchToken>,
    /// The outcomes count as hits or misses of keys in the statistics.
    pub is_lookup: bool,
}

/// The partition of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitTarget {
    /// The partition of the rows that the ops name; several partitions are CROSSSLOT.
    OfRows,
    /// The partition with this index, in slot order.
    Partition(u32),
}

impl UnitQuestion {
    /// The unit, if this row is untouched.
    pub fn guarded_by(mut self, watched: WatchToken) -> UnitQuestion {
        self.watched.push(watched);
        self
    }

    /// The unit, counted as look-ups of keys.
    pub fn counted(self) -> UnitQuestion {
        UnitQuestion { is_lookup: true, ..self }
    }
}

impl From<TableQuestion> for Round {
    fn from(question: TableQuestion) -> Round {
        Round::Table(question)
    }
}

impl From<UnitQuestion> for Round {
    fn from(unit: UnitQuestion) -> Round {
        Round::Units(vec![unit])
    }
}

/// The answers to one round.
#[derive(Debug)]
pub enum Answers {
    /// The first round: nothing has been asked.
    Begin,
    /// Of a question about tables; or the error, when nothing is known or nothing was
    /// created.
    Table(Result<TableAnswer, Reply>),
    /// Of the units, in their order.
    Units(Vec<UnitAnswer>),
}

/// The answer of one unit.
#[derive(Debug)]
pub enum UnitAnswer {
    /// It was executed; one outcome per op. An op may have been refused, which does not
    /// undo the others.
    Done(Vec<Outcome>),
    /// A watched row was touched; nothing was done.
    Touched,
    /// It was not executed, or may not have been.
    Failed(Failure),
}

/// A failed unit; with the reply for clients.
#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    /// Nothing was done.
    NotDone(Reply),
    /// The writes may or may not have happened.
    Unknown(Reply),
}

impl Failure {
    /// The reply for clients.
    pub fn into_reply(self) -> Reply {
        match self {
            Failure::NotDone(reply) | Failure::Unknown(reply) => reply,
        }
    }
}

impl Answers {
    /// The existing table that was asked for; `None`: it is missing.
    pub fn table(self) -> Result<Option<TableFacts>, Reply> {
        match self {
            Answers::Table(Ok(TableAnswer::Found(table))) => Ok(Some(table)),
            Answers::Table(Ok(TableAnswer::Missing(_))) => Ok(None),
            Answers::Table(Err(reply)) => Err(reply),
            Answers::Table(Ok(TableAnswer::Name { .. })) | Answers::Begin | Answers::Units(_) => {
                Err(errors::no_answer())
            }
        }
    }

    /// The table that exists now since it was asked to be created.
    pub fn created(self) -> Result<TableFacts, Reply> {
        self.table()?.ok_or_else(errors::no_answer)
    }

    /// The name of the table that an argument means; `true` if it is selected.
    pub fn name(self) -> Result<(Arc<str>, bool), Reply> {
        match self {
            Answers::Table(Ok(TableAnswer::Name { name, is_selected })) => Ok((name, is_selected)),
            Answers::Table(Err(reply)) => Err(reply),
            Answers::Table(Ok(TableAnswer::Found(_) | TableAnswer::Missing(_)))
            | Answers::Begin
            | Answers::Units(_) => Err(errors::no_answer()),
        }
    }

    /// The answers of the units.
    pub fn units(self) -> Result<Vec<UnitAnswer>, Reply> {
        match self {
            Answers::Units(units) => Ok(units),
            Answers::Begin | Answers::Table(_) => Err(errors::no_answer()),
        }
    }

    /// The answer of the only unit.
    pub fn unit(self) -> Result<UnitAnswer, Reply> {
        self.units()?.pop().ok_or_else(errors::no_answer)
    }

    /// The outcome of the only op of the only unit, which has no watch tokens.
    pub fn outcome(self) -> Result<Outcome, Reply> {
        self.unit()?.outcome()
    }

    /// Estimated time to process the answers, ns.
    pub fn work_ns(&self) -> u64 {
        let Answers::Units(units) = self else { return 0 };
        let outcomes = units.iter().filter_map(|unit| match unit {
            UnitAnswer::Done(outcomes) => Some(outcomes),
            UnitAnswer::Touched | UnitAnswer::Failed(_) => None,
        });
        outcomes.flatten().flatten().map(crate::plan::work_ns).sum()
    }
}

impl UnitAnswer {
    /// The outcomes of a unit without watch tokens.
    pub fn outcomes(self) -> Result<Vec<Outcome>, Reply> {
        match self {
            UnitAnswer::Done(outcomes) => Ok(outcomes),
            UnitAnswer::Touched => Err(errors::no_answer()),
            UnitAnswer::Failed(failure) => Err(failure.into_reply()),
        }
    }

    /// The outcome of the only op of a unit without watch tokens.
    pub fn outcome(self) -> Result<Outcome, Reply> {
        self.outcomes()?.into_iter().next().ok_or_else(errors::no_answer)
    }
}
