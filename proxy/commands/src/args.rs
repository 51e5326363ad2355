//! Argument parsing: one command's arguments, read in order and refused with Redis's
//! errors.
//!
//! A plan reads its arguments once, from left to right: [`Args::next_arg`] where the
//! arity guarantees an argument, [`Args::try_next`] and [`Args::flag`] where it does not,
//! [`Args::int`] and similar for numbers, [`Args::end`] where nothing may follow. Numbers
//! are parsed as Redis parses them: no sign `+`, no blanks, no leading zeros.
//!
//! Parsing does not allocate while the arguments are in order, except for lists of
//! several arguments.

use bytes::Bytes;
use row::Key;
use row::op::{Deadline, ExpireCondition, Ttl};
use smallvec::SmallVec;

use crate::{Reply, errors};

/// A command's argument vector; `argv[0]` is its name. The arity is checked against the
/// table before a plan sees it.
pub type Argv = SmallVec<[Bytes; 4]>;

/// Headroom above a relative deadline, ms: timetags have 48 bits for the time, so the
/// leader's clock is below this.
pub(crate) const CLOCK_MAX_MS: i64 = 1 << 48;

/// Reads arguments one after another.
#[derive(Debug)]
pub struct Args {
    argv: Argv,
    name_args: usize,
    at: usize,
    seed: u64,
}

/// Unit of an expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
}

/// Start of an expiry: now, or the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryBase {
    /// Now: a time to live.
    Now,
    /// The Unix epoch: a point in time.
    Epoch,
}

impl Args {
    /// Starts behind the name (`name_args` 1) or behind the name and the subcommand (2).
    /// A plan draws random numbers from `seed`, so it stays a function of its arguments.
    pub fn new(argv: Argv, name_args: usize, seed: u64) -> Args {
        Args { argv, name_args, at: name_args, seed }
    }

    /// The next argument. Panics if there is none; the arity guarantees it.
    pub fn next_arg(&mut self) -> Bytes {
        let arg = std::mem::take(&mut self.argv[self.at]);
        self.at += 1;
        arg
    }

    /// As [`Args::next_arg`], for the key of a row.
    pub fn key(&mut self) -> Key {
        Key(self.next_arg())
    }

    /// All arguments left, as keys of rows.
    pub fn keys(&mut self) -> Vec<Key> {
        (0..self.left()).map(|_| self.key()).collect()
    }

    /// The next argument, if any.
    pub fn try_next(&mut self) -> Option<Bytes> {
        (self.at < self.argv.len()).then(|| self.next_arg())
    }

    /// The next argument, without taking it.
    pub fn peek(&self) -> Option<&[u8]> {
        self.argv.get(self.at).map(Bytes::as_ref)
    }

    /// Takes the next argument if it is `option` in any case.
    pub fn flag(&mut self, option: &str) -> bool {
        let found = self.peek().is_some_and(|arg| arg.eq_ignore_ascii_case(option.as_bytes()));
        self.at += usize::from(found);
        found
    }

    /// Takes the next two arguments if the first is `option` in any case, and returns the
    /// second, the option's value.
    pub fn option(&mut self, option: &str) -> Option<Bytes> {
        (self.left() >= 2 && self.flag(option)).then(|| self.next_arg())
    }

    /// Number of arguments left.
    pub fn left(&self) -> usize {
        self.argv.len() - self.at
    }

    /// All arguments left.
    pub fn rest<T: FromIterator<Bytes>>(&mut self) -> T {
        let from = std::mem::replace(&mut self.at, self.argv.len());
        self.argv[from..].iter_mut().map(std::mem::take).collect()
    }

    /// All arguments left, as pairs. An odd number of them is a wrong number of
    /// arguments.
    pub fn pairs<Name: From<Bytes>>(&mut self) -> Result<Vec<(Name, Bytes)>, Reply> {
        if !self.left().is_multiple_of(2) {
            return Err(self.wrong_number());
        }
        let mut pairs = Vec::with_capacity(self.left() / 2);
        while self.left() > 0 {
            pairs.push((self.next_arg().into(), self.next_arg()));
        }
        Ok(pairs)
    }

    /// Refuses arguments that are left.
    pub fn end(&self) -> Result<(), Reply> {
        if self.left() == 0 { Ok(()) } else { Err(Args::syntax()) }
    }

    /// The next argument as an integer.
    pub fn int(&mut self) -> Result<i64, Reply> {
        integer(&self.next_arg()).ok_or_else(errors::not_integer)
    }

