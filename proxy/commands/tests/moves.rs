//! MOVE and COPY with DB as machines: other clients write between two rounds, and calls
//! fail.

use bytes::Bytes;
use commands::rounds::memory::{Interposed, MemoryTables, not_done, unknown};
use commands::rounds::{Failure, UnitQuestion};
use commands::testscript::argv;
use commands::{Reply, table};
use row::RowOp;
use row::op::{Op, RowContent, Ttl};

const KEY: Bytes = Bytes::from_static(b"k");
const IN_BOTH: &str = "UNKNOWNOUTCOME The key was copied to 'db1' and not deleted from 'db0', it \
                       is in both: ";

fn call(tables: &mut MemoryTables, line: &str) -> Reply {
    let argv = argv(line).expect("a line of words");
    let plan = table::plan(argv.into_iter().collect(), 1).expect("a command").1;
    tables.execute(plan).expect("it ends").expect("it needs no session")
}

/// The value of the key in both tables.
fn values(tables: &mut MemoryTables) -> [Option<String>; 2] {
    let selected = tables.selected.clone();
    let values = ["db0", "db1"].map(|name| {
        tables.selected = name.into();
        match call(tables, "GET k") {
            Reply::Bulk(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            _ => None,
        }
    });
    tables.selected = selected;
    values
}

/// Two tables of three partitions; the key is in the first.
fn start() -> MemoryTables {
    let mut tables = MemoryTables::new(3);
    call(&mut tables, "SET k 1");
    tables
}

fn set(value: &'static str) -> Op {
    let content = RowContent::String(Bytes::from_static(value.as_bytes()));
    RowOp::Restore { key: KEY.into(), content, ttl: Ttl::Never, replace: true }.into()
}

fn delete() -> Op {
    RowOp::Delete { key: KEY.into() }.into()
}

/// A unit of MOVE, by its ops and watch tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Look,
    Copy,
    Replace,
    Delete,
}

fn kind(unit: &UnitQuestion) -> Kind {
    match (&unit.ops[0], unit.watched.is_empty()) {
        (Op::Row(RowOp::Watch { .. }), _) => Kind::Look,
        (Op::Row(RowOp::Restore { .. }), true) => Kind::Copy,
        (Op::Row(RowOp::Restore { .. }), false) => Kind::Replace,
        (Op::Row(RowOp::Delete { .. }), false) => Kind::Delete,
        other => panic!("MOVE has no unit {other:?}"),
    }
}

/// Calls `others` before each unit of this kind, with the number of such units before it.
fn before(
    of: Kind,
    mut others: impl FnMut(&mut MemoryTables, usize) -> Option<Failure> + 'static,
) -> Option<Interposed> {
    let mut times = 0;
    Some(Box::new(move |tables, unit| {
        if kind(unit) != of {
            return None;
        }
        times += 1;
        others(tables, times - 1)
    }))
}

fn error(line: &str) -> Reply {
    Reply::error(line.to_owned())
}

#[test]
fn undisturbed_move_takes_four_units() {
    let mut tables = start();
    assert_eq!(call(&mut tables, "MOVE k 1"), Reply::Int(1));
    assert_eq!(tables.units, 4, "look, copy, look at the copy, delete");
    assert_eq!(values(&mut tables), [None, Some("1".into())]);
    assert_eq!(call(&mut tables, "MOVE k 1"), Reply::Int(0), "the source has no such key");
    call(&mut tables, "SET k 2");
    assert_eq!(call(&mut tables, "MOVE k 1"), Reply::Int(0), "the target has it");
    assert_eq!(values(&mut tables), [Some("2".into()), Some("1".into())]);
    tables.selected = "db5".into();
    assert_eq!(call(&mut tables, "MOVE k 1"), Reply::Int(0), "the source is missing");
    assert_eq!(
        call(&mut tables, "MOVE k 5"),
        error("ERR source and destination objects are the same")
    );
    assert_eq!(call(&mut tables, "MOVE k 16"), error("ERR DB index is out of range"));
}

#[test]
fn row_that_is_touched_in_between_moves_in_its_last_state() {
    let mut tables = start();
    tables.interposed = before(Kind::Delete, |tables, times| {
        match times {
            0 => tables.write("db0", [set("2")]),
            1 => tables.write("db0", [set("3")]),
            _ => {}
        }
        None
    });
    assert_eq!(call(&mut tables, "MOVE k 1"), Reply::Int(1));
    assert_eq!(values(&mut tables), [None, Some("3".into())]);
}

