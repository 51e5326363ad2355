//! Encodes replies, as they are made.
//!
//! Values are encoded by `redis-protocol`. The headers of aggregates are written here,
//! because the library's aggregate frames would be built element by element only to be
//! encoded and dropped; and because it lacks some replies: the null array of RESP2, maps
//! in insertion order, and pairs that nest in RESP3 only.

use bytes::BytesMut;
use commands::reply::VALUE_BYTES;
use commands::{Reply, ReplyWriter};
use redis_protocol::resp2::encode::extend_encode_borrowed as encode2;
use redis_protocol::resp2::types::BorrowedFrame as Frame2;
use redis_protocol::resp3::encode::complete::extend_encode_borrowed as encode3;
use redis_protocol::resp3::types::{BorrowedFrame as Frame3, VerbatimStringFormat};

/// The version of RESP that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// The version of a new connection.
    #[default]
    Resp2,
    /// After HELLO 3.
    Resp3,
}

/// Appends a reply.
pub fn encode(reply: &Reply, protocol: Protocol, out: &mut BytesMut) {
    reply.write(&mut Encoder::new(out, protocol, usize::MAX));
}

/// The error line that an encoded reply is, without its mark.
pub fn error_line(encoded: &[u8]) -> Option<&str> {
    std::str::from_utf8(encoded.strip_prefix(b"-")?.strip_suffix(b"\r\n")?).ok()
}

/// Appends one reply to a connection's output, as it is made and within a limit.
#[derive(Debug)]
pub struct Encoder<'a> {
    out: &'a mut BytesMut,
    protocol: Protocol,
    /// Start of the reply in `out`.
    start: usize,
    /// Size of the reply, as [`Reply::bytes`] estimates it, and its limit.
    bytes: usize,
    bytes_max: usize,
    is_silent: bool,
}

impl<'a> Encoder<'a> {
    /// A reply of at most `bytes_max` bytes by the estimate of [`Reply::bytes`]. Of a
    /// larger one nothing is kept.
    pub fn new(out: &'a mut BytesMut, protocol: Protocol, bytes_max: usize) -> Encoder<'a> {
        let start = out.len();
        Encoder { out, protocol, start, bytes: 0, bytes_max, is_silent: false }
    }

    /// A reply that the client does not get: it is only counted. An error is written all
    /// the same, since it counts in the statistics.
    pub fn silent(self, is_silent: bool) -> Encoder<'a> {
        Encoder { is_silent, ..self }
    }

    /// The values that follow are for a client of this version.
    pub fn speak(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// Size of the reply so far, as [`Reply::bytes`] estimates it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `true` if the reply exceeds its limit; it is to be [replaced](Encoder::replace).
    pub fn is_too_large(&self) -> bool {
        self.bytes > self.bytes_max
    }

    /// Writes another reply instead, of any size.
    pub fn replace(&mut self, reply: &Reply) {
        self.out.truncate(self.start);
        (self.bytes, self.bytes_max) = (0, usize::MAX);
        reply.write(self);
    }

    /// Counts a value; `false`: it is not to be written.
    fn admits(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(VALUE_BYTES + bytes);
        if self.is_too_large() {
            self.out.truncate(self.start);
        }
        !self.is_silent && !self.is_too_large()
    }

    /// The head of an aggregate value.
    fn head(&mut self, mark: u8, len: usize) {
        if self.admits(0) {
            header(mark, len, self.out);
        }
    }

    /// The mark of an aggregate value that RESP2 has as an array.
    fn mark(&self, mark: u8) -> u8 {
        if self.protocol == Protocol::Resp2 { b'*' } else { mark }
    }

    /// A value of which each version has its own form.
    fn scalar(&mut self, bytes: usize, two: Frame2<'_>, three: Frame3<'_>) {
        if self.admits(bytes) {
            self.scalar_admitted(two, three);
        }
    }

    fn scalar_admitted(&mut self, two: Frame2<'_>, three: Frame3<'_>) {
        match self.protocol {
            Protocol::Resp2 => encode2(self.out, &two, false),
            Protocol::Resp3 => encode3(self.out, &three, false),
        }
        .expect("a buffer that grows holds every frame");
    }
}

impl ReplyWriter for Encoder<'_> {
    fn status(&mut self, text: &str) {
        let data = text.as_bytes();
        let three = Frame3::SimpleString { data, attributes: None };
        self.scalar(data.len(), Frame2::SimpleString(data), three);
    }

