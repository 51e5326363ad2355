//! A complete command as words.

use bytes::Bytes;
use commands::args::Words;
use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;

use super::{Extent, inline};

/// The words of a command that has passed the gate; `chunk` are the bytes that the gate
/// was shown. They share the chunk's memory. Empty for what is no command, which the gate
/// lets not pass.
pub fn words(chunk: &Bytes, extent: Extent) -> Words {
    if extent.is_inline {
        return inline::split(&chunk[extent.start..extent.end]).unwrap_or_default();
    }
    let Ok(Some((RangeFrame::Array(frames), _))) = decode_range(&chunk[extent.start..extent.end])
    else {
        return Words::new();
    };
    let word = |frame| match frame {
        RangeFrame::BulkString((start, end)) => {
            chunk.slice(extent.start + start..extent.start + end)
        }
        _ => Bytes::new(),
    };
    frames.into_iter().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of(bytes: &'static [u8], is_inline: bool) -> Vec<Bytes> {
        let chunk = Bytes::from_static(bytes);
        words(&chunk, Extent { start: 2, end: chunk.len(), is_inline, words: 2 }).into_vec()
    }

    #[test]
    fn arrays_and_lines_are_words() {
        assert_eq!(words_of(b"..*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n", false), ["GET", "\r\n"]);
        assert_eq!(words_of(b"..GET 'a b'\r\n", true), ["GET", "a b"]);
    }
}
