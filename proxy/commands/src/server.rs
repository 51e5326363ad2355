//! Server commands: all data of a table, statistics, shutdown.

use bytes::Bytes;
use row::op::{Answer, Op, RowInfo};
use row::{PartitionOp, RowOp};
use smallvec::smallvec;

use crate::plan::ReplyBuilder;
use crate::table::flags::{
    ADMIN, ALLOW_BUSY, CONTAINER, DANGEROUS, FAST, KEYSPACE, LOADING, LONG_RUN, LOOKUP, NO_MULTI,
    NOSCRIPT, NOT_IN_PARTITION, READONLY, STALE, WRITE,
};
use crate::table::{Command, Group, Keys, container, help};
use crate::{Args, Plan, PlanResult, Reply, errors, replies};

/// Number of fields sampled to estimate the size of the others, as Redis's
/// `OBJ_COMPUTE_SIZE_DEF_SAMPLES`.
const SAMPLES: u64 = 5;

/// Commands about the server.
#[allow(missing_docs, reason = "variants are the commands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum ServerCommand {
    /// No sections: the default ones.
    Info {
        sections: Vec<Bytes>,
    },
    Time,
    FlushAll,
    /// `save`: SAVE or NOSAVE, if either is given.
    Shutdown {
        save: Option<bool>,
        now: bool,
        force: bool,
        abort: bool,
    },
    Monitor,
    Lolwut {
        version: Option<i64>,
    },
}

/// MEMORY's subcommands that need the process.
#[allow(missing_docs, reason = "variants are the commands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum MemoryCommand {
    Doctor,
    Stats,
}

/// DEBUG's subcommands that need the process.
#[allow(missing_docs, reason = "variants are the commands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum DebugCommand {
    Sleep { seconds: f64 },
    SetActiveExpire { on: bool },
}

/// Server commands.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "dbsize",
        arity: 1,
        flags: READONLY | FAST | KEYSPACE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(N) where N is the number of partitions of the table.",
        summary: "Returns the number of keys in the database.",
        syntax: "",
        plan: dbsize,
    },
    Command {
        name: "flushdb",
        arity: -1,
        flags: WRITE | KEYSPACE | DANGEROUS,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(N) where N is the number of partitions of the table.",
        summary: "Remove all keys from the current database.",
        syntax: "[ASYNC | SYNC]",
        plan: flushdb,
    },
    Command {
        name: "flushall",
        arity: -1,
        flags: WRITE | KEYSPACE | DANGEROUS | NOT_IN_PARTITION,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(N) where N is the number of partitions of all tables.",
        summary: "Removes all keys from all databases.",
        syntax: "[ASYNC | SYNC]",
        plan: flushall,
    },
    Command {
        name: "info",
        arity: -1,
        flags: LOADING | STALE | DANGEROUS,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Returns information and statistics about the server.",
        syntax: "[section [section ...]]",
        plan: info,
    },
    Command {
        name: "time",
        arity: 1,
        flags: LOADING | STALE | FAST,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.6.0",
        complexity: "O(1)",
        summary: "Returns the server time.",
        syntax: "",
        plan: time,
    },
    Command {
        name: "shutdown",
        arity: -1,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | NO_MULTI | ALLOW_BUSY | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(N) when saving, where N is the total number of keys in all databases when \
                     saving data, otherwise O(1)",
        summary: "Synchronously saves the database(s) to disk and shuts down the Redis server.",
        syntax: "[NOSAVE | SAVE] [NOW] [FORCE] [ABORT]",
        plan: shutdown,
    },
    Command {
        name: "monitor",
        arity: 1,
        flags: ADMIN | NOSCRIPT | LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Listens for all requests received by the server in real-time.",
        syntax: "",
        plan: monitor,
    },
    Command {
        name: "lolwut",
        arity: -1,
        flags: READONLY | FAST,
        keys: Keys::NONE,
        group: Group::Server,
        since: "5.0.0",
        complexity: "O(1)",
        summary: "Displays computer art and the Redis version",
        syntax: "[VERSION version]",
        plan: lolwut,
    },
    Command {
        name: "memory",
        arity: -2,
        flags: CONTAINER,
        keys: Keys::NONE,
        group: Group::Server,
        since: "4.0.0",
        complexity: "Depends on subcommand.",
        summary: "A container for memory diagnostics commands.",
        syntax: "",
        plan: container,
    },
    Command {
        name: "memory|help",
        arity: 2,
        flags: LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "4.0.0",
        complexity: "O(1)",
        summary: "Returns helpful text about the different subcommands.",
        syntax: "",
        plan: help,
    },
    Command {
        name: "memory|doctor",
        arity: 2,
        flags: 0,
        keys: Keys::NONE,
        group: Group::Server,
        since: "4.0.0",
        complexity: "O(1)",
        summary: "Outputs a memory problems report.",
        syntax: "",
        plan: memory_doctor,
    },
    Command {
        name: "memory|stats",
        arity: 2,
        flags: 0,
        keys: Keys::NONE,
        group: Group::Server,
        since: "4.0.0",
        complexity: "O(1)",
        summary: "Returns details about memory usage.",
        syntax: "",
        plan: memory_stats,
    },
    Command {
        name: "memory|usage",
        arity: -3,
        flags: READONLY,
        keys: Keys::SECOND.with("RO"),
        group: Group::Server,
        since: "4.0.0",
        complexity: "O(N) where N is the number of samples.",
        summary: "Estimates the bytes on disk of a key and its value.",
        syntax: "key [SAMPLES count]",
        plan: memory_usage,
    },
    Command {
        name: "debug",
        arity: -2,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | CONTAINER,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "Depends on subcommand.",
        summary: "A container for debugging commands.",
        syntax: "",
        plan: container,
    },
    Command {
        name: "debug|help",
        arity: 2,
        flags: LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Returns helpful text about the different subcommands.",
        syntax: "",
        plan: help,
    },
    Command {
        name: "debug|error",
        arity: 3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Replies with an error of this text, for the tests of client libraries.",
        syntax: "message",
        plan: debug_error,
    },
    Command {
        name: "debug|object",
        arity: 3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | LOOKUP,
        keys: Keys::SECOND.with("RO"),
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Shows low level information about a key and its value.",
        syntax: "key",
        plan: debug_object,
    },
    Command {
        name: "debug|protocol",
        arity: 3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Replies with a value of a type, for the tests of client libraries.",
        syntax: "<string | integer | double | null | array | set | map | push | verbatim | true | \
                 false>",
        plan: debug_protocol,
    },
    Command {
        name: "debug|set-active-expire",
        arity: 3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Stops or resumes the removal of expired keys and fields in the background; they \
                  are invisible either way.",
        syntax: "<0 | 1>",
        plan: debug_set_active_expire,
    },
    Command {
        name: "debug|sleep",
        arity: 3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Lets the connection wait; the others go on.",
        syntax: "seconds",
        plan: debug_sleep,
    },
];

