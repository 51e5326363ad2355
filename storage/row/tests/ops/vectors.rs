//! Ops, answers and refusals as they travel between servers are frozen.
//!
//! Ops have numbers of their own. Of the other enums, postcard numbers the variants by
//! their position; fields are written in order, without names: renaming is free, a moved
//! or inserted variant is not. `vectors/ops.txt` holds one line for each example; lines are
//! added with each new variant and never edited.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use bytes::Bytes;
use row::expire::{DueItem, DueMembers};
use row::memory::Memory;
use row::op::{
    Answer, Check, Deadline, ExpireCondition, Filter, Mutation, Op, Range, Refusal, Request,
    Response, RowContent, RowInfo, RowKind, Ttl, WatchToken, WriteCondition,
};
use row::registry::OpFamily;
use row::value::MemberExpiry;
use row::view::Rules;
use row::{Edits, HashOp, PartitionOp, RowOp, Stamp, StringOp, Tx, eval};
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::smallvec;

/// One example: the words before the tab, and the value.
type Examples<T> = Vec<(&'static str, T)>;

/// An enum whose variants are numbered by position.
trait Variants: Sized {
    const NAMES: &[&str];

    fn variant(&self) -> &'static str;
}

/// Lists the variants of an enum in their order. The match is exhaustive: a new variant
/// does not compile until it is listed, and is then missed among the examples.
macro_rules! variants {
    ($enum:ident: $($variant:ident)*) => {
        impl Variants for $enum {
            const NAMES: &[&str] = &[$(stringify!($variant)),*];

            fn variant(&self) -> &'static str {
                match self {
                    $($enum::$variant { .. } => stringify!($variant),)*
                }
            }
        }
    };
}

variants!(RowKind: String Hash);
variants!(Deadline: In At);
variants!(Ttl: Default Keep Until Never);
variants!(WriteCondition: Always IfAbsent IfPresent);
variants!(Filter: None Prefix Suffix Contains Glob);
variants!(Check: None NotExist NotExistOrEmpty Exist NotEmpty MatchAnywhere MatchPrefix
    MatchPostfix BytesLess BytesLessOrEqual BytesEqual BytesGreaterOrEqual BytesGreater IntLess
    IntLessOrEqual IntEqual IntGreaterOrEqual IntGreater);
variants!(Mutation: Put Delete);
variants!(RowContent: String Hash);
variants!(DueItem: Row Members);
variants!(Answer: Nil Ok Int Ints Bytes Values Row Written Cells CellsPage Page Expired Deleted
    RowContent Checked WatchToken);
variants!(Refusal: WrongType NotInteger Overflow NotFloat NanOrInfinity HashNotInteger
    HashNotFloat NoSuchKey BusyKey TooLarge TooManyFields TooMuch RowTooLarge ExpiryTooFar
    KeyTooLong AnswerTooLarge CheckOperandNotInteger CheckValueNotInteger UnknownOp);
variants!(Response: Done Touched);

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn key() -> Bytes {
    bytes("key")
}

fn range(filter: Filter) -> Range {
    Range {
        start: Some(bytes("a")),
        start_inclusive: true,
        stop: Some(bytes("b")),
        stop_inclusive: false,
        filter,
        reverse: true,
        cells_max: 300,
        bytes_max: 1 << 20,
    }
}

fn hash_content() -> RowContent {
    RowContent::Hash(vec![
        (bytes("f"), bytes("v"), Some(1_700_000_000_000)),
        (bytes("g"), bytes(""), None),
    ])
}

fn due_members() -> DueMembers {
    DueMembers {
        head_key: bytes("head"),
        generation: 7,
        floor: MemberExpiry::at(1_600_000_000_000),
        expiries: vec![
            MemberExpiry::of(1_600_000_000_001, b"f"),
            MemberExpiry::of(1_600_000_000_002, b"g"),
        ],
        next: Some(MemberExpiry::of(1_700_000_000_000, b"h")),
    }
}

fn watched() -> WatchToken {
    WatchToken {
        key: key(),
        term: 5,
        touched: 300,
        expires_at_ms: Some(1_700_000_000_000),
        existed: true,
    }
}

fn kinds() -> Examples<RowKind> {
    vec![("kind string", RowKind::String), ("kind hash", RowKind::Hash)]
}

fn deadlines() -> Examples<Deadline> {
    vec![
        ("deadline in 1000", Deadline::In(1_000)),
        ("deadline in -1", Deadline::In(-1)),
        ("deadline at 1700000000000", Deadline::At(1_700_000_000_000)),
        ("deadline at the least", Deadline::At(i64::MIN)),
    ]
}

