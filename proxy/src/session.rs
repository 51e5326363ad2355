//! What one connection knows between its commands: who it is, which table it selected,
//! what it has queued.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::Table;
use commands::Reply;
use commands::plan::{Hello, ReplyMode};
use subtle::ConstantTimeEq;

use crate::client::account::{Account, Part};
use crate::client::{Client, Effect};
use crate::connection::OUTPUT_HIGH;
use crate::dispatch::Chunk;
use crate::resp::Protocol;
use crate::transactions::Transaction;
use crate::waits::Written;
use crate::{Proxy, REDIS_VERSION, router, words};

/// The table that every connection begins with.
pub(crate) const FIRST_TABLE: &str = "db0";

/// One connection's state.
pub(crate) struct Session {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) client: Arc<Client>,
    pub(crate) protocol: Protocol,
    pub(crate) authenticated: bool,
    pub(crate) transaction: Transaction,
    /// No more commands are taken, and the connection closes when the replies so far are
    /// written.
    pub(crate) closing: bool,
    pub(crate) silence: Silence,
    /// CLIENT PAUSE holds the next command back, as one that may write or as any other.
    pub(crate) held: Option<bool>,
    pub(crate) table_name: Arc<str>,
    pub(crate) table: Option<Arc<Table>>,
    catalogue_version: Option<u64>,
    seed: u64,
    pub(crate) chunk: Chunk,
    /// What is kept for the client.
    pub(crate) account: Account,
    /// When so many bytes of replies wait, the client is to read some before more is
    /// carried out.
    pub(crate) replies_max: usize,
    pub(crate) written: Written,
}

/// CLIENT REPLY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Replies are sent.
    None,
    /// The next command's is not.
    Next,
    /// None are.
    All,
}

/// What a client's word for a table means.
pub(crate) enum Named {
    /// The table of this name: a numbered one, there or not, or one that is there.
    Table(Arc<str>),
    /// Nothing, and what the client is told.
    Nothing(Reply),
}

/// What a client's word for a table says by itself.
enum Meaning<'a> {
    /// `17`, or `db17`.
    Number(u32),
    Name(&'a str),
    /// Nothing that could ever be.
    Nothing(Reply),
}

fn meaning(word: &[u8]) -> Meaning<'_> {
    if let Some(number) = commands::args::integer(word) {
        return u32::try_from(number)
            .map_or_else(|_| Meaning::Nothing(no_database(word)), Meaning::Number);
    }
    match std::str::from_utf8(word) {
        Ok(name) => cluster::database(name).map_or(Meaning::Name(name), Meaning::Number),
        Err(_) => Meaning::Nothing(words::no_table(word)),
    }
}

/// There is no table of this number, or none of a name that stands for one.
fn no_database(word: &[u8]) -> Reply {
    match commands::args::integer(word) {
        Some(_) => Reply::error(words::NO_DATABASE),
        None => words::no_table(word),
    }
}

impl Session {
    pub(crate) fn new(proxy: Arc<Proxy>, client: Arc<Client>) -> Session {
        let authenticated = proxy.settings.load().password.is_none();
        Session {
            account: Account::new(client.clone()),
            replies_max: OUTPUT_HIGH,
            proxy,
            client,
            protocol: Protocol::default(),
            authenticated,
            transaction: Transaction::default(),
            closing: false,
            silence: Silence::None,
            held: None,
            table_name: FIRST_TABLE.into(),
            table: None,
            catalogue_version: None,
            seed: rand::random(),
            chunk: Chunk::default(),
            written: Written::default(),
        }
    }

    /// The selected table, if this proxy has heard of it; whether there is one otherwise,
    /// [`Session::find_table`] tells.
    pub(crate) fn table(&mut self) -> Option<&Arc<Table>> {
        let version = self.proxy.catalogue.version();
        if self.catalogue_version != Some(version) {
            self.table = self.proxy.catalogue.table(&self.table_name);
            self.catalogue_version = Some(version);
        }
        self.table.as_ref()
    }

