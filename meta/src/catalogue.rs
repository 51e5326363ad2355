//! The catalogue at work: the meta group, its leader's decisions, and who is told of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use cluster::{Boxed, CallError, Catalogue, Table, TableId};
use engine::batch::Family;
use engine::log::Log;
use engine::raft::{Group, GroupError, GroupFigures};
use engine::store::{Health, Shared, Store};
use tokio::sync::watch;

use crate::record;
use crate::state::{Command, Record, Refusal, State, Status};

/// Meta's group in the node's log; partitions' numbers are far above.
const GROUP: u64 = 0;
/// The first placement of a group of one.
const RAFT_ID: u64 = 1;
/// How long a command waits until storage has followed.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(30);
/// Entries after which the store is flushed, so that the log can let go of them.
const ENTRIES_TO_FLUSH: u64 = 100;

/// What meta is opened with.
#[derive(Debug, Clone)]
pub struct MetaOptions {
    /// Where its store is.
    pub dir: PathBuf,
    /// The runtime that Raft runs on.
    pub raft_runtime: tokio::runtime::Handle,
    /// Partitions of a table that is created without saying how many.
    pub partitions: u32,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// It makes no sense here; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not now: no leader; nothing was changed.
    #[error("{0}")]
    NotNow(String),
    /// Not while the disk is full; nothing was changed.
    #[error("{0}")]
    DiskFull(String),
    /// It may have been carried out or not.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// It was carried out; storage has not followed yet.
    #[error("{0}")]
    NotYet(String),
    /// I/O failure or corruption.
    #[error("meta storage fault: {0}")]
    Fault(String),
}

impl From<MetaError> for CallError {
    fn from(error: MetaError) -> Self {
        match error {
            // A write that needs a table which can't be: as final as a node without space, and worded by the reason.
            MetaError::Refused(refusal) => CallError::ReadOnly(refusal.to_string()),
            MetaError::DiskFull(why) => CallError::ReadOnly(why),
            MetaError::NotNow(why) | MetaError::NotYet(why) => CallError::NoLeader(why),
            MetaError::Unknown(why) => CallError::Unknown(why),
            MetaError::Fault(why) => CallError::Fault(why),
        }
    }
}

fn fault(error: impl std::fmt::Display) -> MetaError {
    MetaError::Fault(error.to_string())
}

impl From<GroupError> for MetaError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::NotLeader { why, .. } => MetaError::NotNow(why),
            GroupError::Unknown(why) => MetaError::Unknown(why),
            GroupError::Fatal(why) => MetaError::Fault(why),
        }
    }
}

/// The catalogue as committed, for those who follow it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Tables that are to serve.
    pub ready: Vec<Arc<Table>>,
    /// Tables whose partitions are to be destroyed; then [`Meta::dropped`].
    pub dropping: Vec<Arc<Table>>,
}

/// What proxies see: tables that are committed and open.
#[derive(Debug, Default)]
struct View {
    by_name: BTreeMap<String, Arc<Table>>,
}

/// The leader's own copy of the catalogue, under the lock that makes decisions one at a time.
#[derive(Debug, Default)]
struct Deciding {
    state: State,
    /// The term in which `state` was read from the store and since kept; `None`: it must be read again.
    term: Option<u64>,
}

/// Meta's leader: the table catalogue.
pub struct Meta {
    /// Ourselves, for what must go on when its caller goes away.
    me: Weak<Meta>,
    options: MetaOptions,
    group: Group,
    store: Store,
    log: Arc<Log>,
    deciding: tokio::sync::Mutex<Deciding>,
    committed: watch::Sender<Arc<Tables>>,
    records: ArcSwap<Vec<Record>>,
    view: ArcSwap<View>,
    version: watch::Sender<u64>,
}

impl Meta {
    /// Opens the store, starts the group, waits until it leads and reads the catalogue.
    pub async fn open(options: MetaOptions, log: &Arc<Log>, shared: &Shared) -> Result<Arc<Meta>, MetaError> {
        let (dir, shared) = (options.dir.clone(), shared.clone());
        let store = tokio::task::spawn_blocking(move || Store::open(&shared, dir)).await.map_err(fault)?.map_err(fault)?;
        let (group_log, group_store) = (log.group_log(GROUP), store.clone());
        let start = async move { Group::start_alone(RAFT_ID, "meta".to_owned(), group_log, group_store).await };
        let group = options.raft_runtime.spawn(start).await.map_err(fault)??;
        let meta = Arc::new_cyclic(|me| Meta {
            me: me.clone(),
            options,
            group,
            store,
            log: log.clone(),
            deciding: tokio::sync::Mutex::default(),
            committed: watch::Sender::default(),
            records: ArcSwap::default(),
            view: ArcSwap::default(),
            version: watch::Sender::new(0),
        });
        let mut deciding = meta.deciding.lock().await;
        meta.lead(&mut deciding).await?;
        meta.publish(&deciding.state);
        drop(deciding);
        Ok(meta)
    }

