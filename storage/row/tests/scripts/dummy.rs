//! The price of an op: one definition, one line, one vector, one script. Here they are
//! paid for an op that Bridle does not have.
//!
//! The script is `scripts/string/dummy_join.script`. The rest of what a server must know of
//! the op follows from its line.

use bytes::Bytes;
use row::eval::EvalResult;
use row::op::Answer;
use row::registry::{Effect, Keys, Look, OpFamily, Payload};
use row::{AnswerSize, Key, StringOp, Tx, eval, ops};

use crate::{ScriptOp, words};

ops! {
    /// Ops of this test.
    pub(crate) enum DummyOp {
        /// The strings of rows, joined. -> `Bytes`; refuses `WrongType`
        16000 Join { by: Bytes, keys: Vec<Key> } => join, Read, Look::each(keys.len()), Large;
    }
}

fn join(tx: &mut Tx<'_>, by: &[u8], keys: &[Key]) -> EvalResult {
    let mut parts = Vec::new();
    for key in keys {
        if let Answer::Bytes(value) = eval(&StringOp::Get { key: key.clone() }.into(), tx)? {
            parts.push(value);
        }
    }
    Ok(Answer::Bytes(parts.join(by).into()))
}

const VECTOR: (&str, &str) = (r#"{"Join":{"by":"-","keys":["a","b"]}}"#, "012d0201610162");

/// The op of a script's line.
pub(crate) fn op(line: &str) -> Option<ScriptOp> {
    let op = words::op_of::<DummyOp>("dummy_", line)?;
    Some(ScriptOp { eval: Box::new(move |tx| op.answer(tx)), pieces: u64::MAX })
}

#[test]
fn all_that_is_known_of_an_op_follows_from_its_line() {
    let op: DummyOp = serde_json::from_str(VECTOR.0).expect("the op in JSON");
    let fields = op.encode().expect("fields are encoded");
    let hex: String = fields.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((op.number(), hex.as_str()), (16_000, VECTOR.1));
    assert_eq!(DummyOp::decode(16_000, &fields), Some(Ok(op.clone())));
    assert_eq!(DummyOp::decode(16_001, &fields), None);
    let mut keys = Keys::new();
    op.add_keys(&mut keys);
    assert_eq!(keys[..], [&Bytes::from_static(b"a"), &Bytes::from_static(b"b")]);
    assert_eq!((op.effect(), op.look()), (Effect::Read, Look::Some(2)));
    assert_eq!((op.answer_size(), op.name()), (AnswerSize::Large, "Join"));
    assert_eq!(op.payload(), Payload { bytes: 3, items: 2 });
}
