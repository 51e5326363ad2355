//! The configuration. `deploy/bridle.toml` is its documentation and, compiled in, its
//! defaults.
//!
//! A key is one line in `settings!` below and one commented line in `deploy/bridle.toml`;
//! file, flags, `--print-config` and CONFIG REWRITE derive from these two.
//!
//! # Invariants
//! - `deploy/bridle.toml` sets every key, and no other (`defaults_are_complete`).
//! - The output of `--print-config` is an equal configuration
//!   (`printed_config_round_trips`), except for passwords, which are never printed.
//! - A key of an earlier build is refused with its new name
//!   (`renamed_keys_are_refused_with_the_new_name`).

mod change;
mod cluster;
mod file;
mod memory;
mod renamed;
mod setting;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

pub(crate) use change::{cluster_tls_files, proxy_settings, rewrite_file, tls_files};
pub(crate) use file::render;
use file::rewrite;
pub(crate) use memory::{Machine, Shares};
pub(crate) use setting::{
    Address, AutoSize, ClientsShare, Compression, Dur, Durability, FileMode, LogFormat, LogLevel,
    Secret, SettingValue, Size, Threshold,
};

/// Defines the sections' structs, and the table by which keys are set and printed. `in`
/// bounds a value, both ends included.
macro_rules! settings {
    ($($section:ident: $Section:ident {
        $($key:ident: $type:ty $(, in $least:expr, $most:expr)?;)*
    })*) => {
        /// All settings; `deploy/bridle.toml` documents them.
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) struct Config {
            $(pub(crate) $section: $Section,)*
            /// Shares of the memory, set by [`Config::resolve`].
            pub(crate) shares: Shares,
        }

        $(
            #[derive(Debug, Clone, PartialEq)]
            #[doc = concat!("Section `[", stringify!($section), "]`.")]
            pub(crate) struct $Section { $(pub(crate) $key: $type,)* }
        )*

        /// Every (section, key).
        pub(crate) const KEYS: &[(&str, &str)] =
            &[$($((stringify!($section), stringify!($key)),)*)*];

        impl Config {
            /// A configuration from a text that sets every key.
            fn from_all(table: &DeTable<'_>) -> Config {
                $(let $section = $Section { $(
                    $key: file::lookup(table, stringify!($section), stringify!($key))
                        .and_then(|value| <$type as SettingValue>::parse(value).ok())
                        .expect("deploy/bridle.toml sets every key rightly (a test holds it)"),
                )* };)*
                Config { $($section,)* shares: Shares::default() }
            }

            /// Sets one key; `None` when there is no such key.
            pub(crate) fn set(
                &mut self,
                section: &str,
                key: &str,
                value: &DeValue<'_>,
            ) -> Option<Result<(), String>> {
                match (section, key) {
                    $($((stringify!($section), stringify!($key)) => Some((|| {
                        let new = <$type as SettingValue>::parse(value)?;
                        $(setting::check_range(&new, $least, $most)?;)?
                        self.$section.$key = new;
                        Ok(())
                    })()),)*)*
                    _ => None,
                }
            }

            /// A key's value as TOML, passwords hidden.
            pub(crate) fn text(&self, section: &str, key: &str) -> Option<String> {
                match (section, key) {
                    $($((stringify!($section), stringify!($key)) => {
                        Some(self.$section.$key.text())
                    })*)*
                    _ => None,
                }
            }

            /// A key's value as TOML, for the operator's own file.
            fn file_text(&self, section: &str, key: &str) -> Option<String> {
                match (section, key) {
                    $($((stringify!($section), stringify!($key)) => {
                        Some(self.$section.$key.file_text())
                    })*)*
                    _ => None,
                }
            }
        }
    };
}

/// Redis's bound of settings in seconds.
const MAX_SECONDS: u64 = i32::MAX as u64;

