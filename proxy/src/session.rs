//! The state that a connection keeps between commands: authentication, selected table,
//! transaction, reply mode.
//!
//! Its main loop, [`Session::run`], is here; the other methods of [`Session`] are in
//! `pipeline`, `execute`, `observe`, `missing_table`, `rounds`, and in the files of the
//! families of local commands ([`crate::local`]). These use this module, and it uses only
//! the parts of them that know no session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use cluster::Table;
use commands::Reply;
use row::SplitMix64;

use crate::buffers::OUTPUT_HIGH;
use crate::client::Client;
use crate::client::memory_usage::{MemoryUse, UsageTracker};
use crate::pipeline::chunk::{Chunk, NextStep, SLICE_COMMANDS};
use crate::resp::{self, ChunkBytes, CommandSpan, Protocol};
use crate::transactions::queue::Transaction;
use crate::waits::written::WrittenPartitions;
use crate::{Proxy, errors, router};

/// The table that is selected at first.
pub(crate) const FIRST_TABLE: &str = "db0";

/// The state of one connection.
pub(crate) struct Session {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) client: Arc<Client>,
    pub(crate) protocol: Protocol,
    pub(crate) authenticated: bool,
    pub(crate) transaction: Transaction,
    /// No more commands are executed; the connection closes once the replies so far are
    /// written.
    pub(crate) closing: bool,
    pub(crate) silence: ReplySuppression,
    /// CLIENT PAUSE holds the next command back; `true` if the command may write.
    pub(crate) held: Option<bool>,
    pub(crate) table_name: Arc<str>,
    pub(crate) table: Option<Arc<Table>>,
    catalogue_version: Option<u64>,
    seeds: SplitMix64,
    pub(crate) chunk: Chunk,
    /// Memory kept for the client.
    pub(crate) memory_usage: UsageTracker,
    /// With this many bytes of replies pending, execution stops until the client has
    /// read.
    pub(crate) replies_max: usize,
    pub(crate) written: WrittenPartitions,
}

/// Reply suppression by CLIENT REPLY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplySuppression {
    /// Replies are sent.
    None,
    /// The next command's reply is suppressed.
    NextReply,
    /// All replies are suppressed.
    All,
}

/// The table that an argument refers to.
pub(crate) enum TableRef {
    /// A numbered table, existing or not, or an existing named table.
    Table(Arc<str>),
    /// No table; the error reply.
    Unknown(Reply),
}

/// An argument that refers to a table, parsed without a look-up.
enum TableArg<'a> {
    /// `17`, or `db17`.
    Number(u32),
    Name(&'a str),
    /// Cannot be the name or number of a table.
    Invalid(Reply),
}

fn meaning(arg: &[u8]) -> TableArg<'_> {
    if let Some(number) = commands::args::integer(arg) {
        return u32::try_from(number)
            .map_or_else(|_| TableArg::Invalid(no_database(arg)), TableArg::Number);
    }
    match std::str::from_utf8(arg) {
        Ok(name) => cluster::database(name).map_or(TableArg::Name(name), TableArg::Number),
        Err(_) => TableArg::Invalid(errors::no_table(arg)),
    }
}

/// The error for a number or numbered name without a table.
fn no_database(arg: &[u8]) -> Reply {
    match commands::args::integer(arg) {
        Some(_) => Reply::error(errors::NO_DATABASE),
        None => errors::no_table(arg),
    }
}

impl Session {
    pub(crate) fn new(proxy: Arc<Proxy>, client: Arc<Client>) -> Session {
        let authenticated = proxy.settings.load().password.is_none();
        Session {
            memory_usage: UsageTracker::new(client.clone()),
            replies_max: OUTPUT_HIGH,
            proxy,
            client,
            protocol: Protocol::default(),
            authenticated,
            transaction: Transaction::default(),
            closing: false,
            silence: ReplySuppression::None,
            held: None,
            table_name: FIRST_TABLE.into(),
            table: None,
            catalogue_version: None,
            seeds: SplitMix64::new(rand::random()),
            chunk: Chunk::default(),
            written: WrittenPartitions::default(),
        }
    }

