//! Reply builders that several commands share.
//!
//! Answers may come from a node of another version, so an answer of an unexpected shape
//! gives an error reply and never a panic.

use bytes::Bytes;
use row::op::Answer;

use crate::{Reply, errors};

/// `+OK`, whatever the answer.
pub fn ok(_: Answer) -> Reply {
    Reply::OK
}

/// `+OK` for several answers.
pub fn all_ok(_: Vec<Answer>) -> Reply {
    Reply::OK
}

/// A number.
pub fn int(answer: Answer) -> Reply {
    match answer {
        Answer::Int(number) => Reply::Int(number),
        _ => errors::no_answer(),
    }
}

/// The sum of the answers, one number per op.
pub fn sum(answers: Vec<Answer>) -> Reply {
    let number = |answer| if let Answer::Int(number) = answer { Some(number) } else { None };
    answers.into_iter().map(number).sum::<Option<i64>>().map_or_else(errors::no_answer, Reply::Int)
}

/// A bulk string, or nil.
pub fn bulk(answer: Answer) -> Reply {
    match answer {
        Answer::Bytes(bytes) => Reply::Bulk(bytes),
        Answer::Nil => Reply::Nil,
        _ => errors::no_answer(),
    }
}

/// A number; 0 for a missing row.
pub fn int_or_zero(answer: Answer) -> Reply {
    if answer == Answer::Nil { Reply::Int(0) } else { int(answer) }
}

/// A bulk string; empty for a missing row.
pub fn bulk_or_empty(answer: Answer) -> Reply {
    if answer == Answer::Nil { Reply::Bulk(Bytes::new()) } else { bulk(answer) }
}

/// One value, or nil.
pub fn value(answer: Answer) -> Reply {
    match answer {
        Answer::Nil => Reply::Nil,
        Answer::Values(mut values) if values.len() == 1 => {
            values.pop().map_or(Reply::Nil, optional)
        }
        _ => errors::no_answer(),
    }
}

/// An array of `count` values, nil for missing fields or for a missing row.
pub fn values_or_nils(answer: Answer, count: usize) -> Reply {
    if answer == Answer::Nil { Reply::Array(vec![Reply::Nil; count]) } else { values(answer) }
}

/// An array of values, nil for missing fields.
pub fn values(answer: Answer) -> Reply {
    match answer {
        Answer::Values(values) => Reply::Array(values.into_iter().map(optional).collect()),
        _ => errors::no_answer(),
    }
}

/// An array of the cells' sortkeys.
pub fn sortkeys(answer: Answer) -> Reply {
    cells(answer, |cells| {
        Reply::Array(cells.into_iter().map(|(sortkey, _)| Reply::Bulk(sortkey)).collect())
    })
}

/// The reply that `build` makes of the cells.
pub fn cells(answer: Answer, build: impl FnOnce(Vec<(Bytes, Bytes)>) -> Reply) -> Reply {
    match answer {
        Answer::Cells { cells, .. } => build(cells),
        Answer::Nil => build(Vec::new()),
        _ => errors::no_answer(),
    }
}

/// Cells as pairs of bulk strings, for [`Reply::Map`] and [`Reply::Pairs`].
pub fn pairs(cells: Vec<(Bytes, Bytes)>) -> Vec<(Reply, Reply)> {
    cells.into_iter().map(|(sortkey, value)| (Reply::Bulk(sortkey), Reply::Bulk(value))).collect()
}

/// A bulk string, or nil.
pub fn optional(value: Option<Bytes>) -> Reply {
    value.map_or(Reply::Nil, Reply::Bulk)
}
