//! The slow log: the last commands that took longer than `slowlog-log-slower-than`.
//!
//! # Invariants
//! - At most `slowlog-max-len` entries of at most [`ENTRY_ARGS_MAX`] arguments of
//!   [`ENTRY_ARG_BYTES_MAX`] bytes; secrets are replaced ([`crate::redact`]; tests
//!   `long_commands_are_cut_as_redis_cuts_them`, `the_oldest_entries_go`).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use commands::Reply;
use commands::latency::SlowlogCommand;
use parking_lot::Mutex;

/// Arguments kept per command; the last one says how many are left out. Redis's number.
pub const ENTRY_ARGS_MAX: usize = 32;
/// Bytes kept per argument. Redis's number.
pub const ENTRY_ARG_BYTES_MAX: usize = 128;

/// The log of one proxy.
#[derive(Debug, Default)]
pub struct Slowlog(Mutex<SlowlogEntries>);

#[derive(Debug, Default)]
struct SlowlogEntries {
    next_id: i64,
    /// Newest first.
    entries: VecDeque<SlowlogEntry>,
}

#[derive(Debug)]
struct SlowlogEntry {
    id: i64,
    at_s: u64,
    took: Duration,
    argv: Vec<Bytes>,
    address: String,
    name: Bytes,
}

/// Runs a SLOWLOG command.
pub(crate) fn run(slowlog: &Slowlog, command: SlowlogCommand) -> Reply {
    match command {
        SlowlogCommand::Get { count } => slowlog.get(count),
        SlowlogCommand::Len => slowlog.len(),
        SlowlogCommand::Reset => slowlog.reset(),
    }
}

impl Slowlog {
    /// Adds a command, without its secrets, that took `took`. The caller checks
    /// [`is_slow`] first, so that fast commands cost no copy.
    pub fn add(
        &self,
        argv: impl ExactSizeIterator<Item = Bytes>,
        took: Duration,
        address: &str,
        name: &Bytes,
        len_max: usize,
    ) {
        let (address, name, argv) = (address.to_owned(), Bytes::copy_from_slice(name), kept(argv));
        let mut log = self.0.lock();
        let id = log.next_id;
        log.next_id += 1;
        log.entries.push_front(SlowlogEntry {
            id,
            at_s: crate::now_ms() / 1000,
            took,
            argv,
            address,
            name,
        });
        log.entries.truncate(len_max);
    }

    /// Removes entries beyond the length, for CONFIG SET slowlog-max-len.
    pub fn shorten(&self, len_max: usize) {
        self.0.lock().entries.truncate(len_max);
    }

    /// SLOWLOG GET: the newest `count` entries, all with -1.
    pub fn get(&self, count: i64) -> Reply {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let log = self.0.lock();
        let entry = |entry: &SlowlogEntry| {
            Reply::Array(vec![
                Reply::Int(entry.id),
                Reply::Int(entry.at_s as i64),
                Reply::Int(i64::try_from(entry.took.as_micros()).unwrap_or(i64::MAX)),
                Reply::Array(entry.argv.iter().cloned().map(Reply::Bulk).collect()),
                Reply::Bulk(entry.address.clone().into()),
                Reply::Bulk(entry.name.clone()),
            ])
        };
        Reply::Array(log.entries.iter().take(count).map(entry).collect())
    }

    /// SLOWLOG LEN.
    fn len(&self) -> Reply {
        Reply::Int(self.0.lock().entries.len() as i64)
    }

    /// SLOWLOG RESET. Ids continue.
    fn reset(&self) -> Reply {
        self.0.lock().entries.clear();
        Reply::OK
    }
}

/// `true` if a command that took `took` is slow; negative thresholds turn the log off, 0
/// logs everything.
pub fn is_slow(took: Duration, slower_than_us: i64) -> bool {
    u128::try_from(slower_than_us).is_ok_and(|threshold| took.as_micros() >= threshold)
}

