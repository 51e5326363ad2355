//! Check-and-mutate.

use proptest::prelude::*;
use row::HashOp;
use row::op::{Check, Mutation};

use super::{field, key, ttl, value};

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

pub(super) fn op() -> impl Strategy<Value = HashOp> {
    let mutations = prop::collection::vec(mutation(), 0..3);
    (key(), field(), check(), value(), mutations, any::<bool>()).prop_map(
        |(key, check_sortkey, check, operand, mutations, want_value)| HashOp::CheckAndMutate {
            key,
            check_sortkey,
            check,
            operand,
            mutations,
            want_value,
        },
    )
}
