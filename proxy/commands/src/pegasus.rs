//! Commands that Redis does not have: Pegasus's operations on (hashkey, sortkey), applied
//! to hashes. Their group in COMMAND DOCS is `bridle`.
//!
//! The fields of a hash are stored in byte order, so ranges of them are cheap. A range is
//! written as in ZRANGE BYLEX: `[field` includes the field, `(field` excludes it, `-` and
//! `+` are the ends.
//!
//! # Ranges
//! ```text
//! > HSET log 2024-01-01 boot 2024-02-01 login 2024-02-09 logout 2024-03-01 halt
//! (integer) 4
//! > HRANGE log [2024-02 (2024-03
//! 1) (nil)
//! 2) 1) "2024-02-01"
//!    2) "login"
//!    3) "2024-02-09"
//!    4) "logout"
//! ```
//! The first element is the `start` of the next call, or nil at the end of the range. A
//! reply may be cut short by LIMIT (cells), by MAXBYTES (bytes of fields and values, 1
//! MiB by default; at least one cell is returned), and after 100,000 cells of which MATCH
//! kept too few.
//! ```text
//! > HRANGE log - + LIMIT 1 NOVALUES
//! 1) "[2024-02-01"
//! 2) 1) "2024-01-01"
//! > HRANGE log [2024-02-01 + LIMIT 1 NOVALUES
//! 1) "[2024-02-09"
//! 2) 1) "2024-02-01"
//! ```
//! With REV the range is walked downwards and `start` is its upper end, as with ZRANGE.
//! MATCH keeps the fields that begin with (PREFIX), end with (POSTFIX) or contain
//! (ANYWHERE) a text; cells that it leaves out do not count for LIMIT.
//! ```text
//! > HRANGE log + - REV MATCH POSTFIX -01 LIMIT 1
//! 1) "[2024-02-01"
//! 2) 1) "2024-03-01"
//!    2) "halt"
//! > HRANGECOUNT log [2024-02 (2024-03
//! (integer) 2
//! > HRANGEDEL log - (2024-02
//! 1) (nil)
//! 2) (integer) 1
//! ```
//!
//! # Checks
//! HCHECKSET and HCHECKMUTATE check one field, and change fields of the same hash only if
//! the check passes, in one atomic step. Pegasus's 18 checks:
//!
//! | check | passes when the field |
//! |---|---|
//! | `NONE` | always |
//! | `NOTEXIST`, `EXIST` | is missing, exists |
//! | `NOTEXISTOREMPTY`, `NOTEMPTY` | is missing or empty, exists and is not empty |
//! | `MATCH ANYWHERE text` | contains the text |
//! | `MATCH PREFIX text`, `MATCH POSTFIX text` | begins with, ends with the text |
//! | `BYTES LT text`, `LE`, `EQ`, `GE`, `GT` | exists and is less, and so on, byte by byte |
//! | `INT LT number`, `LE`, `EQ`, `GE`, `GT` | exists and is less, and so on, as an integer |
//!
//! HCHECKSET returns 1 if it has set the field and 0 if the check failed. With GET it
//! also returns the previous value of the checked field.
//! ```text
//! > HCHECKSET job owner NOTEXISTOREMPTY owner alice EX 30
//! (integer) 1
//! > HCHECKSET job owner NOTEXISTOREMPTY owner bob GET
//! 1) (integer) 0
//! 2) "alice"
//! ```
//! HCHECKMUTATE applies a list of `PUT field value` (with an optional expiry) and
//! `DEL field`, in order, all or none.
//! ```text
//! > HSET account balance 100
//! (integer) 1
//! > HCHECKMUTATE account balance INT GE 30 PUT balance 70 PUT last "-30" DEL overdrawn
//! (integer) 1
//! > HCHECKMUTATE account balance INT GE 80 GET PUT balance -10
//! 1) (integer) 0
//! 2) "70"
//! ```

use bytes::Bytes;
use row::HashOp;
use row::op::{Answer, Check, Filter, Mutation, Range, Ttl};

use crate::args::ExpiryOptions;
use crate::table::flags::{DENYOOM, FAST, LOOKUP, READONLY, WRITE};
use crate::table::{Command, Group, Keys};
use crate::{Args, Plan, PlanResult, Reply, ReplyWriter, errors, replies};

const GROUP: Group = Group::Bridle;

/// Default MAXBYTES of HRANGE.
const REPLY_BYTES_DEFAULT: u64 = 1 << 20;