/// The arguments of a command as the log keeps them. Copied, because a slice would keep
/// the whole read buffer alive.
fn kept(argv: impl ExactSizeIterator<Item = Bytes>) -> Vec<Bytes> {
    let args = argv.len();
    let whole = if args > ENTRY_ARGS_MAX { ENTRY_ARGS_MAX - 1 } else { args };
    let cut = |arg: Bytes| match arg.len().checked_sub(ENTRY_ARG_BYTES_MAX) {
        None | Some(0) => Bytes::copy_from_slice(&arg),
        Some(more) => [&arg[..ENTRY_ARG_BYTES_MAX], format!("... ({more} more bytes)").as_bytes()]
            .concat()
            .into(),
    };
    let mut kept: Vec<Bytes> = argv.take(whole).map(cut).collect();
    if whole < args {
        kept.push(format!("... ({} more arguments)", args - whole).into());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(argv: &[&str]) -> std::vec::IntoIter<Bytes> {
        let argv = argv.iter().map(|arg| Bytes::copy_from_slice(arg.as_bytes()));
        argv.collect::<Vec<_>>().into_iter()
    }

    fn rows(reply: Reply) -> Vec<Vec<Reply>> {
        let Reply::Array(rows) = reply else { panic!("{reply:?}") };
        let row = |row| if let Reply::Array(row) = row { row } else { panic!("{row:?}") };
        rows.into_iter().map(row).collect()
    }

    #[test]
    fn an_entry_tells_what_redis_tells() {
        let log = Slowlog::default();
        log.add(
            argv(&["GET", "k"]),
            Duration::from_micros(12_345),
            "127.0.0.1:5",
            &"me".into(),
            10,
        );
        let rows = rows(log.get(10));
        let [
            Reply::Int(0),
            Reply::Int(at),
            Reply::Int(12_345),
            Reply::Array(kept),
            Reply::Bulk(address),
            Reply::Bulk(name),
        ] = &rows[0][..]
        else {
            panic!("{rows:?}")
        };
        assert!(*at > 1_600_000_000);
        assert_eq!(kept, &[Reply::Bulk("GET".into()), Reply::Bulk("k".into())]);
        assert_eq!((&address[..], &name[..]), (&b"127.0.0.1:5"[..], &b"me"[..]));
    }

    #[test]
    fn the_oldest_entries_go() {
        let log = Slowlog::default();
        for n in 0..10 {
            log.add(argv(&["get", &n.to_string()]), Duration::ZERO, "", &Bytes::new(), 3);
        }
        let ids: Vec<_> = rows(log.get(-1)).into_iter().map(|row| row[0].clone()).collect();
        assert_eq!(ids, [Reply::Int(9), Reply::Int(8), Reply::Int(7)]);
        assert_eq!(rows(log.get(1)).len(), 1);
        log.shorten(1);
        assert_eq!(log.len(), Reply::Int(1));
        log.reset();
        assert_eq!(log.len(), Reply::Int(0));
        log.add(argv(&["get"]), Duration::ZERO, "", &Bytes::new(), 0);
        assert_eq!(log.len(), Reply::Int(0));
    }

    #[test]
    fn long_commands_are_cut_as_redis_cuts_them() {
        let long = "x".repeat(ENTRY_ARG_BYTES_MAX + 5);
        let kept_arg = kept(argv(&["set", "k", &long]));
        assert_eq!(kept_arg[2], format!("{}... (5 more bytes)", &long[..ENTRY_ARG_BYTES_MAX]));
        assert_eq!(kept(argv(&["x"; 32])).len(), 32);
        let many = kept(argv(&["x"; 40]));
        assert_eq!((many.len(), &many[31][..]), (32, &b"... (9 more arguments)"[..]));
    }

    #[test]
    fn thresholds() {
        assert!(is_slow(Duration::ZERO, 0));
        assert!(is_slow(Duration::from_millis(10), 10_000));
        assert!(!is_slow(Duration::from_micros(9_999), 10_000));
        assert!(!is_slow(Duration::MAX, -1));
    }
}
