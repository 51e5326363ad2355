//! Ops on hashes.

use std::collections::BTreeMap;

use bytes::Bytes;
use row::op::{Answer, Filter, Range, Refusal, RowContent, Ttl, WriteCondition};
use row::{HashOp, Key};

use super::{Expected, Model, Value, allowed, at, int, number};

/// Values and expiries by name.
pub(super) type Fields = BTreeMap<Bytes, (Bytes, Option<u64>)>;

pub(super) fn content(fields: &Fields) -> RowContent {
    let field =
        |(name, (value, at)): (&Bytes, &(Bytes, Option<u64>))| (name.clone(), value.clone(), *at);
    RowContent::Hash(fields.iter().map(field).collect())
}

pub(super) fn fields(content: &[(Bytes, Bytes, Option<u64>)]) -> Fields {
    content.iter().map(|(name, value, at)| (name.clone(), (value.clone(), *at))).collect()
}

/// Removes fields that have expired; returns true if any is left.
pub(super) fn expire(fields: &mut Fields, now: u64) -> bool {
    fields.retain(|_, (_, at)| at.is_none_or(|at| at > now));
    !fields.is_empty()
}

impl Model {
    pub(super) fn hash(&mut self, op: &HashOp) -> Expected {
        use Answer::{Int, Ints, Nil};
        Ok(match op {
            HashOp::Put { key, pairs, only, ttl } => {
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
            HashOp::Get { key, fields } => {
                let Some(hash) = self.fields(key)? else { return Ok(Nil) };
                Answer::Values(
                    fields
                        .iter()
                        .map(|name| hash.get(name).map(|(value, _)| value.clone()))
                        .collect(),
                )
            }
            HashOp::GetDelete { key, fields } => {
                let mut hash = self.fields(key)?.unwrap_or_default();
                let values =
                    fields.iter().map(|name| hash.remove(name).map(|(value, _)| value)).collect();
                self.change_fields(key, hash);
                Answer::Values(values)
            }
            HashOp::GetExpire { key, fields, ttl } => {
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
            HashOp::Delete { key, fields } => {
                let mut hash = self.fields(key)?.unwrap_or_default();
                let deleted = fields.iter().filter(|name| hash.remove(*name).is_some()).count();
                self.change_fields(key, hash);
                Int(deleted as i64)
            }
            HashOp::Len { key } => Int(self.fields(key)?.map_or(0, |hash| hash.len() as i64)),
            HashOp::Incr { key, field, by } => {
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
            HashOp::Range { key, range, want_values } => {
                let Some(hash) = self.fields(key)? else { return Ok(Nil) };
                let (names, next) = picked(&hash, range);
                let value =
                    |name: &Bytes| if *want_values { hash[name].0.clone() } else { Bytes::new() };
                Answer::Cells {
                    cells: names.iter().map(|name| (name.clone(), value(name))).collect(),
                    next,
                }
            }
            HashOp::RangeCount { key, range } => {
                Int(picked(&self.fields(key)?.unwrap_or_default(), range).0.len() as i64)
            }
            HashOp::RangeDelete { key, range } => {
                let mut hash = self.fields(key)?.unwrap_or_default();
                let (names, next) = picked(&hash, range);
                hash.retain(|name, _| !names.contains(name));
                self.change_fields(key, hash);
                Answer::Deleted { count: names.len() as u64, next }
            }
            HashOp::Expire { key, fields, until, only } => {
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
            HashOp::Expiry { key, fields, remaining } => {
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
            HashOp::Persist { key, fields } => {
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
            HashOp::CheckAndMutate {
                key,
                check_sortkey,
                check,
                operand,
                mutations,
                want_value,
            } => {
                let (done, value) =
                    self.check_and_mutate(key, check_sortkey, (*check, operand), mutations)?;
                Answer::Checked { done, value: want_value.then_some(value) }
            }
            HashOp::Scan { .. } | HashOp::IncrFloat { .. } | HashOp::Random { .. } => {
                panic!("not drawn: {op:?}")
            }
        })
    }

    pub(super) fn fields(&self, key: &Key) -> Result<Option<Fields>, Refusal> {
        match self.rows.get(key).map(|row| &row.value) {
            None => Ok(None),
            Some(Value::Fields(fields)) => Ok(Some(fields.clone())),
            Some(_) => Err(Refusal::WrongType),
        }
    }

    pub(super) fn field_until(&self, ttl: Ttl, old: Option<u64>) -> Option<u64> {
        match ttl {
            Ttl::Default | Ttl::Never => None,
            Ttl::Keep => old,
            Ttl::Until(deadline) => Some(at(deadline, self.now)),
        }
    }

    pub(super) fn change_fields(&mut self, key: &Key, fields: Fields) {
        self.change(key, Value::Fields(fields));
    }
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
