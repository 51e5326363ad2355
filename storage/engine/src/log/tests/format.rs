//! The frozen bytes on disk, and a decoder that no bytes can crash.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use super::super::record::{self, GroupHeader, RecordKind, RecordPosition, Suspects};
use super::super::segment;
use super::*;
use crate::raft::types::{Membership, Node};
use crate::vectors::assert_frozen;

const PLACE: RecordPosition = RecordPosition { segment: 5, offset: 1000 };

fn bytes(kind: RecordKind, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut buf = Vec::new();
    record::put(&mut buf, PLACE, 28, kind, 0x0102, body);
    buf
}

/// One vector for each kind of record and each shape of its body.
#[test]
fn records_are_frozen() {
    let id = log_id(2, 9);
    let nodes: BTreeMap<u64, Node> =
        [(3, Node { server: 1 }), (4, Node { server: 0x0203_0405_0607_0809 })].into();
    let members = |sets: &[&[u64]]| {
        let sets = sets.iter().map(|set| BTreeSet::from_iter(set.iter().copied())).collect();
        EntryPayload::Membership(Membership::new(sets, nodes.clone()).unwrap())
    };
    let of = |payload| Entry { log_id: id, payload };
    let candidate = Vote { committed: false, ..vote(2) };
    let state =
        GroupHeader { vote: Some(vote(2)), purged: Some(id), committed: None, first: Some(10) };
    let committed = GroupHeader { committed: Some(id), ..GroupHeader::default() };
    let two = Suspects::These([7, 0x0102_0304].into());
    let now = [
        (
            "blank entry",
            bytes(RecordKind::Entry, |b| record::put_entry(b, &of(EntryPayload::Blank))),
        ),
        (
            "entry of a batch",
            bytes(RecordKind::Entry, |b| record::put_entry(b, &entry(2, 9, "batch"))),
        ),
        (
            "entry of a membership, joint",
            bytes(RecordKind::Entry, |b| record::put_entry(b, &of(members(&[&[3], &[3, 4]])))),
        ),
        (
            "moved entry of a membership",
            bytes(RecordKind::Relocated, |b| record::put_entry(b, &of(members(&[&[3]])))),
        ),
        ("vote for a leader", bytes(RecordKind::Vote, |b| record::put_vote(b, &vote(2)))),
        ("vote for a candidate", bytes(RecordKind::Vote, |b| record::put_vote(b, &candidate))),
        (
            "committed",
            bytes(RecordKind::Committed, |b| {
                record::put_optional(b, Some(&id), record::put_log_id)
            }),
        ),
        (
            "truncate after 7",
            bytes(RecordKind::TruncateAfter, |b| {
                record::put_optional(b, Some(&7), record::put_index)
            }),
        ),
        (
            "truncate all",
            bytes(RecordKind::TruncateAfter, |b| record::put_optional(b, None, record::put_index)),
        ),
        ("purge", bytes(RecordKind::Purge, |b| record::put_log_id(b, &id))),
        ("group state", bytes(RecordKind::GroupHeader, |b| record::put_group_header(b, &state))),
        (
            "group state, committed only",
            bytes(RecordKind::GroupHeader, |b| record::put_group_header(b, &committed)),
        ),
        ("destroy", bytes(RecordKind::Destroy, |_| {})),
        ("mark", bytes(RecordKind::Mark, |_| {})),
        (
            "no suspects",
            bytes(RecordKind::Suspects, |b| record::put_suspects(b, &Suspects::default())),
        ),
        ("two suspects", bytes(RecordKind::Suspects, |b| record::put_suspects(b, &two))),
        (
            "all are suspects",
            bytes(RecordKind::Suspects, |b| record::put_suspects(b, &Suspects::All)),
        ),
        ("header of the first segment", segment::header(1, 0).to_vec()),
        ("header of segment 5", segment::header(5, 4000).to_vec()),
    ];
    assert_frozen("log.txt", include_str!("../../../tests/vectors/log.txt"), &now);
    assert_eq!(segment::file_name(5), "00000000000000000005.log");
}

/// The contents of whole files: the order of the records, their positions and synced
/// offsets, and the zeros behind them.
#[tokio::test]
async fn segments_are_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let (synced, lax) = (dir.path().join("synced"), dir.path().join("lax"));
    let open = |dir: &Path, durability, segment_bytes| {
        let options = LogOptions { preallocate: false, ..options(dir, durability, segment_bytes) };
        let log = Log::open(options).unwrap();
        log.shared.faults.no_marks.store(true, Ordering::Relaxed);
        log
    };

    let log = open(&synced, Durability::Always, 4096);
    let mut group = log.group_log(7);
    group.save_vote(&vote(2)).await.unwrap();
    append(&mut group, vec![entry(2, 1, "one"), entry(2, 2, "two"), entry(2, 3, "three")]).await;
    group.save_committed(Some(log_id(2, 2))).await.unwrap();
    append(&mut group, vec![entry(2, 4, "four")]).await;
    group.truncate_after(Some(log_id(2, 3))).await.unwrap();
    group.purge(log_id(2, 1)).await.unwrap();
    append(&mut log.group_log(8), vec![entry(1, 1, "other")]).await;
    log.destroy(8).await.unwrap();
    drop((group, log));

    let log = open(&synced, Durability::Always, 4096);
    append(&mut log.group_log(7), vec![entry(3, 4, vec![7; 3900])]).await;
    drop(log);

    let log = open(&lax, Durability::Os, 1 << 20);
    append(&mut log.group_log(7), vec![entry(2, 1, "one")]).await;
    log.close().unwrap();

    let read = |dir: &Path, number| {
        let mut bytes = std::fs::read(dir.join(segment::file_name(number))).unwrap();
        if let Some(long) = bytes.windows(3900).position(|bytes| bytes == [7; 3900]) {
            bytes.drain(long..long + 3900);
        }
        bytes
    };
    let now = [
        ("synced before it is acknowledged, closed", read(&synced, 1)),
        ("its successor, without 3900 bytes of 7", read(&synced, 2)),
        ("acknowledged before it is synced, closed", read(&lax, 1)),
    ];
    assert_frozen("segments.txt", include_str!("../../../tests/vectors/segments.txt"), &now);
}

