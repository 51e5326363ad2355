//! Commands on strings.

use bytes::Bytes;
use row::StringOp;
use row::op::{Answer, Op, Refusal, Ttl, WriteCondition};
use smallvec::smallvec;

use crate::args::{ExpiryBase, ExpiryOptions, TimeUnit, integer};
use crate::table::flags::{DENYOOM, FAST, LOOKUP, READONLY, WRITE};
use crate::table::{Command, FoundKey, FoundKeys, Group, KeyFlags, Keys};
use crate::{Args, Plan, PlanResult, Reply, ReplyBuilder, ReplyWriter, RowPlan};
use crate::{errors, lcs, replies};

const GROUP: Group = Group::String;

/// Commands on strings.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "get",
        arity: 2,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Returns the string value of a key.",
        syntax: "key",
        plan: get,
    },
    Command {
        name: "set",
        arity: -3,
        flags: WRITE | DENYOOM,
        keys: Keys::ONE
            .with("RW access update variable_flags")
            .noting("RW and ACCESS due to the optional `GET` argument")
            .found_by(set_keys),
        group: GROUP,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Sets the string value of a key, ignoring its type. The key is created if it \
                  doesn't exist.",
        syntax: "key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT unix-time-seconds \
                 | PXAT unix-time-milliseconds | KEEPTTL]",
        plan: set,
    },
    Command {
        name: "setnx",
        arity: 3,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE.with("OW insert"),
        group: GROUP,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Set the string value of a key only when the key doesn't exist.",
        syntax: "key value",
        plan: setnx,
    },
    Command {
        name: "setex",
        arity: 4,
        flags: WRITE | DENYOOM,
        keys: Keys::ONE.with("OW update"),
        group: GROUP,
        since: "2.0.0",
        complexity: "O(1)",
        summary: "Sets the string value and expiration time of a key. Creates the key if it \
                  doesn't exist.",
        syntax: "key seconds value",
        plan: setex,
    },
    Command {
        name: "psetex",
        arity: 4,
        flags: WRITE | DENYOOM,
        keys: Keys::ONE.with("OW update"),
        group: GROUP,
        since: "2.6.0",
        complexity: "O(1)",
        summary: "Sets both string value and expiration time in milliseconds of a key. The key is \
                  created if it doesn't exist.",
        syntax: "key milliseconds value",
        plan: psetex,
    },
    Command {
        name: "getset",
        arity: 3,
        flags: WRITE | DENYOOM | FAST | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Returns the previous string value of a key after setting it to a new value.",
        syntax: "key value",
        plan: getset,
    },
    Command {
        name: "getdel",
        arity: 2,
        flags: WRITE | FAST | LOOKUP,
        keys: Keys::ONE.with("RW access delete"),
        group: GROUP,
        since: "6.2.0",
        complexity: "O(1)",
        summary: "Returns the string value of a key after deleting the key.",
        syntax: "key",
        plan: getdel,
    },
    Command {
        name: "getex",
        arity: -2,
        flags: WRITE | FAST | LOOKUP,
        keys: Keys::ONE.noting("RW and UPDATE because it changes the TTL"),
        group: GROUP,
        since: "6.2.0",
        complexity: "O(1)",
        summary: "Returns the string value of a key after setting its expiration time.",
        syntax: "key [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT \
                 unix-time-milliseconds | PERSIST]",
        plan: getex,
    },
    Command {
        name: "mget",
        arity: -2,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ALL,
        group: GROUP,
        since: "1.0.0",
        complexity: "O(N) where N is the number of keys to retrieve.",
        summary: "Atomically returns the string values of one or more keys of a partition; keys \
                  of several are read side by side.",
        syntax: "key [key ...]",
        plan: mget,
    },
    Command {
        name: "mset",
        arity: -3,
        flags: WRITE | DENYOOM,
        keys: Keys::PAIRS.with("OW update"),
        group: GROUP,
        since: "1.0.1",
        complexity: "O(N) where N is the number of keys to set.",
        summary: "Atomically creates or modifies the string values of one or more keys of a \
                  partition; keys of several are set side by side.",
        syntax: "key value [key value ...]",
        plan: mset,
    },
    Command {
        name: "msetnx",
        arity: -3,
        flags: WRITE | DENYOOM,
        keys: Keys::PAIRS.with("OW insert"),
        group: GROUP,
        since: "1.0.1",
        complexity: "O(N) where N is the number of keys to set.",
        summary: "Atomically modifies the string values of one or more keys only when all keys \
                  don't exist.",
        syntax: "key value [key value ...]",
        plan: msetnx,
    },
    Command {
        name: "append",
        arity: 3,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE.with("RW insert"),
        group: GROUP,
        since: "2.0.0",
        complexity: "O(N) where N is the length of the resulting string.",
        summary: "Appends a string to the value of a key. Creates the key if it doesn't exist.",
        syntax: "key value",
        plan: append,
    },
    Command {
        name: "strlen",
        arity: 2,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE.with("RO"),
        group: GROUP,
        since: "2.2.0",
        complexity: "O(1)",
        summary: "Returns the length of a string value.",
        syntax: "key",
        plan: strlen,
    },
    Command {
        name: "incr",
        arity: 2,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE,
        group: GROUP,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Increments the integer value of a key by one. Uses 0 as initial value if the \
                  key doesn't exist.",
        syntax: "key",
        plan: incr,
    },
    Command {
        name: "decr",
        arity: 2,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE,
        group: GROUP,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Decrements the integer value of a key by one. Uses 0 as initial value if the \
                  key doesn't exist.",
        syntax: "key",
        plan: decr,
    },
    Command {
        name: "incrby",
        arity: 3,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE,
        group: GROUP,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Increments the integer value of a key by a number. Uses 0 as initial value if \
                  the key doesn't exist.",
        syntax: "key increment(integer)",
        plan: incrby,
    },
    Command {
        name: "decrby",
        arity: 3,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE,
        group: GROUP,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Decrements a number from the integer value of a key. Uses 0 as initial value if \
                  the key doesn't exist.",
        syntax: "key decrement",
        plan: decrby,
    },
    Command {
        name: "incrbyfloat",
        arity: 3,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE,
        group: GROUP,
        since: "2.6.0",
        complexity: "O(1)",
        summary: "Increment the floating point value of a key by a number. Uses 0 as initial \
                  value if the key doesn't exist.",
        syntax: "key increment(double)",
        plan: incrbyfloat,
    },
    Command {
        name: "getrange",
        arity: 4,
        flags: READONLY | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "2.4.0",
        complexity: "O(N) where N is the length of the returned string.",
        summary: "Returns a substring of the string stored at a key.",
        syntax: "key start(integer) end(integer)",
        plan: getrange,
    },
    Command {
        name: "substr",
        arity: 4,
        flags: READONLY | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "1.0.0",
        complexity: "O(N) where N is the length of the returned string.",
        summary: "Returns a substring from a string value.",
        syntax: "key start(integer) end(integer)",
        plan: getrange,
    },
    Command {
        name: "setrange",
        arity: 4,
        flags: WRITE | DENYOOM,
        keys: Keys::ONE.with("RW update"),
        group: GROUP,
        since: "2.2.0",
        complexity: "O(N) where N is the length of the resulting string.",
        summary: "Overwrites a part of a string value with another by an offset. Creates the key \
                  if it doesn't exist.",
        syntax: "key offset value",
        plan: setrange,
    },
    Command {
        name: "lcs",
        arity: -3,
        flags: READONLY | LOOKUP,
        keys: Keys::TWO,
        group: GROUP,
        since: "7.0.0",
        complexity: "O(N*M) where N and M are the lengths of s1 and s2, respectively. Their \
                     product is limited to 16 Mi.",
        summary: "Finds the longest common substring.",
        syntax: "key1 key2 [LEN] [IDX] [MINMATCHLEN min-match-len] [WITHMATCHLEN]",
        plan: longest_common,
    },
];

