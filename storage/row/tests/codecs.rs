//! Every encoding: frozen examples, and that what is written is read again.
//!
//! The examples in `tests/vectors/` are added to with each released encoding and never
//! edited: they are what lies on disks.

use bytes::Bytes;
use proptest::prelude::*;
use row::key::{self, CellKey, ExpiryTarget};
use row::memory::Memory;
use row::op::{Answer, Deadline, Ttl, WriteCondition};
use row::value::{
    Body, Cell, CollectionHead, DefaultTtl, Expiries, Hash, Head, Header, MemberExpiry,
    decode_counter, encode_counter,
};
use row::view::Rules;
use row::{Edits, Family, HashOp, Op, Stamp, Tx, eval};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Bytes {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex"))
        .collect()
}

/// The lines of a vector file in columns.
fn columns(vectors: &str) -> impl Iterator<Item = Vec<&str>> {
    vectors
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(" | ").map(str::trim).collect())
}

#[test]
fn slots_are_those_of_redis_cluster() {
    for line in columns(include_str!("vectors/slots.txt")) {
        assert_eq!(key::slot(&unhex(line[1])).to_string(), line[0], "{line:?}");
    }
}

#[test]
fn keys_are_frozen() {
    let long = vec![b'k'; 300];
    let now = [
        ("head foo", key::head(b"foo").to_vec()),
        ("head of the empty key", key::head(b"").to_vec()),
        ("head {tag}foo", key::head(b"{tag}foo").to_vec()),
        ("members of foo, generation 7", key::cells(b"foo", 7, key::KeySpace::Members).to_vec()),
        ("expiries of foo, generation 7", key::cells(b"foo", 7, key::KeySpace::Expiries).to_vec()),
        (
            "members of 300 times k, generation 2^63",
            key::cells(&long, 1 << 63, key::KeySpace::Members).to_vec(),
        ),
        (
            "time index, row foo at 1700000000000",
            key::time_index(1_700_000_000_000, ExpiryTarget::Row, &key::head(b"foo")).to_vec(),
        ),
        (
            "time index, field of foo at 1700000000000",
            key::time_index(1_700_000_000_000, ExpiryTarget::Field, &key::head(b"foo")).to_vec(),
        ),
        ("counter of rows", key::ROWS.to_vec()),
        ("counter of generations", key::GENERATION.to_vec()),
        ("counter of rows that expire", key::EXPIRING.to_vec()),
        ("rule default_ttl", key::DEFAULT_TTL.to_vec()),
    ];
    frozen("keys.txt", include_str!("vectors/keys.txt"), &now);
}

#[test]
fn values_are_frozen() {
    let header = Header { timetag: 0x018b_cfe5_6800_0203, expires_at_ms: None };
    let expiring = Header { expires_at_ms: Some(1_700_000_000_000), ..header };
    let hash =
        |expiries| Body::Hash(CollectionHead { generation: 7, count: 3, own: Hash { expiries } });
    let expiries = Expiries {
        expiring: 2,
        floor: MemberExpiry::of(1_600_000_000_000, b"field"),
        soonest_ms: 1_600_000_000_007,
    };
    let head = |header, body| Head { header, body }.encode().to_vec();
    let now = [
        ("string bar", head(header, Body::String(Bytes::from_static(b"bar")))),
        ("string bar, expiring", head(expiring, Body::String(Bytes::from_static(b"bar")))),
        ("empty string", head(header, Body::String(Bytes::new()))),
        ("hash", head(header, hash(Expiries::default()))),
        ("hash, expiring, with expiring fields", head(expiring, hash(expiries.clone()))),
        (
            "hash, with expiring fields, new",
            head(
                header,
                hash(Expiries {
                    floor: MemberExpiry::at(1_600_000_000_000),
                    soonest_ms: 0,
                    ..expiries
                }),
            ),
        ),
        ("cell bar", Cell { header, value: Bytes::from_static(b"bar") }.encode().to_vec()),
        (
            "cell bar, expiring",
            Cell { header: expiring, value: Bytes::from_static(b"bar") }.encode().to_vec(),
        ),
        ("counter 258", encode_counter(258).to_vec()),
        (
            "default_ttl",
            DefaultTtl { ttl_ms: 5_000, since_ms: 1_700_000_000_001, set_at_ms: 1_700_000_000_000 }
                .encode()
                .to_vec(),
        ),
    ];
    frozen("values.txt", include_str!("vectors/values.txt"), &now);
}

