//! A node's directory: whose it is, and that nobody else uses it.
//!
//! # Layout
//! ```text
//! <data>/LOCK       locked by the process that uses the directory; its process id, for people
//! <data>/IDENTITY   whose it is: format, cluster (name and id), node id
//! <data>/log/       the Raft log of all groups
//! <data>/meta/      the table catalogue's store
//! <data>/tables/    one store per partition
//! ```
//!
//! # Invariants
//! - One process at a time (`tests/standalone.rs`, `a_second_process_on_a_directory_is_refused`); the kernel lets go of the lock when a process
//!   dies, however it dies.
//! - A directory that is not ours, of another cluster, or of a later format is left untouched (`strange_directories_are_refused`).

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The format that this build writes; it reads no later one.
const FORMAT: u32 = 1;
const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const NEW_IDENTITY: &str = "IDENTITY.new";

/// Whose a directory is. Written once, when the directory is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// How everything in the directory is laid out.
    pub(crate) format: u32,
    /// The cluster's name, as configured.
    pub(crate) cluster: String,
    /// The cluster's id, drawn when it was made: 16 hex digits.
    pub(crate) cluster_id: String,
    /// The node's id in the cluster.
    pub(crate) node_id: u64,
}

/// A directory that is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

/// Why a directory is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{path}: {doing}: {error}")]
    Io { path: PathBuf, doing: &'static str, error: io::Error },
    #[error("{0} is in use by another process{1}")]
    InUse(PathBuf, String),
    #[error("{0} is not empty and not a Bridle directory (it has no file IDENTITY); it is left as it is")]
    NotOurs(PathBuf),
    #[error("{path} belongs to cluster '{found}', and this node to '{wanted}' (node.cluster)")]
    OtherCluster { path: PathBuf, found: String, wanted: String },
    #[error("{path} has format {found}; this version of Bridle knows formats up to {FORMAT}: use a later one")]
    LaterFormat { path: PathBuf, found: u64 },
    #[error("{0}: the file IDENTITY is damaged: {1}")]
    Damaged(PathBuf, String),
}

impl Directory {
    /// Takes a directory for this process, making it when there is none.
    pub(crate) fn take(path: &Path, cluster: &str) -> Result<Directory, Refused> {
        let io = |doing| move |error| Refused::Io { path: path.to_owned(), doing, error };
        fs::create_dir_all(path).map_err(io("create the data directory"))?;
        let ours = path.join(IDENTITY).exists();
        if !ours && !is_empty(path).map_err(io("list the data directory"))? {
            return Err(Refused::NotOurs(path.to_owned()));
        }
        let lock = lock(path)?;
        // Looked at again, under the lock.
        let identity = match path.join(IDENTITY).exists() {
            true => read_identity(path)?,
            false => {
                let identity = Identity {
                    format: FORMAT,
                    cluster: cluster.to_owned(),
                    cluster_id: format!("{:016x}", rand::random::<u64>()),
                    node_id: 1,
                };
                write_identity(path, &identity).map_err(io("write IDENTITY"))?;
                identity
            }
        };
        if identity.cluster != cluster {
            return Err(Refused::OtherCluster { path: path.to_owned(), found: identity.cluster, wanted: cluster.to_owned() });
        }
        Ok(Directory { path: path.to_owned(), identity, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// Nothing in it but what an interrupted first start may have left, and what file systems put there by themselves.
fn is_empty(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if ![LOCK, NEW_IDENTITY, "lost+found"].iter().any(|known| name == *known) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn lock(path: &Path) -> Result<File, Refused> {
    let io = |error| Refused::Io { path: path.join(LOCK), doing: "lock", error };
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path.join(LOCK)).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(path.join(LOCK)).unwrap_or_default();
            let holder = if holder.trim().is_empty() { String::new() } else { format!(" (process {})", holder.trim()) };
            return Err(Refused::InUse(path.to_owned(), holder));
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
    Ok(file)
}

fn read_identity(path: &Path) -> Result<Identity, Refused> {
    let io = |error| Refused::Io { path: path.join(IDENTITY), doing: "read", error };
    let damaged = |reason: String| Refused::Damaged(path.to_owned(), reason);
    let text = fs::read_to_string(path.join(IDENTITY)).map_err(io)?;
    // The format first: a later one may have other keys.
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| damaged(error.message().to_owned()))?;
    let format = table.get("format").and_then(|format| format.as_integer()).and_then(|format| u64::try_from(format).ok());
    match format {
        Some(found) if found > u64::from(FORMAT) => return Err(Refused::LaterFormat { path: path.to_owned(), found }),
        Some(1) => {}
        _ => return Err(damaged("it names no format that was ever written".to_owned())),
    }
    toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))
}

/// Complete or not at all, and on disk when this returns.
fn write_identity(path: &Path, identity: &Identity) -> io::Result<()> {
    let text = toml::to_string(identity).map_err(io::Error::other)?;
    let mut file = File::create(path.join(NEW_IDENTITY))?;
    write!(file, "# Whose directory this is. Written once by Bridle; not for editing.\n{text}")?;
    file.sync_all()?;
    fs::rename(path.join(NEW_IDENTITY), path.join(IDENTITY))?;
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_directory_is_ours_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = Directory::take(&path, "bridle").unwrap();
        let identity = first.identity().clone();
        assert_eq!((identity.format, identity.cluster.as_str(), identity.node_id), (1, "bridle", 1));
        assert!(identity.cluster_id.len() == 16 && u64::from_str_radix(&identity.cluster_id, 16).is_ok());
        drop(first);
        assert_eq!(Directory::take(&path, "bridle").unwrap().identity(), &identity);
        assert!(!path.join(NEW_IDENTITY).exists());
    }

    #[test]
    fn a_second_user_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Directory::take(dir.path(), "bridle").unwrap();
        let refused = Directory::take(dir.path(), "bridle").unwrap_err().to_string();
        assert!(refused.contains(&format!("in use by another process (process {})", std::process::id())), "{refused}");
        drop(first);
        Directory::take(dir.path(), "bridle").unwrap();
    }

    #[test]
    fn strange_directories_are_refused() {
        let identity =
            |format: u32, cluster: &str| format!("format = {format}\ncluster = \"{cluster}\"\ncluster_id = \"00\"\nnode_id = 1\n");
        let cases: [(&str, String, &str); 6] = [
            ("notes.txt", "hello".into(), "not a Bridle directory"),
            (IDENTITY, identity(1, "other"), "belongs to cluster 'other'"),
            (IDENTITY, identity(2, "bridle") + "more = 1\n", "has format 2"),
            (IDENTITY, identity(0, "bridle"), "damaged: it names no format"),
            (IDENTITY, identity(1, "bridle") + "more = 1\n", "damaged: unknown field"),
            (IDENTITY, "for\0mat".into(), "damaged"),
        ];
        for (file, content, reason) in cases {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(file), &content).unwrap();
            let refused = Directory::take(dir.path(), "bridle").unwrap_err().to_string();
            assert!(refused.contains(reason), "{content:?}: {refused}");
            assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), content);
        }
    }

    #[test]
    fn an_interrupted_first_start_is_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK), "1\n").unwrap();
        fs::write(dir.path().join(NEW_IDENTITY), "form").unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        Directory::take(dir.path(), "bridle").unwrap();
    }
}
