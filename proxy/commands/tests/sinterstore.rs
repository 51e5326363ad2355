//! A new command that reads rows of several partitions and writes to another, as its
//! entry, its machine, and its script (`tests/sinterstore.script`): SINTERSTORE, with the
//! fields of hashes as members.
//!
//! The members of one key after the other are read page by page; only those that all keys
//! before had in common are held. No snapshot spans partitions: that the keys are untouched
//! since they were read is checked once more before the result is written.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use commands::rounds::memory::MemoryTables;
use commands::rounds::{
    Answers, InTransaction, Round, RoundResult, Rounds, TableFacts, TableQuestion, UnitAnswer,
};
use commands::table::{Group, Keys, flags};
use commands::testscript::{Action, TestScript, Value, argv};
use commands::{Args, Command, Plan, PlanResult, Reply, errors, table};
use row::op::{Answer, RowContent, Ttl, WatchToken};
use row::{HashOp, Key, RowOp};

// ---- the entry ----

static SINTERSTORE: Command = Command {
    name: "sinterstore",
    arity: -3,
    flags: flags::WRITE | flags::DENYOOM | flags::NO_MULTI,
    keys: Keys::ONE.with("OW update").and(Keys::range(2, -1, 1).with("RO access")),
    group: Group::Set,
    since: "1.0.0",
    complexity: "O(N) where N is the number of members of all keys.",
    summary: "Stores the intersect of multiple sets in a key.",
    syntax: "destination key [key ...]",
    plan: sinterstore,
};

fn sinterstore(mut args: Args) -> PlanResult {
    let to = args.next_arg();
    Plan::rounds(InterStore {
        to,
        keys: args.rest(),
        table: None,
        step: Step::Begin,
        tries: 0,
        reading: 0,
        watched: Vec::new(),
        common: BTreeSet::new(),
        in_key: BTreeSet::new(),
    })
}

// ---- the machine ----

/// Members per page.
const PAGE: u64 = 100;
/// Attempts when other clients write to the keys.
const TRIES: usize = 3;

#[derive(Debug)]
struct InterStore {
    to: Bytes,
    keys: Vec<Bytes>,
    table: Option<TableFacts>,
    step: Step,
    tries: usize,
    /// The index of the key that is being read.
    reading: usize,
    /// The tokens of the keys, each made with its first page.
    watched: Vec<WatchToken>,
    /// The members that all keys before have in common, and those of them found so far in
    /// the key that is being read.
    common: BTreeSet<Bytes>,
    in_key: BTreeSet<Bytes>,
}

/// The question that was asked last.
#[derive(Debug, Clone, Copy)]
enum Step {
    Begin,
    Table,
    /// A page of a key.
    Read,
    /// The keys are untouched.
    Check,
    Write,
}

impl InterStore {
    fn ask(&mut self, step: Step, round: impl Into<Round>) -> RoundResult {
        self.step = step;
        Ok(round.into())
    }

    fn table(&self) -> Result<&TableFacts, Reply> {
        self.table.as_ref().ok_or_else(errors::no_answer)
    }

    fn read_all(&mut self) -> RoundResult {
        (self.reading, self.watched) = (0, Vec::new());
        (self.common, self.in_key) = (BTreeSet::new(), BTreeSet::new());
        self.page(0)
    }

    fn page(&mut self, cursor: u64) -> RoundResult {
        let key = self.keys.get(self.reading).ok_or_else(errors::no_answer)?.clone();
        let key = Key(key);
        let watch = RowOp::Watch { key: key.clone() }.into();
        let scan = HashOp::Scan { key, cursor, count: PAGE, glob: None, want_values: false }.into();
        let ops = if cursor == 0 { vec![watch, scan] } else { vec![scan] };
        let unit = self.table()?.unit(ops).counted();
        self.ask(Step::Read, unit)
    }

    fn take_page(&mut self, answers: Answers) -> RoundResult {
        for outcome in answers.unit()?.outcomes()? {
            match outcome.map_err(errors::refusal)? {
                Answer::WatchToken(token) => self.watched.push(token),
                Answer::Nil => {}
                Answer::CellsPage { cells, next } => {
                    let (is_first, common) = (self.reading == 0, &self.common);
                    let names = cells.into_iter().map(|(name, _)| name);
                    self.in_key.extend(names.filter(|name| is_first || common.contains(name)));
                    if next != 0 {
                        return self.page(next);
                    }
                }
                _ => return Err(errors::no_answer()),
            }
        }
        self.common = std::mem::take(&mut self.in_key);
        self.reading += 1;
        if self.reading < self.keys.len() { self.page(0) } else { self.check() }
    }

    fn check(&mut self) -> RoundResult {
        let table = self.table()?;
        let unit = |watched: &WatchToken| {
            let key = watched.key.clone();
            table.unit(vec![RowOp::Inspect { key: key.into() }.into()]).guarded_by(watched.clone())
        };
        let checks = Round::Units(self.watched.iter().map(unit).collect());
        self.ask(Step::Check, checks)
    }

