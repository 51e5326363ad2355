//! From a chunk of commands to their replies.
//!
//! A chunk is what was complete in one read. Its commands are looked up and planned one
//! after another; ops on rows are only put into the [`Batches`], so that a pipeline of
//! any length costs few calls. What must not wait for them or be waited for (PING,
//! SELECT) is answered on the spot; everything else the session does makes the chunk
//! carry out first what came before ([`Session::flush`]).
//!
//! # Memory
//! Replies are bounded as they are made: when [`Session::replies_max`] bytes of them
//! wait, nothing more is carried out, and what of a large read has not been asked for is
//! [owed](Session::owes) until the client has read. So a chunk holds at most that, and
//! one command's answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cluster::{Boxed, CallError, Table, blocking};
use commands::args::Words;
use commands::plan::ClientCall;
use commands::table::{flags, lookup};
use commands::{Args, Command, Plan, Planned, Reply, Rows, Session as Call, Wording};
use row::answer_size::AnswerSize;
use row::edits::Edits;
use row::op::{Answer, Op};
use row::view::{Fault, Rules, Stamp, Tx};
use row::{EvalError, Family, View};
use smallvec::SmallVec;

use crate::client::account::Part;
use crate::resp::{self, Extent};
use crate::router::{self, Batches, Outcome};
use crate::server;
use crate::session::{Session, Silence};
use crate::settings::Settings;
use crate::stats::{Index, Stats};
use crate::{lookups, waits, words};

/// At most so many commands of one slow chunk go to the slow log.
const SLOW_ENTRIES_MAX: usize = 16;

/// Nobody knows how large values are before they are read. So of the ops of a chunk whose
/// answers may be large, few are carried out first, and twice as many at a time as long
/// as their replies are small. (With writes among them, more: those cost a log entry each
/// time.)
const LARGE_OPS_FIRST: usize = 16;
const LARGE_OPS_FIRST_WITH_WRITES: usize = 64;
const DOUBLINGS_MAX: u32 = 8;
/// What an op takes besides its words, with what becomes of it, about.
const PLANNED_BYTES: usize = size_of::<Op>() + size_of::<Outcome>();
/// What counts as small for so many replies.
const SMALL_BYTES: usize = 1 << 20;

/// A client's commands are carried out for so long before others are looked at.
const SLICE: Duration = Duration::from_millis(1);
const SLICE_NS: u64 = 1_000_000;
/// The clock is looked at once in so many commands.
const SLICE_COMMANDS: usize = 8;
/// Plans of commands of so many words, or of so many bytes where each costs time, are
/// made while others are served.
const LONG_PLAN_WORDS: usize = 1000;
const LONG_PLAN_BYTES: usize = 256 << 10;

/// A command as found in the table.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub(crate) command: &'static Command,
    pub(crate) index: Option<Index>,
}

/// The commands of one chunk whose replies have not been written.
pub(crate) struct Chunk {
    pub(crate) batches: Batches,
    entries: VecDeque<Entry>,
    /// Some of `entries` have not been answered, as the client is to read first.
    is_owed: bool,
    /// What the session does itself once the replies to `entries` are written: these are
    /// owed.
    stalled: Option<(Next, Extent)>,
    /// What the replies in `entries` take, and what the ops in `batches` do, bytes.
    reply_bytes: usize,
    planned_bytes: usize,
    started: Instant,
    /// Since when others of this thread have waited, and for how many commands the clock
    /// was not looked at.
    slice: Instant,
    slice_commands: usize,
    counts: SmallVec<[(Index, u64); 8]>,
    last: Option<Known>,
    /// Ops in the batches whose answers may be large, and whether there are writes, too.
    large_ops: usize,
    writes: bool,
    /// How often the ops that may be carried out at once have doubled.
    doublings: u32,
    /// There was no table of this name when it was asked for. That holds for all commands
    /// of the chunk, which had come by then, up to one that does something.
    pub(crate) absent: Option<Arc<str>>,
    /// Whether some table is there could not be learnt, or none could be made: the rest
    /// of the chunk is refused without waiting as long again.
    pub(crate) unknown: Option<CallError>,
    pub(crate) unmade: Option<CallError>,
}

