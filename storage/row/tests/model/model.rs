//! The model: a map of rows, from which expired ones are removed before each op. Each
//! family of ops has its file.

mod generic;
mod hash;
mod partition;
mod pegasus;
mod string;

use std::collections::BTreeMap;

use bytes::Bytes;
use row::op::{Answer, Deadline, ExpireCondition, Refusal, RowContent, Ttl};
use row::{Key, Op};

use hash::Fields;

type Expected = Result<Answer, Refusal>;

#[derive(Debug, Clone)]
enum Value {
    Text(Bytes),
    Fields(Fields),
}

#[derive(Debug, Clone)]
struct Row {
    value: Value,
    until: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    rows: BTreeMap<Key, Row>,
    now: u64,
    default_ttl: u64,
}

fn at(deadline: Deadline, now: u64) -> u64 {
    match deadline {
        Deadline::In(ms) => (now as i64 + ms).max(0) as u64,
        Deadline::At(ms) => ms.max(0) as u64,
    }
}

fn allowed(only: ExpireCondition, old: Option<u64>, new: u64) -> bool {
    let late = old.unwrap_or(u64::MAX);
    !(only.none && old.is_some()
        || only.some && old.is_none()
        || only.later && new <= late
        || only.earlier && new >= late)
}

fn int(text: &[u8]) -> Option<i64> {
    let n: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (n.to_string().as_bytes() == text).then_some(n)
}

fn number(n: i64) -> Bytes {
    Bytes::from(n.to_string())
}

impl Value {
    fn content(&self) -> RowContent {
        match self {
            Value::Text(text) => RowContent::String(text.clone()),
            Value::Fields(fields) => hash::content(fields),
        }
    }

    fn of(content: &RowContent) -> Value {
        match content {
            RowContent::String(text) => Value::Text(text.clone()),
            RowContent::Hash(fields) => Value::Fields(hash::fields(fields)),
        }
    }

    /// Removes what has expired; returns true if that leaves a row.
    fn expire(&mut self, now: u64) -> bool {
        match self {
            Value::Text(_) => true,
            Value::Fields(fields) => hash::expire(fields, now),
        }
    }
}

impl Model {
    pub(crate) fn rows(&mut self, now: u64) -> BTreeMap<Bytes, (RowContent, Option<u64>)> {
        self.expire(now);
        let content = |row: &Row| (row.value.content(), row.until);
        self.rows.iter().map(|(key, row)| (key.0.clone(), content(row))).collect()
    }

    fn expire(&mut self, now: u64) {
        self.now = now;
        self.rows.retain(|_, row| row.value.expire(now) && row.until.is_none_or(|at| at > now));
    }

    fn default_until(&self) -> Option<u64> {
        (self.default_ttl > 0).then_some(self.now + self.default_ttl)
    }

    fn until(&self, ttl: Ttl, key: &Key) -> Option<u64> {
        match ttl {
            Ttl::Default => self.default_until(),
            Ttl::Keep => self.rows.get(key).map_or(self.default_until(), |row| row.until),
            Ttl::Until(deadline) => Some(at(deadline, self.now)),
            Ttl::Never => None,
        }
    }

    /// Writes a value in place: the expiry stays, and what has expired goes.
    fn change(&mut self, key: &Key, value: Value) {
        let until = self.rows.get(key).map_or(self.default_until(), |row| row.until);
        self.rows.insert(key.clone(), Row { value, until });
        self.expire(self.now);
    }

    pub(crate) fn eval(&mut self, op: &Op, now: u64, default_ttl: u64) -> Expected {
        self.default_ttl = default_ttl;
        self.expire(now);
        let expected = match op {
            Op::Row(op) => self.row(op),
            Op::Partition(op) => self.partition(op),
            Op::String(op) => self.string(op),
            Op::Hash(op) => self.hash(op),
            Op::Unknown(_) => Err(Refusal::UnknownOp),
        };
        self.expire(now);
        expected
    }
}