/// The records of a hash with a field that expires, and a cursor of SCAN and one of
/// HSCAN, which clients keep over restarts and upgrades.
#[test]
fn cursors_and_field_expiries_are_frozen() {
    let mut memory = Memory::new();
    let mut ask = |op: Op| {
        let mut edits = Edits::default();
        let stamp = Stamp { now_ms: 1_000, timetag: 1_000 << 16 };
        let view = memory.clone();
        let mut tx = Tx { view: &view, edits: &mut edits, stamp, rules: Rules::default() };
        let answer = eval(&op, &mut tx).expect("answers");
        memory.apply(edits.clone());
        (answer, edits)
    };
    let put = |pairs, ttl| {
        Op::Hash(HashOp::Put { key: "foo".into(), pairs, only: WriteCondition::Always, ttl })
    };
    let pairs = vec![(Bytes::from("bar"), Bytes::from("baz"))];
    let (_, edits) = ask(put(pairs, Ttl::Until(Deadline::At(1_700_000_000_000))));
    let expiry = edits
        .iter()
        .find(|(family, _, value)| *family == Family::Cell && value.is_some_and(Bytes::is_empty));
    let expiry = expiry.expect("the entry by time of the field").1.to_vec();
    let pairs = (0..600).map(|n| (Bytes::from(format!("{n:03}")), Bytes::new())).collect();
    ask(put(pairs, Ttl::Default));
    let scan = Op::Hash(HashOp::Scan {
        key: "foo".into(),
        cursor: 0,
        count: 5,
        glob: None,
        want_values: false,
    });
    let Answer::CellsPage { next: hscan, .. } = ask(scan).0 else { panic!("a page of cells") };
    let cursor = |cursor: u64| cursor.to_be_bytes().to_vec();
    let now = [
        ("expiry of field bar of foo, generation 1, at 1700000000000", expiry),
        ("SCAN cursor of foo", cursor(key::cursor(key::position(b"foo")))),
        ("SCAN cursor of slot 16383", cursor(key::slot_cursor(16_383))),
        ("HSCAN cursor of field 005", cursor(hscan)),
    ];
    frozen("cursors.txt", include_str!("vectors/cursors.txt"), &now);
}

/// Holds encodings against the frozen ones, both ways: nothing differs, nothing is
/// missing.
fn frozen(file: &str, vectors: &str, now: &[(&str, Vec<u8>)]) {
    let now: Vec<String> =
        now.iter().map(|(name, bytes)| format!("{name} | {}", hex(bytes))).collect();
    let then: Vec<String> = columns(vectors).map(|line| line.join(" | ")).collect();
    assert_eq!(now, then, "{file} as it would be now:\n{}\n", now.join("\n"));
}

