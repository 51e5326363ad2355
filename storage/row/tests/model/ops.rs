//! Random ops over few keys, fields and values, so that they meet.

use bytes::Bytes;
use proptest::prelude::*;
use row::Op;
use row::op::{
    Check, Deadline, ExpireCondition, Filter, Mutation, Range, RowContent, Ttl, WriteCondition,
};
use row::{HashOp, Key, PartitionOp, RowOp, StringOp};

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

fn range() -> impl Strategy<Value = Range> + Clone {
    let filter = prop_oneof![
        2 => Just(Filter::None),
        1 => field().prop_map(Filter::Prefix),
        1 => field().prop_map(Filter::Suffix),
        1 => field().prop_map(Filter::Contains),
    ];
    let bound = || prop::option::of(field());
    (
        bound(),
        any::<bool>(),
        bound(),
        any::<bool>(),
        filter,
        any::<bool>(),
        prop_oneof![Just(0), 1..4u64],
    )
        .prop_map(
            |(start, start_inclusive, stop, stop_inclusive, filter, reverse, cells_max)| Range {
                start,
                start_inclusive,
                stop,
                stop_inclusive,
                filter,
                reverse,
                cells_max,
                bytes_max: 0,
            },
        )
}

fn check() -> impl Strategy<Value = Check> + Clone {
    use Check::*;
    prop::sample::select(vec![
        None,
        NotExist,
        NotExistOrEmpty,
        Exist,
        NotEmpty,
        MatchAnywhere,
        BytesLess,
        BytesEqual,
        IntLess,
        IntGreaterOrEqual,
    ])
}

fn mutation() -> impl Strategy<Value = Mutation> + Clone {
    prop_oneof![
        (field(), value(), ttl()).prop_map(|(sortkey, value, ttl)| Mutation::Put {
            sortkey,
            value,
            ttl
        }),
        field().prop_map(|sortkey| Mutation::Delete { sortkey }),
    ]
}

fn content() -> impl Strategy<Value = RowContent> + Clone {
    prop_oneof![
        value().prop_map(RowContent::String),
        prop::collection::btree_map(field(), (value(), prop::option::of(990..1400u64)), 1..4)
            .prop_map(|fields| RowContent::Hash(
                fields.into_iter().map(|(name, (value, at))| (name, value, at)).collect()
            )),
    ]
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let whole = prop_oneof![
        2 => key().prop_map(|key| Op::Row(RowOp::Delete { key })),
        2 => (key(), deadline(), expire_if())
            .prop_map(|(key, until, only)| Op::Row(RowOp::Expire { key, until, only })),
        1 => key().prop_map(|key| Op::Row(RowOp::Persist { key })),
        2 => (key(), key(), any::<bool>())
            .prop_map(|(from, to, only_new)| Op::Row(RowOp::Rename { from, to, only_new })),
        2 => (key(), key(), any::<bool>())
            .prop_map(|(from, to, replace)| Op::Row(RowOp::Copy { from, to, replace })),
        1 => key().prop_map(|key| Op::Row(RowOp::Dump { key })),
        1 => (key(), content(), ttl(), any::<bool>())
            .prop_map(|(key, content, ttl, replace)| Op::Row(RowOp::Restore { key, content, ttl, replace })),
        // What is due is found as it is done.
        3 => Just(Op::Partition(PartitionOp::ExpireDue { items: Vec::new() })),
    ];
    let strings = prop_oneof![
        1 => key().prop_map(|key| Op::String(StringOp::Get { key })),
        1 => key().prop_map(|key| Op::String(StringOp::GetDelete { key })),
        1 => (key(), ttl()).prop_map(|(key, ttl)| Op::String(StringOp::GetExpire { key, ttl })),
        3 => (key(), value(), ttl(), only(), any::<bool>())
            .prop_map(|(key, value, ttl, only, want_old)|
                Op::String(StringOp::Set { key, value, ttl, only, want_old })
            ),
        1 => prop::collection::vec((key(), value()), 1..4)
            .prop_map(|pairs| Op::String(StringOp::SetAllIfAbsent { pairs })),
        1 => (key(), value()).prop_map(|(key, value)| Op::String(StringOp::Append { key, value })),
        1 => (key(), -2..3i64).prop_map(|(key, by)| Op::String(StringOp::Incr { key, by })),
        1 => (key(), 0..6u64, value())
            .prop_map(|(key, offset, value)| Op::String(StringOp::SetRange { key, offset, value })),
    ];
    let hashes = prop_oneof![
        6 => (key(), prop::collection::vec((field(), value()), 1..4), only(), ttl())
            .prop_map(|(key, pairs, only, ttl)| Op::Hash(HashOp::Put { key, pairs, only, ttl })),
        1 => (key(), fields()).prop_map(|(key, fields)| Op::Hash(HashOp::Get { key, fields: fields.into() })),
        1 => (key(), fields()).prop_map(|(key, fields)| Op::Hash(HashOp::GetDelete { key, fields })),
        1 => (key(), fields(), ttl())
            .prop_map(|(key, fields, ttl)| Op::Hash(HashOp::GetExpire { key, fields, ttl })),
        2 => (key(), fields()).prop_map(|(key, fields)| Op::Hash(HashOp::Delete { key, fields })),
        1 => key().prop_map(|key| Op::Hash(HashOp::Len { key })),
        1 => (key(), range(), any::<bool>())
            .prop_map(|(key, range, want_values)| Op::Hash(HashOp::Range { key, range, want_values })),
        1 => (key(), range()).prop_map(|(key, range)| Op::Hash(HashOp::RangeCount { key, range })),
        2 => (key(), range()).prop_map(|(key, range)| Op::Hash(HashOp::RangeDelete { key, range })),
        1 => (key(), field(), -2..3i64)
            .prop_map(|(key, field, by)| Op::Hash(HashOp::Incr { key, field, by })),
        4 => (key(), fields(), deadline(), expire_if())
            .prop_map(|(key, fields, until, only)| Op::Hash(HashOp::Expire { key, fields, until, only })),
        1 => (key(), fields(), any::<bool>())
            .prop_map(|(key, fields, remaining)| Op::Hash(HashOp::Expiry { key, fields, remaining })),
        1 => (key(), fields()).prop_map(|(key, fields)| Op::Hash(HashOp::Persist { key, fields })),
        2 => {
            let mutations = prop::collection::vec(mutation(), 0..3);
            (key(), field(), check(), value(), mutations, any::<bool>()).prop_map(
                |(key, check_sortkey, check, operand, mutations, want_value)| {
                    Op::Hash(HashOp::CheckAndMutate {
                        key,
                        check_sortkey,
                        check,
                        operand,
                        mutations,
                        want_value,
                    })
                },
            )
        },
    ];
    prop_oneof![20 => whole, 20 => strings, 40 => hashes, 1 => Just(Op::Partition(PartitionOp::Clear))]
}
