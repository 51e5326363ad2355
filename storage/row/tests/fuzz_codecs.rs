//! A fuzz target: for any bytes on disk, decoding returns a record or a fault, and never
//! panics.
//!
//! Runs briefly as a plain test; `cargo bolero test --test fuzz_codecs any_bytes` runs it
//! without end.

use bytes::Bytes;
use row::Family;
use row::key::{CellKey, parse_time_index, time_index};
use row::op::RowKind;
use row::value::{Body, Cell, Head, decode_counter, encode_counter, metadata};

#[test]
fn any_bytes() {
    bolero::check!().with_iterations(50_000).for_each(|input: &[u8]| {
        let bytes = Bytes::copy_from_slice(input);
        let gist_of = |family: Family| bytes.slice(..metadata(family, &bytes).len());
        let head_gist = Head::decode(&gist_of(Family::Head));
        if let Ok(head) = Head::decode(&bytes) {
            assert_eq!(head.encode(), bytes, "a head has one encoding");
            assert_eq!(
                Head::summary(&bytes).map(|summary| summary.expires_at_ms),
                Ok(head.header.expires_at_ms)
            );
            let untold =
                if head.kind() == RowKind::String { Body::String(Bytes::new()) } else { head.body };
            assert_eq!(head_gist, Ok(Head { body: untold, ..head }));
        } else {
            assert!(Head::summary(&bytes).is_err());
            assert!(head_gist.is_err());
        }
        let cell_gist = Cell::decode(&gist_of(Family::Cell));
        if let Ok(cell) = Cell::decode(&bytes) {
            assert_eq!(cell.encode(), bytes, "a cell has one encoding");
            assert_eq!(cell_gist, Ok(Cell { value: Bytes::new(), ..cell }));
        } else {
            assert!(cell_gist.is_err());
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
