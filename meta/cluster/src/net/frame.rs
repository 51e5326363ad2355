//! Frames: the unit of a connection after the handshake.
//!
//! # Layout
//! ```text
//! length u32 LE   of everything behind it: 10 and the body
//! kind   u8
//! detail u8       a call's or channel's service; which half a channel's end means
//! id     u64 LE   of the call or the channel; 0 where there is none
//! body
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before the body.
pub(super) const HEADER_BYTES: usize = 14;
/// Of these, how many the length counts.
const COUNTED_BYTES: usize = HEADER_BYTES - 4;
/// Room is made for so much more of a frame at a time, as it comes: a length is announced
/// in no time, and bytes take some.
const RESERVE_STEP_BYTES: usize = 1 << 20;
/// Offset of the kind.
const KIND_AT: usize = 4;

/// A frame's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FrameKind {
    /// A request; dialer to acceptor.
    Call = 1,
    /// Its answer.
    Answer = 2,
    /// Its refusal by the service, a text.
    Refuse = 3,
    /// The call was not served: too many are in flight.
    Busy = 4,
    /// A new channel; dialer to acceptor.
    Open = 5,
    /// A channel's message.
    Message = 6,
    /// The other side may send so many bytes more (u32 LE).
    Credit = 7,
    /// A half of a channel has ended; see [`ENDS_SENDING`], [`ENDS_RECEIVING`].
    End = 8,
    /// Keepalive.
    Ping = 9,
    /// A request that was withdrawn before it left; ignored.
    Cancelled = 10,
    /// The acceptor is draining and takes no new calls; the dialer replies with the same
    /// after its last call.
    GoAway = 11,
}

/// Detail of [`FrameKind::End`]: the sender of this frame sends no more messages.
pub(super) const ENDS_SENDING: u8 = 1;
/// Detail of [`FrameKind::End`]: the sender of this frame takes no more messages.
pub(super) const ENDS_RECEIVING: u8 = 2;

impl FrameKind {
    fn of(byte: u8) -> Option<FrameKind> {
        use FrameKind::{
            Answer, Busy, Call, Cancelled, Credit, End, GoAway, Message, Open, Ping, Refuse,
        };
        [Call, Answer, Refuse, Busy, Open, Message, Credit, End, Ping, Cancelled, GoAway]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A frame without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: FrameKind,
    pub(super) detail: u8,
    pub(super) id: u64,
}

impl FrameHeader {
    pub(super) fn new(kind: FrameKind, detail: u8, id: u64) -> Self {
        FrameHeader { kind, detail, id }
    }

    /// Appends the header of a frame with a body of so many bytes, which the caller has
    /// checked to be below the cap.
    pub(super) fn put(self, body_bytes: usize, out: &mut BytesMut) {
        out.put_u32_le((body_bytes + COUNTED_BYTES) as u32);
        out.put_u8(self.kind as u8);
        out.put_u8(self.detail);
        out.put_u64_le(self.id);
    }
}

/// Makes nothing of the frame whose header begins here: its body stays where it is
/// (`None`) or was taken away.
pub(super) fn cancel_frame(header: &mut [u8], bodyless: bool) {
    header[KIND_AT] = FrameKind::Cancelled as u8;
    if bodyless {
        header[..4].copy_from_slice(&(COUNTED_BYTES as u32).to_le_bytes());
    }
}

/// A frame as it came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) header: FrameHeader,
    pub(super) body: Bytes,
}

/// Not a frame: the connection is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {0} bytes, at most {1} are taken")]
    TooLarge(usize, usize),
    #[error("a frame of {0} bytes, shorter than its header")]
    TooShort(usize),
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
}

