//! Scripts: ops in, answers and changed records out. They show what a client cannot see:
//! bytes, counters, generations, the time index.
//!
//! A script is `tests/scripts/<family>/<name>.script`; its first line says what it shows.
//! `at MS` begins a batch (and applies the one before), `rules NAME=N ...` sets the
//! table's rules, `> op words` evaluates an op ([`words`] has the notation), and the lines
//! below it are what came of it: the answer, and the records that the op put (`+`) and
//! deleted (`-`). Write the ops, run with `BLESS=1`, and read what was filled in before
//! you believe it.

mod dummy;
mod words;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use row::eval::EvalResult;
use row::key::{self, CellKey};
use row::memory::{Memory, Reader};
use row::op::{Check, Mutation, Ttl};
use row::value::{Body, Cell, DefaultTtl, Expiries, Head, Header, decode_counter};
use row::view::Rules;
use row::{Edits, Family, HashOp, Op, PartitionOp, Stamp, Tx, eval, expire};

use crate::words::Words;

/// A step of the expiry cycle, with what is due in the state below by the time index, or
/// by the table's `default_ttl` (`--old`).
fn expire_due(line: &str, memory: &Memory, stamp: Stamp, rules: Rules) -> (Op, u64) {
    let w = Words::of(line);
    let items = match w.option("old") {
        None => memory.due(stamp, rules).expect("memory has no faults").items,
        Some(_) => {
            let mut edits = Edits::default();
            let tx = Tx { view: memory, edits: &mut edits, stamp, rules };
            expire::find_old(&tx, w.number("position", 0)).expect("memory has no faults").0
        }
    };
    (Op::Partition(PartitionOp::ExpireDue { items }), w.number("max", 10))
}

