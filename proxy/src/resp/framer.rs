//! Framing: finds complete commands in a client's input.
//!
//! The framer reads every byte of framing once and no byte of an argument: it remembers
//! where it stopped, so a command of a megabyte that arrives in a thousand pieces costs
//! no more than one that arrives whole. What it learns on the way, the ranges of the
//! arguments, it keeps, so that nobody has to parse the command again. It also detects
//! malformed and oversized input, with Redis's errors, before anything is allocated for
//! it.

use std::borrow::Cow;
use std::ops::Range;

use crate::settings::ByteLimit;

/// Redis's `PROTO_INLINE_MAX_SIZE`: the longest inline command, and the longest line with
/// a length.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Redis's limits for unauthenticated clients.
const UNAUTHENTICATED_ARGS_MAX: i64 = 10;
const UNAUTHENTICATED_BULK_BYTES_MAX: u64 = 16384;
/// Redis's limit for all clients.
const ARGS_MAX: i64 = i32::MAX as i64;
/// Redis's error for an invalid or excessive number of arguments.
const MULTIBULK: &str = "invalid multibulk length";
/// Redis's error for an invalid or excessive length.
const BULK: &str = "invalid bulk length";
/// Estimated memory of an argument besides its bytes until its command is answered: its
/// place in the argument vector, and often an op of its own and the outcome.
pub(crate) const ARG_OVERHEAD_BYTES: usize = 200;

/// Limits of a client's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest argument (`proto-max-bulk-len`).
    pub bulk: ByteLimit,
    /// The longest command, framing included (`client-query-buffer-limit`).
    pub command: ByteLimit,
    /// The client must authenticate first: much tighter limits.
    pub is_unauthenticated: bool,
}

impl Limits {
    /// Maximum number of arguments of a command: their memory fits where the longest
    /// command fits.
    pub fn args_max(self) -> usize {
        self.command.bytes / ARG_OVERHEAD_BYTES
    }
}

/// The position of one complete command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandSpan {
    /// Start, in the bytes given to the framer.
    pub start: usize,
    /// End; the next command starts here.
    pub end: usize,
    /// A line of arguments, not an array of bulk strings.
    pub is_inline: bool,
    /// Index of the first argument in [`Framer::args`].
    pub first_arg: usize,
    /// Number of arguments.
    pub argc: usize,
}

/// Malformed or oversized input, after which the connection is closed; the text behind
/// `-ERR Protocol error: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Protocol error: {why}")]
pub struct ProtocolError {
    /// Redis's error text, with the limit if there is one.
    pub why: Cow<'static, str>,
    /// Set if the command is valid RESP but oversized: the rest to be discarded.
    pub rest: Option<OversizedRest>,
    /// The command exceeds `client-query-buffer-limit`.
    pub exceeds_query_buffer: bool,
}

/// The rest of an oversized command, to be read and discarded, as a client that is still
/// sending does not read the error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OversizedRest {
    /// Length of the input that has been processed.
    seen: usize,
    /// Bytes to skip whatever they are.
    skipped: u64,
    /// Arguments after these bytes.
    args_left: usize,
    /// The command ends with a line end.
    is_inline: bool,
    /// The start of an incomplete line with a length.
    line: Vec<u8>,
}

/// Progress of discarding an oversized command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscardProgress {
    /// More is to come.
    More,
    /// The end was reached.
    All,
    /// The input is no longer RESP, so the end is unknown.
    Desynchronized,
}

impl OversizedRest {
    /// `skipped` bytes of an announced length, then `args_left` arguments. `seen` bytes
    /// of the input before them have been processed.
    fn behind(seen: usize, skipped: u64, args_left: usize) -> OversizedRest {
        OversizedRest { seen, skipped, args_left, is_inline: false, line: Vec::new() }
    }

    /// The first `bytes` bytes of the input were removed.
    pub fn taken(&mut self, bytes: usize) {
        self.seen -= bytes;
    }

