//! Damage is told from a torn tail for every single byte, and its position is reported.

use super::super::record::{self, RecordKind, RecordPosition};
use super::super::{LogError, recover, segment};
use super::*;

/// Reads the contents of a recovered log from its segments.
fn read(dir: &Path) -> Result<std::collections::BTreeMap<u64, Image>, LogError> {
    let recovered = recover::recover(&options(dir, Durability::Always, 4096))?;
    let mut images = std::collections::BTreeMap::new();
    for (id, group) in &recovered.groups {
        let views = group.views.lock();
        let plan_read = views.plan_read(0, u64::MAX, u64::MAX);
        let entries = plan_read
            .cold
            .iter()
            .map(|(index, location)| location.read(*id, *index))
            .collect::<Result<Vec<_>, _>>()?;
        images
            .insert(*id, Image { vote: views.visible.vote, purged: views.visible.purged, entries });
    }
    Ok(images)
}

/// Writes a log of three segments, and returns the start of its last batch.
async fn small_log(log: &Arc<Log>) -> u32 {
    // However slow this is, the last batch stays the last record.
    log.shared.faults.no_marks.store(true, std::sync::atomic::Ordering::Relaxed);
    for id in 1..=2 {
        let mut group = log.group_log(id);
        group.save_vote(&vote(id)).await.unwrap();
        for batch in 0..8 {
            append(
                &mut group,
                (1..=2).map(|i| entry(id, 2 * batch + i, vec![batch as u8; 200])).collect(),
            )
            .await;
        }
        group.truncate_after(Some(log_id(id, 14))).await.unwrap();
        group.purge(log_id(id, 2)).await.unwrap();
    }
    log.flush().await.unwrap();
    let start = log.shared.writer.lock().active.end();
    append(&mut log.group_log(1), vec![entry(9, 15, "the last batch"), entry(9, 16, "of two")])
        .await;
    start
}

#[tokio::test]
async fn every_flipped_byte_is_an_error_or_cuts_the_last_batch() {
    let (live, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = Log::open(options(live.path(), Durability::Always, 4096)).unwrap();
    let last_batch = small_log(&log).await as usize;
    let (_, end) = kill(&log, dir.path());
    let whole = read(dir.path()).unwrap();
    assert_eq!(whole[&1].entries.len(), 14);
    let files = segments(dir.path());
    assert!(files.len() >= 3, "{files:?}");
    for (i, path) in files.iter().enumerate() {
        let bytes = std::fs::read(path).unwrap();
        let is_last = i + 1 == files.len();
        let used = if is_last { end as usize + 40 } else { used(&files[i + 1]) };
        for at in 0..used {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(path, &damaged).unwrap();
            match read(dir.path()) {
                Ok(images) => {
                    assert!(is_last && at >= last_batch, "byte {at} of {path:?} was not noticed");
                    assert_eq!(images[&2], whole[&2]);
                    let (kept, all) = (&images[&1].entries, &whole[&1].entries);
                    assert!(
                        all.starts_with(kept) && kept.len() >= all.len() - 2,
                        "wrong data after damage at {at}"
                    );
                    if at >= end as usize {
                        assert_eq!(images, whole, "rubbish behind the end costs nothing");
                    } else {
                        assert_ne!(images, whole);
                    }
                }
                Err(LogError::Corrupt { path: named, offset, .. }) => {
                    assert_eq!(&named, path);
                    assert!(offset as usize <= at, "damage at {at} reported at {offset}");
                    assert!(!is_last || at < last_batch);
                    assert_eq!(
                        std::fs::read(path).unwrap(),
                        damaged,
                        "a damaged log is left as it is"
                    );
                }
                Err(other) => panic!("{other}"),
            }
        }
        std::fs::write(path, &bytes).unwrap();
    }
}

/// The end of the segment before the one at `path`.
fn used(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    u32::from_le_bytes(bytes[24..28].try_into().unwrap()) as usize
}

#[tokio::test]
async fn after_a_clean_close_damage_to_the_last_batch_is_an_error_too() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    let last_batch = small_log(&log).await as usize;
    let end = log.shared.writer.lock().active.end() as usize;
    log.close().unwrap();
    drop(log);
    let whole = read(dir.path()).unwrap();
    let path = segments(dir.path()).pop().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for at in last_batch..end {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x80;
        std::fs::write(&path, &damaged).unwrap();
        assert!(matches!(read(dir.path()), Err(LogError::Corrupt { .. })), "byte {at}");
    }
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(read(dir.path()).unwrap(), whole);
}

