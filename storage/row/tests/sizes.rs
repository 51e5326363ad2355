//! Changes of one op or step are bounded, with all bytes of records counted: a hash
//! repeats its key with each field.

use bytes::Bytes;
use row::memory::Memory;
use row::op::{Answer, Deadline, Range, Refusal, Request, Ttl, WriteCondition};
use row::view::Rules;
use row::{
    Edits, EvalError, HashOp, Op, PartitionOp, RowOp, Stamp, StringOp, Tx, View, eval, expire,
};

const RULES: Rules = Rules {
    default_ttl_ms: 0,
    default_ttl_since_ms: 0,
    write_bytes_max: 16 << 20,
    answer_bytes_max: 0,
};

fn long_key(n: usize) -> Bytes {
    Bytes::from(format!("{n:0>60000}"))
}

fn name(n: usize) -> Bytes {
    Bytes::from(format!("{n:08}"))
}

fn put(key: Bytes, fields: std::ops::Range<usize>, ttl: Ttl) -> Op {
    let pairs = fields.map(|n| (name(n), Bytes::from_static(b"v"))).collect();
    Op::Hash(HashOp::Put { key: key.into(), pairs, only: WriteCondition::Always, ttl })
}

fn ask(view: &dyn View, now_ms: u64, op: &Op) -> (Result<Answer, EvalError>, Edits) {
    let mut edits = Edits::default();
    let stamp = Stamp { now_ms, timetag: now_ms << 16 };
    let answer = eval(op, &mut Tx { view, edits: &mut edits, stamp, rules: RULES });
    (answer, edits)
}

fn change(memory: &mut Memory, now_ms: u64, op: &Op) -> (Answer, usize) {
    let (answer, edits) = ask(memory, now_ms, op);
    let bytes = edits.bytes();
    memory.apply(edits);
    (answer.expect("answers"), bytes)
}

fn is_refused(view: &dyn View, op: &Op) {
    let (answer, edits) = ask(view, 1, op);
    let why = if matches!(op, Op::Row(RowOp::Rename { .. }) | Op::Row(RowOp::Copy { .. })) {
        Refusal::RowTooLarge
    } else {
        Refusal::TooManyFields
    };
    let op = std::mem::discriminant(op);
    assert_eq!((answer, edits), (Err(EvalError::Refused(why)), Edits::default()), "{op:?}");
}

#[test]
fn many_fields_under_a_long_key_are_refused_whole() {
    let mut memory = Memory::new();
    is_refused(&memory, &put(long_key(1), 0..600, Ttl::Default));
    is_refused(&memory, &put(long_key(1), 0..300, Ttl::Until(Deadline::In(1_000))));
    for begin in (0..900).step_by(300) {
        change(&mut memory, 1, &put(long_key(1), begin..begin + 300, Ttl::Default));
    }
    let fields: Vec<_> = (0..900).map(name).collect();
    let until = Deadline::In(1_000);
    is_refused(
        &memory,
        &Op::Hash(HashOp::Delete { key: long_key(1).into(), fields: fields.clone() }),
    );
    is_refused(
        &memory,
        &Op::Hash(HashOp::GetDelete { key: long_key(1).into(), fields: fields.clone() }),
    );
    is_refused(
        &memory,
        &Op::Hash(HashOp::Expire {
            key: long_key(1).into(),
            fields: fields.clone(),
            until,
            only: Default::default(),
        }),
    );
    is_refused(
        &memory,
        &Op::Hash(HashOp::GetExpire {
            key: long_key(1).into(),
            fields: fields.clone(),
            ttl: Ttl::Until(until),
        }),
    );
    is_refused(
        &memory,
        &Op::Row(RowOp::Rename {
            from: long_key(1).into(),
            to: long_key(2).into(),
            only_new: false,
        }),
    );
    is_refused(
        &memory,
        &Op::Row(RowOp::Copy { from: long_key(1).into(), to: long_key(2).into(), replace: false }),
    );
    // Under a short name there is room for all of it.
    assert_eq!(
        change(
            &mut memory,
            1,
            &Op::Row(RowOp::Copy { from: long_key(1).into(), to: name(2).into(), replace: false })
        )
        .0,
        Answer::Int(1)
    );
    assert_eq!(
        change(&mut memory, 1, &Op::Row(RowOp::Delete { key: long_key(1).into() })).0,
        Answer::Int(1)
    );
}

#[test]
fn values_that_are_written_anew_with_their_expiry_count() {
    let mut memory = Memory::new();
    let (key, value) = (name(0), Bytes::from(vec![b'v'; 10 << 20]));
    for n in 1..=4 {
        let pairs = vec![(name(n), value.clone())];
        change(
            &mut memory,
            1,
            &Op::Hash(HashOp::Put {
                key: key.clone().into(),
                pairs,
                only: WriteCondition::Always,
                ttl: Ttl::Default,
            }),
        );
    }
    let expire = |fields: Vec<Bytes>| {
        Op::Hash(HashOp::Expire {
            key: key.clone().into(),
            fields,
            until: Deadline::In(1_000),
            only: Default::default(),
        })
    };
    is_refused(&memory, &expire((1..=4).map(name).collect()));
    assert_eq!(
        change(&mut memory, 1, &expire((1..=2).map(name).collect())).0,
        Answer::Ints(vec![1, 1])
    );
}

