//! Ops on a row of any kind.

use row::RowOp;
use row::op::{Answer, Refusal};

use super::{Expected, Model, Row, Value, allowed, at};

impl Model {
    pub(super) fn row(&mut self, op: &RowOp) -> Expected {
        use Answer::{Int, Nil};
        Ok(match op {
            RowOp::Delete { key } => Int(self.rows.remove(key).is_some() as i64),
            RowOp::Expire { key, until, only } => match self.rows.get_mut(key) {
                Some(row) if allowed(*only, row.until, at(*until, self.now)) => {
                    row.until = Some(at(*until, self.now));
                    Int(1)
                }
                _ => Int(0),
            },
            RowOp::Persist { key } => {
                Int(self.rows.get_mut(key).and_then(|row| row.until.take()).is_some() as i64)
            }
            RowOp::Rename { from, to, only_new } => {
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
            RowOp::Copy { from, to, replace } => {
                let Some(row) = self.rows.get(from).cloned() else { return Ok(Int(0)) };
                if from == to || (self.rows.contains_key(to) && !replace) {
                    return Ok(Int(0));
                }
                self.rows.insert(to.clone().0.into(), row);
                Int(1)
            }
            RowOp::Dump { key } => match self.rows.get(key) {
                None => Nil,
                Some(row) => {
                    Answer::RowContent { content: row.value.content(), expires_at_ms: row.until }
                }
            },
            RowOp::Restore { key, content, ttl, replace } => {
                if self.rows.contains_key(key) && !replace {
                    return Err(Refusal::BusyKey);
                }
                let row = Row { value: Value::of(content), until: self.until(*ttl, key) };
                self.rows.insert(key.clone().0.into(), row);
                Int(1)
            }
            RowOp::Inspect { .. }
            | RowOp::Size { .. }
            | RowOp::Encoding { .. }
            | RowOp::Watch { .. } => panic!("not drawn: {op:?}"),
        })
    }
}