/// Commands that Redis does not have.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "hrange",
        arity: -4,
        flags: READONLY | LOOKUP,
        keys: Keys::ONE,
        group: GROUP,
        since: "0.1.0",
        complexity: "O(N) where N is the number of fields between start and stop, up to the limit.",
        summary: "Returns fields and values between two fields in byte order, and where to go on.",
        syntax: "key start(string) stop(string) [MATCH <PREFIX | POSTFIX | ANYWHERE> pattern] \
                 [REV] [LIMIT count] [MAXBYTES bytes] [NOVALUES]",
        plan: hrange,
    },
    Command {
        name: "hrangecount",
        arity: -4,
        flags: READONLY,
        keys: Keys::ONE.with("RO"),
        group: GROUP,
        since: "0.1.0",
        complexity: "O(N) where N is the number of fields between start and stop.",
        summary: "Counts the fields between two fields in byte order.",
        syntax: "key start(string) stop(string) [MATCH <PREFIX | POSTFIX | ANYWHERE> pattern]",
        plan: hrangecount,
    },
    Command {
        name: "hrangedel",
        arity: -4,
        flags: WRITE,
        keys: Keys::ONE.with("RW delete"),
        group: GROUP,
        since: "0.1.0",
        complexity: "O(N) where N is the number of fields between start and stop, up to the limit.",
        summary: "Deletes the fields between two fields in byte order, and tells how many and \
                  where to go on.",
        syntax: "key start(string) stop(string) [MATCH <PREFIX | POSTFIX | ANYWHERE> pattern] \
                 [REV] [LIMIT count]",
        plan: hrangedel,
    },
    Command {
        name: "hcheckset",
        arity: -6,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE,
        group: GROUP,
        since: "0.1.0",
        complexity: "O(1)",
        summary: "Sets a field if a check of the same or another field of the hash holds.",
        syntax: "key check-field <NONE | NOTEXIST | NOTEXISTOREMPTY | EXIST | NOTEMPTY | MATCH \
                 <ANYWHERE | PREFIX | POSTFIX> operand | BYTES <LT | LE | EQ | GE | GT> operand | \
                 INT <LT | LE | EQ | GE | GT> operand> field value [GET] [EX seconds | PX \
                 milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | KEEPTTL]",
        plan: hcheckset,
    },
    Command {
        name: "hcheckmutate",
        arity: -6,
        flags: WRITE | DENYOOM | FAST,
        keys: Keys::ONE,
        group: GROUP,
        since: "0.1.0",
        complexity: "O(N) where N is the number of mutations.",
        summary: "Sets and deletes fields, all or none, if a check of a field of the hash holds.",
        syntax: "key check-field <NONE | NOTEXIST | NOTEXISTOREMPTY | EXIST | NOTEMPTY | MATCH \
                 <ANYWHERE | PREFIX | POSTFIX> operand | BYTES <LT | LE | EQ | GE | GT> operand | \
                 INT <LT | LE | EQ | GE | GT> operand> [GET] <PUT field value [EX seconds | PX \
                 milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | KEEPTTL] | \
                 DEL field> [<PUT field value [EX seconds | PX milliseconds | EXAT \
                 unix-time-seconds | PXAT unix-time-milliseconds | KEEPTTL] | DEL field> ...]",
        plan: hcheckmutate,
    },
];

fn hrange(mut args: Args) -> PlanResult {
    let (key, bounds) = (args.key(), Bounds::take(&mut args)?);
    let (mut options, mut want_values) =
        (RangeOptions { bytes_max: REPLY_BYTES_DEFAULT, ..RangeOptions::default() }, true);
    while args.left() > 0 {
        match () {
            () if options.take_match(&mut args)? || options.take_walk(&mut args)? => {}
            () if options.take_bytes_max(&mut args)? => {}
            () if args.flag("NOVALUES") => want_values = false,
            () => return Err(Args::syntax()),
        }
    }
    Plan::with(
        HashOp::Range { key, range: options.range(bounds), want_values },
        move |answer, reply| part(answer, want_values, reply),
    )
}

fn hrangecount(mut args: Args) -> PlanResult {
    let (key, bounds) = (args.key(), Bounds::take(&mut args)?);
    let mut options = RangeOptions::default();
    while args.left() > 0 {
        if !options.take_match(&mut args)? {
            return Err(Args::syntax());
        }
    }
    Plan::one(HashOp::RangeCount { key, range: options.range(bounds) }, replies::int)
}

