//! The guarantee of SCAN and HSCAN: an element that exists during the whole scan is
//! returned at least once, whatever is added and deleted meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use row::memory::{Memory, Reader};
use row::op::{Answer, Deadline, Ttl, WriteCondition};
use row::value::{Body, Head, Header};
use row::view::Rules;
use row::{Edits, Family, HashOp, Op, PartitionOp, RowOp, Stamp, StringOp, Tx, View, eval};

fn ask(view: &dyn View, op: &Op) -> (Answer, Edits) {
    let mut edits = Edits::default();
    let stamp = Stamp { now_ms: 1_000, timetag: 1_000 << 16 };
    let answer = eval(op, &mut Tx { view, edits: &mut edits, stamp, rules: Rules::default() })
        .expect("answers");
    (answer, edits)
}

fn change(memory: &mut Memory, op: &Op) {
    let (_, edits) = ask(memory, op);
    memory.apply(edits);
}

fn name(n: u64) -> Bytes {
    Bytes::from(format!("n{n}"))
}

fn set(n: u64) -> Op {
    set_named(name(n))
}

fn set_named(key: Bytes) -> Op {
    Op::String(StringOp::Set {
        key: key.into(),
        value: Bytes::new(),
        ttl: Ttl::Default,
        only: WriteCondition::Always,
        want_old: false,
    })
}

fn put(names: impl Iterator<Item = u64>) -> Op {
    Op::Hash(HashOp::Put {
        key: "h".into(),
        pairs: names.map(|n| (name(n), name(n))).collect(),
        only: WriteCondition::Always,
        ttl: Ttl::Default,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn scan_gives_all_that_stays(
        stays in 1..200u64, count in 1..30u64,
        churn in prop::collection::vec((any::<bool>(), 1000..1100u64), 0..100),
    ) {
        let mut memory = Memory::new();
        (0..stays).for_each(|n| change(&mut memory, &set(n)));
        let mut churn = churn.into_iter();
        let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), 0, 0);
        loop {
            let scan = PartitionOp::Scan { cursor, count, glob: None, kind: None };
            let (answer, _) = ask(&memory, &scan.into());
            let Answer::Page { keys, next, .. } = answer else { panic!("{answer:?}") };
            prop_assert!(keys.len() as u64 <= count);
            seen.extend(keys);
            cursor = next;
            pages += 1;
            if cursor == 0 {
                break;
            }
            if let Some((comes, n)) = churn.next() {
                let delete = || RowOp::Delete { key: name(n).into() }.into();
                change(&mut memory, &if comes { set(n) } else { delete() });
            }
        }
        prop_assert!((0..stays).all(|n| seen.contains(&name(n))));
        prop_assert!(pages <= (stays + 100) / count + 2, "a scan ends");
    }

    #[test]
    fn hscan_gives_all_that_stays(
        stays in 1..400u64, count in 1..50u64, remembers: bool,
        churn in prop::collection::vec((any::<bool>(), 1000..1300u64), 0..60),
    ) {
        let mut memory = Memory::new();
        change(&mut memory, &put(0..stays));
        change(&mut memory, &put(1000..1150));
        let mut churn = churn.into_iter();
        let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), 0, 0);
        let mut cursors = remembers.then(BTreeMap::new);
        loop {
            let view = Reader::new(&memory).remembering(cursors);
            let key = "h".into();
            let scan = Op::Hash(HashOp::Scan { key, cursor, count, glob: None, want_values: true });
            let (answer, edits) = ask(&view, &scan);
            cursors = view.into_cursors();
            prop_assert!(edits.is_empty());
            let Answer::CellsPage { cells, next } = answer else { panic!("{answer:?}") };
            pages += 1;
            prop_assert!(pages < 100_000, "a scan ends");
            seen.extend(cells.into_iter().map(|(name, value)| { assert_eq!(name, value); name }));
            cursor = next;
            if cursor == 0 {
                break;
            }
            if let Some((comes, n)) = churn.next() {
                let delete = Op::Hash(HashOp::Delete { key: "h".into(), fields: vec![name(n)] });
                change(&mut memory, &if comes { put(n..n + 1) } else { delete });
            }
        }
        prop_assert!((0..stays).all(|n| seen.contains(&name(n))));
    }
}