fn get(mut args: Args) -> PlanResult {
    Plan::one(StringOp::Get { key: args.key() }, replies::bulk)
}

/// The key of SET, which is read as well if GET is among the options.
fn set_keys(argv: &[Bytes]) -> FoundKeys {
    let reads = argv.iter().skip(3).any(|option| option.eq_ignore_ascii_case(b"get"));
    let flags = if reads { KeyFlags::WRITE } else { const { KeyFlags::of("OW update") } };
    smallvec![FoundKey { at: 1, flags }]
}

fn set(mut args: Args) -> PlanResult {
    let (key, value) = (args.key(), args.next_arg());
    let (mut only, mut want_old, mut expiry) =
        (WriteCondition::Always, false, ExpiryOptions::default());
    while args.left() > 0 {
        match () {
            () if only != WriteCondition::IfPresent && args.flag("NX") => {
                only = WriteCondition::IfAbsent
            }
            () if only != WriteCondition::IfAbsent && args.flag("XX") => {
                only = WriteCondition::IfPresent
            }
            () if args.flag("GET") => want_old = true,
            () if expiry.take_until(&mut args) || expiry.take_keep(&mut args) => {}
            () => return Err(Args::syntax()),
        }
    }
    let ttl = expiry.ttl(Ttl::Default, &args)?;
    let mut plan = Plan::one(
        StringOp::Set { key, value, ttl, only, want_old },
        if want_old { old } else { set_or_nil },
    );
    if let Ok(Plan::Rows(rows)) = &mut plan {
        rows.is_lookup = want_old;
    }
    plan
}