#[test]
fn row_that_is_touched_each_time_stays_and_its_copy_goes() {
    let mut tables = start();
    tables.interposed = before(Kind::Delete, |tables, times| {
        if times < 16 {
            tables.write("db0", [set("again")]);
        }
        None
    });
    assert_eq!(call(&mut tables, "MOVE k 1"), error("ERR the key changes too fast to be moved"));
    assert_eq!(values(&mut tables), [Some("again".into()), None]);
    // The copy cannot be taken back.
    tables.interposed = before(Kind::Delete, |tables, times| {
        tables.write("db0", [set("again")]);
        (times == 16).then(|| not_done("CLUSTERDOWN x"))
    });
    let told = format!("{IN_BOTH}CLUSTERDOWN x");
    assert_eq!(call(&mut tables, "MOVE k 1"), error(&told));
}

#[test]
fn row_that_is_deleted_in_between_takes_its_copy_along() {
    let mut tables = start();
    tables.interposed = before(Kind::Delete, |tables, times| {
        if times == 0 {
            tables.write("db0", [delete()]);
        }
        None
    });
    assert_eq!(call(&mut tables, "MOVE k 1"), Reply::Int(0));
    assert_eq!(values(&mut tables), [None, None]);
    // The copy cannot be taken back.
    let mut tables = start();
    tables.interposed = before(Kind::Delete, |tables, times| {
        tables.write("db0", [delete()]);
        (times == 1).then(|| unknown("UNKNOWNOUTCOME x"))
    });
    assert_eq!(
        call(&mut tables, "MOVE k 1"),
        error(
            "UNKNOWNOUTCOME The key was copied to 'db1', others have then deleted it from 'db0', \
             and the copy may still be there: UNKNOWNOUTCOME x"
        )
    );
}

#[test]
fn writes_to_the_target_are_never_replaced_or_deleted() {
    // Before the first copy.
    let mut tables = start();
    tables.interposed = before(Kind::Copy, |tables, _| {
        tables.write("db1", [set("mine")]);
        None
    });
    assert_eq!(call(&mut tables, "MOVE k 1"), Reply::Int(0));
    assert_eq!(values(&mut tables), [Some("1".into()), Some("mine".into())]);
    for source_goes in [false, true] {
        // Before the look at the copy, which is not MOVE's any more.
        let mut tables = start();
        tables.interposed = before(Kind::Look, move |tables, times| {
            if times == 1 {
                tables.write("db0", [if source_goes { delete() } else { set("2") }]);
                tables.write("db1", [set("mine")]);
            }
            None
        });
        let source = (!source_goes).then(|| "2".to_owned());
        assert_eq!(call(&mut tables, "MOVE k 1"), Reply::Int(0));
        assert_eq!(values(&mut tables), [source.clone(), Some("mine".into())]);
        // After it.
        let mut tables = start();
        tables.interposed = before(Kind::Delete, move |tables, times| {
            match times {
                0 => tables.write("db0", [if source_goes { delete() } else { set("2") }]),
                _ => tables.write("db1", [set("mine")]),
            }
            None
        });
        if !source_goes {
            let mut deletes = tables.interposed.take().expect("just set");
            tables.interposed = Some(Box::new(move |tables, unit| match kind(unit) {
                Kind::Replace => {
                    tables.write("db1", [set("mine")]);
                    None
                }
                _ => deletes(tables, unit),
            }));
        }
        assert_eq!(call(&mut tables, "MOVE k 1"), Reply::Int(0));
        assert_eq!(values(&mut tables), [source, Some("mine".into())]);
    }
}

