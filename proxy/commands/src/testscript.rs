//! Test kit for command scripts: parses a script, and compares replies with its
//! expectations.
//!
//! A script lists commands and their expected replies. The same files run without a
//! server (plan, `row::eval`, reply builder; see this crate's `tests/scripts.rs`) and
//! against a live one. The notation is described in `tests/scripts/README.md`.

use std::io::{self, BufRead, Read, Write};

use bytes::Bytes;

use crate::Reply;

mod expected;
mod written;

pub use expected::Expected;
pub use written::written;

/// One script file.
#[derive(Debug, Clone)]
pub struct TestScript {
    /// The script's first line: the behaviour that it shows.
    pub sentence: String,
    /// Needs a server: sessions, elapsed time, several connections.
    pub live: bool,
    /// Needs a clock that stands still, so it cannot run against a server.
    pub pure: bool,
    /// The reason why Redis itself replies differently, if it does.
    pub differs: Option<String>,
    /// Steps of the script.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone)]
pub struct Step {
    /// Line number, from 1.
    pub line: usize,
    /// Action of the step.
    pub action: Action,
}

/// Actions of steps.
#[derive(Debug, Clone)]
pub enum Action {
    /// Sends a command; the reply must match.
    Call {
        /// The command's arguments.
        argv: Vec<Bytes>,
        /// The expected reply.
        expected: Expected,
    },
    /// Sets the protocol version of the following commands: 2 or 3.
    Protocol(u8),
    /// Lets this many ms pass.
    Pass(u64),
}

impl TestScript {
    /// Parses a script; an error names the line and the cause.
    pub fn parse(text: &str) -> Result<TestScript, String> {
        let sentence = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# "))
            .ok_or("line 1: not a sentence (`# ...`)")?;
        let mut script = TestScript {
            sentence: sentence.to_owned(),
            live: false,
            pure: false,
            differs: None,
            steps: Vec::new(),
        };
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())).skip(1);
        while let Some((at, line)) = lines.next() {
            let fault = |what: String| format!("line {at}: {what}");
            let action = if line.is_empty() {
                continue;
            } else if let Some(note) = line.strip_prefix('#') {
                let note = note.trim();
                script.live |= note == "live";
                script.pure |= note == "pure";
                script.differs = script
                    .differs
                    .or_else(|| Some(note.strip_prefix("differs:")?.trim().to_owned()));
                continue;
            } else if let Some(command) = line.strip_prefix('>') {
                let argv = argv(command).map_err(fault)?;
                let expected = lines.next().ok_or_else(|| fault("no reply follows".to_owned()))?.1;
                Action::Call { argv, expected: Expected::parse(expected).map_err(fault)? }
            } else if let Some(directive) = line.strip_prefix('@') {
                directive_of(directive.trim())
                    .ok_or_else(|| fault(format!("unknown directive {directive}")))?
            } else {
                return Err(fault("neither `>`, `@` nor `#`".to_owned()));
            };
            script.steps.push(Step { line: at, action });
        }
        Ok(script)
    }

    /// The commands of the script.
    pub fn calls(&self) -> impl Iterator<Item = &[Bytes]> {
        self.steps.iter().filter_map(|step| match &step.action {
            Action::Call { argv, .. } => Some(argv.as_slice()),
            _ => None,
        })
    }

    /// Runs the script against a server over one connection, starting from an empty
    /// table. An error names the line that did not match, or the failure. Not for scripts
    /// that are [`pure`](TestScript::pure).
    pub fn run<S: Read + Write>(&self, stream: S) -> Result<(), String> {
        let mut stream = io::BufReader::new(stream);
        let failed = |error: io::Error| format!("connection: {error}");
        let mut call = |argv: &[Bytes], expected: &Expected| -> Result<(), String> {
            stream.get_mut().write_all(&encode(argv)).map_err(failed)?;
            // An unexpected reply would show at the next command.
            if *expected == Expected::None {
                Ok(())
            } else {
                expected.check(&Value::read(&mut stream).map_err(failed)?)
            }
        };
        call(&[Bytes::from_static(b"FLUSHALL")], &Expected::Any)?;
        for step in &self.steps {
            match &step.action {
                Action::Call { argv, expected } => {
                    call(argv, expected).map_err(|fault| format!("line {}: {fault}", step.line))?;
                }
                Action::Protocol(version) => call(
                    &[Bytes::from_static(b"HELLO"), version.to_string().into()],
                    &Expected::Any,
                )?,
                Action::Pass(ms) => std::thread::sleep(std::time::Duration::from_millis(*ms)),
            }
        }
        Ok(())
    }
}

