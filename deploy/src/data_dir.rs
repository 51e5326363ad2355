//! The data directory of a process: its identity and its lock.
//!
//! # Layout
//! ```text
//! <data>/LOCK       locked by the process that uses the directory; contains its process id
//! <data>/IDENTITY   format, kind of the owner, cluster (name and id), the process's id, and
//!                   its position among the metas, if it is one
//! <data>/log/       the Raft log of all groups
//! <data>/meta/      the table catalogue's store
//! <data>/tables/    one store per replica
//! ```
//!
//! # Invariants
//! - One process at a time uses a directory (`tests/standalone.rs`,
//!   `a_second_process_on_a_directory_is_refused`); the kernel
//!   releases the lock however the process ends.
//! - A directory that is not Bridle's, or is of another cluster or another format, is
//!   left untouched (`foreign_directories_are_refused`). The format is read first, before
//!   the lock is taken, so every other encoding in the directory is this build's, or is
//!   never read.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The format of everything in a directory: this build reads and writes no other. A
/// change of bytes raises it, and no number is used twice; 1 and 2 were the first formats
/// of standalone servers and of clusters.
const FORMAT: u32 = 3;
const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const NEW_IDENTITY: &str = "IDENTITY.new";

/// The owner of a directory. Written when the directory is created, and rewritten when
/// the process learns the id of its cluster or becomes a meta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// Format of everything in the directory: [`FORMAT`].
    pub(crate) format: u32,
    /// Kind of the process that owns the directory.
    pub(crate) kind: OwnerKind,
    /// The cluster's name, as configured.
    pub(crate) cluster: String,
    /// The cluster's random id: 16 hex digits. Missing until the process has first
    /// connected to its cluster's metas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster_id: Option<String>,
    /// The process's id in the cluster.
    pub(crate) node_id: u64,
    /// Position of the process in the list of metas, if it is one; the first is 1.
    #[serde(rename = "seat", default, skip_serializing_if = "Option::is_none")]
    pub(crate) meta_index: Option<u32>,
}

/// Kind of the process that owns a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OwnerKind {
    /// `bridle standalone`.
    Standalone,
    /// A process of a cluster.
    Member,
}

impl Identity {
    /// The cluster's id as a number, once known.
    pub(crate) fn cluster_number(&self) -> Option<u64> {
        u64::from_str_radix(self.cluster_id.as_deref()?, 16).ok()
    }

    /// The identity of a new directory.
    fn draw(cluster: &str, kind: Claim) -> Identity {
        let cluster = cluster.to_owned();
        match kind {
            Claim::Standalone => {
                let cluster_id = Some(format!("{:016x}", rand::random::<u64>()));
                Identity {
                    format: FORMAT,
                    kind: OwnerKind::Standalone,
                    cluster,
                    cluster_id,
                    node_id: 1,
                    meta_index: None,
                }
            }
            // Above the ids of metas, and positive as a signed integer of TOML.
            Claim::Member { meta_index } => {
                let node_id = rand::random_range(cluster::META_IDS_END..1 << 63);
                Identity {
                    format: FORMAT,
                    kind: OwnerKind::Member,
                    cluster,
                    cluster_id: None,
                    node_id,
                    meta_index,
                }
            }
        }
    }
}

/// The kind of process that a directory is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// `bridle standalone`.
    Standalone,
    /// A process of a cluster.
    Member {
        /// Its position in the list of metas, if it is one; the first is 1.
        meta_index: Option<u32>,
    },
}

/// A locked data directory; dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    identity: Mutex<Identity>,
    _lock: File,
}

/// Reasons for which a directory is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirError {
    #[error("{path}: {doing}: {error}")]
    Io { path: PathBuf, doing: &'static str, error: io::Error },
    #[error("{0} is in use by another process{1}")]
    InUse(PathBuf, String),
    #[error(
        "{0} is not empty and not a Bridle directory (it has no file IDENTITY); it is left \
         untouched"
    )]
    NotOurs(PathBuf),
    #[error(
        "{path} belongs to cluster '{found}', but this process belongs to '{wanted}' \
         (cluster.name)"
    )]
    OtherCluster { path: PathBuf, found: String, wanted: String },
    #[error("{0} belongs to a `bridle standalone` and can't become part of a cluster")]
    OfStandalone(PathBuf),
    #[error(
        "{0} belongs to a process of a cluster (`bridle node`, `storage`, `proxy` or `meta`) and \
         can't be used by `bridle standalone`"
    )]
    OfMember(PathBuf),
    #[error(
        "{path} belongs to meta {found}, but by cluster.metas this process is meta {wanted}: \
         addresses in that list may change, positions may not"
    )]
    OtherMetaIndex { path: PathBuf, found: u32, wanted: u32 },
    #[error(
        "{path} belongs to meta {found}, but this process's address (cluster.advertise, or else \
         cluster.listen) is not in cluster.metas: the meta group would lack a member"
    )]
    NotAMeta { path: PathBuf, found: u32 },
    #[error("{path} belongs to cluster {found}, but the metas belong to cluster {wanted}")]
    OtherClusterId { path: PathBuf, found: String, wanted: String },
    #[error(
        "{path} has format {found}, and this build of Bridle reads and writes format {FORMAT} \
         only: {advice}; the directory is left untouched"
    )]
    OtherFormat { path: PathBuf, found: u64, advice: &'static str },
    #[error("{0}: the file IDENTITY is damaged: {1}")]
    Damaged(PathBuf, String),
}