fn dbsize(_: Args) -> PlanResult {
    Plan::all_partitions(PartitionOp::Rows, replies::sum)
}

fn flushdb(args: Args) -> PlanResult {
    check_flush(args)?;
    Plan::all_partitions(PartitionOp::Clear, replies::all_ok)
}

fn flushall(args: Args) -> PlanResult {
    check_flush(args)?;
    Plan::local(ServerCommand::FlushAll)
}

/// ASYNC and SYNC do the same: rows are gone immediately and their space is reclaimed
/// later.
fn check_flush(mut args: Args) -> Result<(), Reply> {
    if !args.flag("ASYNC") {
        args.flag("SYNC");
    }
    args.end()
}

fn info(mut args: Args) -> PlanResult {
    Plan::local(ServerCommand::Info { sections: args.rest() })
}

fn time(_: Args) -> PlanResult {
    Plan::local(ServerCommand::Time)
}

fn shutdown(mut args: Args) -> PlanResult {
    let (mut no_save, mut do_save, mut now, mut force, mut abort) =
        (false, false, false, false, false);
    while args.left() > 0 {
        match () {
            () if args.flag("NOSAVE") => no_save = true,
            () if args.flag("SAVE") => do_save = true,
            () if args.flag("NOW") => now = true,
            () if args.flag("FORCE") => force = true,
            () if args.flag("ABORT") => abort = true,
            () => return Err(Args::syntax()),
        }
    }
    if (no_save && do_save) || (abort && (no_save || do_save || now || force)) {
        return Err(Args::syntax());
    }
    let save = (no_save || do_save).then_some(do_save);
    Plan::local(ServerCommand::Shutdown { save, now, force, abort })
}

fn monitor(_: Args) -> PlanResult {
    Plan::local(ServerCommand::Monitor)
}

