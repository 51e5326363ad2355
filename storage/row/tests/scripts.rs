//! Scripts: ops in, answers and changed records out. They show what a client cannot see:
//! bytes, counters, generations, the time index.
//!
//! A script is `tests/scripts/<family>/<name>.script`; its first line says what it shows.
//! `at MS` begins a batch (and applies the one before), `rules NAME=N ...` sets the
//! table's rules, `> op words` evaluates an op, and the lines below it are what came of
//! it: the answer, and the records that the op put (`+`) and deleted (`-`). Write the
//! ops, run with `BLESS=1`, and read what was filled in before you believe it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use row::key::{self, CellKey};
use row::memory::{Memory, Reader};
use row::op::{
    Check, Deadline, ExpireCondition, Filter, Mutation, Range, RowContent, Ttl, WriteCondition,
};
use row::value::{Body, Cell, DefaultTtl, Expiries, Head, Header, decode_counter};
use row::view::Rules;
use row::{Edits, Family, Op, Stamp, Tx, eval, expire};

/// The words of one op: positional ones, and `name=value` options.
struct Words<'a> {
    left: Vec<&'a str>,
    options: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Words<'a> {
        let is_option = |word: &&str| word.starts_with("--");
        let (options, mut left): (Vec<_>, Vec<_>) = line.split_whitespace().partition(is_option);
        left.reverse();
        Words {
            left,
            options: options
                .iter()
                .map(|word| word[2..].split_once('=').unwrap_or((&word[2..], "")))
                .collect(),
        }
    }

    fn word(&mut self) -> Bytes {
        let word = self.left.pop().expect("a word is missing");
        if word == "\"\"" { Bytes::new() } else { Bytes::copy_from_slice(word.as_bytes()) }
    }

    fn int(&mut self) -> i64 {
        self.left.pop().expect("a number is missing").parse().expect("a number")
    }

    fn rest(&mut self) -> Vec<Bytes> {
        std::iter::from_fn(|| (!self.left.is_empty()).then(|| self.word())).collect()
    }

    fn pairs(&mut self) -> Vec<(Bytes, Bytes)> {
        std::iter::from_fn(|| (!self.left.is_empty()).then(|| (self.word(), self.word()))).collect()
    }

    fn option(&self, name: &str) -> Option<&'a str> {
        self.options.iter().find(|(option, _)| *option == name).map(|(_, value)| *value)
    }

    fn bytes(&self, name: &str) -> Option<Bytes> {
        self.option(name).map(|text| Bytes::copy_from_slice(text.as_bytes()))
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.option(name).map_or(default, |text| text.parse().expect("a number"))
    }

    fn deadline(&self) -> Option<Deadline> {
        let number = |text: &str| text.parse().expect("ms");
        self.option("in")
            .map(|ms| Deadline::In(number(ms)))
            .or(self.option("until").map(|ms| Deadline::At(number(ms))))
    }

    fn ttl(&self) -> Ttl {
        match self.deadline() {
            Some(deadline) => Ttl::Until(deadline),
            None if self.option("keep").is_some() => Ttl::Keep,
            None if self.option("never").is_some() => Ttl::Never,
            None => Ttl::Default,
        }
    }

    fn only(&self) -> WriteCondition {
        match (self.option("nx"), self.option("xx")) {
            (Some(_), _) => WriteCondition::IfAbsent,
            (_, Some(_)) => WriteCondition::IfPresent,
            _ => WriteCondition::Always,
        }
    }

    fn range(&self) -> Range {
        Range {
            start: self.bytes("start"),
            start_inclusive: self.option("after").is_none(),
            stop: self.bytes("stop"),
            stop_inclusive: self.option("before").is_none(),
            filter: self.bytes("prefix").map_or(Filter::None, Filter::Prefix),
            reverse: self.option("reverse").is_some(),
            cells_max: self.number("cells_max", 0),
            bytes_max: self.number("bytes_max", 0),
        }
    }
}

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
    (Op::ExpireDue { items }, w.number("max", 10))
}