#[test]
fn a_small_hash_comes_whole_and_a_large_one_in_pages() {
    let scan = |fields: u64| {
        let mut memory = Memory::new();
        change(&mut memory, &put(0..fields));
        let (answer, _) = ask(
            &memory,
            &Op::Hash(HashOp::Scan {
                key: "h".into(),
                cursor: 0,
                count: 10,
                glob: Some("n1*".into()),
                want_values: false,
            }),
        );
        let Answer::CellsPage { cells, next } = answer else { panic!("{answer:?}") };
        assert!(cells.iter().all(|(name, value)| name.starts_with(b"n1") && value.is_empty()));
        (cells.len(), next == 0)
    };
    assert_eq!(scan(128), (1 + 10 + 28, true));
    assert_eq!(scan(129), (9, false), "n0, n1, n10, n100 to n106 are looked at");
}

#[test]
fn cursors_fit_a_double_and_colliding_names_are_not_lost() {
    // Two names that share the 52 bits of hash of which HSCAN's cursors are, and rows
    // that share slot and 39 bits.
    let twins = ["f30412db9968ae", "f4db9e79a2a084"];
    let tagged = ["{a}189837", "{a}208247", "{a}323145", "{a}1474458", "{a}779385", "{a}2275012"];
    let mut memory = Memory::new();
    tagged
        .iter()
        .for_each(|name| change(&mut memory, &set_named(Bytes::from_static(name.as_bytes()))));
    let others = (0..400).map(|n| Bytes::from(format!("f{}{n:x}", n % 10)));
    let names: BTreeSet<Bytes> =
        others.chain(twins.map(|name| Bytes::from_static(name.as_bytes()))).collect();
    let pairs = names.iter().map(|name| (name.clone(), Bytes::new())).collect();
    change(
        &mut memory,
        &Op::Hash(HashOp::Put {
            key: "h".into(),
            pairs,
            only: WriteCondition::Always,
            ttl: Ttl::Default,
        }),
    );
    let is_held = |cursor: u64| cursor < 1 << 53 && (cursor as f64) as u64 == cursor;
    for count in 1..=names.len() as u64 {
        let view = Reader::new(&memory).remembering(Some(BTreeMap::new()));
        let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), 0, 0);
        loop {
            let (answer, _) = ask(
                &view,
                &Op::Hash(HashOp::Scan {
                    key: "h".into(),
                    cursor,
                    count,
                    glob: None,
                    want_values: false,
                }),
            );
            let Answer::CellsPage { cells, next } = answer else { panic!("{answer:?}") };
            seen.extend(cells.into_iter().map(|(name, _)| name));
            (cursor, pages) = (next, pages + 1);
            assert!(is_held(cursor), "{cursor}");
            assert!(pages <= 2 * names.len(), "a scan by {count} ends");
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(seen, names, "by {count}");
    }
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), 0, 0);
    loop {
        let (answer, _) = ask(
            &memory,
            &Op::Partition(PartitionOp::Scan { cursor, count: 1, glob: None, kind: None }),
        );
        let Answer::Page { keys, next, .. } = answer else { panic!("{answer:?}") };
        assert!(keys.iter().all(|key| seen.insert(key.clone())), "{keys:?} came before");
        (cursor, pages) = (next, pages + 1);
        assert!(is_held(cursor), "{cursor}");
        if cursor == 0 {
            break;
        }
    }
    assert_eq!((seen.len(), pages), (7, 4), "each pair of rows comes in one page");
}

