//! The table catalogue as a pure state machine: a command and a stamp give changes, or a refusal.
//!
//! # Invariants
//! - A table's id is never given again: `next_id` only grows, whatever happens to tables (`ids_are_never_reused`).
//! - Two tables that serve never have the same name. A table that is being dropped has lost its name already.
//! - `default_ttl_since_ms` changes exactly when the value of `default_ttl` does, and only here: every replica of every partition judges
//!   old rows by the same moment.
//! - A refused command leaves no changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster::{Table, TableId};
use serde::{Deserialize, Serialize};

use crate::envs;

/// The most bytes of a table's name.
pub const NAME_BYTES_MAX: usize = 64;
/// The most partitions of a table.
pub const PARTITIONS_MAX: u32 = 1024;
/// The most tables, those that are being dropped included.
pub const TABLES_MAX: usize = 1000;

/// How far a table is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It serves, as soon as its partitions are open.
    Ready,
    /// Its partitions are being destroyed; then it is forgotten.
    Dropping,
}

/// A table and what only meta needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As everybody knows it.
    pub table: Arc<Table>,
    /// How far it is in its life.
    pub status: Status,
    /// When it was created, ms since the epoch by the meta leader's stamp.
    pub created_at_ms: u64,
}

/// What can be asked of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A new table.
    Create {
        /// See [`check_name`].
        name: String,
        /// 1 to [`PARTITIONS_MAX`].
        partitions: u32,
        /// Settings from the start.
        envs: BTreeMap<String, String>,
    },
    /// First step of a drop: takes the table's name and lets its partitions be destroyed.
    Drop {
        /// Which.
        name: String,
    },
    /// Last step of a drop: every partition is destroyed.
    Dropped {
        /// Which.
        id: TableId,
    },
    /// Sets an env.
    SetEnv {
        /// Whose.
        name: String,
        /// One of [`envs::ENVS`].
        key: String,
        /// Checked by the env.
        value: String,
    },
    /// Back to the env's default.
    DeleteEnv {
        /// Whose.
        name: String,
        /// One of [`envs::ENVS`].
        key: String,
    },
}

/// A deterministic "no".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// See [`check_name`].
    #[error("a table's name is 1 to {NAME_BYTES_MAX} letters, digits, '_', '-', '.' or ':', and not a number")]
    BadName,
    /// 0, or too many.
    #[error("a table has 1 to {PARTITIONS_MAX} partitions")]
    BadPartitions,
    /// Another table has the name.
    #[error("table '{0}' exists")]
    Exists(String),
    /// Nobody has the name.
    #[error("no such table '{0}'")]
    NoTable(String),
    /// No table that is being dropped has this id.
    #[error("table {} is not being dropped", .0.0)]
    NotDropping(TableId),
    /// [`TABLES_MAX`] is reached.
    #[error("there are {TABLES_MAX} tables, and no more are possible")]
    TooMany,
    /// Ids have run out: four billion tables were created.
    #[error("no table id is left")]
    NoIds,
    /// An unknown env, or a value that it does not take.
    #[error(transparent)]
    Env(#[from] envs::BadEnv),
}

/// What a command changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A table is so now.
    Put(Record),
    /// A table is forgotten.
    Forget(TableId),
    /// The next id to give.
    NextId(u32),
}

/// What came of a command that was not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// In order; none when everything is so already.
    pub changes: Vec<Change>,
    /// The table afterwards (of a drop: as it was).
    pub table: Arc<Table>,
}

/// The whole catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The next id to give; ids begin at 1.
    pub next_id: u32,
    /// The latest stamp by which something was decided; stamps never run backwards.
    pub stamp_ms: u64,
    /// By id.
    pub tables: BTreeMap<TableId, Record>,
}

impl Default for State {
    fn default() -> Self {
        State { next_id: 1, stamp_ms: 0, tables: BTreeMap::new() }
    }
}

/// Whether a name may be a table's: `SELECT` must be able to tell it from a database's number.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    let number = name.chars().all(|c| c.is_ascii_digit());
    if name.is_empty() || name.len() > NAME_BYTES_MAX || number || !name.chars().all(fine) {
        return Err(Refusal::BadName);
    }
    Ok(())
}

impl State {
    /// The table that serves under a name.
    pub fn named(&self, name: &str) -> Option<&Record> {
        self.tables.values().find(|record| record.status == Status::Ready && record.table.name == name)
    }

    fn must_be(&self, name: &str) -> Result<&Record, Refusal> {
        self.named(name).ok_or_else(|| Refusal::NoTable(name.to_owned()))
    }

