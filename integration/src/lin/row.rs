//! The model of one Redis key: the commands that the workload sends, in miniature.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::search::{Call, Model};
use crate::Value;

/// The value of one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Row {
    /// No such key.
    #[default]
    Nothing,
    /// A string.
    Text(String),
    /// A hash.
    Hash(BTreeMap<String, String>),
}

/// Expiry of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Expiry {
    /// Never.
    #[default]
    Never,
    /// Long after the test.
    Late,
    /// Soon; the number identifies the call that set it.
    Soon(u64),
}

impl Expiry {
    /// The TTL that the client requests, ms. A late expiry is beyond the largest jump of
    /// a clock.
    fn ms(self) -> String {
        match self {
            Expiry::Never => "0".to_owned(),
            Expiry::Late => "864000000".to_owned(),
            Expiry::Soon(number) => (10 + number % 150).to_string(),
        }
    }
}

/// A PTTL above this, ms, is that of a late expiry.
const LATE_MS: i64 = 400_000_000;

/// The value and expiry of one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct KeyState {
    /// The value.
    pub row: Row,
    /// Its expiry; `Never` without a value.
    pub expiry: Expiry,
}

/// A command without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "they are Redis's; HCheckSet is HCHECKSET key field BYTES EQ .1 field .2, SetFor is \
              SET with PX. Nobody sends Vanish: the key expires that this call gave a moment"
)]
pub enum Command {
    Get,
    Set(String),
    SetFor(String, Expiry),
    Expire(Expiry),
    GetEx(Expiry),
    Persist,
    Pttl,
    Vanish(u64),
    SetNx(String),
    Append(String),
    Incr,
    Del,
    HGet(String),
    HSet(String, String),
    HDel(String),
    HLen,
    HGetAll,
    HIncrBy(String, i64),
    HCheckSet(String, String, String),
}

/// An atomic operation of a client on one key: a command, or several by MULTI and EXEC.
#[derive(Clone, PartialEq)]
pub struct RowOp {
    /// The required row, read under WATCH.
    pub only_if: Option<Row>,
    /// The commands, executed together.
    pub commands: Vec<Command>,
    /// A reply for each; `None`: the outcome is unknown.
    pub replies: Option<Vec<Value>>,
}

impl fmt::Debug for RowOp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(row) = &self.only_if {
            write!(out, "if {row:?}: ")?;
        }
        match &self.replies {
            Some(replies) => write!(
                out,
                "{:?}: {:?}",
                self.commands,
                replies.iter().map(Value::text).collect::<Vec<_>>()
            ),
            None => write!(out, "{:?}: unknown", self.commands),
        }
    }
}

impl RowOp {
    /// One command with its reply, if it came.
    pub fn one(command: Command, reply: Option<Value>) -> RowOp {
        RowOp { only_if: None, commands: vec![command], replies: reply.map(|reply| vec![reply]) }
    }
}

impl Command {
    /// The arguments to send.
    pub fn words(&self, key: &str) -> Vec<String> {
        let number;
        let words: Vec<&str> = match self {
            Command::Get => vec!["GET", key],
            Command::Set(value) => vec!["SET", key, value],
            Command::SetFor(value, expiry) => {
                number = expiry.ms();
                vec!["SET", key, value, "PX", &number]
            }
            Command::Expire(expiry) => {
                number = expiry.ms();
                vec!["PEXPIRE", key, &number]
            }
            Command::GetEx(Expiry::Never) => vec!["GETEX", key, "PERSIST"],
            Command::GetEx(expiry) => {
                number = expiry.ms();
                vec!["GETEX", key, "PX", &number]
            }
            Command::Persist => vec!["PERSIST", key],
            Command::Pttl => vec!["PTTL", key],
            Command::Vanish(_) => unreachable!("no client sends it"),
            Command::SetNx(value) => vec!["SETNX", key, value],
            Command::Append(value) => vec!["APPEND", key, value],
            Command::Incr => vec!["INCR", key],
            Command::Del => vec!["DEL", key],
            Command::HGet(field) => vec!["HGET", key, field],
            Command::HSet(field, value) => vec!["HSET", key, field, value],
            Command::HDel(field) => vec!["HDEL", key, field],
            Command::HLen => vec!["HLEN", key],
            Command::HGetAll => vec!["HGETALL", key],
            Command::HIncrBy(field, by) => {
                number = by.to_string();
                vec!["HINCRBY", key, field, &number]
            }
            Command::HCheckSet(field, equals, value) => {
                vec!["HCHECKSET", key, field, "BYTES", "EQ", equals, field, value]
            }
        };
        words.into_iter().map(str::to_owned).collect()
    }

