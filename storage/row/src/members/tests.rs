//! A second kind of collections, for tests: sets of tags. It costs its declaration
//! ([`Tags`] and the line in `form.rs`) and its own functions; everything else is the
//! same as for hashes, which these tests show.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Members, Writer, random, replace, scan};
use crate::eval::{EvalError, EvalResult};
use crate::expire::{DueMembers, ExpiryStep};
use crate::form::{CheckSize, Collection, CollectionHead, NamedMembers};
use crate::head::Row;
use crate::key::{CellKey, KeyBuf, KeySpace};
use crate::memory::Memory;
use crate::op::{Answer, Deadline, Refusal, RowContent, RowInfo, RowKind, Ttl, WriteCondition};
use crate::value::{self, Body, Expiries, Head, Header};
use crate::view::{Fault, Rules};
use crate::{Edits, Family, HashOp, Key, Op, PartitionOp, RowOp, Stamp, StringOp, Tx, View, eval};

/// A set's own part of its head: the tag that was added last. Tags have no values and do
/// not expire; they lie in the order of their hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tags {
    last: Bytes,
}

impl Collection for Tags {
    const KIND: RowKind = RowKind::Tags;
    const SPACE: KeySpace = KeySpace::Hashed;

    fn encoded_len(&self) -> usize {
        self.last.len()
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&self.last);
    }

    fn decode(rest: &[u8], keep: impl Fn(&[u8]) -> Bytes) -> Option<Tags> {
        Some(Tags { last: keep(rest) })
    }

    fn expiries(&self) -> Option<&Expiries> {
        None
    }

    fn expiries_mut(&mut self) -> Option<&mut Expiries> {
        None
    }

    /// As that of a hash without values: contents have no variant for a kind of tests.
    fn content(
        tags: &Members<Tags>,
        tx: &Tx<'_>,
        check: CheckSize<'_>,
    ) -> Result<RowContent, EvalError> {
        let tags = tags
            .collect(tx, check, |name, _, _| (Bytes::copy_from_slice(name), Bytes::new(), None))?;
        Ok(RowContent::Hash(tags))
    }

    fn encoding(_: &Members<Tags>, _: &Tx<'_>) -> Result<&'static str, Fault> {
        Ok("hashtable")
    }

    fn cells_bytes(tags: &Members<Tags>, tx: &Tx<'_>, samples: u64) -> Result<u64, Fault> {
        tags.sampled_bytes(tx, samples)
    }

    fn expire_members(
        _: &mut Tx<'_>,
        _: &mut ExpiryStep,
        _: Writer<Tags>,
        found: &DueMembers,
    ) -> Result<usize, Fault> {
        Ok(found.expiries.len()) // none expires
    }
}

impl NamedMembers for Tags {
    fn push_sortkey(key: &mut KeyBuf, generation: u64, name: &[u8]) {
        let hash = (xxh3_64_with_seed(name, generation) >> 32) as u32;
        key.extend_from_slice(&hash.to_be_bytes());
        key.extend_from_slice(name);
    }

    fn name_of(sortkey: &[u8]) -> &[u8] {
        sortkey.get(4..).unwrap_or_default()
    }
}

fn add(tx: &mut Tx<'_>, key: &[u8], names: &[&str]) -> Result<i64, EvalError> {
    let mut tags = Writer::<Tags>::open(Row::load(tx, key)?)?;
    let mut new = 0;
    for name in names {
        if tags.put(tx, name.as_bytes(), Bytes::new(), None)? {
            let members = tags.members.as_mut().expect("there is one");
            members.head.own.last = Bytes::copy_from_slice(name.as_bytes());
            new += 1;
        }
    }
    tags.save(tx)?;
    Ok(new)
}

fn remove(tx: &mut Tx<'_>, key: &[u8], names: &[&str]) -> Result<i64, EvalError> {
    let mut tags = Writer::<Tags>::open(Row::load(tx, key)?)?;
    let mut removed = 0;
    for name in names {
        removed += i64::from(tags.remove(tx, name.as_bytes())?);
    }
    tags.save(tx)?;
    Ok(removed)
}

