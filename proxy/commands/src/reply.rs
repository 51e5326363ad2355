//! Replies, independent of the client's protocol version.
//!
//! A reply is written as it is made: builders write the answers of ops into a
//! [`ReplyWriter`], which in the proxy is the connection's output. No tree of values is
//! built for it. A [`Reply`] is such a tree, for replies that are made before their turn
//! to be written comes (errors, documentation, the results of local commands), and for
//! tests, which compare replies as values.

use std::borrow::Cow;

use bytes::Bytes;

/// Takes a reply while it is made, value after value.
///
/// A reply is one value. The values of an array, map or the like follow its head, in
/// order: as many as the head says, keys and values of a map in turn.
pub trait ReplyWriter {
    /// `+OK` and the like.
    fn status(&mut self, text: &str);

    /// `-ERR ...`: the whole line with its prefix, without CR LF.
    fn error(&mut self, line: &str);

    /// `:1`
    fn int(&mut self, number: i64);

    /// `$3 foo`
    fn bulk(&mut self, bytes: &[u8]);

    /// Text for people: a verbatim string in RESP3, a bulk string in RESP2.
    fn text(&mut self, text: &str);

    /// A null: `$-1` in RESP2, `_` in RESP3.
    fn nil(&mut self);

    /// A null where an array was expected: `*-1` in RESP2, `_` in RESP3.
    fn nil_array(&mut self);

    /// A double; its decimal text as a bulk string in RESP2.
    fn double(&mut self, number: f64);

    /// `#t`, `:1` in RESP2.
    fn bool(&mut self, yes: bool);

    /// The head of an array of `len` values.
    fn array(&mut self, len: usize);

    /// The head of a set of `len` values; an array in RESP2.
    fn set(&mut self, len: usize);

    /// The head of an out-of-band message of `len` values; an array in RESP2.
    fn push(&mut self, len: usize);

    /// The head of a map of `len` keys and their values; a flat array in RESP2.
    fn map(&mut self, len: usize);

    /// The head of `len` pairs that Redis nests in RESP3 (HRANDFIELD WITHVALUES) and
    /// flattens in RESP2. [`ReplyWriter::pair`] precedes each of them.
    fn pairs(&mut self, len: usize);

    /// The head of one pair: two values follow.
    fn pair(&mut self);
}

/// Estimated memory of a value of a reply besides its bytes.
pub const VALUE_BYTES: usize = size_of::<Reply>();

/// A reply to a client, as a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// `+OK` and the like.
    Status(Cow<'static, str>),
    /// `-ERR ...`: the whole line with its prefix, without CR LF.
    Error(Cow<'static, str>),
    /// `:1`
    Int(i64),
    /// `$3 foo`
    Bulk(Bytes),
    /// Text for people: a verbatim string in RESP3, a bulk string in RESP2.
    Text(String),
    /// A null: `$-1` in RESP2, `_` in RESP3.
    Nil,
    /// A null where an array was expected: `*-1` in RESP2, `_` in RESP3.
    NilArray,
    /// A double; its decimal text as a bulk string in RESP2.
    Double(f64),
    /// `#t`, `:1` in RESP2.
    Bool(bool),
    /// An array.
    Array(Vec<Reply>),
    /// A map; a flat array in RESP2.
    Map(Vec<(Reply, Reply)>),
    /// A set; an array in RESP2.
    Set(Vec<Reply>),
    /// Pairs that Redis nests in RESP3 (HRANDFIELD WITHVALUES) and flattens in RESP2.
    Pairs(Vec<(Reply, Reply)>),
    /// An out-of-band message; an array in RESP2.
    Push(Vec<Reply>),
}

impl Reply {
    /// `+OK`
    pub const OK: Reply = Reply::Status(Cow::Borrowed("OK"));

    /// Writes the reply.
    pub fn write<W: ReplyWriter + ?Sized>(&self, to: &mut W) {
        match self {
            Reply::Status(text) => to.status(text),
            Reply::Error(line) => to.error(line),
            Reply::Int(number) => to.int(*number),
            Reply::Bulk(bytes) => to.bulk(bytes),
            Reply::Text(text) => to.text(text),
            Reply::Nil => to.nil(),
            Reply::NilArray => to.nil_array(),
            Reply::Double(number) => to.double(*number),
            Reply::Bool(yes) => to.bool(*yes),
            Reply::Array(items) => {
                to.array(items.len());
                items.iter().for_each(|item| item.write(to));
            }
            Reply::Set(items) => {
                to.set(items.len());
                items.iter().for_each(|item| item.write(to));
            }
            Reply::Push(items) => {
                to.push(items.len());
                items.iter().for_each(|item| item.write(to));
            }
            Reply::Map(pairs) => {
                to.map(pairs.len());
                for (key, value) in pairs {
                    key.write(to);
                    value.write(to);
                }
            }
            Reply::Pairs(pairs) => {
                to.pairs(pairs.len());
                for (key, value) in pairs {
                    to.pair();
                    key.write(to);
                    value.write(to);
                }
            }
        }
    }

    /// Estimated time to encode the reply, ns; counting stops at `most`.
    pub fn encoding_ns(&self, most: u64) -> u64 {
        let sum = |items: &mut dyn Iterator<Item = &Reply>| {
            let mut sum = 0;
            while let Some(item) = items.next().filter(|_| sum < most) {
                sum += item.encoding_ns(most - sum);
            }
            sum
        };
        let own = match self {
            Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => sum(&mut items.iter()),
            Reply::Map(pairs) | Reply::Pairs(pairs) => {
                sum(&mut pairs.iter().flat_map(|(key, value)| [key, value]))
            }
            // Copied into memory that the system has to clear first.
            Reply::Bulk(bytes) => bytes.len() as u64 / 2,
            Reply::Text(text) => text.len() as u64 / 2,
            _ => 0,
        };
        own + 30
    }

    /// An error reply; `line` is the whole line with its prefix.
    pub fn error(line: impl Into<Cow<'static, str>>) -> Reply {
        Reply::Error(line.into())
    }

    /// Estimated memory of the reply: its bytes, and the overhead of each element.
    pub fn bytes(&self) -> usize {
        let own = match self {
            Reply::Status(text) | Reply::Error(text) => text.len(),
            Reply::Bulk(bytes) => bytes.len(),
            Reply::Text(text) => text.len(),
            Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => {
                items.iter().map(Reply::bytes).sum()
            }
            Reply::Map(pairs) | Reply::Pairs(pairs) => {
                pairs.iter().map(|(key, value)| key.bytes() + value.bytes()).sum()
            }
            Reply::Int(_) | Reply::Nil | Reply::NilArray | Reply::Double(_) | Reply::Bool(_) => 0,
        };
        VALUE_BYTES + own
    }
}
