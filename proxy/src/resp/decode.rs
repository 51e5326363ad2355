//! Cuts a complete command into its arguments.

use std::ops::Range;

use bytes::Bytes;
use commands::args::Argv;

use super::{CommandSpan, inline};

/// The bytes of a chunk of commands, and what the framer found in them.
#[derive(Debug, Clone, Copy)]
pub struct ChunkBytes<'a> {
    /// The bytes that the framer was given.
    pub bytes: &'a Bytes,
    /// [`super::Framer::args`]
    pub args: &'a [Range<usize>],
}

/// The arguments of a command found by the framer. They share the chunk's memory.
pub fn argv(chunk: ChunkBytes<'_>, span: CommandSpan) -> Argv {
    let arg = |range: &Range<usize>| {
        let arg = chunk.bytes.slice(span.start + range.start..span.start + range.end);
        if span.is_inline { inline::unquoted(arg) } else { arg }
    };
    chunk.args[span.first_arg..][..span.argc].iter().map(arg).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Framer, Limits};
    use crate::settings::ByteLimit;

    #[test]
    fn arrays_and_inline_lines_become_argv() {
        let bytes = Bytes::from_static(b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\nGET 'a b'\r\n");
        let bound = ByteLimit { bytes: 1 << 20, name: "limit", is_live: true };
        let limits = Limits { bulk: bound, command: bound, is_unauthenticated: false };
        let mut framer = Framer::default();
        for expected in [["GET", "\r\n"], ["GET", "a b"]] {
            let span = framer.next(&bytes, limits).expect("valid").expect("complete");
            let chunk = ChunkBytes { bytes: &bytes, args: framer.args() };
            assert_eq!(argv(chunk, span).into_vec(), expected);
        }
    }
}
