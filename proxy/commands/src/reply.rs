//! A reply, before it is known whether the client speaks RESP2 or RESP3.

use std::borrow::Cow;

use bytes::Bytes;

/// What a client is told. The proxy encodes it for the protocol version of the connection.
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

    /// An error line given whole, prefix included.
    pub fn error(line: impl Into<Cow<'static, str>>) -> Reply {
        Reply::Error(line.into())
    }
}
