//! Keys of earlier builds: refused, with the name that the key has now.

/// Section, key, and the full name of the key that replaces it.
pub(super) const RENAMED: &[(&str, &str, &str)] = &[
    ("node", "cluster", "cluster.name"),
    ("cluster", "transfer_rate", "cluster.snapshot_rate"),
    ("cluster", "hand_over", "cluster.leader_transfer_timeout"),
    ("http", "names", "http.allowed_hosts"),
    ("storage", "sweep_after", "storage.periodic_compaction_after"),
    ("raft_log", "segment", "raft_log.segment_size"),
    ("raft_log", "unwritten", "raft_log.write_queue_size"),
    ("raft_log", "kept", "raft_log.retention_size"),
    ("raft_log", "kept_in_all", "raft_log.retention_total_size"),
    ("raft_log", "kept_entries", "raft_log.retention_entries"),
    ("raft_log", "kept_for", "raft_log.retention_time"),
];

/// The error for a key that has another name now; `None`: there never was such a key.
pub(super) fn renamed(section: &str, key: &str) -> Option<String> {
    let (_, _, new) =
        RENAMED.iter().find(|(old_section, old, _)| (*old_section, *old) == (section, key))?;
    Some(format!("`{section}.{key}` has been renamed to `{new}`"))
}

#[cfg(test)]
mod tests {
    use super::super::{Config, KEYS};
    use super::*;

    const CHANGELOG: &str = include_str!("../../CHANGELOG.md");

    fn is_key(section: &str, key: &str) -> bool {
        KEYS.contains(&(section, key))
    }

    #[test]
    fn renamed_keys_are_refused_with_the_new_name() {
        for (section, old, new) in RENAMED {
            let error = format!("`{section}.{old}` has been renamed to `{new}`");
            let mut config = Config::defaults();
            let file = format!("[{section}]\n{old} = 1\n");
            let refused = config.read("my.toml", &file).unwrap_err().to_string();
            assert!(
                refused.starts_with(&format!("my.toml, line 2, column 1: {error}")),
                "{refused}"
            );
            let refused = config.read_flag(&format!("{section}.{old}=1")).unwrap_err().to_string();
            assert_eq!(refused, format!("--set {section}.{old}: {error}"));
            assert_eq!(config, Config::defaults());
        }
    }

    #[test]
    fn renamed_keys_are_gone_and_their_heirs_exist() {
        for (section, old, new) in RENAMED {
            let (new_section, new_key) = new.split_once('.').expect("section.key");
            assert!(
                !is_key(section, old) && is_key(new_section, new_key),
                "{section}.{old}, {new}"
            );
            for name in [&format!("`{section}.{old}`"), &format!("`{new}`")] {
                assert!(CHANGELOG.contains(name), "CHANGELOG.md lists {name}");
            }
        }
    }
}