#[test]
fn a_range_delete_is_bounded_and_names_its_continuation() {
    let mut memory = Memory::new();
    for begin in (0..900).step_by(300) {
        change(&mut memory, 1, &put(long_key(1), begin..begin + 300, Ttl::Default));
    }
    let (mut start, mut deleted, mut steps) = (Some(name(100)), 0, 0);
    while let Some(from) = start {
        let range = Range { start: Some(from), ..Range::all() };
        let (answer, bytes) = change(
            &mut memory,
            1,
            &Op::Hash(HashOp::RangeDelete { key: long_key(1).into(), range }),
        );
        assert!(bytes < 32 << 20, "{bytes}");
        let Answer::Deleted { count, next } = answer else { panic!("{answer:?}") };
        (start, deleted, steps) = (next, deleted + count, steps + 1);
    }
    assert!(deleted == 800 && steps > 1, "{deleted} in {steps} steps");
}

#[test]
fn an_expiry_step_is_bounded_in_bytes_and_the_next_resumes() {
    let mut memory = Memory::new();
    let soon = Ttl::Until(Deadline::At(1_000));
    for n in 1..=200 {
        let key = long_key(n);
        change(
            &mut memory,
            1,
            &Op::String(StringOp::Set {
                key: key.into(),
                value: name(n),
                ttl: soon,
                only: WriteCondition::Always,
                want_old: false,
            }),
        );
    }
    change(&mut memory, 1, &put(long_key(300), 0..100, soon));
    change(&mut memory, 1, &put(long_key(300), 100..101, Ttl::Default));
    let mut gone = 0;
    for _ in 0..301 {
        let stamp = Stamp { now_ms: 2_000, timetag: 2_000 << 16 };
        let items = memory.due(stamp, RULES).expect("memory has no faults").items;
        let (answer, bytes) =
            change(&mut memory, 2_000, &Op::Partition(PartitionOp::ExpireDue { items }));
        assert!(bytes < 4 << 20, "{bytes}");
        let Answer::Expired { rows, fields, .. } = answer else { panic!("{answer:?}") };
        gone += rows + fields;
        if rows + fields == 0 {
            break;
        }
    }
    assert_eq!(gone, 300);
    assert_eq!(change(&mut memory, 2_000, &Op::Partition(PartitionOp::Rows)).0, Answer::Int(1));
    // The same for those that only the table's default expires: nothing tells when they
    // are due but their age.
    for n in 1..=100 {
        let key = long_key(n);
        change(
            &mut memory,
            2_000,
            &Op::String(StringOp::Set {
                key: key.into(),
                value: name(n),
                ttl: Ttl::Default,
                only: WriteCondition::Always,
                want_old: false,
            }),
        );
    }
    let rules = Rules { default_ttl_ms: 1_000, default_ttl_since_ms: 3_000, ..RULES };
    let (mut from, mut steps) = (0, 0);
    loop {
        let stamp = Stamp { now_ms: 5_000, timetag: 5_000 << 16 };
        let tx = Tx { view: &memory, edits: &mut Edits::default(), stamp, rules };
        let (mut items, next) = expire::find_old(&tx, from).expect("memory has no faults");
        assert!(items.len() < 100, "they are found in steps as well");
        while !items.is_empty() {
            let mut edits = Edits::default();
            let op = Op::Partition(PartitionOp::ExpireDue { items: items.clone() });
            let answer = eval(&op, &mut Tx { view: &memory, edits: &mut edits, stamp, rules });
            assert!(edits.bytes() < 4 << 20, "{}", edits.bytes());
            memory.apply(edits);
            let Ok(Answer::Expired { done, .. }) = answer else { panic!("{answer:?}") };
            items.drain(..done as usize);
            steps += 1;
        }
        if next == 0 {
            break;
        }
        from = next;
    }
    assert!(steps > 1, "it is too much for one step");
    assert_eq!(change(&mut memory, 5_000, &Op::Partition(PartitionOp::Rows)).0, Answer::Int(0));
}

#[test]
fn a_request_comes_apart_into_commands() {
    let ops: Vec<Op> = (0..5).map(|n| Op::String(StringOp::Get { key: name(n).into() })).collect();
    let sizes = |ops: &[Op], joined: &[u32]| {
        let request = Request { ops: ops.to_vec(), joined: joined.to_vec(), watched: vec![] };
        request.commands().map(<[Op]>::len).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&ops, &[]), [1; 5]);
    assert_eq!(sizes(&ops, &[1, 2, 3, 4]), [5]);
    assert_eq!(sizes(&ops, &[0, 2, 4]), [1, 2, 2]);
    assert_eq!(sizes(&ops, &[4, 5, 9]), [1, 1, 1, 2]);
    assert_eq!(sizes(&[], &[]), [0; 0]);
}
