//! Specifications of commands that Bridle has and of some that it does not have yet. The
//! expected values are answers of redis-server 7.0.15 and agree with the sources of 7.4.

use bolero::TypeGenerator;
use smallvec::smallvec;

use super::*;
use crate::args::Argv;
use crate::command::{info_of, keys_of};
use crate::table::flags::{NO_MANDATORY_KEYS, READONLY, WRITE};
use crate::table::{Command, Group, find};
use crate::{Args, PlanResult, Reply};

const fn entry(name: &'static str, arity: i8, flags: u64, keys: Keys) -> Command {
    Command {
        name,
        arity,
        flags,
        keys,
        group: Group::Generic,
        since: "",
        complexity: "",
        summary: "",
        syntax: "",
        plan: never,
    }
}

fn never(args: Args) -> PlanResult {
    Err(args.wrong_number())
}

const POPPED: &str = "RW access delete";
const STREAMS: Keys = Keys::after("STREAMS", 1).to_end().halved();

static ENTRIES: &[Command] = &[
    entry("eval", -3, NO_MANDATORY_KEYS, Keys::counted(2)),
    entry("fcall_ro", -3, NO_MANDATORY_KEYS | READONLY, Keys::counted(2)),
    entry(
        "zunionstore",
        -4,
        WRITE,
        Keys::ONE.with("OW update").and(Keys::counted(2).with("RO access")),
    ),
    entry("lmpop", -4, WRITE, Keys::counted(1).with(POPPED)),
    entry("blmpop", -5, WRITE, Keys::counted(2).with(POPPED)),
    entry("blpop", -3, WRITE, Keys::range(1, -2, 1).with(POPPED)),
    entry("xread", -4, READONLY, STREAMS),
    entry("xreadgroup", -7, WRITE, Keys::after("STREAMS", 4).to_end().halved().with("RO access")),
    entry(
        "georadius",
        -6,
        WRITE,
        Keys::ONE
            .with("RO access")
            .and(Keys::after("STORE", 6).with("OW update"))
            .and(Keys::after("STOREDIST", 6).with("OW update")),
    ),
    entry(
        "migrate",
        -6,
        WRITE,
        Keys::range(3, 3, 1)
            .with(POPPED)
            .and(Keys::after("KEYS", -2).to_end().with("RW access delete incomplete"))
            .found_by(migrate_keys),
    ),
    entry(
        "bitop",
        -4,
        WRITE,
        Keys::SECOND.with("OW update").and(Keys::range(3, -1, 1).with("RO access")),
    ),
    entry(
        "sunionstore",
        -3,
        WRITE,
        Keys::ONE.with("OW update").and(Keys::range(2, -1, 1).with("RO access")),
    ),
    entry("pfmerge", -2, WRITE, Keys::ONE.and(Keys::range(2, -1, 1).with("RO access"))),
    entry("ssubscribe", -2, 0, Keys::ALL.with("not_key")),
];

fn migrate_keys(argv: &[Bytes]) -> FoundKeys {
    let flags = const { KeyFlags::of(POPPED) };
    let mut at = 6;
    while let Some(option) = argv.get(at) {
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        at += match () {
            () if is(b"keys") && argv[3].is_empty() => {
                return (at + 1..argv.len()).map(|at| FoundKey { at, flags }).collect();
            }
            () if is(b"keys") => return FoundKeys::new(),
            () if is(b"auth") => 2,
            () if is(b"auth2") => 3,
            () => 1,
        };
    }
    smallvec![FoundKey { at: 3, flags }]
}

fn entry_of(argv: &[Bytes]) -> &'static Command {
    let name = String::from_utf8_lossy(&argv[0]).into_owned();
    ENTRIES
        .iter()
        .find(|entry| entry.name == name)
        .or_else(|| find(&argv[0], argv.get(1).map(|sub| &sub[..])))
        .or_else(|| find(&argv[0], None))
        .unwrap_or_else(|| panic!("no entry {name}"))
}

fn argv(line: &str) -> Argv {
    let word = |word: &str| Bytes::copy_from_slice(word.trim_matches('"').as_bytes());
    line.split(' ').map(word).collect()
}

/// `key flags, key flags`, or the error.
fn found(line: &str) -> String {
    let argv = argv(line);
    let keys = match keys_of(entry_of(&argv), &argv) {
        Ok(keys) => keys,
        Err(Reply::Error(text)) => return text.into_owned(),
        Err(other) => panic!("{line}: {other:?}"),
    };
    let key = |key: &FoundKey| {
        let flags: Vec<_> = key.flags.names().collect();
        format!("{} {}", String::from_utf8_lossy(&argv[key.at]), flags.join(" "))
    };
    keys.iter().map(key).collect::<Vec<_>>().join(", ")
}

