//! One client: sends commands and records the replies.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::mix::{KINDS, KeyKind, NextCall};
use super::{History, Rng, WorkloadOptions, WorkloadState};
use crate::lin::{Command, Expiry, Row, RowOp};
use crate::{Client, Value};

/// Outcome of a call.
enum CallOutcome {
    /// Executed (or refused by the row), with this reply.
    Told(Value),
    /// Not executed.
    Refused(String),
    /// Unknown.
    Unknown(String),
}

/// Maximum time for which a watched row is held, ms: longer than a leadership transfer
/// there and back.
const HELD_MS_MAX: u64 = 2_000;

/// Errors that are answers of the row.
const ANSWERS: [&str; 2] = ["WRONGTYPE ", "ERR value is not an integer"];
/// Errors of commands without effect (the proxy's `call_error`, in
/// `proxy/src/errors.rs`).
const NOTHING_DONE: [&str; 8] = [
    "CLUSTERDOWN",
    "BUSY",
    "MISCONF",
    "LOADING",
    "EXECABORT",
    "NOAUTH",
    "TRYAGAIN",
    "ERR The table has been dropped",
];

/// Classifies a reply. A reply that is neither an answer nor a refusal, a storage fault
/// for example, is of unknown outcome.
fn outcome(reply: io::Result<Value>) -> CallOutcome {
    match reply {
        Ok(Value::Error(text)) => {
            let is_one_of = |known: &[&str]| known.iter().any(|with| text.starts_with(with));
            if is_one_of(&ANSWERS) {
                CallOutcome::Told(Value::Error(text))
            } else if is_one_of(&NOTHING_DONE) {
                CallOutcome::Refused(first_words(&text))
            } else {
                CallOutcome::Unknown(first_words(&text))
            }
        }
        Ok(value) => CallOutcome::Told(value),
        Err(error) => CallOutcome::Unknown(format!("connection: {:?}", error.kind())),
    }
}

/// The beginning of an error, under which it is counted.
fn first_words(text: &str) -> String {
    let first = text.split(' ').next().unwrap_or_default();
    if first == "ERR" { text.chars().take(40).collect() } else { first.to_owned() }
}