impl Default for Chunk {
    fn default() -> Self {
        Chunk {
            batches: Batches::default(),
            entries: VecDeque::new(),
            is_owed: false,
            stalled: None,
            reply_bytes: 0,
            planned_bytes: 0,
            started: Instant::now(),
            slice: Instant::now(),
            slice_commands: 0,
            counts: SmallVec::new(),
            last: None,
            large_ops: 0,
            writes: false,
            doublings: 0,
            absent: None,
            unknown: None,
            unmade: None,
        }
    }
}

impl Chunk {
    fn note(&mut self, op: &Op) {
        self.planned_bytes += PLANNED_BYTES;
        self.large_ops += usize::from(op.answer_size() == AnswerSize::Large);
        self.writes |= op.is_write();
    }

    /// What is being made of the commands: plans, answers, replies.
    fn made_bytes(&self) -> usize {
        self.planned_bytes + self.reply_bytes + self.batches.held_bytes()
    }

    /// So many large replies may come that they are to be written before more is carried
    /// out, or so many partitions are asked.
    fn is_full(&self) -> bool {
        if self.batches.is_full() {
            return true;
        }
        let first = if self.writes { LARGE_OPS_FIRST_WITH_WRITES } else { LARGE_OPS_FIRST };
        self.large_ops >= first << self.doublings
    }
}

struct Entry {
    known: Option<Known>,
    extent: Extent,
    silent: bool,
    state: State,
}

enum State {
    Ready(Reply),
    /// Waits for its ops, which are in these lines of the batches, and count as looking
    /// keys up or not.
    Waiting(Wording, SmallVec<[u16; 4]>, bool),
    /// Is refused with this, as its answers are too large; the outcomes of ops in these
    /// lines are forgotten as they come.
    Refused(Reply, SmallVec<[u16; 4]>),
}

/// What is left to do for a command that could not be finished on the spot.
enum Next {
    Done,
    /// Nothing: CLIENT PAUSE holds it back.
    Pause,
    /// Ops on a table that this proxy has not heard of.
    NoTable(Rows, Known),
    /// The session's own.
    Call(Call, Known),
}

impl Session {
    /// Carries out the commands that lie at `extents` in `bytes`, and appends their
    /// replies. How many it took: all, unless CLIENT PAUSE holds one back
    /// ([`Session::held`]), the replies are so large that the client should read them
    /// first, or the connection is to end. While replies are [owed](Session::owes), what
    /// it is given next begins where it stopped, in the same bytes.
    pub(crate) async fn run(
        &mut self,
        bytes: &Bytes,
        extents: &[Extent],
        out: &mut BytesMut,
    ) -> usize {
        self.chunk.started = Instant::now();
        self.chunk.slice = self.chunk.started;
        self.client.work();
        self.chunk.doublings = 0;
        (self.chunk.absent, self.chunk.unknown, self.chunk.unmade) = (None, None, None);
        if self.owes() {
            self.flush(bytes, out).await;
            if let Some((next, extent)) = self.chunk.stalled.take_if(|_| !self.chunk.is_owed) {
                self.finish(next, extent, bytes, out).await;
            }
        }
        let mut taken = 0;
        for &extent in extents {
            if self.closing || self.owes() || self.client.is_killed() {
                break;
            }
            let is_much = out.len() + self.chunk.reply_bytes >= self.replies_max;
            if self.chunk.is_full() || is_much {
                let before = out.len();
                self.flush(bytes, out).await;
                if self.owes() || out.len() >= self.replies_max {
                    break;
                }
                let is_small = out.len() - before <= SMALL_BYTES;
                self.chunk.doublings =
                    if is_small { (self.chunk.doublings + 1).min(DOUBLINGS_MAX) } else { 0 };
            }
            self.chunk.slice_commands += 1;
            if self.chunk.slice_commands >= SLICE_COMMANDS {
                self.share().await;
            }
            let words = resp::words(bytes, extent);
            match self.begin(words, extent) {
                Next::Done => {}
                Next::Pause => break,
                next => self.finish(next, extent, bytes, out).await,
            }
            taken += 1;
        }
        if !self.owes() {
            self.flush(bytes, out).await;
        }
        self.hold(Part::Transaction, self.transaction.bytes());
        // When the last of its commands was done.
        self.client.touch(self.chunk.started);
        taken
    }