fn ttls() -> Examples<Ttl> {
    vec![
        ("ttl default", Ttl::Default),
        ("ttl keep", Ttl::Keep),
        ("ttl until", Ttl::Until(Deadline::In(1_000))),
        ("ttl never", Ttl::Never),
    ]
}

fn onlys() -> Examples<WriteCondition> {
    vec![
        ("condition always", WriteCondition::Always),
        ("condition if absent", WriteCondition::IfAbsent),
        ("condition if present", WriteCondition::IfPresent),
    ]
}

fn expire_ifs() -> Examples<ExpireCondition> {
    let never = ExpireCondition::default();
    vec![
        ("expire condition nothing", never),
        ("expire condition none", ExpireCondition { none: true, ..never }),
        ("expire condition some", ExpireCondition { some: true, ..never }),
        ("expire condition later", ExpireCondition { later: true, ..never }),
        ("expire condition earlier", ExpireCondition { earlier: true, ..never }),
    ]
}

fn filters() -> Examples<Filter> {
    vec![
        ("filter none", Filter::None),
        ("filter prefix", Filter::Prefix(bytes("p"))),
        ("filter suffix", Filter::Suffix(bytes("s"))),
        ("filter contains", Filter::Contains(bytes("c"))),
        ("filter glob", Filter::Glob(bytes("g*"))),
    ]
}

fn ranges() -> Examples<Range> {
    vec![("range all", Range::all()), ("range", range(Filter::Prefix(bytes("p"))))]
}

fn checks() -> Examples<Check> {
    use Check::*;
    vec![
        ("check none", None),
        ("check not exist", NotExist),
        ("check not exist or empty", NotExistOrEmpty),
        ("check exist", Exist),
        ("check not empty", NotEmpty),
        ("check match anywhere", MatchAnywhere),
        ("check match prefix", MatchPrefix),
        ("check match postfix", MatchPostfix),
        ("check bytes less", BytesLess),
        ("check bytes less or equal", BytesLessOrEqual),
        ("check bytes equal", BytesEqual),
        ("check bytes greater or equal", BytesGreaterOrEqual),
        ("check bytes greater", BytesGreater),
        ("check int less", IntLess),
        ("check int less or equal", IntLessOrEqual),
        ("check int equal", IntEqual),
        ("check int greater or equal", IntGreaterOrEqual),
        ("check int greater", IntGreater),
    ]
}

fn mutations() -> Examples<Mutation> {
    let sortkey = bytes("f");
    vec![
        (
            "mutation put",
            Mutation::Put { sortkey: sortkey.clone(), value: bytes("v"), ttl: Ttl::Never },
        ),
        ("mutation delete", Mutation::Delete { sortkey }),
    ]
}

fn contents() -> Examples<RowContent> {
    vec![("content string", RowContent::String(bytes("v"))), ("content hash", hash_content())]
}

fn items() -> Examples<DueItem> {
    vec![
        (
            "due row of the time index",
            DueItem::Row { head_key: bytes("head"), indexed_ms: Some(1_700_000_000_000) },
        ),
        ("due row by default_ttl", DueItem::Row { head_key: bytes("head"), indexed_ms: None }),
        ("due members", DueItem::Members(due_members())),
        (
            "due members, none found and none behind",
            DueItem::Members(DueMembers { expiries: Vec::new(), next: None, ..due_members() }),
        ),
    ]
}

fn answers() -> Examples<Answer> {
    let info = RowInfo {
        kind: RowKind::Hash,
        expires_at_ms: Some(1_700_000_000_000),
        written_at_ms: 1_600_000_000_000,
        len: 3,
        now_ms: 1_650_000_000_000,
    };
    let cells = || vec![(bytes("f"), bytes("v"))];
    vec![
        ("answer nil", Answer::Nil),
        ("answer ok", Answer::Ok),
        ("answer int", Answer::Int(-300)),
        ("answer ints", Answer::Ints(vec![-2, 1])),
        ("answer bytes", Answer::Bytes(bytes("v"))),
        ("answer values", Answer::Values(smallvec![Some(bytes("v")), None])),
        ("answer row", Answer::Row(Some(info))),
        ("answer no row", Answer::Row(None)),
        ("answer written", Answer::Written { done: true, old: Some(bytes("v")) }),
        ("answer cells", Answer::Cells { cells: cells(), next: Some(bytes("g")) }),
        ("answer page of cells", Answer::CellsPage { cells: cells(), next: 300 }),
        ("answer page of keys", Answer::Page { keys: vec![key()], next: 300, count: 10 }),
        (
            "answer expired",
            Answer::Expired { rows: 1, fields: 2, done: 3, part: 4, left_ms: Some(300) },
        ),
        ("answer deleted", Answer::Deleted { count: 3, next: Some(bytes("g")) }),
        (
            "answer content",
            Answer::RowContent { content: hash_content(), expires_at_ms: Some(1_700_000_000_000) },
        ),
        ("answer checked, value there", Answer::Checked { done: true, value: Some(Some(key())) }),
        ("answer checked, value not there", Answer::Checked { done: false, value: Some(None) }),
        ("answer checked, value not asked", Answer::Checked { done: true, value: None }),
        ("answer watched", Answer::WatchToken(watched())),
        ("answer watched, unwritten", Answer::WatchToken(WatchToken::unwritten(key()))),
    ]
}

