//! The test kit of plans: tables in memory, and drivers of plans that are ops on rows or
//! [`Rounds`].
//!
//! Any claim about a command can be tested on it without a server, also about rows in
//! several partitions and tables, about other clients that write between two rounds, and
//! about calls that fail ([`MemoryTables::interposed`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use row::edits::Edits;
use row::key::{self, SLOTS};
use row::memory::Memory;
use row::op::{Answer, Op, WatchToken};
use row::view::{Rules, Stamp, Tx};
use row::{EvalError, eval};

use super::{
    Answers, Failure, Outcome, Round, Rounds, TableAnswer, TableFacts, TableHandle, TableQuestion,
    UnitAnswer, UnitQuestion, UnitTarget,
};
use crate::args::integer;
use crate::testscript::written;
use crate::{Plan, Reply, RowPlan};

/// Tables `db0` to `db15` may be created by a write.
const DATABASES: i64 = 16;
/// A machine that is not done after this many rounds never will be.
const ROUNDS_MAX: usize = 100_000;

/// Called with each unit of a machine before it is executed; a failure that it returns is
/// the unit's answer.
pub type Interposed = Box<dyn FnMut(&mut MemoryTables, &UnitQuestion) -> Option<Failure>>;

/// Tables in memory, and a client's session with them.
pub struct MemoryTables {
    /// Number of partitions of tables that are created from now on.
    pub partitions: u32,
    /// The time, ms.
    pub now_ms: u64,
    /// The selected table.
    pub selected: Arc<str>,
    /// The limit of what a machine may hold, bytes.
    pub answer_bytes_max: usize,
    /// An event before the units of machines are executed.
    pub interposed: Option<Interposed>,
    /// Number of units that machines have asked for.
    pub units: usize,
    /// The most that a machine has held, bytes.
    pub held_bytes_max: usize,
    tables: BTreeMap<Arc<str>, Vec<Partition>>,
    touches: u64,
}

/// A partition, and the last touch of each row.
#[derive(Default)]
struct Partition {
    rows: Memory,
    touched: HashMap<Bytes, u64>,
}

impl MemoryTables {
    /// No tables; new ones have this many partitions.
    pub fn new(partitions: u32) -> MemoryTables {
        MemoryTables {
            partitions,
            now_ms: 0,
            selected: "db0".into(),
            answer_bytes_max: usize::MAX,
            interposed: None,
            units: 0,
            held_bytes_max: 0,
            tables: BTreeMap::new(),
            touches: 0,
        }
    }

    /// SELECT.
    pub fn select(&mut self, arg: &[u8]) -> Reply {
        match self.named(arg) {
            Ok(name) => {
                self.selected = name;
                Reply::OK
            }
            Err(reply) => reply,
        }
    }

    /// Deletes a table.
    pub fn drop_table(&mut self, name: &str) {
        self.tables.remove(name);
    }

    /// The reply to a plan; `None`: it needs a session. The table of a write is created.
    ///
    /// # Errors
    /// A record is damaged, or a machine is never done.
    pub fn execute(&mut self, plan: Plan) -> Result<Option<Reply>, String> {
        Ok(Some(match plan {
            Plan::Reply(reply) => reply,
            Plan::Rows(rows) => self.rows(rows)?,
            Plan::Rounds(machine) => self.drive(machine)?,
            Plan::Local(_) | Plan::Select(_) | Plan::Exec => return Ok(None),
        }))
    }

    /// Executes ops on a table, as other clients do. The table must be there, or be created
    /// by a write.
    pub fn write(&mut self, table: &str, ops: impl IntoIterator<Item = Op>) {
        self.create(table);
        let table_facts = self.table(TableHandle(0), table);
        for op in ops {
            let partition = partition_of(&table_facts, &op).expect("the op names one row");
            self.eval(table, partition, &op).expect("rows in memory are not damaged").ok();
        }
    }

