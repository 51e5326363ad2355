//! Generic commands: on keys of any kind.
//!
//! Those that take several rounds are in [`keyspace`] and [`moves`].

use bytes::Bytes;
use row::RowOp;
use row::op::{Answer, Deadline, RowInfo, RowKind, Ttl};

use crate::args::integer;
use crate::table::flags::{
    BLOCKING, CONNECTION, CONTAINER, DANGEROUS, DB_NOT_IN_PARTITION, DENYOOM, FAST, KEYSPACE,
    LOADING, LONG_PLAN, LOOKUP, NOT_IN_PARTITION, READONLY, STALE, WRITE,
};
use crate::table::{Command, Group, Keys, container, help};
use crate::{Args, Plan, PlanResult, Reply, ReplyWriter, errors, rdb, replies};

mod keyspace;
mod moves;

/// Default COUNT of SCAN.
const SCAN_COUNT: i64 = 10;

/// Commands that wait for the copies of what the connection has written.
#[allow(missing_docs, reason = "variants are the commands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum WaitCommand {
    /// WAIT
    Replicas { replicas: i64, timeout_ms: u64 },
    /// WAITAOF
    Disks { local: i64, replicas: i64, timeout_ms: u64 },
}

/// Generic commands.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "del",
        arity: -2,
        flags: WRITE | KEYSPACE,
        keys: Keys::ALL.with("RM delete"),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(N) where N is the number of keys that will be removed, whatever their size.",
        summary: "Deletes one or more keys.",
        syntax: "key [key ...]",
        plan: del,
    },
    Command {
        name: "unlink",
        arity: -2,
        flags: WRITE | FAST | KEYSPACE,
        keys: Keys::ALL.with("RM delete"),
        group: Group::Generic,
        since: "4.0.0",
        complexity: "O(N) where N is the number of keys that will be removed, whatever their size.",
        summary: "Asynchronously deletes one or more keys.",
        syntax: "key [key ...]",
        plan: unlink,
    },
    Command {
        name: "exists",
        arity: -2,
        flags: READONLY | FAST | KEYSPACE | LOOKUP,
        keys: Keys::ALL.with("RO"),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(N) where N is the number of keys to check.",
        summary: "Determines whether one or more keys exist.",
        syntax: "key [key ...]",
        plan: exists,
    },
    Command {
        name: "touch",
        arity: -2,
        flags: READONLY | FAST | KEYSPACE | LOOKUP,
        keys: Keys::ALL.with("RO"),
        group: Group::Generic,
        since: "3.2.1",
        complexity: "O(N) where N is the number of keys that will be touched.",
        summary: "Returns the number of existing keys out of those specified after updating the \
                  time they were last accessed.",
        syntax: "key [key ...]",
        plan: touch,
    },
    Command {
        name: "type",
        arity: 2,
        flags: READONLY | FAST | KEYSPACE | LOOKUP,
        keys: Keys::ONE.with("RO"),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Determines the type of value stored at a key.",
        syntax: "key",
        plan: kind,
    },
    Command {
        name: "keys",
        arity: 2,
        flags: READONLY | KEYSPACE | DANGEROUS,
        keys: Keys::NONE,
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(N) with N being the number of keys in the database, under the assumption \
                     that the key names in the database and the given pattern have limited length.",
        summary: "Returns all key names that match a pattern.",
        syntax: "pattern",
        plan: keys,
    },
    Command {
        name: "scan",
        arity: -2,
        flags: READONLY | KEYSPACE,
        keys: Keys::NONE,
        group: Group::Generic,
        since: "2.8.0",
        complexity: "O(1) for every call. O(N) for a complete iteration, including enough command \
                     calls for the cursor to return back to 0. N is the number of elements inside \
                     the collection.",
        summary: "Iterates over the key names in the database.",
        syntax: "cursor [MATCH pattern] [COUNT count] [TYPE type]",
        plan: scan,
    },
    Command {
        name: "randomkey",
        arity: 1,
        flags: READONLY | KEYSPACE,
        keys: Keys::NONE,
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Returns a random key name from the database.",
        syntax: "",
        plan: randomkey,
    },
    Command {
        name: "rename",
        arity: 3,
        flags: WRITE | KEYSPACE,
        keys: Keys::ONE.with("RW access delete").and(Keys::SECOND.with("OW update")),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1) for strings, O(N) for hashes where N is the number of fields.",
        summary: "Renames a key and overwrites the destination.",
        syntax: "key newkey",
        plan: rename,
    },
    Command {
        name: "renamenx",
        arity: 3,
        flags: WRITE | FAST | KEYSPACE,
        keys: Keys::ONE.with("RW access delete").and(Keys::SECOND.with("OW insert")),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1) for strings, O(N) for hashes where N is the number of fields.",
        summary: "Renames a key only when the target key name doesn't exist.",
        syntax: "key newkey",
        plan: renamenx,
    },
    Command {
        name: "copy",
        arity: -3,
        flags: WRITE | DENYOOM | KEYSPACE | DB_NOT_IN_PARTITION | LOOKUP,
        keys: Keys::ONE.with("RO access").and(Keys::SECOND.with("OW update")),
        group: Group::Generic,
        since: "6.2.0",
        complexity: "O(N) worst case for collections, where N is the number of nested items. O(1) \
                     for string values.",
        summary: "Copies the value of a key to a new key.",
        syntax: "source destination [DB destination-db] [REPLACE]",
        plan: copy,
    },
    Command {
        name: "move",
        arity: 3,
        flags: WRITE | FAST | KEYSPACE | NOT_IN_PARTITION,
        keys: Keys::ONE,
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1) for strings, O(N) for hashes where N is the number of fields.",
        summary: "Moves a key to another database.",
        syntax: "key db",
        plan: move_to,
    },
    Command {
        name: "dump",
        arity: 2,
        flags: READONLY | KEYSPACE | LOOKUP,
        keys: Keys::ONE,
        group: Group::Generic,
        since: "2.6.0",
        complexity: "O(N) where N is the size of the value.",
        summary: "Returns a serialized representation of the value stored at a key.",
        syntax: "key",
        plan: dump,
    },
    Command {
        name: "restore",
        arity: -4,
        flags: WRITE | DENYOOM | KEYSPACE | DANGEROUS | LONG_PLAN,
        keys: Keys::ONE.with("OW update"),
        group: Group::Generic,
        since: "2.6.0",
        complexity: "O(N) where N is the size of the payload.",
        summary: "Creates a key from the serialized representation of a value.",
        syntax: "key ttl serialized-value [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ frequency]",
        plan: restore,
    },
    Command {
        name: "object",
        arity: -2,
        flags: CONTAINER,
        keys: Keys::NONE,
        group: Group::Generic,
        since: "2.2.3",
        complexity: "Depends on subcommand.",
        summary: "A container for object introspection commands.",
        syntax: "",
        plan: container,
    },
    Command {
        name: "object|help",
        arity: 2,
        flags: LOADING | STALE | KEYSPACE,
        keys: Keys::NONE,
        group: Group::Generic,
        since: "6.2.0",
        complexity: "O(1)",
        summary: "Returns helpful text about the different subcommands.",
        syntax: "",
        plan: help,
    },
    Command {
        name: "object|encoding",
        arity: 3,
        flags: READONLY | KEYSPACE | LOOKUP,
        keys: Keys::SECOND.with("RO"),
        group: Group::Generic,
        since: "2.2.3",
        complexity: "O(1)",
        summary: "Returns the internal encoding of a Redis object.",
        syntax: "key",
        plan: encoding,
    },
    Command {
        name: "object|freq",
        arity: 3,
        flags: READONLY | KEYSPACE | LOOKUP,
        keys: Keys::SECOND.with("RO"),
        group: Group::Generic,
        since: "4.0.0",
        complexity: "O(1)",
        summary: "Returns the logarithmic access frequency counter of a Redis object.",
        syntax: "key",
        plan: freq,
    },
    Command {
        name: "object|idletime",
        arity: 3,
        flags: READONLY | KEYSPACE | LOOKUP,
        keys: Keys::SECOND.with("RO"),
        group: Group::Generic,
        since: "2.2.3",
        complexity: "O(1)",
        summary: "Returns the time since the last write to a key.",
        syntax: "key",
        plan: idletime,
    },
    Command {
        name: "object|refcount",
        arity: 3,
        flags: READONLY | KEYSPACE | LOOKUP,
        keys: Keys::SECOND.with("RO"),
        group: Group::Generic,
        since: "2.2.3",
        complexity: "O(1)",
        summary: "Returns the reference count of a value of a key.",
        syntax: "key",
        plan: refcount,
    },
    Command {
        name: "wait",
        arity: 3,
        flags: BLOCKING | CONNECTION,
        keys: Keys::NONE,
        group: Group::Generic,
        since: "3.0.0",
        complexity: "O(1)",
        summary: "Blocks until the asynchronous replication of all preceding write commands sent \
                  by the connection is completed.",
        syntax: "numreplicas timeout(integer)",
        plan: wait,
    },
    Command {
        name: "waitaof",
        arity: 4,
        flags: BLOCKING | CONNECTION,
        keys: Keys::NONE,
        group: Group::Generic,
        since: "7.2.0",
        complexity: "O(1)",
        summary: "Blocks until all of the preceding write commands sent by the connection are \
                  written to the append-only file of the master and/or replicas.",
        syntax: "numlocal numreplicas timeout(integer)",
        plan: waitaof,
    },
];