    /// Commands have been taken whose replies are still to be made, once the client has
    /// read those before.
    pub(crate) fn owes(&self) -> bool {
        self.chunk.is_owed || self.chunk.stalled.is_some()
    }

    /// As much of a command as can be done without waiting.
    fn begin(&mut self, words: Words, extent: Extent) -> Next {
        let known = match lookup(&words) {
            Ok(command) => Known { command, index: Index::of(command) },
            Err((Some(command), reply)) => {
                return self.reject(
                    Some(Known { command, index: Index::of(command) }),
                    extent,
                    reply,
                );
            }
            Err((None, reply)) => {
                if words.first().is_some_and(|word| {
                    word.eq_ignore_ascii_case(b"post") || word.eq_ignore_ascii_case(b"host:")
                }) {
                    tracing::warn!(client = %self.client.endpoint.address, "closed a connection that speaks HTTP: cross protocol scripting?");
                    self.closing = true;
                    return Next::Done;
                }
                return self.reject(None, extent, reply);
            }
        };
        if !self.authenticated && self.is_stranger() && !known.command.is(flags::NO_AUTH) {
            return self.reject(Some(known), extent, Reply::error(words::NOAUTH));
        }
        let writes = known.command.is(flags::WRITE)
            || (known.command.name == "exec" && self.transaction.writes());
        if self.proxy.clients.paused_until(writes).is_some() && !self.proxy.shutdown.is_cancelled()
        {
            self.held = Some(writes);
            return Next::Pause;
        }
        self.plan(words, known, extent)
    }

    /// From words to ops in the batches, a reply, or what is left to do.
    fn plan(&mut self, words: Words, known: Known, extent: Extent) -> Next {
        let shown = (self.proxy.monitors.any() && crate::monitor::shows(known.command))
            .then(|| words.clone());
        let is_queued = self.transaction.is_open()
            && !matches!(
                known.command.name,
                "exec" | "discard" | "multi" | "watch" | "quit" | "reset"
            );
        if is_queued {
            let bytes_max = self.proxy.settings.load().query_max();
            let reply = self.transaction.queue(known, &words, bytes_max);
            self.hold(Part::Transaction, self.transaction.bytes());
            return self.ready(known, extent, reply);
        }
        let seed = self.next_seed();
        let planned = planned(known.command, words, extent.end - extent.start, seed);
        let next = match planned {
            Err(reply) => self.reject(Some(known), extent, reply),
            Ok(Plan::Reply(reply)) => {
                // It may be documentation of all commands.
                self.chunk.slice_commands += SLICE_COMMANDS;
                self.ready(known, extent, reply)
            }
            Ok(Plan::Rows(rows)) => self.place(rows, known, extent),
            Ok(Plan::Session(call)) => self.answer_at_once(call, known, extent),
        };
        // What is left to do is shown when it has been done; SELECT with the table that
        // is selected then.
        if let Some(words) = shown.filter(|_| !matches!(next, Next::Call(..))) {
            self.show(&words);
        }
        next
    }

    /// Shows a command that has run to those who watch.
    pub(crate) fn show(&self, words: &[Bytes]) {
        let bytes_max = self.proxy.settings.load().output_max().bytes;
        self.proxy.monitors.feed(&self.client, self.client.database(), words, bytes_max);
    }

    /// Puts ops into the batches.
    fn place(&mut self, rows: Rows, known: Known, extent: Extent) -> Next {
        self.table();
        self.place_on_table(rows, known, extent)
    }

