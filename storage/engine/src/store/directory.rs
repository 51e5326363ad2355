//! The database directory that a store uses.
//!
//! A store is replaced as a whole when a replica installs a snapshot: the new database is
//! put beside the old one, and `current` is pointed at it by an atomic, synced rename.
//! Databases that `current` does not name are leftovers of a crash and are removed at the
//! next open.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::Fault;

const CURRENT: &str = "current";
const PREFIX: &str = "db-";

/// The database directory in use; `<path>/db-0` for a new store.
pub(super) fn current(path: &Path) -> Result<PathBuf, Fault> {
    fs::create_dir_all(path).map_err(|error| fault("create", path, &error))?;
    let name = match fs::read_to_string(path.join(CURRENT)) {
        Ok(text) => valid_name(path, text.trim())?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Some(found) = databases(path)?.into_iter().next() {
                let reason = format!("it is missing, although {} is there", found.display());
                return Err(Fault::Corrupt {
                    file: path.join(CURRENT).display().to_string(),
                    reason,
                });
            }
            let name = first_name();
            set_current(path, &name)?;
            // The log may be purged up to the entry that is flushed here, so a crash must
            // not lose the path to this directory.
            for above in
                path.ancestors().skip(1).take(2).filter(|above| !above.as_os_str().is_empty())
            {
                File::open(above)
                    .and_then(|above| above.sync_all())
                    .map_err(|error| fault("sync", above, &error))?;
            }
            name
        }
        Err(error) => return Err(fault("read", &path.join(CURRENT), &error)),
    };
    for other in databases(path)? {
        if other.file_name().is_none_or(|other| other != name.as_str()) {
            tracing::info!(directory = %other.display(), "removing a database that is not in use");
            fs::remove_dir_all(&other).map_err(|error| fault("remove", &other, &error))?;
        }
    }
    Ok(path.join(name))
}

/// The directory name in a new store.
pub(super) fn first_name() -> String {
    format!("{PREFIX}0")
}

/// The directory name after the one in use.
pub(super) fn next_name(current: &Path) -> String {
    let number = current
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix(PREFIX))
        .and_then(|n| n.parse::<u64>().ok());
    format!("{PREFIX}{}", number.map_or(0, |number| number + 1))
}

/// Makes `name` the directory in use, durably.
pub(super) fn set_current(path: &Path, name: &str) -> Result<(), Fault> {
    let next = path.join("current.next");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&next)?;
        file.write_all(name.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&next, path.join(CURRENT))?;
        File::open(path)?.sync_all()
    };
    write().map_err(|error| fault("write", &path.join(CURRENT), &error))
}

/// Syncs a received database and moves it to `target`.
pub(super) fn move_received(received: &Path, target: &Path) -> Result<(), Fault> {
    let sync = || -> std::io::Result<()> {
        for entry in fs::read_dir(received)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(received)?.sync_all()?;
        match fs::remove_dir_all(target) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(received, target)?;
        target.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    sync().map_err(|error| fault("move", received, &error))
}

/// Removes the store's directory, if it exists.
pub(super) fn remove(path: &Path) -> Result<(), Fault> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(fault("remove", path, &error)),
        _ => Ok(()),
    }
}

fn databases(path: &Path) -> Result<Vec<PathBuf>, Fault> {
    let entries = fs::read_dir(path).map_err(|error| fault("list", path, &error))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| fault("list", path, &error))?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn valid_name(path: &Path, name: &str) -> Result<String, Fault> {
    let number = name.strip_prefix(PREFIX).and_then(|number| number.parse::<u64>().ok());
    match number {
        Some(_) => Ok(name.to_owned()),
        None => Err(Fault::Corrupt {
            file: path.join(CURRENT).display().to_string(),
            reason: format!("it names no database: {name:?}"),
        }),
    }
}

fn fault(doing: &str, path: &Path, error: &std::io::Error) -> Fault {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Fault::DiskFull(format!("{doing} {}: {error}", path.display()))
        }
        _ => Fault::io(format!("{doing} {}", path.display()), error),
    }
}
