//! After a crash, every acknowledged write is there, and the rest is a prefix of the
//! writes that were requested.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

type World = BTreeMap<u64, Image>;

/// Performs one random operation on a group, in the log and in the model. Returns true if
/// it, and thereby everything before it, is durable.
async fn step(
    dice: &mut Dice,
    log: &Arc<Log>,
    world: &mut World,
    term: &mut u64,
    history: &mut Vec<World>,
) -> bool {
    let id = 1 + dice.below(3);
    let mut group = log.group_log(id);
    let model = world.entry(id).or_default();
    let first = model.purged.map_or(1, |purged| purged.index + 1);
    let next = first + model.entries.len() as u64;
    match dice.below(100) {
        0..70 => {
            let len = if dice.below(30) == 0 { 5000 } else { dice.below(300) };
            let entries: Vec<Entry> = (next..=next + dice.below(4))
                .map(|index| entry(*term, index, dice.bytes(len as usize)))
                .collect();
            for entry in &entries {
                // A crash may leave a part of an append, but never a part of an entry.
                world.entry(id).or_default().entries.push(entry.clone());
                history.push(clean(world.clone()));
            }
            let acknowledged = start_append(&mut group, entries).await;
            let waits = log.durability() == Durability::Always && dice.below(2) == 0;
            if waits {
                acknowledged.await.unwrap().unwrap();
            }
            waits
        }
        70..74 => {
            *term += 1;
            model.vote = Some(vote(*term));
            group.save_vote(&vote(*term)).await.unwrap();
            true
        }
        74..80 if next > first => {
            let keep = dice.below(next - first) as usize;
            let after = keep.checked_sub(1).map(|last| model.entries[last].log_id).or(model.purged);
            model.entries.truncate(keep);
            *term += 1;
            group.truncate_after(after).await.unwrap();
            true
        }
        80..88 if next > first => {
            let gone = 1 + dice.below(next - first) as usize;
            let upto = model.entries[gone - 1].log_id;
            model.entries.drain(..gone);
            model.purged = Some(upto);
            group.purge(upto).await.unwrap();
            false
        }
        88 => {
            // As after the installation of a snapshot: purged beyond the end.
            let upto = log_id(*term, next + dice.below(10));
            (model.entries, model.purged) = (Vec::new(), Some(upto));
            group.purge(upto).await.unwrap();
            false
        }
        89 => {
            world.remove(&id);
            log.destroy(id).await.unwrap();
            true
        }
        90..94 => {
            log.flush().await.unwrap();
            true
        }
        94.. => {
            group.save_committed(model.entries.last().map(|last| last.log_id)).await.unwrap();
            false
        }
        _ => false,
    }
}

async fn look(log: &Arc<Log>) -> World {
    let mut world = World::new();
    for id in log.groups() {
        world.insert(id, image(log, id).await);
    }
    clean(world)
}

/// Drops groups to which nothing was ever written.
fn clean(mut world: World) -> World {
    world.retain(|_, image| *image != Image::default());
    world
}

/// Damages the unsynced bytes of the last segment as a power cut may: a prefix stays, or
/// any pieces, or garbage, or the earlier contents of the file.
fn mangle(dice: &mut Dice, dir: &Path, synced: u32, end: u32) {
    let paths = segments(dir);
    let (first, last) = (std::fs::read(&paths[0]).unwrap(), paths.last().unwrap());
    let mut bytes = std::fs::read(last).unwrap();
    let unsynced = &mut bytes[synced as usize..end as usize];
    match dice.below(5) {
        0 => {}
        1 => {
            let keep = dice.below(unsynced.len() as u64 + 1) as usize;
            unsynced[keep..].fill(0);
        }
        2 => unsynced.chunks_mut(64).filter(|_| dice.below(3) == 0).for_each(|piece| piece.fill(0)),
        3 => {
            for (piece, earlier) in unsynced
                .chunks_mut(64)
                .zip(first.get(synced as usize..).unwrap_or_default().chunks(64))
            {
                if piece.len() == earlier.len() && dice.below(3) == 0 {
                    piece.copy_from_slice(earlier);
                }
            }
        }
        _ => {
            let keep = dice.below(unsynced.len() as u64 + 1) as usize;
            unsynced[keep..].iter_mut().for_each(|byte| *byte = dice.next() as u8);
        }
    }
    std::fs::write(last, bytes).unwrap();
}