    /// As [`Session::place`], on the table that was looked up last.
    fn place_on_table(&mut self, rows: Rows, known: Known, extent: Extent) -> Next {
        if known.command.is(flags::WRITE) {
            let bytes_max = self.proxy.settings.load().write_max();
            if rows.ops.iter().map(Op::bytes).sum::<usize>() > bytes_max.bytes + 64 * 1024 {
                let line = format!("ERR request is larger than {bytes_max}");
                return self.reject(Some(known), extent, Reply::error(line));
            }
        }
        let Some(table) = self.table.as_deref() else { return Next::NoTable(rows, known) };
        rows.ops.iter().for_each(|op| self.chunk.note(op));
        let is_lookup = rows.ops.first().is_some_and(lookups::is_lookup);
        let mut lines = SmallVec::new();
        if rows.everywhere {
            for partition in router::partitions(table) {
                lines.extend(
                    rows.ops.iter().map(|op| self.chunk.batches.add(partition, op.clone(), false)),
                );
            }
        } else if table.partitions <= 1 {
            for (at, op) in rows.ops.into_iter().enumerate() {
                lines.push(self.chunk.batches.add(router::partition_of(table, b""), op, at > 0));
            }
        } else {
            let Some(places) = router::places(table, &rows) else {
                return self.reject(Some(known), extent, Reply::error(words::CROSSSLOT));
            };
            for (at, (op, place)) in rows.ops.into_iter().zip(&places).enumerate() {
                let joins = places[..at].contains(place);
                lines.push(self.chunk.batches.add(*place, op, joins));
            }
        }
        let silent = self.is_silent();
        self.chunk.entries.push_back(Entry {
            known: Some(known),
            extent,
            silent,
            state: State::Waiting(rows.wording, lines, is_lookup),
        });
        Next::Done
    }

    /// Answers what needs nobody, neither rows nor time.
    fn answer_at_once(&mut self, call: Call, known: Known, extent: Extent) -> Next {
        let reply = match call {
            Call::Ping(None) => Reply::Status("PONG".into()),
            Call::Ping(Some(word)) | Call::Echo(word) => Reply::Bulk(word),
            Call::Select(word) => match self.named_at_once(&word) {
                Some(named) => self.select(named),
                None => return Next::Call(Call::Select(word), known),
            },
            Call::Multi => self.transaction.open(),
            Call::Discard => self.transaction.discard(),
            Call::Unwatch => {
                self.transaction.unwatch();
                Reply::OK
            }
            Call::Client(
                call @ (ClientCall::Id
                | ClientCall::GetName
                | ClientCall::SetName(_)
                | ClientCall::SetInfo { .. }),
            ) => self.proxy.clients.call(&self.client, call).0,
            call => return Next::Call(call, known),
        };
        self.ready(known, extent, reply)
    }

    /// The rest of a command, after everything that came before it.
    async fn finish(&mut self, next: Next, extent: Extent, bytes: &Bytes, out: &mut BytesMut) {
        self.flush(bytes, out).await;
        if self.chunk.is_owed {
            self.chunk.stalled = Some((next, extent));
            return;
        }
        match next {
            Next::Done | Next::Pause => {}
            Next::NoTable(rows, known) => {
                let placed: Boxed<'_, Next> = Box::pin(self.without_table(rows, known, extent));
                if let Next::NoTable(..) = placed.await {
                    self.reject(Some(known), extent, words::call_error(&CallError::NoTable));
                }
            }
            Next::Call(call, known) => {
                self.client.shown.lock().last_command = Some(known.command.name);
                let is_reply_mode = matches!(call, Call::Client(ClientCall::Reply(_)));
                // What operators ask for may be long lists, and so may what they ask
                // with.
                let may_be_long = known.command.is(flags::ADMIN) || extent.words >= LONG_PLAN_WORDS;
                let reply = match may_be_long {
                    true => blocking::polled_in_place(self.call(call)).await,
                    false => self.call(call).await,
                };
                if self.proxy.monitors.any() && crate::monitor::shows(known.command) {
                    self.show(&resp::words(bytes, extent));
                }
                self.share().await;
                self.chunk.absent = None;
                if let Some(reply) = reply {
                    // CLIENT REPLY ON answers; OFF and SKIP leave out their own reply,
                    // too.
                    let silent = if is_reply_mode {
                        self.silence != Silence::None
                    } else {
                        self.is_silent()
                    };
                    self.chunk.entries.push_back(Entry {
                        known: Some(known),
                        extent,
                        silent,
                        state: State::Ready(reply),
                    });
                }
                // What follows may depend on it: protocol version, authentication,
                // silence.
                self.flush(bytes, out).await;
            }
        }
    }