    /// Makes sure that we lead and that the copy of the state is that of the store.
    async fn lead(&self, deciding: &mut Deciding) -> Result<engine::raft::Leadership, MetaError> {
        let leadership = self.group.establish().await?;
        if deciding.term != Some(leadership.term()) {
            deciding.state = self.read_state()?;
            deciding.term = Some(leadership.term());
        }
        Ok(leadership)
    }

    fn read_state(&self) -> Result<State, MetaError> {
        let mut state = State::default();
        let mut bad = None;
        // Keys below 0x01 are the store's own.
        self.store
            .range(Family::Default, &[1], &[], false, &mut |key, value| match record::load(&mut state, key, value) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    bad = Some(error);
                    ControlFlow::Break(())
                }
            })
            .map_err(fault)?;
        bad.map_or(Ok(state), |error| Err(fault(error)))
    }

    fn writable(&self) -> Result<(), MetaError> {
        self.log.writable().map_err(|full| MetaError::DiskFull(full.to_string()))?;
        match self.store.health() {
            Health::Good => Ok(()),
            Health::DiskFull(why) => Err(MetaError::DiskFull(why)),
            Health::Failing(why) => Err(MetaError::Fault(why)),
        }
    }

    /// Decides a command, and waits until it is applied. Runs to its end even when the caller goes away: a decision that is under way
    /// must not be followed by one on a state that lacks it.
    async fn command(&self, command: Command) -> Result<Arc<Table>, MetaError> {
        let meta = self.me.upgrade().expect("whoever calls us holds us");
        tokio::spawn(async move { meta.decide(command).await }).await.map_err(|error| MetaError::Unknown(error.to_string()))?
    }

    async fn decide(&self, command: Command) -> Result<Arc<Table>, MetaError> {
        let mut deciding = self.deciding.lock().await;
        let leadership = self.lead(&mut deciding).await?;
        let stamp_ms = now_ms().max(deciding.state.stamp_ms);
        let decided = deciding.state.decide(command, stamp_ms)?;
        if decided.changes.is_empty() {
            return Ok(decided.table);
        }
        self.writable()?;
        // Until we know how it went, our copy counts for nothing.
        deciding.term = None;
        self.group.propose(&leadership, record::batch(&decided.changes, stamp_ms)).await?;
        deciding.state.apply(&decided.changes, stamp_ms);
        deciding.term = Some(leadership.term());
        self.publish(&deciding.state);
        drop(deciding);
        self.let_log_go().await;
        Ok(decided.table)
    }

    /// Flushes now and then, so that old entries of meta do not hold back the node's log.
    async fn let_log_go(&self) {
        let figures = self.group.figures();
        if figures.applied.saturating_sub(figures.purged) > ENTRIES_TO_FLUSH
            && let Err(error) = self.group.flush().await
        {
            tracing::warn!(%error, "the meta store could not be flushed");
        }
    }

    fn publish(&self, state: &State) {
        let with = |status| state.tables.values().filter(move |record| record.status == status).map(|record| record.table.clone());
        let tables = Tables { ready: with(Status::Ready).collect(), dropping: with(Status::Dropping).collect() };
        self.records.store(Arc::new(state.tables.values().cloned().collect()));
        // A table that is going is out of sight before anybody starts to destroy it.
        let view = self.view.load();
        if view.by_name.values().any(|open| tables.dropping.iter().any(|dropping| dropping.id == open.id)) {
            self.show(view.by_name.values().filter(|open| tables.ready.iter().any(|ready| ready.id == open.id)).cloned());
        }
        self.committed.send_replace(Arc::new(tables));
    }

    fn show(&self, tables: impl Iterator<Item = Arc<Table>>) {
        let by_name = tables.map(|table| (table.name.clone(), table)).collect();
        self.view.store(Arc::new(View { by_name }));
        self.version.send_modify(|version| *version += 1);
    }

    /// The committed catalogue and its changes, for storage to follow.
    pub fn watch(&self) -> watch::Receiver<Arc<Tables>> {
        self.committed.subscribe()
    }

    /// Storage has opened these (or knows why it can't): from now on proxies see them, as far as they have not been dropped since.
    pub fn opened(&self, tables: &Tables) {
        let committed = self.committed.borrow();
        self.show(tables.ready.iter().filter(|table| committed.ready.iter().any(|ready| ready.id == table.id)).cloned());
    }

    /// Storage has destroyed every partition of a table that was being dropped: it is forgotten. Again is harmless.
    pub async fn dropped(&self, id: TableId) -> Result<(), MetaError> {
        match self.command(Command::Dropped { id }).await {
            Ok(_) | Err(MetaError::Refused(Refusal::NotDropping(_))) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until proxies see the table exactly so.
    async fn until_open(&self, table: &Arc<Table>) -> Result<(), MetaError> {
        let mut version = self.version.subscribe();
        let seen = async {
            loop {
                version.borrow_and_update();
                if self.view.load().by_name.get(&table.name).is_some_and(|open| open == table || open.id != table.id) {
                    return;
                }
                // Changed again or dropped meanwhile: then this version never shows.
                if !self.committed.borrow().ready.contains(table) || version.changed().await.is_err() {
                    return;
                }
            }
        };
        let name = &table.name;
        tokio::time::timeout(FOLLOW_TIMEOUT, seen)
            .await
            .map_err(|_| MetaError::NotYet(format!("table '{name}' is being opened; that takes longer than usual")))
    }

    /// A new table, once it can be written. `partitions`: `None` = as configured.
    pub async fn create(&self, name: &str, partitions: Option<u32>, envs: BTreeMap<String, String>) -> Result<Arc<Table>, MetaError> {
        let partitions = partitions.unwrap_or(self.options.partitions);
        let table = self.command(Command::Create { name: name.to_owned(), partitions, envs }).await?;
        tracing::info!(table = name, id = table.id.0, partitions, "table created");
        self.until_open(&table).await?;
        Ok(table)
    }

    /// Takes a table away: at once for clients; its partitions are destroyed in the background.
    pub async fn drop_table(&self, name: &str) -> Result<Arc<Table>, MetaError> {
        let table = self.command(Command::Drop { name: name.to_owned() }).await?;
        tracing::info!(table = name, id = table.id.0, "table is being dropped");
        Ok(table)
    }

    /// Sets (`Some`) or deletes (`None`) an env; when it answers, it holds.
    pub async fn set_env(&self, name: &str, key: &str, value: Option<&str>) -> Result<Arc<Table>, MetaError> {
        let (name, key) = (name.to_owned(), key.to_owned());
        let table = match value {
            Some(value) => self.command(Command::SetEnv { name, key: key.clone(), value: value.to_owned() }).await?,
            None => self.command(Command::DeleteEnv { name, key: key.clone() }).await?,
        };
        tracing::info!(table = table.name, env = key, value = value.unwrap_or("(default)"), "env set");
        self.until_open(&table).await?;
        Ok(table)
    }

    /// All tables, those that are being dropped included.
    pub fn records(&self) -> Arc<Vec<Record>> {
        self.records.load_full()
    }

    /// Whether proxies see the table.
    pub fn is_open(&self, id: TableId) -> bool {
        self.view.load().by_name.values().any(|table| table.id == id)
    }

    /// The group's figures.
    pub fn figures(&self) -> GroupFigures {
        self.group.figures()
    }

    /// Stops the group and flushes its store. Call it after everybody else has stopped.
    pub async fn close(&self) -> Result<(), MetaError> {
        let _nobody_decides = self.deciding.lock().await;
        self.group.shutdown().await;
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.close()).await.map_err(fault)?.map_err(fault)
    }

    async fn ensure_table(&self, name: &str) -> Result<Arc<Table>, MetaError> {
        loop {
            if let Some(table) = self.table(name) {
                return Ok(table);
            }
            match self.create(name, None, BTreeMap::new()).await {
                Ok(table) => return Ok(self.table(name).unwrap_or(table)),
                // Somebody was faster; it may not be open yet.
                Err(MetaError::Refused(Refusal::Exists(_))) => {
                    let ready = self.committed.borrow().ready.iter().find(|table| table.name == name).cloned();
                    if let Some(table) = ready {
                        self.until_open(&table).await?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Catalogue for Meta {
    fn table(&self, name: &str) -> Option<Arc<Table>> {
        self.view.load().by_name.get(name).cloned()
    }

    fn tables(&self) -> Vec<Arc<Table>> {
        self.view.load().by_name.values().cloned().collect()
    }

    fn ensure(&self, name: &str) -> Boxed<'_, Result<Arc<Table>, CallError>> {
        let name = name.to_owned();
        Box::pin(async move { self.ensure_table(&name).await.map_err(CallError::from) })
    }

    fn version(&self) -> u64 {
        *self.version.borrow()
    }
}
