//! The proxy's settings. All can change while it runs (CONFIG SET), so they are read
//! through [`crate::Proxy::settings`].

use bytes::Bytes;

use crate::tls::TlsFiles;

/// A snapshot of the settings. `Default` has the values of the annotated configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `requirepass`; `None` = no password.
    pub password: Option<Bytes>,
    /// `protected-mode`: without a password, only local clients are served.
    pub protected_mode: bool,
    /// `maxclients`.
    pub clients_max: usize,
    /// Upper bound of `maxclients`, given by the file descriptors.
    pub clients_fit: usize,
    /// `timeout`: seconds after which an idle client is disconnected; 0 = never.
    pub idle_timeout_s: u64,
    /// `tcp-keepalive`: seconds between probes; 0 = none.
    pub tcp_keepalive_s: u64,
    /// `proto-max-bulk-len`: the longest argument of a command, bytes.
    pub bulk_bytes_max: usize,
    /// `max_write_size`: limit of the arguments of one write together, bytes.
    pub write_bytes_max: usize,
    /// `max_answer_size`: limit of one answer, bytes.
    pub answer_bytes_max: usize,
    /// `client-query-buffer-limit`: limit of input sent ahead by one client, bytes.
    pub query_bytes_max: usize,
    /// `client-output-buffer-limit`: limit of one client's unread replies, bytes.
    pub output_bytes_max: usize,
    /// The same for replicas and subscribers, which do not exist: hard limit, soft limit,
    /// seconds.
    pub output_limits_elsewhere: [[u64; 3]; 2],
    /// `maxmemory-clients`: limit of all clients together.
    pub clients_memory: ClientsMemory,
    /// `memory`, the base of percentages: memory budget of this process, bytes.
    pub memory_bytes: u64,
    /// `slowlog-log-slower-than`, microseconds; negative = never.
    pub slowlog_slower_than_us: i64,
    /// `slowlog-max-len`.
    pub slowlog_len_max: usize,
    /// `latency-monitor-threshold`, ms; 0 = off.
    pub latency_threshold_ms: u64,
    /// Time limit for retries of a call while a partition has no leader, ms.
    pub call_deadline_ms: u64,
    /// `tls-cert-file`, `tls-key-file`, `tls-ca-cert-file`. The contents in use are those
    /// read last.
    pub tls: TlsFiles,
    /// Files of the cluster's certificates, if its processes use TLS among each other.
    pub cluster_tls: TlsFiles,
    /// Number of tables `db0..` that are created by their first write.
    pub databases: u32,
}

/// A limit in bytes, with its name for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteLimit {
    /// The limit, bytes.
    pub bytes: usize,
    /// The setting that determines it.
    pub name: &'static str,
    /// `true` if CONFIG SET changes it.
    pub is_live: bool,
}

impl std::fmt::Display for ByteLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if self.is_live {
            "CONFIG SET changes it"
        } else {
            "the configuration file changes it, at a restart"
        };
        write!(f, "{} ({} bytes; {how})", self.name, self.bytes)
    }
}

/// `maxmemory-clients`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientsMemory {
    /// 0: no limit.
    Unlimited,
    /// This many bytes.
    Bytes(u64),
    /// Percentage of [`Settings::memory_bytes`], 1 to 100.
    Percent(u8),
}

/// Minimum of `maxmemory-clients`, as in Redis; smaller values are raised to this.
const CLIENTS_BYTES_MIN: u64 = 128 * 1024;

/// A limit of one client above the limit of all clients is replaced by the latter, in
/// value and name.
impl Settings {
    /// Limit of all clients together.
    pub fn clients_max(&self) -> ByteLimit {
        let bytes = match self.clients_memory {
            ClientsMemory::Unlimited => u64::MAX,
            ClientsMemory::Bytes(bytes) => bytes.max(CLIENTS_BYTES_MIN),
            ClientsMemory::Percent(percent) => {
                (self.memory_bytes / 100 * u64::from(percent)).max(CLIENTS_BYTES_MIN)
            }
        };
        ByteLimit {
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            name: "maxmemory-clients",
            is_live: true,
        }
    }