impl DataDir {
    /// Opens and locks a directory for this process; creates it when it is missing.
    pub(crate) fn take(path: &Path, cluster: &str, kind: Claim) -> Result<DataDir, DataDirError> {
        let io = |doing| move |error| DataDirError::Io { path: path.to_owned(), doing, error };
        fs::create_dir_all(path).map_err(io("create the data directory"))?;
        let ours = path.join(IDENTITY).exists();
        if !ours && !is_empty(path).map_err(io("list the data directory"))? {
            return Err(DataDirError::NotOurs(path.to_owned()));
        }
        if ours {
            read_identity(path)?;
        }
        let lock = lock(path)?;
        // Another process may have written it before this one got the lock.
        let identity = match path.join(IDENTITY).exists() {
            true => read_identity(path)?,
            false => {
                let identity = Identity::draw(cluster, kind);
                write_identity(path, &identity).map_err(io("write IDENTITY"))?;
                identity
            }
        };
        if identity.cluster != cluster {
            return Err(DataDirError::OtherCluster {
                path: path.to_owned(),
                found: identity.cluster,
                wanted: cluster.to_owned(),
            });
        }
        let data_dir =
            DataDir { path: path.to_owned(), identity: Mutex::new(identity), _lock: lock };
        data_dir.check(kind)?;
        Ok(data_dir)
    }

    /// Checks the owner. A process that becomes a meta keeps its position permanently.
    fn check(&self, kind: Claim) -> Result<(), DataDirError> {
        let identity = self.identity();
        match (kind, identity.kind, identity.meta_index) {
            (Claim::Standalone, OwnerKind::Member, _) => {
                Err(DataDirError::OfMember(self.path.clone()))
            }
            (Claim::Member { .. }, OwnerKind::Standalone, _) => {
                Err(DataDirError::OfStandalone(self.path.clone()))
            }
            (Claim::Member { meta_index: Some(wanted) }, _, Some(found)) if wanted != found => {
                Err(DataDirError::OtherMetaIndex { path: self.path.clone(), found, wanted })
            }
            (Claim::Member { meta_index: None }, _, Some(found)) => {
                Err(DataDirError::NotAMeta { path: self.path.clone(), found })
            }
            (Claim::Member { meta_index: Some(meta_index) }, _, None) => {
                self.rewrite(Identity { meta_index: Some(meta_index), ..identity })
            }
            _ => Ok(()),
        }
    }

    /// Stores the id of the cluster that the process belongs to.
    ///
    /// # Errors
    /// The directory belongs to another cluster, or can't be written.
    pub(crate) fn join(&self, cluster: u64) -> Result<(), DataDirError> {
        let identity = self.identity();
        let wanted = format!("{cluster:016x}");
        match identity.cluster_id {
            Some(found) if found == wanted => Ok(()),
            Some(found) => {
                Err(DataDirError::OtherClusterId { path: self.path.clone(), found, wanted })
            }
            None => self.rewrite(Identity { cluster_id: Some(wanted), ..identity }),
        }
    }

    fn rewrite(&self, identity: Identity) -> Result<(), DataDirError> {
        let io =
            |error| DataDirError::Io { path: self.path.clone(), doing: "write IDENTITY", error };
        write_identity(&self.path, &identity).map_err(io)?;
        *self.identity.lock() = identity;
        Ok(())
    }

    /// The directory's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Directory of the Raft log of all groups.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Directory of the table catalogue's store.
    pub(crate) fn meta(&self) -> PathBuf {
        self.path.join("meta")
    }

    /// Directory of the replicas' stores.
    pub(crate) fn tables(&self) -> PathBuf {
        self.path.join("tables")
    }

    /// The identity in the directory.
    pub(crate) fn identity(&self) -> Identity {
        self.identity.lock().clone()
    }
}

