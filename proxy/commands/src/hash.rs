//! Hash commands. Field expiry is in `hash_expiry`, ranges of fields are in `pegasus`.

use bytes::Bytes;
use row::HashOp;
use row::number::LongDouble;
use row::op::{Answer, Op, Range, Ttl, WriteCondition};
use smallvec::{SmallVec, smallvec};

use crate::args::integer;
use crate::table::flags::{DENYOOM, FAST, LOOKUP, READONLY, WRITE};
use crate::table::{Command, Group, Keys};
use crate::{Args, Plan, PlanResult, Reply, ReplyWriter, errors, replies};

const GROUP: Group = Group::Hash;

/// Default COUNT of HSCAN.
const SCAN_COUNT: u64 = 10;

/// Hash commands.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "hset",
        arity: -4,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE.with("RW update"),
        group: GROUP,
        since: "2.0.0",
        complexity: "O(1) for each field/value pair added, so O(N) to add N field/value pairs \
                     when the command is called with multiple field/value pairs.",
        summary: "Creates or modifies the value of a field in a hash.",
        syntax: "key field value [field value ...]",
        plan: hset,
    },
    Command {
        name: "hsetnx",
        arity: 4,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE.with("RW insert"),
        group: GROUP,
        since: "2.0.0",
        complexity: "O(1)",
        summary: "Sets the value of a field in a hash only when the field doesn't exist.",
        syntax: "key field value",
        plan: hsetnx,
    },
    Command {
        name: "hmset",
        arity: -4,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE.with("RW update"),
        group: GROUP,
        since: "2.0.0",
        complexity: "O(N) where N is the number of fields being set.",
        summary: "Sets the values of multiple fields.",
        syntax: "key field value [field value ...]",
        plan: hmset,
    },
    Command {
        name: "hget",
        arity: 3,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "2.0.0",
        complexity: "O(1)",
        summary: "Returns the value of a field in a hash.",
        syntax: "key field",
        plan: hget,
    },
    Command {
        name: "hmget",
        arity: -3,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "2.0.0",
        complexity: "O(N) where N is the number of fields being requested.",
        summary: "Returns the values of all fields in a hash.",
        syntax: "key field [field ...]",
        plan: hmget,
    },
    Command {
        name: "hgetall",
        arity: 2,
        flags: READONLY | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "2.0.0",
        complexity: "O(N) where N is the size of the hash.",
        summary: "Returns all fields and values in a hash.",
        syntax: "key",
        plan: hgetall,
    },
    Command {
        name: "hdel",
        arity: -3,
        flags: WRITE | FAST,
        keys: Keys::ONE.with("RW delete"),
        group: GROUP,
        since: "2.0.0",
        complexity: "O(N) where N is the number of fields to be removed.",
        summary: "Deletes one or more fields and their values from a hash. Deletes the hash if no \
                  fields remain.",
        syntax: "key field [field ...]",
        plan: hdel,
    },
    Command {
        name: "hlen",
        arity: 2,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE.with("RO"),
        group: GROUP,
        since: "2.0.0",
        complexity: "O(1), and O(N) where N is the number of expired fields that were not yet \
                     removed.",
        summary: "Returns the number of fields in a hash.",
        syntax: "key",
        plan: hlen,
    },
    Command {
        name: "hkeys",
        arity: 2,
        flags: READONLY | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "2.0.0",
        complexity: "O(N) where N is the size of the hash.",
        summary: "Returns all fields in a hash.",
        syntax: "key",
        plan: hkeys,
    },
    Command {
        name: "hvals",
        arity: 2,
        flags: READONLY | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "2.0.0",
        complexity: "O(N) where N is the size of the hash.",
        summary: "Returns all values in a hash.",
        syntax: "key",
        plan: hvals,
    },
    Command {
        name: "hexists",
        arity: 3,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE.with("RO"),
        group: GROUP,
        since: "2.0.0",
        complexity: "O(1)",
        summary: "Determines whether a field exists in a hash.",
        syntax: "key field",
        plan: hexists,
    },
    Command {
        name: "hstrlen",
        arity: 3,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE.with("RO"),
        group: GROUP,
        since: "3.2.0",
        complexity: "O(1)",
        summary: "Returns the length of the value of a field.",
        syntax: "key field",
        plan: hstrlen,
    },
    Command {
        name: "hincrby",
        arity: 4,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE,
        group: GROUP,
        since: "2.0.0",
        complexity: "O(1)",
        summary: "Increments the integer value of a field in a hash by a number. Uses 0 as \
                  initial value if the field doesn't exist.",
        syntax: "key field increment(integer)",
        plan: hincrby,
    },
    Command {
        name: "hincrbyfloat",
        arity: 4,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE,
        group: GROUP,
        since: "2.6.0",
        complexity: "O(1)",
        summary: "Increments the floating point value of a field by a number. Uses 0 as initial \
                  value if the field doesn't exist.",
        syntax: "key field increment(double)",
        plan: hincrbyfloat,
    },
    Command {
        name: "hrandfield",
        arity: -2,
        flags: READONLY | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "6.2.0",
        complexity: "O(N) where N is the size of the hash.",
        summary: "Returns one or more random fields from a hash.",
        syntax: "key [count [WITHVALUES]]",
        plan: hrandfield,
    },
    Command {
        name: "hscan",
        arity: -3,
        flags: READONLY | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "2.8.0",
        complexity: "O(1) for every call. O(N) for a complete iteration, including enough command \
                     calls for the cursor to return back to 0. N is the number of elements inside \
                     the collection.",
        summary: "Iterates over fields and values of a hash.",
        syntax: "key cursor [MATCH pattern] [COUNT count] [NOVALUES]",
        plan: hscan,
    },
];

