//! The bytes on disk, frozen, and a decoder that no bytes can bring down.

use std::collections::{BTreeMap, BTreeSet};

use super::super::record::{self, Kind, Place, State, Suspects};
use super::super::segment;
use super::*;
use crate::raft::types::{Membership, Node};

const PLACE: Place = Place { segment: 5, offset: 1000 };

fn bytes(kind: Kind, body: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut buf = Vec::new();
    record::put(&mut buf, PLACE, 28, kind, 0x0102, body);
    buf.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Version 1. Vectors are added, never edited.
#[test]
fn frozen_bytes() {
    let id = log_id(2, 9);
    let nodes: BTreeMap<u64, Node> =
        [(3, Node { server: 1 }), (4, Node { server: 0x0203_0405_0607_0809 })].into();
    let membership = Membership::new(vec![BTreeSet::from([3])], nodes).unwrap();
    let of = |payload| Entry { log_id: id, payload };
    let membership = of(EntryPayload::Membership(membership));
    let state = State { vote: Some(vote(2)), purged: Some(id), committed: None, first: Some(10) };
    let found = [
        bytes(Kind::Entry, |b| record::put_entry(b, &of(EntryPayload::Blank))),
        bytes(Kind::Entry, |b| record::put_entry(b, &entry(2, 9, "batch"))),
        bytes(Kind::Moved, |b| record::put_entry(b, &membership)),
        bytes(Kind::Vote, |b| record::put_vote(b, &vote(2))),
        bytes(Kind::Committed, |b| record::put_optional(b, Some(&id), record::put_log_id)),
        bytes(Kind::TruncateAfter, |b| record::put_optional(b, Some(&7), record::put_index)),
        bytes(Kind::TruncateAfter, |b| record::put_optional(b, None, record::put_index)),
        bytes(Kind::Purge, |b| record::put_log_id(b, &id)),
        bytes(Kind::State, |b| record::put_state(b, &state)),
        bytes(Kind::Destroy, |_| {}),
        bytes(Kind::Mark, |_| {}),
        bytes(Kind::Suspects, |b| record::put_suspects(b, &Suspects::default())),
        bytes(Kind::Suspects, |b| {
            record::put_suspects(b, &Suspects::These([7, 0x0102_0304].into()))
        }),
        bytes(Kind::Suspects, |b| record::put_suspects(b, &Suspects::All)),
        segment::header(5, 4000).iter().map(|byte| format!("{byte:02x}")).collect(),
    ];
    let frozen: [&str; 15] = [
        "19000000a31ce6401c00000011020100000000000002000000000000000300000000000000090000000000000000",
        "1e000000197529f21c000000110201000000000000020000000000000003000000000000000900000000000000016261746368",
        "29000000a9d1298b1c000000120201000000000000020000000000000003000000000000000900000000000000020101030203010489909cb0d080c18102",
        "110000005924099f1c0000001302010000000000000200000000000000030000000000000001",
        "19000000bd389d771c00000014020100000000000001020000000000000003000000000000000900000000000000",
        "09000000211f0ea51c000000150201000000000000010700000000000000",
        "01000000ca7ae2501c00000015020100000000000000",
        "180000003e32faf41c000000160201000000000000020000000000000003000000000000000900000000000000",
        "3500000064e46e191c0000001702010000000000000102000000000000000300000000000000010102000000000000000300000000000000090000000000000000010a00000000000000",
        "00000000514c97591c000000180201000000000000",
        "00000000199aa9ad1c000000190201000000000000",
        "05000000e59561a31c0000001a02010000000000000000000000",
        "1500000060d00d1d1c0000001a0201000000000000000200000007000000000000000403020100000000",
        "010000005e9d289f1c0000001a020100000000000001",
        "4252444c4c4f470a01000000ab1a0ebe0500000000000000a00f0000",
    ];
    assert_eq!(found.each_ref().map(String::as_str), frozen);
}

/// Any record is read back as it was written.
#[test]
fn what_is_put_is_parsed() {
    proptest::proptest!(|(offset in 28u32.., segment: u64, synced in 0u32..28, group: u64, payload: Vec<u8>, term: u64, index: u64)| {
        let entry = entry(term, index, payload);
        let mut buf = Vec::new();
        let place = Place { segment, offset };
        let len = record::put(&mut buf, place, synced, Kind::Entry, group, |b| record::put_entry(b, &entry));
        proptest::prop_assert_eq!(len as usize, buf.len());
        proptest::prop_assert!(buf.len() <= record::entry_len(&entry));
        let raw = record::parse(&buf, place).unwrap();
        proptest::prop_assert_eq!((raw.synced, raw.kind, raw.group), (synced, Kind::Entry, group));
        let body = Bytes::copy_from_slice(raw.body);
        proptest::prop_assert_eq!(record::entry(&body).unwrap(), entry);
        let elsewhere = Place { segment, offset: offset ^ 1 };
        proptest::prop_assert!(record::parse(&buf, elsewhere).is_err(), "valid at one place only");
    });
}

#[test]
fn any_bytes_decode_or_say_why() {
    bolero::check!().with_type::<(u32, Vec<u8>)>().for_each(|(offset, bytes)| {
        let _ = record::parse(bytes, Place { segment: 1, offset: *offset });
        let _ = segment::read_header(bytes, 1);
        decode(bytes);
    });
}

/// Bodies behind a right checksum, so that the fuzzer gets past it.
fn decode(bytes: &[u8]) {
    let _ = record::entry(&Bytes::copy_from_slice(bytes));
    let body = || record::Body(bytes);
    let _ = (body().vote(), body().log_id(), body().state(), body().index(), body().suspects());
}

/// Any records in any order recover to something or an error, never a panic.
#[test]
fn any_records_recover_or_say_why() {
    let kinds = [
        Kind::Entry,
        Kind::Moved,
        Kind::Vote,
        Kind::Committed,
        Kind::TruncateAfter,
        Kind::Purge,
        Kind::State,
        Kind::Destroy,
        Kind::Mark,
        Kind::Suspects,
    ];
    let dir = tempfile::tempdir().unwrap();
    bolero::check!().with_iterations(2000).with_type::<Vec<(u8, u8, u8, Vec<u8>)>>().for_each(
        |records| {
            let mut file = segment::header(1, 0).to_vec();
            for (kind, term, index, rest) in records {
                let kind = kinds[*kind as usize % kinds.len()];
                let place = Place { segment: 1, offset: file.len() as u32 };
                let id = log_id(u64::from(term % 3), u64::from(index % 8));
                record::put(&mut file, place, 0, kind, u64::from(*term % 2), |b| match kind {
                    _ if rest.len() > 3 => b.extend_from_slice(rest),
                    Kind::Entry | Kind::Moved => {
                        record::put_entry(b, &Entry { log_id: id, payload: EntryPayload::Blank })
                    }
                    Kind::Vote => record::put_vote(b, &vote(id.index)),
                    Kind::Committed => record::put_optional(b, Some(&id), record::put_log_id),
                    Kind::TruncateAfter => {
                        record::put_optional(b, Some(&id.index), record::put_index)
                    }
                    Kind::Purge => record::put_log_id(b, &id),
                    Kind::State => {
                        record::put_state(b, &State { first: Some(id.index), ..State::default() })
                    }
                    Kind::Suspects => {
                        record::put_suspects(b, &Suspects::These([u64::from(*index)].into()))
                    }
                    Kind::Destroy | Kind::Mark => {}
                });
            }
            let path = dir.path().join(segment::file_name(1));
            std::fs::write(&path, file).unwrap();
            let _ = super::super::recover::recover(&options(dir.path(), Durability::Os, 4096));
        },
    );
}