/// A record as a later version might write it: intact, but of an unknown kind.
fn newer(position: RecordPosition, synced: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let len = record::put(&mut bytes, position, synced, RecordKind::Mark, 0, |body| {
        body.extend_from_slice(b"news")
    }) as usize;
    bytes[12] = 0x1f;
    let crc =
        crc32c::crc32c_append(record::seed(position, (len - record::HEADER) as u32), &bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[tokio::test]
async fn records_of_a_newer_version_are_an_error_and_never_cut() {
    let (live, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = Log::open(options(live.path(), Durability::Always, 4096)).unwrap();
    small_log(&log).await;
    let (_, end) = kill(&log, dir.path());
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let number = segment::number_of(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let record = newer(RecordPosition { segment: number, offset: end }, end);
    bytes[end as usize..end as usize + record.len()].copy_from_slice(&record);
    std::fs::write(&path, &bytes).unwrap();
    let said = read(dir.path()).unwrap_err();
    assert!(
        matches!(&said, LogError::Newer { path: named, offset, .. }
            if *named == path && *offset == u64::from(end)),
        "{said}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "it is left as it is");
    // It vouches for the bytes before it, as any record does.
    bytes[end as usize - 1] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let said = read(dir.path()).unwrap_err();
    assert!(matches!(said, LogError::Corrupt { .. }), "{said}");
}

#[tokio::test]
async fn tail_that_claims_many_large_records_is_read_quickly() {
    let (live, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let size = 16 << 20;
    let log = Log::open(options(live.path(), Durability::Always, size)).unwrap();
    append(&mut log.group_log(1), vec![entry(1, 1, "the only one")]).await;
    let (_, end) = kill(&log, dir.path());
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // A client's value in an earlier life of the file: every four bytes the header of a
    // record of 4 MiB.
    let stale = end as usize + segment::TRAILER;
    for (at, byte) in bytes[stale..].iter_mut().enumerate() {
        *byte = [0x11, 0x00, 0x40, 0x00][at % 4];
    }
    std::fs::write(&path, &bytes).unwrap();
    let start = std::time::Instant::now();
    let log = Log::open(options(dir.path(), Durability::Always, size)).unwrap();
    let took = start.elapsed();
    assert_eq!(image(&log, 1).await.entries, [entry(1, 1, "the only one")]);
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn a_missing_segment_is_noticed() {
    let (live, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = Log::open(options(live.path(), Durability::Always, 4096)).unwrap();
    small_log(&log).await;
    for gone in 0..2 {
        kill(&log, dir.path());
        std::fs::remove_file(&segments(dir.path())[gone]).unwrap();
        let error = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap_err();
        assert!(matches!(error, LogError::Corrupt { .. } | LogError::Incomplete { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_record_stored_as_a_value_is_not_taken_for_one() {
    let (live, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = Log::open(options(live.path(), Durability::Always, 64 << 10)).unwrap();
    let mut group = log.group_log(1);
    append(&mut group, vec![entry(1, 1, "first")]).await;
    append(&mut group, vec![entry(1, 2, "second")]).await;
    kill(&log, dir.path());
    let copy = std::fs::read(segments(dir.path()).pop().unwrap()).unwrap();
    append(&mut group, vec![entry(1, 3, copy[28..400].to_vec())]).await;
    let (_, end) = kill(&log, dir.path());
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[end as usize - 1] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(read(dir.path()).unwrap()[&1].entries.len(), 2, "torn, not damaged");
}

#[tokio::test]
async fn damage_while_running_is_an_error_with_file_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(LogOptions {
        tail_bytes_max: 0,
        ..options(dir.path(), Durability::Always, 64 << 10)
    })
    .unwrap();
    let mut group = log.group_log(1);
    append(&mut group, vec![entry(1, 1, vec![7; 100])]).await;
    while log.cached().load(std::sync::atomic::Ordering::Relaxed) > 0 {
        // The cache is emptied after the acknowledgement.
        std::thread::yield_now();
    }
    let path = segments(dir.path()).pop().unwrap();
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(&path).unwrap(),
        &[8],
        100,
    )
    .unwrap();
    let error = group.try_get_log_entries(1..2).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("at byte 28"), "{text}");
}

#[test]
fn a_log_that_must_exist_is_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let must = || LogOptions { must_exist: true, ..options(dir.path(), Durability::Always, 4096) };
    let said = Log::open(must()).err().unwrap();
    assert!(matches!(&said, LogError::Missing { dir: named } if named == dir.path()), "{said}");
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    // An empty log is a log.
    Log::open(options(dir.path(), Durability::Always, 4096)).unwrap().close().unwrap();
    Log::open(must()).unwrap().close().unwrap();
}
