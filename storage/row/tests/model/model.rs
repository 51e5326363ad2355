//! The model: a map of rows, from which expired ones are removed before each op.

use std::collections::BTreeMap;

use bytes::Bytes;
use row::Op;
use row::op::{
    Answer, Check, Deadline, ExpireCondition, Filter, Mutation, Range, Refusal, RowContent, Ttl,
    WriteCondition,
};
use row::{HashOp, Key, PartitionOp, RowOp, StringOp};

type Fields = BTreeMap<Bytes, (Bytes, Option<u64>)>;
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

impl Model {
    pub(crate) fn rows(&mut self, now: u64) -> BTreeMap<Bytes, (RowContent, Option<u64>)> {
        self.expire(now);
        self.rows.iter().map(|(key, row)| (key.0.clone(), (self.content(row), row.until))).collect()
    }

    fn content(&self, row: &Row) -> RowContent {
        match &row.value {
            Value::Text(text) => RowContent::String(text.clone()),
            Value::Fields(fields) => RowContent::Hash(
                fields
                    .iter()
                    .map(|(name, (value, at))| (name.clone(), value.clone(), *at))
                    .collect(),
            ),
        }
    }

    fn expire(&mut self, now: u64) {
        self.now = now;
        self.rows.retain(|_, row| {
            if let Value::Fields(fields) = &mut row.value {
                fields.retain(|_, (_, at)| at.is_none_or(|at| at > now));
                if fields.is_empty() {
                    return false;
                }
            }
            row.until.is_none_or(|at| at > now)
        });
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

    fn field_until(&self, ttl: Ttl, old: Option<u64>) -> Option<u64> {
        match ttl {
            Ttl::Default | Ttl::Never => None,
            Ttl::Keep => old,
            Ttl::Until(deadline) => Some(at(deadline, self.now)),
        }
    }

    fn text(&self, key: &Key) -> Result<Option<Bytes>, Refusal> {
        match self.rows.get(key).map(|row| &row.value) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Refusal::WrongType),
        }
    }

    fn fields(&self, key: &Key) -> Result<Option<Fields>, Refusal> {
        match self.rows.get(key).map(|row| &row.value) {
            None => Ok(None),
            Some(Value::Fields(fields)) => Ok(Some(fields.clone())),
            Some(_) => Err(Refusal::WrongType),
        }
    }

    /// Writes text in place: the expiry stays.
    fn change_text(&mut self, key: &Key, text: Bytes) {
        let until = self.rows.get(key).map_or(self.default_until(), |row| row.until);
        self.rows.insert(key.clone(), Row { value: Value::Text(text), until });
    }

    /// Writes fields in place: the expiry stays, and what is past goes.
    fn change_fields(&mut self, key: &Key, fields: Fields) {
        let until = self.rows.get(key).map_or(self.default_until(), |row| row.until);
        self.rows.insert(key.clone(), Row { value: Value::Fields(fields), until });
        self.expire(self.now);
    }

    pub(crate) fn eval(&mut self, op: &Op, now: u64, default_ttl: u64) -> Expected {
        self.default_ttl = default_ttl;
        self.expire(now);
        let expected = self.expected(op);
        self.expire(now);
        expected
    }

    fn expected(&mut self, op: &Op) -> Expected {
        use Answer::{Int, Ints, Nil};
        Ok(match op {
            Op::Row(RowOp::Delete { key }) => Int(self.rows.remove(key).is_some() as i64),
            Op::Row(RowOp::Expire { key, until, only }) => match self.rows.get_mut(key) {
                Some(row) if allowed(*only, row.until, at(*until, self.now)) => {
                    row.until = Some(at(*until, self.now));
                    Int(1)
                }
                _ => Int(0),
            },
            Op::Row(RowOp::Persist { key }) => {
                Int(self.rows.get_mut(key).and_then(|row| row.until.take()).is_some() as i64)
            }
            Op::Row(RowOp::Rename { from, to, only_new }) => {
                if !self.rows.contains_key(from) {
                    return Err(Refusal::NoSuchKey);
                }
                if *only_new && self.rows.contains_key(to) {
                    return Ok(Int(0));
                }
                let row = self.rows.remove(from).expect("is there");
                self.rows.insert(to.clone().0.into(), row);
                Int(1)
            }
            Op::Row(RowOp::Copy { from, to, replace }) => {
                let Some(row) = self.rows.get(from).cloned() else { return Ok(Int(0)) };
                if from == to || (self.rows.contains_key(to) && !replace) {
                    return Ok(Int(0));
                }
                self.rows.insert(to.clone().0.into(), row);
                Int(1)
            }
            Op::Row(RowOp::Dump { key }) => match self.rows.get(key) {
                None => Nil,
                Some(row) => {
                    Answer::RowContent { content: self.content(row), expires_at_ms: row.until }
                }
            },
            Op::Row(RowOp::Restore { key, content, ttl, replace }) => {
                if self.rows.contains_key(key) && !replace {
                    return Err(Refusal::BusyKey);
                }
                let value = match content {
                    RowContent::String(text) => Value::Text(text.clone()),
                    RowContent::Hash(fields) => Value::Fields(
                        fields
                            .iter()
                            .map(|(name, value, at)| (name.clone(), (value.clone(), *at)))
                            .collect(),
                    ),
                };
                let row = Row { value, until: self.until(*ttl, key) };
                self.rows.insert(key.clone().0.into(), row);
                Int(1)
            }
            Op::Partition(PartitionOp::Clear) => {
                self.rows.clear();
                Answer::Ok
            }
            Op::String(StringOp::Get { key }) => self.text(key)?.map_or(Nil, Answer::Bytes),
            Op::String(StringOp::GetDelete { key }) => {
                let text = self.text(key)?;
                self.rows.remove(key);
                text.map_or(Nil, Answer::Bytes)
            }
            Op::String(StringOp::GetExpire { key, ttl }) => {
                let Some(text) = self.text(key)? else { return Ok(Nil) };
                let until = self.until(*ttl, key);
                self.rows.get_mut(key).expect("is there").until = until;
                Answer::Bytes(text)
            }
            Op::String(StringOp::Set { key, value, ttl, only, want_old }) => {
                let old = if *want_old { self.text(key)? } else { None };
                let done = match only {
                    WriteCondition::Always => true,
                    WriteCondition::IfAbsent => !self.rows.contains_key(key),
                    WriteCondition::IfPresent => self.rows.contains_key(key),
                };
                if done {
                    let row =
                        Row { value: Value::Text(value.clone()), until: self.until(*ttl, key) };
                    self.rows.insert(key.clone().0.into(), row);
                }
                Answer::Written { done, old }
            }
            Op::String(StringOp::SetAllIfAbsent { pairs }) => {
                if pairs.iter().any(|(key, _)| self.rows.contains_key(key)) {
                    return Ok(Int(0));
                }
                for (key, value) in pairs {
                    self.rows.insert(
                        key.clone().0.into(),
                        Row { value: Value::Text(value.clone()), until: self.default_until() },
                    );
                }
                Int(1)
            }
            Op::String(StringOp::Append { key, value }) => {
                let text = [&self.text(key)?.unwrap_or_default()[..], value].concat();
                let len = text.len();
                self.change_text(key, text.into());
                Int(len as i64)
            }
            Op::String(StringOp::Incr { key, by }) => {
                let old = self
                    .text(key)?
                    .map_or(Some(0), |text| int(&text))
                    .ok_or(Refusal::NotInteger)?;
                let new = old.checked_add(*by).ok_or(Refusal::Overflow)?;
                self.change_text(key, number(new));
                Int(new)
            }
            Op::String(StringOp::SetRange { key, offset, value }) => {
                let mut text = self.text(key)?.unwrap_or_default().to_vec();
                if !value.is_empty() {
                    let (start, end) = (*offset as usize, *offset as usize + value.len());
                    text.resize(text.len().max(end), 0);
                    text[start..end].copy_from_slice(value);
                    self.change_text(key, text.clone().into());
                }
                Int(text.len() as i64)
            }
            Op::Hash(HashOp::Put { key, pairs, only, ttl }) => {
                let mut fields = self.fields(key)?.unwrap_or_default();
                let wrong = |name: &Bytes| match only {
                    WriteCondition::Always => false,
                    WriteCondition::IfAbsent => fields.contains_key(name),
                    WriteCondition::IfPresent => !fields.contains_key(name),
                };
                if pairs.iter().any(|(name, _)| wrong(name)) {
                    return Ok(Nil);
                }
                let mut new = 0;
                for (name, value) in pairs {
                    let until = self.field_until(*ttl, fields.get(name).and_then(|(_, at)| *at));
                    if until.is_some_and(|at| at <= self.now) {
                        fields.remove(name);
                    } else {
                        new += fields.insert(name.clone(), (value.clone(), until)).is_none() as i64;
                    }
                }
                self.change_fields(key, fields);
                Int(new)
            }
            Op::Hash(HashOp::Get { key, fields }) => {
                let Some(hash) = self.fields(key)? else { return Ok(Nil) };
                Answer::Values(
                    fields
                        .iter()
                        .map(|name| hash.get(name).map(|(value, _)| value.clone()))
                        .collect(),
                )
            }
            Op::Hash(HashOp::GetDelete { key, fields }) => {
                let mut hash = self.fields(key)?.unwrap_or_default();
                let values =
                    fields.iter().map(|name| hash.remove(name).map(|(value, _)| value)).collect();
                self.change_fields(key, hash);
                Answer::Values(values)
            }
            Op::Hash(HashOp::GetExpire { key, fields, ttl }) => {
                let mut hash = self.fields(key)?.unwrap_or_default();
                let values = fields
                    .iter()
                    .map(|name| hash.get(name).map(|(value, _)| value.clone()))
                    .collect();
                for name in fields {
                    let Some((_, at)) = hash.get_mut(name) else { continue };
                    *at = self.field_until(*ttl, *at);
                }
                self.change_fields(key, hash);
                Answer::Values(values)
            }
            Op::Hash(HashOp::Delete { key, fields }) => {
                let mut hash = self.fields(key)?.unwrap_or_default();
                let deleted = fields.iter().filter(|name| hash.remove(*name).is_some()).count();
                self.change_fields(key, hash);
                Int(deleted as i64)
            }
            Op::Hash(HashOp::Len { key }) => {
                Int(self.fields(key)?.map_or(0, |hash| hash.len() as i64))
            }
            Op::Hash(HashOp::Incr { key, field, by }) => {
                let mut hash = self.fields(key)?.unwrap_or_default();
                let (old, until) = hash.get(field).cloned().unwrap_or((number(0), None));
                let new = int(&old)
                    .ok_or(Refusal::HashNotInteger)?
                    .checked_add(*by)
                    .ok_or(Refusal::Overflow)?;
                hash.insert(field.clone(), (number(new), until));
                self.change_fields(key, hash);
                Int(new)
            }
            Op::Hash(HashOp::Range { key, range, want_values }) => {
                let Some(hash) = self.fields(key)? else { return Ok(Nil) };
                let (names, next) = picked(&hash, range);
                let value =
                    |name: &Bytes| if *want_values { hash[name].0.clone() } else { Bytes::new() };
                Answer::Cells {
                    cells: names.iter().map(|name| (name.clone(), value(name))).collect(),
                    next,
                }
            }
            Op::Hash(HashOp::RangeCount { key, range }) => {
                Int(picked(&self.fields(key)?.unwrap_or_default(), range).0.len() as i64)
            }
            Op::Hash(HashOp::RangeDelete { key, range }) => {
                let mut hash = self.fields(key)?.unwrap_or_default();
                let (names, next) = picked(&hash, range);
                hash.retain(|name, _| !names.contains(name));
                self.change_fields(key, hash);
                Answer::Deleted { count: names.len() as u64, next }
            }
            Op::Hash(HashOp::Expire { key, fields, until, only }) => {
                let Some(mut hash) = self.fields(key)? else { return Ok(Nil) };
                let new = at(*until, self.now);
                let mut answers = Vec::new();
                for name in fields {
                    answers.push(match hash.get_mut(name) {
                        None => -2,
                        Some((_, old)) if !allowed(*only, *old, new) => 0,
                        Some(_) if new <= self.now => {
                            hash.remove(name);
                            2
                        }
                        Some((_, old)) => {
                            *old = Some(new);
                            1
                        }
                    });
                }
                self.change_fields(key, hash);
                Ints(answers)
            }
            Op::Hash(HashOp::Expiry { key, fields, remaining }) => {
                let Some(hash) = self.fields(key)? else { return Ok(Nil) };
                let since = if *remaining { self.now } else { 0 };
                Ints(
                    fields
                        .iter()
                        .map(|name| {
                            hash.get(name)
                                .map_or(-2, |(_, at)| at.map_or(-1, |at| (at - since) as i64))
                        })
                        .collect(),
                )
            }
            Op::Hash(HashOp::Persist { key, fields }) => {
                let Some(mut hash) = self.fields(key)? else { return Ok(Nil) };
                let answers = fields
                    .iter()
                    .map(|name| {
                        hash.get_mut(name)
                            .map_or(-2, |(_, at)| if at.take().is_some() { 1 } else { -1 })
                    })
                    .collect();
                self.change_fields(key, hash);
                Ints(answers)
            }
            Op::Hash(HashOp::CheckAndMutate {
                key,
                check_sortkey,
                check,
                operand,
                mutations,
                want_value,
            }) => {
                let mut hash = self.fields(key)?.unwrap_or_default();
                let value = hash.get(check_sortkey).map(|(value, _)| value.clone());
                let done = holds(*check, operand, value.as_ref())?;
                if done {
                    for mutation in mutations {
                        match mutation {
                            Mutation::Delete { sortkey } => hash.remove(sortkey),
                            Mutation::Put { sortkey, value, ttl } => {
                                let until = self
                                    .field_until(*ttl, hash.get(sortkey).and_then(|(_, at)| *at));
                                if until.is_some_and(|at| at <= self.now) {
                                    hash.remove(sortkey)
                                } else {
                                    hash.insert(sortkey.clone(), (value.clone(), until))
                                }
                            }
                        };
                    }
                    self.change_fields(key, hash);
                }
                Answer::Checked { done, value: want_value.then_some(value) }
            }
            other => panic!("the model does not know {other:?}"),
        })
    }
}