    /// Executes the commands at `spans` in `bytes` and appends their replies. Returns the
    /// number of commands taken: all, unless CLIENT PAUSE holds one back
    /// ([`Session::held`]), the client must read large replies first, or the connection
    /// ends. While replies are [owed](Session::owes_replies), the next call continues in
    /// the same bytes where this one stopped.
    pub(crate) async fn run(
        &mut self,
        bytes: ChunkBytes<'_>,
        spans: &[CommandSpan],
        out: &mut BytesMut,
    ) -> usize {
        self.chunk.start();
        self.client.work();
        if self.owes_replies() {
            self.flush(bytes, out).await;
            if let Some((next, span)) = self.chunk.stalled.take_if(|_| !self.chunk.is_owed) {
                self.complete(next, span, bytes, out).await;
            }
        }
        let mut taken = 0;
        for &span in spans {
            if self.closing || self.owes_replies() || self.client.is_killed() {
                break;
            }
            let is_much = out.len() + self.chunk.reply_bytes >= self.replies_max;
            if self.chunk.is_full() || is_much {
                let before = out.len();
                self.flush(bytes, out).await;
                if self.owes_replies() || out.len() >= self.replies_max {
                    break;
                }
                self.chunk.note_replies(out.len() - before);
            }
            self.chunk.slice_commands += 1;
            if self.chunk.slice_commands >= SLICE_COMMANDS {
                self.yield_if_due().await;
            }
            let argv = resp::argv(bytes, span);
            match self.begin(argv, span) {
                NextStep::Done => {}
                NextStep::Pause => break,
                next => self.complete(next, span, bytes, out).await,
            }
            taken += 1;
        }
        if !self.owes_replies() {
            self.flush(bytes, out).await;
        }
        self.track_memory(MemoryUse::Transaction, self.transaction.bytes());
        // The time of the last command.
        self.client.touch(self.chunk.started);
        taken
    }

    /// The selected table, if this proxy knows it. If not, it may still exist;
    /// [`Session::find_table`] finds out.
    pub(crate) fn table(&mut self) -> Option<&Arc<Table>> {
        let version = self.proxy.catalogue.version();
        if self.catalogue_version != Some(version) {
            self.table = self.proxy.catalogue.table(&self.table_name);
            self.catalogue_version = Some(version);
        }
        self.table.as_ref()
    }

    /// The selected table, also if this proxy does not know it yet; `None`: it does not
    /// exist and is created by its first write. Another client may have created it a
    /// moment ago through another proxy, so the catalogue's keeper is asked.
    ///
    /// # Errors
    /// A named table was dropped, or the catalogue cannot be reached.
    pub(crate) async fn find_table(&mut self) -> Result<Option<Arc<Table>>, Reply> {
        if let Some(table) = self.table() {
            return Ok(Some(table.clone()));
        }
        let name = self.table_name.clone();
        if self.chunk.absent.as_ref() != Some(&name) {
            if let Some(table) = self.find_named(&name).await? {
                self.found(&table);
                return Ok(Some(table));
            }
            self.chunk.absent = Some(name.clone());
        }
        if router::is_created_on_write(&self.proxy, &name) {
            Ok(None)
        } else {
            Err(errors::no_table(name.as_bytes()))
        }
    }

    /// The table with this name, also if this proxy does not know it yet.
    ///
    /// # Errors
    /// As [`Session::find_table`].
    pub(crate) async fn find_named(&mut self, name: &str) -> Result<Option<Arc<Table>>, Reply> {
        if let Some(error) = &self.chunk.unknown {
            return Err(errors::catalogue_error(error));
        }
        router::find(&self.proxy, name).await.map_err(|error| {
            let reply = errors::catalogue_error(&error);
            self.chunk.unknown = Some(error);
            reply
        })
    }

    /// The selected table; a numbered one is created when it is missing.
    pub(crate) async fn ensure_table(&mut self) -> Result<Arc<Table>, Reply> {
        if let Some(table) = self.table() {
            return Ok(table.clone());
        }
        self.chunk.absent = None;
        if let Some(error) = self.chunk.unknown.as_ref().or(self.chunk.unmade.as_ref()) {
            return Err(errors::catalogue_error(error));
        }
        match router::ensure(&self.proxy, &self.table_name).await {
            Ok(Some(table)) => {
                self.found(&table);
                Ok(table)
            }
            Ok(None) => Err(errors::no_table(self.table_name.as_bytes())),
            Err(error) => {
                let reply = errors::catalogue_error(&error);
                self.chunk.unmade = Some(error);
                Err(reply)
            }
        }
    }

