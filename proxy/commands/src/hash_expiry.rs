//! Expiry of single fields of a hash.
//!
//! All commands name their fields as `FIELDS numfields field [field ...]` and reply with
//! one number or value per field.

use bytes::Bytes;
use row::HashOp;
use row::op::{
    Answer, Deadline, ExpireCondition, FIELD_EXPIRY_MAX_MS, Op, Refusal, Ttl, WriteCondition,
};
use smallvec::smallvec;

use crate::args::{EXPIRY_TOKENS, ExpiryBase, TimeUnit, integer};
use crate::hash::put_or_zero;
use crate::plan::ReplyBuilder;
use crate::table::flags::{DENYOOM, FAST, LOOKUP, READONLY, WRITE};
use crate::table::{Command, Group, Keys};
use crate::{Args, Plan, PlanResult, Reply, ReplyWriter, errors, replies};

const GROUP: Group = Group::Hash;

/// A time in the past. A relative field expiry that overflows even from here is refused
/// without reading the clock.
const LONG_AGO_MS: u64 = 1_700_000_000_000;

/// Reply of HEXPIRE, HTTL and similar commands for a missing field.
const NO_FIELD: i64 = -2;

/// Commands on the expiry of fields.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "hexpire",
        arity: -6,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE.with("RW update"),
        group: GROUP,
        since: "7.4.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Set expiry for hash field using relative time to expire (seconds)",
        syntax: "key seconds [NX | XX | GT | LT] FIELDS numfields field [field ...]",
        plan: hexpire,
    },
    Command {
        name: "hpexpire",
        arity: -6,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE.with("RW update"),
        group: GROUP,
        since: "7.4.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Set expiry for hash field using relative time to expire (milliseconds)",
        syntax: "key milliseconds [NX | XX | GT | LT] FIELDS numfields field [field ...]",
        plan: hpexpire,
    },
    Command {
        name: "hexpireat",
        arity: -6,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE.with("RW update"),
        group: GROUP,
        since: "7.4.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Set expiry for hash field using an absolute Unix timestamp (seconds)",
        syntax: "key unix-time-seconds [NX | XX | GT | LT] FIELDS numfields field [field ...]",
        plan: hexpireat,
    },
    Command {
        name: "hpexpireat",
        arity: -6,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE.with("RW update"),
        group: GROUP,
        since: "7.4.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Set expiry for hash field using an absolute Unix timestamp (milliseconds)",
        syntax: "key unix-time-milliseconds [NX | XX | GT | LT] FIELDS numfields field [field ...]",
        plan: hpexpireat,
    },
    Command {
        name: "httl",
        arity: -5,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "7.4.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Returns the TTL in seconds of a hash field.",
        syntax: "key FIELDS numfields field [field ...]",
        plan: httl,
    },
    Command {
        name: "hpttl",
        arity: -5,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "7.4.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Returns the TTL in milliseconds of a hash field.",
        syntax: "key FIELDS numfields field [field ...]",
        plan: hpttl,
    },
    Command {
        name: "hexpiretime",
        arity: -5,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "7.4.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Returns the expiration time of a hash field as a Unix timestamp, in seconds.",
        syntax: "key FIELDS numfields field [field ...]",
        plan: hexpiretime,
    },
    Command {
        name: "hpexpiretime",
        arity: -5,
        flags: READONLY | FAST | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "7.4.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Returns the expiration time of a hash field as a Unix timestamp, in msec.",
        syntax: "key FIELDS numfields field [field ...]",
        plan: hpexpiretime,
    },
    Command {
        name: "hpersist",
        arity: -5,
        flags: WRITE | FAST,
        keys: Keys::ONE.with("RW update"),
        group: GROUP,
        since: "7.4.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Removes the expiration time for each specified field",
        syntax: "key FIELDS numfields field [field ...]",
        plan: hpersist,
    },
    Command {
        name: "hgetdel",
        arity: -5,
        flags: WRITE | FAST,
        keys: Keys::ONE.with("RW access delete"),
        group: GROUP,
        since: "8.0.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Returns the value of a field and deletes it from the hash.",
        syntax: "key FIELDS numfields field [field ...]",
        plan: hgetdel,
    },
    Command {
        name: "hgetex",
        arity: -5,
        flags: WRITE | FAST,
        keys: Keys::ONE,
        group: GROUP,
        since: "8.0.0",
        complexity: "O(N) where N is the number of specified fields",
        summary: "Get the value of one or more fields of a given hash key, and optionally set \
                  their expiration.",
        syntax: "key [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT \
                 unix-time-milliseconds | PERSIST] FIELDS numfields field [field ...]",
        plan: hgetex,
    },
    Command {
        name: "hsetex",
        arity: -6,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE.with("RW update"),
        group: GROUP,
        since: "8.0.0",
        complexity: "O(N) where N is the number of fields being set.",
        summary: "Set the value of one or more fields of a given hash key, and optionally set \
                  their expiration.",
        syntax: "key [FNX | FXX] [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT \
                 unix-time-milliseconds | KEEPTTL] FIELDS numfields field value [field value ...]",
        plan: hsetex,
    },
];