#[test]
fn errors_tell_where_the_key_is() {
    // Before there is a copy, the error is the reply.
    for of in [Kind::Look, Kind::Copy] {
        let mut tables = start();
        tables.interposed = before(of, |_, _| Some(not_done("CLUSTERDOWN x")));
        assert_eq!(call(&mut tables, "MOVE k 1"), error("CLUSTERDOWN x"), "{of:?}");
        assert_eq!(values(&mut tables), [Some("1".into()), None]);
    }
    let mut tables = start();
    tables.interposed =
        before(Kind::Look, |_, times| (times == 1).then(|| not_done("CLUSTERDOWN x")));
    let in_both = error(&format!("{IN_BOTH}CLUSTERDOWN x"));
    assert_eq!(call(&mut tables, "MOVE k 1"), in_both);
    let mut tables = start();
    tables.interposed = before(Kind::Delete, |_, _| Some(not_done("CLUSTERDOWN x")));
    assert_eq!(call(&mut tables, "MOVE k 1"), in_both);
    assert_eq!(values(&mut tables), [Some("1".into()), Some("1".into())]);
    let mut tables = start();
    tables.interposed = before(Kind::Delete, |_, _| Some(unknown("UNKNOWNOUTCOME x")));
    assert_eq!(
        call(&mut tables, "MOVE k 1"),
        error(
            "UNKNOWNOUTCOME The key was copied to 'db1', and whether it was deleted from 'db0' is \
             not known: UNKNOWNOUTCOME x"
        )
    );
    // The second look at the source fails, or the second copy.
    for of in [Kind::Look, Kind::Replace] {
        let mut tables = start();
        let mut looks = 0;
        tables.interposed = Some(Box::new(move |tables, unit| match kind(unit) {
            Kind::Delete => {
                tables.write("db0", [set("2")]);
                None
            }
            Kind::Look => {
                looks += 1;
                (of == Kind::Look && looks == 3).then(|| not_done("CLUSTERDOWN x"))
            }
            other => (of == other).then(|| not_done("CLUSTERDOWN x")),
        }));
        assert_eq!(call(&mut tables, "MOVE k 1"), in_both, "{of:?}");
    }
}

/// The copy lacks a field that has expired, or another client's row is in the target.
#[test]
fn hash_whose_fields_expire_is_told_to_be_in_both() {
    let mut tables = MemoryTables::new(1);
    call(&mut tables, "HSET k a 1 b 2");
    call(&mut tables, "HPEXPIRE k 100 FIELDS 1 a");
    tables.interposed = before(Kind::Look, |tables, times| {
        if times == 1 {
            tables.now_ms += 200;
        }
        None
    });
    assert_eq!(
        call(&mut tables, "MOVE k 1"),
        error(&format!("{IN_BOTH}ERR both have changed since"))
    );
}

#[test]
fn move_holds_no_more_than_an_answer() {
    let mut tables = start();
    call(&mut tables, &format!("SET k {}", "x".repeat(1000)));
    assert_eq!(call(&mut tables, "MOVE k 1"), Reply::Int(1));
    assert_eq!(tables.held_bytes_max, 1000);
    tables.selected = "db1".into();
    tables.answer_bytes_max = 999;
    for line in ["MOVE k 0", "COPY k k DB 0"] {
        let Reply::Error(told) = call(&mut tables, line) else { panic!("{line}") };
        assert!(told.starts_with("ERR the key is larger than max_write_size"), "{told}");
    }
    tables.answer_bytes_max = 1000;
    assert_eq!(call(&mut tables, "MOVE k 0"), Reply::Int(1));
}

#[test]
fn copy_reaches_another_table_with_the_expiry() {
    let mut tables = start();
    call(&mut tables, "PEXPIRE k 1000");
    tables.interposed = Some(Box::new(|_, unit| {
        assert_eq!(unit.is_lookup, matches!(unit.ops[0], Op::Row(RowOp::Dump { .. })));
        None
    }));
    assert_eq!(call(&mut tables, "COPY k k DB 1"), Reply::Int(1));
    tables.interposed = None;
    tables.selected = "db1".into();
    assert_eq!(call(&mut tables, "PTTL k"), Reply::Int(1000));
    tables.selected = "db0".into();
    call(&mut tables, "SET k 2");
    assert_eq!(call(&mut tables, "COPY k k DB 1"), Reply::Int(0));
    assert_eq!(call(&mut tables, "COPY k k DB 1 REPLACE"), Reply::Int(1));
    assert_eq!(values(&mut tables), [Some("2".into()), Some("2".into())]);
    assert_eq!(call(&mut tables, "COPY none k DB 1 REPLACE"), Reply::Int(0));
    assert_eq!(call(&mut tables, "COPY k other DB 0"), Reply::Int(1));
    assert_eq!(
        call(&mut tables, "COPY k k DB 0"),
        error("ERR source and destination objects are the same")
    );
    tables.interposed =
        Some(Box::new(|_, unit| unit.ops[0].is_write().then(|| unknown("UNKNOWNOUTCOME x"))));
    assert_eq!(call(&mut tables, "COPY k k DB 2"), error("UNKNOWNOUTCOME x"));
}