    /// The selected table, whether this proxy has heard of it yet or not; `None`: there
    /// is none, and it comes with its first write. Another client may have made it a
    /// moment ago through another proxy, and told this one's: so whoever keeps the
    /// catalogue is asked.
    ///
    /// # Errors
    /// It is one with a name and was dropped; or whether it is there could not be asked.
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
        if router::comes_by_itself(&self.proxy, &name) {
            Ok(None)
        } else {
            Err(words::no_table(name.as_bytes()))
        }
    }

    /// Any table, whether this proxy has heard of it yet or not.
    ///
    /// # Errors
    /// As [`Session::find_table`].
    pub(crate) async fn find_named(&mut self, name: &str) -> Result<Option<Arc<Table>>, Reply> {
        if let Some(error) = &self.chunk.unknown {
            return Err(words::catalogue_error(error));
        }
        router::find(&self.proxy, name).await.map_err(|error| {
            let reply = words::catalogue_error(&error);
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
            return Err(words::catalogue_error(error));
        }
        match router::ensure(&self.proxy, &self.table_name).await {
            Ok(Some(table)) => {
                self.found(&table);
                Ok(table)
            }
            Ok(None) => Err(words::no_table(self.table_name.as_bytes())),
            Err(error) => {
                let reply = words::catalogue_error(&error);
                self.chunk.unmade = Some(error);
                Err(reply)
            }
        }
    }

    /// The selected table as its first write would make it, as far as that says where
    /// rows would lie; `None`: it is there.
    pub(crate) async fn table_to_be(&mut self) -> Result<Option<Table>, Reply> {
        if self.find_table().await?.is_some() {
            return Ok(None);
        }
        if let Some(error) = &self.chunk.unmade {
            return Err(words::catalogue_error(error));
        }
        router::new_table(&self.proxy).await.map(Some).map_err(|error| {
            let reply = words::catalogue_error(&error);
            self.chunk.unmade = Some(error);
            reply
        })
    }

    /// The selected table is this one for what is done at once. The catalogue is looked
    /// into again for what comes after that.
    fn found(&mut self, table: &Arc<Table>) {
        self.table = Some(table.clone());
        self.catalogue_version = None;
    }

    /// A part of what is kept for the client takes so many bytes now; if all clients then
    /// hold too much, the one that holds most goes.
    pub(crate) fn hold(&mut self, part: Part, bytes: usize) {
        if self.account.set(part, bytes) {
            self.proxy.make_room();
        }
    }

    /// The table that a word means, if that can be said without asking: `3` is `db3`,
    /// `17` the table that has this number, any other word an existing table.
    pub(crate) fn named_at_once(&self, word: &[u8]) -> Option<Named> {
        match meaning(word) {
            Meaning::Number(number) if number < self.proxy.settings.load().databases => {
                Some(Named::Table(format!("db{number}").into()))
            }
            Meaning::Number(number) => self
                .proxy
                .catalogue
                .numbered(number)
                .map(|table| Named::Table(table.name.as_str().into())),
            Meaning::Name(name) => self
                .proxy
                .catalogue
                .table(name)
                .map(|table| Named::Table(table.name.as_str().into())),
            Meaning::Nothing(reply) => Some(Named::Nothing(reply)),
        }
    }

    /// The table that a word means.
    ///
    /// # Errors
    /// As [`Session::find_table`].
    pub(crate) async fn named(&mut self, word: &[u8]) -> Result<Named, Reply> {
        if let Some(named) = self.named_at_once(word) {
            return Ok(named);
        }
        let (found, nothing) = match meaning(word) {
            Meaning::Number(number) => (self.find_numbered(number).await?, no_database(word)),
            Meaning::Name(name) => (self.find_named(name).await?, words::no_table(word)),
            Meaning::Nothing(reply) => (None, reply),
        };
        Ok(found.map_or(Named::Nothing(nothing), |table| Named::Table(table.name.as_str().into())))
    }

    /// A table by its number, whether this proxy has heard of it yet or not.
    async fn find_numbered(&mut self, number: u32) -> Result<Option<Arc<Table>>, Reply> {
        if let Some(error) = &self.chunk.unknown {
            return Err(words::catalogue_error(error));
        }
        let all = router::find_all(&self.proxy).await.map_err(|error| {
            let reply = words::catalogue_error(&error);
            self.chunk.unknown = Some(error);
            reply
        })?;
        Ok(all.into_iter().find(|table| table.number == number))
    }

    /// SELECT of what a word means.
    pub(crate) fn select(&mut self, named: Named) -> Reply {
        match named {
            Named::Table(name) => {
                self.use_table(name);
                Reply::OK
            }
            Named::Nothing(reply) => reply,
        }
    }

    pub(crate) fn use_table(&mut self, name: Arc<str>) {
        if name != self.table_name {
            {
                let mut shown = self.client.shown.lock();
                shown.database = router::number_of(&self.proxy, &name).unwrap_or(shown.database);
                shown.table = name.clone();
            }
            self.table_name = name;
            self.catalogue_version = None;
        }
    }

    /// A fresh number for a plan that needs chance (SplitMix64).
    pub(crate) fn next_seed(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Until when a call that begins now is tried.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.proxy.settings.load().call_deadline_ms)
    }

    /// AUTH.
    pub(crate) fn authenticate(&mut self, user: Option<&[u8]>, password: &[u8]) -> Reply {
        let settings = self.proxy.settings.load();
        let is_right = match &settings.password {
            None if user.is_none() => return Reply::error(words::NO_PASSWORD),
            // As Redis's default user without a password: any will do.
            None => true,
            // The length of the right one is all that time could tell.
            Some(right) => bool::from(right.as_ref().ct_eq(password)),
        };
        if !is_right || user.is_some_and(|user| user != b"default") {
            self.proxy.stats.auth_failures.add(1);
            return Reply::error(words::WRONGPASS);
        }
        self.authenticated = true;
        Reply::OK
    }

    /// Whether it has to authenticate before anything else.
    pub(crate) fn is_stranger(&self) -> bool {
        !self.authenticated && self.proxy.settings.load().password.is_some()
    }

    /// HELLO.
    pub(crate) fn hello(&mut self, hello: Hello) -> Reply {
        if let Some((user, password)) = &hello.auth {
            let reply = self.authenticate(Some(user), password);
            if reply != Reply::OK {
                return reply;
            }
        } else if self.is_stranger() {
            return Reply::error(words::NOAUTH_HELLO);
        }
        if let Some(version) = hello.protocol {
            self.protocol = if version == 3 { Protocol::Resp3 } else { Protocol::Resp2 };
        }
        let version = if self.protocol == Protocol::Resp3 { 3 } else { 2 };
        {
            let mut shown = self.client.shown.lock();
            shown.protocol = version;
            if let Some(name) = hello.name {
                shown.name = Bytes::copy_from_slice(&name);
            }
        }
        let word = |text: &str| Reply::Bulk(Bytes::copy_from_slice(text.as_bytes()));
        Reply::Map(vec![
            (word("server"), word("redis")),
            (word("version"), word(REDIS_VERSION)),
            (word("proto"), Reply::Int(i64::from(version))),
            (word("id"), Reply::Int(self.client.id as i64)),
            (word("mode"), word("standalone")),
            (word("role"), word("master")),
            (word("modules"), Reply::Array(Vec::new())),
        ])
    }

    /// RESET: as if it had just connected.
    pub(crate) fn reset(&mut self) -> Reply {
        self.transaction = Transaction::default();
        self.proxy.monitors.unwatch(&self.client);
        self.use_table(FIRST_TABLE.into());
        self.protocol = Protocol::Resp2;
        self.silence = Silence::None;
        self.authenticated = self.proxy.settings.load().password.is_none();
        let mut shown = self.client.shown.lock();
        shown.protocol = 2;
        shown.name = Bytes::new();
        shown.monitors = false;
        self.client.no_evict.store(false, Ordering::Relaxed);
        shown.no_touch = false;
        Reply::Status("RESET".into())
    }

    /// What a CLIENT call asks of this connection.
    pub(crate) fn follow(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Close => self.closing = true,
            Effect::Mode(ReplyMode::On) => self.silence = Silence::None,
            Effect::Mode(ReplyMode::Off) => self.silence = Silence::All,
            Effect::Mode(ReplyMode::Skip) if self.silence == Silence::None => {
                self.silence = Silence::Next
            }
            Effect::Mode(ReplyMode::Skip) => {}
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.proxy.monitors.unwatch(&self.client);
        self.proxy.clients.leave(self.client.id);
        self.proxy.stats.connections.down();
    }
}
