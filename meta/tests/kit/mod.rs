//! A meta group in a temporary directory, and a stand-in for storage that follows it.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

pub mod cluster;

use std::path::Path;
use std::sync::Arc;

use ::cluster::ServerId;
use ::cluster::meta_protocol::{Roles, Server};
use engine::log::{Log, LogOptions};
use engine::store::{SharedResources, StoreSettings};
use engine::time::SlewedClock;
use meta::{Meta, MetaMode, MetaOptions};

/// Opens meta over `dir`, with a log of its own.
pub async fn open(dir: &Path) -> (Arc<Meta>, Arc<Log>) {
    let log = Log::open(LogOptions { segment_bytes: 1 << 20, ..LogOptions::new(dir.join("log")) })
        .unwrap();
    let shared =
        SharedResources::new(StoreSettings { disk_reserve_bytes: 0, ..StoreSettings::default() })
            .unwrap();
    let roles = Roles { meta: true, storage: true, proxy: true };
    let server = Server {
        id: ServerId(1),
        address: "here".into(),
        http: String::new(),
        clients: Vec::new(),
        zone: String::new(),
        roles,
        durability: None,
    };
    let options = MetaOptions {
        dir: dir.join("meta"),
        raft_runtime: tokio::runtime::Handle::current(),
        partitions: 3,
        replicas: 1,
        cluster: 7,
        clock: SlewedClock::system(),
        mode: MetaMode::Standalone(server),
    };
    (Meta::open(options, &log, &shared).await.unwrap(), log)
}

/// Opens every table at once, and leaves what is being dropped to the test.
pub fn follow(meta: &Arc<Meta>) -> tokio::task::JoinHandle<()> {
    let meta = meta.clone();
    tokio::spawn(async move {
        let mut watch = meta.watch();
        loop {
            let tables = watch.borrow_and_update().clone();
            meta.opened(&tables);
            if watch.changed().await.is_err() {
                return;
            }
        }
    })
}

/// Copies a directory as a crash at this moment would leave it.
pub fn crash_image(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => crash_image(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}