    /// The selected table as its first write would create it, for routing only; `None`:
    /// it exists.
    pub(crate) async fn table_to_be(&mut self) -> Result<Option<Table>, Reply> {
        if self.find_table().await?.is_some() {
            return Ok(None);
        }
        if let Some(error) = &self.chunk.unmade {
            return Err(errors::catalogue_error(error));
        }
        router::new_table(&self.proxy).await.map(Some).map_err(|error| {
            let reply = errors::catalogue_error(&error);
            self.chunk.unmade = Some(error);
            reply
        })
    }

    /// Caches the selected table for the current command. The next command looks into the
    /// catalogue again.
    fn found(&mut self, table: &Arc<Table>) {
        self.table = Some(table.clone());
        self.catalogue_version = None;
    }

    /// Records the memory kept for one use; evicts clients if all of them then use too
    /// much.
    pub(crate) fn track_memory(&mut self, part: MemoryUse, bytes: usize) {
        if self.memory_usage.set(part, bytes) {
            self.proxy.evict_clients();
        }
    }

    /// The table that an argument refers to, if no look-up is needed: `3` is `db3`, `17`
    /// the table with this number, anything else an existing table.
    pub(crate) fn resolve_table_now(&self, arg: &[u8]) -> Option<TableRef> {
        match meaning(arg) {
            TableArg::Number(number) if number < self.proxy.settings.load().databases => {
                Some(TableRef::Table(format!("db{number}").into()))
            }
            TableArg::Number(number) => self
                .proxy
                .catalogue
                .numbered(number)
                .map(|table| TableRef::Table(table.name.as_str().into())),
            TableArg::Name(name) => self
                .proxy
                .catalogue
                .table(name)
                .map(|table| TableRef::Table(table.name.as_str().into())),
            TableArg::Invalid(reply) => Some(TableRef::Unknown(reply)),
        }
    }

    /// The table that an argument refers to.
    ///
    /// # Errors
    /// As [`Session::find_table`].
    pub(crate) async fn resolve_table(&mut self, arg: &[u8]) -> Result<TableRef, Reply> {
        if let Some(named) = self.resolve_table_now(arg) {
            return Ok(named);
        }
        let (found, nothing) = match meaning(arg) {
            TableArg::Number(number) => (self.find_numbered(number).await?, no_database(arg)),
            TableArg::Name(name) => (self.find_named(name).await?, errors::no_table(arg)),
            TableArg::Invalid(reply) => (None, reply),
        };
        Ok(found.map_or(TableRef::Unknown(nothing), |table| {
            TableRef::Table(table.name.as_str().into())
        }))
    }

    /// The table with this number, also if this proxy does not know it yet.
    async fn find_numbered(&mut self, number: u32) -> Result<Option<Arc<Table>>, Reply> {
        if let Some(error) = &self.chunk.unknown {
            return Err(errors::catalogue_error(error));
        }
        let all = router::find_all(&self.proxy).await.map_err(|error| {
            let reply = errors::catalogue_error(&error);
            self.chunk.unknown = Some(error);
            reply
        })?;
        Ok(all.into_iter().find(|table| table.number == number))
    }

    /// SELECT of a table that has been looked up.
    pub(crate) fn select(&mut self, named: TableRef) -> Reply {
        match named {
            TableRef::Table(name) => {
                self.use_table(name);
                Reply::OK
            }
            TableRef::Unknown(reply) => reply,
        }
    }

    pub(crate) fn use_table(&mut self, name: Arc<str>) {
        if name != self.table_name {
            {
                let mut shown = self.client.info.lock();
                shown.database = router::number_of(&self.proxy, &name).unwrap_or(shown.database);
                shown.table = name.clone();
            }
            self.table_name = name;
            self.catalogue_version = None;
        }
    }

    /// A new seed for a plan.
    pub(crate) fn next_seed(&mut self) -> u64 {
        self.seeds.draw()
    }

    /// The deadline of a call that starts now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.proxy.settings.load().call_deadline_ms)
    }

    /// `true` while the client must authenticate before other commands.
    pub(crate) fn is_unauthenticated(&self) -> bool {
        !self.authenticated && self.proxy.settings.load().password.is_some()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.proxy.monitors.remove(&self.client);
        self.proxy.clients.leave(self.client.id);
        self.proxy.stats.connections.down();
    }
}