    fn only_reads(&self) -> bool {
        matches!(
            self,
            Command::Get | Command::Pttl | Command::HGet(_) | Command::HLen | Command::HGetAll
        )
    }

    /// The reply says that it changed nothing.
    fn is_idle(&self, reply: &Value) -> bool {
        use Command::*;
        match self {
            _ if matches!(reply, Value::Error(_)) => true,
            Del | SetNx(_) | HDel(_) | HCheckSet(..) | Expire(_) | Persist => {
                *reply == Value::Int(0)
            }
            GetEx(_) => *reply == Value::Nil,
            _ => false,
        }
    }

    /// The number of the expiry that it set, if it did.
    fn soon(&self) -> Option<u64> {
        match self {
            Command::SetFor(_, Expiry::Soon(number))
            | Command::Expire(Expiry::Soon(number))
            | Command::GetEx(Expiry::Soon(number)) => Some(*number),
            _ => None,
        }
    }

    /// The field that it accesses, if it is one.
    fn field(&self) -> Option<&String> {
        match self {
            Command::HGet(field) | Command::HSet(field, _) | Command::HDel(field) => Some(field),
            Command::HIncrBy(field, _) | Command::HCheckSet(field, _, _) => Some(field),
            _ => None,
        }
    }

    /// The unique value that it writes, if any.
    fn written(&self) -> Option<&String> {
        match self {
            Command::Set(value)
            | Command::SetFor(value, _)
            | Command::SetNx(value)
            | Command::Append(value) => Some(value),
            Command::HSet(_, value) | Command::HCheckSet(_, _, value) => Some(value),
            _ => None,
        }
    }

    fn written_mut(&mut self) -> Option<&mut String> {
        match self {
            Command::Set(value)
            | Command::SetFor(value, _)
            | Command::SetNx(value)
            | Command::Append(value) => Some(value),
            Command::HSet(_, value) | Command::HCheckSet(_, _, value) => Some(value),
            _ => None,
        }
    }

    /// Executes it. An error is reduced to its first word; PTTL is 2 for late, 1 for
    /// soon.
    pub fn run(&self, state: &mut KeyState) -> Value {
        let reply = match (self, &state.row) {
            (Command::Set(value) | Command::SetFor(value, _), _) => {
                let expiry =
                    if let Command::SetFor(_, expiry) = self { *expiry } else { Expiry::Never };
                *state = KeyState { row: Row::Text(value.clone()), expiry };
                return Value::ok();
            }
            (Command::Vanish(number), _) => {
                if state.expiry == Expiry::Soon(*number) {
                    *state = KeyState::default();
                }
                Value::Nil
            }
            (Command::Expire(_) | Command::Persist, Row::Nothing) => Value::Int(0),
            (Command::Expire(expiry), _) => {
                state.expiry = *expiry;
                Value::Int(1)
            }
            (Command::Persist, _) => {
                Value::Int(i64::from(std::mem::take(&mut state.expiry) != Expiry::Never))
            }
            (Command::GetEx(expiry), row) => {
                if matches!(row, Row::Text(_)) {
                    state.expiry = *expiry;
                }
                Command::Get.run_on_row(&mut state.row)
            }
            (Command::Pttl, row) => Value::Int(match (row, state.expiry) {
                (Row::Nothing, _) => -2,
                (_, Expiry::Never) => -1,
                (_, Expiry::Soon(_)) => 1,
                (_, Expiry::Late) => 2,
            }),
            _ => self.run_on_row(&mut state.row),
        };
        if state.row == Row::Nothing {
            state.expiry = Expiry::Never;
        }
        reply
    }

    /// Executes a command that does not depend on the expiry.
    fn run_on_row(&self, row: &mut Row) -> Value {
        match self {
            Command::Del => return Value::Int(i64::from(std::mem::take(row) != Row::Nothing)),
            Command::SetNx(value) => {
                let new = *row == Row::Nothing;
                if new {
                    *row = Row::Text(value.clone());
                }
                return Value::Int(i64::from(new));
            }
            _ => {}
        }
        let run = match (self, &mut *row) {
            (Command::Get | Command::Append(_) | Command::Incr, Row::Hash(_)) => None,
            (Command::Get, Row::Text(text)) => Some(Value::bulk(text)),
            (Command::Get, Row::Nothing) => Some(Value::Nil),
            (Command::Append(more), Row::Text(text)) => {
                text.push_str(more);
                Some(Value::Int(text.len() as i64))
            }
            (Command::Append(more), Row::Nothing) => {
                let length = more.len() as i64;
                *row = Row::Text(more.clone());
                Some(Value::Int(length))
            }
            (Command::Incr, Row::Text(text)) => Some(increased(text, 1)),
            (Command::Incr, Row::Nothing) => {
                *row = Row::Text("1".to_owned());
                Some(Value::Int(1))
            }
            (_, Row::Text(_)) => None,
            (_, Row::Hash(fields)) => Some(self.run_on_fields(fields)),
            (_, Row::Nothing) => {
                let mut fields = BTreeMap::new();
                let reply = self.run_on_fields(&mut fields);
                *row = Row::Hash(fields);
                Some(reply)
            }
        };
        if matches!(row, Row::Hash(fields) if fields.is_empty()) {
            *row = Row::Nothing;
        }
        run.unwrap_or(Value::Error("WRONGTYPE".to_owned()))
    }

