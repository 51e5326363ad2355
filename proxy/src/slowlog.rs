//! The slow log: the last commands that took longer than `slowlog-log-slower-than`.
//!
//! # Invariants
//! - At most `slowlog-max-len` entries of at most [`WORDS_MAX`] words of
//!   [`WORD_BYTES_MAX`] bytes; secrets are replaced (tests
//!   `long_commands_are_cut_as_redis_cuts_them`, `the_oldest_entries_go`).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use commands::Reply;
use parking_lot::Mutex;

use crate::redact::redacted;

/// Words kept of a command, the last of which says how many are left out. Redis's number.
pub const WORDS_MAX: usize = 32;
/// Bytes kept of a word. Redis's number.
pub const WORD_BYTES_MAX: usize = 128;

/// The log of one proxy.
#[derive(Debug, Default)]
pub struct Slowlog(Mutex<Log>);

#[derive(Debug, Default)]
struct Log {
    next_id: i64,
    /// Newest first.
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: i64,
    at_s: u64,
    took: Duration,
    words: Vec<Bytes>,
    address: String,
    name: Bytes,
}

impl Slowlog {
    /// Keeps a command that took `took`. Whether it is slow is the caller's to ask
    /// ([`is_slow`]), so that fast commands cost no copy.
    pub fn add(
        &self,
        words: &[Bytes],
        took: Duration,
        address: &str,
        name: &Bytes,
        len_max: usize,
    ) {
        let (address, name, words) =
            (address.to_owned(), Bytes::copy_from_slice(name), kept(words));
        let mut log = self.0.lock();
        let id = log.next_id;
        log.next_id += 1;
        log.entries.push_front(Entry {
            id,
            at_s: crate::now_ms() / 1000,
            took,
            words,
            address,
            name,
        });
        log.entries.truncate(len_max);
    }

    /// Forgets what is over the length; for CONFIG SET slowlog-max-len.
    pub fn shorten(&self, len_max: usize) {
        self.0.lock().entries.truncate(len_max);
    }

    /// SLOWLOG GET: the newest `count` entries, all with -1.
    pub fn get(&self, count: i64) -> Reply {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let log = self.0.lock();
        let entry = |entry: &Entry| {
            Reply::Array(vec![
                Reply::Int(entry.id),
                Reply::Int(entry.at_s as i64),
                Reply::Int(i64::try_from(entry.took.as_micros()).unwrap_or(i64::MAX)),
                Reply::Array(entry.words.iter().cloned().map(Reply::Bulk).collect()),
                Reply::Bulk(entry.address.clone().into()),
                Reply::Bulk(entry.name.clone()),
            ])
        };
        Reply::Array(log.entries.iter().take(count).map(entry).collect())
    }

    /// SLOWLOG LEN.
    pub fn len(&self) -> Reply {
        Reply::Int(self.0.lock().entries.len() as i64)
    }

    /// SLOWLOG RESET. Ids go on counting.
    pub fn reset(&self) -> Reply {
        self.0.lock().entries.clear();
        Reply::OK
    }
}

/// Whether a command that took `took` belongs into the log; negative thresholds turn it
/// off, 0 logs everything.
pub fn is_slow(took: Duration, slower_than_us: i64) -> bool {
    u128::try_from(slower_than_us).is_ok_and(|threshold| took.as_micros() >= threshold)
}

/// The words of a command as the log keeps them. Copied, because a slice would keep the
/// whole read buffer alive.
fn kept(words: &[Bytes]) -> Vec<Bytes> {
    let whole = if words.len() > WORDS_MAX { WORDS_MAX - 1 } else { words.len() };
    let cut = |word: Bytes| match word.len().checked_sub(WORD_BYTES_MAX) {
        None | Some(0) => Bytes::copy_from_slice(&word),
        Some(more) => {
            [&word[..WORD_BYTES_MAX], format!("... ({more} more bytes)").as_bytes()].concat().into()
        }
    };
    let mut kept: Vec<Bytes> = redacted(words).take(whole).map(cut).collect();
    if whole < words.len() {
        kept.push(format!("... ({} more arguments)", words.len() - whole).into());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<Bytes> {
        words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
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
            &words(&["AUTH", "hunter2"]),
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
        assert_eq!(kept, &[Reply::Bulk("AUTH".into()), Reply::Bulk("(redacted)".into())]);
        assert_eq!((&address[..], &name[..]), (&b"127.0.0.1:5"[..], &b"me"[..]));
    }

    #[test]
    fn the_oldest_entries_go() {
        let log = Slowlog::default();
        for n in 0..10 {
            log.add(&words(&["get", &n.to_string()]), Duration::ZERO, "", &Bytes::new(), 3);
        }
        let ids: Vec<_> = rows(log.get(-1)).into_iter().map(|row| row[0].clone()).collect();
        assert_eq!(ids, [Reply::Int(9), Reply::Int(8), Reply::Int(7)]);
        assert_eq!(rows(log.get(1)).len(), 1);
        log.shorten(1);
        assert_eq!(log.len(), Reply::Int(1));
        log.reset();
        assert_eq!(log.len(), Reply::Int(0));
        log.add(&words(&["get"]), Duration::ZERO, "", &Bytes::new(), 0);
        assert_eq!(log.len(), Reply::Int(0));
    }

    #[test]
    fn long_commands_are_cut_as_redis_cuts_them() {
        let long = "x".repeat(WORD_BYTES_MAX + 5);
        let kept_word = kept(&words(&["set", "k", &long]));
        assert_eq!(kept_word[2], format!("{}... (5 more bytes)", &long[..WORD_BYTES_MAX]));
        assert_eq!(kept(&words(&["x"; 32])).len(), 32);
        let many = kept(&words(&["x"; 40]));
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
