//! SCAN's and HSCAN's guarantee: what is there all the time comes at least once, whatever comes and goes meanwhile.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::prelude::*;
use row::memory::Memory;
use row::op::{Answer, Only, Ttl};
use row::value::{Body, Head, Header};
use row::view::{Fault, Rules};
use row::{Edits, Family, Op, Stamp, Tx, View, eval, key};

/// A memory that remembers HSCAN's cursors, when asked to.
struct Remembering<'a> {
    memory: &'a Memory,
    cursors: Option<RefCell<BTreeMap<u64, Bytes>>>,
}

impl View for Remembering<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.memory.get(family, key)
    }

    fn gist(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.memory.gist(family, key)
    }

    fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.memory.range(family, from, to, reverse, each)
    }

    fn recall(&self, cursor: u64) -> Option<Bytes> {
        self.cursors.as_ref()?.borrow().get(&cursor).cloned()
    }

    fn remember(&self, cursor: u64, sortkey: &[u8]) {
        if let Some(cursors) = &self.cursors {
            cursors.borrow_mut().insert(cursor, Bytes::copy_from_slice(sortkey));
        }
    }
}

fn ask(view: &dyn View, op: &Op) -> (Answer, Edits) {
    let mut edits = Edits::default();
    let stamp = Stamp { now_ms: 1_000, timetag: 1_000 << 16 };
    let answer = eval(op, &mut Tx { view, edits: &mut edits, stamp, rules: Rules::default() }).expect("answers");
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
    Op::Set { key: name(n), value: Bytes::new(), ttl: Ttl::Default, only: Only::Always, want_old: false }
}

fn put(names: impl Iterator<Item = u64>) -> Op {
    Op::HashPut { key: "h".into(), pairs: names.map(|n| (name(n), name(n))).collect(), only: Only::Always, ttl: Ttl::Default }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn scan_gives_all_that_stays(stays in 1..200u64, count in 1..30u64, churn in prop::collection::vec((any::<bool>(), 1000..1100u64), 0..100)) {
        let mut memory = Memory::new();
        (0..stays).for_each(|n| change(&mut memory, &set(n)));
        let mut churn = churn.into_iter();
        let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), 0, 0);
        loop {
            let (answer, _) = ask(&memory, &Op::Scan { cursor, count, glob: None, kind: None });
            let Answer::Page { keys, next, .. } = answer else { panic!("{answer:?}") };
            prop_assert!(keys.len() as u64 <= count);
            seen.extend(keys);
            cursor = next;
            pages += 1;
            if cursor == 0 {
                break;
            }
            if let Some((comes, n)) = churn.next() {
                change(&mut memory, &if comes { set(n) } else { Op::Delete { key: name(n) } });
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
        let cursors = RefCell::new(BTreeMap::new());
        let mut churn = churn.into_iter();
        let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), 0, 0);
        let mut cursors = remembers.then_some(cursors);
        loop {
            let view = Remembering { memory: &memory, cursors: cursors.take() };
            let (answer, edits) = ask(&view, &Op::HashScan { key: "h".into(), cursor, count, glob: None, want_values: true });
            cursors = view.cursors;
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
                change(&mut memory, &if comes { put(n..n + 1) } else { Op::HashDelete { key: "h".into(), fields: vec![name(n)] } });
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
        let (answer, _) =
            ask(&memory, &Op::HashScan { key: "h".into(), cursor: 0, count: 10, glob: Some("n1*".into()), want_values: false });
        let Answer::CellsPage { cells, next } = answer else { panic!("{answer:?}") };
        assert!(cells.iter().all(|(name, value)| name.starts_with(b"n1") && value.is_empty()));
        (cells.len(), next == 0)
    };
    assert_eq!(scan(128), (1 + 10 + 28, true));
    assert_eq!(scan(129), (9, false), "n0, n1, n10, n100 to n106 are looked at");
}