/// Sets cells if the first one named does not exist, as Pegasus's check-and-set does.
fn set_if_absent(line: &str) -> Op {
    let mut words = Words::of(line);
    words.word();
    let (key, check_sortkey) = (words.word().to_owned(), words.word().to_owned());
    let put = |(sortkey, value): (&str, &str)| Mutation::Put {
        sortkey: Bytes::copy_from_slice(sortkey.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ttl: Ttl::Default,
    };
    Op::Hash(HashOp::CheckAndMutate {
        key: key.into(),
        check_sortkey: check_sortkey.into(),
        check: Check::NotExist,
        operand: Bytes::new(),
        mutations: words.pairs().into_iter().map(put).collect(),
        want_value: true,
    })
}

fn text(bytes: &[u8]) -> String {
    format!("{:?}", Bytes::copy_from_slice(bytes))[1..].to_owned()
}

fn header(header: &Header) -> String {
    let until = header.expires_at_ms.map_or(String::new(), |at| format!(" until {at}"));
    format!("written {}{until}", header.written_at_ms())
}

/// A record's key for people.
fn show_key(family: Family, key: &[u8]) -> String {
    match family {
        Family::Head => format!("head {}", text(&key[8..])),
        Family::Cell => {
            let cell = CellKey::parse(key).expect("a cell key");
            match cell.space {
                key::KeySpace::Members => format!(
                    "cell {} generation {} {}",
                    text(cell.hashkey),
                    cell.generation,
                    text(cell.sortkey)
                ),
                key::KeySpace::Expiries => {
                    let (at, name) = cell.sortkey.split_first_chunk().expect("an expiry");
                    format!(
                        "cell {} generation {} expiry {} {}",
                        text(cell.hashkey),
                        cell.generation,
                        u64::from_be_bytes(*at),
                        text(name)
                    )
                }
                other => panic!("no kind has cells in {other:?}"),
            }
        }
        Family::State => match key::parse_time_index(key) {
            Some((at, due, head_key)) => format!("time {at} {due:?} {}", text(&head_key[8..])),
            None if key == key::DEFAULT_TTL => "rule default_ttl".to_owned(),
            None => format!("counter {}", String::from_utf8_lossy(key)),
        },
    }
}

/// A record's value for people.
fn show_value(family: Family, value: &Bytes) -> String {
    match family {
        _ if value.is_empty() => String::new(),
        Family::State if value.len() == 24 => {
            let DefaultTtl { ttl_ms, since_ms, set_at_ms } =
                DefaultTtl::decode(value).expect("a rule");
            format!(" = {ttl_ms} since {since_ms}, set at {set_at_ms}")
        }
        Family::State => format!(" = {}", decode_counter(value).expect("a counter")),
        Family::Cell => {
            let cell = Cell::decode(value).expect("a cell");
            format!(" = {} {}", header(&cell.header), text(&cell.value))
        }
        Family::Head => {
            let head = Head::decode(value).expect("a head");
            let body = match &head.body {
                Body::String(value) => format!("string {}", text(value)),
                Body::Hash(hash) => {
                    let mut text =
                        format!("hash generation {} count {}", hash.generation, hash.count);
                    let Expiries { expiring, floor, soonest_ms } = &hash.own.expiries;
                    if *expiring > 0 {
                        write!(text, " expiring {expiring} from {}", floor.at_ms)
                            .expect("a string takes all");
                    }
                    if !floor.name.is_empty() {
                        write!(text, " {}", self::text(&floor.name)).expect("a string takes all");
                    }
                    if *soonest_ms > 0 {
                        write!(text, " soonest {soonest_ms}").expect("a string takes all");
                    }
                    text
                }
            };
            format!(" = {} {body}", header(&head.header))
        }
    }
}

/// The edits that one op added.
fn show_edits(before: &Edits, after: &Edits, out: &mut String) {
    if after.clear && !before.clear {
        writeln!(out, "- everything").expect("a string takes all");
    }
    for (family, key, value) in after.iter() {
        if !after.clear && before.get(family, key) == Some(value) {
            continue;
        }
        let key = show_key(family, key);
        match value {
            Some(value) => writeln!(out, "+ {key}{}", show_value(family, value)),
            None => writeln!(out, "- {key}"),
        }
        .expect("a string takes all");
    }
}

/// An op, and the number of pieces of work after which the view is spent.
struct ScriptOp {
    eval: Box<dyn Fn(&mut Tx<'_>) -> EvalResult>,
    pieces: u64,
}

impl From<Op> for ScriptOp {
    fn from(op: Op) -> ScriptOp {
        ScriptOp { eval: Box::new(move |tx| eval(&op, tx)), pieces: u64::MAX }
    }
}

/// The op of a line.
fn op_of(line: &str, memory: &Memory, stamp: Stamp, rules: Rules) -> ScriptOp {
    match line.split_whitespace().next() {
        Some("expire_due") => {
            let (op, pieces) = expire_due(line, memory, stamp, rules);
            ScriptOp { pieces, ..op.into() }
        }
        Some("set_if_absent") => set_if_absent(line).into(),
        _ => words::op(line)
            .map(ScriptOp::from)
            .or_else(|| dummy::op(line))
            .expect("the name of an op"),
    }
}

/// Runs a script: the same text, with what really came out.
fn run(script: &str) -> String {
    let mut out = String::new();
    let (mut memory, mut edits, mut rules, mut now_ms) =
        (Memory::new(), Edits::default(), Rules::default(), 1_000);
    for line in script.lines() {
        if let Some(words) = line.strip_prefix("> ") {
            let before = edits.clone();
            let stamp = Stamp { now_ms, timetag: now_ms << 16 };
            let op = op_of(words, &memory, stamp, rules);
            let view = Reader::new(&memory).spent_after(op.pieces);
            let answer = (op.eval)(&mut Tx { view: &view, edits: &mut edits, stamp, rules });
            writeln!(out, "{line}").expect("a string takes all");
            match answer {
                Ok(answer) => writeln!(out, "{answer:?}"),
                Err(failed) => writeln!(out, "{failed:?}"),
            }
            .expect("a string takes all");
            show_edits(&before, &edits, &mut out);
            continue;
        }
        if let Some(ms) = line.strip_prefix("at ") {
            now_ms = ms.parse().expect("ms");
            memory.apply(std::mem::take(&mut edits));
        } else if let Some(words) = line.strip_prefix("rules ") {
            for word in words.split_whitespace() {
                let (name, n) = word.split_once('=').expect("NAME=N");
                let n: u64 = n.parse().expect("a number");
                match name {
                    "default_ttl" => rules.default_ttl_ms = n,
                    "since" => rules.default_ttl_since_ms = n,
                    "write_max" => rules.write_bytes_max = n as usize,
                    "answer_max" => rules.answer_bytes_max = n as usize,
                    other => panic!("no rule is named {other}"),
                }
            }
        } else if !(line.is_empty() || line.starts_with('#')) {
            continue; // what came of an op, written anew above
        }
        writeln!(out, "{line}").expect("a string takes all");
    }
    out
}

fn scripts(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("the scripts' directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            scripts(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "script") {
            found.push(path);
        }
    }
}

#[test]
fn every_script_says_what_happens() {
    let mut found = Vec::new();
    scripts(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts"), &mut found);
    assert!(found.len() >= 10, "the scripts are gone: {} left", found.len());
    let mut wrong = Vec::new();
    for path in found {
        let script = std::fs::read_to_string(&path).expect("a script");
        assert!(script.starts_with("# "), "{} does not say what it shows", path.display());
        let really = run(&script);
        if really == script {
            continue;
        }
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, really).expect("a script can be written");
        } else {
            wrong.push(format!("{}:\n{really}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "what really happens:\n{}", wrong.join("\n"));
}