    /// Processes input; the first time, all input that the framer was given.
    pub fn take(&mut self, bytes: &[u8]) -> DiscardProgress {
        let mut bytes = &bytes[std::mem::take(&mut self.seen).min(bytes.len())..];
        if self.is_inline {
            return if bytes.contains(&b'\n') {
                DiscardProgress::All
            } else {
                DiscardProgress::More
            };
        }
        loop {
            let skipped = usize::try_from(self.skipped).unwrap_or(usize::MAX).min(bytes.len());
            self.skipped -= skipped as u64;
            bytes = &bytes[skipped..];
            if self.skipped > 0 {
                return DiscardProgress::More;
            }
            if self.args_left == 0 {
                return DiscardProgress::All;
            }
            let end = bytes.iter().position(|&byte| byte == b'\n');
            self.line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len()).min(LINE_BYTES_MAX)]);
            let Some(end) = end else {
                return if self.line.len() > LINE_BYTES_MAX {
                    DiscardProgress::Desynchronized
                } else {
                    DiscardProgress::More
                };
            };
            bytes = &bytes[end + 1..];
            let length = self
                .line
                .strip_prefix(b"$")
                .and_then(|line| line.strip_suffix(b"\r"))
                .and_then(number);
            let Some(length) = length.and_then(|length| u64::try_from(length).ok()) else {
                return DiscardProgress::Desynchronized;
            };
            self.line.clear();
            (self.skipped, self.args_left) = (length.saturating_add(2), self.args_left - 1);
        }
    }
}

const fn malformed(why: &'static str) -> ProtocolError {
    ProtocolError { why: Cow::Borrowed(why), rest: None, exceeds_query_buffer: false }
}

const fn too_large(why: Cow<'static, str>, rest: OversizedRest) -> ProtocolError {
    ProtocolError { why, rest: Some(rest), exceeds_query_buffer: false }
}

const fn over_query(why: String, rest: OversizedRest) -> ProtocolError {
    ProtocolError { why: Cow::Owned(why), rest: Some(rest), exceeds_query_buffer: true }
}

/// The framer's position in a stream of commands, and the arguments found.
#[derive(Debug, Default, Clone)]
pub struct Framer {
    /// Start of the current command.
    start: usize,
    /// Position up to which it was read; beyond the end of the bytes while an argument is
    /// incomplete.
    at: usize,
    /// Within a line whose end is being searched: the position searched so far.
    searched: usize,
    /// Number of arguments still to come; `None` = the first line of the command is
    /// incomplete.
    args_left: Option<usize>,
    /// Ranges of the arguments found, counted from the start of each one's command.
    args: Vec<Range<usize>>,
    /// Index in `args` of the current command's first argument.
    first_arg: usize,
    /// Number of `args` at the front whose commands were removed.
    args_taken: usize,
}

