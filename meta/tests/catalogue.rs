//! The catalogue over a real Raft group: what is acknowledged survives, drops are
//! resumed, the first writer makes the table.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Catalogue, Table};
use meta::state::Refusal;
use meta::{Meta, MetaError};

mod kit;

fn no_envs() -> BTreeMap<String, String> {
    BTreeMap::new()
}

fn names(meta: &Meta) -> Vec<String> {
    meta.tables().iter().map(|table| table.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, log) = kit::open(dir.path()).await;
    let follower = kit::follow(&meta);
    let users = meta.create("users", Some(8), None, no_envs()).await.unwrap();
    meta.create("other", None, None, no_envs()).await.unwrap();
    let users = meta.set_env(&users.name, "default_ttl", Some("60")).await.unwrap();
    assert_eq!(meta.table("users").unwrap(), users);
    // Nothing is flushed: the log alone has it.
    let crashed = tempfile::tempdir().unwrap();
    kit::crash_image(dir.path(), crashed.path());
    follower.abort();
    meta.close().await.unwrap();
    log.close().unwrap();
    drop((meta, log));

    has_both_tables(crashed.path(), &users).await;
    has_both_tables(dir.path(), &users).await;
}

async fn has_both_tables(dir: &Path, users: &Arc<Table>) {
    let (meta, log) = kit::open(dir).await;
    assert_eq!(names(&meta), Vec::<String>::new(), "nothing shows before storage has opened it");
    let _follower = kit::follow(&meta);
    let made = meta.create("third", None, None, no_envs()).await.unwrap();
    assert_eq!(made.id.0, users.id.0 + 2, "ids go on where they were");
    assert_eq!(names(&meta), ["other", "third", "users"]);
    assert_eq!(meta.table("users").as_ref(), Some(users));
    assert_eq!(meta.table("other").unwrap().partitions, 3, "as configured");
    meta.close().await.unwrap();
    log.close().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, log) = kit::open(dir.path()).await;
    let follower = kit::follow(&meta);
    let first = meta.create("a", None, None, no_envs()).await.unwrap();
    let version = meta.version();
    meta.drop_table("a").await.unwrap();
    assert!(meta.table("a").is_none() && meta.version() > version, "gone for clients at once");
    follower.abort();
    meta.close().await.unwrap();
    log.close().unwrap();
    drop((meta, log));

    let (meta, _log) = kit::open(dir.path()).await;
    let dropping = meta.watch().borrow().dropping.clone();
    assert_eq!(dropping, std::slice::from_ref(&first), "storage is told again to destroy it");
    let _follower = kit::follow(&meta);
    let second = meta.create("a", None, None, no_envs()).await.unwrap();
    assert!(second.id > first.id, "the name is free, the id is not");
    meta.dropped(first.id).await.unwrap();
    meta.dropped(first.id).await.unwrap();
    assert!(meta.watch().borrow().dropping.is_empty());
    assert_eq!(meta.table("a").unwrap(), second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_writers_get_one_table() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, _log) = kit::open(dir.path()).await;
    let writers: Vec<_> = (0..20)
        .map(|_| {
            let meta = meta.clone();
            tokio::spawn(async move { meta.ensure("db3").await.map(|table| table.id) })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(meta.table("db3").is_none(), "not before storage has opened it");
    let _follower = kit::follow(&meta);
    let mut ids = Vec::new();
    for writer in writers {
        ids.push(writer.await.unwrap().unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(meta.records().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, _log) = kit::open(dir.path()).await;
    let _follower = kit::follow(&meta);
    meta.create("a", None, None, no_envs()).await.unwrap();
    let version = meta.version();
    assert_eq!(
        meta.create("a", None, None, no_envs()).await,
        Err(MetaError::Refused(Refusal::Exists("a".into())))
    );
    assert_eq!(
        meta.create("7", None, None, no_envs()).await,
        Err(MetaError::Refused(Refusal::BadName))
    );
    assert!(matches!(
        meta.set_env("a", "default_ttl", Some("soon")).await,
        Err(MetaError::Refused(Refusal::Env(_)))
    ));
    assert_eq!(meta.version(), version);
    assert_eq!(names(&meta), ["a"]);
}

/// A caller that goes away (a client that closes its connection) leaves no half decision
/// behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, _log) = kit::open(dir.path()).await;
    let _follower = kit::follow(&meta);
    for round in 0..50 {
        let name = format!("t{round}");
        // Cut at another moment each time: before, while and after it is proposed.
        let _ = tokio::time::timeout(
            Duration::from_micros(round * 20),
            meta.create(&name, Some(1), None, no_envs()),
        )
        .await;
    }
    let last = meta.create("last", Some(1), None, no_envs()).await.unwrap();
    let mut ids: Vec<u32> =
        meta.records().unwrap().iter().map(|record| record.table.id.0).collect();
    assert_eq!(ids.len() as u32, last.id.0, "every id was given to one table");
    ids.dedup();
    assert_eq!(ids.len() as u32, last.id.0);
}