fn directive_of(text: &str) -> Option<Action> {
    match text {
        "RESP2" => Some(Action::Protocol(2)),
        "RESP3" => Some(Action::Protocol(3)),
        _ => text.strip_prefix('+')?.parse().ok().map(Action::Pass),
    }
}

/// Encodes a command for a server.
fn encode(argv: &[Bytes]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", argv.len()).into_bytes();
    for word in argv {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Splits a line as redis-cli does: blanks separate; `"..."` knows `\n \r \t \a \b \xHH`,
/// `'...'` only `\'`.
pub fn argv(line: &str) -> Result<Vec<Bytes>, String> {
    let mut rest = line.trim().as_bytes();
    let mut argv = Vec::new();
    while !rest.is_empty() {
        let mut word = Vec::new();
        while let Some((&byte, after)) =
            rest.split_first().filter(|(byte, _)| !byte.is_ascii_whitespace())
        {
            rest = match byte {
                b'"' | b'\'' => quoted(byte, after, &mut word)?,
                _ => {
                    word.push(byte);
                    after
                }
            };
        }
        argv.push(Bytes::from(word));
        rest = rest.trim_ascii_start();
    }
    Ok(argv)
}

/// Reads to the closing quote; returns the rest behind it.
fn quoted<'a>(quote: u8, mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], String> {
    loop {
        let (byte, after) = match rest {
            [] => return Err("a quote is not closed".to_owned()),
            [end, after @ ..] if *end == quote => return Ok(after),
            [b'\\', b'x', high, low, after @ ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
                (digit(*high) << 4 | digit(*low), after)
            }
            [b'\\', byte, after @ ..] if quote == b'"' => {
                let byte = match byte {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'a' => 7,
                    b'b' => 8,
                    other => *other,
                };
                (byte, after)
            }
            [b'\\', b'\'', after @ ..] if quote == b'\'' => (b'\'', after),
            [byte, after @ ..] => (*byte, after),
        };
        word.push(byte);
        rest = after;
    }
}

/// A reply as a client of one protocol version sees it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `+`
    Status(String),
    /// `-`
    Error(String),
    /// `:`
    Int(i64),
    /// `$`
    Bulk(Bytes),
    /// `=`, without its type
    Text(Bytes),
    /// `$-1`, `_`
    Nil,
    /// `*-1`
    NilArray,
    /// `,`
    Double(f64),
    /// `#`
    Bool(bool),
    /// `*`
    Array(Vec<Value>),
    /// `~`
    Set(Vec<Value>),
    /// `>`
    Push(Vec<Value>),
    /// `%`
    Map(Vec<(Value, Value)>),
}

impl Value {
    /// The reply as a client of protocol version 2 or 3 sees it.
    pub fn of(reply: Reply, protocol: u8) -> Value {
        let many = |replies: Vec<Reply>| {
            replies.into_iter().map(|reply| Value::of(reply, protocol)).collect::<Vec<_>>()
        };
        let flat = |pairs: Vec<(Reply, Reply)>| {
            many(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect())
        };
        let old = protocol < 3;
        match reply {
            Reply::Status(text) => Value::Status(text.into_owned()),
            Reply::Error(text) => Value::Error(text.into_owned()),
            Reply::Int(number) => Value::Int(number),
            Reply::Bulk(bytes) => Value::Bulk(bytes),
            Reply::Text(text) if old => Value::Bulk(text.into()),
            Reply::Text(text) => Value::Text(text.into()),
            Reply::NilArray if old => Value::NilArray,
            Reply::Nil | Reply::NilArray => Value::Nil,
            Reply::Double(number) if old => Value::Bulk(number.to_string().into()),
            Reply::Double(number) => Value::Double(number),
            Reply::Bool(bool) if old => Value::Int(bool.into()),
            Reply::Bool(bool) => Value::Bool(bool),
            Reply::Map(pairs) | Reply::Pairs(pairs) if old => Value::Array(flat(pairs)),
            Reply::Map(pairs) => Value::Map(
                pairs
                    .into_iter()
                    .map(|(key, value)| (Value::of(key, 3), Value::of(value, 3)))
                    .collect(),
            ),
            Reply::Pairs(pairs) => Value::Array(
                pairs
                    .into_iter()
                    .map(|(key, value)| Value::Array(many(vec![key, value])))
                    .collect(),
            ),
            Reply::Set(replies) if !old => Value::Set(many(replies)),
            Reply::Push(replies) if !old => Value::Push(many(replies)),
            Reply::Array(replies) | Reply::Set(replies) | Reply::Push(replies) => {
                Value::Array(many(replies))
            }
        }
    }