fn setnx(mut args: Args) -> PlanResult {
    let (key, value) = (args.key(), args.next_arg());
    Plan::one(
        StringOp::Set {
            key,
            value,
            ttl: Ttl::Default,
            only: WriteCondition::IfAbsent,
            want_old: false,
        },
        set_or_zero,
    )
}

fn setex(args: Args) -> PlanResult {
    set_for(args, TimeUnit::Seconds)
}

fn psetex(args: Args) -> PlanResult {
    set_for(args, TimeUnit::Millis)
}

fn set_for(mut args: Args, unit: TimeUnit) -> PlanResult {
    let key = args.key();
    let ttl = Ttl::Until(args.deadline_ahead(unit, ExpiryBase::Now)?);
    Plan::one(
        StringOp::Set {
            key,
            value: args.next_arg(),
            ttl,
            only: WriteCondition::Always,
            want_old: false,
        },
        set_or_nil,
    )
}

fn getset(mut args: Args) -> PlanResult {
    let (key, value) = (args.key(), args.next_arg());
    Plan::one(
        StringOp::Set {
            key,
            value,
            ttl: Ttl::Default,
            only: WriteCondition::Always,
            want_old: true,
        },
        old,
    )
}

fn getdel(mut args: Args) -> PlanResult {
    Plan::one(StringOp::GetDelete { key: args.key() }, replies::bulk)
}

fn getex(mut args: Args) -> PlanResult {
    let key = args.key();
    let mut expiry = ExpiryOptions::default();
    while args.left() > 0 {
        if !(expiry.take_until(&mut args) || expiry.take_never(&mut args)) {
            return Err(Args::syntax());
        }
    }
    match expiry.ttl(Ttl::Keep, &args)? {
        Ttl::Keep => Plan::one(StringOp::Get { key }, replies::bulk),
        ttl => Plan::one(StringOp::GetExpire { key, ttl }, replies::bulk),
    }
}

fn mget(mut args: Args) -> PlanResult {
    let ops = args.keys().into_iter().map(|key| Op::String(StringOp::Get { key })).collect();
    Ok(Plan::rows(ops, ReplyBuilder::Outcomes(Box::new(strings_or_nils))))
}

fn mset(mut args: Args) -> PlanResult {
    let set = |(key, value)| {
        Op::String(StringOp::Set {
            key,
            value,
            ttl: Ttl::Default,
            only: WriteCondition::Always,
            want_old: false,
        })
    };
    Plan::each(args.pairs()?.into_iter().map(set), replies::all_ok)
}

fn msetnx(mut args: Args) -> PlanResult {
    let mut plan = Plan::one(StringOp::SetAllIfAbsent { pairs: args.pairs()? }, replies::int);
    if let Ok(Plan::Rows(rows)) = &mut plan {
        rows.same_partition = true;
    }
    plan
}

fn append(mut args: Args) -> PlanResult {
    let (key, value) = (args.key(), args.next_arg());
    Plan::one(StringOp::Append { key, value }, replies::int)
}

fn strlen(mut args: Args) -> PlanResult {
    Plan::one(StringOp::Len { key: args.key() }, replies::int_or_zero)
}

fn incr(mut args: Args) -> PlanResult {
    Plan::one(StringOp::Incr { key: args.key(), by: 1 }, replies::int)
}

fn decr(mut args: Args) -> PlanResult {
    Plan::one(StringOp::Incr { key: args.key(), by: -1 }, replies::int)
}

fn incrby(mut args: Args) -> PlanResult {
    let key = args.key();
    Plan::one(StringOp::Incr { key, by: args.int()? }, replies::int)
}

fn decrby(mut args: Args) -> PlanResult {
    let key = args.key();
    let by =
        args.int()?.checked_neg().ok_or_else(|| Reply::error("ERR decrement would overflow"))?;
    Plan::one(StringOp::Incr { key, by }, replies::int)
}

fn incrbyfloat(mut args: Args) -> PlanResult {
    let (key, by) = (args.key(), args.next_arg());
    Plan::one(StringOp::IncrFloat { key, by }, replies::bulk)
}

fn getrange(mut args: Args) -> PlanResult {
    let key = args.key();
    let (start, end) = (args.int()?, args.int()?);
    Plan::one(StringOp::GetRange { key, start, end }, replies::bulk_or_empty)
}

fn setrange(mut args: Args) -> PlanResult {
    let key = args.key();
    let offset =
        u64::try_from(args.int()?).map_err(|_| Reply::error("ERR offset is out of range"))?;
    Plan::one(StringOp::SetRange { key, offset, value: args.next_arg() }, replies::int)
}

