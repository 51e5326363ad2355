//! Conversion between the configuration and the proxy's live settings: the proxy's
//! settings at start, and the changes that CONFIG REWRITE writes back.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use proxy::ClientsMemory;
use proxy::config::{FileChange, FileValue};
use proxy::tls::TlsFiles;

use super::{
    ClientsShare, ClusterSection, Config, Dur, Secret, Size, Threshold, TlsSection, rewrite,
};

/// Files of the certificates for clients.
pub(crate) fn tls_files(section: &TlsSection) -> TlsFiles {
    TlsFiles {
        cert: section.cert_file.clone(),
        key: section.key_file.clone(),
        authority: named(&section.client_ca_file),
    }
}

/// Files of the cluster's certificates.
pub(crate) fn cluster_tls_files(section: &ClusterSection) -> TlsFiles {
    TlsFiles {
        cert: section.cert_file.clone(),
        key: section.key_file.clone(),
        authority: named(&section.ca_file),
    }
}

fn named(file: &Path) -> Option<PathBuf> {
    Some(file.to_owned()).filter(|file| !file.as_os_str().is_empty())
}

/// The proxy's settings at start.
pub(crate) fn proxy_settings(config: &Config) -> proxy::Settings {
    let section = &config.proxy;
    let bytes = |size: Size| usize::try_from(size.0).unwrap_or(usize::MAX);
    // Redis's settings are in whole seconds: a fraction rounds up, since 0 means none.
    let seconds = |span: Dur| span.0.as_secs().max(u64::from(span.0 > Duration::ZERO));
    let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    let password = section.requirepass.reveal();
    proxy::Settings {
        password: (!password.is_empty()).then(|| Bytes::copy_from_slice(password.as_bytes())),
        protected_mode: section.protected_mode,
        clients_max: section.maxclients as usize,
        idle_timeout_s: seconds(section.timeout),
        tcp_keepalive_s: seconds(section.tcp_keepalive),
        bulk_bytes_max: bytes(section.proto_max_bulk_len),
        write_bytes_max: bytes(config.storage.max_write_size),
        answer_bytes_max: bytes(config.storage.max_answer_size),
        clients_memory: match section.maxmemory_clients {
            ClientsShare::Auto => ClientsMemory::Bytes(config.shares.clients),
            ClientsShare::Percent(percent) => ClientsMemory::Percent(percent),
            ClientsShare::Bytes(Size(0)) => ClientsMemory::Unlimited,
            ClientsShare::Bytes(Size(bytes)) => ClientsMemory::Bytes(bytes),
        },
        memory_bytes: config.shares.memory.bytes(),
        query_bytes_max: bytes(section.client_query_buffer_limit),
        output_bytes_max: bytes(section.client_output_buffer_limit),
        slowlog_slower_than_us: section.slowlog_log_slower_than.0.map_or(-1, micros),
        slowlog_len_max: section.slowlog_max_len as usize,
        latency_threshold_ms: section.latency_monitor_threshold.0.as_millis() as u64,
        call_deadline_ms: section.call_deadline.0.as_millis() as u64,
        tls: tls_files(&config.tls),
        cluster_tls: cluster_tls_files(&config.cluster),
        ..proxy::Settings::default()
    }
}

/// CONFIG REWRITE: applies these changes to the file and keeps the rest of it. Atomic.
pub(crate) fn rewrite_file(path: &Path, changes: &[FileChange]) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let mut config = Config::defaults();
    config.read(&path.display().to_string(), &text).map_err(|refused| refused.reason)?;
    for change in changes {
        take(&mut config, change)?;
    }
    replace_file(path, &rewrite(&text, &config)?).map_err(|error| error.to_string())
}