impl Framer {
    /// The next complete command in `bytes`, which start as in the last call and may have
    /// grown; `None`: more bytes are needed. Empty commands (blank lines, `*0`, `*-1`)
    /// are skipped.
    pub fn next(
        &mut self,
        bytes: &[u8],
        limits: Limits,
    ) -> Result<Option<CommandSpan>, ProtocolError> {
        if self.args_taken > 0 {
            self.args.drain(..self.args_taken);
            self.first_arg -= std::mem::take(&mut self.args_taken);
        }
        loop {
            match self.args_left {
                None => match bytes.get(self.start) {
                    None => return Ok(None),
                    Some(b'*') => {
                        let line = self.line(bytes, "too big mbulk count string")?;
                        let Some((text, next)) = line else {
                            return self.unfinished(bytes, limits);
                        };
                        let argc = number(&text[1..])
                            .filter(|argc| *argc <= ARGS_MAX)
                            .ok_or(malformed(MULTIBULK))?;
                        let is_over = limits.is_unauthenticated && argc > UNAUTHENTICATED_ARGS_MAX;
                        let argc = usize::try_from(argc).unwrap_or(0);
                        if is_over {
                            return Err(too_large(
                                "unauthenticated multibulk length".into(),
                                OversizedRest::behind(next, 0, argc),
                            ));
                        }
                        match argc {
                            0 => self.begin(next),
                            argc if argc > limits.args_max() => {
                                let why = format!(
                                    "{MULTIBULK}: {argc} arguments, at {ARG_OVERHEAD_BYTES} bytes \
                                     each, are more than {}",
                                    limits.command
                                );
                                return Err(over_query(why, OversizedRest::behind(next, 0, argc)));
                            }
                            argc => self.advance(next, argc),
                        }
                    }
                    Some(_) => {
                        let Some(span) = self.inline(bytes)? else {
                            return self.unfinished(bytes, limits);
                        };
                        if let Some(span) = span {
                            return Ok(Some(span));
                        }
                    }
                },
                Some(0) if self.at <= bytes.len() => {
                    return Ok(Some(self.complete(self.at, false)));
                }
                Some(0) => return self.unfinished(bytes, limits),
                Some(_) if self.at >= bytes.len() => return self.unfinished(bytes, limits),
                Some(argc) => {
                    let line = self.line(bytes, "too big bulk count string")?;
                    let Some((text, next)) = line else { return self.unfinished(bytes, limits) };
                    let (&mark, text) = text.split_first().ok_or_else(|| expected(b'\r'))?;
                    if mark != b'$' {
                        return Err(expected(mark));
                    }
                    let length = number(text)
                        .and_then(|length| u64::try_from(length).ok())
                        .ok_or(malformed(BULK))?;
                    let rest = || OversizedRest::behind(next, length.saturating_add(2), argc - 1);
                    if limits.is_unauthenticated && length > UNAUTHENTICATED_BULK_BYTES_MAX {
                        return Err(too_large("unauthenticated bulk length".into(), rest()));
                    }
                    if length > limits.bulk.bytes as u64 {
                        return Err(too_large(
                            format!("{BULK}: {length} bytes are more than {}", limits.bulk).into(),
                            rest(),
                        ));
                    }
                    let end = next + length as usize;
                    self.args.push(next - self.start..end - self.start);
                    self.advance(end + 2, argc - 1);
                }
            }
        }
    }

    /// The first `bytes` bytes were removed; only whole commands may be. Their arguments
    /// are known until the next command is looked for.
    pub fn taken(&mut self, bytes: usize) {
        assert!(bytes <= self.start, "only what has passed the gate is taken");
        self.start -= bytes;
        self.at -= bytes;
        self.searched = self.searched.saturating_sub(bytes);
        self.args_taken = self.first_arg;
    }

    /// Ranges of the arguments of the commands found, each counted from the start of its
    /// command.
    pub fn args(&self) -> &[Range<usize>] {
        &self.args
    }

    /// Memory of these ranges, bytes.
    pub fn args_bytes(&self) -> usize {
        self.args.capacity() * size_of::<Range<usize>>()
    }

    /// Releases their memory, unless it is small or an incomplete command has arguments;
    /// the commands found are done with.
    pub fn release_args(&mut self, bytes_max: usize) {
        if self.args_bytes() > bytes_max && self.args.len() == self.first_arg {
            (self.args, self.first_arg, self.args_taken) = (Vec::new(), 0, 0);
        }
    }

    /// Length of the complete and empty commands at the start.
    pub fn passed(&self) -> usize {
        self.start
    }

    /// Number of bytes, from the start, that are needed at least for another command.
    pub fn wanted(&self) -> usize {
        self.at.max(self.start)
    }

    fn begin(&mut self, at: usize) {
        (self.start, self.at, self.searched) = (at, at, at);
        self.args_left = None;
        self.first_arg = self.args.len();
    }

    /// The current command, which ends at `end`; the next one begins there.
    fn complete(&mut self, end: usize, is_inline: bool) -> CommandSpan {
        let (start, first_arg) = (self.start, self.first_arg);
        self.begin(end);
        CommandSpan { start, end, is_inline, first_arg, argc: self.first_arg - first_arg }
    }

    fn advance(&mut self, at: usize, args_left: usize) {
        self.at = at;
        self.searched = at;
        self.args_left = Some(args_left);
    }

