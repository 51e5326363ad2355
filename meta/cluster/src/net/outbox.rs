//! What waits to be written to a connection, and what of it can still be withdrawn.
//!
//! Frames are appended at a position that only grows. Whoever writes takes all that is
//! there at once; from then on what lies before [`Outbox::taken`] counts as handed to the
//! socket, whether or not a byte of it left. What lies behind it certainly did not leave.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{HEADER, Head, make_void};

/// Bodies from here on are not copied.
const LARGE: usize = 16 * 1024;
/// A piece of small frames is closed at this size.
const PIECE_BYTES: usize = 64 * 1024;
/// So many pieces at most go into one write.
const SLICES_MAX: usize = 64;

enum Data {
    /// Whole small frames, and headers of large ones.
    Small(BytesMut),
    /// The body of the frame whose header ends the piece before.
    Large(Bytes),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Small(bytes) => bytes,
            Data::Large(bytes) => bytes,
        }
    }
}

struct Piece {
    /// Its position.
    start: u64,
    data: Data,
}

/// What was taken to be written.
#[derive(Default)]
pub(super) struct Batch(VecDeque<Piece>);

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What comes next, as many slices as one write takes.
    pub(super) fn slices(&self) -> impl Iterator<Item = IoSlice<'_>> {
        self.0.iter().take(SLICES_MAX).map(|piece| IoSlice::new(piece.data.bytes()))
    }

    /// So many bytes were written.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        while let Some(piece) = self.0.front_mut() {
            let has = piece.data.bytes().len();
            if bytes < has {
                match &mut piece.data {
                    Data::Small(data) => data.advance(bytes),
                    Data::Large(data) => data.advance(bytes),
                }
                return;
            }
            bytes -= has;
            self.0.pop_front();
        }
    }
}

/// The queue of one connection.
#[derive(Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Piece>,
    bytes: usize,
    end: u64,
    taken: u64,
}

impl Outbox {
    /// Appends a frame and says where.
    pub(super) fn push(&mut self, head: Head, body: Bytes) -> u64 {
        let start = self.end;
        let copied = if body.len() < LARGE { body.len() } else { 0 };
        let small = match self.pieces.back_mut() {
            Some(Piece { data: Data::Small(small), .. })
                if small.len() + HEADER + copied <= PIECE_BYTES =>
            {
                small
            }
            _ => {
                let data = Data::Small(BytesMut::with_capacity(if copied == 0 {
                    HEADER
                } else {
                    (HEADER + copied).max(2048)
                }));
                self.pieces.push_back(Piece { start, data });
                match self.pieces.back_mut() {
                    Some(Piece { data: Data::Small(small), .. }) => small,
                    _ => unreachable!("a small piece was just appended"),
                }
            }
        };
        head.put(body.len(), small);
        let bytes = HEADER + body.len();
        if copied > 0 || body.is_empty() {
            small.extend_from_slice(&body);
        } else {
            self.pieces.push_back(Piece { start: start + HEADER as u64, data: Data::Large(body) });
        }
        self.end += bytes as u64;
        self.bytes += bytes;
        start
    }

    /// Bytes that nobody has taken yet.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Takes everything.
    pub(super) fn take(&mut self) -> Batch {
        self.taken = self.end;
        self.bytes = 0;
        Batch(std::mem::take(&mut self.pieces))
    }

    /// Whether the frame at this position has been taken.
    pub(super) fn is_taken(&self, start: u64) -> bool {
        start < self.taken
    }

    /// Withdraws the frame at this position; false if it has been taken.
    pub(super) fn withdraw(&mut self, start: u64) -> bool {
        if self.is_taken(start) {
            return false;
        }
        let at = self.pieces.partition_point(|piece| piece.start <= start).saturating_sub(1);
        let is_large = matches!(self.pieces.get(at + 1), Some(Piece { start: body, data: Data::Large(_) }) if *body == start + HEADER as u64);
        if let Some(Piece { start: first, data: Data::Small(small) }) = self.pieces.get_mut(at) {
            make_void(&mut small[(start - *first) as usize..], is_large);
        }
        if is_large && let Some(body) = self.pieces.remove(at + 1) {
            self.bytes -= body.data.bytes().len();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::{Kind, decode};
    use super::*;

    proptest! {
        /// Taken frames are those that were pushed, in order and whole; withdrawn ones
        /// are void.
        #[test]
        fn withdrawn_frames_are_void_and_the_others_whole(
            sizes in prop::collection::vec((prop_oneof![0..300usize, 10_000..40_000usize], any::<bool>()), 1..40),
            step in 1..100_000usize,
        ) {
            let mut outbox = Outbox::default();
            let body = |at: usize, size: usize| Bytes::from(vec![at as u8; size]);
            let starts: Vec<_> =
                sizes.iter().enumerate().map(|(at, (size, _))| outbox.push(Head::new(Kind::Call, 1, at as u64), body(at, *size))).collect();
            for (start, (_, withdrawn)) in starts.iter().zip(&sizes) {
                if *withdrawn {
                    prop_assert!(outbox.withdraw(*start));
                }
            }
            let mut batch = outbox.take();
            prop_assert!(outbox.is_empty() && outbox.bytes() == 0);
            prop_assert!(starts.iter().all(|start| outbox.is_taken(*start) && !outbox.withdraw(*start)));
            let mut wire = BytesMut::new();
            while !batch.is_empty() {
                let all: Vec<u8> = batch.slices().flat_map(|slice| slice.to_vec()).collect();
                let wrote = all.len().min(step);
                wire.extend_from_slice(&all[..wrote]);
                batch.advance(wrote);
            }
            for (at, (size, withdrawn)) in sizes.iter().enumerate() {
                let frame = decode(&mut wire, 1 << 20).unwrap().unwrap();
                prop_assert_eq!(frame.head.id, at as u64);
                prop_assert_eq!(frame.head.kind == Kind::Void, *withdrawn);
                if !withdrawn {
                    prop_assert_eq!(frame.body, body(at, *size));
                }
            }
            prop_assert!(wire.is_empty());
        }
    }
}