pub(super) struct Worker<'a> {
    number: usize,
    plan: &'a WorkloadOptions,
    shared: &'a WorkloadState,
    rng: Rng,
    client: Option<(SocketAddr, Client)>,
    written: u64,
    last_seen: BTreeMap<String, String>,
    seen: History,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        number: usize,
        plan: &'a WorkloadOptions,
        shared: &'a WorkloadState,
        rng: Rng,
    ) -> Self {
        Worker {
            number,
            plan,
            shared,
            rng,
            client: None,
            written: 0,
            last_seen: BTreeMap::new(),
            seen: History::default(),
        }
    }

    /// Sends calls until the workload stops; returns the history.
    pub(super) fn work(mut self) -> History {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if !self.connected() {
                std::thread::sleep(Duration::from_millis(20 + self.rng.below(30)));
                continue;
            }
            let kind = *self.rng.one_of(&KINDS);
            let slot = self.rng.below(self.plan.keys_per_kind) as usize;
            let key = self.shared.key(kind, slot, self.plan.calls_per_key);
            let (unique, soon) = self.unique();
            let seen = self.last_seen.get(&key).cloned().unwrap_or_default();
            match kind.next(&mut self.rng, unique, soon, &seen) {
                _ if self.shared.is_lull() => _ = self.call(&key, kind.whole()),
                NextCall::One(command) => _ = self.call(&key, command),
                NextCall::Watched(read) => {
                    let exec =
                        if self.rng.below(3) == 0 { KeyKind::idle_exec } else { KeyKind::exec };
                    self.watched(&key, kind, read, Duration::ZERO, exec);
                }
            }
            if self.rng.below(400) == 0 {
                // Reconnects to another proxy from time to time.
                self.client = None;
            }
            std::thread::sleep(Duration::from_micros(
                self.rng.below(self.plan.pause.as_micros().max(1) as u64 * 2),
            ));
        }
        self.seen
    }

    /// Holds rows under WATCH for a long time, and then executes commands that change
    /// nothing, until the workload stops; returns the history.
    pub(super) fn hold(mut self) -> History {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if !self.connected() {
                std::thread::sleep(Duration::from_millis(20 + self.rng.below(30)));
                continue;
            }
            let kind = *self.rng.one_of(&KINDS);
            let slot = self.rng.below(self.plan.keys_per_kind) as usize;
            let key = self.shared.key(kind, slot, self.plan.calls_per_key);
            let held = Duration::from_millis(self.rng.below(HELD_MS_MAX));
            self.watched(&key, kind, kind.whole(), held, KeyKind::idle_exec);
        }
        self.seen
    }

    /// A value that no other call writes, and an expiry that no other call sets.
    fn unique(&mut self) -> (String, Expiry) {
        self.written += 1;
        (
            format!("<{}.{}>", self.number, self.written),
            Expiry::Soon((self.number as u64) << 32 | self.written),
        )
    }

    fn connected(&mut self) -> bool {
        if self.client.is_none() {
            let address = *self.rng.one_of(&self.plan.proxies);
            match Client::reach(address, self.plan.timeout) {
                Ok(client) => self.client = Some((address, client)),
                Err(_) => *self.seen.errors.entry("not connected".to_owned()).or_default() += 1,
            }
        }
        self.client.is_some()
    }

    /// Sends commands; a failed connection is not used again.
    fn ask(&mut self, words: &[Vec<String>]) -> io::Result<Vec<Value>> {
        let Some((_, client)) = &mut self.client else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let replies = client.pipeline(words);
        if replies.is_err() {
            self.client = None;
        }
        replies
    }

    /// Executes and records one command; returns its answer, if one came.
    fn call(&mut self, key: &str, command: Command) -> Option<Value> {
        let words = command.words(key);
        let invoked_ns = self.shared.now_ns();
        let reply = self.ask(&[words]).map(|mut replies| replies.remove(0));
        let returned_ns = self.shared.now_ns();
        let answered = match outcome(reply) {
            CallOutcome::Told(value) => Some(command.normal(value)),
            CallOutcome::Refused(why) => {
                self.seen.refused(why);
                return None;
            }
            CallOutcome::Unknown(why) => {
                self.seen.unknown(why);
                None
            }
        };
        if let (Command::HGet(field), Some(Value::Bulk(_))) = (&command, &answered)
            && field == "a"
        {
            self.last_seen
                .insert(key.to_owned(), answered.as_ref().map(Value::text).unwrap_or_default());
        }
        let returned_ns = answered.is_some().then_some(returned_ns);
        self.seen.record(
            self.number,
            key,
            RowOp::one(command, answered.clone()),
            invoked_ns,
            returned_ns,
        );
        answered
    }

    /// WATCH, a read of the whole row, and after a pause a transaction that is correct
    /// only on that row.
    fn watched(
        &mut self,
        key: &str,
        kind: KeyKind,
        read: Command,
        held: Duration,
        exec: fn(KeyKind, &Row, String) -> Vec<Command>,
    ) {
        match outcome(
            self.ask(&[vec!["WATCH".to_owned(), key.to_owned()]])
                .map(|mut replies| replies.remove(0)),
        ) {
            CallOutcome::Told(_) => {}
            CallOutcome::Refused(why) | CallOutcome::Unknown(why) => return self.seen.refused(why),
        }
        let row = self.call(key, read).as_ref().and_then(Row::shown);
        let Some(row) = row else {
            // The watch must not affect the next transaction.
            self.client = None;
            return;
        };
        std::thread::sleep(held);
        let commands = exec(kind, &row, self.unique().0);
        let mut words = vec![vec!["MULTI".to_owned()]];
        words.extend(commands.iter().map(|command| command.words(key)));
        words.push(vec!["EXEC".to_owned()]);
        let invoked_ns = self.shared.now_ns();
        let reply = self.ask(&words).map(|mut replies| replies.pop().unwrap_or(Value::Nil));
        let returned_ns = self.shared.now_ns();
        let (replies, returned_ns) = match outcome(reply) {
            // Another client was faster.
            CallOutcome::Told(Value::Nil) => return self.seen.aborted += 1,
            CallOutcome::Told(Value::Array(replies)) => (
                Some(
                    commands
                        .iter()
                        .zip(replies)
                        .map(|(command, reply)| command.normal(reply))
                        .collect(),
                ),
                Some(returned_ns),
            ),
            CallOutcome::Told(other) => {
                self.seen.unknown(format!("EXEC said {other:?}"));
                (None, None)
            }
            CallOutcome::Refused(why) => return self.seen.refused(why),
            CallOutcome::Unknown(why) => {
                self.seen.unknown(why);
                (None, None)
            }
        };
        self.seen.record(
            self.number,
            key,
            RowOp { only_if: Some(row), commands, replies },
            invoked_ns,
            returned_ns,
        );
    }
}