#[test]
fn a_page_ends_however_much_of_the_row_is_past() {
    let mut memory = Memory::new();
    let soon = Ttl::Until(row::op::Deadline::At(1_500));
    for from in (0..30_000).step_by(1000) {
        let pairs = (from..from + 1000).map(|n| (name(n), name(n))).collect();
        change(
            &mut memory,
            &Op::Hash(HashOp::Put {
                key: "h".into(),
                pairs,
                only: WriteCondition::Always,
                ttl: soon,
            }),
        );
    }
    change(&mut memory, &put(30_000..30_200));
    let look = |op: &Op| {
        let view = Reader::new(&memory);
        let stamp = Stamp { now_ms: 2_000, timetag: 2_000 << 16 };
        let answer = eval(
            op,
            &mut Tx { view: &view, edits: &mut Edits::default(), stamp, rules: Rules::default() },
        )
        .expect("answers");
        (answer, view.reads())
    };
    let (mut seen, mut cursor) = (BTreeSet::new(), 0);
    for page in 0.. {
        assert!(page < 400, "a scan ends");
        let (answer, cost) = look(&Op::Hash(HashOp::Scan {
            key: "h".into(),
            cursor,
            count: 100,
            glob: None,
            want_values: true,
        }));
        let Answer::CellsPage { cells, next } = answer else { panic!("{answer:?}") };
        // Without a memory, the page's first is looked for among all.
        assert!(cost < 110 || cursor != 0, "{cost} records were looked at");
        seen.extend(cells.into_iter().map(|(name, _)| name));
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(seen.len(), 200);
    let (answer, cost) = look(&Op::Hash(HashOp::Get {
        key: "h".into(),
        fields: [name(7), name(30_007)].into_iter().collect(),
    }));
    assert_eq!(
        (answer, cost),
        (Answer::Values([None, Some(name(30_007))].into_iter().collect()), 3),
        "it is judged by its head"
    );
}

#[test]
fn liveness_of_a_hash_costs_one_seek() {
    let mut memory = Memory::new();
    let until = |at| Ttl::Until(row::op::Deadline::At(at));
    let put = |names: std::ops::Range<u64>, ttl| {
        let pairs = names.map(|n| (name(n), name(n))).collect();
        Op::Hash(HashOp::Put { key: "h".into(), pairs, only: WriteCondition::Always, ttl })
    };
    change(&mut memory, &put(0..10_000, until(1_500)));
    let cost = |memory: &Memory, now_ms| {
        let view = Reader::new(memory);
        let stamp = Stamp { now_ms, timetag: now_ms << 16 };
        let answer = eval(
            &Op::Hash(HashOp::Expiry { key: "h".into(), fields: vec![name(1)], remaining: false }),
            &mut Tx { view: &view, edits: &mut Edits::default(), stamp, rules: Rules::default() },
        );
        (answer.expect("answers"), view.reads())
    };
    assert_eq!(cost(&memory, 1_499), (Answer::Ints(vec![1_500]), 2), "nothing is past");
    assert_eq!(
        cost(&memory, 1_500),
        (Answer::Nil, 2),
        "all is: its head and its last expiry say so"
    );
    change(&mut memory, &put(10_000..10_001, until(1_700)));
    assert_eq!(
        cost(&memory, 1_600),
        (Answer::Ints(vec![-2]), 3),
        "one lives: head, last expiry, and the field"
    );
    assert_eq!(cost(&memory, 1_700), (Answer::Nil, 2));
    change(&mut memory, &put(10_000..10_001, Ttl::Never));
    assert_eq!(
        cost(&memory, 1_700),
        (Answer::Ints(vec![-2]), 2),
        "one never expires: head and field"
    );
}

#[test]
fn an_expiry_step_checks_its_time_after_each_piece_of_work() {
    let mut memory = Memory::new();
    let soon = Ttl::Until(row::op::Deadline::At(1_500));
    let put = |key: &'static str, names: std::ops::Range<u64>, ttl| {
        let pairs = names.map(|n| (name(n), name(n))).collect();
        Op::Hash(HashOp::Put { key: key.into(), pairs, only: WriteCondition::Always, ttl })
    };
    (0..1_000).for_each(|n| {
        change(
            &mut memory,
            &Op::String(StringOp::Set {
                key: name(n).into(),
                value: name(n),
                ttl: soon,
                only: WriteCondition::Always,
                want_old: false,
            }),
        )
    });
    change(&mut memory, &put("all past", 0..50_000, soon));
    change(&mut memory, &put("all but one", 0..5_000, soon));
    change(&mut memory, &put("all but one", 5_000..5_001, Ttl::Never));
    let stamp = Stamp { now_ms: 2_000, timetag: 2_000 << 16 };
    let (mut rows, mut fields, mut steps) = (0, 0, 0);
    loop {
        let items = memory.due(stamp, Rules::default()).expect("memory has no faults").items;
        if items.is_empty() {
            break;
        }
        let mut edits = Edits::default();
        let view = Reader::new(&memory).spent_after(20);
        let answer = eval(
            &Op::Partition(PartitionOp::ExpireDue { items }),
            &mut Tx { view: &view, edits: &mut edits, stamp, rules: Rules::default() },
        );
        let Ok(Answer::Expired { rows: of_step, fields: of_rows, .. }) = answer else {
            panic!("{answer:?}")
        };
        assert!(
            view.reads_between_looks() <= 8,
            "{} records were read between two looks",
            view.reads_between_looks()
        );
        assert!(
            of_step + of_rows <= 21 && of_step + of_rows > 0,
            "a step that is spent ends: {of_step} rows, {of_rows} fields"
        );
        (rows, fields, steps) = (rows + of_step, fields + of_rows, steps + 1);
        memory.apply(edits);
    }
    assert_eq!(
        (rows, fields),
        (1_001, 5_000),
        "of a row that is past as a whole no member is looked at; in {steps} steps"
    );
}

