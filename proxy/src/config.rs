//! CONFIG: the settings, by Redis's names.
//!
//! One table holds them: name, getter, setter, and format in the configuration file.
//! Settings that only mirror how the server was started (`port`, `dir`, `appendonly`,
//! ...) can be read but not set. Settings that Bridle does not have are not in the table:
//! CONFIG SET refuses them as unknown, CONFIG GET finds nothing.
//!
//! # Invariants
//! - CONFIG SET changes all named settings or none (test
//!   `several_are_set_together_or_not_at_all`).
//! - The password is shown by CONFIG GET requirepass only, as in Redis.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use commands::Reply;
use commands::args::integer;
use commands::config::ConfigCommand;
use parking_lot::Mutex;

use crate::errors::one_line;
use crate::host::Durability;
use crate::{ClientsMemory, Proxy, Settings};

/// A setting that can change while the server runs.
pub struct Setting {
    /// Redis's name, or Bridle's in Redis's style. In the configuration file it is under
    /// `[proxy]`, with underscores.
    pub name: &'static str,
    /// The value as CONFIG GET shows it.
    pub get: fn(&Settings) -> String,
    /// Sets a new value, or returns Redis's error.
    pub set: fn(&mut Settings, &[u8]) -> Result<(), SettingError>,
    /// The value in the configuration file's format.
    pub file: fn(&Settings) -> FileValue,
}

/// Reason why CONFIG SET does not take a value: Redis's texts where Redis has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// The setting is only read at the start.
    #[error("can't set immutable config")]
    Immutable,
    /// The same setting twice in one command.
    #[error("duplicate parameter")]
    Duplicate,
    /// A path that is no text.
    #[error("argument must be UTF-8")]
    NotUtf8,
    /// A switch.
    #[error("argument must be 'yes' or 'no'")]
    NotYesOrNo,
    /// A number.
    #[error("argument couldn't be parsed into an integer")]
    NotAnInteger,
    /// A number of bytes.
    #[error("argument must be a memory value")]
    NotAMemoryValue,
    /// A number of bytes, or a part of the memory.
    #[error("argument must be a memory or percent value")]
    NotMemoryOrPercent,
    /// A part of the memory.
    #[error("percentage must be from 1% to 100%")]
    NotAPercentage,
    /// Below the least or above the greatest value.
    #[error("argument must be between {0} and {1} inclusive")]
    OutOfRange(i128, i128),
    /// The process has file descriptors for so many clients only.
    #[error(
        "The operating system is not able to handle the specified number of clients, try with {0}"
    )]
    TooManyClients(usize),
    /// Longer than the limit.
    #[error("password must be at most {} bytes", PASSWORD_BYTES_MAX)]
    PasswordTooLong,
    /// The configuration file is text.
    #[error("password must be UTF-8")]
    PasswordNotUtf8,
    /// Limits of output come in groups of four words.
    #[error("Wrong number of arguments in buffer limit configuration.")]
    OutputLimitArguments,
    /// A class of clients that Redis does not have.
    #[error("Invalid client class specified in buffer limit configuration.")]
    ClientClass,
    /// A limit of output that is no number.
    #[error("Error in hard, soft or soft_seconds setting in buffer limit configuration.")]
    OutputLimitValue,
    /// Output has a hard limit only.
    #[error("soft limits do not exist here and must be 0")]
    SoftLimit,
    /// Replies would not fit.
    #[error(
        "the hard limit must be at least 1mb, or 0 for the usual one: output is always bounded"
    )]
    HardLimitTooSmall,
    /// Commands longer than the query buffer are never executed.
    #[error("client-query-buffer-limit must not be below proto-max-bulk-len and max-write-size")]
    QueryBufferTooSmall,
    /// The certificates that these files hold can't be used.
    #[error("{0}")]
    Certificates(String),
}

/// A value in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileValue {
    /// A whole number.
    Int(i64),
    /// `true` or `false`.
    Bool(bool),
    /// A string.
    Text(String),
}