#[test]
fn rows_that_share_their_position_come_in_one_page() {
    let mut edits = Edits::default();
    let head = Head { header: Header::default(), body: Body::String(Bytes::new()) };
    for name in ["a", "b", "c"] {
        // Made by hand: nobody knows keys that share a slot and 48 bits of hash.
        let head_key = [&5u64.to_be_bytes()[..], name.as_bytes()].concat();
        edits.put(Family::Head, head_key.into(), head.encode());
    }
    edits.put(Family::Head, [&6u64.to_be_bytes()[..], b"d"].concat().into(), head.encode());
    let mut memory = Memory::new();
    memory.apply(edits);
    let (answer, _) = ask(&memory, &Op::Scan { cursor: 0, count: 1, glob: None, kind: None });
    assert_eq!(answer, Answer::Page { keys: vec!["a".into(), "b".into(), "c".into()], next: 6, count: 3 });
}

#[test]
fn distinct_draws_are_distinct_and_reach_everything() {
    let mut memory = Memory::new();
    change(&mut memory, &put(0..20));
    let mut drawn = BTreeMap::new();
    for seed in 0..400 {
        let (answer, _) = ask(&memory, &Op::HashRandom { key: "h".into(), count: 5, seed, want_values: true });
        let Answer::Cells { cells, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(cells.iter().collect::<BTreeSet<_>>().len(), 5);
        cells.into_iter().for_each(|(name, _)| *drawn.entry(name).or_insert(0) += 1);
    }
    assert_eq!(drawn.len(), 20);
    assert!(drawn.values().all(|n| (60..150).contains(n)), "100 each would be even: {drawn:?}");
}

/// Long patterns against long keys take long each: a page is then shorter, and no key is missed.
#[test]
fn a_page_ends_when_its_pattern_has_taken_long() {
    let mut memory = Memory::new();
    let long = "a".repeat(60_000);
    let keys: BTreeSet<Bytes> = (0..10).map(|n| Bytes::from(format!("{n}{long}"))).collect();
    for key in &keys {
        let (value, ttl) = (Bytes::new(), Ttl::Default);
        change(&mut memory, &Op::Set { key: key.clone(), value, ttl, only: Only::Always, want_old: false });
    }
    let pattern = Bytes::from(format!("*{}*", "a".repeat(30_000)));
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), 0, 0);
    loop {
        let scan = Op::Scan { cursor, count: 1000, glob: Some(pattern.clone()), kind: None };
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
    struct Counting<'a>(&'a Memory, RefCell<u32>);
    impl View for Counting<'_> {
        fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
            *self.1.borrow_mut() += 1;
            self.0.get(family, key)
        }
        fn range(
            &self,
            family: Family,
            from: &[u8],
            to: &[u8],
            reverse: bool,
            each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
        ) -> Result<(), Fault> {
            *self.1.borrow_mut() += 100;
            self.0.range(family, from, to, reverse, each)
        }
    }
    let mut memory = Memory::new();
    change(&mut memory, &set(1));
    change(&mut memory, &put(0..10));
    let cost = |op: Op| {
        let view = Counting(&memory, RefCell::new(0));
        ask(&view, &op);
        view.1.into_inner()
    };
    assert_eq!(cost(Op::Get { key: name(1) }), 1);
    assert_eq!(cost(Op::Get { key: name(2) }), 1);
    assert_eq!(cost(set(1)), 1);
    assert_eq!(cost(set(2)), 2, "the head and the counter of rows");
    assert_eq!(cost(Op::Add { key: name(9), by: 1 }), 2);
    assert_eq!(cost(Op::HashGet { key: "h".into(), fields: [name(1)].into_iter().collect() }), 2);
    assert_eq!(cost(put(1..2)), 2, "the head and the cell");
    assert_eq!(cost(Op::HashLen { key: "h".into() }), 1);
    assert_eq!(key::slot(b"h"), key::position_slot(key::position(b"h")).expect("a slot"));
}
