//! KEYS, SCAN and RANDOMKEY as machines, over several partitions in memory.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use commands::rounds::memory::{MemoryTables, not_done};
use commands::rounds::{
    Answers, Outcome, Round, Rounds, TableAnswer, TableFacts, TableHandle, UnitAnswer, UnitQuestion,
};
use commands::testscript::argv;
use commands::{Plan, Reply, table};
use row::PartitionOp;
use row::op::{Answer, Op};

const EMPTY: &[Bytes] = &[];

fn plan(line: &str, seed: u64) -> Plan {
    let argv = argv(line).expect("a line of words");
    table::plan(argv.into_iter().collect(), seed).expect("a command").1
}

fn call(tables: &mut MemoryTables, line: &str, seed: u64) -> Reply {
    let reply = tables.execute(plan(line, seed)).expect("it ends");
    reply.expect("it needs no session")
}

fn machine(line: &str) -> Box<dyn Rounds> {
    match plan(line, 1) {
        Plan::Rounds(machine) => machine,
        other => panic!("{other:?}"),
    }
}

/// A table of so many partitions, with these keys.
fn table_with(partitions: u32, keys: impl IntoIterator<Item = String>) -> MemoryTables {
    let mut tables = MemoryTables::new(partitions);
    for key in keys {
        call(&mut tables, &format!("SET {key} v"), 1);
    }
    tables
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

fn list(reply: Reply) -> Vec<Bytes> {
    let Reply::Array(items) = reply else { panic!("{reply:?} is no array") };
    items.into_iter().map(bulk).collect()
}

fn bulk(reply: Reply) -> Bytes {
    let Reply::Bulk(bytes) = reply else { panic!("{reply:?} is no bulk string") };
    bytes
}

/// The cursor and the keys of a reply to SCAN.
fn page(reply: Reply) -> (u64, Vec<Bytes>) {
    let Reply::Array(mut items) = reply else { panic!("{reply:?} is no array") };
    let keys = list(items.pop().expect("keys"));
    let cursor = bulk(items.pop().expect("a cursor"));
    (String::from_utf8_lossy(&cursor).parse().expect("a number"), keys)
}

fn error(reply: Reply) -> String {
    let Reply::Error(line) = reply else { panic!("{reply:?} is no error") };
    line.into_owned()
}

#[test]
fn keys_lists_every_key_of_every_partition_once() {
    let all = names("key:", 5000);
    let mut tables = table_with(4, all.clone());
    let found = list(call(&mut tables, "KEYS *", 1));
    assert_eq!(found.len(), 5000);
    let found: BTreeSet<_> = found.into_iter().collect();
    assert_eq!(found, all.into_iter().map(Bytes::from).collect());
    // 1,250 keys a partition, 1,000 a page.
    assert_eq!(tables.units, 8);
    assert_eq!(list(call(&mut tables, "KEYS key:4999", 1)), ["key:4999"]);
    tables.selected = "db1".into();
    assert_eq!(list(call(&mut tables, "KEYS *", 1)), EMPTY);
}

#[test]
fn keys_stops_at_the_limit_of_an_answer() {
    let mut tables = table_with(1, names("key:", 3000));
    tables.answer_bytes_max = 1500 * size_of::<Reply>();
    assert_eq!(
        error(call(&mut tables, "KEYS *", 1)),
        format!(
            "ERR the keys take more than the limit ({} bytes): use SCAN",
            tables.answer_bytes_max
        )
    );
    assert_eq!(tables.units, 2, "the third page is not read");
    assert_eq!(list(call(&mut tables, "KEYS key:1?", 1)).len(), 10);
}

#[test]
fn failed_page_is_the_reply() {
    let mut tables = table_with(2, names("key:", 10));
    for line in ["KEYS *", "SCAN 0 COUNT 100", "RANDOMKEY"] {
        tables.interposed = Some(Box::new(|_, _| Some(not_done("CLUSTERDOWN x"))));
        assert_eq!(error(call(&mut tables, line, 1)), "CLUSTERDOWN x", "{line}");
        // The table is dropped between two rounds.
        tables.interposed = Some(Box::new(|tables, _| {
            tables.drop_table("db0");
            None
        }));
        assert_eq!(error(call(&mut tables, line, 1)), "ERR no such table", "{line}");
        tables = table_with(2, names("key:", 10));
    }
}

#[test]
fn scan_returns_every_key_over_all_partitions() {
    let mut tables = table_with(8, names("key:", 1000));
    let (mut cursor, mut found, mut calls) = (0, Vec::new(), 0);
    loop {
        let (next, keys) = page(call(&mut tables, &format!("SCAN {cursor} COUNT 30"), 1));
        assert!(keys.len() <= 60, "{}", keys.len());
        found.extend(keys);
        calls += 1;
        if next == 0 {
            break;
        }
        assert!(next > cursor);
        cursor = next;
    }
    assert_eq!(found.len(), 1000);
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>().len(), 1000);
    assert!((25..=45).contains(&calls), "{calls}");
}