fn del(mut args: Args) -> PlanResult {
    Plan::each(args.keys().into_iter().map(|key| RowOp::Delete { key }), replies::sum)
}

fn unlink(args: Args) -> PlanResult {
    del(args)
}

fn exists(mut args: Args) -> PlanResult {
    Plan::each(args.keys().into_iter().map(|key| RowOp::Inspect { key }), |answers, reply| {
        let rows = answers.iter().filter(|answer| matches!(answer, Answer::Row(Some(_))));
        reply.int(rows.count() as i64);
    })
}

fn touch(args: Args) -> PlanResult {
    exists(args)
}

fn kind(mut args: Args) -> PlanResult {
    Plan::one(RowOp::Inspect { key: args.key() }, |answer, reply| match answer {
        Answer::Row(row) => reply.status(row.map_or("none", |row| kind_name(row.kind))),
        _ => replies::no_answer(reply),
    })
}

/// The name of a kind, as in TYPE and in SCAN's TYPE option.
pub fn kind_name(kind: RowKind) -> &'static str {
    match kind {
        RowKind::String => "string",
        RowKind::Hash => "hash",
    }
}

fn keys(mut args: Args) -> PlanResult {
    Plan::rounds(keyspace::Keys::new(args.next_arg()))
}

fn scan(mut args: Args) -> PlanResult {
    let cursor = args.cursor()?;
    let (mut count, mut glob, mut of_kind) = (SCAN_COUNT, None, None);
    while args.left() > 0 {
        if let Some(number) = args.option("COUNT") {
            count = integer(&number).ok_or_else(errors::not_integer)?;
            if count < 1 {
                return Err(Args::syntax());
            }
        } else if let Some(pattern) = args.option("MATCH") {
            glob = (pattern.as_ref() != b"*").then_some(pattern);
        } else if let Some(name) = args.option("TYPE") {
            of_kind = Some(name);
        } else if args.flag("NOVALUES") {
            return Err(Reply::error("ERR NOVALUES option can only be used in HSCAN"));
        } else {
            return Err(Args::syntax());
        }
    }
    let named = |name: &Bytes| {
        [RowKind::String, RowKind::Hash]
            .into_iter()
            .find(|kind| name.eq_ignore_ascii_case(kind_name(*kind).as_bytes()))
    };
    let kind = of_kind.as_ref().and_then(named);
    if of_kind.is_some() && kind.is_none() {
        // No row can have this kind.
        return Ok(Plan::Reply(keyspace::scanned(0, Vec::new())));
    }
    Plan::rounds(keyspace::Scan::new(cursor, count.unsigned_abs(), glob, kind))
}

