//! Ops on hashes.

use proptest::prelude::*;
use row::HashOp;
use row::op::{Filter, Range, RowContent};

use super::{deadline, expire_if, field, fields, key, only, ttl, value};

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

pub(super) fn content() -> impl Strategy<Value = RowContent> + Clone {
    prop::collection::btree_map(field(), (value(), prop::option::of(990..1400u64)), 1..4).prop_map(
        |fields| {
            let field = |(name, (value, at))| (name, value, at);
            RowContent::Hash(fields.into_iter().map(field).collect())
        },
    )
}

pub(super) fn op() -> impl Strategy<Value = HashOp> {
    prop_oneof![
        6 => (key(), prop::collection::vec((field(), value()), 1..4), only(), ttl())
            .prop_map(|(key, pairs, only, ttl)| HashOp::Put { key, pairs, only, ttl }),
        1 => (key(), fields()).prop_map(|(key, fields)| HashOp::Get { key, fields: fields.into() }),
        1 => (key(), fields()).prop_map(|(key, fields)| HashOp::GetDelete { key, fields }),
        1 => (key(), fields(), ttl())
            .prop_map(|(key, fields, ttl)| HashOp::GetExpire { key, fields, ttl }),
        2 => (key(), fields()).prop_map(|(key, fields)| HashOp::Delete { key, fields }),
        1 => key().prop_map(|key| HashOp::Len { key }),
        1 => (key(), range(), any::<bool>())
            .prop_map(|(key, range, want_values)| HashOp::Range { key, range, want_values }),
        1 => (key(), range()).prop_map(|(key, range)| HashOp::RangeCount { key, range }),
        2 => (key(), range()).prop_map(|(key, range)| HashOp::RangeDelete { key, range }),
        1 => (key(), field(), -2..3i64)
            .prop_map(|(key, field, by)| HashOp::Incr { key, field, by }),
        4 => (key(), fields(), deadline(), expire_if())
            .prop_map(|(key, fields, until, only)| HashOp::Expire { key, fields, until, only }),
        1 => (key(), fields(), any::<bool>())
            .prop_map(|(key, fields, remaining)| HashOp::Expiry { key, fields, remaining }),
        1 => (key(), fields()).prop_map(|(key, fields)| HashOp::Persist { key, fields }),
    ]
}
