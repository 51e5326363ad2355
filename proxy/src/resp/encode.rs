//! Encodes replies.
//!
//! Values are encoded by `redis-protocol`. The headers of aggregates are written here,
//! because the library's aggregate frames would be built element by element only to be
//! encoded and dropped; and because it lacks some replies: the null array of RESP2, maps
//! in insertion order, and pairs that nest in RESP3 only.

use bytes::BytesMut;
use commands::Reply;
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
    match protocol {
        Protocol::Resp2 => resp2(reply, out),
        Protocol::Resp3 => resp3(reply, out),
    }
}

fn resp2(reply: &Reply, out: &mut BytesMut) {
    let frame = match reply {
        Reply::Status(text) => Frame2::SimpleString(text.as_bytes()),
        Reply::Error(line) => Frame2::Error(line),
        Reply::Int(number) => Frame2::Integer(*number),
        Reply::Bulk(bytes) => return bulk(bytes, out),
        Reply::Text(text) => return bulk(text.as_bytes(), out),
        Reply::Nil => Frame2::Null,
        Reply::NilArray => return out.extend_from_slice(b"*-1\r\n"),
        Reply::Double(number) => return bulk(double(*number).as_bytes(), out),
        Reply::Bool(yes) => Frame2::Integer(i64::from(*yes)),
        Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => {
            header(b'*', items.len(), out);
            return items.iter().for_each(|item| resp2(item, out));
        }
        Reply::Map(pairs) | Reply::Pairs(pairs) => {
            header(b'*', pairs.len() * 2, out);
            return pairs.iter().for_each(|(key, value)| {
                resp2(key, out);
                resp2(value, out);
            });
        }
    };
    encode2(out, &frame, false).expect("a buffer that grows holds every frame");
}

fn resp3(reply: &Reply, out: &mut BytesMut) {
    let attributes = None;
    let frame = match reply {
        Reply::Status(text) => Frame3::SimpleString { data: text.as_bytes(), attributes },
        Reply::Error(line) => Frame3::SimpleError { data: line, attributes },
        Reply::Int(number) => Frame3::Number { data: *number, attributes },
        Reply::Bulk(bytes) => return bulk(bytes, out),
        Reply::Text(text) => Frame3::VerbatimString {
            data: text.as_bytes(),
            format: VerbatimStringFormat::Text,
            attributes,
        },
        Reply::Nil | Reply::NilArray => Frame3::Null,
        Reply::Double(number) => Frame3::Double { data: *number, attributes },
        Reply::Bool(yes) => Frame3::Boolean { data: *yes, attributes },
        Reply::Array(items) => return list(b'*', items, out),
        Reply::Set(items) => return list(b'~', items, out),
        Reply::Push(items) => return list(b'>', items, out),
        Reply::Map(pairs) => {
            header(b'%', pairs.len(), out);
            return pairs.iter().for_each(|(key, value)| {
                resp3(key, out);
                resp3(value, out);
            });
        }
        Reply::Pairs(pairs) => {
            header(b'*', pairs.len(), out);
            return pairs.iter().for_each(|(key, value)| {
                header(b'*', 2, out);
                resp3(key, out);
                resp3(value, out);
            });
        }
    };
    encode3(out, &frame, false).expect("a buffer that grows holds every frame");
}

fn list(mark: u8, items: &[Reply], out: &mut BytesMut) {
    header(mark, items.len(), out);
    items.iter().for_each(|item| resp3(item, out));
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