    /// The line at `self.at` without its end, and the start of the next one. As in Redis
    /// a line ends at the first CR, whatever byte follows.
    fn line<'a>(
        &mut self,
        bytes: &'a [u8],
        too_big: &'static str,
    ) -> Result<Option<(&'a [u8], usize)>, ProtocolError> {
        match bytes[self.searched..].iter().position(|&byte| byte == b'\r') {
            Some(found) if self.searched + found + 1 < bytes.len() => {
                let end = self.searched + found;
                Ok(Some((&bytes[self.at..end], end + 2)))
            }
            Some(found) => {
                self.searched += found;
                Ok(None)
            }
            None if bytes.len() - self.at > LINE_BYTES_MAX => Err(malformed(too_big)),
            None => {
                self.searched = bytes.len();
                Ok(None)
            }
        }
    }

    /// An inline command at `self.start`; the inner `None`: a blank line, which is
    /// skipped.
    fn inline(&mut self, bytes: &[u8]) -> Result<Option<Option<CommandSpan>>, ProtocolError> {
        let Some(found) = bytes[self.searched..].iter().position(|&byte| byte == b'\n') else {
            self.searched = bytes.len();
            let rest =
                || OversizedRest { is_inline: true, ..OversizedRest::behind(bytes.len(), 0, 0) };
            let is_too_long = bytes.len() - self.start > LINE_BYTES_MAX;
            return if is_too_long {
                Err(too_large("too big inline request".into(), rest()))
            } else {
                Ok(None)
            };
        };
        let end = self.searched + found + 1;
        super::inline::split(&bytes[self.start..end], &mut self.args)
            .ok_or(malformed("unbalanced quotes in request"))?;
        let span = self.complete(end, true);
        Ok(Some((span.argc > 0).then_some(span)))
    }

    fn unfinished(
        &self,
        bytes: &[u8],
        limits: Limits,
    ) -> Result<Option<CommandSpan>, ProtocolError> {
        let so_far = self.at.max(bytes.len()) - self.start;
        if so_far > limits.command.bytes {
            let why = format!("command is longer than {}", limits.command);
            let seen = self.at.min(bytes.len());
            return Err(over_query(
                why,
                OversizedRest::behind(seen, (self.at - seen) as u64, self.args_left.unwrap_or(0)),
            ));
        }
        Ok(None)
    }
}

/// Redis prints the byte as it is, and line ends as blanks; other non-printable bytes are
/// question marks here.
fn expected(got: u8) -> ProtocolError {
    let got = match got {
        b'\r' | b'\n' => ' ',
        got if got.is_ascii_graphic() || got == b' ' => char::from(got),
        _ => '?',
    };
    ProtocolError {
        why: format!("expected '$', got '{got}'").into(),
        rest: None,
        exceeds_query_buffer: false,
    }
}