fn hexpire(args: Args) -> PlanResult {
    expire(args, TimeUnit::Seconds, ExpiryBase::Now)
}

fn hpexpire(args: Args) -> PlanResult {
    expire(args, TimeUnit::Millis, ExpiryBase::Now)
}

fn hexpireat(args: Args) -> PlanResult {
    expire(args, TimeUnit::Seconds, ExpiryBase::Epoch)
}

fn hpexpireat(args: Args) -> PlanResult {
    expire(args, TimeUnit::Millis, ExpiryBase::Epoch)
}

fn expire(mut args: Args, unit: TimeUnit, since: ExpiryBase) -> PlanResult {
    let key = args.key();
    let number = args.next_arg();
    let until = deadline(&number, unit, since, &args)?;
    let mut only = ExpireCondition::default();
    match () {
        () if args.flag("NX") => only.none = true,
        () if args.flag("XX") => only.some = true,
        () if args.flag("GT") => only.later = true,
        () if args.flag("LT") => only.earlier = true,
        () => {}
    }
    let fields = fields(&mut args, "ERR Parameter `numFields` should be greater than 0")?;
    let count = fields.len();
    let name = args.name();
    let write =
        move |outcomes: Vec<Result<Answer, Refusal>>, reply: &mut dyn ReplyWriter| match outcomes
            .into_iter()
            .next()
        {
            Some(Ok(answer)) => numbers(answer, count, |number| number, reply),
            Some(Err(Refusal::ExpiryTooFar)) => errors::invalid_expire(&name).write(reply),
            Some(Err(refusal)) => errors::refusal(refusal).write(reply),
            None => replies::no_answer(reply),
        };
    Ok(Plan::rows(
        smallvec![Op::Hash(HashOp::Expire { key, fields, until, only })],
        ReplyBuilder::Outcomes(Box::new(write)),
    ))
}

fn httl(args: Args) -> PlanResult {
    expiry(args, true, seconds)
}

fn hpttl(args: Args) -> PlanResult {
    expiry(args, true, |ms| ms)
}

fn hexpiretime(args: Args) -> PlanResult {
    expiry(args, false, seconds)
}

fn hpexpiretime(args: Args) -> PlanResult {
    expiry(args, false, |ms| ms)
}

fn expiry(mut args: Args, remaining: bool, number: fn(i64) -> i64) -> PlanResult {
    let (key, fields) = (args.key(), some_fields(&mut args)?);
    let count = fields.len();
    Plan::with(HashOp::Expiry { key, fields, remaining }, move |answer, reply| {
        numbers(answer, count, number, reply)
    })
}

fn hpersist(mut args: Args) -> PlanResult {
    let (key, fields) = (args.key(), some_fields(&mut args)?);
    let count = fields.len();
    Plan::with(HashOp::Persist { key, fields }, move |answer, reply| {
        numbers(answer, count, |number| number, reply)
    })
}

fn hgetdel(mut args: Args) -> PlanResult {
    let (key, fields) = (args.key(), some_fields(&mut args)?);
    Plan::one(HashOp::GetDelete { key, fields }, replies::values)
}

fn hgetex(mut args: Args) -> PlanResult {
    let key = args.key();
    let ttl = match until(&mut args)? {
        Some(deadline) => Ttl::Until(deadline),
        None if args.flag("PERSIST") => Ttl::Never,
        None => Ttl::Keep,
    };
    let fields = some_fields(&mut args)?;
    Plan::one(HashOp::GetExpire { key, fields, ttl }, replies::values)
}

