//! Frames that wait to be written to a connection, and can still be withdrawn.
//!
//! Frames are appended at a position that only grows. A writer takes all of them at once;
//! from then on everything before [`Outbox::taken`] counts as handed to the socket, even
//! if no byte has left. Everything after it has certainly not left.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{FrameHeader, HEADER_BYTES, cancel_frame};

/// Bodies of this size and larger are not copied.
const COPIED_BODY_BYTES_MAX: usize = 16 * 1024;
/// A piece of small frames is closed at this size.
const CHUNK_BYTES: usize = 64 * 1024;
/// Maximum number of chunks in one write.
const SLICES_MAX: usize = 64;

enum ChunkData {
    /// Whole small frames, and headers of large ones.
    Small(BytesMut),
    /// The body of the frame whose header ends the piece before.
    Large(Bytes),
}

impl ChunkData {
    fn bytes(&self) -> &[u8] {
        match self {
            ChunkData::Small(bytes) => bytes,
            ChunkData::Large(bytes) => bytes,
        }
    }
}

struct Chunk {
    /// Its position.
    start: u64,
    data: ChunkData,
}

/// Chunks that were taken to be written.
#[derive(Default)]
pub(super) struct WriteBatch(VecDeque<Chunk>);

impl WriteBatch {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, at most as many slices as one write takes.
    pub(super) fn slices(&self) -> impl Iterator<Item = IoSlice<'_>> {
        self.0.iter().take(SLICES_MAX).map(|chunk| IoSlice::new(chunk.data.bytes()))
    }

    /// Removes bytes that were written.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        while let Some(chunk) = self.0.front_mut() {
            let has = chunk.data.bytes().len();
            if bytes < has {
                match &mut chunk.data {
                    ChunkData::Small(data) => data.advance(bytes),
                    ChunkData::Large(data) => data.advance(bytes),
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
    chunks: VecDeque<Chunk>,
    bytes: usize,
    end: u64,
    taken: u64,
}

impl Outbox {
    /// Appends a frame and says where.
    pub(super) fn push(&mut self, header: FrameHeader, body: Bytes) -> u64 {
        let start = self.end;
        let copied = if body.len() < COPIED_BODY_BYTES_MAX { body.len() } else { 0 };
        let small = match self.chunks.back_mut() {
            Some(Chunk { data: ChunkData::Small(small), .. })
                if small.len() + HEADER_BYTES + copied <= CHUNK_BYTES =>
            {
                small
            }
            _ => {
                let data = ChunkData::Small(BytesMut::with_capacity(if copied == 0 {
                    HEADER_BYTES
                } else {
                    (HEADER_BYTES + copied).max(2048)
                }));
                self.chunks.push_back(Chunk { start, data });
                match self.chunks.back_mut() {
                    Some(Chunk { data: ChunkData::Small(small), .. }) => small,
                    _ => unreachable!("a small piece was just appended"),
                }
            }
        };
        header.put(body.len(), small);
        let bytes = HEADER_BYTES + body.len();
        if copied > 0 || body.is_empty() {
            small.extend_from_slice(&body);
        } else {
            self.chunks.push_back(Chunk {
                start: start + HEADER_BYTES as u64,
                data: ChunkData::Large(body),
            });
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
        self.chunks.is_empty()
    }

    /// Takes everything.
    pub(super) fn take(&mut self) -> WriteBatch {
        self.taken = self.end;
        self.bytes = 0;
        WriteBatch(std::mem::take(&mut self.chunks))
    }

    /// True if the frame at this position has been taken.
    pub(super) fn is_taken(&self, start: u64) -> bool {
        start < self.taken
    }

    /// Withdraws the frame at this position; false if it has been taken.
    pub(super) fn withdraw(&mut self, start: u64) -> bool {
        if self.is_taken(start) {
            return false;
        }
        let at = self.chunks.partition_point(|chunk| chunk.start <= start).saturating_sub(1);
        let body_at = start + HEADER_BYTES as u64;
        let is_large = matches!(
            self.chunks.get(at + 1),
            Some(Chunk { start: body, data: ChunkData::Large(_) }) if *body == body_at
        );
        if let Some(Chunk { start: first, data: ChunkData::Small(small) }) = self.chunks.get_mut(at)
        {
            cancel_frame(&mut small[(start - *first) as usize..], is_large);
        }
        if is_large && let Some(body) = self.chunks.remove(at + 1) {
            self.bytes -= body.data.bytes().len();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::{FrameKind, decode};
    use super::*;

    proptest! {
        /// Taken frames are those that were pushed, in order and whole; withdrawn ones
        /// are void.
        #[test]
        fn withdrawn_frames_are_cancelled_the_others_whole(
            sizes in prop::collection::vec(
                (prop_oneof![0..300usize, 10_000..40_000usize], any::<bool>()),
                1..40,
            ),
            step in 1..100_000usize,
        ) {
            let mut outbox = Outbox::default();
            let body = |at: usize, size: usize| Bytes::from(vec![at as u8; size]);
            let header = |at: usize| FrameHeader::new(FrameKind::Call, 1, at as u64);
            let mut starts = Vec::new();
            for (at, (size, _)) in sizes.iter().enumerate() {
                starts.push(outbox.push(header(at), body(at, *size)));
            }
            for (start, (_, withdrawn)) in starts.iter().zip(&sizes) {
                if *withdrawn {
                    prop_assert!(outbox.withdraw(*start));
                }
            }
            let mut batch = outbox.take();
            prop_assert!(outbox.is_empty() && outbox.bytes() == 0);
            for start in &starts {
                prop_assert!(outbox.is_taken(*start) && !outbox.withdraw(*start));
            }
            let mut wire = BytesMut::new();
            while !batch.is_empty() {
                let all: Vec<u8> = batch.slices().flat_map(|slice| slice.to_vec()).collect();
                let wrote = all.len().min(step);
                wire.extend_from_slice(&all[..wrote]);
                batch.advance(wrote);
            }
            for (at, (size, withdrawn)) in sizes.iter().enumerate() {
                let frame = decode(&mut wire, 1 << 20).unwrap().unwrap();
                prop_assert_eq!(frame.header.id, at as u64);
                prop_assert_eq!(frame.header.kind == FrameKind::Cancelled, *withdrawn);
                if !withdrawn {
                    prop_assert_eq!(frame.body, body(at, *size));
                }
            }
            prop_assert!(wire.is_empty());
        }
    }
}