settings! {
    node: NodeSection {
        data: PathBuf;
        memory: AutoSize, in AutoSize::mib(32), AutoSize::mib(1 << 24);
    }
    cluster: ClusterSection {
        name: String;
        metas: Vec<Address>;
        listen: SocketAddr;
        advertise: Option<Address>;
        zone: String;
        secret: Secret;
        secret_file: PathBuf;
        cert_file: PathBuf;
        key_file: PathBuf;
        ca_file: PathBuf;
        tls_name: String;
        protected_mode: bool;
        call_timeout: Dur, in Dur::ms(100), Dur::ms(600_000);
        snapshot_rate: Size;
        leader_transfer_timeout: Dur, in Dur::ms(0), Dur::ms(600_000);
    }
    proxy: ProxySection {
        bind: Vec<IpAddr>;
        port: u16;
        unixsocket: PathBuf;
        unixsocketperm: FileMode;
        protected_mode: bool;
        requirepass: Secret;
        requirepass_file: PathBuf;
        maxclients: u32, in 1, u32::MAX;
        timeout: Dur, in Dur::ms(0), Dur::ms(MAX_SECONDS * 1000);
        tcp_keepalive: Dur, in Dur::ms(0), Dur::ms(MAX_SECONDS * 1000);
        tcp_backlog: u32, in 1, 65_535;
        proto_max_bulk_len: Size, in Size::mib(1), Size::mib(512);
        client_query_buffer_limit: Size, in Size::mib(1), Size::mib(1 << 20);
        client_output_buffer_limit: Size, in Size::mib(1), Size::mib(1 << 20);
        maxmemory_clients: ClientsShare;
        slowlog_log_slower_than: Threshold;
        slowlog_max_len: u32, in 0, 1 << 20;
        latency_monitor_threshold: Dur;
        call_deadline: Dur, in Dur::ms(1), Dur::ms(600_000);
    }
    tls: TlsSection {
        port: u16;
        only: bool;
        cert_file: PathBuf;
        key_file: PathBuf;
        client_ca_file: PathBuf;
    }
    http: HttpSection {
        bind: IpAddr;
        port: u16;
        allowed_hosts: Vec<String>;
    }
    tables: TablesSection {
        partitions: u32, in 1, 1024;
        replicas: u32, in 1, 7;
    }
    storage: StorageSection {
        durability: Durability;
        sync_interval: Dur, in Dur::ms(1), Dur::ms(60_000);
        max_write_size: Size, in Size::kib(1), Size::mib(512);
        max_answer_size: Size, in Size::mib(1), Size::mib(1 << 12);
        row_cache: AutoSize, in AutoSize::mib(1), AutoSize::mib(1 << 24);
        block_cache: AutoSize, in AutoSize::mib(1), AutoSize::mib(1 << 24);
        memtables: AutoSize, in AutoSize::mib(1), AutoSize::mib(1 << 20);
        flush_threads: u32, in 1, 256;
        compaction_threads: u32, in 1, 256;
        compression: Compression;
        periodic_compaction_after: Dur, in Dur::ms(60_000), Dur::ms(MAX_SECONDS * 1000);
        disk_reserve: Size;
    }
    raft_log: RaftLogSection {
        segment_size: Size, in Size::mib(1), Size::mib(1024);
        tail_cache: Size, in Size::mib(1), Size::mib(1 << 20);
        write_queue_size: Size, in Size::mib(1), Size::mib(1 << 14);
        retention_size: Size, in Size::mib(1), Size::mib(1 << 20);
        retention_total_size: Size, in Size::mib(1), Size::mib(1 << 24);
        retention_entries: u32, in 1, u32::MAX;
        retention_time: Dur, in Dur::ms(0), Dur::ms(MAX_SECONDS * 1000);
    }
    threads: ThreadsSection {
        proxy: u32, in 0, 1024;
        raft: u32, in 0, 1024;
    }
    log: LogSection {
        level: LogLevel;
        format: LogFormat;
    }
}

impl Config {
    /// The values of `deploy/bridle.toml`.
    pub(crate) fn defaults() -> Config {
        Config::from_all(&file::parse_defaults())
    }

    /// Resolves what depends on several keys: divides the memory, reads
    /// `requirepass_file`, and refuses combinations that are invalid or unsafe. Returns
    /// warnings.
    pub(crate) fn resolve(&mut self, machine: Machine) -> Result<Vec<String>, String> {
        if !self.proxy.requirepass_file.as_os_str().is_empty() {
            if !self.proxy.requirepass.is_empty() {
                return Err("proxy.requirepass and proxy.requirepass_file are both set: keep \
                            only one of them"
                    .into());
            }
            self.proxy.requirepass = Secret::from_file(&self.proxy.requirepass_file)?;
        }
        self.check_sizes()?;
        let lowered = self.resolve_memory(machine)?;
        self.check_safety()?;
        Ok(lowered)
    }

    /// Refuses to serve other machines without a password.
    fn check_safety(&self) -> Result<(), String> {
        let open = |ip: &&IpAddr| !ip.is_loopback();
        if self.proxy.protected_mode && self.proxy.requirepass.is_empty() {
            let (key, ip) = match (self.proxy.bind.iter().find(open), open(&&self.http.bind)) {
                (Some(ip), _) => ("proxy.bind", *ip),
                (None, true) => ("http.bind", self.http.bind),
                (None, false) => return self.check_tls(),
            };
            return Err(format!(
                "{key} = {ip} is open to other machines, and no password is set: everyone who can \
                 reach it would own the data. Set proxy.requirepass_file (or --password-file), or \
                 bind to 127.0.0.1, or set proxy.protected_mode = false if the network itself is \
                 safe"
            ));
        }
        self.check_tls()
    }

    /// The largest commands must fit into the query buffer.
    fn check_sizes(&self) -> Result<(), String> {
        let room = self.proxy.client_query_buffer_limit;
        let sizes = [
            ("proxy.proto_max_bulk_len", self.proxy.proto_max_bulk_len),
            ("storage.max_write_size", self.storage.max_write_size),
        ];
        match sizes.into_iter().find(|(_, size)| *size > room) {
            Some((key, size)) => Err(format!(
                "{key} = {} is above proxy.client_query_buffer_limit = {}: a command of that size \
                 could never be executed",
                size.text(),
                room.text()
            )),
            None => Ok(()),
        }
    }

    fn check_tls(&self) -> Result<(), String> {
        let files = [&self.tls.cert_file, &self.tls.key_file];
        let set = files.iter().filter(|file| !file.as_os_str().is_empty()).count();
        if (self.tls.port != 0 || self.tls.only) && set != 2 {
            return Err("TLS needs both tls.cert_file and tls.key_file".into());
        }
        if self.tls.only && self.tls.port == 0 {
            return Err("tls.only needs tls.port".into());
        }
        Ok(())
    }
}
