//! Many groups write at once, and each gets what it wrote.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn groups_that_write_at_once_do_not_disturb_each_other() {
    for durability in [Durability::Always, Durability::Os] {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { tail_bytes_max: 10_000, ..options(dir.path(), durability, 32 << 10) };
        let log = Log::open(options.clone()).unwrap();
        let writers: Vec<_> = (1..=8).map(|id| tokio::spawn(write(log.group_log(id)))).collect();
        for writer in writers {
            writer.await.unwrap();
        }
        if durability == Durability::Always {
            assert!(log.stats().fsyncs() < 8 * 200, "groups share fsyncs");
        }
        drop(log);
        let log = Log::open(options).unwrap();
        for id in 1..=8 {
            let image = image(&log, id).await;
            assert_eq!(image.purged, Some(log_id(1, 100)));
            let expected: Vec<Entry> = (101..=200).map(|index| entry(1, index, vec![id as u8; 100 + index as usize])).collect();
            assert_eq!(image.entries, expected);
        }
    }
}

async fn write(mut group: GroupLog) {
    let id = group.id() as u8;
    for index in 1..=200 {
        append(&mut group, vec![entry(1, index, vec![id; 100 + index as usize])]).await;
        let from = if index > 100 { 101 } else { 1 };
        assert_eq!(group.try_get_log_entries(from..=index).await.unwrap().len() as u64, index + 1 - from);
        if index > 100 {
            group.purge(log_id(1, 100)).await.unwrap();
        }
    }
}