/// Contains only leftovers of an interrupted first start, directories of the file system
/// itself, and those of `make cluster`, whose nodes have directories below it.
fn is_empty(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if ![LOCK, NEW_IDENTITY, "lost+found", "cluster"].iter().any(|known| name == *known) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let io = |error| DataDirError::Io { path: path.join(LOCK), doing: "lock", error };
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path.join(LOCK))
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(path.join(LOCK)).unwrap_or_default();
            let holder = if holder.trim().is_empty() {
                String::new()
            } else {
                format!(" (process {})", holder.trim())
            };
            return Err(DataDirError::InUse(path.to_owned(), holder));
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
    Ok(file)
}

fn read_identity(path: &Path) -> Result<Identity, DataDirError> {
    let io = |error| DataDirError::Io { path: path.join(IDENTITY), doing: "read", error };
    let damaged = |reason: String| DataDirError::Damaged(path.to_owned(), reason);
    let text = fs::read_to_string(path.join(IDENTITY)).map_err(io)?;
    // The format first: other formats may have other keys.
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| damaged(error.message().to_owned()))?;
    let format = table
        .get("format")
        .and_then(|format| format.as_integer())
        .and_then(|format| u64::try_from(format).ok());
    match format {
        Some(found) if found == u64::from(FORMAT) => {}
        Some(found @ 1..) => {
            let advice = match found < u64::from(FORMAT) {
                true => "start with an empty directory, or use the build that wrote this one",
                false => "use the later build that wrote it",
            };
            return Err(DataDirError::OtherFormat { path: path.to_owned(), found, advice });
        }
        _ => return Err(damaged("it has no valid format number".to_owned())),
    }
    let identity: Identity =
        toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
    match (identity.kind, &identity.cluster_id) {
        (OwnerKind::Standalone, None) => Err(damaged("missing field `cluster_id`".to_owned())),
        (_, Some(_)) if identity.cluster_number().is_none() => {
            Err(damaged("`cluster_id` is not a hexadecimal number".to_owned()))
        }
        _ => Ok(identity),
    }
}