fn hset(mut args: Args) -> PlanResult {
    let key = args.key();
    Plan::one(
        HashOp::Put { key, pairs: args.pairs()?, only: WriteCondition::Always, ttl: Ttl::Default },
        replies::int,
    )
}

fn hsetnx(mut args: Args) -> PlanResult {
    let (key, pairs) = (args.key(), vec![(args.next_arg(), args.next_arg())]);
    Plan::one(
        HashOp::Put { key, pairs, only: WriteCondition::IfAbsent, ttl: Ttl::Default },
        put_or_zero,
    )
}

fn hmset(mut args: Args) -> PlanResult {
    let key = args.key();
    Plan::one(
        HashOp::Put { key, pairs: args.pairs()?, only: WriteCondition::Always, ttl: Ttl::Default },
        replies::ok,
    )
}

fn hget(mut args: Args) -> PlanResult {
    Plan::one(one_field(&mut args), replies::value)
}

fn hmget(mut args: Args) -> PlanResult {
    let key = args.key();
    let fields: SmallVec<[Bytes; 1]> = args.rest();
    let count = fields.len();
    Plan::with(HashOp::Get { key, fields }, move |answer, reply| {
        replies::values_or_nils(answer, count, reply)
    })
}

fn hgetall(mut args: Args) -> PlanResult {
    Plan::one(all_cells(&mut args, true), |answer, reply| {
        replies::cells(answer, reply, |cells, reply| {
            reply.map(cells.len());
            for (field, value) in cells {
                reply.bulk(field);
                reply.bulk(value);
            }
        })
    })
}

fn hdel(mut args: Args) -> PlanResult {
    let key = args.key();
    Plan::one(HashOp::Delete { key, fields: args.rest() }, replies::int)
}

fn hlen(mut args: Args) -> PlanResult {
    Plan::one(HashOp::Len { key: args.key() }, replies::int)
}

fn hkeys(mut args: Args) -> PlanResult {
    Plan::one(all_cells(&mut args, false), replies::sortkeys)
}

fn hvals(mut args: Args) -> PlanResult {
    Plan::one(all_cells(&mut args, true), |answer, reply| {
        replies::cells(answer, reply, |cells, reply| {
            replies::bulks(cells.iter().map(|(_, value)| value), reply)
        })
    })
}

fn hexists(mut args: Args) -> PlanResult {
    Plan::one(one_field(&mut args), |answer, reply| {
        value_as_int(answer, |value| i64::from(value.is_some()), reply)
    })
}

fn hstrlen(mut args: Args) -> PlanResult {
    Plan::one(one_field(&mut args), |answer, reply| {
        value_as_int(answer, |value| value.map_or(0, |value| value.len() as i64), reply)
    })
}

