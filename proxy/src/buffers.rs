//! Connection buffers. They grow and shrink with the traffic; their capacity counts as
//! the client's memory.

use bytes::BytesMut;

/// Size of a read when the client sends a lot.
pub(crate) const READ_BYTES_MAX: usize = 256 * 1024;
/// An empty buffer with more capacity than this is released.
pub(crate) const IDLE_CAPACITY_MAX: usize = 64 * 1024;
/// With this much output unread by the client, nothing more is executed.
pub(crate) const OUTPUT_HIGH: usize = 8 << 20;

/// Releases a mostly empty buffer whose allocation, of `room` bytes, is large: its
/// content is copied.
pub(crate) fn release_excess(buffer: &mut BytesMut, room: &mut usize) {
    if *room > 2 * READ_BYTES_MAX && buffer.len() < *room / 4 {
        *buffer = BytesMut::from(&buffer[..]);
        *room = buffer.capacity();
    }
}

/// Reserves room: small buffers double, large ones grow by a quarter, since their
/// capacity counts.
pub(crate) fn grow(buffer: &mut BytesMut, bytes: usize) {
    if buffer.len() <= READ_BYTES_MAX {
        return buffer.reserve(bytes);
    }
    let mut grown = BytesMut::with_capacity(buffer.len() + bytes.max(buffer.len() / 4));
    grown.extend_from_slice(buffer);
    *buffer = grown;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_mostly_empty_is_given_back() {
        let mut buffer = BytesMut::with_capacity(1 << 20);
        buffer.extend_from_slice(&[1; 1 << 20]);
        let mut room = buffer.capacity();
        let most = buffer.split_to(900_000);
        release_excess(&mut buffer, &mut room);
        assert!(buffer.len() == (1 << 20) - 900_000 && room < 1 << 18);
        assert!(most.freeze().try_into_mut().is_ok(), "what is left has no part of it");
    }

    #[test]
    fn a_large_buffer_grows_by_a_quarter() {
        let mut buffer = BytesMut::from(&vec![7; 8 << 20][..]);
        grow(&mut buffer, 1000);
        assert_eq!(buffer.len(), 8 << 20);
        assert!(buffer.capacity() < 11 << 20, "{}", buffer.capacity());
    }
}