    /// What the session does itself, when everything before has been carried out. `None`:
    /// no reply. Boxed, as it is rare and large: the common way stays small. And EXEC
    /// comes back here for its commands.
    pub(crate) fn call(&mut self, call: Call) -> Boxed<'_, Option<Reply>> {
        Box::pin(self.call_unboxed(call))
    }

    async fn call_unboxed(&mut self, call: Call) -> Option<Reply> {
        Some(match call {
            Call::Ping(None) => Reply::Status("PONG".into()),
            Call::Ping(Some(word)) | Call::Echo(word) => Reply::Bulk(word),
            Call::Select(word) => match self.named(&word).await {
                Ok(named) => self.select(named),
                Err(reply) => reply,
            },
            Call::Quit => {
                self.closing = true;
                Reply::OK
            }
            Call::Reset => self.reset(),
            Call::Hello(hello) => self.hello(hello),
            Call::Auth { user, password } => self.authenticate(user.as_deref(), &password),
            Call::Client(call) => {
                let (reply, effect) = self.proxy.clients.call(&self.client, call);
                self.follow(effect);
                reply
            }
            Call::Exec => self.exec().await,
            Call::Watch(keys) => self.watch(keys).await,
            Call::Multi => self.transaction.open(),
            Call::Discard => self.transaction.discard(),
            Call::Unwatch => {
                self.transaction.unwatch();
                Reply::OK
            }
            Call::Keys { glob } => self.keys(glob).await,
            Call::Scan { cursor, count, glob, kind, none } => {
                self.scan(cursor, count, glob, kind, none).await
            }
            Call::RandomKey => self.random_key().await,
            Call::Move { key, table } => self.move_row(key, &table).await,
            Call::CopyTo { from, to, table, replace } => {
                self.copy_row(from, to, &table, replace).await
            }
            Call::Wait { .. } => self.wait_for_copies(),
            Call::WaitAof { local, replicas, timeout_ms } => {
                self.wait_for_disks(local, replicas, waits::deadline(timeout_ms)).await
            }
            Call::FlushAll => {
                let reply = server::flush_all(&self.proxy).await;
                let tables = self.proxy.catalogue.tables();
                tables
                    .iter()
                    .flat_map(|table| router::partitions(table))
                    .for_each(|partition| self.written.note(partition));
                reply
            }
            other => match (Box::pin(server::call(&self.proxy, &self.client, other))
                as Boxed<'_, server::Outcome>)
                .await
            {
                server::Outcome::Reply(reply) => reply,
                server::Outcome::Close => {
                    self.closing = true;
                    return None;
                }
                server::Outcome::NotMine => commands::words::no_answer(),
            },
        })
    }

    /// Ops on a table that this proxy has not heard of. If it is not there, they find
    /// nothing, and only one that would write something creates it.
    async fn without_table(&mut self, rows: Rows, known: Known, extent: Extent) -> Next {
        let found = match on_nothing(&rows.ops) {
            Ok(Some(outcomes)) => match self.find_table().await {
                Ok(None) => {
                    if rows.ops.first().is_some_and(lookups::is_lookup) {
                        lookups::count(&self.proxy.stats, &outcomes);
                    }
                    let reply = rows.wording.reply(outcomes);
                    return self.ready(known, extent, reply);
                }
                found => found.map(drop),
            },
            Ok(None) => {
                // What would be refused makes no table. Mostly nobody has to be asked.
                let to_be = if fits(&router::finest_table(), &rows) {
                    Ok(None)
                } else {
                    self.table_to_be().await
                };
                match to_be {
                    Ok(Some(table)) if !fits(&table, &rows) => Err(Reply::error(words::CROSSSLOT)),
                    Ok(_) => self.ensure_table().await.map(drop),
                    Err(reply) => Err(reply),
                }
            }
            Err(fault) => Err(words::call_error(&CallError::Fault(fault.0))),
        };
        match found {
            Ok(()) => self.place_on_table(rows, known, extent),
            Err(reply) => self.reject(Some(known), extent, reply),
        }
    }

    /// Lets others have the thread, if this client has had it for long enough.
    pub(crate) async fn share(&mut self) {
        self.chunk.slice_commands = 0;
        if self.chunk.slice.elapsed() >= SLICE {
            tokio::task::yield_now().await;
            self.chunk.slice = Instant::now();
        }
    }

    /// Carries out all ops so far and appends all replies so far; or, where answers are
    /// large, as many as are enough for now: the others are [owed](Session::owes).
    pub(crate) async fn flush(&mut self, bytes: &Bytes, out: &mut BytesMut) {
        self.chunk.is_owed = false;
        while !self.chunk.entries.is_empty() {
            if !self.chunk.batches.is_done() {
                self.hold(Part::Answers, self.chunk.made_bytes());
                let deadline = self.chunk.started
                    + Duration::from_millis(self.proxy.settings.load().call_deadline_ms);
                self.chunk.batches.written().for_each(|partition| self.written.note(partition));
                self.chunk.batches.carry_out(&self.proxy, deadline).await;
                self.chunk.absent = None;
            }
            self.answer(bytes, out).await;
            self.hold(Part::Answers, self.chunk.made_bytes());
            if !self.chunk.entries.is_empty()
                && (out.len() >= self.replies_max || self.client.is_killed())
            {
                self.chunk.is_owed = true;
                return;
            }
        }
        self.chunk.batches.clear();
        (self.chunk.large_ops, self.chunk.writes) = (0, false);
        (self.chunk.reply_bytes, self.chunk.planned_bytes) = (0, 0);
        self.hold(Part::Answers, 0);
    }

    /// Appends the replies whose answers are there, in order, up to one that is not; and
    /// no more than the client is to read first.
    async fn answer(&mut self, bytes: &Bytes, out: &mut BytesMut) {
        let settings = self.proxy.settings.load_full();
        let bytes_max = settings.answer_max();
        let now = Instant::now();
        self.chunk.slice = now;
        let took = now.saturating_duration_since(self.chunk.started);
        let is_noted = crate::slowlog::is_slow(took, settings.slowlog_slower_than_us)
            || settings.latency_threshold_ms > 0;
        let (mut commands, mut noted, mut worked_ns) = (0, Vec::new(), 0);
        while let Some(entry) = self.chunk.entries.front_mut() {
            let batches = &mut self.chunk.batches;
            if let State::Waiting(_, lines, _) = &entry.state
                && !batches.has(lines)
                && batches.held_bytes() > bytes_max.bytes
            {
                entry.state = State::Refused(words::answer_too_large(bytes_max), lines.clone());
            }
            let is_there = match &mut entry.state {
                State::Ready(_) => true,
                State::Waiting(_, lines, _) => batches.has(lines),
                State::Refused(_, lines) => {
                    *lines = batches.forget(lines);
                    lines.is_empty()
                }
            };
            if !is_there || (commands > 0 && out.len() >= self.replies_max) {
                break;
            }
            let Some(Entry { known, extent, silent, state }) = self.chunk.entries.pop_front()
            else {
                break;
            };
            let mut reply = match state {
                State::Ready(reply) | State::Refused(reply, _) => reply,
                State::Waiting(wording, lines, is_lookup) => {
                    let writes = known.is_some_and(|known| known.command.is(flags::WRITE));
                    let counted = is_lookup.then_some(&self.proxy.stats);
                    worded(&mut self.chunk.batches, wording, &lines, writes, counted).await
                }
            };
            if reply.bytes() > bytes_max.bytes {
                reply = words::answer_too_large(bytes_max);
            }
            let encoding_ns = reply.encoding_ns(blocking::LONG_NS);
            worked_ns += ENTRY_NS + encoding_ns;
            if worked_ns >= SLICE_NS {
                tokio::task::yield_now().await;
                worked_ns = 0;
            }
            if let (Some(Known { index: Some(index), .. }), Reply::Error(line)) = (known, &reply) {
                self.proxy.stats.failed(index, line);
            }
            let encode = || {
                if !silent {
                    resp::encode(&reply, self.protocol, out);
                }
                // To give back a million elements takes time as well.
                drop(reply);
            };
            if encoding_ns >= blocking::LONG_NS {
                blocking::in_turn(encode).await
            } else {
                encode()
            }
            if let Some(Known { index: Some(index), .. }) = known {
                count(&mut self.chunk.counts, index);
            }
            if is_noted {
                noted.push((known, extent));
            }
            self.chunk.last = known.or(self.chunk.last);
            commands += 1;
        }
        if is_noted {
            self.note_slow(&noted, took, bytes, &settings);
        }
        for (index, calls) in self.chunk.counts.drain(..) {
            self.proxy.stats.record(index, calls, took, commands);
        }
        self.chunk.started = now;
    }

    fn note_slow(
        &self,
        entries: &[(Option<Known>, Extent)],
        took: Duration,
        bytes: &Bytes,
        settings: &Settings,
    ) {
        // Commands that came together are as slow as the slowest of them, which is no
        // fast one if there is another.
        let is_fast = |entry: &(Option<Known>, Extent)| {
            entry.0.is_none_or(|known| known.command.is(flags::FAST))
        };
        if crate::slowlog::is_slow(took, settings.slowlog_slower_than_us) {
            let name = self.client.name();
            let all_fast = entries.iter().all(is_fast);
            let is_noted = |entry: &&(Option<Known>, Extent)| {
                (all_fast || !is_fast(entry))
                    && entry.0.is_some_and(|known| !known.command.is(flags::SKIP_SLOWLOG))
            };
            for (_, extent) in entries.iter().filter(is_noted).take(SLOW_ENTRIES_MAX) {
                let words = resp::words(bytes, *extent);
                self.proxy.slowlog.add(
                    &words,
                    took,
                    &self.client.endpoint.address,
                    &name,
                    settings.slowlog_len_max,
                );
            }
        }
        if settings.latency_threshold_ms > 0 {
            let event = if entries.iter().all(is_fast) { "fast-command" } else { "command" };
            self.proxy.latency.add(event, took, settings.latency_threshold_ms);
        }
    }

    /// The name of the last command carried out, for CLIENT LIST.
    pub(crate) fn last_command(&self) -> Option<&'static str> {
        self.chunk.last.map(|known| known.command.name)
    }

    fn is_silent(&mut self) -> bool {
        match self.silence {
            Silence::None => false,
            Silence::All => true,
            Silence::Next => {
                self.silence = Silence::None;
                true
            }
        }
    }

    fn ready(&mut self, known: Known, extent: Extent, reply: Reply) -> Next {
        let silent = self.is_silent();
        self.chunk.reply_bytes += reply.bytes();
        self.chunk.entries.push_back(Entry {
            known: Some(known),
            extent,
            silent,
            state: State::Ready(reply),
        });
        Next::Done
    }

    /// Answers with an error before anything ran; a transaction that is being queued is
    /// spoilt by it.
    fn reject(&mut self, known: Option<Known>, extent: Extent, mut reply: Reply) -> Next {
        self.transaction.spoil();
        if let (Some("exec"), Reply::Error(line)) = (known.map(|known| known.command.name), &reply)
        {
            // An EXEC that cannot be carried out ends the transaction all the same.
            let why = line.strip_prefix("ERR ").unwrap_or(line);
            reply = Reply::error(format!("EXECABORT Transaction discarded because of: {why}"));
            self.transaction.discard();
        }
        if let Reply::Error(line) = &reply {
            self.proxy.stats.rejected(known.and_then(|known| known.index), line);
        }
        let silent = self.is_silent();
        self.chunk.reply_bytes += reply.bytes();
        self.chunk.entries.push_back(Entry {
            known: None,
            extent,
            silent,
            state: State::Ready(reply),
        });
        Next::Done
    }
}

