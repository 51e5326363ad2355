//! Expiry of keys.

use row::RowOp;
use row::op::{Answer, RowInfo};

use crate::args::{ExpiryBase, TimeUnit};
use crate::table::flags::{FAST, KEYSPACE, LOOKUP, READONLY, WRITE};
use crate::table::{Command, Group, Keys};
use crate::{Args, Plan, PlanResult, ReplyWriter, replies};

/// Reply of TTL and similar commands for a missing key.
const NO_KEY: i64 = -2;

/// Their reply for a key without expiry.
const NEVER: i64 = -1;

/// Commands on the expiry of keys.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "expire",
        arity: -3,
        flags: WRITE | FAST | KEYSPACE,
        keys: Keys::ONE.with("RW update"),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Sets the expiration time of a key in seconds.",
        syntax: "key seconds [NX | XX | GT | LT]",
        plan: expire,
    },
    Command {
        name: "pexpire",
        arity: -3,
        flags: WRITE | FAST | KEYSPACE,
        keys: Keys::ONE.with("RW update"),
        group: Group::Generic,
        since: "2.6.0",
        complexity: "O(1)",
        summary: "Sets the expiration time of a key in milliseconds.",
        syntax: "key milliseconds [NX | XX | GT | LT]",
        plan: pexpire,
    },
    Command {
        name: "expireat",
        arity: -3,
        flags: WRITE | FAST | KEYSPACE,
        keys: Keys::ONE.with("RW update"),
        group: Group::Generic,
        since: "1.2.0",
        complexity: "O(1)",
        summary: "Sets the expiration time of a key to a Unix timestamp.",
        syntax: "key unix-time-seconds [NX | XX | GT | LT]",
        plan: expireat,
    },
    Command {
        name: "pexpireat",
        arity: -3,
        flags: WRITE | FAST | KEYSPACE,
        keys: Keys::ONE.with("RW update"),
        group: Group::Generic,
        since: "2.6.0",
        complexity: "O(1)",
        summary: "Sets the expiration time of a key to a Unix milliseconds timestamp.",
        syntax: "key unix-time-milliseconds [NX | XX | GT | LT]",
        plan: pexpireat,
    },
    Command {
        name: "ttl",
        arity: 2,
        flags: READONLY | FAST | KEYSPACE | LOOKUP,
        keys: Keys::ONE,
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Returns the expiration time in seconds of a key.",
        syntax: "key",
        plan: ttl,
    },
    Command {
        name: "pttl",
        arity: 2,
        flags: READONLY | FAST | KEYSPACE | LOOKUP,
        keys: Keys::ONE,
        group: Group::Generic,
        since: "2.6.0",
        complexity: "O(1)",
        summary: "Returns the expiration time in milliseconds of a key.",
        syntax: "key",
        plan: pttl,
    },
    Command {
        name: "expiretime",
        arity: 2,
        flags: READONLY | FAST | KEYSPACE | LOOKUP,
        keys: Keys::ONE,
        group: Group::Generic,
        since: "7.0.0",
        complexity: "O(1)",
        summary: "Returns the expiration time of a key as a Unix timestamp.",
        syntax: "key",
        plan: expiretime,
    },
    Command {
        name: "pexpiretime",
        arity: 2,
        flags: READONLY | FAST | KEYSPACE | LOOKUP,
        keys: Keys::ONE,
        group: Group::Generic,
        since: "7.0.0",
        complexity: "O(1)",
        summary: "Returns the expiration time of a key as a Unix milliseconds timestamp.",
        syntax: "key",
        plan: pexpiretime,
    },
    Command {
        name: "persist",
        arity: 2,
        flags: WRITE | FAST | KEYSPACE,
        keys: Keys::ONE.with("RW update"),
        group: Group::Generic,
        since: "2.2.0",
        complexity: "O(1)",
        summary: "Removes the expiration time of a key.",
        syntax: "key",
        plan: persist,
    },
];

fn expire(args: Args) -> PlanResult {
    expire_at(args, TimeUnit::Seconds, ExpiryBase::Now)
}

fn pexpire(args: Args) -> PlanResult {
    expire_at(args, TimeUnit::Millis, ExpiryBase::Now)
}

fn expireat(args: Args) -> PlanResult {
    expire_at(args, TimeUnit::Seconds, ExpiryBase::Epoch)
}

fn pexpireat(args: Args) -> PlanResult {
    expire_at(args, TimeUnit::Millis, ExpiryBase::Epoch)
}

/// Redis checks the conditions before the number.
fn expire_at(mut args: Args, unit: TimeUnit, since: ExpiryBase) -> PlanResult {
    let (key, number) = (args.key(), args.next_arg());
    let only = args.expire_if()?;
    let until = args.deadline_of(&number, unit, since)?;
    Plan::one(RowOp::Expire { key, until, only }, replies::int)
}

fn persist(mut args: Args) -> PlanResult {
    Plan::one(RowOp::Persist { key: args.key() }, replies::int)
}

fn ttl(mut args: Args) -> PlanResult {
    Plan::one(RowOp::Inspect { key: args.key() }, |answer, reply| {
        expiry(answer, |row, at| to_seconds(at.saturating_sub(row.now_ms)), reply)
    })
}

fn pttl(mut args: Args) -> PlanResult {
    Plan::one(RowOp::Inspect { key: args.key() }, |answer, reply| {
        expiry(answer, |row, at| at.saturating_sub(row.now_ms), reply)
    })
}

fn expiretime(mut args: Args) -> PlanResult {
    Plan::one(RowOp::Inspect { key: args.key() }, |answer, reply| {
        expiry(answer, |_, at| to_seconds(at), reply)
    })
}

fn pexpiretime(mut args: Args) -> PlanResult {
    Plan::one(RowOp::Inspect { key: args.key() }, |answer, reply| expiry(answer, |_, at| at, reply))
}

/// Replies with a row's expiry.
fn expiry(answer: Answer, number: fn(&RowInfo, u64) -> u64, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Row(None) => reply.int(NO_KEY),
        Answer::Row(Some(row)) => reply.int(
            row.expires_at_ms
                .map_or(NEVER, |at| i64::try_from(number(&row, at)).unwrap_or(i64::MAX)),
        ),
        _ => replies::no_answer(reply),
    }
}

/// Rounds to the nearest second, as Redis does.
fn to_seconds(ms: u64) -> u64 {
    ms.saturating_add(500) / 1000
}