/// Invariant: a callback gets `Ok` only after its operation is durable.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_crashes() {
    for seed in seeds(60) {
        println!("seed {seed}; replay with BRIDLE_TEST_SEED={seed}");
        let dice = &mut Dice::new(seed);
        let (live, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let durability = [
            Durability::Os,
            Durability::Os,
            Durability::Always,
            Durability::Interval(std::time::Duration::from_millis(1)),
        ][dice.below(4) as usize];
        let mut options =
            options(live.path(), durability, [4 << 10, 8 << 10, 64 << 10][dice.below(3) as usize]);
        options.tail_bytes_max = [0, 1000, 1 << 20][dice.below(3) as usize];
        options.preallocate = dice.below(4) != 0;
        let log = Log::open(options.clone()).unwrap();
        let (mut world, mut term, mut history, mut durable) =
            (World::new(), 1, vec![World::new()], 0);
        for _ in 0..60 + dice.below(100) {
            let now_durable = step(dice, &log, &mut world, &mut term, &mut history).await;
            history.push(clean(world.clone()));
            if now_durable {
                durable = history.len() - 1;
            }
        }
        assert_eq!(&look(&log).await, history.last().unwrap(), "read while running");
        let (synced, end) = kill(&log, crashed.path());
        mangle(dice, crashed.path(), synced, end);
        let options = LogOptions { dir: crashed.path().to_owned(), ..options };
        let recovered = Log::open(options.clone()).unwrap();
        let found = look(&recovered).await;
        let at = history
            .iter()
            .rposition(|then| *then == found)
            .expect("what is found is a prefix of what was done");
        assert!(
            at >= durable,
            "found the state after step {at}, but step {durable} was acknowledged as durable"
        );
        // It can be written to again, and no stale record lines up with the new one.
        let last = image(&recovered, 2).await;
        let next = last
            .entries
            .last()
            .map(|e| e.log_id.index)
            .or(last.purged.map(|p| p.index))
            .map_or(1, |index| index + 1);
        let len = dice.below(100) as usize;
        append(&mut recovered.group_log(2), vec![entry(term, next, dice.bytes(len))]).await;
        let expected = look(&recovered).await;
        kill(&recovered, live.path().join("again").as_path());
        let again = Log::open(LogOptions { dir: live.path().join("again"), ..options }).unwrap();
        assert_eq!(look(&again).await, expected);
    }
}

#[tokio::test]
async fn a_truncated_tail_stays_gone_and_its_successor_stays() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    let mut group = log.group_log(1);
    append(&mut group, (1..=20).map(|index| entry(1, index, vec![1; 300])).collect()).await;
    group.truncate_after(Some(log_id(1, 7))).await.unwrap();
    drop((group, log));
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    let mut group = log.group_log(1);
    assert_eq!(group.get_log_state().await.unwrap().last_log_id, Some(log_id(1, 7)));
    append(&mut group, vec![entry(2, 8, "new")]).await;
    drop((group, log));
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    let image = image(&log, 1).await;
    assert_eq!(image.entries.last(), Some(&entry(2, 8, "new")));
    assert_eq!(image.entries.len(), 8);
}

#[tokio::test]
async fn a_committed_id_comes_back_and_never_points_beyond_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    let mut group = log.group_log(1);
    append(&mut group, (1..=3).map(|index| entry(1, index, "x")).collect()).await;
    group.save_committed(Some(log_id(1, 2))).await.unwrap();
    append(&mut group, vec![entry(1, 4, "x")]).await;
    group.save_committed(Some(log_id(1, 4))).await.unwrap();
    log.close().unwrap();
    assert!(
        group.append(vec![entry(1, 5, "x")], Flushed::noop()).await.is_ok(),
        "queued, and refused by its callback"
    );
    drop((group, log));
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    assert_eq!(log.group_log(1).read_committed().await.unwrap(), Some(log_id(1, 4)));
    log.group_log(1).truncate_after(Some(log_id(1, 1))).await.unwrap();
    drop(log);
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    assert_eq!(log.group_log(1).read_committed().await.unwrap(), None);
}