#[test]
fn rows_that_share_their_cursor_come_in_one_page() {
    let mut edits = Edits::default();
    let head = Head { header: Header::default(), body: Body::String(Bytes::new()) };
    // Made by hand: the first three share slot and hash, the next the part of the hash of
    // which cursors are.
    for (name, position) in [("a", 5), ("b", 5), ("c", 5), ("d", 511), ("e", 512)] {
        let head_key = [&u64::to_be_bytes(position)[..], name.as_bytes()].concat();
        edits.put(Family::Head, head_key.into(), head.encode());
    }
    let mut memory = Memory::new();
    memory.apply(edits);
    let (answer, _) = ask(
        &memory,
        &Op::Partition(PartitionOp::Scan { cursor: 0, count: 1, glob: None, kind: None }),
    );
    assert_eq!(
        answer,
        Answer::Page { keys: ["a", "b", "c", "d"].map(Bytes::from).into(), next: 1, count: 4 }
    );
    let (answer, _) = ask(
        &memory,
        &Op::Partition(PartitionOp::Scan { cursor: 1, count: 1, glob: None, kind: None }),
    );
    assert_eq!(answer, Answer::Page { keys: vec!["e".into()], next: 0, count: 1 });
}

#[test]
fn distinct_draws_are_distinct_and_reach_everything() {
    let mut memory = Memory::new();
    change(&mut memory, &put(0..20));
    let mut drawn = BTreeMap::new();
    for seed in 0..400 {
        let (answer, _) = ask(
            &memory,
            &Op::Hash(HashOp::Random { key: "h".into(), count: 5, seed, want_values: true }),
        );
        let Answer::Cells { cells, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(cells.iter().collect::<BTreeSet<_>>().len(), 5);
        cells.into_iter().for_each(|(name, _)| *drawn.entry(name).or_insert(0) += 1);
    }
    assert_eq!(drawn.len(), 20);
    assert!(drawn.values().all(|n| (60..150).contains(n)), "100 each would be even: {drawn:?}");
}

/// Matching long patterns against long keys takes long: a page is then shorter, and no
/// key is missed.
#[test]
fn a_page_ends_when_its_pattern_has_taken_long() {
    let mut memory = Memory::new();
    let long = "a".repeat(60_000);
    let keys: BTreeSet<Bytes> = (0..10).map(|n| Bytes::from(format!("{n}{long}"))).collect();
    for key in &keys {
        let (value, ttl) = (Bytes::new(), Ttl::Default);
        change(
            &mut memory,
            &Op::String(StringOp::Set {
                key: key.clone().into(),
                value,
                ttl,
                only: WriteCondition::Always,
                want_old: false,
            }),
        );
    }
    let pattern = Bytes::from(format!("*{}*", "a".repeat(30_000)));
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), 0, 0);
    loop {
        let scan = Op::Partition(PartitionOp::Scan {
            cursor,
            count: 1000,
            glob: Some(pattern.clone()),
            kind: None,
        });
        let (Answer::Page { keys, next, .. }, _) = ask(&memory, &scan) else { panic!("a page") };
        seen.extend(keys);
        (cursor, pages) = (next, pages + 1);
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(seen, keys);
    assert!((5..=10).contains(&pages), "{pages} pages");
}