    /// The reply of a machine.
    ///
    /// # Errors
    /// A record is damaged, or the machine is never done.
    pub fn drive(&mut self, mut machine: Box<dyn Rounds>) -> Result<Reply, String> {
        let mut handles = Vec::<Arc<str>>::new();
        let mut answers = Answers::Begin;
        for _ in 0..ROUNDS_MAX {
            let round = match machine.next(answers) {
                Ok(round) => round,
                Err(reply) => return Ok(reply),
            };
            let held_bytes = machine.held_bytes();
            if held_bytes > self.answer_bytes_max {
                let limit = format!("the limit ({} bytes)", self.answer_bytes_max);
                return Ok(machine.too_large(&limit));
            }
            self.held_bytes_max = self.held_bytes_max.max(held_bytes);
            answers = match round {
                Round::Done(reply) => return Ok(reply),
                Round::Table(question) => Answers::Table(self.about(question, &mut handles)),
                Round::Units(units) => {
                    let each = units.into_iter().map(|unit| self.unit(unit, &handles));
                    Answers::Units(each.collect::<Result<_, _>>()?)
                }
            };
        }
        Err(format!("not done after {ROUNDS_MAX} rounds: {machine:?}"))
    }

    fn about(
        &mut self,
        question: TableQuestion,
        handles: &mut Vec<Arc<str>>,
    ) -> Result<TableAnswer, Reply> {
        let mut found = |name: Arc<str>| {
            handles.push(name.clone());
            TableHandle(handles.len() as u32 - 1)
        };
        match question {
            TableQuestion::Argument(arg) => {
                let name = self.named(&arg)?;
                Ok(TableAnswer::Name { is_selected: name == self.selected, name })
            }
            TableQuestion::Selected if !self.tables.contains_key(&self.selected) => {
                Ok(TableAnswer::Missing(self.selected.clone()))
            }
            TableQuestion::Selected => {
                let name = self.selected.clone();
                Ok(TableAnswer::Found(self.table(found(name.clone()), &name)))
            }
            TableQuestion::Create(name) => {
                self.create(&name);
                Ok(TableAnswer::Found(self.table(found(name.clone()), &name)))
            }
        }
    }

    /// The table that an argument means.
    fn named(&self, arg: &[u8]) -> Result<Arc<str>, Reply> {
        match integer(arg) {
            Some(number @ 0..DATABASES) => Ok(format!("db{number}").into()),
            Some(_) => Err(Reply::error("ERR DB index is out of range")),
            None => {
                let name = String::from_utf8_lossy(arg);
                let known = self.tables.keys().find(|known| ***known == *name).cloned();
                known.ok_or_else(|| Reply::error(format!("ERR no such table '{name}'")))
            }
        }
    }

    fn create(&mut self, name: &str) {
        if !self.tables.contains_key(name) {
            let partitions = (0..self.partitions).map(|_| Partition::default()).collect();
            self.tables.insert(name.into(), partitions);
        }
    }

    fn table(&self, handle: TableHandle, name: &str) -> TableFacts {
        let partitions = self.tables.get(name).map_or(1, Vec::len) as u32;
        let first = |index: u32| (index * u32::from(SLOTS)).div_ceil(partitions) as u16;
        TableFacts { handle, name: name.into(), first_slots: (0..partitions).map(first).collect() }
    }

    /// Executes a unit: all of its ops, or none.
    fn unit(&mut self, unit: UnitQuestion, handles: &[Arc<str>]) -> Result<UnitAnswer, String> {
        self.units += 1;
        if let Some(mut interposed) = self.interposed.take() {
            let failure = interposed(self, &unit);
            self.interposed.get_or_insert(interposed);
            if let Some(failure) = failure {
                return Ok(UnitAnswer::Failed(failure));
            }
        }
        let not_done =
            |line: &str| Ok(UnitAnswer::Failed(Failure::NotDone(Reply::error(line.to_owned()))));
        let name =
            handles.get(unit.table.0 as usize).filter(|name| self.tables.contains_key(*name));
        let Some(name) = name else { return not_done("ERR no such table") };
        let table_facts = self.table(unit.table, name);
        let partition = match unit.target {
            UnitTarget::Partition(partition) => partition,
            UnitTarget::OfRows => {
                let each = unit.ops.iter().map(|op| partition_of(&table_facts, op));
                match each.collect::<Option<BTreeSet<_>>>() {
                    Some(partitions) if partitions.len() == 1 => {
                        partitions.into_iter().next().unwrap_or(0)
                    }
                    _ => return not_done("CROSSSLOT"),
                }
            }
        };
        if unit.watched.iter().any(|watched| self.is_touched(name, partition, watched)) {
            return Ok(UnitAnswer::Touched);
        }
        let each = unit.ops.iter().map(|op| self.eval(name, partition, op));
        Ok(UnitAnswer::Done(each.collect::<Result<_, _>>()?))
    }