/// A setting for CONFIG REWRITE: key under `[proxy]`, value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// The setting's name with underscores: `slowlog_max_len`.
    pub key: String,
    /// The current value.
    pub value: FileValue,
}

/// Reasons why the configuration file was not rewritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// The server was started without a file.
    #[error("The server is running without a config file")]
    NoFile,
    /// The file could not be read or written.
    #[error("Rewriting config file: {0}")]
    Io(String),
}

/// Settings changed since the file was last in sync; also serializes CONFIG SET.
#[derive(Debug, Default)]
pub struct ChangedSettings(Mutex<BTreeSet<&'static str>>);

macro_rules! number {
    ($name:literal, $field:ident: $type:ty, $least:expr, $most:expr) => {
        Setting {
            name: $name,
            get: |settings| settings.$field.to_string(),
            set: |settings, text| {
                settings.$field = number(text, $least, $most).map(|number| number as $type)?;
                Ok(())
            },
            file: |settings| FileValue::Int(i64::try_from(settings.$field).unwrap_or(i64::MAX)),
        }
    };
}

macro_rules! memory {
    ($name:literal, $field:ident, $least:expr, $most:expr) => {
        Setting {
            name: $name,
            get: |settings| settings.$field.to_string(),
            set: |settings, text| {
                settings.$field = memory_in(text, $least, $most)?;
                Ok(())
            },
            file: |settings| FileValue::Int(i64::try_from(settings.$field).unwrap_or(i64::MAX)),
        }
    };
}

macro_rules! file {
    ($name:literal, $files:ident, $file:ident) => {
        Setting {
            name: $name,
            get: |settings| shown(&settings.$files.$file),
            set: |settings, text| {
                settings.$files.$file = path(text)?;
                Ok(())
            },
            file: |settings| FileValue::Text(shown(&settings.$files.$file)),
        }
    };
}

macro_rules! authority_file {
    ($name:literal, $files:ident) => {
        Setting {
            name: $name,
            get: |settings| settings.$files.authority.as_deref().map_or_else(String::new, shown),
            set: |settings, text| {
                settings.$files.authority =
                    Some(path(text)?).filter(|path| !path.as_os_str().is_empty());
                Ok(())
            },
            file: |settings| {
                FileValue::Text(
                    settings.$files.authority.as_deref().map_or_else(String::new, shown),
                )
            },
        }
    };
}

/// All changeable settings, sorted by name.
pub static SETTINGS: &[Setting] = &[
    number!("call-deadline-ms", call_deadline_ms: u64, 1, 600_000),
    Setting {
        name: "client-output-buffer-limit",
        get: |settings| {
            let [replica, pubsub] = settings
                .output_limits_elsewhere
                .map(|limit| limit.map(|number| number.to_string()).join(" "));
            format!("normal {} 0 0 slave {replica} pubsub {pubsub}", settings.output_bytes_max)
        },
        set: set_output_limit,
        file: |settings| FileValue::Text(format!("normal {} 0 0", settings.output_bytes_max)),
    },
    memory!("client-query-buffer-limit", query_bytes_max, 1 << 20, 1 << 40),
    // Bridle's own: the keys of `[cluster]`.
    authority_file!("cluster-ca-file", cluster_tls),
    file!("cluster-cert-file", cluster_tls, cert),
    file!("cluster-key-file", cluster_tls, key),
    number!("latency-monitor-threshold", latency_threshold_ms: u64, 0, i64::MAX),
    Setting {
        name: "maxclients",
        get: |settings| settings.clients_max.to_string(),
        set: set_clients_max,
        file: |settings| FileValue::Int(i64::try_from(settings.clients_max).unwrap_or(i64::MAX)),
    },
    Setting {
        name: "maxmemory-clients",
        get: |settings| clients_memory_text(settings.clients_memory),
        set: |settings, text| {
            settings.clients_memory = clients_memory(text)?;
            Ok(())
        },
        file: |settings| FileValue::Text(clients_memory_text(settings.clients_memory)),
    },
    Setting {
        name: "protected-mode",
        get: |settings| yes_no(settings.protected_mode).into(),
        set: |settings, text| {
            settings.protected_mode = switch(text)?;
            Ok(())
        },
        file: |settings| FileValue::Bool(settings.protected_mode),
    },
    memory!("proto-max-bulk-len", bulk_bytes_max, 1 << 20, 512 << 20),
    Setting {
        name: "requirepass",
        get: |settings| {
            settings
                .password
                .as_ref()
                .map_or_else(String::new, |password| String::from_utf8_lossy(password).into_owned())
        },
        set: set_password,
        file: |settings| {
            FileValue::Text(
                settings
                    .password
                    .as_ref()
                    .map_or_else(String::new, |word| String::from_utf8_lossy(word).into_owned()),
            )
        },
    },
    number!("slowlog-log-slower-than", slowlog_slower_than_us: i64, -1, i64::MAX),
    number!("slowlog-max-len", slowlog_len_max: usize, 0, 1 << 20),
    number!("tcp-keepalive", tcp_keepalive_s: u64, 0, i32::MAX as i64),
    number!("timeout", idle_timeout_s: u64, 0, i32::MAX as i64),
    authority_file!("tls-ca-cert-file", tls),
    file!("tls-cert-file", tls, cert),
    file!("tls-key-file", tls, key),
];

/// Settings that name files: setting them reads the files, also when the names stay the
/// same.
const CERTIFICATES: [&str; 3] = ["tls-ca-cert-file", "tls-cert-file", "tls-key-file"];
const CLUSTER_CERTIFICATES: [&str; 3] =
    ["cluster-ca-file", "cluster-cert-file", "cluster-key-file"];

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn path(text: &[u8]) -> Result<PathBuf, SettingError> {
    std::str::from_utf8(text).map(PathBuf::from).map_err(|_| SettingError::NotUtf8)
}

/// Limit of a password's length.
const PASSWORD_BYTES_MAX: usize = 1024;

/// Runs a CONFIG command.
pub(crate) fn run(proxy: &Proxy, command: ConfigCommand) -> Reply {
    match command {
        ConfigCommand::Get { globs } => get(proxy, &globs),
        ConfigCommand::Set { pairs } => set(proxy, &pairs),
        ConfigCommand::ResetStat => reset_stat(proxy),
        ConfigCommand::Rewrite => rewrite(proxy),
    }
}

/// CONFIG GET: settings whose names match any of the globs, sorted by name.
fn get(proxy: &Proxy, globs: &[Bytes]) -> Reply {
    let settings = proxy.settings.load();
    let mut shown: Vec<(&str, String)> = fixed(proxy, &settings);
    shown.extend(SETTINGS.iter().map(|setting| (setting.name, (setting.get)(&settings))));
    shown.sort_unstable_by_key(|(name, _)| *name);
    shown.dedup_by_key(|(name, _)| *name);
    shown.retain(|(name, _)| {
        globs.iter().any(|glob| row::glob::matches_nocase(glob, name.as_bytes()))
    });
    let bulk = |text: String| Reply::Bulk(text.into());
    Reply::Map(
        shown
            .into_iter()
            .map(|(name, value)| (Reply::Bulk(name.to_owned().into()), bulk(value)))
            .collect(),
    )
}

/// CONFIG SET: sets all of these, or none with an error.
fn set(proxy: &Proxy, pairs: &[(Bytes, Bytes)]) -> Reply {
    let mut changed = proxy.changes.0.lock();
    let now = proxy.settings.load();
    let applied =
        apply(&now, pairs, |name| fixed(proxy, &now).iter().any(|(fixed, _)| *fixed == name));
    match applied.and_then(|(settings, names)| use_certificates(proxy, settings, names)) {
        Err(Refused::Unknown(name)) => Reply::error(format!(
            "ERR Unknown option or number of arguments for CONFIG SET - '{name}'"
        )),
        Err(Refused::Failed(name, why)) => Reply::error(format!(
            "ERR CONFIG SET failed (possibly related to argument '{name}') - {why}"
        )),
        Ok((settings, names)) => {
            proxy.slowlog.shorten(settings.slowlog_len_max);
            proxy.settings.store(Arc::new(settings));
            changed.extend(names);
            proxy.evict_clients();
            Reply::OK
        }
    }
}

/// Loads the named certificate files, all of them or none.
fn use_certificates(
    proxy: &Proxy,
    settings: Settings,
    names: Names,
) -> Result<(Settings, Names), Refused> {
    let (of_clients, of_cluster) =
        (first_of(&names, &CERTIFICATES), first_of(&names, &CLUSTER_CERTIFICATES));
    let Some(name) = of_clients.or(of_cluster) else { return Ok((settings, names)) };
    match proxy.host.use_certificates(
        of_clients.map(|_| &settings.tls),
        of_cluster.map(|_| &settings.cluster_tls),
    ) {
        Ok(()) => Ok((settings, names)),
        Err(error) => {
            let why = SettingError::Certificates(one_line(error.to_string().as_bytes()));
            Err(Refused::Failed(name.to_owned(), why))
        }
    }
}

fn first_of(names: &[&'static str], these: &[&str]) -> Option<&'static str> {
    names.iter().copied().find(|name| these.contains(name))
}

/// CONFIG REWRITE: writes the changed settings into the configuration file.
fn rewrite(proxy: &Proxy) -> Reply {
    let mut changed = proxy.changes.0.lock();
    let settings = proxy.settings.load();
    let setting = |setting: &&Setting| changed.contains(setting.name);
    let change = |setting: &Setting| FileChange {
        key: setting.name.replace('-', "_"),
        value: (setting.file)(&settings),
    };
    let changes: Vec<FileChange> = SETTINGS.iter().filter(setting).map(change).collect();
    match proxy.host.rewrite_config(&changes) {
        Ok(()) => {
            changed.clear();
            Reply::OK
        }
        Err(error) => {
            if let RewriteError::Io(why) = &error {
                tracing::warn!(why, "rewrite the configuration file");
            }
            Reply::error(one_line(format!("ERR {error}").as_bytes()))
        }
    }
}

/// CONFIG RESETSTAT.
fn reset_stat(proxy: &Proxy) -> Reply {
    proxy.stats.reset();
    Reply::OK
}

/// Names of settings.
type Names = Vec<&'static str>;

enum Refused {
    Unknown(String),
    Failed(String, SettingError),
}

/// The settings with these changes, and the names of the changed ones. Names are checked
/// before values, as in Redis.
fn apply(
    now: &Settings,
    pairs: &[(Bytes, Bytes)],
    is_fixed: impl Fn(&str) -> bool,
) -> Result<(Settings, Names), Refused> {
    let mut found: Vec<&'static Setting> = Vec::with_capacity(pairs.len());
    for (name, _) in pairs {
        let shown = one_line(name);
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
            let immutable = || Refused::Failed(shown.clone(), SettingError::Immutable);
            return Err(if is_fixed(&name) { immutable() } else { Refused::Unknown(shown) });
        };
        if found.iter().any(|other| other.name == setting.name) {
            return Err(Refused::Failed(shown, SettingError::Duplicate));
        }
        found.push(setting);
    }
    let mut settings = now.clone();
    for (setting, (name, value)) in found.iter().zip(pairs) {
        (setting.set)(&mut settings, value).map_err(|why| Refused::Failed(one_line(name), why))?;
    }
    let sizes = ["client-query-buffer-limit", "proto-max-bulk-len"];
    if let Some(setting) = found.iter().find(|setting| sizes.contains(&setting.name))
        && settings.query_bytes_max < settings.bulk_bytes_max.max(settings.write_bytes_max)
    {
        let why = SettingError::QueryBufferTooSmall;
        return Err(Refused::Failed(setting.name.to_owned(), why));
    }
    Ok((settings, found.iter().map(|setting| setting.name).collect()))
}

/// Settings that are fixed at start: given by the binary, or constant in Bridle.
fn fixed(proxy: &Proxy, settings: &Settings) -> Vec<(&'static str, String)> {
    let server_info = &proxy.server_info;
    let fsync = match proxy.host.durability() {
        Durability::Always => "always",
        Durability::Interval => "everysec",
        Durability::Os => "no",
    };
    // One more than the largest number of a table.
    let databases = proxy
        .catalogue
        .tables()
        .iter()
        .map(|table| table.number + 1)
        .fold(settings.databases, u32::max);
    let mut fixed = server_info.fixed.clone();
    let own = [
        ("port", server_info.port.to_string()),
        ("tls-port", server_info.tls_port.to_string()),
        ("dir", server_info.data_dir.clone()),
        ("databases", databases.to_string()),
        // Bridle's own: the executors of all partitions use it as well.
        ("max-write-size", settings.write_bytes_max.to_string()),
        ("max-answer-size", settings.answer_bytes_max.to_string()),
        // The Raft log corresponds to Redis's append-only file and cannot be turned off;
        // there are no periodic snapshots.
        ("appendonly", "yes".into()),
        ("appendfsync", fsync.into()),
        ("save", String::new()),
        // No limit and no eviction, as rows are on disk.
        ("maxmemory", "0".into()),
        ("maxmemory-policy", "noeviction".into()),
        ("cluster-enabled", "no".into()),
        ("daemonize", "no".into()),
    ];
    fixed.extend(own);
    fixed
}

fn yes_no(on: bool) -> &'static str {
    if on { "yes" } else { "no" }
}

fn switch(text: &[u8]) -> Result<bool, SettingError> {
    match text.to_ascii_lowercase().as_slice() {
        b"yes" => Ok(true),
        b"no" => Ok(false),
        _ => Err(SettingError::NotYesOrNo),
    }
}

fn number(text: &[u8], least: i64, most: i64) -> Result<i64, SettingError> {
    let number = integer(text).ok_or(SettingError::NotAnInteger)?;
    let within = (least..=most).contains(&number);
    within.then_some(number).ok_or(SettingError::OutOfRange(least.into(), most.into()))
}

fn memory_in(text: &[u8], least: u64, most: u64) -> Result<usize, SettingError> {
    let bytes = memory_bytes(text).ok_or(SettingError::NotAMemoryValue)?;
    let within = (least..=most).contains(&bytes);
    within.then_some(bytes as usize).ok_or(SettingError::OutOfRange(least.into(), most.into()))
}

/// Bytes of `512`, `64kb`, `1gb`, ...: `k` is a thousand, `kb` is 1024, as in Redis.
pub fn memory_bytes(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number: u64 = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    let unit = match text[digits..].to_ascii_lowercase().as_slice() {
        b"" | b"b" => 1,
        b"k" => 1_000,
        b"kb" => 1 << 10,
        b"m" => 1_000_000,
        b"mb" => 1 << 20,
        b"g" => 1_000_000_000,
        b"gb" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

fn set_clients_max(settings: &mut Settings, text: &[u8]) -> Result<(), SettingError> {
    let wanted = number(text, 1, u32::MAX.into())? as usize;
    if wanted > settings.clients_fit {
        return Err(SettingError::TooManyClients(settings.clients_fit));
    }
    settings.clients_max = wanted;
    Ok(())
}

fn clients_memory_text(limit: ClientsMemory) -> String {
    match limit {
        ClientsMemory::Unlimited => "0".into(),
        ClientsMemory::Bytes(bytes) => bytes.to_string(),
        ClientsMemory::Percent(percent) => format!("{percent}%"),
    }
}

/// Bytes, or a percentage; 0 = no limit.
fn clients_memory(text: &[u8]) -> Result<ClientsMemory, SettingError> {
    if let Some(number) = text.strip_suffix(b"%") {
        let percent = integer(number).filter(|percent| (1..=100).contains(percent));
        return percent
            .map(|percent| ClientsMemory::Percent(percent as u8))
            .ok_or(SettingError::NotAPercentage);
    }
    match memory_bytes(text) {
        Some(0) => Ok(ClientsMemory::Unlimited),
        Some(bytes) => Ok(ClientsMemory::Bytes(bytes)),
        None => Err(SettingError::NotMemoryOrPercent),
    }
}

fn set_password(settings: &mut Settings, text: &[u8]) -> Result<(), SettingError> {
    if text.len() > PASSWORD_BYTES_MAX {
        return Err(SettingError::PasswordTooLong);
    }
    if std::str::from_utf8(text).is_err() {
        return Err(SettingError::PasswordNotUtf8);
    }
    settings.password = (!text.is_empty()).then(|| Bytes::copy_from_slice(text));
    Ok(())
}

/// `<class> <hard> <soft> <seconds>`, for one or more classes. All clients are of class
/// `normal`; the limits of other classes are stored without effect. Output is always
/// bounded: no limit means the default limit. There is no soft limit, so it must be off.
fn set_output_limit(settings: &mut Settings, text: &[u8]) -> Result<(), SettingError> {
    let fields: Vec<&[u8]> =
        text.split(|byte| *byte == b' ').filter(|word| !word.is_empty()).collect();
    if fields.is_empty() || !fields.len().is_multiple_of(4) {
        return Err(SettingError::OutputLimitArguments);
    }
    for limit in fields.chunks(4) {
        let class = limit[0].to_ascii_lowercase();
        let elsewhere = match class.as_slice() {
            b"normal" => None,
            b"slave" | b"replica" => Some(0),
            b"pubsub" => Some(1),
            _ => return Err(SettingError::ClientClass),
        };
        let [hard, soft, seconds] = [1, 2, 3].map(|at| memory_bytes(limit[at]));
        let (Some(hard), Some(soft), Some(seconds)) = (hard, soft, seconds) else {
            return Err(SettingError::OutputLimitValue);
        };
        if let Some(class) = elsewhere {
            settings.output_limits_elsewhere[class] = [hard, soft, seconds];
            continue;
        }
        if soft != 0 || seconds != 0 {
            return Err(SettingError::SoftLimit);
        }
        if (1..1 << 20).contains(&hard) {
            return Err(SettingError::HardLimitTooSmall);
        }
        let usual = Settings::default().output_bytes_max;
        settings.output_bytes_max =
            if hard == 0 { usual } else { usize::try_from(hard).unwrap_or(usize::MAX) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (Bytes::from(name.to_string()), Bytes::from(value.to_string())))
            .collect();
        match apply(&Settings::default(), &pairs, |name| name == "port") {
            Ok((settings, _)) => Ok(settings),
            Err(Refused::Unknown(name)) => Err(format!("unknown {name}")),
            Err(Refused::Failed(name, why)) => Err(format!("{name}: {why}")),
        }
    }

    #[test]
    fn several_are_set_together_or_not_at_all() {
        let settings =
            set(&[("MaxClients", "7"), ("timeout", "60"), ("client-query-buffer-limit", "32mb")])
                .unwrap();
        assert_eq!(
            (settings.clients_max, settings.idle_timeout_s, settings.query_bytes_max),
            (7, 60, 32 << 20)
        );
        for (pairs, error) in [
            (&[("maxclients", "7"), ("nosuch", "1")][..], "unknown nosuch"),
            (&[("maxclients", "7"), ("port", "1")], "port: can't set immutable config"),
            (&[("maxclients", "7"), ("MAXCLIENTS", "8")], "MAXCLIENTS: duplicate parameter"),
            (
                &[("maxclients", "7"), ("timeout", "x")],
                "timeout: argument couldn't be parsed into an integer",
            ),
            (&[("timeout", "-1")], "timeout: argument must be between 0 and 2147483647 inclusive"),
            (
                &[("maxclients", "0")],
                "maxclients: argument must be between 1 and 4294967295 inclusive",
            ),
            (
                &[("client-query-buffer-limit", "1x")],
                "client-query-buffer-limit: argument must be a memory value",
            ),
            (&[("protected-mode", "maybe")], "protected-mode: argument must be 'yes' or 'no'"),
        ] {
            assert_eq!(set(pairs), Err(error.to_owned()));
        }
    }

    #[test]
    fn the_query_buffer_takes_the_longest_command() {
        let why =
            "client-query-buffer-limit must not be below proto-max-bulk-len and max-write-size";
        for pairs in [
            &[("client-query-buffer-limit", "15mb")][..],
            &[("client-query-buffer-limit", "15mb"), ("proto-max-bulk-len", "15mb")],
            &[("proto-max-bulk-len", "65mb"), ("timeout", "1")],
        ] {
            assert_eq!(set(pairs), Err(format!("{}: {why}", pairs[0].0)));
        }
        set(&[("proto-max-bulk-len", "65mb"), ("client-query-buffer-limit", "65mb")]).unwrap();
    }

    #[test]
    fn every_setting_takes_back_what_it_shows() {
        for setting in SETTINGS {
            let mut settings = Settings::default();
            let shown = (setting.get)(&settings);
            (setting.set)(&mut settings, shown.as_bytes())
                .unwrap_or_else(|why| panic!("{}: {why}", setting.name));
            assert_eq!(settings, Settings::default(), "{}", setting.name);
        }
    }

    #[test]
    fn settings_are_sorted_and_named_once() {
        assert!(SETTINGS.is_sorted_by(|one, two| one.name < two.name));
    }

    #[test]
    fn memory_values_as_redis_reads_them() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1k", Some(1000)),
            ("1Kb", Some(1024)),
            ("2GB", Some(2 << 30)),
            ("5b", Some(5)),
        ] {
            assert_eq!(memory_bytes(text.as_bytes()), bytes, "{text}");
        }
        for text in ["", "-1", "kb", "1kib", "1.5mb", "99999999999999999999", "99999999999gb"] {
            assert_eq!(memory_bytes(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn output_limits_that_do_not_exist_are_refused() {
        assert_eq!(
            set(&[("client-output-buffer-limit", "normal 32mb 0 0")]).unwrap().output_bytes_max,
            32 << 20
        );
        for value in [
            "",
            "normal 1gb",
            "master 1gb 0 0",
            "normal 1gb 1mb 10",
            "normal 1000 0 0",
            "normal x 0 0",
            "pubsub x 0 0",
        ] {
            assert!(set(&[("client-output-buffer-limit", value)]).is_err(), "{value}");
        }
    }

    #[test]
    fn output_limits_of_absent_client_classes_are_stored_only() {
        let all = "normal 0 0 0 Slave 256mb 64mb 60 pubsub 32mb 8mb 60";
        assert_eq!(set(&[("client-output-buffer-limit", all)]).unwrap(), Settings::default());
        let settings =
            set(&[("client-output-buffer-limit", "replica 0 0 0 normal 32mb 0 0 pubsub 1mb 2 3")])
                .unwrap();
        let shown = SETTINGS
            .iter()
            .find(|setting| setting.name == "client-output-buffer-limit")
            .map(|setting| (setting.get)(&settings));
        assert_eq!(shown.unwrap(), "normal 33554432 0 0 slave 0 0 0 pubsub 1048576 2 3");
    }

    #[test]
    fn maxmemory_clients_is_a_size_or_a_percentage() {
        let limit =
            |value| set(&[("maxmemory-clients", value)]).map(|settings| settings.clients_memory);
        assert_eq!(limit("64mb"), Ok(ClientsMemory::Bytes(64 << 20)));
        assert_eq!(limit("5%"), Ok(ClientsMemory::Percent(5)));
        assert_eq!(limit("0"), Ok(ClientsMemory::Unlimited));
        for value in ["0%", "101%", "-1%", "%", "x", "5.5%"] {
            assert!(limit(value).is_err(), "{value}");
        }
        assert_eq!(clients_memory_text(ClientsMemory::Percent(5)), "5%");
    }

    #[test]
    fn an_empty_password_is_none() {
        assert_eq!(set(&[("requirepass", "hunter2")]).unwrap().password, Some("hunter2".into()));
        assert_eq!(set(&[("requirepass", "")]).unwrap().password, None);
        assert!(set(&[("requirepass", &"x".repeat(2000))]).is_err());
    }

    fn ask(proxy: &Proxy, globs: &[&str]) -> Vec<(String, String)> {
        let globs: Vec<_> =
            globs.iter().map(|glob| Bytes::copy_from_slice(glob.as_bytes())).collect();
        let Reply::Map(pairs) = get(proxy, &globs) else { panic!("a map") };
        let text = |reply| {
            if let Reply::Bulk(text) = reply {
                String::from_utf8(text.to_vec()).unwrap()
            } else {
                panic!("{reply:?}")
            }
        };
        pairs.into_iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    #[test]
    fn get_matches_globs_and_tells_what_is_fixed() {
        let proxy = crate::fakes::proxy(&Default::default());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            ask(&proxy, &["APPEND*", "bind", "append*", "nosuch"]),
            [pair("appendfsync", "always"), pair("appendonly", "yes"), pair("bind", "127.0.0.1")]
        );
        assert_eq!(ask(&proxy, &["save"]), [pair("save", "")]);
        assert!(ask(&proxy, &["*"]).len() > SETTINGS.len());
    }

    #[test]
    fn set_and_rewrite_in_redis_words() {
        let backend = Arc::new(crate::fakes::FakeBackend::default());
        let proxy = crate::fakes::proxy(&backend);
        let set = |name: &str, value: &str| {
            super::set(&proxy, &[(name.to_owned().into(), value.to_owned().into())])
        };
        assert_eq!(set("Timeout", "5"), Reply::OK);
        assert_eq!(
            set("nosuch\r\n", "5"),
            Reply::error("ERR Unknown option or number of arguments for CONFIG SET - 'nosuch  '")
        );
        assert_eq!(
            set("appendonly", "no"),
            Reply::error(
                "ERR CONFIG SET failed (possibly related to argument 'appendonly') - can't set \
                 immutable config"
            )
        );
        assert_eq!(rewrite(&proxy), Reply::OK);
        assert_eq!(rewrite(&proxy), Reply::OK);
        assert_eq!(
            *backend.written.lock(),
            [FileChange { key: "timeout".into(), value: FileValue::Int(5) }]
        );
    }

    #[test]
    fn no_more_clients_than_there_are_descriptors_for() {
        let proxy = crate::fakes::proxy(&Default::default());
        proxy.settings.store(Arc::new(Settings {
            clients_max: 96,
            clients_fit: 96,
            ..Settings::default()
        }));
        let set =
            |value: &str| super::set(&proxy, &[("maxclients".into(), value.to_owned().into())]);
        assert_eq!(
            set("97"),
            Reply::error(
                "ERR CONFIG SET failed (possibly related to argument 'maxclients') - The \
                 operating system is not able to handle the specified number of clients, try with \
                 96"
            )
        );
        assert_eq!((set("5"), set("96")), (Reply::OK, Reply::OK));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_tried_again() {
        let backend =
            Arc::new(crate::fakes::FakeBackend { disk_fails: true, ..Default::default() });
        let proxy = crate::fakes::proxy(&backend);
        super::set(&proxy, &[("timeout".into(), "5".into())]);
        for _ in 0..2 {
            assert_eq!(rewrite(&proxy), Reply::error("ERR Rewriting config file: disk  full"));
        }
        assert_eq!(backend.written.lock().len(), 2);
    }
}
