//! Reply builders that several commands share.
//!
//! Answers may come from a node of another version, so an answer of an unexpected shape
//! gives an error reply and never a panic. It is found out before anything is written.

use bytes::Bytes;
use row::op::Answer;

use crate::{ReplyWriter, errors};

/// `+OK`, whatever the answer.
pub fn ok(_: Answer, reply: &mut dyn ReplyWriter) {
    reply.status("OK");
}

/// `+OK` for several answers.
pub fn all_ok(_: Vec<Answer>, reply: &mut dyn ReplyWriter) {
    reply.status("OK");
}

/// A number.
pub fn int(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Int(number) => reply.int(number),
        _ => no_answer(reply),
    }
}

/// The sum of the answers, one number per op.
pub fn sum(answers: Vec<Answer>, reply: &mut dyn ReplyWriter) {
    let number = |answer| if let Answer::Int(number) = answer { Some(number) } else { None };
    match answers.into_iter().map(number).sum::<Option<i64>>() {
        Some(sum) => reply.int(sum),
        None => no_answer(reply),
    }
}

/// A bulk string, or nil.
pub fn bulk(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Bytes(bytes) => reply.bulk(&bytes),
        Answer::Nil => reply.nil(),
        _ => no_answer(reply),
    }
}

/// A number; 0 for a missing row.
pub fn int_or_zero(answer: Answer, reply: &mut dyn ReplyWriter) {
    if answer == Answer::Nil { reply.int(0) } else { int(answer, reply) }
}

/// A bulk string; empty for a missing row.
pub fn bulk_or_empty(answer: Answer, reply: &mut dyn ReplyWriter) {
    if answer == Answer::Nil { reply.bulk(b"") } else { bulk(answer, reply) }
}

/// One value, or nil.
pub fn value(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Nil => reply.nil(),
        Answer::Values(values) if values.len() == 1 => optional(values[0].as_ref(), reply),
        _ => no_answer(reply),
    }
}

/// An array of `count` values, nil for missing fields or for a missing row.
pub fn values_or_nils(answer: Answer, count: usize, reply: &mut dyn ReplyWriter) {
    if answer != Answer::Nil {
        return values(answer, reply);
    }
    reply.array(count);
    (0..count).for_each(|_| reply.nil());
}

/// An array of values, nil for missing fields.
pub fn values(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Values(values) => {
            reply.array(values.len());
            values.iter().for_each(|value| optional(value.as_ref(), reply));
        }
        _ => no_answer(reply),
    }
}

/// An array of the cells' sortkeys.
pub fn sortkeys(answer: Answer, reply: &mut dyn ReplyWriter) {
    cells(answer, reply, |cells, reply| {
        bulks(cells.iter().map(|(sortkey, _)| sortkey), reply);
    });
}

/// The reply that `write` makes of the cells.
pub fn cells(
    answer: Answer,
    reply: &mut dyn ReplyWriter,
    write: impl FnOnce(&[(Bytes, Bytes)], &mut dyn ReplyWriter),
) {
    match answer {
        Answer::Cells { cells, .. } => write(&cells, reply),
        Answer::Nil => write(&[], reply),
        _ => no_answer(reply),
    }
}

/// Cells as pairs of bulk strings.
pub fn pairs(cells: &[(Bytes, Bytes)], reply: &mut dyn ReplyWriter) {
    reply.pairs(cells.len());
    for (sortkey, value) in cells {
        reply.pair();
        reply.bulk(sortkey);
        reply.bulk(value);
    }
}

/// An array of bulk strings.
pub fn bulks<'a>(items: impl ExactSizeIterator<Item = &'a Bytes>, reply: &mut dyn ReplyWriter) {
    reply.array(items.len());
    items.for_each(|item| reply.bulk(item));
}

/// A bulk string, or nil.
pub fn optional(value: Option<&Bytes>, reply: &mut dyn ReplyWriter) {
    match value {
        Some(value) => reply.bulk(value),
        None => reply.nil(),
    }
}

/// The error of an answer that is missing, or whose shape is not the op's.
pub fn no_answer(reply: &mut dyn ReplyWriter) {
    errors::no_answer().write(reply);
}
