//! Ops on strings, which live in the head.

use bytes::Bytes;

use crate::eval::{Answered, Failed};
use crate::head::Row;
use crate::op::{Answer, Only, Ttl};
use crate::value::Body;
use crate::view::Tx;

pub(crate) fn get(tx: &Tx<'_>, key: &[u8]) -> Answered {
    let row = Row::load(tx, key)?;
    Ok(row.string()?.map_or(Answer::Nil, |value| Answer::Bytes(value.clone())))
}

pub(crate) fn set(tx: &mut Tx<'_>, key: &[u8], value: &Bytes, ttl: Ttl, only: Only, want_old: bool) -> Answered {
    tx.rules.check_write(key.len() + value.len())?;
    let row = Row::load(tx, key)?;
    let old = if want_old { row.string()?.cloned() } else { None };
    let done = match only {
        Only::Always => true,
        Only::IfAbsent => !row.is_live(),
        Only::IfPresent => row.is_live(),
    };
    if done {
        let expires_at_ms = tx.expiry(ttl, row.expires_at_ms());
        row.write(tx, expires_at_ms, Body::String(value.clone())).map_err(Failed::from)?;
    }
    Ok(Answer::Set { done, old })
}
