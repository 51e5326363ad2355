//! Ops on a row of any kind.

use crate::eval::Answered;
use crate::head::Row;
use crate::op::{Answer, RowInfo};
use crate::value::{Body, Header};
use crate::view::Tx;

pub(crate) fn inspect(tx: &Tx<'_>, key: &[u8]) -> Answered {
    let row = Row::load(tx, key)?;
    let Some(head) = row.head() else { return Ok(Answer::Row(None)) };
    let (len, bytes) = match &head.body {
        Body::String(value) => (value.len() as u64, value.len() as u64),
        Body::Hash(hash) => (hash.count, 24),
    };
    Ok(Answer::Row(Some(RowInfo {
        kind: head.kind(),
        expires_at_ms: row.expires_at_ms(),
        written_at_ms: head.header.written_at_ms(),
        len,
        bytes: bytes + (8 + key.len() + Header::BYTES_MAX + 1) as u64,
        now_ms: tx.stamp.now_ms,
    })))
}

pub(crate) fn delete(tx: &mut Tx<'_>, key: &[u8]) -> Answered {
    let row = Row::load(tx, key)?;
    row.remove(tx)?;
    Ok(Answer::Int(i64::from(row.is_live())))
}