fn count(counts: &mut SmallVec<[(Index, u64); 8]>, index: Index) {
    match counts.iter_mut().find(|(other, _)| *other == index) {
        Some((_, calls)) => *calls += 1,
        None => counts.push((index, 1)),
    }
}

/// A command's plan; of many words, or of many bytes where each costs time, it is made
/// while others are served.
pub(crate) fn planned(command: &'static Command, words: Words, bytes: usize, seed: u64) -> Planned {
    let is_long =
        words.len() >= LONG_PLAN_WORDS || command.is(flags::LONG_PLAN) && bytes >= LONG_PLAN_BYTES;
    let name_words = 1 + usize::from(command.parts().is_some());
    let plan = move || (command.plan)(Args::new(words, name_words, seed));
    if is_long { blocking::in_place(plan) } else { plan() }
}

/// What a command takes beside its own work, about.
const ENTRY_NS: u64 = 500;

/// The reply to outcomes; what takes long is done while others are served.
pub(crate) async fn reply_to(wording: Wording, outcomes: Vec<Outcome>) -> Reply {
    match wording.work_ns(&outcomes) >= blocking::LONG_NS {
        true => blocking::in_turn(|| wording.reply(outcomes)).await,
        false => wording.reply(outcomes),
    }
}

/// The reply to what became of ops in these lines. A write that was done in some
/// partitions only must not look as if nothing was done. If they are look-ups, they are
/// `counted`.
async fn worded(
    batches: &mut Batches,
    wording: Wording,
    lines: &[u16],
    writes: bool,
    counted: Option<&Stats>,
) -> Reply {
    let count = |outcomes: &[Outcome]| {
        counted.into_iter().for_each(|stats| lookups::count(stats, outcomes))
    };
    if let [line] = lines {
        let outcome = match batches.take(*line) {
            Ok(outcome) => outcome,
            Err(error) => return words::call_error(&error),
        };
        count(std::slice::from_ref(&outcome));
        if wording.work_ns(std::slice::from_ref(&outcome)) < blocking::LONG_NS {
            return wording.reply([outcome]);
        }
        return blocking::in_turn(|| wording.reply([outcome])).await;
    }
    let mut outcomes = Vec::with_capacity(lines.len());
    let mut failed = None;
    for &line in lines {
        match batches.take(line) {
            Ok(outcome) => outcomes.push(outcome),
            // An unknown outcome is the one to be told: the others say that nothing was
            // done.
            Err(error) if failed.is_none() || matches!(error, CallError::Unknown(_)) => {
                failed = Some(error)
            }
            Err(_) => {}
        }
    }
    match failed {
        None => {
            count(&outcomes);
            reply_to(wording, outcomes).await
        }
        Some(error) if writes && !outcomes.is_empty() => words::partly_done(&error),
        Some(error) => words::call_error(&error),
    }
}