fn randomkey(args: Args) -> PlanResult {
    Plan::rounds(keyspace::RandomKey::new(args.seed()))
}

fn rename(mut args: Args) -> PlanResult {
    Plan::one(RowOp::Rename { from: args.key(), to: args.key(), only_new: false }, replies::ok)
}

fn renamenx(mut args: Args) -> PlanResult {
    Plan::one(RowOp::Rename { from: args.key(), to: args.key(), only_new: true }, replies::int)
}

fn copy(mut args: Args) -> PlanResult {
    let (from, to) = (args.next_arg(), args.next_arg());
    let (mut table, mut replace) = (None, false);
    while args.left() > 0 {
        if args.flag("REPLACE") {
            replace = true;
        } else if let Some(db) = args.option("DB") {
            check_db(&db)?;
            table = Some(db);
        } else {
            return Err(Args::syntax());
        }
    }
    match table {
        Some(table) => Plan::rounds(moves::CopyTo::new(from, to, table, replace)),
        None if from == to => Err(errors::same_object()),
        None => Plan::one(RowOp::Copy { from: from.into(), to: to.into(), replace }, replies::int),
    }
}

fn move_to(mut args: Args) -> PlanResult {
    let (key, table) = (args.key(), args.next_arg());
    check_db(&table)?;
    Plan::rounds(moves::Move::new(key.0, table))
}