/// Takes the first frame off the buffer; `None` if it is not complete, with room reserved
/// for more of it.
pub(super) fn decode(
    buffer: &mut BytesMut,
    body_bytes_max: usize,
) -> Result<Option<Frame>, FrameError> {
    if buffer.len() < HEADER_BYTES {
        return Ok(None);
    }
    let length = u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
    let Some(body) = length.checked_sub(COUNTED_BYTES) else {
        return Err(FrameError::TooShort(length));
    };
    if body > body_bytes_max {
        return Err(FrameError::TooLarge(body, body_bytes_max));
    }
    let kind = FrameKind::of(buffer[KIND_AT]).ok_or(FrameError::UnknownKind(buffer[KIND_AT]))?;
    if buffer.len() < HEADER_BYTES + body {
        buffer.reserve((HEADER_BYTES + body - buffer.len()).min(RESERVE_STEP_BYTES));
        return Ok(None);
    }
    let mut frame = buffer.split_to(HEADER_BYTES + body).freeze();
    frame.advance(KIND_AT + 1);
    let header = FrameHeader { kind, detail: frame.get_u8(), id: frame.get_u64_le() };
    Ok(Some(Frame { header, body: frame }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Service;
    use super::super::peer_connection::Lane;
    use super::*;
    use crate::vectors::Vectors;

    const MAX: usize = 1000;

    fn bytes_of(frame: &Frame) -> BytesMut {
        let mut out = BytesMut::new();
        frame.header.put(frame.body.len(), &mut out);
        out.extend_from_slice(&frame.body);
        out
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let frame =
            (1..=11u8, any::<u8>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..=MAX))
                .prop_map(|(kind, detail, id, body)| Frame {
                    header: FrameHeader { kind: FrameKind::of(kind).unwrap(), detail, id },
                    body: body.into(),
                });
        prop::collection::vec(frame, 0..8)
    }

    proptest! {
        /// In whatever pieces they arrive, frames come out as they went in.
        #[test]
        fn frames_come_out_as_they_went_in(sent in frames(), piece in 1..700usize) {
            let all: Vec<u8> = sent.iter().flat_map(bytes_of).collect();
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for part in all.chunks(piece) {
                buffer.extend_from_slice(part);
                while let Some(frame) = decode(&mut buffer, MAX).unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, sent);
            prop_assert!(buffer.is_empty());
        }

        /// Any bytes are frames, an error, or wait for more, of which never more is
        /// reserved than the cap allows.
        #[test]
        fn any_bytes_are_frames_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            small in any::<bool>(),
        ) {
            let mut buffer = BytesMut::from(&bytes[..]);
            if small && buffer.len() > 3 {
                // A length that is believed.
                buffer[1..4].fill(0);
            }
            let mut taken = 0;
            while let Ok(Some(frame)) = decode(&mut buffer, MAX) {
                taken += HEADER_BYTES + frame.body.len();
                prop_assert!(frame.body.len() <= MAX);
            }
            prop_assert_eq!(taken + buffer.len(), bytes.len());
            prop_assert!(buffer.capacity() <= bytes.len() * 2 + 2 * (MAX + HEADER_BYTES));
        }
    }

    #[test]
    fn the_layout_is_frozen() {
        let mut out = BytesMut::new();
        FrameHeader::new(FrameKind::Call, 2, 0x0102_0304).put(3, &mut out);
        out.extend_from_slice(b"abc");
        assert_eq!(&out[..], [13, 0, 0, 0, 1, 2, 4, 3, 2, 1, 0, 0, 0, 0, b'a', b'b', b'c']);
        cancel_frame(&mut out[..], false);
        let frame = decode(&mut out, 3).unwrap().unwrap();
        assert_eq!((frame.header.kind, &frame.body[..]), (FrameKind::Cancelled, &b"abc"[..]));
    }

    /// Frozen: add lines for new kinds, never edit these.
    #[test]
    fn frames_of_every_kind_are_frozen() {
        let label = |kind: FrameKind| match kind {
            FrameKind::Call => "call",
            FrameKind::Answer => "answer",
            FrameKind::Refuse => "refuse",
            FrameKind::Busy => "busy",
            FrameKind::Open => "open",
            FrameKind::Message => "message",
            FrameKind::Credit => "credit",
            FrameKind::End => "end",
            FrameKind::Ping => "ping",
            FrameKind::Cancelled => "void",
            FrameKind::GoAway => "goodbye",
        };
        let mut vectors = Vectors::default();
        for kind in (0..=u8::MAX).filter_map(FrameKind::of) {
            let body = match kind {
                FrameKind::Credit => &0x0001_0203_u32.to_le_bytes()[..],
                FrameKind::Call
                | FrameKind::Answer
                | FrameKind::Refuse
                | FrameKind::Open
                | FrameKind::Message => b"abc",
                FrameKind::Busy
                | FrameKind::End
                | FrameKind::Ping
                | FrameKind::Cancelled
                | FrameKind::GoAway => b"",
            };
            let detail = match kind {
                FrameKind::Call | FrameKind::Open => 4,
                FrameKind::End => ENDS_SENDING | ENDS_RECEIVING,
                _ => 0,
            };
            let id = if matches!(kind, FrameKind::Ping | FrameKind::GoAway) {
                0
            } else {
                0x0102_0304_0506
            };
            let header = FrameHeader::new(kind, detail, id);
            let mut bytes = bytes_of(&Frame { header, body: Bytes::copy_from_slice(body) });
            vectors.push(&format!("frame.{}", label(kind)), &bytes);
            let read = decode(&mut bytes, MAX).unwrap().unwrap();
            assert_eq!((read.header, &read.body[..]), (header, body));
        }
        for lane in (0..=u8::MAX).filter_map(Lane::of) {
            let label = match lane {
                Lane::Calls => "calls",
                Lane::Raft => "raft",
                Lane::Bulk => "bulk",
                Lane::Meta => "meta",
            };
            vectors.push(&format!("lane.{label}"), &[lane as u8]);
        }
        for service in (0..=u8::MAX).filter_map(Service::of) {
            let label = match service {
                Service::Rows => "rows",
                Service::Raft => "raft",
                Service::RaftBulk => "raft-bulk",
                Service::Meta => "meta",
                Service::Sync => "sync",
                Service::Leads => "leads",
            };
            vectors.push(&format!("service.{label}"), &[service as u8]);
        }
        vectors.hold("frames.txt", include_str!("../../tests/vectors/frames.txt"));
    }

    #[test]
    fn an_announced_length_takes_no_room() {
        let mut buffer = BytesMut::new();
        FrameHeader::new(FrameKind::Call, 1, 1).put(1 << 29, &mut buffer);
        let mut arrived = buffer.len();
        for _ in 0..40 {
            assert_eq!(decode(&mut buffer, 1 << 30), Ok(None));
            assert!(
                buffer.capacity() <= 2 * (arrived + RESERVE_STEP_BYTES),
                "{} for {arrived}",
                buffer.capacity()
            );
            buffer.extend_from_slice(&[1; RESERVE_STEP_BYTES / 4]);
            arrived = buffer.len();
        }
    }

    #[test]
    fn frames_of_a_bad_length_are_refused_at_the_header() {
        let header = |length: u32| {
            let mut out = BytesMut::from(&length.to_le_bytes()[..]);
            out.extend_from_slice(&[FrameKind::Call as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            out
        };
        assert_eq!(decode(&mut header(1011), MAX), Err(FrameError::TooLarge(1001, MAX)));
        assert_eq!(
            decode(&mut header(u32::MAX), MAX),
            Err(FrameError::TooLarge(u32::MAX as usize - 10, MAX))
        );
        assert_eq!(decode(&mut header(9), MAX), Err(FrameError::TooShort(9)));
        assert_eq!(decode(&mut header(1010), MAX), Ok(None));
    }
}