/// A length exactly as Redis reads it: no sign but `-`, no leading zeros, no blanks.
fn number(text: &[u8]) -> Option<i64> {
    // Fast path, as most lengths have one or two digits.
    match *text {
        [ones @ b'0'..=b'9'] => Some(i64::from(ones - b'0')),
        [tens @ b'1'..=b'9', ones @ b'0'..=b'9'] => {
            Some(i64::from((tens - b'0') * 10 + (ones - b'0')))
        }
        _ => commands::args::integer(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn bound(bytes: usize) -> ByteLimit {
        ByteLimit { bytes, name: "limit", is_live: true }
    }

    const LIMITS: Limits =
        Limits { bulk: bound(1 << 20), command: bound(4 << 20), is_unauthenticated: false };
    const UNAUTHENTICATED: Limits = Limits { is_unauthenticated: true, ..LIMITS };

    /// All commands that the framer finds when the bytes come in pieces of `step`.
    fn found(bytes: &[u8], step: usize, limits: Limits) -> (Vec<Vec<u8>>, Option<String>) {
        let (mut framer, mut found, mut held) = (Framer::default(), Vec::new(), Vec::new());
        for piece in bytes.chunks(step.max(1)) {
            held.extend_from_slice(piece);
            loop {
                match framer.next(&held, limits) {
                    Ok(Some(span)) => found.push(held[span.start..span.end].to_vec()),
                    Ok(None) => break,
                    Err(error) => return (found, Some(error.to_string())),
                }
            }
            let passed = framer.passed();
            held.drain(..passed);
            framer.taken(passed);
        }
        (found, None)
    }

    fn check(bytes: &[u8], commands: &[&[u8]], error: Option<&str>, limits: Limits) {
        for step in [1, 2, 3, 7, 64, bytes.len()] {
            let (got, failed) = found(bytes, step, limits);
            assert_eq!(got, commands, "step {step}");
            assert_eq!(
                failed.as_deref(),
                error.map(|error| format!("Protocol error: {error}")).as_deref(),
                "step {step}"
            );
        }
    }

    #[test]
    fn commands_are_found_however_they_are_cut() {
        let get: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
        let ping: &[u8] = b"*1\r\n$4\r\nPING\r\n";
        check(
            &[get, ping, b"\r\n", b"*0\r\n", b"*-1\r\n", b"PING a\r\n", get].concat(),
            &[get, ping, b"PING a\r\n", get],
            None,
            LIMITS,
        );
        check(
            b"*2\r\n$0\r\n\r\n$2\r\n\r\n\r\n",
            &[b"*2\r\n$0\r\n\r\n$2\r\n\r\n\r\n"],
            None,
            LIMITS,
        );
    }

    #[test]
    fn incomplete_commands_wait() {
        for bytes in [
            &b"*"[..],
            b"*2\r",
            b"*2\r\n",
            b"*1\r\n$4\r\nPIN",
            b"*1\r\n$4\r\nPING",
            b"*1\r\n$4\r\nPING\r",
            b"PING",
        ] {
            check(bytes, &[], None, LIMITS);
        }
    }

    #[test]
    fn malformed_input_gets_redis_errors() {
        for (bytes, error) in [
            (&b"*x\r\n"[..], "invalid multibulk length"),
            (b"*+1\r\n", "invalid multibulk length"),
            (b"*2147483648\r\n", "invalid multibulk length"),
            (b"*9223372036854775807\r\n", "invalid multibulk length"),
            (b"*\r\n", "invalid multibulk length"),
            (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
            (b"*1\r\n\r\n", "expected '$', got ' '"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (
                b"*1\r\n$1048577\r\n",
                "invalid bulk length: 1048577 bytes are more than limit (1048576 bytes; CONFIG \
                 SET changes it)",
            ),
            (b"*1\r\n$x\r\n", "invalid bulk length"),
            (b"GET \"k\n", "unbalanced quotes in request"),
            (b"GET 'k'x\n", "unbalanced quotes in request"),
        ] {
            check(bytes, &[], Some(error), LIMITS);
        }
        let long = vec![b'1'; LINE_BYTES_MAX + 2];
        check(&[b"*", &long[..]].concat(), &[], Some("too big mbulk count string"), LIMITS);
        check(&[b"*1\r\n$", &long[..]].concat(), &[], Some("too big bulk count string"), LIMITS);
        check(&long, &[], Some("too big inline request"), LIMITS);
    }

    #[test]
    fn unauthenticated_limits_are_tight() {
        check(b"*11\r\n", &[], Some("unauthenticated multibulk length"), UNAUTHENTICATED);
        check(b"*2\r\n$16385\r\n", &[], Some("unauthenticated bulk length"), UNAUTHENTICATED);
        check(b"*1\r\n$4\r\nPING\r\n", &[b"*1\r\n$4\r\nPING\r\n"], None, UNAUTHENTICATED);
    }

    #[test]
    fn command_over_the_query_buffer_is_refused_before_it_arrives() {
        let limits = Limits { command: bound(1000), ..LIMITS };
        let why = "command is longer than limit (1000 bytes; CONFIG SET changes it)";
        check(b"*2\r\n$3\r\nGET\r\n$2000\r\n", &[], Some(why), limits);
    }

    #[test]
    fn arguments_count_for_more_than_their_bytes() {
        let limits = Limits { command: bound(1000), ..LIMITS };
        let five: &[u8] = b"*5\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\ne\r\n";
        check(five, &[five], None, limits);
        let why = "invalid multibulk length: 6 arguments, at 200 bytes each, are more than limit \
                   (1000 bytes; CONFIG SET changes it)";
        check(b"*6\r\n", &[], Some(why), limits);
        let argc = |bytes| Framer::default().next(bytes, limits).unwrap().unwrap().argc;
        assert_eq!((argc(five), argc(b"a 'b c' d\r\n")), (5, 3));
    }

    #[test]
    fn arguments_are_kept_until_their_commands_are_done() {
        let bytes = b"GET a\r\n*2\r\n$3\r\nGET\r\n$1\r\nb\r\n*2\r\n$3\r\nGET\r\n$1";
        let mut framer = Framer::default();
        let spans = [(); 2].map(|()| framer.next(bytes, LIMITS).expect("valid").expect("complete"));
        assert_eq!(framer.next(bytes, LIMITS), Ok(None));
        let args = |span: CommandSpan| {
            let ranges = &framer.args()[span.first_arg..][..span.argc];
            let arg = |range: &Range<usize>| &bytes[span.start..span.end][range.clone()];
            ranges.iter().map(arg).collect::<Vec<_>>()
        };
        assert_eq!(spans.map(args), [[b"GET", &b"a"[..]], [b"GET", b"b"]]);
        let passed = framer.passed();
        framer.taken(passed);
        assert_eq!(framer.next(&bytes[passed..], LIMITS), Ok(None));
        let rest: Vec<_> = framer.args().iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(rest, [(8, 11)], "of the command that is incomplete");
        framer.release_args(0);
        assert!(framer.args_bytes() > 0);
        let last = [&bytes[passed..], b"\r\nc\r\n"].concat();
        let span = framer.next(&last, LIMITS).expect("valid").expect("complete");
        assert_eq!((span.first_arg, span.argc), (0, 2));
        framer.release_args(0);
        assert_eq!(framer.args_bytes(), 0);
    }

    #[test]
    fn long_command_in_pieces_is_scanned_once() {
        // 100,000 arguments in pieces of one byte: quadratic work would not finish.
        let limits = Limits { command: bound(100_000 * ARG_OVERHEAD_BYTES), ..LIMITS };
        let mut bytes = b"*100000\r\n".to_vec();
        for _ in 0..100_000 {
            bytes.extend_from_slice(b"$1\r\nx\r\n");
        }
        let (mut framer, mut commands) = (Framer::default(), 0);
        for end in 0..=bytes.len() {
            commands += usize::from(framer.next(&bytes[..end], limits).unwrap().is_some());
        }
        assert_eq!(commands, 1);
    }

    #[test]
    fn oversized_command_is_followed_to_its_end() {
        let tight = Limits { bulk: bound(10), command: bound(1000), ..LIMITS };
        let (long, line) = ("x".repeat(20), "y".repeat(LINE_BYTES_MAX + 100));
        for (command, limits) in [
            (format!("*3\r\n$3\r\nSET\r\n$20\r\n{long}\r\n$2\r\n\r\n\r\n"), tight),
            (format!("*6\r\n{}", "$1\r\na\r\n".repeat(6)), tight),
            (
                format!("*2\r\n$3\r\nGET\r\n$2000\r\n{}\r\n", "z".repeat(2000)),
                Limits { command: bound(1000), ..LIMITS },
            ),
            (format!("{line}\r\n"), LIMITS),
            (format!("*11\r\n{}", "$1\r\na\r\n".repeat(11)), UNAUTHENTICATED),
        ] {
            for step in [1, 7, command.len() - 1] {
                let (mut framer, mut held, mut rest) =
                    (Framer::default(), Vec::new(), None::<OversizedRest>);
                let mut progress = Vec::new();
                for piece in command.as_bytes().chunks(step) {
                    held.extend_from_slice(piece);
                    if rest.is_none() {
                        rest = framer
                            .next(&held, limits)
                            .err()
                            .map(|error| error.rest.expect("it is too large, not wrong"));
                    }
                    if let Some(rest) = &mut rest {
                        progress.push(rest.take(&std::mem::take(&mut held)));
                    }
                }
                assert_eq!(
                    progress.pop(),
                    Some(DiscardProgress::All),
                    "{} in steps of {step}",
                    &command[..20]
                );
                assert!(
                    progress.iter().all(|progress| *progress == DiscardProgress::More),
                    "{} in steps of {step}",
                    &command[..20]
                );
            }
        }
        let mut rest = OversizedRest::behind(0, 0, 2);
        assert_eq!(rest.take(b"$1\r\na\r\nPING\r\n"), DiscardProgress::Desynchronized);
    }
}