const INVALID: &str = "ERR Invalid arguments specified for command";
const NO_KEYS: &str = "ERR The command has no key arguments";
const WRONG_NUMBER: &str = "ERR Invalid number of arguments specified for command";

#[test]
fn keys_are_those_of_redis() {
    for (line, keys) in [
        ("get a", "a RO access"),
        ("set a 1", "a OW update"),
        ("set a 1 Get", "a RW access update"),
        ("set get get", "get OW update"),
        ("mset a 1 b 2", "a OW update, b OW update"),
        ("mset a 1 b", "a OW update, b OW update"),
        ("rename a b", "a RW access delete, b OW update"),
        ("lcs a b", "a RO access, b RO access"),
        ("object encoding a", "a RO"),
        ("ping", NO_KEYS),
        ("get a b", WRONG_NUMBER),
        ("eval s 2 a b c", "a RW access update, b RW access update"),
        ("fcall_ro f 1 a b", "a RO access"),
        ("zunionstore d 2 a b WEIGHTS 1 2", "d OW update, a RO access, b RO access"),
        ("lmpop 2 a b LEFT", "a RW access delete, b RW access delete"),
        ("lmpop 1 a LEFT COUNT 2", "a RW access delete"),
        ("blmpop 0 2 a b RIGHT", "a RW access delete, b RW access delete"),
        ("blpop a b 0", "a RW access delete, b RW access delete"),
        ("blpop a 0", "a RW access delete"),
        ("bitop AND d a b", "d OW update, a RO access, b RO access"),
        ("sunionstore d a b", "d OW update, a RO access, b RO access"),
        ("pfmerge d", INVALID),
        ("ssubscribe a", NO_KEYS),
    ] {
        assert_eq!(found(line), keys, "{line}");
    }
}

#[test]
fn numbers_of_keys_fit_the_arguments() {
    for count in ["0", "3", "-1", "x", "", "9223372036854775807", "99999999999999999999"] {
        assert_eq!(found(&format!("eval s {count} a b")), "", "{count}");
        assert_eq!(found(&format!("zunionstore d {count} a b")), INVALID, "{count}");
        assert_eq!(found(&format!("lmpop {count} a LEFT")), INVALID, "{count}");
    }
    assert_eq!(found("eval s"), WRONG_NUMBER);
    assert_eq!(found("eval s 0"), "");
    // Redis reads these numbers once more, by C's `atoi`, and takes them for 1. No command
    // takes them.
    for count in ["01", "1x", "4294967297"] {
        assert_eq!(found(&format!("zunionstore d {count} a")), INVALID, "{count}");
    }
}

#[test]
fn streams_are_the_first_half_of_the_rest() {
    for (line, keys) in [
        ("xread STREAMS a b 0 0", "a RO access, b RO access"),
        ("xread COUNT 2 BLOCK 9 streams a b c 1 2 3", "a RO access, b RO access, c RO access"),
        ("xread STREAMS a b 0", "a RO access"),
        ("xread COUNT 2 STREAMS", INVALID),
        ("xread COUNT 2 a 0", INVALID),
        ("xread COUNT STREAMS STREAMS a 0", "STREAMS RO access"),
        ("xreadgroup GROUP g c STREAMS a 0", "a RO access"),
        ("xreadgroup GROUP STREAMS c STREAMS a b > >", "a RO access, b RO access"),
        ("xreadgroup GROUP g c COUNT 1 a 0", INVALID),
    ] {
        assert_eq!(found(line), keys, "{line}");
    }
}

#[test]
fn keys_of_options_are_found() {
    for (line, keys) in [
        ("sort a", "a RO access"),
        ("sort a BY w_* GET x STORE d", "a RO access, d OW update"),
        ("sort a STORE d STORE e", "a RO access, e OW update"),
        ("sort a STORE", "a RO access"),
        ("sort a LIMIT STORE 1 store d", "a RO access, d OW update"),
        ("sort a GET store", "a RO access"),
        ("sort_ro a BY w_*", "a RO access"),
        ("georadius g 1 2 3 m", "g RO access"),
        ("georadius g 1 2 3 m STORE d", "g RO access, d OW update"),
        ("georadius g 1 2 3 m WITHDIST storedist d", "g RO access, d OW update"),
        ("georadius g 1 2 3 m STOREDIST e STORE d", "g RO access, d OW update, e OW update"),
        ("georadius g 1 2 3 m STORE", "g RO access"),
        ("migrate h 1 a 0 5", "a RW access delete"),
        ("migrate h 1 a 0 5 COPY REPLACE", "a RW access delete"),
        ("migrate h 1 \"\" 0 5 KEYS a b", "a RW access delete, b RW access delete"),
        ("migrate h 1 \"\" 0 5 AUTH KEYS KEYS a", "a RW access delete"),
        ("migrate h 1 x 0 5 KEYS a", INVALID),
        ("migrate h 1 KEYS 0 5", "KEYS RW access delete"),
    ] {
        assert_eq!(found(line), keys, "{line}");
    }
}