fn longest_common(mut args: Args) -> PlanResult {
    let keys = [args.next_arg(), args.next_arg()];
    let (mut len, mut idx, mut with_len, mut min_len) = (false, false, false, 0);
    while args.left() > 0 {
        match () {
            () if args.flag("LEN") => len = true,
            () if args.flag("IDX") => idx = true,
            () if args.flag("WITHMATCHLEN") => with_len = true,
            () => {
                let number = args.option("MINMATCHLEN").ok_or_else(Args::syntax)?;
                let number = integer(&number).ok_or_else(errors::not_integer)?;
                min_len = usize::try_from(number).unwrap_or(0);
            }
        }
    }
    if len && idx {
        return Err(Reply::error(
            "ERR If you want both the length and indexes, please just use IDX.",
        ));
    }
    let write = move |outcomes: Vec<_>, reply: &mut dyn ReplyWriter| {
        let [a, b] = match two_strings(outcomes) {
            Ok(strings) => strings,
            Err(error) => return error.write(reply),
        };
        match () {
            () if !lcs::fits(&a, &b) => reply.error(
                "ERR Insufficient memory, transient memory for LCS exceeds what it may take: the \
                 strings' lengths multiply to more than 16777216 (no setting changes it)",
            ),
            () if idx => indexes(&lcs::matches(&a, &b), min_len, with_len, reply),
            () if len => reply.int(count(lcs::len(&a, &b))),
            () => {
                let matches = lcs::matches(&a, &b);
                let parts = matches.iter().rev().flat_map(|run| &a[run.in_a..][..run.len]);
                reply.bulk(&parts.copied().collect::<Vec<_>>());
            }
        }
    };
    let ops = keys.into_iter().map(|key| Op::String(StringOp::Get { key: key.into() })).collect();
    // Both strings are read at the same version.
    Ok(Plan::Rows(RowPlan {
        ops,
        same_partition: true,
        all_partitions: false,
        is_lookup: true,
        builder: ReplyBuilder::Pairwise(Box::new(write)),
    }))
}

/// The two strings of LCS; a missing one is empty.
fn two_strings(outcomes: Vec<Result<Answer, Refusal>>) -> Result<[Bytes; 2], Reply> {
    let string = |outcome| match outcome {
        Ok(Answer::Bytes(bytes)) => Ok(bytes),
        Ok(Answer::Nil) => Ok(Bytes::new()),
        Ok(_) => Err(errors::no_answer()),
        Err(Refusal::WrongType) => {
            Err(Reply::error("ERR The specified keys must contain string values"))
        }
        Err(refusal) => Err(errors::refusal(refusal)),
    };
    let strings = outcomes.into_iter().map(string).collect::<Result<Vec<_>, _>>()?;
    strings.try_into().map_err(|_| errors::no_answer())
}

/// LCS IDX: the positions of the matches, the last match first.
fn indexes(matches: &[lcs::Match], min_len: usize, with_len: bool, reply: &mut dyn ReplyWriter) {
    let long_enough = || matches.iter().filter(move |run| run.len >= min_len);
    reply.map(2);
    reply.bulk(b"matches");
    reply.array(long_enough().count());
    for run in long_enough() {
        reply.array(if with_len { 3 } else { 2 });
        for from in [run.in_a, run.in_b] {
            reply.array(2);
            reply.int(count(from));
            reply.int(count(from + run.len - 1));
        }
        if with_len {
            reply.int(count(run.len));
        }
    }
    reply.bulk(b"len");
    reply.int(count(matches.iter().map(|run| run.len).sum()));
}

/// A size as an integer reply.
fn count(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// SET's plain reply.
fn set_or_nil(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Written { done: true, .. } => reply.status("OK"),
        Answer::Written { done: false, .. } => reply.nil(),
        _ => replies::no_answer(reply),
    }
}

/// SETNX's reply.
fn set_or_zero(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Written { done, .. } => reply.int(i64::from(done)),
        _ => replies::no_answer(reply),
    }
}

/// The previous value (SET GET, GETSET).
fn old(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Written { old, .. } => replies::optional(old.as_ref(), reply),
        _ => replies::no_answer(reply),
    }
}

/// MGET's reply: an array, nil for what is no string, or the first error: Redis never
/// replies with an error inside an array.
fn strings_or_nils(outcomes: Vec<Result<Answer, Refusal>>, reply: &mut dyn ReplyWriter) {
    let error = outcomes.iter().find_map(|outcome| match outcome {
        Ok(Answer::Bytes(_) | Answer::Nil) | Err(Refusal::WrongType) => None,
        Ok(_) => Some(errors::no_answer()),
        Err(refusal) => Some(errors::refusal(*refusal)),
    });
    if let Some(error) = error {
        return error.write(reply);
    }
    reply.array(outcomes.len());
    for outcome in outcomes {
        replies::bulk(outcome.unwrap_or(Answer::Nil), reply);
    }
}