    fn error(&mut self, line: &str) {
        let is_whole_reply = self.bytes == 0;
        if self.admits(line.len()) || (self.is_silent && is_whole_reply) {
            let three = Frame3::SimpleError { data: line, attributes: None };
            self.scalar_admitted(Frame2::Error(line), three);
        }
    }

    fn int(&mut self, number: i64) {
        let three = Frame3::Number { data: number, attributes: None };
        self.scalar(0, Frame2::Integer(number), three);
    }

    fn bulk(&mut self, bytes: &[u8]) {
        if self.admits(bytes.len()) {
            bulk(bytes, self.out);
        }
    }

    fn text(&mut self, text: &str) {
        let (data, format) = (text.as_bytes(), VerbatimStringFormat::Text);
        match self.protocol {
            Protocol::Resp2 => self.bulk(data),
            Protocol::Resp3 => {
                let three = Frame3::VerbatimString { data, format, attributes: None };
                self.scalar(data.len(), Frame2::Null, three);
            }
        }
    }

    fn nil(&mut self) {
        self.scalar(0, Frame2::Null, Frame3::Null);
    }

    fn nil_array(&mut self) {
        if self.protocol == Protocol::Resp3 {
            self.nil();
        } else if self.admits(0) {
            self.out.extend_from_slice(b"*-1\r\n");
        }
    }

    fn double(&mut self, number: f64) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(double(number).as_bytes()),
            Protocol::Resp3 => {
                let three = Frame3::Double { data: number, attributes: None };
                self.scalar(0, Frame2::Null, three);
            }
        }
    }

    fn bool(&mut self, yes: bool) {
        let three = Frame3::Boolean { data: yes, attributes: None };
        self.scalar(0, Frame2::Integer(i64::from(yes)), three);
    }

    fn array(&mut self, len: usize) {
        self.head(b'*', len);
    }

    fn set(&mut self, len: usize) {
        self.head(self.mark(b'~'), len);
    }

    fn push(&mut self, len: usize) {
        self.head(self.mark(b'>'), len);
    }

    fn map(&mut self, len: usize) {
        match self.protocol {
            Protocol::Resp2 => self.head(b'*', 2 * len),
            Protocol::Resp3 => self.head(b'%', len),
        }
    }

    fn pairs(&mut self, len: usize) {
        match self.protocol {
            Protocol::Resp2 => self.head(b'*', 2 * len),
            Protocol::Resp3 => self.head(b'*', len),
        }
    }

    fn pair(&mut self) {
        if self.protocol == Protocol::Resp3 && !self.is_silent && !self.is_too_large() {
            header(b'*', 2, self.out);
        }
    }
}