    fn write(&mut self) -> RoundResult {
        let key = Key(self.to.clone());
        let op = if self.common.is_empty() {
            RowOp::Delete { key }
        } else {
            let fields = self.common.iter().map(|name| (name.clone(), Bytes::new(), None));
            let content = RowContent::Hash(fields.collect());
            RowOp::Restore { key, content, ttl: Ttl::Never, replace: true }
        };
        let unit = self.table()?.unit(vec![op.into()]);
        self.ask(Step::Write, unit)
    }
}

impl Rounds for InterStore {
    fn next(&mut self, answers: Answers) -> RoundResult {
        match self.step {
            Step::Begin => self.ask(Step::Table, TableQuestion::Selected),
            Step::Table => {
                self.table = answers.table()?;
                if self.table.is_none() {
                    return Ok(Round::Done(Reply::Int(0)));
                }
                self.read_all()
            }
            Step::Read => self.take_page(answers),
            Step::Check => {
                for unit in answers.units()? {
                    match unit {
                        UnitAnswer::Done(_) => {}
                        UnitAnswer::Touched if self.tries + 1 < TRIES => {
                            self.tries += 1;
                            return self.read_all();
                        }
                        UnitAnswer::Touched => {
                            return Err(Reply::error("ERR the keys change too fast"));
                        }
                        UnitAnswer::Failed(failure) => return Err(failure.into_reply()),
                    }
                }
                self.write()
            }
            Step::Write => {
                answers.outcome()?.map_err(errors::refusal)?;
                Ok(Round::Done(Reply::Int(self.common.len() as i64)))
            }
        }
    }

    fn held_bytes(&self) -> usize {
        let members = self.common.iter().chain(&self.in_key);
        members.map(|member| member.len() + size_of::<Bytes>()).sum()
    }

    fn too_large(&self, limit: &dyn fmt::Display) -> Reply {
        Reply::error(format!("ERR the members take more than {limit}, nothing was stored"))
    }

    fn in_transaction(self: Box<Self>) -> InTransaction {
        InTransaction::Refused
    }
}

// ---- its script, and what a script cannot say ----

fn call(tables: &mut MemoryTables, argv: &[Bytes]) -> Reply {
    let plan = if argv[0].eq_ignore_ascii_case(SINTERSTORE.name.as_bytes()) {
        if argv.len() < usize::from(SINTERSTORE.arity.unsigned_abs()) {
            return errors::wrong_number(SINTERSTORE.name);
        }
        (SINTERSTORE.plan)(Args::new(argv.iter().cloned().collect(), 1, 1))
    } else {
        table::plan(argv.iter().cloned().collect(), 1).map(|(_, plan)| plan).map_err(|(_, it)| it)
    };
    let reply = tables.execute(plan.unwrap_or_else(Plan::Reply)).expect("it ends");
    reply.expect("it needs no session")
}

fn call_line(tables: &mut MemoryTables, line: &str) -> Reply {
    call(tables, &argv(line).expect("a line of words"))
}

#[test]
fn script_holds_in_one_partition_and_in_many() {
    let script = TestScript::parse(include_str!("sinterstore.script")).expect("a script");
    for partitions in [1, 16] {
        let mut tables = MemoryTables::new(partitions);
        for step in &script.steps {
            let Action::Call { argv, expected } = &step.action else { continue };
            let seen = Value::of(call(&mut tables, argv), 2);
            expected.check(&seen).unwrap_or_else(|why| panic!("line {}: {why}", step.line));
        }
    }
}

/// Two keys of 1,000 fields each, of which they share 500.
fn large_keys() -> MemoryTables {
    let mut tables = MemoryTables::new(4);
    for (key, first) in [("one", 0), ("two", 500)] {
        let pairs: Vec<_> = (first..first + 1000).map(|number| format!("{number} v")).collect();
        call_line(&mut tables, &format!("HSET {key} {}", pairs.join(" ")));
    }
    tables
}

#[test]
fn keys_are_read_page_by_page_within_the_limit() {
    let mut tables = large_keys();
    assert_eq!(call_line(&mut tables, "SINTERSTORE to one two"), Reply::Int(500));
    assert!(tables.units > 20, "{} units", tables.units);
    let held_bytes = tables.held_bytes_max;
    assert!(held_bytes < 1600 * (4 + size_of::<Bytes>()), "{held_bytes} bytes");
    tables.answer_bytes_max = held_bytes - 1;
    let Reply::Error(told) = call_line(&mut tables, "SINTERSTORE again one two") else { panic!() };
    assert_eq!(
        told,
        format!("ERR the members take more than the limit ({} bytes), nothing was stored", {
            held_bytes - 1
        })
    );
    assert_eq!(call_line(&mut tables, "EXISTS again"), Reply::Int(0));
}

#[test]
fn keys_that_change_meanwhile_are_read_again() {
    for (changes, expected) in
        [(1, Reply::Int(501)), (3, Reply::error("ERR the keys change too fast"))]
    {
        let mut tables = large_keys();
        let mut times = 0;
        tables.interposed = Some(Box::new(move |tables, unit| {
            if !unit.watched.is_empty() && unit.watched[0].key == "one" {
                times += 1;
                if times <= changes {
                    call_line(tables, "HSET one 1200 v");
                    call_line(tables, &format!("HSET two 1200 {times}"));
                }
            }
            None
        }));
        assert_eq!(call_line(&mut tables, "SINTERSTORE to one two"), expected);
    }
}