    /// What a command would change. `stamp_ms` is not before the last one.
    pub fn decide(&self, command: Command, stamp_ms: u64) -> Result<Decided, Refusal> {
        match command {
            Command::Create { name, partitions, envs } => self.create(name, partitions, envs, stamp_ms),
            Command::Drop { name } => {
                let record = self.must_be(&name)?;
                let table = record.table.clone();
                Ok(Decided { changes: vec![Change::Put(Record { status: Status::Dropping, ..record.clone() })], table })
            }
            Command::Dropped { id } => match self.tables.get(&id) {
                Some(record) if record.status == Status::Dropping => {
                    Ok(Decided { changes: vec![Change::Forget(id)], table: record.table.clone() })
                }
                _ => Err(Refusal::NotDropping(id)),
            },
            Command::SetEnv { name, key, value } => {
                envs::check(&key, &value)?;
                self.with_envs(&name, stamp_ms, |envs| envs.insert(key, value))
            }
            Command::DeleteEnv { name, key } => {
                envs::find(&key)?;
                self.with_envs(&name, stamp_ms, |envs| envs.remove(&key))
            }
        }
    }

    fn create(&self, name: String, partitions: u32, envs: BTreeMap<String, String>, stamp_ms: u64) -> Result<Decided, Refusal> {
        check_name(&name)?;
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return Err(Refusal::BadPartitions);
        }
        for (key, value) in &envs {
            envs::check(key, value)?;
        }
        if self.named(&name).is_some() {
            return Err(Refusal::Exists(name));
        }
        if self.tables.len() >= TABLES_MAX {
            return Err(Refusal::TooMany);
        }
        let next_id = self.next_id.checked_add(1).ok_or(Refusal::NoIds)?;
        let since = if envs.contains_key(envs::DEFAULT_TTL) { stamp_ms } else { 0 };
        let table = Arc::new(Table { id: TableId(self.next_id), name, partitions, envs, default_ttl_since_ms: since });
        let record = Record { table: table.clone(), status: Status::Ready, created_at_ms: stamp_ms };
        Ok(Decided { changes: vec![Change::NextId(next_id), Change::Put(record)], table })
    }

    fn with_envs<T>(&self, name: &str, stamp_ms: u64, edit: impl FnOnce(&mut BTreeMap<String, String>) -> T) -> Result<Decided, Refusal> {
        let record = self.must_be(name)?;
        let mut table = Table::clone(&record.table);
        edit(&mut table.envs);
        if table.envs == record.table.envs {
            return Ok(Decided { changes: Vec::new(), table: record.table.clone() });
        }
        let ttl = table.envs.get(envs::DEFAULT_TTL);
        if ttl != record.table.envs.get(envs::DEFAULT_TTL) {
            table.default_ttl_since_ms = if ttl.is_some() { stamp_ms } else { 0 };
        }
        let table = Arc::new(table);
        Ok(Decided { changes: vec![Change::Put(Record { table: table.clone(), ..record.clone() })], table })
    }

    /// Makes changes that were decided.
    pub fn apply(&mut self, changes: &[Change], stamp_ms: u64) {
        self.stamp_ms = self.stamp_ms.max(stamp_ms);
        for change in changes {
            match change {
                Change::Put(record) => {
                    self.tables.insert(record.table.id, record.clone());
                }
                Change::Forget(id) => {
                    self.tables.remove(id);
                }
                Change::NextId(next_id) => self.next_id = *next_id,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(name: &str) -> Command {
        Command::Create { name: name.into(), partitions: 1, envs: BTreeMap::new() }
    }
    fn drop(name: &str) -> Command {
        Command::Drop { name: name.into() }
    }
    fn set(name: &str, key: &str, value: &str) -> Command {
        Command::SetEnv { name: name.into(), key: key.into(), value: value.into() }
    }
    fn delete(name: &str, key: &str) -> Command {
        Command::DeleteEnv { name: name.into(), key: key.into() }
    }

    /// Runs commands at stamps 1000, 2000, ...; refusals are left in the answer.
    fn run(commands: Vec<Command>) -> (State, Vec<Result<Arc<Table>, Refusal>>) {
        let mut state = State::default();
        let outcomes = commands.into_iter().zip(1u64..).map(|(command, step)| {
            let before = state.clone();
            let decided = state.decide(command, step * 1000);
            assert_eq!(state, before, "deciding changes nothing");
            decided.map(|decided| {
                state.apply(&decided.changes, step * 1000);
                decided.table
            })
        });
        let outcomes = outcomes.collect();
        (state, outcomes)
    }

    #[test]
    fn ids_are_never_reused() {
        let (state, outcomes) = run(vec![
            create("a"),
            drop("a"),
            create("a"),
            Command::Dropped { id: TableId(1) },
            drop("a"),
            Command::Dropped { id: TableId(2) },
            create("a"),
        ]);
        let ids: Vec<u32> = outcomes.into_iter().map(|outcome| outcome.unwrap().id.0).collect();
        assert_eq!(ids, [1, 1, 2, 1, 2, 2, 3]);
        assert_eq!(state.tables.keys().map(|id| id.0).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn refusals() {
        let cases: Vec<(Vec<Command>, Refusal)> = vec![
            (vec![create("a"), create("a")], Refusal::Exists("a".into())),
            (vec![create("")], Refusal::BadName),
            (vec![create("16")], Refusal::BadName),
            (vec![create("a b")], Refusal::BadName),
            (vec![create("a/b")], Refusal::BadName),
            (vec![create("ä")], Refusal::BadName),
            (vec![create(&"x".repeat(65))], Refusal::BadName),
            (vec![Command::Create { name: "a".into(), partitions: 0, envs: BTreeMap::new() }], Refusal::BadPartitions),
            (vec![Command::Create { name: "a".into(), partitions: 1025, envs: BTreeMap::new() }], Refusal::BadPartitions),
            (vec![drop("a")], Refusal::NoTable("a".into())),
            (vec![create("a"), drop("a"), drop("a")], Refusal::NoTable("a".into())),
            (vec![create("a"), drop("a"), set("a", "default_ttl", "5")], Refusal::NoTable("a".into())),
            (vec![create("a"), Command::Dropped { id: TableId(1) }], Refusal::NotDropping(TableId(1))),
            (vec![Command::Dropped { id: TableId(9) }], Refusal::NotDropping(TableId(9))),
            (vec![delete("a", "default_ttl")], Refusal::NoTable("a".into())),
        ];
        for (commands, refusal) in cases {
            let words = format!("{commands:?}");
            let (_, outcomes) = run(commands);
            assert_eq!(outcomes.last().unwrap().as_ref().unwrap_err(), &refusal, "{words}");
        }
        let (_, outcomes) = run(vec![create("a"), set("a", "no_such", "5"), delete("a", "no_such"), set("a", "default_ttl", "soon")]);
        assert!(outcomes[1..].iter().all(|outcome| matches!(outcome, Err(Refusal::Env(_)))), "{outcomes:?}");
    }

    #[test]
    fn the_longest_name_and_odd_names_are_fine() {
        for name in ["db0", "a", "0x", "user:sessions.v2_x-y", &"x".repeat(64)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn default_ttl_is_dated_when_its_value_changes() {
        let since = |commands: Vec<Command>| run(commands).0.named("a").unwrap().table.default_ttl_since_ms;
        assert_eq!(since(vec![create("a")]), 0);
        assert_eq!(since(vec![create("a"), set("a", "default_ttl", "5")]), 2000);
        assert_eq!(since(vec![create("a"), set("a", "default_ttl", "5"), set("a", "default_ttl", "5")]), 2000);
        assert_eq!(since(vec![create("a"), set("a", "default_ttl", "5"), set("a", "default_ttl", "6")]), 3000);
        assert_eq!(since(vec![create("a"), set("a", "default_ttl", "5"), delete("a", "default_ttl")]), 0);
        let envs = BTreeMap::from([("default_ttl".to_owned(), "5".to_owned())]);
        assert_eq!(since(vec![Command::Create { name: "a".into(), partitions: 1, envs }]), 1000);
    }

    #[test]
    fn what_is_so_already_changes_nothing() {
        let (state, _) = run(vec![create("a"), set("a", "default_ttl", "5")]);
        assert_eq!(state.decide(set("a", "default_ttl", "5"), 9000).unwrap().changes, []);
        let (state, _) = run(vec![create("a")]);
        assert_eq!(state.decide(delete("a", "default_ttl"), 9000).unwrap().changes, []);
    }

    #[test]
    fn there_is_an_end_to_tables() {
        let mut state = State::default();
        for i in 0..TABLES_MAX {
            let decided = state.decide(create(&format!("t{i}")), 1).unwrap();
            state.apply(&decided.changes, 1);
        }
        assert_eq!(state.decide(create("one-more"), 1), Err(Refusal::TooMany));
        let state = State { next_id: u32::MAX, ..State::default() };
        assert_eq!(state.decide(create("a"), 1), Err(Refusal::NoIds));
    }

    #[test]
    fn the_stamp_does_not_run_backwards() {
        let mut state = State { stamp_ms: 5, ..State::default() };
        state.apply(&[], 3);
        assert_eq!(state.stamp_ms, 5);
    }
}
