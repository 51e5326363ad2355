//! The proxy's settings. All can change while it runs (CONFIG SET), so everybody reads them through [`crate::Proxy::settings`].

use bytes::Bytes;

/// Values as of one moment. `Default` is what the annotated configuration says.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `requirepass`; `None` = no password.
    pub password: Option<Bytes>,
    /// `protected-mode`: without a password, answer only clients of this machine.
    pub protected_mode: bool,
    /// `maxclients`.
    pub clients_max: usize,
    /// The most that `maxclients` may be: for more there are no file descriptors.
    pub clients_fit: usize,
    /// `timeout`: seconds in which a client sends and reads nothing, after which it is closed; 0 = never.
    pub idle_timeout_s: u64,
    /// `tcp-keepalive`: seconds between probes; 0 = none.
    pub tcp_keepalive_s: u64,
    /// `proto-max-bulk-len`: the longest argument of a command, bytes.
    pub bulk_bytes_max: usize,
    /// `max_write_size`: the most that the arguments of one write may add up to, bytes.
    pub write_bytes_max: usize,
    /// `client-query-buffer-limit`: the most that one client may have sent ahead, bytes.
    pub query_bytes_max: usize,
    /// `client-output-buffer-limit`: the most that may wait for one client to read it for long, bytes.
    pub output_bytes_max: usize,
    /// The same for replicas and subscribers, of which there are none: hard limit, soft limit, seconds.
    pub output_limits_elsewhere: [[u64; 3]; 2],
    /// `slowlog-log-slower-than`, microseconds; negative = never.
    pub slowlog_slower_than_us: i64,
    /// `slowlog-max-len`.
    pub slowlog_len_max: usize,
    /// `latency-monitor-threshold`, ms; 0 = off.
    pub latency_threshold_ms: u64,
    /// How long a call is tried again while a partition has no leader, ms.
    pub call_deadline_ms: u64,
    /// Tables `db0..` that SELECT knows by number.
    pub databases: u32,
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
            query_bytes_max: 64 << 20,
            output_bytes_max: 256 << 20,
            output_limits_elsewhere: [[256 << 20, 64 << 20, 60], [32 << 20, 8 << 20, 60]],
            slowlog_slower_than_us: 10_000,
            slowlog_len_max: 128,
            latency_threshold_ms: 0,
            call_deadline_ms: 4_000,
            databases: 16,
        }
    }
}

impl std::fmt::Debug for Settings {
    /// Everything but the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("password", &self.password.as_ref().map(|_| "(set)"))
            .field("protected_mode", &self.protected_mode)
            .field("clients_max", &self.clients_max)
            .finish_non_exhaustive()
    }
}