#[test]
fn a_get_costs_one_look_up() {
    let mut memory = Memory::new();
    change(&mut memory, &set(1));
    change(&mut memory, &put(0..10));
    let cost = |op: Op| {
        let view = Reader::new(&memory);
        ask(&view, &op);
        view.reads()
    };
    assert_eq!(cost(Op::String(StringOp::Get { key: name(1).into() })), 1);
    assert_eq!(cost(Op::String(StringOp::Get { key: name(2).into() })), 1);
    assert_eq!(cost(set(1)), 1);
    assert_eq!(cost(set(2)), 2, "the head and the counter of rows");
    assert_eq!(cost(Op::String(StringOp::Incr { key: name(9).into(), by: 1 })), 2);
    assert_eq!(
        cost(Op::Hash(HashOp::Get { key: "h".into(), fields: [name(1)].into_iter().collect() })),
        2
    );
    assert_eq!(cost(put(1..2)), 2, "the head and the cell");
    assert_eq!(cost(Op::Hash(HashOp::Len { key: "h".into() })), 1);
}

/// Of rows that have expired a draw passes one page by, as it may hold up the partition.
#[test]
fn a_draw_passes_a_bounded_number_of_expired_rows_by() {
    const PAGE: usize = 10_000;
    let until = |n: u64, at_ms| {
        Op::String(StringOp::Set {
            key: name(n).into(),
            value: Bytes::new(),
            ttl: Ttl::Until(Deadline::At(at_ms)),
            only: WriteCondition::Always,
            want_old: false,
        })
    };
    let mut memory = Memory::default();
    // In hash order, as they are walked; they expire at 2,000 ms.
    for n in 0..=PAGE as u64 {
        change(&mut memory, &until(n, 2_000));
    }
    let mut edits = Edits::default();
    let later = Stamp { now_ms: 3_000, timetag: 3_000 << 16 };
    let mut draw = |memory: &Memory, cursor| {
        eval(
            &Op::Partition(PartitionOp::FirstAtOrAfter { cursor }),
            &mut Tx { view: memory, edits: &mut edits, stamp: later, rules: Rules::default() },
        )
        .expect("answers")
    };
    let some = u64::MAX >> 3;
    for cursor in [0, some] {
        let Answer::Page { keys, count, .. } = draw(&memory, cursor) else { panic!("it walks on") };
        assert_eq!((keys.len(), count), (0, PAGE as u64));
    }
    // One fewer: it is known that there is none.
    memory.apply(ask(&memory, &Op::Row(RowOp::Delete { key: name(0).into() })).1);
    assert_eq!(draw(&memory, some), Answer::Nil);
    // And one that lives is found among as many, wherever the draw begins.
    memory.apply(ask(&memory, &Op::Row(RowOp::Delete { key: name(1).into() })).1);
    change(&mut memory, &until(2 * PAGE as u64, 9_000));
    for cursor in [0, some, u64::MAX >> 2] {
        assert_eq!(draw(&memory, cursor), Answer::Bytes(name(2 * PAGE as u64)), "from {cursor}");
    }
}
