//! Pegasus's 18 checks, as a table.

use bytes::Bytes;
use row::memory::Memory;
use row::op::{Answer, Check, Refusal, Ttl, WriteCondition};
use row::view::Rules;
use row::{Edits, EvalError, HashOp, Op, Stamp, Tx, eval};

/// Evaluates a check of a cell's value (`None`: no such cell).
fn holds(check: Check, operand: &str, value: Option<&str>) -> Result<bool, Refusal> {
    let memory = Memory::new();
    let mut edits = Edits::default();
    let stamp = Stamp { now_ms: 1, timetag: 1 << 16 };
    let mut tx = Tx { view: &memory, edits: &mut edits, stamp, rules: Rules::default() };
    let (key, sortkey) = (Bytes::from("h"), Bytes::from("s"));
    if let Some(value) = value {
        let pairs = vec![(sortkey.clone(), Bytes::copy_from_slice(value.as_bytes()))];
        eval(
            &Op::Hash(HashOp::Put {
                key: key.clone().into(),
                pairs,
                only: WriteCondition::Always,
                ttl: Ttl::Default,
            }),
            &mut tx,
        )
        .expect("puts");
    }
    let operand = Bytes::copy_from_slice(operand.as_bytes());
    match eval(
        &Op::Hash(HashOp::CheckAndMutate {
            key: key.into(),
            check_sortkey: sortkey,
            check,
            operand,
            mutations: vec![],
            want_value: false,
        }),
        &mut tx,
    ) {
        Ok(Answer::Checked { done, value: None }) => Ok(done),
        Err(EvalError::Refused(refusal)) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn checks_hold_as_in_pegasus() {
    use Check::*;
    for (check, operand, value, held) in [
        (None, "", Option::None, true),
        (None, "", Some("x"), true),
        (NotExist, "", Option::None, true),
        (NotExist, "", Some(""), false),
        (NotExistOrEmpty, "", Option::None, true),
        (NotExistOrEmpty, "", Some(""), true),
        (NotExistOrEmpty, "", Some("x"), false),
        (Exist, "", Option::None, false),
        (Exist, "", Some(""), true),
        (NotEmpty, "", Option::None, false),
        (NotEmpty, "", Some(""), false),
        (NotEmpty, "", Some("x"), true),
        (MatchAnywhere, "b", Some("abc"), true),
        (MatchAnywhere, "", Some("abc"), true),
        (MatchAnywhere, "", Some(""), true),
        (MatchAnywhere, "", Option::None, false),
        (MatchAnywhere, "abcd", Some("abc"), false),
        (MatchPrefix, "ab", Some("abc"), true),
        (MatchPrefix, "bc", Some("abc"), false),
        (MatchPostfix, "bc", Some("abc"), true),
        (MatchPostfix, "ab", Some("abc"), false),
        (BytesLess, "b", Some("a"), true),
        (BytesLess, "b", Some("b"), false),
        (BytesLess, "b", Option::None, false),
        (BytesLessOrEqual, "b", Some("b"), true),
        (BytesLessOrEqual, "b", Some("ba"), false),
        (BytesEqual, "b", Some("b"), true),
        (BytesEqual, "", Some(""), true),
        (BytesEqual, "", Option::None, false),
        (BytesGreaterOrEqual, "b", Some("b"), true),
        (BytesGreaterOrEqual, "b", Some("a"), false),
        (BytesGreater, "b", Some("ba"), true),
        (BytesGreater, "b", Some("b"), false),
        (IntLess, "10", Some("9"), true),
        (IntLess, "10", Some("10"), false),
        (IntLess, "10", Option::None, false),
        (IntLess, "no number", Option::None, false),
        (IntLessOrEqual, "10", Some("10"), true),
        (IntLessOrEqual, "10", Some("11"), false),
        (IntEqual, "-5", Some("-5"), true),
        (IntEqual, "5", Some("-5"), false),
        (IntGreaterOrEqual, "10", Some("10"), true),
        (IntGreaterOrEqual, "10", Some("9"), false),
        (IntGreater, "9", Some("10"), true),
        (IntGreater, "10", Some("10"), false),
    ] {
        assert_eq!(holds(check, operand, value), Ok(held), "{check:?} {operand:?} {value:?}");
    }
    for check in [IntLess, IntLessOrEqual, IntEqual, IntGreaterOrEqual, IntGreater] {
        assert_eq!(holds(check, "1", Some("")), Err(Refusal::CheckValueNotInteger));
        assert_eq!(
            holds(check, "x", Some("x")),
            Err(Refusal::CheckValueNotInteger),
            "the value is read first"
        );
        assert_eq!(
            holds(check, "9223372036854775808", Some("1")),
            Err(Refusal::CheckOperandNotInteger)
        );
        assert_eq!(holds(check, "", Some("1")), Err(Refusal::CheckOperandNotInteger));
    }
}