fn refusals() -> Examples<Refusal> {
    use Refusal::*;
    vec![
        ("refusal wrong type", WrongType),
        ("refusal not integer", NotInteger),
        ("refusal overflow", Overflow),
        ("refusal not float", NotFloat),
        ("refusal nan or infinity", NanOrInfinity),
        ("refusal hash not integer", HashNotInteger),
        ("refusal hash not float", HashNotFloat),
        ("refusal no such key", NoSuchKey),
        ("refusal busy key", BusyKey),
        ("refusal too large", TooLarge),
        ("refusal too many fields", TooManyFields),
        ("refusal too much", TooMuch),
        ("refusal row too large", RowTooLarge),
        ("refusal expiry too far", ExpiryTooFar),
        ("refusal key too long", KeyTooLong),
        ("refusal answer too large", AnswerTooLarge),
        ("refusal check operand not integer", CheckOperandNotInteger),
        ("refusal check value not integer", CheckValueNotInteger),
        ("refusal unknown op", UnknownOp),
    ]
}

fn requests() -> Examples<Request> {
    let one = Request { ops: vec![Op::Partition(PartitionOp::Rows)], ..Request::default() };
    let ops = vec![
        Op::Partition(PartitionOp::Rows),
        Op::Hash(HashOp::Len { key: key().into() }),
        Op::Row(RowOp::Delete { key: key().into() }),
    ];
    vec![
        ("request of nothing", Request::default()),
        ("request of one op", one),
        ("request of three", Request { ops, joined: vec![1, 2], watched: vec![watched()] }),
    ]
}

fn responses() -> Examples<Response> {
    let outcomes = vec![Ok(Answer::Int(1)), Err(Refusal::WrongType), Ok(Answer::Nil)];
    vec![("response done", Response::Done(outcomes)), ("response touched", Response::Touched)]
}

/// The lines of the vector file that were not used yet.
struct Vectors(Vec<(&'static str, &'static str)>);

impl Vectors {
    fn read() -> Vectors {
        let lines =
            include_str!("../vectors/ops.txt").lines().filter(|line| !line.starts_with('#'));
        Vectors(lines.map(|line| line.split_once('\t').expect("name, tab, hex")).collect())
    }

    /// Holds each example against its line, in both directions; `first` tells the number
    /// of the variant that begins the bytes, and is `None` for structs.
    fn hold<T>(&mut self, examples: Examples<T>, missing: &mut Vec<String>)
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        for (name, value) in examples {
            let now = hex(&postcard::to_stdvec(&value).expect("serialises"));
            match self.0.iter().position(|(known, _)| *known == name) {
                Some(at) if self.0[at].1 == now => {
                    self.0.remove(at);
                }
                _ => missing.push(format!("{name}\t{now}")),
            }
            let back: T = postcard::from_bytes(&unhex(&now)).expect("is read again");
            assert_eq!(back, value, "{name}");
        }
    }

    /// Holds each op against its line: a line names the op itself, so that a new op needs
    /// no example here. Each op has a line.
    fn hold_ops(&mut self, missing: &mut Vec<String>) {
        let mut without: BTreeMap<u16, &str> = Op::all().collect();
        let lines = std::mem::take(&mut self.0);
        let (ops, others) = lines.into_iter().partition(|(name, _)| name.starts_with("op "));
        self.0 = others;
        for (name, bytes) in ops {
            let op = parse(name);
            without.remove(&op.number());
            let now = hex(&postcard::to_stdvec(&op).expect("serialises"));
            if now != bytes {
                missing.push(format!("{name}\t{now}"));
            }
            assert_eq!(postcard::from_bytes::<Op>(&unhex(&now)), Ok(op), "{name}");
        }
        missing.extend(without.values().map(|name| format!("op FAMILY {{\"{name}\": ...}}")));
    }

    /// As [`Vectors::hold`], for an enum: each variant has an example, and its number is
    /// its position.
    fn hold_all<T>(&mut self, examples: Examples<T>, missing: &mut Vec<String>)
    where
        T: Variants + Serialize + DeserializeOwned + PartialEq + Debug,
    {
        for (number, variant) in T::NAMES.iter().enumerate() {
            let mut of = examples.iter().filter(|(_, value)| value.variant() == *variant);
            let Some((name, value)) = of.next() else { panic!("{variant} has no example") };
            let first = postcard::to_stdvec(value).expect("serialises")[0];
            assert_eq!(usize::from(first), number, "the number of {variant} ({name})");
        }
        self.hold(examples, missing);
    }
}