fn lolwut(mut args: Args) -> PlanResult {
    let version = if args.left() >= 2 && args.flag("VERSION") { Some(args.int()?) } else { None };
    args.end()?;
    Plan::local(ServerCommand::Lolwut { version })
}

fn memory_doctor(_: Args) -> PlanResult {
    Plan::local(MemoryCommand::Doctor)
}

fn memory_stats(_: Args) -> PlanResult {
    Plan::local(MemoryCommand::Stats)
}

fn memory_usage(mut args: Args) -> PlanResult {
    let (key, mut samples) = (args.key(), SAMPLES);
    while args.left() >= 2 && args.flag("SAMPLES") {
        samples = u64::try_from(args.int()?).map_err(|_| Args::syntax())?;
    }
    args.end()?;
    Plan::one(RowOp::Size { key, samples }, |answer, reply| match answer {
        Answer::Int(bytes) => reply.int(bytes),
        Answer::Nil => reply.nil(),
        _ => replies::no_answer(reply),
    })
}

fn debug_sleep(mut args: Args) -> PlanResult {
    let seconds = args.float()?;
    if !(0.0..=f64::from(u32::MAX)).contains(&seconds) {
        return Err(errors::out_of_range());
    }
    Plan::local(DebugCommand::Sleep { seconds })
}

fn debug_set_active_expire(mut args: Args) -> PlanResult {
    let on = match args.int()? {
        0 => false,
        1 => true,
        _ => return Err(errors::out_of_bounds(0, 1)),
    };
    Plan::local(DebugCommand::SetActiveExpire { on })
}

fn debug_object(mut args: Args) -> PlanResult {
    let key = args.key();
    let ops = smallvec![
        Op::Row(RowOp::Inspect { key: key.clone() }),
        Op::Row(RowOp::Size { key: key.clone(), samples: SAMPLES }),
        Op::Row(RowOp::Encoding { key })
    ];
    Ok(Plan::rows(
        ops,
        ReplyBuilder::All(|answers, reply| match answers.as_slice() {
            [Answer::Row(Some(row)), Answer::Int(bytes), Answer::Bytes(encoding)] => {
                reply.status(&debug_line(row, *bytes, &String::from_utf8_lossy(encoding)));
            }
            [Answer::Row(None), ..] | [_, Answer::Nil, _] | [.., Answer::Nil] => {
                reply.error("ERR no such key");
            }
            _ => replies::no_answer(reply),
        }),
    ))
}

/// The line of DEBUG OBJECT. Its address is 0, as a row has none.
fn debug_line(row: &RowInfo, bytes: i64, encoding: &str) -> String {
    let idle = row.now_ms.saturating_sub(row.written_at_ms) / 1000;
    // Redis's LRU clock: seconds in 24 bits.
    let lru = (row.written_at_ms / 1000) & 0x00ff_ffff;
    format!(
        "Value at:0x0 refcount:1 encoding:{encoding} serializedlength:{bytes} lru:{lru} \
         lru_seconds_idle:{idle}"
    )
}

#[allow(clippy::approx_constant, reason = "Redis's number")]
fn debug_protocol(mut args: Args) -> PlanResult {
    let kind = args.next_arg().to_ascii_lowercase();
    let numbers = || (0..3).map(Reply::Int).collect();
    Ok(Plan::Reply(match kind.as_slice() {
        b"string" => Reply::Bulk("Hello World".into()),
        b"integer" => Reply::Int(12345),
        b"double" => Reply::Double(3.141),
        b"null" => Reply::Nil,
        b"array" => Reply::Array(numbers()),
        b"set" => Reply::Set(numbers()),
        b"map" => Reply::Map(
            (0..3).map(|number| (Reply::Int(number), Reply::Bool(number == 1))).collect(),
        ),
        b"push" => Reply::Push(vec![Reply::Bulk("server-cpu-usage".into()), Reply::Int(42)]),
        b"verbatim" => Reply::Text("This is a verbatim\nstring".into()),
        b"true" => Reply::Bool(true),
        b"false" => Reply::Bool(false),
        _ => {
            return Err(Reply::error(
                "ERR Wrong protocol type name. Please use one of the following: \
                 string|integer|double|null|array|set|map|push|verbatim|true|false",
            ));
        }
    }))
}

fn debug_error(mut args: Args) -> PlanResult {
    Ok(Plan::Reply(Reply::Error(errors::one_line(&args.next_arg()).into())))
}
