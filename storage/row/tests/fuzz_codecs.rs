//! A fuzz target: whatever bytes the disk gives, decoding says what they are or that they are nothing, and never panics.
//!
//! Runs briefly as a plain test; `cargo bolero test --test fuzz_codecs any_bytes` runs it for as long as you like.

use bytes::Bytes;
use row::key::{CellKey, parse_time_index, time_index};
use row::value::{Cell, Head, decode_counter, encode_counter};

#[test]
fn any_bytes() {
    bolero::check!().with_iterations(50_000).for_each(|input: &[u8]| {
        let bytes = Bytes::copy_from_slice(input);
        if let Ok(head) = Head::decode(&bytes) {
            assert_eq!(head.encode(), bytes, "a head has one encoding");
            assert!(Head::generation(&bytes).is_ok());
        } else {
            assert!(Head::generation(&bytes).is_err());
        }
        if let Ok(cell) = Cell::decode(&bytes) {
            assert_eq!(cell.encode(), bytes, "a cell has one encoding");
        }
        if let Ok(n) = decode_counter(&bytes) {
            assert_eq!(encode_counter(n), bytes);
        }
        if let Some(cell) = CellKey::parse(&bytes) {
            assert_eq!(cell.head()[8..], *cell.hashkey);
        }
        if let Some((at, due, head_key)) = parse_time_index(&bytes) {
            assert_eq!(time_index(at, due, head_key), bytes);
        }
    });
}