fn holds(check: Check, operand: &Bytes, value: Option<&Bytes>) -> Result<bool, Refusal> {
    let Some(value) = value else {
        return Ok(matches!(check, Check::None | Check::NotExist | Check::NotExistOrEmpty));
    };
    let ints = || {
        Ok((
            int(value).ok_or(Refusal::CheckValueNotInteger)?,
            int(operand).ok_or(Refusal::CheckOperandNotInteger)?,
        ))
    };
    Ok(match check {
        Check::None | Check::Exist => true,
        Check::NotExist => false,
        Check::NotExistOrEmpty => value.is_empty(),
        Check::NotEmpty => !value.is_empty(),
        Check::MatchAnywhere => {
            String::from_utf8_lossy(value).contains(&*String::from_utf8_lossy(operand))
        }
        Check::BytesLess => value < operand,
        Check::BytesEqual => value == operand,
        Check::IntLess => ints().map(|(a, b)| a < b)?,
        Check::IntGreaterOrEqual => ints().map(|(a, b)| a >= b)?,
        other => panic!("not drawn: {other:?}"),
    })
}

/// The names in a range, and the next one if the limit cut it short.
fn picked(hash: &Fields, range: &Range) -> (Vec<Bytes>, Option<Bytes>) {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let inside = |name: &Bytes| {
        range
            .start
            .as_ref()
            .is_none_or(|start| name > start || (range.start_inclusive && name == start))
            && range
                .stop
                .as_ref()
                .is_none_or(|stop| name < stop || (range.stop_inclusive && name == stop))
            && match &range.filter {
                Filter::Prefix(with) => text(name).starts_with(&text(with)),
                Filter::Suffix(with) => text(name).ends_with(&text(with)),
                Filter::Contains(with) => text(name).contains(&text(with)),
                _ => true,
            }
    };
    let mut names: Vec<Bytes> = hash.keys().filter(|name| inside(name)).cloned().collect();
    if range.reverse {
        names.reverse();
    }
    let max = if range.cells_max == 0 { usize::MAX } else { range.cells_max as usize };
    let next = names.get(max).cloned();
    names.truncate(max);
    (names, next)
}
