//! MONITOR: a copy of every executed command for the monitors. Commands of a transaction
//! are shown in order when EXEC runs them, and not at all if it does not.
//!
//! Without monitors the cost is one relaxed load. A monitor that reads too slowly is
//! disconnected.
//!
//! # Invariants
//! - Pending output of a monitor is at most its limit (test
//!   `slow_monitor_is_disconnected`).
//! - Passwords and administrative commands are not shown (Redis omits the latter as
//!   well).

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use commands::Command;
use commands::table::flags;
use parking_lot::Mutex;

use crate::Client;
use crate::redact::redacted;

/// All monitors of one proxy.
#[derive(Default)]
pub struct Monitors {
    count: AtomicUsize,
    clients: Mutex<Vec<Weak<Client>>>,
}

/// `true` if MONITOR shows the command: not administrators' commands, as in Redis.
pub fn is_shown(command: &Command) -> bool {
    command.flags & (flags::ADMIN | flags::SKIP_MONITOR) == 0
}

impl Monitors {
    /// `true` if there are monitors.
    pub fn is_active(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    /// `client` receives all commands until it disconnects or [`Monitors::remove`].
    pub fn add(&self, client: &Arc<Client>) {
        self.keep(|other| other.id != client.id, Some(client));
    }

    /// `client` receives no more commands (RESET).
    pub fn remove(&self, client: &Client) {
        self.keep(|other| other.id != client.id, None);
    }

    /// Sends a command of the client `from`, on table number `table`, to all other
    /// monitors. At most `bytes_max` may be pending for each.
    pub fn feed(
        &self,
        from: &Client,
        table: u32,
        command: &Command,
        argv: &[Bytes],
        bytes_max: usize,
    ) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (argv, address) = (redacted(command, argv), from.endpoint.monitored());
        let line = line(now.as_secs(), now.subsec_micros(), table, &address, argv);
        self.keep(|client| client.id == from.id || client.push(line.as_bytes(), bytes_max), None);
    }

    fn keep(&self, wanted: impl Fn(&Client) -> bool, new: Option<&Arc<Client>>) {
        let mut clients = self.clients.lock();
        clients.retain(|client| client.upgrade().is_some_and(|client| wanted(&client)));
        clients.extend(new.map(Arc::downgrade));
        self.count.store(clients.len(), Relaxed);
    }
}

/// `+1339518083.107412 [0 127.0.0.1:60866] "keys" "*"` with its line end.
fn line(
    seconds: u64,
    micros: u32,
    table: u32,
    address: &str,
    argv: impl Iterator<Item = Bytes>,
) -> String {
    let mut line = format!("+{seconds}.{micros:06} [{table} {address}]");
    for word in argv {
        line.push(' ');
        quote(&word, &mut line);
    }
    line.push_str("\r\n");
    line
}

/// Quotes as Redis does (`sdscatrepr`): printable ASCII unchanged, the usual escapes,
/// everything else in hexadecimal.
fn quote(word: &[u8], line: &mut String) {
    line.push('"');
    for &byte in word {
        match byte {
            b'\\' | b'"' => line.extend(['\\', char::from(byte)]),
            b'\n' => line.push_str("\\n"),
            b'\r' => line.push_str("\\r"),
            b'\t' => line.push_str("\\t"),
            7 => line.push_str("\\a"),
            8 => line.push_str("\\b"),
            b' '..=b'~' => line.push(char::from(byte)),
            _ => write!(line, "\\x{byte:02x}").expect("writing to a string cannot fail"),
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::client;

    fn argv(argv: &[&[u8]]) -> Vec<Bytes> {
        argv.iter().map(|word| Bytes::copy_from_slice(word)).collect()
    }

    #[test]
    fn lines_are_as_redis_prints_them() {
        let argv = argv(&[b"set", b"a\"\\\n\r\t\x07\x08\x00\xff", b"v v"]);
        let expected =
            concat!(r#"+12.000034 [0 127.0.0.1:5] "set" "a\"\\\n\r\t\a\b\x00\xff" "v v""#, "\r\n");
        assert_eq!(line(12, 34, 0, "127.0.0.1:5", argv.into_iter()), expected);
    }

    fn command(name: &str) -> &'static Command {
        commands::find(name.as_bytes(), None).expect("it is in the table")
    }

    fn pushed(client: &Client) -> String {
        let mut out = bytes::BytesMut::new();
        client.take_pushed(&mut out);
        String::from_utf8(out.to_vec()).expect("monitor lines are ASCII")
    }

    #[test]
    fn monitors_see_everything_but_passwords() {
        let (monitors, one, two, other) = (Monitors::default(), client(1), client(2), client(3));
        assert!(!monitors.is_active());
        monitors.add(&one);
        monitors.add(&one);
        monitors.add(&two);
        monitors.feed(&other, 17, command("auth"), &argv(&[b"AUTH", b"hunter2"]), 1000);
        for client in [&one, &two] {
            let line = pushed(client);
            assert!(
                line.ends_with("[17 127.0.0.1:5] \"AUTH\" \"(redacted)\"\r\n")
                    && line.lines().count() == 1,
                "{line:?}"
            );
        }
        monitors.remove(&one);
        monitors.feed(&other, 17, command("ping"), &argv(&[b"PING"]), 1000);
        assert_eq!((pushed(&one).lines().count(), pushed(&two).lines().count()), (0, 1));
        monitors.feed(&two, 17, command("ping"), &argv(&[b"PING"]), 1000);
        assert_eq!(pushed(&two), "", "its own commands are not shown");
        drop(two);
        monitors.feed(&other, 17, command("ping"), &argv(&[b"PING"]), 1000);
        assert!(!monitors.is_active());
    }

    #[test]
    fn slow_monitor_is_disconnected() {
        let (monitors, slow, other) = (Monitors::default(), client(1), client(3));
        monitors.add(&slow);
        for _ in 0..10 {
            monitors.feed(&other, 0, command("ping"), &argv(&[b"PING"]), 100);
        }
        assert!(!monitors.is_active());
        assert!(slow.is_killed());
        assert!(pushed(&slow).len() <= 100);
    }
}