    /// Limit of one client's input sent ahead.
    pub fn query_max(&self) -> ByteLimit {
        self.least(ByteLimit {
            bytes: self.query_bytes_max,
            name: "client-query-buffer-limit",
            is_live: true,
        })
    }

    /// Limit of one argument.
    pub fn bulk_max(&self) -> ByteLimit {
        let own =
            ByteLimit { bytes: self.bulk_bytes_max, name: "proto-max-bulk-len", is_live: true };
        let query = self.query_max();
        if query.bytes < own.bytes { query } else { own }
    }

    /// Limit of one client's unread replies.
    pub fn output_max(&self) -> ByteLimit {
        self.least(ByteLimit {
            bytes: self.output_bytes_max,
            name: "client-output-buffer-limit",
            is_live: true,
        })
    }

    /// Limit of what one command or transaction writes.
    pub fn write_max(&self) -> ByteLimit {
        ByteLimit { bytes: self.write_bytes_max, name: "max_write_size", is_live: false }
    }

    /// Limit of the answer of one command or transaction.
    pub fn answer_max(&self) -> ByteLimit {
        self.least(ByteLimit {
            bytes: self.answer_bytes_max,
            name: "max_answer_size",
            is_live: false,
        })
    }

    fn least(&self, own: ByteLimit) -> ByteLimit {
        let all = self.clients_max();
        if all.bytes < own.bytes { all } else { own }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            password: None,
            protected_mode: true,
            clients_max: 10_000,
            clients_fit: u32::MAX as usize,
            idle_timeout_s: 0,
            tcp_keepalive_s: 300,
            bulk_bytes_max: 16 << 20,
            write_bytes_max: 16 << 20,
            answer_bytes_max: 512 << 20,
            query_bytes_max: 64 << 20,
            output_bytes_max: 256 << 20,
            output_limits_elsewhere: [[256 << 20, 64 << 20, 60], [32 << 20, 8 << 20, 60]],
            clients_memory: ClientsMemory::Bytes(512 << 20),
            memory_bytes: 4 << 30,
            slowlog_slower_than_us: 10_000,
            slowlog_len_max: 128,
            latency_threshold_ms: 0,
            call_deadline_ms: 4_000,
            tls: TlsFiles::default(),
            cluster_tls: TlsFiles::default(),
            databases: cluster::DATABASES,
        }
    }
}

impl std::fmt::Debug for Settings {
    /// Omits the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("password", &self.password.as_ref().map(|_| "(set)"))
            .field("protected_mode", &self.protected_mode)
            .field("clients_max", &self.clients_max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_of_one_client_is_above_that_of_all() {
        let settings = |clients_memory| Settings {
            clients_memory,
            memory_bytes: 1 << 30,
            ..Settings::default()
        };
        let named = |bound: ByteLimit| (bound.bytes, bound.name);
        let tight = settings(ClientsMemory::Percent(1));
        let all = (1 << 30) / 100;
        for bound in [tight.query_max(), tight.bulk_max(), tight.output_max(), tight.answer_max()] {
            assert_eq!(named(bound), (all, "maxmemory-clients"));
        }
        let wide = settings(ClientsMemory::Unlimited);
        assert_eq!(named(wide.answer_max()), (512 << 20, "max_answer_size"));
        assert_eq!(named(wide.bulk_max()), (16 << 20, "proto-max-bulk-len"));
        assert_eq!(settings(ClientsMemory::Bytes(1)).clients_max().bytes, 128 << 10);
    }

    #[test]
    fn a_bound_says_how_it_is_changed() {
        let settings = Settings::default();
        assert_eq!(
            settings.query_max().to_string(),
            "client-query-buffer-limit (67108864 bytes; CONFIG SET changes it)"
        );
        let fixed =
            "max_write_size (16777216 bytes; the configuration file changes it, at a restart)";
        assert_eq!(settings.write_max().to_string(), fixed);
    }
}