    fn run_on_fields(&self, fields: &mut BTreeMap<String, String>) -> Value {
        match self {
            Command::HGet(field) => {
                fields.get(field).map_or(Value::Nil, |value| Value::bulk(value))
            }
            Command::HSet(field, value) => {
                Value::Int(i64::from(fields.insert(field.clone(), value.clone()).is_none()))
            }
            Command::HDel(field) => Value::Int(i64::from(fields.remove(field).is_some())),
            Command::HLen => Value::Int(fields.len() as i64),
            Command::HGetAll => Value::Array(
                fields
                    .iter()
                    .flat_map(|(field, value)| [Value::bulk(field), Value::bulk(value)])
                    .collect(),
            ),
            Command::HIncrBy(field, by) => match fields.get_mut(field) {
                Some(value) => increased(value, *by),
                None => {
                    fields.insert(field.clone(), by.to_string());
                    Value::Int(*by)
                }
            },
            Command::HCheckSet(field, equals, value) => match fields.get_mut(field) {
                Some(found) if found == equals => {
                    found.clone_from(value);
                    Value::Int(1)
                }
                _ => Value::Int(0),
            },
            _ => unreachable!("not a command on fields"),
        }
    }

    /// Normalises a reply as [`Command::run`] does: HGETALL in the order of the fields,
    /// errors reduced to their first word.
    pub fn normal(&self, reply: Value) -> Value {
        match (self, reply) {
            (Command::HGetAll, Value::Array(items)) => {
                let mut pairs: Vec<Vec<Value>> = items.chunks(2).map(<[Value]>::to_vec).collect();
                pairs.sort_by_key(|pair| pair[0].text());
                Value::Array(pairs.concat())
            }
            (_, Value::Error(text)) => {
                Value::Error(text.split(' ').next().unwrap_or_default().to_owned())
            }
            (Command::Pttl, Value::Int(ms)) if ms >= 0 => {
                Value::Int(if ms > LATE_MS { 2 } else { 1 })
            }
            (_, reply) => reply,
        }
    }
}

fn increased(text: &mut String, by: i64) -> Value {
    match text.parse::<i64>().ok().and_then(|number| number.checked_add(by)) {
        Some(number) => {
            *text = number.to_string();
            Value::Int(number)
        }
        None => Value::Error("ERR".to_owned()),
    }
}

impl Row {
    /// The row in the reply of a GET or a normalised HGETALL; `None` when the reply is
    /// something else.
    pub fn shown(reply: &Value) -> Option<Row> {
        Some(match reply {
            Value::Nil => Row::Nothing,
            Value::Bulk(_) => Row::Text(reply.text()),
            Value::Array(pairs) if pairs.is_empty() => Row::Nothing,
            Value::Array(pairs) => Row::Hash(
                pairs.chunks_exact(2).map(|pair| (pair[0].text(), pair[1].text())).collect(),
            ),
            _ => return None,
        })
    }
}

impl Model for Row {
    type State = KeyState;
    type Op = RowOp;

    fn start() -> KeyState {
        KeyState::default()
    }

    fn step(state: &KeyState, op: &RowOp) -> Option<KeyState> {
        if op.only_if.as_ref().is_some_and(|row| *row != state.row) {
            return None;
        }
        // There is one for each call that set an expiry, and most are over.
        if let [Command::Vanish(number)] = op.commands[..]
            && state.expiry != Expiry::Soon(number)
        {
            return None;
        }
        let mut after = state.clone();
        match &op.replies {
            Some(replies) => {
                let as_told = op
                    .commands
                    .iter()
                    .zip(replies)
                    .all(|(command, reply)| command.run(&mut after) == *reply);
                (as_told && op.commands.len() == replies.len()).then_some(after)
            }
            None => {
                op.commands.iter().for_each(|command| _ = command.run(&mut after));
                (after != *state).then_some(after)
            }
        }
    }

