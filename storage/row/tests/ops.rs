//! Ops, answers and refusals as they travel between servers are frozen.
//!
//! postcard numbers variants by their position and writes fields in order, without names:
//! renaming is free, a moved or inserted variant is not. `vectors/ops.txt` holds one line
//! for each example; lines are added with each new variant and never edited.

use std::fmt::Debug;

use bytes::Bytes;
use row::expire::{DueItem, DueMembers};
use row::op::{
    Answer, Check, Deadline, ExpireCondition, Filter, Mutation, Op, Range, Refusal, Request,
    Response, RowContent, RowInfo, RowKind, Ttl, WatchToken, WriteCondition,
};
use row::value::MemberExpiry;
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
variants!(Op: Inspect Size Delete Expire Persist Rename Copy Dump Restore Encoding Scan
    FirstAtOrAfter Rows Expiring Clear ExpireDue SetDefaultTtl AdvanceClock StringGet
    StringGetDelete StringGetExpire StringSet StringSetAllIfAbsent StringAppend StringIncr
    StringIncrFloat StringGetRange StringSetRange StringLen HashPut HashGet HashGetDelete
    HashGetExpire HashDelete
    HashLen HashRange HashRangeCount HashRangeDelete HashScan HashIncr HashIncrFloat HashRandom
    HashExpire HashExpiry HashPersist CheckAndMutate Watch Sync);
variants!(Answer: Nil Ok Int Ints Bytes Values Row Written Cells CellsPage Page Expired Deleted
    RowContent Checked WatchToken);
variants!(Refusal: WrongType NotInteger Overflow NotFloat NanOrInfinity HashNotInteger
    HashNotFloat NoSuchKey BusyKey TooLarge TooManyFields TooMuch RowTooLarge ExpiryTooFar
    KeyTooLong AnswerTooLarge CheckOperandNotInteger CheckValueNotInteger);
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