fn take(config: &mut Config, change: &FileChange) -> Result<(), String> {
    let (section, tls, cluster) = (&mut config.proxy, &mut config.tls, &mut config.cluster);
    let secret_elsewhere = !section.requirepass_file.as_os_str().is_empty();
    let size = |number: i64| Size(u64::try_from(number).unwrap_or(0));
    let count = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
    let span =
        |unit: fn(u64) -> Duration, number: i64| Dur(unit(u64::try_from(number).unwrap_or(0)));
    match (change.key.as_str(), &change.value) {
        ("requirepass", FileValue::Text(_)) if secret_elsewhere => {
            return Err(
                "the password is kept in proxy.requirepass_file; change it there".to_owned()
            );
        }
        ("requirepass", FileValue::Text(password)) => section.requirepass = Secret::new(password),
        ("protected_mode", FileValue::Bool(on)) => section.protected_mode = *on,
        ("maxclients", FileValue::Int(number)) => section.maxclients = count(*number),
        ("maxmemory_clients", FileValue::Text(text)) => {
            section.maxmemory_clients = match text.strip_suffix('%') {
                Some(percent) => ClientsShare::Percent(
                    percent.parse().map_err(|_| "a percentage in an unknown form")?,
                ),
                None => ClientsShare::Bytes(Size(
                    text.parse().map_err(|_| "a size in an unknown form")?,
                )),
            };
        }
        ("timeout", FileValue::Int(number)) => section.timeout = span(Duration::from_secs, *number),
        ("tcp_keepalive", FileValue::Int(number)) => {
            section.tcp_keepalive = span(Duration::from_secs, *number)
        }
        ("proto_max_bulk_len", FileValue::Int(number)) => {
            section.proto_max_bulk_len = size(*number)
        }
        ("client_query_buffer_limit", FileValue::Int(number)) => {
            section.client_query_buffer_limit = size(*number)
        }
        ("client_output_buffer_limit", FileValue::Text(limits)) => {
            // `normal <hard> 0 0`: the only class and the only limit that exist.
            let hard = limits
                .split(' ')
                .nth(1)
                .and_then(|hard| hard.parse().ok())
                .ok_or("a limit in an unknown form")?;
            section.client_output_buffer_limit = Size(hard);
        }
        ("slowlog_log_slower_than", FileValue::Int(number)) => {
            section.slowlog_log_slower_than =
                Threshold(u64::try_from(*number).ok().map(Duration::from_micros));
        }
        ("slowlog_max_len", FileValue::Int(number)) => section.slowlog_max_len = count(*number),
        ("latency_monitor_threshold", FileValue::Int(number)) => {
            section.latency_monitor_threshold = span(Duration::from_millis, *number);
        }
        ("call_deadline_ms", FileValue::Int(number)) => {
            section.call_deadline = span(Duration::from_millis, *number)
        }
        ("tls_cert_file", FileValue::Text(path)) => tls.cert_file = path.into(),
        ("tls_key_file", FileValue::Text(path)) => tls.key_file = path.into(),
        ("tls_ca_cert_file", FileValue::Text(path)) => tls.client_ca_file = path.into(),
        ("cluster_cert_file", FileValue::Text(path)) => cluster.cert_file = path.into(),
        ("cluster_key_file", FileValue::Text(path)) => cluster.key_file = path.into(),
        ("cluster_ca_file", FileValue::Text(path)) => cluster.ca_file = path.into(),
        (key, _) => return Err(format!("no setting of the file corresponds to {key}")),
    }
    Ok(())
}

/// Replaces a file's text atomically and durably; its permissions stay.
fn replace_file(path: &Path, text: &str) -> std::io::Result<()> {
    // Resolves a symbolic link, so that the link stays.
    let path = fs::canonicalize(path)?;
    let new = path.with_extension("toml.new");
    let mut file = fs::File::create(&new)?;
    file.set_permissions(fs::metadata(&path)?.permissions())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_proxys_own() {
        let config = Config::defaults();
        let (clients_memory, memory_bytes) =
            (ClientsMemory::Bytes(config.shares.clients), config.shares.memory.bytes());
        assert!(
            proxy_settings(&config)
                == proxy::Settings { clients_memory, memory_bytes, ..proxy::Settings::default() }
        );
    }

    /// A setting that CONFIG SET changes and the file can't keep would be lost by CONFIG
    /// REWRITE.
    #[test]
    fn every_live_setting_goes_into_the_file_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bridle.toml");
        let mut changed = proxy::Settings {
            password: Some("open sesame".into()),
            protected_mode: false,
            clients_max: 7,
            idle_timeout_s: 90,
            tcp_keepalive_s: 61,
            bulk_bytes_max: 2 << 20,
            query_bytes_max: 3 << 20,
            output_bytes_max: 5 << 20,
            slowlog_slower_than_us: 1234,
            slowlog_len_max: 9,
            latency_threshold_ms: 11,
            call_deadline_ms: 1300,
            memory_bytes: Config::defaults().shares.memory.bytes(),
            tls: TlsFiles { cert: "c".into(), key: "k".into(), authority: Some("a".into()) },
            cluster_tls: TlsFiles {
                cert: "cc".into(),
                key: "ck".into(),
                authority: Some("ca".into()),
            },
            ..proxy::Settings::default()
        };
        let shares =
            [ClientsMemory::Bytes(77 << 20), ClientsMemory::Percent(5), ClientsMemory::Unlimited];
        for (slower_than, share) in [1234, 0, -1].into_iter().zip(shares) {
            (changed.slowlog_slower_than_us, changed.clients_memory) = (slower_than, share);
            fs::write(&path, "# mine\n[storage]\ndurability = \"os\"\n").unwrap();
            let changes: Vec<FileChange> = proxy::config::SETTINGS
                .iter()
                .map(|setting| FileChange {
                    key: setting.name.replace('-', "_"),
                    value: (setting.file)(&changed),
                })
                .collect();
            rewrite_file(&path, &changes).unwrap();
            let mut config = Config::defaults();
            config.read_file(&path).unwrap();
            assert!(proxy_settings(&config) == changed, "{}", fs::read_to_string(&path).unwrap());
            assert!(
                fs::read_to_string(&path)
                    .unwrap()
                    .starts_with("# mine\n[storage]\ndurability = \"os\"\n")
            );
        }
    }

    #[test]
    fn a_password_in_a_file_of_its_own_stays_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bridle.toml");
        fs::write(&path, "[proxy]\nrequirepass_file = \"x\"\n").unwrap();
        let change =
            FileChange { key: "requirepass".to_owned(), value: FileValue::Text("y".to_owned()) };
        assert!(rewrite_file(&path, &[change]).unwrap_err().contains("change it there"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "[proxy]\nrequirepass_file = \"x\"\n");
    }
}
