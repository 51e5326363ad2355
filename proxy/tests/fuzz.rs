//! Any bytes in any pieces: no panic, the same replies, bounded memory.
//!
//! Runs as a plain test on random input; `cargo bolero test -p proxy --test fuzz
//! whole_connections` searches for more.

mod kit;

use bolero::check;
use bytes::Bytes;
use proxy::client::Endpoint;
use proxy::resp::{ChunkBytes, CommandSpan, Framer, Limits, argv};
use proxy::settings::ByteLimit;
use proxy::{Settings, handshake};
use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const fn bound(bytes: usize) -> ByteLimit {
    ByteLimit { bytes, name: "limit", is_live: true }
}

const LIMITS: Limits =
    Limits { bulk: bound(4096), command: bound(16384), is_unauthenticated: false };

/// Fragments that random bytes would hardly ever form.
const FRAGMENTS: &[&str] = &[
    "*1\r\n",
    "*2\r\n",
    "*3\r\n",
    "*0\r\n",
    "*-1\r\n",
    "*",
    "$",
    "$0\r\n\r\n",
    "$1\r\nk\r\n",
    "$1\r\nv\r\n",
    "$2\r\n\r\n\r\n",
    "$-1\r\n",
    "$3\r\nGET\r\n",
    "$3\r\nSET\r\n",
    "$4\r\nPING\r\n",
    "$5\r\nMULTI\r\n",
    "$4\r\nEXEC\r\n",
    "$5\r\nWATCH\r\n",
    "$4096\r\n",
    "$4097\r\n",
    "PING\r\n",
    "PING",
    "GET k\r\n",
    "SET k 'a b'\r\n",
    "SET k \"\\x00\"\r\n",
    "\"",
    "'",
    "\\x",
    "MULTI\r\n",
    "EXEC\r\n",
    "DISCARD\r\n",
    "HELLO 3\r\n",
    "HELLO 2\r\n",
    "RESET\r\n",
    "SELECT 1\r\n",
    "SELECT 0\r\n",
    "INCR k\r\n",
    "DEL k\r\n",
    "WATCH k\r\n",
    "MGET k k\r\n",
    "CLIENT REPLY SKIP\r\n",
    "CLIENT REPLY OFF\r\n",
    "CLIENT REPLY ON\r\n",
    "HSET h f v\r\n",
    "HGETALL h\r\n",
    "QUIT\r\n",
    "\r\n",
    "\n",
    "\0",
];

/// Small bytes select a fragment, others stand for themselves.
fn spell(bytes: &[u8]) -> Vec<u8> {
    let fragment = |byte: &u8| {
        FRAGMENTS.get(usize::from(*byte)).map_or(vec![*byte], |text| text.as_bytes().to_vec())
    };
    bytes.iter().flat_map(fragment).collect()
}