    /// Reads one reply from a server.
    pub fn read(from: &mut impl BufRead) -> io::Result<Value> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line)?;
        let Some((kind, text)) = line.strip_suffix(b"\r\n").and_then(|line| line.split_first())
        else {
            return Err(if line.is_empty() {
                io::ErrorKind::UnexpectedEof.into()
            } else {
                bad("a line that is none")
            });
        };
        let text = String::from_utf8_lossy(text).into_owned();
        let number = || text.parse::<i64>().map_err(|_| bad("a number that is none"));
        let mut many = |per: i64| -> io::Result<Vec<Value>> {
            (0..number()? * per).map(|_| Value::read(from)).collect()
        };
        Ok(match kind {
            b'+' => Value::Status(text),
            b'-' => Value::Error(text),
            b':' => Value::Int(number()?),
            b'_' => Value::Nil,
            b'#' => Value::Bool(text == "t"),
            b',' => Value::Double(text.parse().map_err(|_| bad("a double that is none"))?),
            b'$' | b'=' => match usize::try_from(number()?) {
                Err(_) => Value::Nil,
                Ok(len) => {
                    let mut bytes = vec![0; len + 2];
                    from.read_exact(&mut bytes)?;
                    bytes.truncate(len);
                    if *kind == b'=' {
                        Value::Text(bytes.split_off(4.min(len)).into())
                    } else {
                        Value::Bulk(bytes.into())
                    }
                }
            },
            b'*' if text == "-1" => Value::NilArray,
            b'*' => Value::Array(many(1)?),
            b'~' => Value::Set(many(1)?),
            b'>' => Value::Push(many(1)?),
            b'%' => {
                let mut flat = many(2)?.into_iter();
                Value::Map(std::iter::from_fn(|| Some((flat.next()?, flat.next()?))).collect())
            }
            other => return Err(bad(&format!("a reply of unknown kind {other}"))),
        })
    }
}

/// Prints a value in the scripts' notation, so that it can be pasted into a script.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |f: &mut std::fmt::Formatter<'_>, open: &str, values: &[Value]| {
            write!(f, "{open}")?;
            for (at, value) in values.iter().enumerate() {
                write!(f, "{}{value}", if at > 0 { ", " } else { "" })?;
            }
            write!(f, "]")
        };
        match self {
            Value::Status(text) => write!(f, "+\"{}\"", text.escape_default()),
            Value::Error(text) => write!(f, "-\"{}\"", text.escape_default()),
            Value::Int(number) => write!(f, ":{number}"),
            Value::Bulk(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Value::Text(bytes) => write!(f, "=\"{}\"", bytes.escape_ascii()),
            Value::Nil => write!(f, "nil"),
            Value::NilArray => write!(f, "nil-array"),
            Value::Double(number) => write!(f, ",{number}"),
            Value::Bool(bool) => write!(f, "#{}", if *bool { 't' } else { 'f' }),
            Value::Array(values) => list(f, "[", values),
            Value::Set(values) => list(f, "~[", values),
            Value::Push(values) => list(f, ">[", values),
            Value::Map(pairs) => {
                write!(f, "{{")?;
                for (at, (key, value)) in pairs.iter().enumerate() {
                    write!(f, "{}{key} => {value}", if at > 0 { ", " } else { "" })?;
                }
                write!(f, "}}")
            }
        }
    }
}
