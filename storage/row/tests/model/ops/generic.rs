//! Ops on a row of any kind.

use proptest::prelude::*;
use row::RowOp;
use row::op::RowContent;

use super::{deadline, expire_if, hash, key, string, ttl};

fn content() -> impl Strategy<Value = RowContent> + Clone {
    prop_oneof![string::content(), hash::content()]
}

pub(super) fn op() -> impl Strategy<Value = RowOp> {
    prop_oneof![
        2 => key().prop_map(|key| RowOp::Delete { key }),
        2 => (key(), deadline(), expire_if())
            .prop_map(|(key, until, only)| RowOp::Expire { key, until, only }),
        1 => key().prop_map(|key| RowOp::Persist { key }),
        2 => (key(), key(), any::<bool>())
            .prop_map(|(from, to, only_new)| RowOp::Rename { from, to, only_new }),
        2 => (key(), key(), any::<bool>())
            .prop_map(|(from, to, replace)| RowOp::Copy { from, to, replace }),
        1 => key().prop_map(|key| RowOp::Dump { key }),
        1 => (key(), content(), ttl(), any::<bool>())
            .prop_map(|(key, content, ttl, replace)| RowOp::Restore { key, content, ttl, replace }),
    ]
}