fn tags(tx: &Tx<'_>, key: &[u8]) -> Result<BTreeSet<Bytes>, EvalError> {
    let row = Row::load(tx, key)?;
    let Some(members) = Members::<Tags>::of(&row)? else { return Ok(BTreeSet::new()) };
    let mut names = BTreeSet::new();
    members.walk(tx, &mut |name, _, _| {
        names.insert(Bytes::copy_from_slice(name));
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

fn set(names: &[&str]) -> BTreeSet<Bytes> {
    names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect()
}

/// Runs a batch on a partition, and applies its edits.
fn at<T>(memory: &mut Memory, now_ms: u64, run: impl FnOnce(&mut Tx<'_>) -> T) -> T {
    let mut edits = Edits::default();
    let stamp = Stamp { now_ms, timetag: now_ms << 16 };
    let view = memory.clone();
    let result = run(&mut Tx { view: &view, edits: &mut edits, stamp, rules: Rules::default() });
    memory.apply(edits);
    result
}

fn key() -> Key {
    Key(Bytes::from_static(b"k"))
}

fn ask(op: impl Into<Op>, tx: &mut Tx<'_>) -> EvalResult {
    eval(&op.into(), tx)
}

#[test]
fn a_second_kind_is_written_counted_and_deleted_when_empty() {
    let memory = &mut Memory::new();
    assert_eq!(at(memory, 1, |tx| add(tx, b"k", &["a", "b", "a"])), Ok(2));
    assert_eq!(at(memory, 2, |tx| add(tx, b"k", &["b", "c"])), Ok(1));
    assert_eq!(at(memory, 2, |tx| tags(tx, b"k")), Ok(set(&["a", "b", "c"])));
    let info =
        RowInfo { kind: RowKind::Tags, expires_at_ms: None, written_at_ms: 2, len: 3, now_ms: 3 };
    let inspect = RowOp::Inspect { key: key() };
    assert_eq!(at(memory, 3, |tx| ask(inspect, tx)), Ok(Answer::Row(Some(info))));
    let before = memory.clone();
    assert_eq!(at(memory, 3, |tx| add(tx, b"k", &["a"])), Ok(0));
    let head = |memory: &Memory| memory.get(Family::Head, &crate::key::head(b"k")).unwrap();
    assert_eq!(head(memory), head(&before), "the head is written when it changes");
    assert_eq!(at(memory, 4, |tx| remove(tx, b"k", &["a", "x", "b"])), Ok(2));
    assert_eq!(at(memory, 5, |tx| remove(tx, b"k", &["c"])), Ok(1));
    assert_eq!(at(memory, 5, |tx| ask(PartitionOp::Rows, tx)), Ok(Answer::Int(0)));
    assert!(!memory.records().any(|(family, ..)| family != Family::State), "nothing is left");
}

#[test]
fn kinds_refuse_each_other() {
    let memory = &mut Memory::new();
    let put = HashOp::Put {
        key: "h".into(),
        pairs: vec![("f".into(), "v".into())],
        only: WriteCondition::Always,
        ttl: Ttl::Default,
    };
    at(memory, 1, |tx| ask(put, tx)).expect("puts");
    at(memory, 1, |tx| add(tx, b"k", &["a"])).expect("adds");
    let wrong_type = EvalError::Refused(Refusal::WrongType);
    assert_eq!(at(memory, 1, |tx| add(tx, b"h", &["a"])), Err(wrong_type.clone()));
    assert_eq!(at(memory, 1, |tx| tags(tx, b"h")), Err(wrong_type.clone()));
    let len = HashOp::Len { key: key() };
    assert_eq!(at(memory, 1, |tx| ask(len, tx)), Err(wrong_type.clone()));
    let get = StringOp::Get { key: key() };
    assert_eq!(at(memory, 1, |tx| ask(get, tx)), Err(wrong_type));
}

#[test]
fn ops_on_any_row_know_a_second_kind() {
    let memory = &mut Memory::new();
    at(memory, 1, |tx| add(tx, b"k", &["a", "bc"])).expect("adds");
    let size = |samples| RowOp::Size { key: key(), samples };
    // Head: 9 of position and key, 9 of header, 1 of form, 16 of generation and count, 2
    // of the last tag. Cells: 20 of prefix, 4 of hash, the name, 9 of header.
    assert_eq!(
        at(memory, 1, |tx| ask(size(0), tx)),
        Ok(Answer::Int(9 + 9 + 1 + 16 + 2 + 2 * (20 + 4 + 9) + 3))
    );
    assert_eq!(
        at(memory, 1, |tx| ask(RowOp::Encoding { key: key() }, tx)),
        Ok(Answer::Bytes("hashtable".into()))
    );
    let Ok(Answer::RowContent { content: RowContent::Hash(mut content), .. }) =
        at(memory, 1, |tx| ask(RowOp::Dump { key: key() }, tx))
    else {
        panic!("no content")
    };
    content.sort();
    assert_eq!(content, [("a".into(), Bytes::new(), None), ("bc".into(), Bytes::new(), None)]);
    at(memory, 1, |tx| {
        let row = Row::load(tx, b"copy")?;
        replace::<Tags>(tx, row, None, content.into_iter())?;
        Ok::<_, EvalError>(())
    })
    .expect("writes");
    assert_eq!(at(memory, 1, |tx| tags(tx, b"copy")), Ok(set(&["a", "bc"])));

    let expire = RowOp::Expire { key: key(), until: Deadline::In(10), only: Default::default() };
    assert_eq!(at(memory, 1, |tx| ask(expire, tx)), Ok(Answer::Int(1)));
    assert_eq!(at(memory, 10, |tx| tags(tx, b"k")), Ok(set(&["a", "bc"])));
    assert_eq!(at(memory, 11, |tx| tags(tx, b"k")), Ok(set(&[])));
    assert_eq!(at(memory, 12, |tx| add(tx, b"k", &["d"])), Ok(1), "under a new generation");
    assert_eq!(at(memory, 12, |tx| tags(tx, b"k")), Ok(set(&["d"])));
    assert_eq!(at(memory, 12, |tx| ask(RowOp::Delete { key: key() }, tx)), Ok(Answer::Int(1)));
    assert_eq!(at(memory, 12, |tx| ask(PartitionOp::Rows, tx)), Ok(Answer::Int(1)));
}

#[test]
fn a_second_kind_is_scanned_and_drawn_from() {
    let memory = &mut Memory::new();
    let names: Vec<String> = (0..1_000).map(|n| format!("{n:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(at(memory, 1, |tx| add(tx, b"k", &names)), Ok(1_000));
    at(memory, 1, |tx| {
        let row = Row::load(tx, b"k")?;
        let members = Members::<Tags>::of(&row)?.expect("a row");
        let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), 0, 0);
        loop {
            let page = scan(tx, &members, cursor, 100, Some(&"0*".into()), true)?;
            let Answer::CellsPage { cells, next } = page else { panic!("no page: {page:?}") };
            assert!(cells.iter().all(|(_, value)| value.is_empty()));
            seen.extend(cells.into_iter().map(|(name, _)| name));
            (cursor, pages) = (next, pages + 1);
            if cursor == 0 {
                break;
            }
        }
        assert_eq!((seen, pages), (set(&names), 10));
        let drawn = random(tx, &members, 300, 7, false)?;
        let distinct: BTreeSet<_> = drawn.iter().map(|(name, _)| name.clone()).collect();
        assert!(drawn.len() == 300 && distinct.len() == 300 && distinct.is_subset(&set(&names)));
        Ok::<_, EvalError>(())
    })
    .expect("answers");
}

#[test]
fn records_of_a_second_kind_are_judged_as_those_of_the_first() {
    let memory = &mut Memory::new();
    at(memory, 1, |tx| add(tx, b"k", &["a"])).expect("adds");
    for (family, key, record) in memory.records() {
        match family {
            Family::State => {}
            Family::Head => {
                let head = Head::decode(record).expect("a head");
                assert_eq!(head.encode(), record);
                assert_eq!(Head::summary(record).expect("a head").generation, Some(1));
                assert_eq!(value::metadata(Family::Head, record), record, "it is kept whole");
            }
            Family::Cell => {
                let cell = CellKey::parse(key).expect("a cell key");
                assert_eq!((cell.generation, cell.space), (1, KeySpace::Hashed));
                assert_eq!(Tags::name_of(cell.sortkey), b"a");
            }
        }
    }
    let empty = CollectionHead { generation: 1, count: 0, own: Tags::default() };
    let head = Head { header: Header::default(), body: Body::Tags(empty) };
    assert!(Head::decode(&head.encode()).is_err(), "a row without members is none");
}