    fn is_touched(&self, table: &str, partition: u32, watched: &WatchToken) -> bool {
        let place = self.tables.get(table).and_then(|all| all.get(partition as usize));
        let touched = place.and_then(|place| place.touched.get(&watched.key)).copied();
        touched.unwrap_or(0) != watched.touched
            || watched.expires_at_ms.is_some_and(|at| at <= self.now_ms)
    }

    fn rows(&mut self, rows: RowPlan) -> Result<Reply, String> {
        let name = self.selected.clone();
        if rows.ops.iter().any(Op::is_write) {
            self.create(&name);
        }
        let table_facts = self.table(TableHandle(0), &name);
        let mut outcomes = Vec::new();
        if rows.all_partitions {
            for partition in 0..table_facts.partitions() {
                for op in &rows.ops {
                    outcomes.push(self.eval(&name, partition, op)?);
                }
            }
            return Ok(written(|reply| rows.builder.write(outcomes, reply)));
        }
        let places = rows.ops.iter().map(|op| partition_of(&table_facts, op));
        let Some(places) = places.collect::<Option<Vec<_>>>() else {
            return Ok(Reply::error("CROSSSLOT"));
        };
        if rows.same_partition && places.iter().any(|place| *place != places[0]) {
            return Ok(Reply::error("CROSSSLOT"));
        }
        for (op, partition) in rows.ops.iter().zip(places) {
            outcomes.push(self.eval(&name, partition, op)?);
        }
        Ok(written(|reply| rows.builder.write(outcomes, reply)))
    }

    /// Executes one op in one partition; a missing table is empty.
    fn eval(&mut self, table: &str, partition: u32, op: &Op) -> Result<Outcome, String> {
        let mut none = Partition::default();
        let place = self.tables.get_mut(table).and_then(|all| all.get_mut(partition as usize));
        let place = place.unwrap_or(&mut none);
        let mut edits = Edits::default();
        let stamp = Stamp { now_ms: self.now_ms, timetag: self.now_ms << 16 };
        let rules = Rules::default();
        match eval(op, &mut Tx { view: &place.rows, edits: &mut edits, stamp, rules }) {
            Ok(Answer::WatchToken(watched)) => {
                let touched = place.touched.get(&watched.key).copied().unwrap_or(0);
                Ok(Ok(Answer::WatchToken(WatchToken { touched, ..watched })))
            }
            Ok(answer) => {
                if !edits.is_empty() {
                    self.touches += 1;
                    for key in op.keys() {
                        place.touched.insert(key.clone(), self.touches);
                    }
                    place.rows.apply(edits);
                }
                Ok(Ok(answer))
            }
            Err(EvalError::Refused(refusal)) => Ok(Err(refusal)),
            Err(EvalError::Fault(fault)) => Err(fault.to_string()),
        }
    }
}

/// The partition of all rows of an op; ops without keys go to the first.
fn partition_of(table: &TableFacts, op: &Op) -> Option<u32> {
    let each = op.keys().into_iter().map(|key| table.partition_of(key::slot(key)));
    let partitions: BTreeSet<u32> = each.collect();
    match partitions.len() {
        0 => Some(0),
        1 => partitions.into_iter().next(),
        _ => None,
    }
}

/// The failure of a call that was not executed, in tests.
pub fn not_done(line: &'static str) -> Failure {
    Failure::NotDone(Reply::error(line))
}

/// The failure of a call that may have been executed, in tests.
pub fn unknown(line: &'static str) -> Failure {
    Failure::Unknown(Reply::error(line))
}
