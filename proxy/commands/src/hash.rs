//! Commands on hashes. Those on the expiry of single fields are in `hash_expiry`, those
//! on ranges of fields in `native`.

use bytes::Bytes;
use row::number::LongDouble;
use row::op::{Answer, Op, Range, Ttl, WriteCondition};
use smallvec::{SmallVec, smallvec};

use crate::args::integer;
use crate::table::flags::{DENYOOM, FAST, READONLY, WRITE};
use crate::table::{Command, Keys};
use crate::{Args, Plan, Planned, Reply, answers, words};

const GROUP: &str = "hash";

/// How many cells HSCAN looks at when not told.
const SCAN_COUNT: u64 = 10;

/// Commands on hashes.
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
        flags: READONLY | FAST,
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
        flags: READONLY | FAST,
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
        flags: READONLY,
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
        flags: READONLY | FAST,
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
        flags: READONLY,
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
        flags: READONLY,
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
        flags: READONLY | FAST,
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
        flags: READONLY | FAST,
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
        syntax: "key field increment",
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
        syntax: "key field increment",
        plan: hincrbyfloat,
    },
    Command {
        name: "hrandfield",
        arity: -2,
        flags: READONLY,
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
        flags: READONLY,
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

fn hset(mut args: Args) -> Planned {
    let key = args.word();
    Plan::one(
        Op::HashPut { key, pairs: args.pairs()?, only: WriteCondition::Always, ttl: Ttl::Default },
        answers::int,
    )
}

fn hsetnx(mut args: Args) -> Planned {
    let (key, pairs) = (args.word(), vec![(args.word(), args.word())]);
    Plan::one(
        Op::HashPut { key, pairs, only: WriteCondition::IfAbsent, ttl: Ttl::Default },
        put_or_zero,
    )
}

fn hmset(mut args: Args) -> Planned {
    let key = args.word();
    Plan::one(
        Op::HashPut { key, pairs: args.pairs()?, only: WriteCondition::Always, ttl: Ttl::Default },
        answers::ok,
    )
}

fn hget(mut args: Args) -> Planned {
    Plan::one(one_field(&mut args), answers::value)
}

fn hmget(mut args: Args) -> Planned {
    let key = args.word();
    let fields: SmallVec<[Bytes; 1]> = args.rest();
    let count = fields.len();
    Plan::with(Op::HashGet { key, fields }, move |answer| answers::values_or_nils(answer, count))
}

fn hgetall(mut args: Args) -> Planned {
    Plan::one(all_cells(&mut args, true), |answer| {
        answers::cells(answer, |cells| Reply::Map(answers::pairs(cells)))
    })
}

fn hdel(mut args: Args) -> Planned {
    let key = args.word();
    Plan::one(Op::HashDelete { key, fields: args.rest() }, answers::int)
}

fn hlen(mut args: Args) -> Planned {
    Plan::one(Op::HashLen { key: args.word() }, answers::int)
}

fn hkeys(mut args: Args) -> Planned {
    Plan::one(all_cells(&mut args, false), answers::sortkeys)
}

fn hvals(mut args: Args) -> Planned {
    let word = |cells: Vec<(Bytes, Bytes)>| {
        Reply::Array(cells.into_iter().map(|(_, value)| Reply::Bulk(value)).collect())
    };
    Plan::with(all_cells(&mut args, true), move |answer| answers::cells(answer, word))
}

fn hexists(mut args: Args) -> Planned {
    Plan::one(one_field(&mut args), |answer| {
        value_as_int(answer, |value| i64::from(value.is_some()))
    })
}

fn hstrlen(mut args: Args) -> Planned {
    Plan::one(one_field(&mut args), |answer| {
        value_as_int(answer, |value| value.map_or(0, |value| value.len() as i64))
    })
}

fn hincrby(mut args: Args) -> Planned {
    let (key, field) = (args.word(), args.word());
    Plan::one(Op::HashIncr { key, field, by: args.int()? }, answers::int)
}

fn hincrbyfloat(mut args: Args) -> Planned {
    let (key, field, by) = (args.word(), args.word(), args.word());
    let number = LongDouble::parse(&by).ok_or_else(words::not_float)?;
    if !number.is_finite() {
        return Err(Reply::error("ERR value is NaN or Infinity"));
    }
    Plan::one(Op::HashIncrFloat { key, field, by }, answers::bulk)
}

fn hrandfield(mut args: Args) -> Planned {
    let (key, seed) = (args.word(), args.seed());
    if args.left() == 0 {
        let first = |cells: Vec<(Bytes, Bytes)>| {
            cells.into_iter().next().map_or(Reply::Nil, |(field, _)| Reply::Bulk(field))
        };
        return Plan::with(
            Op::HashRandom { key, count: 1, seed, want_values: false },
            move |answer| answers::cells(answer, first),
        );
    }
    let count = args.int()?;
    if count == i64::MIN {
        return Err(words::out_of_bounds(-i64::MAX, i64::MAX));
    }
    let want_values = args.flag("WITHVALUES");
    args.end()?;
    if want_values && count.unsigned_abs() > i64::MAX as u64 / 2 {
        return Err(words::out_of_range());
    }
    let op = Op::HashRandom { key, count, seed, want_values };
    match want_values {
        true => Plan::one(op, |answer| {
            answers::cells(answer, |cells| Reply::Pairs(answers::pairs(cells)))
        }),
        false => Plan::one(op, answers::sortkeys),
    }
}

fn hscan(mut args: Args) -> Planned {
    let (key, cursor) = (args.word(), args.cursor()?);
    let (mut count, mut glob, mut want_values) = (SCAN_COUNT, None, true);
    while args.left() > 0 {
        if let Some(number) = args.option("COUNT") {
            let number = integer(&number).ok_or_else(words::not_integer)?;
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
    Plan::with(Op::HashScan { key, cursor, count, glob, want_values }, move |answer| {
        page(answer, want_values)
    })
}

/// The value of one field.
fn one_field(args: &mut Args) -> Op {
    Op::HashGet { key: args.word(), fields: smallvec![args.word()] }
}

/// Every cell of a hash.
fn all_cells(args: &mut Args, want_values: bool) -> Op {
    Op::HashRange { key: args.word(), range: Range::all(), want_values }
}

/// HSETNX's reply; HSETEX's too.
pub(crate) fn put_or_zero(answer: Answer) -> Reply {
    match answer {
        Answer::Int(_) => Reply::Int(1),
        Answer::Nil => Reply::Int(0),
        _ => words::no_answer(),
    }
}

/// What a number says about one value.
fn value_as_int(answer: Answer, number: fn(Option<&Bytes>) -> i64) -> Reply {
    match answer {
        Answer::Values(values) if values.len() == 1 => Reply::Int(number(values[0].as_ref())),
        Answer::Nil => Reply::Int(number(None)),
        _ => words::no_answer(),
    }
}

/// A page of HSCAN: the cursor as a bulk string and the cells, flat.
fn page(answer: Answer, want_values: bool) -> Reply {
    let (cells, next) = match answer {
        Answer::CellsPage { cells, next } => (cells, next),
        Answer::Nil => (Vec::new(), 0),
        _ => return words::no_answer(),
    };
    let cursor = Reply::Bulk(Bytes::copy_from_slice(itoa::Buffer::new().format(next).as_bytes()));
    let flat = cells.into_iter().flat_map(|(field, value)| {
        let mut cell: SmallVec<[Reply; 2]> = smallvec![Reply::Bulk(field)];
        cell.extend(want_values.then_some(Reply::Bulk(value)));
        cell
    });
    Reply::Array(vec![cursor, Reply::Array(flat.collect())])
}