#[test]
fn the_older_notation_is_that_of_redis() {
    for (name, first, last, step, is_incomplete) in [
        ("ping", 0, 0, 0, false),
        ("get", 1, 1, 1, false),
        ("mset", 1, -1, 2, false),
        ("rename", 1, 2, 1, false),
        ("lcs", 1, 2, 1, false),
        ("sort", 1, 1, 1, true),
        ("sort_ro", 1, 1, 1, true),
        ("eval", 0, 0, 0, true),
        ("zunionstore", 1, 1, 1, true),
        ("lmpop", 0, 0, 0, true),
        ("blpop", 1, -2, 1, false),
        ("xread", 0, 0, 0, true),
        ("georadius", 1, 1, 1, true),
        ("migrate", 3, 3, 1, true),
        ("bitop", 2, -1, 1, false),
        ("sunionstore", 1, -1, 1, false),
        ("ssubscribe", 1, -1, 1, false),
    ] {
        let legacy = entry_of(&argv(name)).keys.legacy_range();
        assert_eq!(legacy, LegacyRange { first, last, step, is_incomplete }, "{name}");
    }
}

/// COMMAND INFO's key specifications, maps as `{name value}`.
fn shown(name: &str) -> String {
    fn one(reply: &Reply) -> String {
        let list = |items: &[Reply]| items.iter().map(one).collect::<Vec<_>>().join(" ");
        match reply {
            Reply::Bulk(text) => String::from_utf8_lossy(text).into_owned(),
            Reply::Status(text) => text.clone().into_owned(),
            Reply::Int(number) => number.to_string(),
            Reply::Array(items) | Reply::Set(items) => format!("[{}]", list(items)),
            Reply::Map(pairs) => {
                let pair = |(name, value): &(Reply, Reply)| format!("{} {}", one(name), one(value));
                format!("{{{}}}", pairs.iter().map(pair).collect::<Vec<_>>().join(" "))
            }
            other => panic!("{other:?}"),
        }
    }
    match info_of(entry_of(&argv(name))) {
        Reply::Array(parts) => one(&parts[8]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn specifications_are_shown_as_redis_shows_them() {
    assert_eq!(
        shown("zunionstore"),
        "[{flags [OW update] begin_search {type index spec {index 1}} find_keys {type range spec \
         {lastkey 0 keystep 1 limit 0}}} {flags [RO access] begin_search {type index spec {index \
         2}} find_keys {type keynum spec {keynumidx 0 firstkey 1 keystep 1}}}]"
    );
    assert_eq!(
        shown("xread"),
        "[{flags [RO access] begin_search {type keyword spec {keyword STREAMS startfrom 1}} \
         find_keys {type range spec {lastkey -1 keystep 1 limit 2}}}]"
    );
    assert_eq!(
        shown("sort_ro"),
        "[{flags [RO access] begin_search {type index spec {index 1}} find_keys {type range spec \
         {lastkey 0 keystep 1 limit 0}}} {notes For the optional BY/GET keyword. It is marked \
         'unknown' because the key names derive from the content of the key we sort flags [RO \
         access] begin_search {type unknown spec {}} find_keys {type unknown spec {}}}]"
    );
}

#[derive(Debug, Clone, TypeGenerator)]
enum Word {
    Option(u8),
    Number(i64),
    Text(Vec<u8>),
}

#[test]
fn any_arguments_have_keys_only_among_them() {
    const OPTIONS: [&str; 14] = [
        "STREAMS",
        "STORE",
        "STOREDIST",
        "KEYS",
        "LIMIT",
        "BY",
        "GET",
        "AUTH",
        "AUTH2",
        "0",
        "1",
        "2",
        "9223372036854775807",
        "",
    ];
    let commands: Vec<&Command> = ENTRIES.iter().chain(crate::table::all()).collect();
    bolero::check!().with_type::<(u8, Vec<Word>)>().for_each(|(number, args)| {
        let word = |word: &Word| match word {
            Word::Option(at) => Bytes::from(OPTIONS[usize::from(*at) % OPTIONS.len()]),
            Word::Number(number) => Bytes::from(number.to_string()),
            Word::Text(text) => Bytes::copy_from_slice(text),
        };
        let argv: Argv = args.iter().map(word).collect();
        let command = commands[usize::from(*number) % commands.len()];
        if let Ok(keys) = keys_of(command, &argv) {
            assert!(keys.iter().all(|key| key.at < argv.len()), "{command:?} {argv:?}: {keys:?}");
        }
        command.find_keys(&argv);
    });
}
