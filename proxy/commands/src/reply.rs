//! A reply, independent of the client's protocol version.

use std::borrow::Cow;

use bytes::Bytes;

/// A reply to a client. The proxy encodes it for the protocol version of the connection.
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
        size_of::<Reply>() + own
    }
}
