//! COMMAND: the table as clients see it, derived from the entries.

use bytes::Bytes;
use row::glob;

use crate::args::Argv;
use crate::docs;
use crate::table::flags::{self, CONNECTION, CONTAINER, LOADING, STALE};
use crate::table::{
    self, BeginSearch, Command, FindKeys, FoundKey, FoundKeys, Group, KeyFlags, KeySpec, Keys,
    LegacyRange, help,
};
use crate::{Args, Plan, PlanResult, Reply, tips};

/// COMMAND and its subcommands.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "command",
        arity: -1,
        flags: LOADING | STALE | CONNECTION | CONTAINER,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.13",
        complexity: "O(N) where N is the total number of Redis commands",
        summary: "Returns detailed information about all commands.",
        syntax: "",
        plan: command_all,
    },
    Command {
        name: "command|help",
        arity: 2,
        flags: LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Server,
        since: "5.0.0",
        complexity: "O(1)",
        summary: "Returns helpful text about the different subcommands.",
        syntax: "",
        plan: help,
    },
    Command {
        name: "command|count",
        arity: 2,
        flags: LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.13",
        complexity: "O(1)",
        summary: "Returns a count of commands.",
        syntax: "",
        plan: count,
    },
    Command {
        name: "command|docs",
        arity: -2,
        flags: LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Server,
        since: "7.0.0",
        complexity: "O(N) where N is the number of commands to look up",
        summary: "Returns documentary information about one, multiple or all commands.",
        syntax: "[command-name [command-name ...]]",
        plan: docs,
    },
    Command {
        name: "command|getkeys",
        arity: -3,
        flags: LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.13",
        complexity: "O(N) where N is the number of arguments to the command",
        summary: "Extracts the key names from an arbitrary command.",
        syntax: "command [arg [arg ...]]",
        plan: getkeys,
    },
    Command {
        name: "command|getkeysandflags",
        arity: -3,
        flags: LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Server,
        since: "7.0.0",
        complexity: "O(N) where N is the number of arguments to the command",
        summary: "Extracts the key names and access flags for an arbitrary command.",
        syntax: "command [arg [arg ...]]",
        plan: getkeysandflags,
    },
    Command {
        name: "command|info",
        arity: -2,
        flags: LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.13",
        complexity: "O(N) where N is the number of commands to look up",
        summary: "Returns information about one, multiple or all commands.",
        syntax: "[command-name [command-name ...]]",
        plan: info,
    },
    Command {
        name: "command|list",
        arity: -2,
        flags: LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Server,
        since: "7.0.0",
        complexity: "O(N) where N is the total number of Redis commands",
        summary: "Returns a list of command names.",
        syntax: "[FILTERBY <MODULE module-name | ACLCAT category | PATTERN pattern>]",
        plan: list,
    },
];

fn command_all(_: Args) -> PlanResult {
    Ok(Plan::Reply(Reply::Array(table::top().map(info_of).collect())))
}

fn count(_: Args) -> PlanResult {
    Ok(Plan::Reply(Reply::Int(table::top().count() as i64)))
}

fn info(mut args: Args) -> PlanResult {
    if args.left() == 0 {
        return command_all(args);
    }
    let entries =
        args.rest::<Argv>().iter().map(|name| named(name).map_or(Reply::Nil, info_of)).collect();
    Ok(Plan::Reply(Reply::Array(entries)))
}

fn docs(mut args: Args) -> PlanResult {
    let doc = |command: &Command| (text(command.name), docs::doc(command));
    let docs = match args.left() {
        0 => table::top().map(doc).collect(),
        _ => args.rest::<Argv>().iter().filter_map(|name| named(name).map(doc)).collect(),
    };
    Ok(Plan::Reply(Reply::Map(docs)))
}

fn list(mut args: Args) -> PlanResult {
    let names = |keep: &dyn Fn(&Command) -> bool| {
        let names = table::all()
            .filter(|command| keep(command))
            .map(|command| text(command.name))
            .collect();
        Ok(Plan::Reply(Reply::Array(names)))
    };
    if args.left() == 0 {
        return names(&|_| true);
    }
    if args.left() != 3 || !args.flag("FILTERBY") {
        return Err(Args::syntax());
    }
    let (by, wanted) = (args.next_arg().to_ascii_lowercase(), args.next_arg().to_ascii_lowercase());
    match by.as_slice() {
        b"module" => names(&|_| false),
        b"aclcat" => {
            names(&|command| command.categories().any(|it| it.name().as_bytes() == wanted))
        }
        b"pattern" => names(&|command| glob::matches(&wanted, command.name.as_bytes())),
        _ => Err(Args::syntax()),
    }
}

fn getkeys(mut args: Args) -> PlanResult {
    let argv = args.rest::<Argv>();
    let keys = keys_of(resolve(&argv)?, &argv)?;
    let key = |key: &FoundKey| Reply::Bulk(argv[key.at].clone());
    Ok(Plan::Reply(Reply::Array(keys.iter().map(key).collect())))
}

