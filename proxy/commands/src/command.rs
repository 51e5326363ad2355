//! COMMAND: the table as clients see it, derived from the entries.

use bytes::Bytes;
use row::glob;

use crate::args::Argv;
use crate::docs;
use crate::table::flags::{self, READONLY};
use crate::table::flags::{CONNECTION, CONTAINER, LOADING, STALE};
use crate::table::{self, Command, Group, Keys, help};
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
    Ok(Plan::Reply(Reply::Array(table::top().map(entry).collect())))
}

fn count(_: Args) -> PlanResult {
    Ok(Plan::Reply(Reply::Int(table::top().count() as i64)))
}

fn info(mut args: Args) -> PlanResult {
    if args.left() == 0 {
        return command_all(args);
    }
    let entries =
        args.rest::<Argv>().iter().map(|name| named(name).map_or(Reply::Nil, entry)).collect();
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
    let command = with_keys(&argv)?;
    Ok(Plan::Reply(Reply::Array(command.keys_of(&argv).cloned().map(Reply::Bulk).collect())))
}

fn getkeysandflags(mut args: Args) -> PlanResult {
    let argv = args.rest::<Argv>();
    let command = with_keys(&argv)?;
    let accesses = match command.keys.access {
        // SET reads its key if GET is among the arguments.
        VARIABLE if argv.iter().any(|arg| arg.eq_ignore_ascii_case(b"get")) => {
            vec!["RW access update"]
        }
        VARIABLE => vec!["OW update"],
        _ => accesses(command),
    };
    let with_access = |(at, key): (usize, &Bytes)| {
        let access = accesses[at.min(accesses.len() - 1)];
        Reply::Array(vec![Reply::Bulk(key.clone()), argv_of(access)])
    };
    Ok(Plan::Reply(Reply::Array(command.keys_of(&argv).enumerate().map(with_access).collect())))
}

/// The entry of a complete command that has keys.
fn with_keys(argv: &Argv) -> Result<&'static Command, Reply> {
    let command = argv.first().and_then(|name| table::find(name, None));
    let command = match (command, argv.get(1)) {
        (Some(container), Some(sub)) if container.is(flags::CONTAINER) => {
            table::find(&argv[0], Some(sub))
        }
        (command, _) => command,
    };
    let command = command.ok_or_else(|| Reply::error("ERR Invalid command specified"))?;
    if command.keys == Keys::NONE {
        return Err(Reply::error("ERR The command has no key arguments"));
    }
    if !command.takes(argv.len()) {
        return Err(Reply::error("ERR Invalid number of arguments specified for command"));
    }
    Ok(command)
}

/// The entry of a full name: `get`, `client|id`.
fn named(name: &[u8]) -> Option<&'static Command> {
    match name.iter().position(|&byte| byte == b'|') {
        Some(at) => table::find(&name[..at], Some(&name[at + 1..])),
        None => table::find(name, None),
    }
}

/// COMMAND INFO's ten elements.
fn entry(command: &Command) -> Reply {
    let Keys { first, last, step, .. } = command.keys;
    let shown = flags::NAMES
        .iter()
        .filter(|(flag, _)| command.is(*flag))
        .map(|(_, name)| Reply::Status((*name).into()));
    let subcommands: Vec<_> = command.subcommands().map(entry).collect();
    let categories = command.categories().map(|it| Reply::Status(format!("@{}", it.name()).into()));
    Reply::Array(vec![
        text(command.name),
        Reply::Int(command.arity.into()),
        Reply::Set(shown.collect()),
        Reply::Int(first.into()),
        Reply::Int(last.into()),
        Reply::Int(step.into()),
        Reply::Set(categories.collect()),
        Reply::Set(tips::of(command).iter().map(|tip| text(tip)).collect()),
        Reply::Set(key_specs(command)),
        if subcommands.is_empty() { Reply::Set(subcommands) } else { Reply::Array(subcommands) },
    ])
}

/// Key positions and access in Redis's newer notation: one specification for all keys, or
/// one for each of two.
fn key_specs(command: &Command) -> Vec<Reply> {
    let Keys { first, last, step, .. } = command.keys;
    if first == 0 {
        return Vec::new();
    }
    let accesses = accesses(command);
    let last = if accesses.len() > 1 || last < 0 { last.min(0) } else { last - first };
    let search = |kind: &'static str, spec: Vec<(Reply, Reply)>| {
        Reply::Map(vec![(text("type"), text(kind)), (text("spec"), Reply::Map(spec))])
    };
    let range = vec![
        (text("lastkey"), Reply::Int(last.into())),
        (text("keystep"), Reply::Int(step.into())),
        (text("limit"), Reply::Int(0)),
    ];
    let spec = |(index, access): (i64, &'static str)| {
        Reply::Map(vec![
            (text("flags"), argv_of(access)),
            (text("begin_search"), search("index", vec![(text("index"), Reply::Int(index))])),
            (text("find_keys"), search("range", range.clone())),
        ])
    };
    (i64::from(first)..).zip(accesses).map(spec).collect()
}

/// The access of a key that is read or not, depending on the options.
const VARIABLE: &str = "RW access update variable_flags";

/// The access to the keys; two where the second key is accessed differently.
fn accesses(command: &Command) -> Vec<&'static str> {
    match command.keys.access {
        "" if command.is(READONLY) => vec!["RO access"],
        "" => vec!["RW access update"],
        access => access.split(", ").collect(),
    }
}

fn argv_of(access: &'static str) -> Reply {
    Reply::Set(access.split(' ').map(|arg| Reply::Status(arg.into())).collect())
}

/// A bulk string of fixed text.
pub(crate) fn text(text: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(text.as_bytes()))
}