/// The op that a line names: its family, and the op in JSON.
pub(crate) fn parse(name: &str) -> Op {
    let (family, json) = name[3..].split_once(' ').expect("a family and an op");
    match family {
        "row" => Op::Row(from_json(json)),
        "partition" => Op::Partition(from_json(json)),
        "string" => Op::String(from_json(json)),
        "hash" => Op::Hash(from_json(json)),
        other => panic!("no family is named {other}"),
    }
}

fn from_json<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// The lines of all ops.
pub(crate) fn op_names() -> Vec<&'static str> {
    Vectors::read()
        .0
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("op "))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(byte).collect()
}

#[test]
fn ops_and_answers_are_frozen() {
    let mut vectors = Vectors::read();
    let mut missing = Vec::new();
    vectors.hold_all(kinds(), &mut missing);
    vectors.hold_all(deadlines(), &mut missing);
    vectors.hold_all(ttls(), &mut missing);
    vectors.hold_all(onlys(), &mut missing);
    vectors.hold(expire_ifs(), &mut missing);
    vectors.hold_all(filters(), &mut missing);
    vectors.hold(ranges(), &mut missing);
    vectors.hold_all(checks(), &mut missing);
    vectors.hold_all(mutations(), &mut missing);
    vectors.hold_all(contents(), &mut missing);
    vectors.hold_all(items(), &mut missing);
    vectors.hold_ops(&mut missing);
    vectors.hold_all(answers(), &mut missing);
    vectors.hold_all(refusals(), &mut missing);
    vectors.hold(requests(), &mut missing);
    vectors.hold_all(responses(), &mut missing);
    let lines = missing.join("\n");
    assert!(missing.is_empty(), "these differ from vectors/ops.txt or have no line:\n{lines}\n");
    assert_eq!(vectors.0, [], "lines of vectors/ops.txt without an example");
}

#[test]
fn numbers_and_names_of_ops_are_unique() {
    let mut names = BTreeSet::new();
    for (family, ops) in [
        ("row", RowOp::OPS),
        ("partition", PartitionOp::OPS),
        ("string", StringOp::OPS),
        ("hash", HashOp::OPS),
    ] {
        names.extend(ops.iter().map(|(_, name)| (family, *name)));
    }
    let numbers: BTreeSet<u16> = Op::all().map(|(number, _)| number).collect();
    assert_eq!((numbers.len(), names.len()), (Op::all().count(), Op::all().count()));
}

#[test]
fn an_unknown_op_is_refused_alone_and_sent_on_as_it_is() {
    let known = Op::Partition(PartitionOp::Rows);
    // An op of a later version, between two that are known.
    let bytes =
        [&postcard::to_stdvec(&known).expect("serialises")[..], &[0xff, 0x7f, 3, 1, 2, 3]].concat();
    let bytes = [&[3][..], &bytes, &bytes[..2]].concat();
    let ops: Vec<Op> = postcard::from_bytes(&bytes).expect("ops have lengths");
    assert_eq!((&ops[0], &ops[2]), (&known, &known));
    assert_eq!(postcard::to_stdvec(&ops).expect("serialises"), bytes);
    assert_eq!((ops[1].number(), ops[1].is_write(), ops[1].keys().len()), (16_383, false, 0));
    let (memory, mut edits) = (Memory::new(), Edits::default());
    let stamp = Stamp { now_ms: 1, timetag: 1 << 16 };
    let mut tx = Tx { view: &memory, edits: &mut edits, stamp, rules: Rules::default() };
    assert_eq!(eval(&ops[1], &mut tx), Err(Refusal::UnknownOp.into()));
    assert_eq!(eval(&ops[2], &mut tx), Ok(Answer::Int(0)));
}

#[test]
fn fields_of_a_known_op_that_do_not_fit_are_malformed() {
    let rows = postcard::to_stdvec(&Op::Partition(PartitionOp::Rows)).expect("serialises");
    assert!(postcard::from_bytes::<Op>(&[rows[0], 1, 0]).is_err(), "more bytes than fields");
    let get = Op::String(StringOp::Get { key: key().into() });
    let get = postcard::to_stdvec(&get).expect("serialises");
    assert!(postcard::from_bytes::<Op>(&[get[0], 1, 3]).is_err(), "fewer bytes than fields");
}