fn only_later() -> ExpireCondition {
    ExpireCondition { none: false, some: true, later: true, earlier: false }
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

fn row_ops() -> Examples<Op> {
    vec![
        ("op inspect", Op::Inspect { key: key() }),
        ("op size", Op::Size { key: key(), samples: 5 }),
        ("op delete", Op::Delete { key: key() }),
        (
            "op expire",
            Op::Expire { key: key(), until: Deadline::At(-1), only: ExpireCondition::default() },
        ),
        ("op persist", Op::Persist { key: key() }),
        ("op rename", Op::Rename { from: key(), to: bytes("to"), only_new: true }),
        ("op copy", Op::Copy { from: key(), to: bytes("to"), replace: false }),
        ("op dump", Op::Dump { key: key() }),
        (
            "op restore",
            Op::Restore { key: key(), content: hash_content(), ttl: Ttl::Never, replace: true },
        ),
        ("op encoding", Op::Encoding { key: key() }),
        ("op watch", Op::Watch { key: key() }),
    ]
}

fn partition_ops() -> Examples<Op> {
    let item = DueItem::Members(due_members());
    vec![
        (
            "op scan",
            Op::Scan {
                cursor: 1 << 52,
                count: 10,
                glob: Some(bytes("k*")),
                kind: Some(RowKind::Hash),
            },
        ),
        ("op scan for all", Op::Scan { cursor: 0, count: 10, glob: None, kind: None }),
        ("op first at or after", Op::FirstAtOrAfter { cursor: 300 }),
        ("op rows", Op::Rows),
        ("op expiring", Op::Expiring),
        ("op clear", Op::Clear),
        ("op expire due", Op::ExpireDue { items: vec![item] }),
        ("op set default ttl", Op::SetDefaultTtl { ttl_ms: 5_000, set_at_ms: 1_700_000_000_000 }),
        ("op advance clock", Op::AdvanceClock { at_ms: 1_700_000_000_000 }),
        ("op sync", Op::Sync),
    ]
}

fn string_ops() -> Examples<Op> {
    vec![
        ("op string get", Op::StringGet { key: key() }),
        ("op string get and delete", Op::StringGetDelete { key: key() }),
        ("op string get and expire", Op::StringGetExpire { key: key(), ttl: Ttl::Keep }),
        (
            "op string set",
            Op::StringSet {
                key: key(),
                value: bytes("v"),
                ttl: Ttl::Until(Deadline::In(1_000)),
                only: WriteCondition::IfAbsent,
                want_old: true,
            },
        ),
        (
            "op string set all if absent",
            Op::StringSetAllIfAbsent { pairs: vec![(key(), bytes("v")), (bytes("k"), bytes(""))] },
        ),
        ("op string append", Op::StringAppend { key: key(), value: bytes("v") }),
        ("op string add", Op::StringIncr { key: key(), by: -300 }),
        ("op string add float", Op::StringIncrFloat { key: key(), by: bytes("0.5") }),
        ("op string get range", Op::StringGetRange { key: key(), start: 1, end: -1 }),
        ("op string set range", Op::StringSetRange { key: key(), offset: 300, value: bytes("v") }),
        ("op string length", Op::StringLen { key: key() }),
    ]
}

fn hash_ops() -> Examples<Op> {
    let fields = || vec![bytes("f"), bytes("g")];
    vec![
        (
            "op hash put",
            Op::HashPut {
                key: key(),
                pairs: vec![(bytes("f"), bytes("v")), (bytes("g"), bytes(""))],
                only: WriteCondition::IfPresent,
                ttl: Ttl::Default,
            },
        ),
        ("op hash get", Op::HashGet { key: key(), fields: smallvec![bytes("f"), bytes("g")] }),
        ("op hash get and delete", Op::HashGetDelete { key: key(), fields: fields() }),
        (
            "op hash get and expire",
            Op::HashGetExpire { key: key(), fields: fields(), ttl: Ttl::Never },
        ),
        ("op hash delete", Op::HashDelete { key: key(), fields: fields() }),
        ("op hash len", Op::HashLen { key: key() }),
        ("op hash range", Op::HashRange { key: key(), range: Range::all(), want_values: true }),
        (
            "op hash range count",
            Op::HashRangeCount { key: key(), range: range(Filter::Contains(bytes("c"))) },
        ),
        (
            "op hash range delete",
            Op::HashRangeDelete { key: key(), range: range(Filter::Suffix(bytes("s"))) },
        ),
        (
            "op hash scan",
            Op::HashScan {
                key: key(),
                cursor: 1 << 51,
                count: 10,
                glob: Some(bytes("f*")),
                want_values: false,
            },
        ),
        ("op hash add", Op::HashIncr { key: key(), field: bytes("f"), by: 300 }),
        (
            "op hash add float",
            Op::HashIncrFloat { key: key(), field: bytes("f"), by: bytes("1.5") },
        ),
        ("op hash random", Op::HashRandom { key: key(), count: -2, seed: 9, want_values: true }),
        (
            "op hash expire",
            Op::HashExpire {
                key: key(),
                fields: fields(),
                until: Deadline::In(1_000),
                only: only_later(),
            },
        ),
        ("op hash expiry", Op::HashExpiry { key: key(), fields: fields(), remaining: true }),
        ("op hash persist", Op::HashPersist { key: key(), fields: fields() }),
        (
            "op check and mutate",
            Op::CheckAndMutate {
                key: key(),
                check_sortkey: bytes("f"),
                check: Check::IntGreater,
                operand: bytes("1"),
                mutations: mutations().into_iter().map(|(_, mutation)| mutation).collect(),
                want_value: true,
            },
        ),
    ]
}

fn ops() -> Examples<Op> {
    [row_ops(), partition_ops(), string_ops(), hash_ops()].concat()
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
    ]
}

fn requests() -> Examples<Request> {
    let one = Request { ops: vec![Op::Rows], ..Request::default() };
    let ops = vec![Op::Rows, Op::HashLen { key: key() }, Op::Delete { key: key() }];
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
        let lines = include_str!("vectors/ops.txt").lines().filter(|line| !line.starts_with('#'));
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
    vectors.hold_all(ops(), &mut missing);
    vectors.hold_all(answers(), &mut missing);
    vectors.hold_all(refusals(), &mut missing);
    vectors.hold(requests(), &mut missing);
    vectors.hold_all(responses(), &mut missing);
    let lines = missing.join("\n");
    assert!(missing.is_empty(), "these differ from vectors/ops.txt or have no line:\n{lines}\n");
    assert_eq!(vectors.0, [], "lines of vectors/ops.txt without an example");
}
