//! Random ops over few keys, fields and values, so that they meet. Each family of ops has
//! its file.

mod generic;
mod hash;
mod partition;
mod pegasus;
mod string;

use bytes::Bytes;
use proptest::prelude::*;
use row::op::{Deadline, ExpireCondition, Ttl, WriteCondition};
use row::{Key, Op};

fn word(words: &'static [&'static str]) -> impl Strategy<Value = Bytes> + Clone {
    prop::sample::select(words).prop_map(|word| Bytes::from_static(word.as_bytes()))
}

fn key() -> impl Strategy<Value = Key> + Clone {
    word(&["", "a", "b", "{a}c"]).prop_map(Key)
}

fn field() -> impl Strategy<Value = Bytes> + Clone {
    word(&["", "f", "fa", "g", "\u{ff}"])
}

fn value() -> impl Strategy<Value = Bytes> + Clone {
    word(&["", "x", "1", "-7", "9223372036854775807", "1.5"])
}

fn fields() -> impl Strategy<Value = Vec<Bytes>> + Clone {
    prop::collection::vec(field(), 1..4)
}

fn deadline() -> impl Strategy<Value = Deadline> + Clone {
    prop_oneof![(-5..100i64).prop_map(Deadline::In), (990..1400i64).prop_map(Deadline::At)]
}

fn ttl() -> impl Strategy<Value = Ttl> + Clone {
    prop_oneof![
        3 => Just(Ttl::Default),
        1 => Just(Ttl::Keep),
        2 => deadline().prop_map(Ttl::Until),
        1 => Just(Ttl::Never),
    ]
}

fn only() -> impl Strategy<Value = WriteCondition> + Clone {
    prop_oneof![
        3 => Just(WriteCondition::Always),
        1 => Just(WriteCondition::IfAbsent),
        1 => Just(WriteCondition::IfPresent),
    ]
}

fn expire_if() -> impl Strategy<Value = ExpireCondition> + Clone {
    prop_oneof![
        3 => Just(ExpireCondition::default()),
        1 => Just(ExpireCondition { none: true, ..ExpireCondition::default() }),
        1 => Just(ExpireCondition { some: true, ..ExpireCondition::default() }),
        1 => Just(ExpireCondition { later: true, ..ExpireCondition::default() }),
        1 => Just(ExpireCondition { earlier: true, ..ExpireCondition::default() }),
    ]
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        16 => generic::op().prop_map(Op::Row),
        5 => partition::op().prop_map(Op::Partition),
        20 => string::op().prop_map(Op::String),
        37 => hash::op().prop_map(Op::Hash),
        3 => pegasus::op().prop_map(Op::Hash),
    ]
}
