//! Decodes a complete command into its arguments.

use bytes::Bytes;
use commands::args::Argv;
use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;

use super::{CommandSpan, inline};

/// The arguments of a command found by the framer; `chunk` are the bytes that the framer
/// was given. The arguments share the chunk's memory. Empty for malformed input, which
/// the framer does not let pass.
pub fn argv(chunk: &Bytes, span: CommandSpan) -> Argv {
    if span.is_inline {
        return inline::split(&chunk[span.start..span.end]).unwrap_or_default();
    }
    let Ok(Some((RangeFrame::Array(frames), _))) = decode_range(&chunk[span.start..span.end])
    else {
        return Argv::new();
    };
    let word = |frame| match frame {
        RangeFrame::BulkString((start, end)) => chunk.slice(span.start + start..span.start + end),
        _ => Bytes::new(),
    };
    frames.into_iter().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv_of(bytes: &'static [u8], is_inline: bool) -> Vec<Bytes> {
        let chunk = Bytes::from_static(bytes);
        argv(&chunk, CommandSpan { start: 2, end: chunk.len(), is_inline, argc: 2 }).into_vec()
    }

    #[test]
    fn arrays_and_inline_lines_become_argv() {
        assert_eq!(argv_of(b"..*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n", false), ["GET", "\r\n"]);
        assert_eq!(argv_of(b"..GET 'a b'\r\n", true), ["GET", "a b"]);
    }
}
