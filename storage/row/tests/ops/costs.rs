//! The cost that an op declares, against the records that it really looks at on rows of
//! ten and of ten thousand members.

use bytes::Bytes;
use row::memory::{Memory, Reader};
use row::op::{Ttl, WriteCondition};
use row::registry::Look;
use row::view::Rules;
use row::{Edits, HashOp, Op, Stamp, StringOp, Tx, eval};

use crate::vectors;

/// Records that an op may look at besides those that it declares: heads of a second row
/// and counters, and the pairs of a cell and its expiry.
const BESIDES: u64 = 8;
/// Records for each that is declared: a member is looked up, read and written.
const FOR_EACH: u64 = 4;

fn stamp() -> Stamp {
    Stamp { now_ms: 1_000, timetag: 1_000 << 16 }
}

/// A partition with the row `key`, and as many other rows as that has members.
fn partition(row: &Op, rows: usize) -> Memory {
    let mut memory = Memory::new();
    let mut edits = Edits::default();
    let mut write = |op: &Op| {
        let mut tx =
            Tx { view: &Memory::new(), edits: &mut edits, stamp: stamp(), rules: Rules::default() };
        eval(op, &mut tx).expect("a write of a new row");
    };
    write(row);
    for n in 0..rows {
        write(&set(&format!("other {n}"), b"v"));
    }
    memory.apply(edits);
    memory
}

fn set(key: &str, value: &'static [u8]) -> Op {
    let (key, value) = (key.to_owned().into(), Bytes::from_static(value));
    Op::String(StringOp::Set {
        key,
        value,
        ttl: Ttl::Default,
        only: WriteCondition::Always,
        want_old: false,
    })
}

/// A hash with the fields that the ops of the vectors name among its members.
fn hash(members: usize) -> Op {
    let names =
        ["f".to_owned(), "g".to_owned()].into_iter().chain((2..members).map(|n| format!("m{n}")));
    let pairs = names.map(|name| (name.into(), Bytes::from_static(b"1"))).collect();
    let key = Bytes::from_static(b"key").into();
    Op::Hash(HashOp::Put { key, pairs, only: WriteCondition::Always, ttl: Ttl::Default })
}

/// The records that an op may look at on a row of this many members.
fn allowed(look: Look, members: u64) -> u64 {
    let declared = match look {
        Look::One => 1,
        Look::Some(records) => records,
        Look::Row(more) => members + more,
    };
    FOR_EACH * declared + BESIDES
}

#[test]
fn ops_look_at_no_more_records_than_they_declare() {
    for members in [10, 10_000] {
        for row in [hash(members), set("key", b"1")] {
            let memory = partition(&row, members);
            for name in vectors::op_names() {
                let mut op = vectors::parse(name);
                if let Op::Hash(HashOp::Scan { cursor, .. }) = &mut op {
                    // A cursor that the view has forgotten costs the walk up to it, which
                    // is not known before.
                    *cursor = 0;
                }
                let view = Reader::new(&memory);
                let mut edits = Edits::default();
                let mut tx =
                    Tx { view: &view, edits: &mut edits, stamp: stamp(), rules: Rules::default() };
                // A refusal, such as that of another kind, has its cost as well.
                let _outcome = eval(&op, &mut tx);
                let (looked, most) = (view.reads(), allowed(op.look(), members as u64));
                assert!(
                    looked <= most,
                    "{name} on {members} members: {looked} records, {:?} allows {most}",
                    op.look()
                );
            }
        }
    }
}

#[test]
fn ops_that_declare_a_row_look_at_one() {
    let members = 10_000;
    let memory = partition(&hash(members), 10);
    let mut whole = 0;
    for name in vectors::op_names() {
        let op = vectors::parse(name);
        if !matches!(op.look(), Look::Row(_)) {
            continue;
        }
        let view = Reader::new(&memory);
        let mut tx = Tx {
            view: &view,
            edits: &mut Edits::default(),
            stamp: stamp(),
            rules: Rules::default(),
        };
        let _outcome = eval(&op, &mut tx);
        whole += u64::from(view.reads() >= members as u64);
    }
    assert!(whole >= 4, "only {whole} of the ops of whole rows looked at all members");
}