/// Any record is read back as it was written.
#[test]
fn records_that_are_put_are_parsed() {
    proptest::proptest!(|(
        offset in 28u32..,
        segment: u64,
        synced in 0u32..28,
        group: u64,
        payload: Vec<u8>,
        term: u64,
        index: u64,
    )| {
        let entry = entry(term, index, payload);
        let mut buf = Vec::new();
        let position = RecordPosition { segment, offset };
        let len = record::put(&mut buf, position, synced, RecordKind::Entry, group, |b| {
            record::put_entry(b, &entry)
        });
        proptest::prop_assert_eq!(len as usize, buf.len());
        proptest::prop_assert!(buf.len() <= record::entry_len(&entry));
        let raw = record::parse(&buf, position).unwrap();
        proptest::prop_assert_eq!(
            (raw.synced, raw.kind, raw.group),
            (synced, RecordKind::Entry, group)
        );
        let body = Bytes::copy_from_slice(raw.body);
        proptest::prop_assert_eq!(record::entry(&body).unwrap(), entry);
        let elsewhere = RecordPosition { segment, offset: offset ^ 1 };
        proptest::prop_assert!(record::parse(&buf, elsewhere).is_err(), "valid at one place only");
    });
}

#[test]
fn any_bytes_decode_or_say_why() {
    bolero::check!().with_type::<(u32, Vec<u8>)>().for_each(|(offset, bytes)| {
        let _ = record::parse(bytes, RecordPosition { segment: 1, offset: *offset });
        let _ = segment::read_header(bytes, 1);
        decode(bytes);
    });
}

/// Decodes bodies behind a right checksum, so that the fuzzer reaches them.
fn decode(bytes: &[u8]) {
    let _ = record::entry(&Bytes::copy_from_slice(bytes));
    let body = || record::BodyReader(bytes);
    let _ =
        (body().vote(), body().log_id(), body().group_header(), body().index(), body().suspects());
}

/// Any records in any order are recovered, or refused with an error, without a panic.
#[test]
fn any_records_recover_or_say_why() {
    let kinds = [
        RecordKind::Entry,
        RecordKind::Relocated,
        RecordKind::Vote,
        RecordKind::Committed,
        RecordKind::TruncateAfter,
        RecordKind::Purge,
        RecordKind::GroupHeader,
        RecordKind::Destroy,
        RecordKind::Mark,
        RecordKind::Suspects,
    ];
    let dir = tempfile::tempdir().unwrap();
    bolero::check!().with_iterations(2000).with_type::<Vec<(u8, u8, u8, Vec<u8>)>>().for_each(
        |records| {
            let mut file = segment::header(1, 0).to_vec();
            for (kind, term, index, rest) in records {
                let kind = kinds[*kind as usize % kinds.len()];
                let position = RecordPosition { segment: 1, offset: file.len() as u32 };
                let id = log_id(u64::from(term % 3), u64::from(index % 8));
                record::put(&mut file, position, 0, kind, u64::from(*term % 2), |b| match kind {
                    _ if rest.len() > 3 => b.extend_from_slice(rest),
                    RecordKind::Entry | RecordKind::Relocated => {
                        record::put_entry(b, &Entry { log_id: id, payload: EntryPayload::Blank })
                    }
                    RecordKind::Vote => record::put_vote(b, &vote(id.index)),
                    RecordKind::Committed => record::put_optional(b, Some(&id), record::put_log_id),
                    RecordKind::TruncateAfter => {
                        record::put_optional(b, Some(&id.index), record::put_index)
                    }
                    RecordKind::Purge => record::put_log_id(b, &id),
                    RecordKind::GroupHeader => record::put_group_header(
                        b,
                        &GroupHeader { first: Some(id.index), ..GroupHeader::default() },
                    ),
                    RecordKind::Suspects => {
                        record::put_suspects(b, &Suspects::These([u64::from(*index)].into()))
                    }
                    RecordKind::Destroy | RecordKind::Mark => {}
                });
            }
            let path = dir.path().join(segment::file_name(1));
            std::fs::write(&path, file).unwrap();
            let _ = super::super::recover::recover(&options(dir.path(), Durability::Os, 4096));
        },
    );
}