/// The input cut into pieces of these lengths, cyclically.
fn pieces<'a>(input: &'a [u8], lengths: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = input;
    let mut lengths = lengths.iter().cycle();
    std::iter::from_fn(move || {
        let length = usize::from(*lengths.next().unwrap_or(&255))
            .clamp(1, rest.len().max(1))
            .min(rest.len());
        let (piece, after) = rest.split_at(length);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The arguments that `redis-protocol` decodes; `None` if the command is a line, or not
/// valid RESP to the letter: like Redis, the framer looks neither at the second byte of a
/// line end nor at the two bytes behind an argument.
fn decoded(held: &[u8], span: CommandSpan) -> Option<Vec<Bytes>> {
    let bytes = &held[span.start..span.end];
    let (frame, used) = decode_range(bytes).ok().flatten().filter(|_| !span.is_inline)?;
    assert_eq!(used, bytes.len());
    let RangeFrame::Array(args) = frame else { panic!("{frame:?}") };
    let arg = |frame| match frame {
        RangeFrame::BulkString((start, end)) => Bytes::copy_from_slice(&bytes[start..end]),
        frame => panic!("{frame:?}"),
    };
    Some(args.into_iter().map(arg).collect())
}

/// The commands that the framer finds, and the error that ended it.
fn gated(input: &[u8], lengths: &[u8]) -> (Vec<Vec<Bytes>>, Option<String>) {
    let (mut framer, mut held, mut found) = (Framer::default(), Vec::new(), Vec::new());
    for piece in pieces(input, lengths) {
        held.extend_from_slice(piece);
        loop {
            match framer.next(&held, LIMITS) {
                Ok(Some(span)) => {
                    let bytes = Bytes::copy_from_slice(&held);
                    let chunk = ChunkBytes { bytes: &bytes, args: framer.args() };
                    let argv = argv(chunk, span).into_vec();
                    if let Some(decoded) = decoded(&held, span) {
                        assert_eq!(argv, decoded);
                    }
                    found.push(argv)
                }
                Ok(None) => break,
                Err(error) => return (found, Some(error.to_string())),
            }
        }
        let passed = framer.passed();
        held.drain(..passed);
        framer.taken(passed);
        // A client can make it wait for the rest of one command, within the limits.
        assert!(
            framer.wanted() <= LIMITS.command.bytes + LIMITS.bulk.bytes + 64 * 1024 + 64,
            "{}",
            framer.wanted()
        );
    }
    (found, None)
}

#[test]
fn framer_finds_the_same_commands_in_any_pieces() {
    check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(bytes, lengths)| {
        for input in [bytes.clone(), spell(bytes)] {
            let whole = gated(&input, &[]);
            assert_eq!(gated(&input, lengths), whole);
            assert_eq!(gated(&input, &[1]), whole);
            assert!(
                whole.0.iter().all(|argv| !argv.is_empty()),
                "what passes the gate is a command"
            );
        }
    });
}

#[test]
fn framer_finds_the_arguments_that_the_library_decodes() {
    check!().with_type::<(Vec<Vec<Vec<u8>>>, Vec<u8>)>().for_each(|(commands, lengths)| {
        let commands: Vec<_> = commands.iter().filter(|argv| !argv.is_empty()).collect();
        let mut input = Vec::new();
        for argv in &commands {
            input.extend_from_slice(format!("*{}\r\n", argv.len()).as_bytes());
            for arg in *argv {
                input.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
                input.extend_from_slice(&[arg, &b"\r\n"[..]].concat());
            }
        }
        for lengths in [&[][..], &[1], lengths] {
            let (found, error) = gated(&input, lengths);
            assert!(
                error.is_some()
                    || found == commands.iter().map(|argv| argv.as_slice()).collect::<Vec<_>>()
            );
        }
    });
}

/// All replies of a new server to the input in these pieces.
async fn answered(input: &[u8], lengths: &[u8]) -> Vec<u8> {
    let proxy = kit::proxy(
        &kit::World::new(1),
        Settings { bulk_bytes_max: 4096, query_bytes_max: 16384, ..Settings::default() },
    );
    let endpoint = Endpoint {
        address: "a:1".into(),
        local_address: "b:2".into(),
        fd: 0,
        is_loopback: true,
        is_unix: false,
    };
    let (ours, theirs) = tokio::io::duplex(256);
    let serving = handshake(proxy.clone(), theirs, endpoint);
    let (mut reading, mut writing) = tokio::io::split(ours);
    let sending = async {
        for piece in pieces(input, lengths) {
            // The server may have closed already.
            if writing.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = writing.shutdown().await;
    };
    let mut replies = Vec::new();
    let receiving = async {
        let _ = reading.read_to_end(&mut replies).await;
    };
    tokio::join!(serving, sending, receiving);
    assert!(proxy.clients.is_empty());
    replies
}

#[test]
fn whole_connections_answer_the_same_in_any_pieces() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(bytes, lengths)| {
        let input = spell(bytes);
        let replies = runtime
            .block_on(async { (answered(&input, &[]).await, answered(&input, lengths).await) });
        assert_eq!(
            String::from_utf8_lossy(&replies.0),
            String::from_utf8_lossy(&replies.1),
            "{:?}",
            String::from_utf8_lossy(&input)
        );
    });
}