#[test]
fn bad_records_are_faults_that_show_them() {
    for (name, bytes) in [
        ("nothing", &b""[..]),
        ("version 2", &[0x20, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("an unknown flag", &[0x12, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("a header cut short", &[0x11, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("no kind", &[0x10, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("an unknown kind", &[0x10, 0, 0, 0, 0, 0, 0, 0, 0, 9]),
        ("a hash cut short", &[0x10, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]),
    ] {
        let fault = Head::decode(&Bytes::copy_from_slice(bytes)).expect_err(name);
        assert_eq!(
            fault.message,
            format!("not a head record of a known version: {} bytes, {}", bytes.len(), hex(bytes)),
            "{name}"
        );
    }
    let hash = |count, expiring, name: &[u8]| {
        let expiries = Expiries { expiring, floor: MemberExpiry::of(5, name), soonest_ms: 0 };
        Head {
            header: Header::default(),
            body: Body::Hash(CollectionHead { generation: 1, count, own: Hash { expiries } }),
        }
        .encode()
    };
    assert!(Head::decode(&hash(2, 2, &[b'n'; 256])).is_ok());
    for (name, bytes) in [
        ("a hash without members is no row", hash(0, 0, b"")),
        ("more members expire than there are", hash(1, 2, b"")),
        ("the name in a floor is too long", hash(2, 2, &[b'n'; 257])),
    ] {
        assert!(Head::decode(&bytes).is_err(), "{name}");
    }
    assert!(
        Cell::decode(&Bytes::from_static(&[0x30; 40]))
            .expect_err("version 3")
            .message
            .ends_with("...")
    );
    assert!(decode_counter(&[0; 7]).is_err());
    assert!(
        DefaultTtl::decode(&[0; 23]).is_err()
            && DefaultTtl::decode(&[0; 25]).is_err()
            && DefaultTtl::decode(&[0; 24]).is_ok()
    );
    assert_eq!(CellKey::parse(&[0; 10]), None);
    assert_eq!(CellKey::parse(&[0xff; 30]), None);
}

fn header() -> impl Strategy<Value = Header> {
    (any::<u64>(), any::<Option<u64>>())
        .prop_map(|(timetag, expires_at_ms)| Header { timetag, expires_at_ms })
}

proptest! {
    #[test]
    fn heads_come_back(
        header in header(), value: Vec<u8>, generation: u64, count in 1..u64::MAX,
        at_ms: u64, name: Vec<u8>, soonest_ms: u64,
    ) {
        let floor = MemberExpiry::of(at_ms, &name[..name.len().min(256)]);
        let expiries = Expiries { expiring: count, floor, soonest_ms };
        let hash = |expiries| {
            Body::Hash(CollectionHead { generation, count, own: Hash { expiries } })
        };
        for body in [Body::String(value.into()), hash(Expiries::default()), hash(expiries)] {
            let head = Head { header, body };
            prop_assert_eq!(Head::decode(&head.encode()), Ok(head));
        }
    }

    #[test]
    fn cells_come_back(header in header(), value: Vec<u8>) {
        let cell = Cell { header, value: value.into() };
        prop_assert_eq!(Cell::decode(&cell.encode()), Ok(cell));
    }

    #[test]
    fn keys_come_back_and_order(
        hashkey: Vec<u8>, generation: u64, sortkey: Vec<u8>, other: Vec<u8>, at: u64,
    ) {
        let head_key = key::head(&hashkey);
        prop_assert_eq!(key::head_hashkey(&head_key), Some(&hashkey[..]));
        prop_assert_eq!(key::head_position(&head_key), Some(key::position(&hashkey)));
        let cursor = key::cursor(key::position(&hashkey));
        prop_assert!(cursor < 1 << 53 && cursor >= key::slot_cursor(key::slot(&hashkey)));
        prop_assert_eq!(key::cursor_slot(cursor), Some(key::slot(&hashkey)));
        prop_assert_eq!(key::cursor_position(cursor).map(key::cursor), Some(cursor));
        let first = key::cursor_position(cursor);
        prop_assert!(first.is_some_and(|first| first <= key::position(&hashkey)));
        prop_assert!(key::position(&hashkey) >> 62 == 0 && head_key[..] < *key::END);
        let prefix = key::cells(&hashkey, generation, key::KeySpace::Members);
        let cell = |sortkey: &[u8]| [&prefix[..], sortkey].concat();
        prop_assert_eq!(cell(&sortkey).cmp(&cell(&other)), sortkey.cmp(&other));
        prop_assert!(cell(&sortkey)[..] < key::after_prefix(&prefix)[..]);
        let whole = cell(&sortkey);
        let parsed = CellKey::parse(&whole).expect("a cell key");
        prop_assert_eq!(
            (parsed.hashkey, parsed.generation, parsed.space, parsed.sortkey),
            (&hashkey[..], generation, key::KeySpace::Members, &sortkey[..])
        );
        prop_assert_eq!(parsed.head(), head_key.clone());
        let entry = key::time_index(at, ExpiryTarget::Field, &head_key);
        let parsed = key::parse_time_index(&entry);
        prop_assert_eq!(parsed, Some((at, ExpiryTarget::Field, &head_key[..])));
        prop_assert!(entry[..] < *key::TIME_INDEX_END);
    }
}
