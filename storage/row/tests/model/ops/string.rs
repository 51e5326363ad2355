//! Ops on strings.

use proptest::prelude::*;
use row::StringOp;
use row::op::RowContent;

use super::{key, only, ttl, value};

pub(super) fn content() -> impl Strategy<Value = RowContent> + Clone {
    value().prop_map(RowContent::String)
}

pub(super) fn op() -> impl Strategy<Value = StringOp> {
    prop_oneof![
        1 => key().prop_map(|key| StringOp::Get { key }),
        1 => key().prop_map(|key| StringOp::GetDelete { key }),
        1 => (key(), ttl()).prop_map(|(key, ttl)| StringOp::GetExpire { key, ttl }),
        3 => (key(), value(), ttl(), only(), any::<bool>())
            .prop_map(|(key, value, ttl, only, want_old)|
                StringOp::Set { key, value, ttl, only, want_old }
            ),
        1 => prop::collection::vec((key(), value()), 1..4)
            .prop_map(|pairs| StringOp::SetAllIfAbsent { pairs }),
        1 => (key(), value()).prop_map(|(key, value)| StringOp::Append { key, value }),
        1 => (key(), -2..3i64).prop_map(|(key, by)| StringOp::Incr { key, by }),
        1 => (key(), 0..6u64, value())
            .prop_map(|(key, offset, value)| StringOp::SetRange { key, offset, value }),
    ]
}