fn hsetex(mut args: Args) -> PlanResult {
    let key = args.key();
    let (mut only, mut ttl) = (WriteCondition::Always, Ttl::Default);
    while !args.flag("FIELDS") {
        if args.flag("FNX") {
            only = only_one(only, WriteCondition::IfAbsent)?;
        } else if args.flag("FXX") {
            only = only_one(only, WriteCondition::IfPresent)?;
        } else if ttl != Ttl::Default
            && (EXPIRY_TOKENS.iter().any(|(name, ..)| args.flag(name)) || args.flag("KEEPTTL"))
        {
            return Err(Reply::error(
                "ERR Only one of EX, PX, EXAT, PXAT or KEEPTTL arguments can be specified",
            ));
        } else if args.flag("KEEPTTL") {
            ttl = Ttl::Keep;
        } else if let Some(deadline) = until(&mut args)? {
            ttl = Ttl::Until(deadline);
        } else {
            let unknown = args.try_next().ok_or_else(|| args.wrong_number())?;
            return Err(Reply::error(format!(
                "ERR unknown argument: {}",
                errors::one_line(&unknown)
            )));
        }
    }
    if args.left() < 3 {
        return Err(args.wrong_number());
    }
    let count = args.int_at_least(1, "ERR invalid number of fields")?;
    let pairs = args.pairs()?;
    if pairs.len() as u64 != count.unsigned_abs() {
        return Err(args.wrong_number());
    }
    Plan::one(HashOp::Put { key, pairs, only, ttl }, put_or_zero)
}

/// FNX and FXX exclude each other and may come once.
fn only_one(old: WriteCondition, new: WriteCondition) -> Result<WriteCondition, Reply> {
    match old {
        WriteCondition::Always => Ok(new),
        _ => Err(Reply::error("ERR Only one of FXX or FNX arguments can be specified")),
    }
}

/// Takes EX, PX, EXAT or PXAT with its number, if it comes next.
fn until(args: &mut Args) -> Result<Option<Deadline>, Reply> {
    let Some((_, unit, since)) = EXPIRY_TOKENS.into_iter().find(|(name, ..)| args.flag(name))
    else {
        return Ok(None);
    };
    let number = args.try_next().ok_or_else(|| Reply::error("ERR missing expire time"))?;
    deadline(&number, unit, since, args).map(Some)
}

/// A field's deadline: 0 means now, and there is an upper bound.
fn deadline(
    number: &[u8],
    unit: TimeUnit,
    since: ExpiryBase,
    args: &Args,
) -> Result<Deadline, Reply> {
    let number = integer(number).ok_or_else(errors::not_integer)?;
    if number < 0 {
        return Err(Reply::error("ERR invalid expire time, must be >= 0"));
    }
    let (max, deadline): (u64, fn(i64) -> Deadline) = match since {
        ExpiryBase::Now => (FIELD_EXPIRY_MAX_MS - LONG_AGO_MS, Deadline::In),
        ExpiryBase::Epoch => (FIELD_EXPIRY_MAX_MS, Deadline::At),
    };
    let ms = match unit {
        TimeUnit::Seconds => number.checked_mul(1000),
        TimeUnit::Millis => Some(number),
    };
    ms.filter(|&ms| ms.unsigned_abs() <= max)
        .map(deadline)
        .ok_or_else(|| errors::invalid_expire(&args.name()))
}

/// `FIELDS numfields field [field ...]`, up to the last argument.
fn some_fields(args: &mut Args) -> Result<Vec<Bytes>, Reply> {
    fields(args, "ERR Number of fields must be a positive integer")
}

fn fields(args: &mut Args, not_positive: &'static str) -> Result<Vec<Bytes>, Reply> {
    if !args.flag("FIELDS") {
        return Err(Reply::error(
            "ERR Mandatory argument FIELDS is missing or not at the right position",
        ));
    }
    if args.left() == 0 {
        return Err(args.wrong_number());
    }
    let count = args.int_at_least(1, not_positive)?;
    if args.left() as u64 != count.unsigned_abs() {
        return Err(Reply::error(
            "ERR The `numfields` parameter must match the number of arguments",
        ));
    }
    Ok(args.rest())
}

/// Converts ms to seconds, rounding up as Redis does; the negative codes stay.
fn seconds(ms: i64) -> i64 {
    if ms > 0 { (ms - 1) / 1000 + 1 } else { ms }
}

/// One number per field; a missing row has no fields.
fn numbers(answer: Answer, fields: usize, number: fn(i64) -> i64, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Ints(numbers) => {
            reply.array(numbers.len());
            numbers.into_iter().for_each(|of_field| reply.int(number(of_field)));
        }
        Answer::Nil => {
            reply.array(fields);
            (0..fields).for_each(|_| reply.int(NO_FIELD));
        }
        _ => replies::no_answer(reply),
    }
}