    fn only_reads(op: &RowOp) -> bool {
        let told = op.replies.as_deref().unwrap_or_default();
        op.commands.iter().enumerate().all(|(at, command)| {
            command.only_reads() || told.get(at).is_some_and(|reply| command.is_idle(reply))
        })
    }

    /// A key with an expiry may expire at any time from then on, or never, since clocks
    /// may jump and stand still. The latest time of an expiry is not checked.
    fn events(calls: &[Call<RowOp>]) -> Vec<Call<RowOp>> {
        let vanish = |call: &Call<RowOp>, number| {
            let op =
                RowOp { only_if: None, commands: vec![Command::Vanish(number)], replies: None };
            Call { op, returned_ns: None, ..call.clone() }
        };
        calls
            .iter()
            .flat_map(|call| {
                call.op
                    .commands
                    .iter()
                    .filter_map(Command::soon)
                    .map(move |number| vanish(call, number))
            })
            .collect()
    }

    /// Each field is a part; the row's type and existence belong to every field.
    fn touches(op: &RowOp) -> (u64, u64) {
        let mut touched = if op.only_if.is_some() { (u64::MAX, 0) } else { (0, 0) };
        for command in &op.commands {
            let part = command.field().map_or(u64::MAX, |field| {
                1 << (field
                    .bytes()
                    .fold(7_u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte))
                    % 64)
            });
            touched.0 |= part;
            touched.1 |= if command.only_reads() { 0 } else { part };
        }
        touched
    }

    /// Values are unique, which tells something about calls of unknown outcome:
    /// - A value that no read returned can be any value of its length: such calls become
    ///   equal, and are counted, not named. When every APPEND with a reply was read, the
    ///   length does not matter either, and an APPEND that was not read matters only
    ///   where there was no row.
    /// - An APPEND that was read took effect on exactly the value before it.
    fn simplify(calls: &mut [Call<RowOp>]) {
        let shown = all_shown(calls);
        let mut writers = HashMap::<String, u32>::new();
        for written in
            calls.iter().flat_map(|call| call.op.commands.iter().filter_map(Command::written))
        {
            *writers.entry(written.clone()).or_default() += 1;
        }
        let was_shown = |written: &str| shown.iter().any(|text| text.contains(written));
        let told = calls
            .iter()
            .filter(|call| call.op.replies.is_some())
            .flat_map(|call| &call.op.commands);
        let lengths_matter = told
            .clone()
            .any(|command| matches!(command, Command::Append(more) if !was_shown(more)));
        for call in calls.iter_mut().filter(|call| call.op.replies.is_none()) {
            for command in &mut call.op.commands {
                let Some(written) = command.written_mut() else { continue };
                if written.parse::<i64>().is_err() && !was_shown(written) {
                    *written = "\u{1}".repeat(if lengths_matter { written.len() } else { 1 });
                    if let (Command::Append(unseen), false) = (&command, lengths_matter) {
                        *command = Command::SetNx(unseen.clone());
                    }
                }
            }
            if let (None, [Command::Append(more)]) = (&call.op.only_if, &*call.op.commands)
                && let Some(at) = shown.iter().find_map(|text| text.find(&**more))
                && !more.is_empty()
                && !writers.contains_key("")
                && writers.get(more) == Some(&1)
                && writers.keys().filter(|other| other.contains(&**more)).count() == 1
            {
                let text =
                    shown.iter().find(|text| text.contains(&**more)).map_or("", |text| &text[..at]);
                call.op.only_if =
                    Some(if text.is_empty() { Row::Nothing } else { Row::Text(text.to_owned()) });
            }
        }
    }
}

/// All texts that any client has read.
fn all_shown(calls: &[Call<RowOp>]) -> Vec<String> {
    let mut shown: Vec<String> = Vec::new();
    let mut see = |value: &Value| match value {
        Value::Bulk(_) => shown.push(value.text()),
        Value::Array(items) => shown.extend(items.iter().map(Value::text)),
        _ => {}
    };
    for call in calls {
        call.op.replies.iter().flatten().for_each(&mut see);
        match &call.op.only_if {
            Some(Row::Text(text)) => see(&Value::bulk(text)),
            Some(Row::Hash(fields)) => fields.values().for_each(|value| see(&Value::bulk(value))),
            _ => {}
        }
        for command in &call.op.commands {
            if let Command::HCheckSet(_, equals, _) = command {
                see(&Value::bulk(equals));
            }
        }
    }
    shown.sort_unstable();
    shown.dedup();
    shown
}