fn hrangedel(mut args: Args) -> PlanResult {
    let (key, bounds) = (args.key(), Bounds::take(&mut args)?);
    let mut options = RangeOptions::default();
    while args.left() > 0 {
        if !(options.take_match(&mut args)? || options.take_walk(&mut args)?) {
            return Err(Args::syntax());
        }
    }
    Plan::one(HashOp::RangeDelete { key, range: options.range(bounds) }, |answer, reply| {
        match answer {
            Answer::Deleted { count, next } => {
                reply.array(2);
                next_start(next, reply);
                reply.int(i64::try_from(count).unwrap_or(i64::MAX));
            }
            _ => replies::no_answer(reply),
        }
    })
}

fn hcheckset(mut args: Args) -> PlanResult {
    let (key, check_sortkey) = (args.key(), args.next_arg());
    let (check, operand) = check(&mut args)?;
    if args.left() < 2 {
        return Err(args.wrong_number());
    }
    let (sortkey, value) = (args.next_arg(), args.next_arg());
    let (mut expiry, mut want_value) = (ExpiryOptions::default(), false);
    while args.left() > 0 {
        match () {
            () if args.flag("GET") => want_value = true,
            () if expiry.take_until(&mut args) || expiry.take_keep(&mut args) => {}
            () => return Err(Args::syntax()),
        }
    }
    let ttl = expiry.ttl(Ttl::Default, &args)?;
    let mutations = vec![Mutation::Put { sortkey, value, ttl }];
    Plan::one(
        HashOp::CheckAndMutate { key, check_sortkey, check, operand, mutations, want_value },
        checked,
    )
}

fn hcheckmutate(mut args: Args) -> PlanResult {
    let (key, check_sortkey) = (args.key(), args.next_arg());
    let (check, operand) = check(&mut args)?;
    let want_value = args.flag("GET");
    let mut mutations = Vec::new();
    while args.left() > 0 {
        mutations.push(mutation(&mut args)?);
    }
    if mutations.is_empty() {
        return Err(args.wrong_number());
    }
    Plan::one(
        HashOp::CheckAndMutate { key, check_sortkey, check, operand, mutations, want_value },
        checked,
    )
}

/// `PUT field value [expiry]` or `DEL field`.
fn mutation(args: &mut Args) -> Result<Mutation, Reply> {
    if let Some(sortkey) = args.option("DEL") {
        return Ok(Mutation::Delete { sortkey });
    }
    let sortkey = args.option("PUT").ok_or_else(Args::syntax)?;
    let value = args.try_next().ok_or_else(Args::syntax)?;
    let mut expiry = ExpiryOptions::default();
    while expiry.take_until(args) || expiry.take_keep(args) {}
    Ok(Mutation::Put { sortkey, value, ttl: expiry.ttl(Ttl::Default, args)? })
}

/// A check and its operand, empty for those that have none.
fn check(args: &mut Args) -> Result<(Check, Bytes), Reply> {
    const PLAIN: [(&str, Check); 5] = [
        ("NONE", Check::None),
        ("NOTEXIST", Check::NotExist),
        ("NOTEXISTOREMPTY", Check::NotExistOrEmpty),
        ("EXIST", Check::Exist),
        ("NOTEMPTY", Check::NotEmpty),
    ];
    const MATCH: [(&str, Check); 3] = [
        ("ANYWHERE", Check::MatchAnywhere),
        ("PREFIX", Check::MatchPrefix),
        ("POSTFIX", Check::MatchPostfix),
    ];
    const BYTES: [(&str, Check); 5] = [
        ("LT", Check::BytesLess),
        ("LE", Check::BytesLessOrEqual),
        ("EQ", Check::BytesEqual),
        ("GE", Check::BytesGreaterOrEqual),
        ("GT", Check::BytesGreater),
    ];
    const INT: [(&str, Check); 5] = [
        ("LT", Check::IntLess),
        ("LE", Check::IntLessOrEqual),
        ("EQ", Check::IntEqual),
        ("GE", Check::IntGreaterOrEqual),
        ("GT", Check::IntGreater),
    ];
    if let Some((_, check)) = PLAIN.into_iter().find(|(name, _)| args.flag(name)) {
        return Ok((check, Bytes::new()));
    }
    let kinds: &[(&str, Check)] = match () {
        () if args.flag("MATCH") => &MATCH,
        () if args.flag("BYTES") => &BYTES,
        () if args.flag("INT") => &INT,
        () => return Err(Args::syntax()),
    };
    kinds
        .iter()
        .find_map(|(name, check)| Some((*check, args.option(name)?)))
        .ok_or_else(Args::syntax)
}

/// Both ends of a range, in the given order.
struct Bounds([Bound; 2]);

/// One end of a range: `-`, `+`, or a field, inclusive or not.
enum Bound {
    First,
    Last,
    Field { field: Bytes, inclusive: bool },
}