    /// The next argument as an integer of at least `least`; otherwise this error.
    pub fn int_at_least(&mut self, least: i64, error: &'static str) -> Result<i64, Reply> {
        integer(&self.next_arg())
            .filter(|&number| number >= least)
            .ok_or_else(|| Reply::error(error))
    }

    /// The next argument as a finite or infinite decimal number, not NaN.
    pub fn float(&mut self) -> Result<f64, Reply> {
        float(&self.next_arg()).ok_or_else(errors::not_float)
    }

    /// The next argument as a SCAN cursor.
    pub fn cursor(&mut self) -> Result<u64, Reply> {
        unsigned(&self.next_arg()).ok_or_else(|| Reply::error("ERR invalid cursor"))
    }

    /// The next argument as the deadline of the EXPIRE family, which may lie in the past.
    pub fn deadline(&mut self, unit: TimeUnit, since: ExpiryBase) -> Result<Deadline, Reply> {
        let number = self.next_arg();
        self.deadline_of(&number, unit, since)
    }

    /// As [`Args::deadline`], for an argument that was taken before because options are
    /// checked first.
    pub fn deadline_of(
        &self,
        number: &[u8],
        unit: TimeUnit,
        since: ExpiryBase,
    ) -> Result<Deadline, Reply> {
        let number = integer(number).ok_or_else(errors::not_integer)?;
        deadline(number, unit, since).ok_or_else(|| errors::invalid_expire(&self.name()))
    }

    /// The next argument as the deadline of the SET family, which must be positive.
    pub fn deadline_ahead(&mut self, unit: TimeUnit, since: ExpiryBase) -> Result<Deadline, Reply> {
        let number = self.int()?;
        if number <= 0 {
            return Err(errors::invalid_expire(&self.name()));
        }
        deadline(number, unit, since).ok_or_else(|| errors::invalid_expire(&self.name()))
    }

    /// All arguments left, as the conditions of the EXPIRE family.
    pub fn expire_if(&mut self) -> Result<ExpireCondition, Reply> {
        let mut only = ExpireCondition::default();
        while self.left() > 0 {
            match () {
                () if self.flag("NX") => only.none = true,
                () if self.flag("XX") => only.some = true,
                () if self.flag("GT") => only.later = true,
                () if self.flag("LT") => only.earlier = true,
                () => return Err(errors::unsupported_option(&self.next_arg())),
            }
        }
        if only.none && (only.some || only.later || only.earlier) {
            return Err(Reply::error(
                "ERR NX and XX, GT or LT options at the same time are not compatible",
            ));
        }
        if only.later && only.earlier {
            return Err(Reply::error("ERR GT and LT options at the same time are not compatible"));
        }
        Ok(only)
    }

    /// Source of randomness, given by the caller of the plan.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The command's name in lower case, as Redis puts it into errors; a subcommand is
    /// `client|id`.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.argv[..self.name_args].join(&b'|')).to_ascii_lowercase()
    }

    /// `-ERR syntax error`
    pub fn syntax() -> Reply {
        Reply::error("ERR syntax error")
    }

    /// Redis's error for a subcommand with more arguments than any of its forms takes,
    /// when its arity has no upper bound.
    pub(crate) fn wrong_subcommand(&self) -> Reply {
        errors::wrong_subcommand(&self.argv[0], self.argv.get(1).map_or(&b""[..], |arg| arg))
    }

    /// `-ERR wrong number of arguments for 'name' command`
    pub fn wrong_number(&self) -> Reply {
        errors::wrong_number(&self.name())
    }
}

/// The options that set an expiry.
pub(crate) const EXPIRY_TOKENS: [(&str, TimeUnit, ExpiryBase); 4] = [
    ("EX", TimeUnit::Seconds, ExpiryBase::Now),
    ("PX", TimeUnit::Millis, ExpiryBase::Now),
    ("EXAT", TimeUnit::Seconds, ExpiryBase::Epoch),
    ("PXAT", TimeUnit::Millis, ExpiryBase::Epoch),
];

/// The expiry options of a command while its arguments are read: at most one of EX PX
/// EXAT PXAT KEEPTTL PERSIST.
///
/// Redis checks the shape of all options before the numbers, so the number stays text
/// until [`ExpiryOptions::ttl`].
#[derive(Debug, Default)]
pub(crate) struct ExpiryOptions {
    at: Option<(TimeUnit, ExpiryBase, Bytes)>,
    keep: bool,
    never: bool,
}