#[test]
fn scan_visits_sixteen_partitions_at_most() {
    let mut tables = table_with(64, ["key".to_owned()]);
    let (next, keys) = page(call(&mut tables, "SCAN 0 MATCH none", 1));
    assert_eq!((tables.units, keys.len()), (16, 0));
    // The seventeenth partition begins at slot 4096.
    assert_eq!(next, row::key::slot_cursor(4096));
    assert_eq!(page(call(&mut tables, "SCAN 9007199254740992", 1)), (0, Vec::new()));
    assert_eq!(tables.units, 16, "there is nothing behind the last slot");
}

#[test]
fn scan_is_bounded_by_the_limit_of_an_answer() {
    let mut tables = table_with(4, names("key:", 400));
    tables.answer_bytes_max = 200 * size_of::<Reply>();
    assert_eq!(page(call(&mut tables, "SCAN 0 COUNT 10", 1)).1.len(), 10);
    assert!(
        error(call(&mut tables, "SCAN 0 COUNT 400", 1)).starts_with("ERR answer is larger than")
    );
}

/// Answers questions about tables from a table in memory, and all pages with this.
fn with_pages(mut machine: Box<dyn Rounds>, answer: impl Fn(&Op) -> Answer) -> Reply {
    let table =
        TableFacts { handle: TableHandle(0), name: "db0".into(), first_slots: [0, 8192].into() };
    let done = |unit: &UnitQuestion| {
        UnitAnswer::Done(unit.ops.iter().map(|op| Outcome::Ok(answer(op))).collect())
    };
    let mut answers = Answers::Begin;
    for _ in 0..100 {
        answers = match machine.next(answers) {
            Err(reply) | Ok(Round::Done(reply)) => return reply,
            Ok(Round::Table(_)) => Answers::Table(Ok(TableAnswer::Found(table.clone()))),
            Ok(Round::Units(units)) => Answers::Units(units.iter().map(done).collect()),
        };
    }
    panic!("{machine:?} never ends");
}

/// A node may answer anything.
#[test]
fn pages_that_lead_back_are_refused() {
    for line in ["KEYS *", "RANDOMKEY"] {
        let reply = with_pages(machine(line), |op| match op {
            Op::Partition(PartitionOp::Rows) => Answer::Int(1),
            _ => Answer::Page { keys: Vec::new(), next: 1, count: 0 },
        });
        assert_eq!(error(reply), error(commands::errors::no_answer()), "{line}");
    }
    assert_eq!(
        error(with_pages(machine("KEYS *"), |_| Answer::Nil)),
        error(commands::errors::no_answer())
    );
}

/// Keys of some partitions only, and few or many of them.
#[test]
fn randomkey_draws_from_all_partitions() {
    for count in [1, 5, 600] {
        let mut tables = table_with(16, names("key:", count));
        let mut drawn = BTreeMap::<Bytes, usize>::new();
        for seed in 0..2000 {
            *drawn.entry(bulk(call(&mut tables, "RANDOMKEY", seed))).or_default() += 1;
        }
        assert!(drawn.len() >= count.min(500), "{} of {count}", drawn.len());
        if count <= 5 {
            let fair = 2000 / count;
            assert!(drawn.values().all(|times| (fair * 7 / 10..=fair * 2).contains(times)));
        }
    }
    assert_eq!(call(&mut MemoryTables::new(3), "RANDOMKEY", 1), Reply::Nil);
}

/// More rows than RANDOMKEY looks at share one slot.
#[test]
fn randomkey_draws_from_all_rows_of_a_crowded_slot() {
    let mut tables = table_with(2, names("{tag}", 3000));
    let drawn: BTreeSet<_> =
        (0..1000).map(|seed| bulk(call(&mut tables, "RANDOMKEY", seed))).collect();
    assert!(drawn.len() > 500, "{}", drawn.len());
}

#[test]
fn randomkey_skips_partitions_whose_rows_have_expired() {
    let mut tables = MemoryTables::new(4);
    for key in names("key:", 1000) {
        call(&mut tables, &format!("SET {key} v PX 10"), 1);
    }
    call(&mut tables, "SET lives v", 1);
    tables.now_ms = 20;
    for seed in 0..50 {
        assert_eq!(bulk(call(&mut tables, "RANDOMKEY", seed)), "lives");
    }
    call(&mut tables, "DEL lives", 1);
    assert_eq!(call(&mut tables, "RANDOMKEY", 1), Reply::Nil);
}