/// Whether a command's ops lie where they must in a table.
fn fits(table: &Table, rows: &Rows) -> bool {
    rows.everywhere || router::places(table, rows).is_some()
}

/// What ops say where there is no row; `None` when one of them would write.
pub(crate) fn on_nothing(ops: &[Op]) -> Result<Option<Vec<Outcome>>, Fault> {
    let mut edits = Edits::default();
    let mut outcomes = Vec::with_capacity(ops.len());
    let rules = Rules::default();
    for op in ops {
        if matches!(op, Op::Clear) {
            outcomes.push(Ok(Answer::Ok));
            continue;
        }
        let stamp = Stamp { now_ms: crate::now_ms(), timetag: 0 };
        let mut tx = Tx { view: &Nothing, edits: &mut edits, stamp, rules };
        match row::eval(op, &mut tx) {
            Ok(answer) => outcomes.push(Ok(answer)),
            Err(EvalError::Refused(refusal)) => outcomes.push(Err(refusal)),
            Err(EvalError::Fault(fault)) => return Err(fault),
        }
    }
    Ok(edits.is_empty().then_some(outcomes))
}

/// A partition without rows.
struct Nothing;

impl View for Nothing {
    fn get(&self, _: Family, _: &[u8]) -> Result<Option<Bytes>, Fault> {
        Ok(None)
    }

    fn range(
        &self,
        _: Family,
        _: &[u8],
        _: &[u8],
        _: bool,
        _: &mut dyn FnMut(&[u8], &[u8]) -> std::ops::ControlFlow<()>,
    ) -> Result<(), Fault> {
        Ok(())
    }
}