impl ExpiryOptions {
    /// Takes EX, PX, EXAT or PXAT with its number, if it comes next. A repeated option
    /// replaces the first one; a different one is left for the caller to refuse, as in
    /// Redis.
    pub(crate) fn take_until(&mut self, args: &mut Args) -> bool {
        if self.keep || self.never {
            return false;
        }
        EXPIRY_TOKENS.into_iter().any(|(name, unit, since)| {
            if self.at.as_ref().is_some_and(|(old, from, _)| (*old, *from) != (unit, since)) {
                return false;
            }
            let number = args.option(name);
            let found = number.is_some();
            if let Some(number) = number {
                self.at = Some((unit, since, number));
            }
            found
        })
    }

    /// Takes KEEPTTL, if it comes next and is allowed.
    pub(crate) fn take_keep(&mut self, args: &mut Args) -> bool {
        let found = self.at.is_none() && args.flag("KEEPTTL");
        self.keep |= found;
        found
    }

    /// Takes PERSIST, if it comes next and is allowed.
    pub(crate) fn take_never(&mut self, args: &mut Args) -> bool {
        let found = self.at.is_none() && args.flag("PERSIST");
        self.never |= found;
        found
    }

    /// The resulting TTL; `none` if there was no option.
    pub(crate) fn ttl(self, none: Ttl, args: &Args) -> Result<Ttl, Reply> {
        let Some((unit, since, number)) = self.at else {
            return Ok(match (self.keep, self.never) {
                (true, _) => Ttl::Keep,
                (_, true) => Ttl::Never,
                _ => none,
            });
        };
        let number = integer(&number).ok_or_else(errors::not_integer)?;
        let until = deadline(number, unit, since).filter(|_| number > 0);
        until.map(Ttl::Until).ok_or_else(|| errors::invalid_expire(&args.name()))
    }
}

/// The deadline in ms; `None` if it overflows.
fn deadline(number: i64, unit: TimeUnit, since: ExpiryBase) -> Option<Deadline> {
    let ms = match unit {
        TimeUnit::Seconds => number.checked_mul(1000)?,
        TimeUnit::Millis => number,
    };
    match since {
        ExpiryBase::Now => (ms <= i64::MAX - CLOCK_MAX_MS).then_some(Deadline::In(ms)),
        ExpiryBase::Epoch => Some(Deadline::At(ms)),
    }
}

/// A 64-bit integer exactly as Redis writes one (`-0`, `+1`, `01` and ` 1` are refused).
pub fn integer(text: &[u8]) -> Option<i64> {
    row::number::parse_int(text)
}

/// A 64-bit unsigned integer exactly as Redis writes one.
pub fn unsigned(text: &[u8]) -> Option<u64> {
    match text {
        b"0" => Some(0),
        [b'1'..=b'9', ..] if text.len() <= 20 => text.iter().try_fold(0u64, |sum, digit| {
            let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
            sum.checked_mul(10)?.checked_add(digit)
        }),
        _ => None,
    }
}