impl Bounds {
    fn take(args: &mut Args) -> Result<Bounds, Reply> {
        let mut bound = || {
            let arg = args.next_arg();
            match arg.first() {
                Some(b'-') if arg.len() == 1 => Ok(Bound::First),
                Some(b'+') if arg.len() == 1 => Ok(Bound::Last),
                Some(sign @ (b'[' | b'(')) => {
                    Ok(Bound::Field { inclusive: *sign == b'[', field: arg.slice(1..) })
                }
                _ => Err(Reply::error("ERR min or max not valid string range item")),
            }
        };
        Ok(Bounds([bound()?, bound()?]))
    }
}

/// The options that may follow a range.
#[derive(Default)]
struct RangeOptions {
    filter: Option<Filter>,
    reverse: bool,
    cells_max: u64,
    bytes_max: u64,
}

impl RangeOptions {
    fn take_match(&mut self, args: &mut Args) -> Result<bool, Reply> {
        const KINDS: [(&str, fn(Bytes) -> Filter); 3] = [
            ("PREFIX", Filter::Prefix),
            ("POSTFIX", Filter::Suffix),
            ("ANYWHERE", Filter::Contains),
        ];
        let found = args.flag("MATCH");
        if found {
            let filter = KINDS.into_iter().find_map(|(name, filter)| args.option(name).map(filter));
            self.filter = Some(filter.ok_or_else(Args::syntax)?);
        }
        Ok(found)
    }

    fn take_walk(&mut self, args: &mut Args) -> Result<bool, Reply> {
        let reverse = args.flag("REV");
        self.reverse |= reverse;
        Ok(reverse || take_limit("LIMIT", &mut self.cells_max, args)?)
    }

    fn take_bytes_max(&mut self, args: &mut Args) -> Result<bool, Reply> {
        take_limit("MAXBYTES", &mut self.bytes_max, args)
    }

    /// The range of cells. Ends in the wrong order give an empty range.
    fn range(self, Bounds([from, to]): Bounds) -> Range {
        let (low, high) = if self.reverse { (to, from) } else { (from, to) };
        let nothing = || Some((Bytes::new(), false));
        let (start, stop) = match (low, high) {
            (Bound::Last, _) | (_, Bound::First) => (nothing(), nothing()),
            (low, high) => (low.field(), high.field()),
        };
        Range {
            start_inclusive: start.as_ref().is_none_or(|(_, inclusive)| *inclusive),
            start: start.map(|(field, _)| field),
            stop_inclusive: stop.as_ref().is_none_or(|(_, inclusive)| *inclusive),
            stop: stop.map(|(field, _)| field),
            filter: self.filter.unwrap_or(Filter::None),
            reverse: self.reverse,
            cells_max: self.cells_max,
            bytes_max: self.bytes_max,
        }
    }
}

impl Bound {
    fn field(self) -> Option<(Bytes, bool)> {
        match self {
            Bound::First | Bound::Last => None,
            Bound::Field { field, inclusive } => Some((field, inclusive)),
        }
    }
}

/// Takes an option whose value is a positive number.
fn take_limit(name: &str, limit: &mut u64, args: &mut Args) -> Result<bool, Reply> {
    let Some(number) = args.option(name) else { return Ok(false) };
    let number = crate::args::integer(&number).ok_or_else(errors::not_integer)?;
    *limit =
        u64::try_from(number).ok().filter(|&limit| limit > 0).ok_or_else(errors::out_of_range)?;
    Ok(true)
}

/// A part of a range: the next `start`, and the cells.
fn part(answer: Answer, want_values: bool, reply: &mut dyn ReplyWriter) {
    let (cells, next) = match answer {
        Answer::Cells { cells, next } => (cells, next),
        Answer::Nil => (Vec::new(), None),
        _ => return replies::no_answer(reply),
    };
    reply.array(2);
    next_start(next, reply);
    match want_values {
        true => replies::pairs(&cells, reply),
        false => replies::bulks(cells.iter().map(|(field, _)| field), reply),
    }
}

/// The next call's `start`, or nil.
fn next_start(next: Option<Bytes>, reply: &mut dyn ReplyWriter) {
    match next {
        Some(next) => reply.bulk(&[&b"["[..], &next].concat()),
        None => reply.nil(),
    }
}

/// The result of the check, and the checked value if it was asked for.
fn checked(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Checked { done, value: None } => reply.int(i64::from(done)),
        Answer::Checked { done, value: Some(value) } => {
            reply.array(2);
            reply.int(i64::from(done));
            replies::optional(value.as_ref(), reply);
        }
        _ => replies::no_answer(reply),
    }
}