/// Replaces the file atomically and durably.
fn write_identity(path: &Path, identity: &Identity) -> io::Result<()> {
    let text = toml::to_string(identity).map_err(io::Error::other)?;
    let mut file = File::create(path.join(NEW_IDENTITY))?;
    write!(file, "# Whose directory this is. Written by Bridle; not for editing.\n{text}")?;
    file.sync_all()?;
    fs::rename(path.join(NEW_IDENTITY), path.join(IDENTITY))?;
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(path: &Path) -> Result<DataDir, DataDirError> {
        DataDir::take(path, "bridle", Claim::Standalone)
    }

    #[test]
    fn a_new_directory_gets_an_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = take(&path).unwrap();
        let identity = first.identity();
        assert_eq!(
            (identity.format, identity.kind, identity.cluster.as_str(), identity.node_id),
            (3, OwnerKind::Standalone, "bridle", 1)
        );
        assert!(
            identity.cluster_id.as_ref().is_some_and(|id| id.len() == 16)
                && identity.cluster_number().is_some()
        );
        drop(first);
        assert_eq!(take(&path).unwrap().identity(), identity);
        assert!(!path.join(NEW_IDENTITY).exists());
    }

    /// IDENTITY of each kind of process, byte by byte: a standalone server; a process of
    /// a cluster, before and after it has joined; a meta, likewise.
    #[test]
    fn identity_files_have_frozen_bytes() {
        let head = "# Whose directory this is. Written by Bridle; not for editing.\nformat = 3\n";
        let standalone = "kind = \"standalone\"\ncluster = \"bridle\"\ncluster_id = \
                          \"0123456789abcdef\"\nnode_id = 1\n";
        let new_member = "kind = \"member\"\ncluster = 'a \"b\"'\nnode_id = 9223372036854775807\n";
        let member = "kind = \"member\"\ncluster = \"bridle\"\ncluster_id = \
                      \"0000000000000007\"\nnode_id = 4711\n";
        let new_meta = "kind = \"member\"\ncluster = \"bridle\"\nnode_id = 4711\nseat = 1\n";
        let meta = "kind = \"member\"\ncluster = \"bridle\"\ncluster_id = \
                    \"ffffffffffffffff\"\nnode_id = 4711\nseat = 3\n";
        let identity = |kind, cluster: &str, id: Option<u64>, node_id, meta_index| Identity {
            format: 3,
            kind,
            cluster: cluster.to_owned(),
            cluster_id: id.map(|id| format!("{id:016x}")),
            node_id,
            meta_index,
        };
        let of_a_standalone =
            identity(OwnerKind::Standalone, "bridle", Some(0x0123_4567_89ab_cdef), 1, None);
        let vectors = [
            (of_a_standalone, standalone),
            (identity(OwnerKind::Member, "a \"b\"", None, (1 << 63) - 1, None), new_member),
            (identity(OwnerKind::Member, "bridle", Some(7), 4711, None), member),
            (identity(OwnerKind::Member, "bridle", None, 4711, Some(1)), new_meta),
            (identity(OwnerKind::Member, "bridle", Some(u64::MAX), 4711, Some(3)), meta),
        ];
        for (identity, frozen) in vectors {
            let dir = tempfile::tempdir().unwrap();
            write_identity(dir.path(), &identity).unwrap();
            let written = fs::read_to_string(dir.path().join(IDENTITY)).unwrap();
            assert_eq!(written, format!("{head}{frozen}"));
            assert_eq!(read_identity(dir.path()).unwrap(), identity);
        }
    }

    #[test]
    fn a_process_keeps_the_cluster_that_it_joined() {
        let dir = tempfile::tempdir().unwrap();
        let take = |meta_index| DataDir::take(dir.path(), "bridle", Claim::Member { meta_index });
        let first = take(None).unwrap();
        let drawn = first.identity();
        assert!(
            drawn.format == 3
                && drawn.kind == OwnerKind::Member
                && drawn.cluster_number().is_none()
                && drawn.node_id >= cluster::META_IDS_END
        );
        first.join(7).unwrap();
        first.join(7).unwrap();
        assert!(
            first
                .join(8)
                .unwrap_err()
                .to_string()
                .contains("belongs to cluster 0000000000000007, but the metas")
        );
        drop(first);
        let second = take(Some(2)).unwrap();
        assert_eq!(
            (
                second.identity().cluster_number(),
                second.identity().node_id,
                second.identity().meta_index
            ),
            (Some(7), drawn.node_id, Some(2))
        );
        drop(second);
        assert!(
            take(Some(3))
                .unwrap_err()
                .to_string()
                .contains("belongs to meta 2, but by cluster.metas this process is meta 3")
        );
        assert!(
            take(None)
                .unwrap_err()
                .to_string()
                .contains("belongs to meta 2, but this process's address")
        );
        assert_eq!(take(Some(2)).unwrap().identity().meta_index, Some(2));
        let alone = DataDir::take(dir.path(), "bridle", Claim::Standalone).unwrap_err().to_string();
        assert!(alone.contains("belongs to a process of a cluster"), "{alone}");
        let other = tempfile::tempdir().unwrap();
        drop(DataDir::take(other.path(), "bridle", Claim::Standalone).unwrap());
        let member = DataDir::take(other.path(), "bridle", Claim::Member { meta_index: None })
            .unwrap_err()
            .to_string();
        assert!(member.contains("belongs to a `bridle standalone`"), "{member}");
    }

    #[test]
    fn a_second_process_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).unwrap();
        let refused = take(dir.path()).unwrap_err().to_string();
        assert!(
            refused
                .contains(&format!("in use by another process (process {})", std::process::id())),
            "{refused}"
        );
        drop(first);
        take(dir.path()).unwrap();
    }

    #[test]
    fn foreign_directories_are_refused() {
        let identity = |format: u32, cluster: &str| {
            format!(
                "format = {format}\nkind = \"standalone\"\ncluster = \"{cluster}\"\ncluster_id = \
                 \"00\"\nnode_id = 1\n"
            )
        };
        let older = "format = 2\ncluster = \"bridle\"\nnode_id = 4711\n";
        let cases: [(&str, String, &str); 8] = [
            ("notes.txt", "hello".into(), "not a Bridle directory"),
            (IDENTITY, identity(3, "other"), "belongs to cluster 'other'"),
            (
                IDENTITY,
                identity(4, "bridle") + "more = 1\n",
                "has format 4, and this build of Bridle reads and writes format 3 only: use the \
                 later",
            ),
            (
                IDENTITY,
                older.into(),
                "has format 2, and this build of Bridle reads and writes format 3 only: start \
                 with an empty directory",
            ),
            (
                IDENTITY,
                identity(1, "bridle"),
                "has format 1, and this build of Bridle reads and writes format 3 only",
            ),
            (IDENTITY, identity(0, "bridle"), "damaged: it has no valid format"),
            (IDENTITY, identity(3, "bridle") + "more = 1\n", "damaged: unknown field"),
            (IDENTITY, "for\0mat".into(), "damaged"),
        ];
        for (file, content, reason) in cases {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(file), &content).unwrap();
            let refused = take(dir.path()).unwrap_err().to_string();
            assert!(refused.contains(reason), "{content:?}: {refused}");
            assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), content);
            let made_a_lock = dir.path().join(LOCK).exists();
            assert!(
                !made_a_lock || !refused.contains("has format"),
                "a directory of another format is left untouched"
            );
        }
    }

    #[test]
    fn an_interrupted_first_start_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK), "1\n").unwrap();
        fs::write(dir.path().join(NEW_IDENTITY), "form").unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        take(dir.path()).unwrap();
    }
}
