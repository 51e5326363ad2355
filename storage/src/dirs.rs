//! Directories of replicas: `<table id>-<index>-<raft id>`. What stands beside one with
//! more behind a dot is a rebuild's (`engine::raft::settle`), and no replica.

use std::io;
use std::path::{Path, PathBuf};

use cluster::{PartitionId, TableId};

/// A replica's directory as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicaDir {
    pub(crate) partition: PartitionId,
    pub(crate) raft_id: u64,
    pub(crate) path: PathBuf,
}

/// The directory of a replica's store.
pub(crate) fn path(dir: &Path, partition: PartitionId, raft_id: u64) -> PathBuf {
    dir.join(format!("{}-{}-{raft_id}", partition.table.0, partition.index))
}

/// All replicas that have a directory; none when there is no `dir` yet.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<ReplicaDir>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some((partition, raft_id)) = parse(name) {
            found.push(ReplicaDir { partition, raft_id, path });
        }
    }
    Ok(found)
}

fn parse(name: &str) -> Option<(PartitionId, u64)> {
    let mut numbers = name.splitn(3, '-');
    let (table, index, raft_id) = (
        numbers.next()?.parse().ok()?,
        numbers.next()?.parse().ok()?,
        numbers.next()?.parse().ok()?,
    );
    Some((PartitionId { table: TableId(table), index }, raft_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_found_by_its_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let partition = PartitionId { table: TableId(7), index: 3 };
        assert_eq!(list(&dir.path().join("none")).expect("no directory is no replica"), []);
        for name in ["7-3-12", "7-3-12.damaged", "lost+found", "7-3", "7-3-12-1", "a-b-c"] {
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let replica_dir =
            ReplicaDir { partition, raft_id: 12, path: path(dir.path(), partition, 12) };
        assert_eq!(list(dir.path()).expect("the directory"), [replica_dir]);
    }
}