fn getkeysandflags(mut args: Args) -> PlanResult {
    let argv = args.rest::<Argv>();
    let keys = keys_of(resolve(&argv)?, &argv)?;
    let key = |key: &FoundKey| {
        Reply::Array(vec![Reply::Bulk(argv[key.at].clone()), key_flags(key.flags)])
    };
    Ok(Plan::Reply(Reply::Array(keys.iter().map(key).collect())))
}

/// The entry for the arguments of a call, of any number.
fn resolve(argv: &[Bytes]) -> Result<&'static Command, Reply> {
    let command = argv.first().and_then(|name| table::find(name, None));
    let command = match (command, argv.get(1)) {
        (Some(container), Some(sub)) if container.is(flags::CONTAINER) => {
            table::find(&argv[0], Some(sub))
        }
        (command, _) => command,
    };
    command.ok_or_else(|| Reply::error("ERR Invalid command specified"))
}

/// The keys of a call, or why there are none.
pub(crate) fn keys_of(command: &Command, argv: &[Bytes]) -> Result<FoundKeys, Reply> {
    if !command.keys.may_exist() {
        return Err(Reply::error("ERR The command has no key arguments"));
    }
    if !command.takes(argv.len()) {
        return Err(Reply::error("ERR Invalid number of arguments specified for command"));
    }
    let keys = command.find_keys(argv);
    if keys.is_empty() && !command.is(flags::NO_MANDATORY_KEYS) {
        return Err(Reply::error("ERR Invalid arguments specified for command"));
    }
    Ok(keys)
}

/// The entry of a full name: `get`, `client|id`.
fn named(name: &[u8]) -> Option<&'static Command> {
    match name.iter().position(|&byte| byte == b'|') {
        Some(at) => table::find(&name[..at], Some(&name[at + 1..])),
        None => table::find(name, None),
    }
}

/// COMMAND INFO's ten elements.
pub(crate) fn info_of(command: &Command) -> Reply {
    let LegacyRange { first, last, step, is_incomplete } = command.keys.legacy_range();
    let flags = command.flags | if is_incomplete { flags::MOVABLE_KEYS } else { 0 };
    let shown = flags::NAMES
        .iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(_, name)| Reply::Status((*name).into()));
    let subcommands: Vec<_> = command.subcommands().map(info_of).collect();
    let categories = command.categories().map(|it| Reply::Status(format!("@{}", it.name()).into()));
    Reply::Array(vec![
        text(command.name),
        Reply::Int(command.arity.into()),
        Reply::Set(shown.collect()),
        Reply::Int(first),
        Reply::Int(last),
        Reply::Int(step),
        Reply::Set(categories.collect()),
        Reply::Set(tips::of(command).iter().map(|tip| text(tip)).collect()),
        Reply::Set(key_specs(command)),
        if subcommands.is_empty() { Reply::Set(subcommands) } else { Reply::Array(subcommands) },
    ])
}

/// Key positions and access in Redis's newer notation.
fn key_specs(command: &Command) -> Vec<Reply> {
    let part = |kind: &'static str, spec: Vec<(&'static str, Reply)>| {
        let spec = spec.into_iter().map(|(name, value)| (text(name), value)).collect();
        Reply::Map(vec![(text("type"), text(kind)), (text("spec"), Reply::Map(spec))])
    };
    let spec = |spec: &KeySpec| {
        let begin = match spec.begin {
            BeginSearch::Index(at) => part("index", vec![("index", Reply::Int(at.into()))]),
            BeginSearch::Keyword { keyword, start_from } => {
                let from = Reply::Int(start_from.into());
                part("keyword", vec![("keyword", text(keyword)), ("startfrom", from)])
            }
            BeginSearch::Unknown { .. } => part("unknown", Vec::new()),
        };
        let numbers = |names: [&'static str; 3], numbers: [i64; 3]| {
            names.into_iter().zip(numbers.map(Reply::Int)).collect::<Vec<_>>()
        };
        let find = match spec.find {
            FindKeys::Range { last, step, limit } => {
                let range = [last.into(), step.into(), limit.into()];
                part("range", numbers(["lastkey", "keystep", "limit"], range))
            }
            FindKeys::Counted => {
                part("keynum", numbers(["keynumidx", "firstkey", "keystep"], [0, 1, 1]))
            }
            FindKeys::Unknown => part("unknown", Vec::new()),
        };
        let notes = (!spec.notes.is_empty()).then(|| (text("notes"), text(spec.notes)));
        let flags = key_flags(spec.flags_or(command.implied_access()));
        let fields =
            [(text("flags"), flags), (text("begin_search"), begin), (text("find_keys"), find)];
        Reply::Map(notes.into_iter().chain(fields).collect())
    };
    command.keys.specs().iter().map(spec).collect()
}

fn key_flags(flags: KeyFlags) -> Reply {
    Reply::Set(flags.names().map(|name| Reply::Status(name.into())).collect())
}

/// A bulk string of fixed text.
pub(crate) fn text(text: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(text.as_bytes()))
}