fn hincrby(mut args: Args) -> PlanResult {
    let (key, field) = (args.key(), args.next_arg());
    Plan::one(HashOp::Incr { key, field, by: args.int()? }, replies::int)
}

fn hincrbyfloat(mut args: Args) -> PlanResult {
    let (key, field, by) = (args.key(), args.next_arg(), args.next_arg());
    let number = LongDouble::parse(&by).ok_or_else(errors::not_float)?;
    if !number.is_finite() {
        return Err(Reply::error("ERR value is NaN or Infinity"));
    }
    Plan::one(HashOp::IncrFloat { key, field, by }, replies::bulk)
}

fn hrandfield(mut args: Args) -> PlanResult {
    let (key, seed) = (args.key(), args.seed());
    if args.left() == 0 {
        return Plan::one(
            HashOp::Random { key, count: 1, seed, want_values: false },
            |answer, reply| {
                replies::cells(answer, reply, |cells, reply| {
                    replies::optional(cells.first().map(|(field, _)| field), reply)
                })
            },
        );
    }
    let count = args.int()?;
    if count == i64::MIN {
        return Err(errors::out_of_bounds(-i64::MAX, i64::MAX));
    }
    let want_values = args.flag("WITHVALUES");
    args.end()?;
    if want_values && count.unsigned_abs() > i64::MAX as u64 / 2 {
        return Err(errors::out_of_range());
    }
    let op = Op::Hash(HashOp::Random { key, count, seed, want_values });
    match want_values {
        true => Plan::one(op, |answer, reply| replies::cells(answer, reply, replies::pairs)),
        false => Plan::one(op, replies::sortkeys),
    }
}

fn hscan(mut args: Args) -> PlanResult {
    let (key, cursor) = (args.key(), args.cursor()?);
    let (mut count, mut glob, mut want_values) = (SCAN_COUNT, None, true);
    while args.left() > 0 {
        if let Some(number) = args.option("COUNT") {
            let number = integer(&number).ok_or_else(errors::not_integer)?;
            count =
                u64::try_from(number).ok().filter(|&count| count > 0).ok_or_else(Args::syntax)?;
        } else if let Some(pattern) = args.option("MATCH") {
            glob = Some(pattern);
        } else if args.flag("NOVALUES") {
            want_values = false;
        } else {
            return Err(Args::syntax());
        }
    }
    Plan::with(HashOp::Scan { key, cursor, count, glob, want_values }, move |answer, reply| {
        page(answer, want_values, reply)
    })
}

/// The value of one field.
fn one_field(args: &mut Args) -> Op {
    Op::Hash(HashOp::Get { key: args.key(), fields: smallvec![args.next_arg()] })
}

/// Every cell of a hash.
fn all_cells(args: &mut Args, want_values: bool) -> Op {
    Op::Hash(HashOp::Range { key: args.key(), range: Range::all(), want_values })
}

/// Reply of HSETNX and HSETEX.
pub(crate) fn put_or_zero(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Int(_) => reply.int(1),
        Answer::Nil => reply.int(0),
        _ => replies::no_answer(reply),
    }
}

/// A number derived from one value.
fn value_as_int(answer: Answer, number: fn(Option<&Bytes>) -> i64, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Values(values) if values.len() == 1 => reply.int(number(values[0].as_ref())),
        Answer::Nil => reply.int(number(None)),
        _ => replies::no_answer(reply),
    }
}

/// A page of HSCAN: the cursor as a bulk string and the cells as a flat array.
fn page(answer: Answer, want_values: bool, reply: &mut dyn ReplyWriter) {
    let (cells, next) = match answer {
        Answer::CellsPage { cells, next } => (cells, next),
        Answer::Nil => (Vec::new(), 0),
        _ => return replies::no_answer(reply),
    };
    reply.array(2);
    reply.bulk(itoa::Buffer::new().format(next).as_bytes());
    reply.array(if want_values { 2 * cells.len() } else { cells.len() });
    for (field, value) in &cells {
        reply.bulk(field);
        if want_values {
            reply.bulk(value);
        }
    }
}