/// The same in both versions. Not encoded by the library, which first fills the room with
/// zeros: values may be large.
fn bulk(bytes: &[u8], out: &mut BytesMut) {
    out.reserve(bytes.len() + 25);
    header(b'$', bytes.len(), out);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn header(mark: u8, len: usize, out: &mut BytesMut) {
    out.extend_from_slice(&[mark]);
    out.extend_from_slice(itoa::Buffer::new().format(len).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Formats a double as the library does in RESP3.
fn double(number: f64) -> String {
    if number.is_nan() { "nan".into() } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use redis_protocol::resp2::decode::decode as decode2;
    use redis_protocol::resp2::types::OwnedFrame as Owned2;
    use redis_protocol::resp3::decode::complete::decode as decode3;
    use redis_protocol::resp3::types::{FrameKind, Resp3Frame};

    use super::*;

    fn bytes(reply: &Reply, protocol: Protocol) -> String {
        let mut out = BytesMut::new();
        encode(reply, protocol, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn word(text: &'static str) -> Reply {
        Reply::Bulk(Bytes::from_static(text.as_bytes()))
    }

    fn all() -> Vec<(Reply, &'static str, &'static str)> {
        vec![
            (Reply::OK, "+OK\r\n", "+OK\r\n"),
            (Reply::error("ERR no"), "-ERR no\r\n", "-ERR no\r\n"),
            (Reply::Int(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"),
            (word(""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (word("a\r\nb"), "$4\r\na\r\nb\r\n", "$4\r\na\r\nb\r\n"),
            (Reply::Text("hi".into()), "$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n"),
            (Reply::Nil, "$-1\r\n", "_\r\n"),
            (Reply::NilArray, "*-1\r\n", "_\r\n"),
            (Reply::Double(1.5), "$3\r\n1.5\r\n", ",1.5\r\n"),
            (Reply::Bool(true), ":1\r\n", "#t\r\n"),
            (
                Reply::Array(vec![Reply::Int(1), Reply::Array(vec![])]),
                "*2\r\n:1\r\n*0\r\n",
                "*2\r\n:1\r\n*0\r\n",
            ),
            (Reply::Set(vec![word("a")]), "*1\r\n$1\r\na\r\n", "~1\r\n$1\r\na\r\n"),
            (Reply::Push(vec![word("a")]), "*1\r\n$1\r\na\r\n", ">1\r\n$1\r\na\r\n"),
            (
                Reply::Map(vec![(word("k"), Reply::Int(1))]),
                "*2\r\n$1\r\nk\r\n:1\r\n",
                "%1\r\n$1\r\nk\r\n:1\r\n",
            ),
            (
                Reply::Pairs(vec![(word("k"), Reply::Nil)]),
                "*2\r\n$1\r\nk\r\n$-1\r\n",
                "*1\r\n*2\r\n$1\r\nk\r\n_\r\n",
            ),
        ]
    }

    #[test]
    fn every_reply_in_both_versions() {
        for (reply, two, three) in all() {
            assert_eq!(bytes(&reply, Protocol::Resp2), two);
            assert_eq!(bytes(&reply, Protocol::Resp3), three);
        }
    }

    #[test]
    fn of_a_reply_over_its_limit_nothing_is_kept() {
        let mut out = BytesMut::from(&b"+OK\r\n"[..]);
        let reply = Reply::Array(vec![word("a"), word("b")]);
        for (bytes_max, expected) in [
            (reply.bytes(), "+OK\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
            (reply.bytes() - 1, "+OK\r\n-ERR no\r\n"),
        ] {
            let mut encoder = Encoder::new(&mut out, Protocol::Resp2, bytes_max);
            reply.write(&mut encoder);
            assert_eq!(encoder.bytes(), reply.bytes());
            if encoder.is_too_large() {
                encoder.replace(&Reply::error("ERR no"));
            }
            assert_eq!(out, expected);
            out.truncate(5);
        }
    }

    #[test]
    fn of_a_silent_reply_only_an_error_is_written() {
        for (reply, two, _) in all() {
            let mut out = BytesMut::new();
            reply.write(&mut Encoder::new(&mut out, Protocol::Resp3, 1000).silent(true));
            let is_error = matches!(reply, Reply::Error(_));
            assert_eq!(out, if is_error { two } else { "" });
        }
    }

    #[test]
    fn an_error_line_is_read_back() {
        assert_eq!(error_line(b"-ERR no\r\n"), Some("ERR no"));
        assert_eq!(error_line(b"*1\r\n-ERR no\r\n"), None);
        assert_eq!(error_line(b""), None);
    }

    #[test]
    fn the_library_reads_back_all_that_is_written() {
        let nested = Reply::Array(all().into_iter().map(|(reply, ..)| reply).collect());
        let two = bytes(&nested, Protocol::Resp2);
        let (frame, used) = decode2(two.as_bytes()).unwrap().unwrap();
        let Owned2::Array(items) = frame else { panic!("{frame:?}") };
        assert_eq!((items.len(), used), (all().len(), two.len()));
        // Without nesting, because the library has no pushes inside arrays.
        for (reply, _, three) in all() {
            let (frame, used) = decode3(three.as_bytes()).unwrap().unwrap();
            assert_eq!(used, three.len());
            let kind = match reply {
                Reply::Status(_) => FrameKind::SimpleString,
                Reply::Error(_) => FrameKind::SimpleError,
                Reply::Int(_) => FrameKind::Number,
                Reply::Bulk(_) => FrameKind::BlobString,
                Reply::Text(_) => FrameKind::VerbatimString,
                Reply::Nil | Reply::NilArray => FrameKind::Null,
                Reply::Double(_) => FrameKind::Double,
                Reply::Bool(_) => FrameKind::Boolean,
                Reply::Array(_) | Reply::Pairs(_) => FrameKind::Array,
                Reply::Set(_) => FrameKind::Set,
                Reply::Push(_) => FrameKind::Push,
                Reply::Map(_) => FrameKind::Map,
            };
            assert_eq!(frame.kind(), kind);
        }
    }
}