/// A decimal number as `strtod` reads it, without blanks around it; infinities by name,
/// NaN refused. Hexadecimal, which C accepts as well, is refused.
pub fn float(text: &[u8]) -> Option<f64> {
    let number: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (!number.is_nan()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(line.split(' ').map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect(), 1, 7)
    }

    fn text(reply: Reply) -> String {
        let Reply::Error(line) = reply else { panic!("{reply:?} is no error") };
        line.into_owned()
    }

    #[test]
    fn integers_are_as_redis_writes_them() {
        for (text, number) in [
            ("0", 0),
            ("-1", -1),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(integer(text.as_bytes()), Some(number), "{text}");
        }
        for text in [
            "",
            "-",
            "+1",
            "01",
            "-0",
            "-01",
            " 1",
            "1 ",
            "9223372036854775808",
            "-9223372036854775809",
            "1e3",
            "0x1",
            "1\0",
        ] {
            assert_eq!(integer(text.as_bytes()), None, "{text}");
        }
        assert_eq!(unsigned(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(unsigned(b"18446744073709551616"), None);
    }

    #[test]
    fn floats_are_whole_arguments() {
        for (text, number) in [
            ("1", 1.0),
            ("-.5", -0.5),
            ("5.", 5.0),
            ("1e3", 1000.0),
            ("inf", f64::INFINITY),
            ("+1", 1.0),
        ] {
            assert_eq!(float(text.as_bytes()), Some(number), "{text}");
        }
        for text in ["", " 1", "1 ", "nan", "1x", "1\0", "--1"] {
            assert_eq!(float(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn flags_and_options_match_in_any_case_and_only_when_whole() {
        let mut args = args("set gEt nxx match a* count");
        assert!(args.flag("GET"));
        assert!(!args.flag("NX"));
        assert_eq!(args.next_arg(), "nxx");
        assert_eq!(args.option("MATCH").as_deref(), Some(&b"a*"[..]));
        assert_eq!(args.option("COUNT"), None);
        assert_eq!(text(args.end().unwrap_err()), "ERR syntax error");
        assert_eq!((args.try_next().as_deref(), args.try_next()), (Some(&b"count"[..]), None));
    }

    #[test]
    fn odd_pairs_are_a_wrong_number_of_arguments() {
        assert_eq!(args("x a b c d").pairs::<Bytes>().unwrap().len(), 2);
        assert_eq!(
            text(args("MSet a b c").pairs::<Bytes>().unwrap_err()),
            "ERR wrong number of arguments for 'mset' command"
        );
    }

    fn ttl(line: &str) -> Result<Ttl, String> {
        let mut args = args(line);
        let mut expiry = ExpiryOptions::default();
        while args.left() > 0 {
            if !(expiry.take_until(&mut args)
                || expiry.take_keep(&mut args)
                || expiry.take_never(&mut args))
            {
                return Err(text(Args::syntax()));
            }
        }
        expiry.ttl(Ttl::Default, &args).map_err(text)
    }

    #[test]
    fn expiry_options_exclude_each_other() {
        assert_eq!(ttl("set"), Ok(Ttl::Default));
        assert_eq!(ttl("set ex 10"), Ok(Ttl::Until(Deadline::In(10_000))));
        assert_eq!(ttl("set EX 10 ex 20"), Ok(Ttl::Until(Deadline::In(20_000))));
        assert_eq!(ttl("set pxat 10"), Ok(Ttl::Until(Deadline::At(10))));
        assert_eq!(ttl("set keepttl"), Ok(Ttl::Keep));
        assert_eq!(ttl("set persist"), Ok(Ttl::Never));
        for line in [
            "set ex",
            "set ex 1 px 1",
            "set px 1 exat 1",
            "set keepttl ex 1",
            "set ex 1 keepttl",
            "set persist px 1",
            "set foo",
        ] {
            assert_eq!(ttl(line), Err("ERR syntax error".into()), "{line}");
        }
    }

    #[test]
    fn expiry_numbers_are_checked_after_the_syntax() {
        assert_eq!(ttl("set ex one foo"), Err("ERR syntax error".into()));
        assert_eq!(ttl("set ex one"), Err("ERR value is not an integer or out of range".into()));
        for line in [
            "SET ex 0",
            "set px -1",
            "set ex 9223372036854776",
            "set px 9223372036854775807",
            "set ex 9223370399119966",
        ] {
            assert_eq!(ttl(line), Err("ERR invalid expire time in 'set' command".into()), "{line}");
        }
        assert_eq!(ttl("set pxat 9223372036854775807"), Ok(Ttl::Until(Deadline::At(i64::MAX))));
    }

    #[test]
    fn expire_takes_the_past_but_no_overflow() {
        assert_eq!(
            args("expire -5").deadline(TimeUnit::Seconds, ExpiryBase::Now),
            Ok(Deadline::In(-5000))
        );
        assert_eq!(
            args("expireat 0").deadline(TimeUnit::Seconds, ExpiryBase::Epoch),
            Ok(Deadline::At(0))
        );
        for line in
            ["expire 9223370399119966", "expire -9223372036854776", "expire 9223372036854775807"]
        {
            let reply = args(line).deadline(TimeUnit::Seconds, ExpiryBase::Now).unwrap_err();
            assert_eq!(text(reply), "ERR invalid expire time in 'expire' command");
        }
    }

    #[test]
    fn expire_conditions() {
        assert_eq!(
            args("expire xx gt").expire_if(),
            Ok(ExpireCondition { some: true, later: true, ..Default::default() })
        );
        let refused = |line| text(args(line).expire_if().unwrap_err());
        assert_eq!(
            refused("expire nx xx"),
            "ERR NX and XX, GT or LT options at the same time are not compatible"
        );
        assert_eq!(
            refused("expire gt lt"),
            "ERR GT and LT options at the same time are not compatible"
        );
        assert_eq!(refused("expire Foo"), "ERR Unsupported option Foo");
    }
}