#[tokio::test]
async fn a_destroyed_group_is_gone_and_its_id_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    append(&mut log.group_log(1), vec![entry(1, 1, "old")]).await;
    append(&mut log.group_log(2), vec![entry(1, 1, "other")]).await;
    let mut handle = log.group_log(1);
    log.destroy(1).await.unwrap();
    assert!(handle.append(vec![entry(1, 2, "late")], Flushed::noop()).await.is_err());
    assert_eq!(log.groups(), [2]);
    append(&mut log.group_log(1), vec![entry(5, 1, "new")]).await;
    drop((log, handle));
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    assert_eq!(image(&log, 1).await.entries, [entry(5, 1, "new")]);
    assert_eq!(image(&log, 2).await.entries, [entry(1, 1, "other")]);
}

#[tokio::test]
async fn a_hole_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    let mut group = log.group_log(1);
    append(&mut group, vec![entry(1, 1, "x")]).await;
    assert!(group.append(vec![entry(1, 3, "x")], Flushed::noop()).await.is_err());
    assert!(group.append(vec![entry(1, 1, "x")], Flushed::noop()).await.is_err());
    group.purge(log_id(1, 10)).await.unwrap();
    assert!(group.append(vec![entry(1, 12, "x")], Flushed::noop()).await.is_err());
    append(&mut group, vec![entry(1, 11, "x")]).await;
}

#[tokio::test]
async fn cut_records_stay_gone_behind_a_new_entry_of_their_size() {
    let (live, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = Log::open(options(live.path(), Durability::Os, 64 << 10)).unwrap();
    append(
        &mut log.group_log(1),
        vec![entry(1, 1, "lost in the crash"), entry(1, 2, "written, and cut off")],
    )
    .await;
    kill(&log, dir.path());
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[28 + 40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for _ in 0..2 {
        let log = Log::open(options(dir.path(), Durability::Os, 64 << 10)).unwrap();
        let found = image(&log, 1).await.entries;
        if found.is_empty() {
            append(&mut log.group_log(1), vec![entry(2, 1, "of the same size.")]).await;
        } else {
            assert_eq!(found, [entry(2, 1, "of the same size.")]);
        }
        kill(&log, &live.path().join("again"));
        drop(log);
        std::fs::copy(live.path().join("again").join(path.file_name().unwrap()), &path).unwrap();
    }
}

/// If a process that acknowledges before it syncs does not close its log, all groups
/// become suspects; a group that is not cleared stays one.
#[tokio::test]
async fn groups_that_may_lack_entries_stay_suspects_until_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let (mut number, mut at) = (0, dir.path().join("0"));
    // Opens the log that the last process left, acts, and ends by a close or by a crash
    // with the bytes that were on disk at that moment.
    let mut suspects = Vec::new();
    let steps: [(Durability, bool, &[u64]); 9] = [
        (Durability::Os, true, &[]),
        (Durability::Os, false, &[]),
        // All groups that exist, even those that this process does not know.
        (Durability::Always, false, &[1]),
        (Durability::Always, true, &[]),
        (Durability::Os, true, &[]),
        (Durability::Always, false, &[2]),
        (Durability::Always, true, &[]),
        (Durability::Interval(Duration::from_secs(60)), false, &[]),
        (Durability::Always, true, &[]),
    ];
    for (durability, closes, cleared) in steps {
        let log = Log::open(options(&at, durability, 4096)).unwrap();
        suspects.push((1..=4).filter(|id| log.is_suspect(*id)).collect::<Vec<_>>());
        for id in 1..=2 {
            let mut group = log.group_log(id);
            let next = group.range().end.max(1);
            // Beyond the ends of segments.
            for index in next..next + 20 {
                append(&mut group, vec![entry(1, index, vec![0; 300])]).await;
            }
            group.purge(log_id(1, next + 18)).await.unwrap();
        }
        cleared.iter().for_each(|id| log.clear(*id));
        log.flush().await.unwrap();
        number += 1;
        let next = dir.path().join(number.to_string());
        if closes {
            log.close().unwrap();
        }
        kill(&log, &next);
        at = next;
    }
    let (none, all): (&[u64], &[u64]) = (&[], &[1, 2, 3, 4]);
    assert_eq!(suspects, [none, none, all, &[2], &[2], &[2], none, none, all]);
}