fn op(line: &str) -> Op {
    let mut w = Words::of(line);
    let name = w.word();
    let values = w.option("no_values").is_none();
    let replace = w.option("replace").is_some();
    match &name[..] {
        b"inspect" => Op::Inspect { key: w.word() },
        b"size" => Op::Size { key: w.word(), samples: w.number("samples", 5) },
        b"delete" => Op::Delete { key: w.word() },
        b"expire" => Op::Expire {
            key: w.word(),
            until: w.deadline().expect("--in or --until"),
            only: ExpireCondition::default(),
        },
        b"persist" => Op::Persist { key: w.word() },
        b"rename" => Op::Rename {
            from: w.word(),
            to: w.word(),
            only_new: w.only() == WriteCondition::IfAbsent,
        },
        b"copy" => Op::Copy { from: w.word(), to: w.word(), replace },
        b"dump" => Op::Dump { key: w.word() },
        b"restore" => {
            let key = w.word();
            let fields = w
                .pairs()
                .into_iter()
                .map(|(name, value)| {
                    (name, value, w.option("field_until").map(|at| at.parse().expect("ms")))
                })
                .collect();
            Op::Restore { key, content: RowContent::Hash(fields), ttl: w.ttl(), replace }
        }
        b"encoding" => Op::Encoding { key: w.word() },
        b"scan" => Op::Scan {
            cursor: w.number("cursor", 0),
            count: w.number("count", 10),
            glob: w.bytes("glob"),
            kind: None,
        },
        b"first_at_or_after" => Op::FirstAtOrAfter { cursor: w.number("cursor", 0) },
        b"rows" => Op::Rows,
        b"expiring" => Op::Expiring,
        b"set_default_ttl" => {
            Op::SetDefaultTtl { ttl_ms: w.int() as u64, set_at_ms: w.number("set_at", 0) }
        }
        b"clear" => Op::Clear,
        b"string_get" => Op::StringGet { key: w.word() },
        b"string_get_expire" => Op::StringGetExpire { key: w.word(), ttl: w.ttl() },
        b"string_set" => Op::StringSet {
            key: w.word(),
            value: w.word(),
            ttl: w.ttl(),
            only: w.only(),
            want_old: w.option("old").is_some(),
        },
        b"string_set_all_if_absent" => Op::StringSetAllIfAbsent { pairs: w.pairs() },
        b"string_append" => Op::StringAppend { key: w.word(), value: w.word() },
        b"string_incr" => Op::StringIncr { key: w.word(), by: w.int() },
        b"string_set_range" => {
            Op::StringSetRange { key: w.word(), offset: w.int() as u64, value: w.word() }
        }
        b"string_get_range" => Op::StringGetRange { key: w.word(), start: w.int(), end: w.int() },
        b"hash_put" => {
            Op::HashPut { key: w.word(), pairs: w.pairs(), only: w.only(), ttl: w.ttl() }
        }
        b"hash_get" => Op::HashGet { key: w.word(), fields: w.rest().into() },
        b"hash_get_delete" => Op::HashGetDelete { key: w.word(), fields: w.rest() },
        b"hash_delete" => Op::HashDelete { key: w.word(), fields: w.rest() },
        b"hash_len" => Op::HashLen { key: w.word() },
        b"hash_incr" => Op::HashIncr { key: w.word(), field: w.word(), by: w.int() },
        b"hash_range" => Op::HashRange { key: w.word(), range: w.range(), want_values: values },
        b"hash_range_delete" => Op::HashRangeDelete { key: w.word(), range: w.range() },
        b"hash_random" => Op::HashRandom {
            key: w.word(),
            count: w.int(),
            seed: w.number("seed", 1),
            want_values: values,
        },
        b"hash_scan" => Op::HashScan {
            key: w.word(),
            cursor: w.number("cursor", 0),
            count: w.number("count", 10),
            glob: w.bytes("glob"),
            want_values: values,
        },
        b"hash_expire" => Op::HashExpire {
            key: w.word(),
            fields: w.rest(),
            until: w.deadline().expect("--in or --until"),
            only: ExpireCondition::default(),
        },
        b"hash_expiry" => Op::HashExpiry { key: w.word(), fields: w.rest(), remaining: false },
        b"hash_persist" => Op::HashPersist { key: w.word(), fields: w.rest() },
        b"set_if_absent" => {
            let (key, check_sortkey) = (w.word(), w.word());
            let mutations = w
                .pairs()
                .into_iter()
                .map(|(sortkey, value)| Mutation::Put { sortkey, value, ttl: Ttl::Default })
                .collect();
            Op::CheckAndMutate {
                key,
                check_sortkey,
                check: Check::NotExist,
                operand: Bytes::new(),
                mutations,
                want_value: true,
            }
        }
        b"watch" => Op::Watch { key: w.word() },
        other => panic!("the scripts do not know the op {}", String::from_utf8_lossy(other)),
    }
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
                key::MEMBERS => format!(
                    "cell {} generation {} {}",
                    text(cell.hashkey),
                    cell.generation,
                    text(cell.sortkey)
                ),
                _ => {
                    let (at, name) = cell.sortkey.split_first_chunk().expect("an expiry");
                    format!(
                        "cell {} generation {} expiry {} {}",
                        text(cell.hashkey),
                        cell.generation,
                        u64::from_be_bytes(*at),
                        text(name)
                    )
                }
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
                    let Expiries { expiring, floor, soonest_ms } = &hash.expiries;
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

/// Runs a script: the same text, with what really came out.
fn run(script: &str) -> String {
    let mut out = String::new();
    let (mut memory, mut edits, mut rules, mut now_ms) =
        (Memory::new(), Edits::default(), Rules::default(), 1_000);
    for line in script.lines() {
        if let Some(words) = line.strip_prefix("> ") {
            let before = edits.clone();
            let stamp = Stamp { now_ms, timetag: now_ms << 16 };
            let (op, pieces) = match words.split_whitespace().next() {
                Some("expire_due") => expire_due(words, &memory, stamp, rules),
                _ => (op(words), u64::MAX),
            };
            let view = Reader::new(&memory).spent_after(pieces);
            let answer = eval(&op, &mut Tx { view: &view, edits: &mut edits, stamp, rules });
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
