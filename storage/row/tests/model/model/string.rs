//! Ops on strings.

use bytes::Bytes;
use row::op::{Answer, Refusal, WriteCondition};
use row::{Key, StringOp};

use super::{Expected, Model, Row, Value, int, number};

impl Model {
    pub(super) fn string(&mut self, op: &StringOp) -> Expected {
        use Answer::{Int, Nil};
        Ok(match op {
            StringOp::Get { key } => self.text(key)?.map_or(Nil, Answer::Bytes),
            StringOp::GetDelete { key } => {
                let text = self.text(key)?;
                self.rows.remove(key);
                text.map_or(Nil, Answer::Bytes)
            }
            StringOp::GetExpire { key, ttl } => {
                let Some(text) = self.text(key)? else { return Ok(Nil) };
                let until = self.until(*ttl, key);
                self.rows.get_mut(key).expect("is there").until = until;
                Answer::Bytes(text)
            }
            StringOp::Set { key, value, ttl, only, want_old } => {
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
            StringOp::SetAllIfAbsent { pairs } => {
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
            StringOp::Append { key, value } => {
                let text = [&self.text(key)?.unwrap_or_default()[..], value].concat();
                let len = text.len();
                self.change_text(key, text.into());
                Int(len as i64)
            }
            StringOp::Incr { key, by } => {
                let old = self
                    .text(key)?
                    .map_or(Some(0), |text| int(&text))
                    .ok_or(Refusal::NotInteger)?;
                let new = old.checked_add(*by).ok_or(Refusal::Overflow)?;
                self.change_text(key, number(new));
                Int(new)
            }
            StringOp::SetRange { key, offset, value } => {
                let mut text = self.text(key)?.unwrap_or_default().to_vec();
                if !value.is_empty() {
                    let (start, end) = (*offset as usize, *offset as usize + value.len());
                    text.resize(text.len().max(end), 0);
                    text[start..end].copy_from_slice(value);
                    self.change_text(key, text.clone().into());
                }
                Int(text.len() as i64)
            }
            StringOp::IncrFloat { .. } | StringOp::GetRange { .. } | StringOp::Len { .. } => {
                panic!("not drawn: {op:?}")
            }
        })
    }

    fn text(&self, key: &Key) -> Result<Option<Bytes>, Refusal> {
        match self.rows.get(key).map(|row| &row.value) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Refusal::WrongType),
        }
    }

    fn change_text(&mut self, key: &Key, text: Bytes) {
        self.change(key, Value::Text(text));
    }
}