/// Checks that a table is given by its number.
pub(crate) fn check_db(table: &Bytes) -> Result<(), Reply> {
    let number = integer(table).ok_or_else(errors::not_integer)?;
    if i32::try_from(number).is_ok() {
        Ok(())
    } else {
        Err(errors::out_of_bounds(i32::MIN.into(), i32::MAX.into()))
    }
}

fn dump(mut args: Args) -> PlanResult {
    Plan::one(RowOp::Dump { key: args.key() }, |answer, reply| match answer {
        Answer::RowContent { content, .. } => reply.bulk(&rdb::dump(&content)),
        Answer::Nil => reply.nil(),
        _ => replies::no_answer(reply),
    })
}

fn restore(mut args: Args) -> PlanResult {
    let (key, ttl, payload) = (args.key(), args.next_arg(), args.next_arg());
    let (mut replace, mut absolute) = (false, false);
    // Eviction hints are parsed and ignored, since nothing is evicted.
    let (mut idle, mut freq) = (false, false);
    while args.left() > 0 {
        if args.flag("REPLACE") {
            replace = true;
        } else if args.flag("ABSTTL") {
            absolute = true;
        } else if let Some(seconds) = if freq { None } else { args.option("IDLETIME") } {
            if integer(&seconds).ok_or_else(errors::not_integer)? < 0 {
                return Err(Reply::error("ERR Invalid IDLETIME value, must be >= 0"));
            }
            idle = true;
        } else if let Some(count) = if idle { None } else { args.option("FREQ") } {
            if !(0..=255).contains(&integer(&count).ok_or_else(errors::not_integer)?) {
                return Err(Reply::error("ERR Invalid FREQ value, must be >= 0 and <= 255"));
            }
            freq = true;
        } else {
            return Err(Args::syntax());
        }
    }
    let ttl = match integer(&ttl).ok_or_else(errors::not_integer)? {
        0 => Ttl::Never,
        ms if ms < 0 => return Err(Reply::error("ERR Invalid TTL value, must be >= 0")),
        ms if absolute => Ttl::Until(Deadline::At(ms)),
        ms => Ttl::Until(Deadline::In(ms)),
    };
    let content = rdb::parse(&payload).map_err(rdb::RdbError::reply)?;
    Plan::one(RowOp::Restore { key, content, ttl, replace }, replies::ok)
}

fn encoding(mut args: Args) -> PlanResult {
    Plan::one(RowOp::Encoding { key: args.key() }, replies::bulk)
}

fn freq(args: Args) -> PlanResult {
    about(args, |_, reply| {
        reply.error(
            "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please \
             note that when switching between policies at runtime LRU and LFU data will take some \
             time to adjust.",
        )
    })
}

fn idletime(args: Args) -> PlanResult {
    about(args, |row, reply| {
        let seconds = row.now_ms.saturating_sub(row.written_at_ms) / 1000;
        reply.int(i64::try_from(seconds).unwrap_or(i64::MAX));
    })
}

fn refcount(args: Args) -> PlanResult {
    about(args, |_, reply| reply.int(1))
}

/// Replies with a property of a row; nil for a missing row.
fn about(mut args: Args, write: fn(RowInfo, &mut dyn ReplyWriter)) -> PlanResult {
    Plan::with(RowOp::Inspect { key: args.key() }, move |answer, reply| match answer {
        Answer::Row(Some(row)) => write(row, reply),
        Answer::Row(None) => reply.nil(),
        _ => replies::no_answer(reply),
    })
}

fn wait(mut args: Args) -> PlanResult {
    let replicas = args.int()?;
    let timeout_ms = errors::timeout_ms(&args.next_arg())?;
    Plan::local(WaitCommand::Replicas { replicas, timeout_ms })
}

fn waitaof(mut args: Args) -> PlanResult {
    let local = args.int()?;
    if !(0..=1).contains(&local) {
        return Err(Reply::error("ERR value is out of range, value must between 0 and 1"));
    }
    let replicas = args.int()?;
    if replicas < 0 {
        return Err(Reply::error("ERR value is out of range, must be positive"));
    }
    let timeout_ms = errors::timeout_ms(&args.next_arg())?;
    Plan::local(WaitCommand::Disks { local, replicas, timeout_ms })
}
