//! The table catalogue of a process that is not the one that keeps it: what meta's news
//! said last, and a question for what is missing.
//!
//! Lookups are answered from memory, so a cluster whose metas are all down goes on to
//! serve it. What is missing there may have been made through another process whose
//! client waits for nobody: the news come some ms later. So only meta's word is a "no",
//! and it holds for whoever had asked by then, and for nobody else.
//!
//! # Invariants
//! - The version grows with every change (`the_cache_changes_with_meta_updates`).
//! - That there is no table is not remembered (`a_missing_table_is_asked_for_each_time`),
//!   and not said of a moment before the question (`single_flight.rs`,
//!   `a_caller_gets_an_answer_of_after_its_call`).
//! - A question ends: each meta is asked once, and those that hints name, a bounded
//!   number in all (`the_meta_that_leads_is_found`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::meta_protocol::{self, MetaDecodeError, MetaRequest, MetaResponse};
use crate::net::{Destination, Net, NetError, Service};
use crate::single_flight::SingleFlight;
use crate::{Boxed, CallError, Catalogue, Fault, NAME_BYTES_MAX, Table, TableId};

/// Timeout of one meta for a change: a table is created before it answers.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of one meta for an operator's change: servers apply it before meta answers.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of one meta for a query. If it has frozen, another leads within about a
/// second.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of metas asked for one request.
const METAS_ASKED_MAX: usize = 8;

/// Transport of requests to metas: the network, or a test's.
pub trait MetaQueries: Send + Sync + 'static {
    /// Asks the meta at an address, and waits so long for its answer.
    fn ask(
        &self,
        address: &str,
        question: Bytes,
        timeout: Duration,
    ) -> Boxed<'_, Result<Bytes, NetError>>;
}

impl MetaQueries for Arc<Net> {
    fn ask(
        &self,
        address: &str,
        question: Bytes,
        timeout: Duration,
    ) -> Boxed<'_, Result<Bytes, NetError>> {
        let to = Destination::Address(address.to_owned());
        Box::pin(async move { self.call(to, Service::Meta, question, timeout).await })
    }
}

/// Reason why no meta has answered a question: that of the last one that was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// There is nobody to ask.
    #[error("no meta is configured")]
    NoMetas,
    /// The meta at this address does not lead.
    #[error("the meta at {0} does not lead")]
    NotLeading(String),
    /// The meta at this address can't be reached, or has not answered.
    #[error("the meta at {0}: {1}")]
    Unanswered(String, NetError),
    /// The answer of the meta at this address can't be read.
    #[error("the meta at {0}: {1}")]
    Unreadable(String, MetaDecodeError),
}

/// Tables as of one moment.
#[derive(Default)]
struct CachedTables {
    version: u64,
    tables: BTreeMap<String, Arc<Table>>,
}

/// The catalogue as cached from meta.
pub struct RemoteCatalogue {
    questions: Box<dyn MetaQueries>,
    /// The addresses of the metas.
    metas: Vec<String>,
    /// The meta that led when it was asked last.
    leader: Mutex<Option<String>>,
    cached: ArcSwap<CachedTables>,
    /// Number of updates from meta that were applied.
    deltas_applied: AtomicU64,
    /// Changes of `cached` one after another.
    changing: Mutex<()>,
    /// One question at a time: a crowd of clients of a new table asks once.
    creating: tokio::sync::Mutex<()>,
    /// Clients of an empty database that ask at one time, too.
    lookups: SingleFlight<Result<Option<Arc<Table>>, CallError>>,
}

impl RemoteCatalogue {
    /// An empty catalogue; `metas` are the addresses of the metas.
    pub fn new(questions: impl MetaQueries, metas: Vec<String>) -> RemoteCatalogue {
        RemoteCatalogue {
            questions: Box::new(questions),
            metas,
            leader: Mutex::default(),
            cached: ArcSwap::from_pointee(CachedTables { version: 1, tables: BTreeMap::new() }),
            deltas_applied: AtomicU64::new(0),
            changing: Mutex::default(),
            creating: tokio::sync::Mutex::default(),
            lookups: SingleFlight::default(),
        }
    }

    /// Takes in all tables that serve, as meta tells them.
    pub fn apply_all<'a>(&self, all: impl IntoIterator<Item = &'a Table>) {
        self.change(|tables| {
            self.deltas_applied.fetch_add(1, Ordering::AcqRel);
            let mut before = std::mem::take(tables);
            *tables = all
                .into_iter()
                .map(|table| {
                    // What has not changed stays the same allocation.
                    let same = before.remove(&table.name).filter(|cached| **cached == *table);
                    (table.name.clone(), same.unwrap_or_else(|| Arc::new(table.clone())))
                })
                .collect();
        });
    }

    /// Stays in step with the news
    /// ([`MetaClient::tables`](crate::meta_client::MetaClient::tables),
    /// [`MetaClient::leader`](crate::meta_client::MetaClient::leader)) until these end.
    pub async fn run(
        &self,
        mut tables: watch::Receiver<Option<Arc<BTreeMap<TableId, Table>>>>,
        mut leader: watch::Receiver<Option<String>>,
    ) {
        loop {
            let all = tables.borrow_and_update().clone();
            if let Some(all) = all {
                self.apply_all(all.values());
            }
            let leads = leader.borrow_and_update().clone();
            if leads.is_some() {
                *self.leader.lock() = leads;
            }
            let changed = tokio::select! {
                changed = tables.changed() => changed,
                changed = leader.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Arc<Table>>)) {
        let _one_at_a_time = self.changing.lock();
        let cached = self.cached.load();
        let mut tables = cached.tables.clone();
        change(&mut tables);
        if tables != cached.tables {
            self.cached.store(Arc::new(CachedTables { version: cached.version + 1, tables }));
        }
    }

    /// A table by id, from memory.
    pub fn table_of(&self, id: TableId) -> Option<Arc<Table>> {
        self.cached.load().tables.values().find(|table| table.id == id).cloned()
    }

    /// Asks the meta that leads.
    ///
    /// # Errors
    /// [`AskError`]; nothing was changed. An operator's request that got lost on its way,
    /// or whose answer did, is answered by [`MetaResponse::Unknown`].
    pub async fn ask(&self, question: &MetaRequest) -> Result<MetaResponse, AskError> {
        let body = meta_protocol::encode(question);
        let (timeout, is_once) = match question {
            MetaRequest::FindTable { .. }
            | MetaRequest::ListTables
            | MetaRequest::NewTable
            | MetaRequest::MetaIndex { .. } => (QUERY_TIMEOUT, false),
            MetaRequest::Admin { method, .. } if method != "GET" => (ADMIN_TIMEOUT, true),
            MetaRequest::EnsureTable { .. } | MetaRequest::Admin { .. } => (CHANGE_TIMEOUT, false),
        };
        let (mut tried, mut why) = (Vec::<String>::new(), AskError::NoMetas);
        let mut hint = self.leader.lock().clone();
        for _ in 0..METAS_ASKED_MAX {
            let hinted = hint.take().filter(|address| !tried.contains(address));
            let Some(address) =
                hinted.or_else(|| self.metas.iter().find(|meta| !tried.contains(meta)).cloned())
            else {
                break;
            };
            tried.push(address.clone());
            let told = match self.questions.ask(&address, body.clone(), timeout).await {
                Ok(told) => meta_protocol::decode::<MetaResponse>(&told)
                    .map_err(|error| (AskError::Unreadable(address.clone(), error), true)),
                Err(error) => {
                    let is_lost = matches!(error, NetError::Lost(_));
                    Err((AskError::Unanswered(address.clone(), error), is_lost))
                }
            };
            match told {
                Ok(MetaResponse::NotLeading(other)) => {
                    (hint, why) = (other.leader, AskError::NotLeading(address));
                }
                Ok(told) => {
                    *self.leader.lock() = Some(address);
                    return Ok(told);
                }
                // It may have been carried out, and another meta would carry it out once
                // more.
                Err((error, true)) if is_once => {
                    return Ok(MetaResponse::Unknown(format!("outcome unknown: {error}")));
                }
                // All other questions may be asked twice.
                Err((error, _)) => why = error,
            }
        }
        *self.leader.lock() = None;
        Err(why)
    }

    async fn create(&self, name: &str) -> Result<Arc<Table>, CallError> {
        let _one_at_a_time = self.creating.lock().await;
        if let Some(table) = self.table(name) {
            return Ok(table);
        }
        let deltas_applied = self.deltas_applied.load(Ordering::Acquire);
        match self.ask(&MetaRequest::EnsureTable { name: name.to_owned() }).await {
            Ok(MetaResponse::Table(table)) => Ok(self.cache_table(table, deltas_applied)),
            other => Err(no_answer(other)),
        }
    }

    async fn look_up(&self, name: &str) -> Result<Option<Arc<Table>>, CallError> {
        let deltas_applied = self.deltas_applied.load(Ordering::Acquire);
        match self.ask(&MetaRequest::FindTable { name: name.to_owned() }).await {
            Ok(MetaResponse::Found(found)) => {
                Ok(found.map(|table| self.cache_table(table, deltas_applied)))
            }
            other => Err(no_answer(other)),
        }
    }

    /// Takes in a table that meta has told of before its news, when they stood at
    /// `deltas_applied`. The answer may be read long after it was given, and the table be
    /// dropped and made anew by then: ids grow, so a larger one is the later; and where
    /// the news have come meanwhile and know of none, nobody here can tell, and it is
    /// asked for again.
    fn cache_table(&self, table: Table, deltas_applied: u64) -> Arc<Table> {
        let table = Arc::new(table);
        let mut told = table.clone();
        self.change(|tables| match tables.get(&table.name) {
            Some(cached) if cached.id >= table.id => told = cached.clone(),
            None if self.deltas_applied.load(Ordering::Acquire) != deltas_applied => {}
            Some(_) | None => drop(tables.insert(table.name.clone(), table.clone())),
        });
        told
    }
}

/// Why a question has no answer. Asking again is harmless, whatever became of it.
fn no_answer(told: Result<MetaResponse, AskError>) -> CallError {
    match told {
        Ok(MetaResponse::Refused(why)) => CallError::ReadOnly(why),
        Ok(MetaResponse::NotNow(why) | MetaResponse::Unknown(why)) => CallError::NoLeader(why),
        Err(error) => CallError::NoLeader(error.to_string()),
        // Another meta is to lead, or this one again.
        Ok(MetaResponse::Fault(fault)) => {
            CallError::NoLeader(format!("meta storage fault: {fault}"))
        }
        Ok(_) => CallError::Fault(Fault::internal("meta answered another question")),
    }
}

impl Catalogue for RemoteCatalogue {
    fn table(&self, name: &str) -> Option<Arc<Table>> {
        self.cached.load().tables.get(name).cloned()
    }

    fn tables(&self) -> Vec<Arc<Table>> {
        self.cached.load().tables.values().cloned().collect()
    }

    fn find(&self, name: &str) -> Boxed<'_, Result<Option<Arc<Table>>, CallError>> {
        // Nobody has such a name, and it would be in meta's way.
        if name.len() > NAME_BYTES_MAX {
            return Box::pin(std::future::ready(Ok(None)));
        }
        let name = name.to_owned();
        Box::pin(async move {
            match self.table(&name) {
                Some(table) => Ok(Some(table)),
                None => self.lookups.call(&name, self.look_up(&name)).await,
            }
        })
    }

    fn find_all(&self) -> Boxed<'_, Result<Vec<Arc<Table>>, CallError>> {
        Box::pin(async move {
            match self.ask(&MetaRequest::ListTables).await {
                Ok(MetaResponse::Tables(tables)) => Ok(tables.into_iter().map(Arc::new).collect()),
                other => Err(no_answer(other)),
            }
        })
    }

    fn ensure(&self, name: &str) -> Boxed<'_, Result<Arc<Table>, CallError>> {
        let name = name.to_owned();
        Box::pin(async move {
            match self.table(&name) {
                Some(table) => Ok(table),
                None => self.create(&name).await,
            }
        })
    }

    fn partitions_of_new(&self) -> Boxed<'_, Result<u32, CallError>> {
        Box::pin(async move {
            match self.ask(&MetaRequest::NewTable).await {
                Ok(MetaResponse::NewTable { partitions }) => Ok(partitions),
                other => Err(no_answer(other)),
            }
        })
    }

    fn version(&self) -> u64 {
        self.cached.load().version
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::meta_protocol::NotLeading;

    /// Answers in turn, and notes who was asked.
    #[derive(Default)]
    struct FakeMetas {
        answers: Mutex<VecDeque<Result<MetaResponse, NetError>>>,
        asked: Mutex<Vec<String>>,
        /// Nobody understands the answers.
        garbled: AtomicBool,
    }

    impl MetaQueries for Arc<FakeMetas> {
        fn ask(
            &self,
            address: &str,
            question: Bytes,
            timeout: Duration,
        ) -> Boxed<'_, Result<Bytes, NetError>> {
            match meta_protocol::decode(&question).unwrap() {
                MetaRequest::EnsureTable { name } => {
                    assert_eq!((name.as_str(), timeout), ("db3", CHANGE_TIMEOUT))
                }
                MetaRequest::FindTable { name } => {
                    assert_eq!((name.as_str(), timeout), ("db3", QUERY_TIMEOUT))
                }
                MetaRequest::ListTables | MetaRequest::NewTable | MetaRequest::MetaIndex { .. } => {
                    assert_eq!(timeout, QUERY_TIMEOUT)
                }
                MetaRequest::Admin { method, .. } => {
                    assert_eq!(
                        timeout,
                        if method == "GET" { CHANGE_TIMEOUT } else { ADMIN_TIMEOUT }
                    )
                }
            }
            self.asked.lock().push(address.to_owned());
            if self.garbled.load(Ordering::Relaxed) {
                return Box::pin(async { Ok(Bytes::from_static(b"?")) });
            }
            let answer =
                self.answers.lock().pop_front().unwrap_or(Err(NetError::NotSent("down".into())));
            Box::pin(async move {
                tokio::task::yield_now().await;
                answer.map(|told| meta_protocol::encode(&told))
            })
        }
    }

    fn table(id: u32, name: &str) -> Table {
        Table {
            id: TableId(id),
            name: name.into(),
            number: id,
            partitions: 4,
            replicas: 3,
            envs: BTreeMap::new(),
            default_ttl_since_ms: 0,
        }
    }

    fn catalogue(
        answers: Vec<Result<MetaResponse, NetError>>,
    ) -> (RemoteCatalogue, Arc<FakeMetas>) {
        let metas =
            Arc::new(FakeMetas { answers: Mutex::new(answers.into()), ..FakeMetas::default() });
        let meta_members = ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec();
        (RemoteCatalogue::new(metas.clone(), meta_members), metas)
    }

    fn not_leading(leader: Option<&str>) -> Result<MetaResponse, NetError> {
        Ok(MetaResponse::NotLeading(NotLeading { leader: leader.map(str::to_owned) }))
    }

    #[tokio::test]
    async fn the_cache_changes_with_meta_updates() {
        let (catalogue, _) = catalogue(Vec::new());
        let before = catalogue.version();
        catalogue.apply_all(&[table(1, "db0"), table(2, "users")]);
        assert!(catalogue.version() > before);
        let (version, users) = (catalogue.version(), catalogue.table("users"));
        catalogue.apply_all(&[table(1, "db0"), table(2, "users")]);
        assert_eq!(catalogue.version(), version, "nothing new");
        let mut other = table(1, "db0");
        other.envs.insert("default_ttl".into(), "3".into());
        catalogue.apply_all(&[other.clone(), table(2, "users")]);
        assert!(catalogue.version() > version);
        assert_eq!(catalogue.table("db0").as_deref(), Some(&other));
        assert!(Arc::ptr_eq(&users.unwrap(), &catalogue.table("users").unwrap()));
        catalogue.apply_all(&[other]);
        assert_eq!(
            (catalogue.table("users"), catalogue.tables().len(), catalogue.table_of(TableId(2))),
            (None, 1, None)
        );
    }

    #[tokio::test]
    async fn the_meta_that_leads_is_found() {
        let made = table(7, "db3");
        let down = || Err(NetError::Lost("down".into()));
        let (catalogue, metas) = catalogue(vec![
            down(),
            not_leading(Some("d:1")),
            not_leading(None),
            Ok(MetaResponse::Table(made.clone())),
        ]);
        assert_eq!(catalogue.ensure("db3").await.as_deref(), Ok(&made));
        assert_eq!(*metas.asked.lock(), ["a:1", "b:1", "d:1", "c:1"]);
        assert_eq!(catalogue.table("db3").as_deref(), Some(&made), "before the news");
        assert_eq!(catalogue.ensure("db3").await.as_deref(), Ok(&made));
        assert_eq!(metas.asked.lock().len(), 4, "from memory");
        // It was dropped: the one that led is asked first.
        catalogue.apply_all(&[]);
        metas.answers.lock().extend((0..100).map(|n| not_leading(Some(&format!("lie:{n}")))));
        assert!(matches!(catalogue.ensure("db3").await, Err(CallError::NoLeader(_))));
        let asked = metas.asked.lock().clone();
        assert_eq!((asked[4].as_str(), asked.len()), ("c:1", 4 + METAS_ASKED_MAX));
    }

    #[tokio::test]
    async fn the_cache_follows_meta_until_the_watch_ends() {
        let (catalogue, metas) = catalogue(vec![Ok(MetaResponse::NotNow("starting".into()))]);
        let (tables, leader) = (watch::Sender::new(None), watch::Sender::new(None));
        let keeping = catalogue.run(tables.subscribe(), leader.subscribe());
        let hear = async {
            let _ = catalogue.ensure("db3").await;
            leader.send_replace(Some("d:1".to_owned()));
            tables.send_replace(Some(Arc::new(BTreeMap::from([(TableId(1), table(1, "db0"))]))));
            while catalogue.table("db0").is_none() {
                tokio::task::yield_now().await;
            }
            let _ = catalogue.ensure("db3").await;
            drop(tables);
        };
        tokio::join!(keeping, hear);
        assert_eq!(metas.asked.lock()[..2], ["a:1", "d:1"]);
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        let told = |told| {
            let (catalogue, _) = catalogue(vec![Ok(told)]);
            async move { catalogue.ensure("db3").await.unwrap_err() }
        };
        assert_eq!(
            told(MetaResponse::Refused("too many tables".into())).await,
            CallError::ReadOnly("too many tables".into())
        );
        assert_eq!(
            told(MetaResponse::NotNow("starting".into())).await,
            CallError::NoLeader("starting".into())
        );
        assert_eq!(
            told(MetaResponse::Unknown("lost".into())).await,
            CallError::NoLeader("lost".into())
        );
        assert!(matches!(
            told(MetaResponse::Admin { status: 200, body: Bytes::new() }).await,
            CallError::Fault(_)
        ));
        let (down, _) = catalogue(Vec::new());
        assert!(matches!(down.ensure("db3").await, Err(CallError::NoLeader(_))));
    }

    #[tokio::test]
    async fn a_missing_table_is_asked_for_each_time() {
        let there = table(7, "db3");
        let none = || Ok(MetaResponse::Found(None));
        let (catalogue, metas) =
            catalogue(vec![none(), none(), Ok(MetaResponse::Found(Some(there.clone())))]);
        let version = catalogue.version();
        assert_eq!(
            (catalogue.find("db3").await, catalogue.find("db3").await),
            (Ok(None), Ok(None))
        );
        assert_eq!(
            (catalogue.version(), metas.asked.lock().len()),
            (version, 2),
            "a no is not remembered"
        );
        assert_eq!(catalogue.find("db3").await, Ok(Some(Arc::new(there.clone()))));
        assert!(catalogue.version() > version, "sessions look again");
        assert_eq!(catalogue.find("db3").await, Ok(Some(Arc::new(there.clone()))));
        assert_eq!(metas.asked.lock().len(), 3, "a yes is");
        // News of before the answer: it is asked for once more.
        catalogue.apply_all(&[]);
        metas.answers.lock().push_back(Ok(MetaResponse::Found(Some(there))));
        assert!(catalogue.find("db3").await.unwrap().is_some());
        assert_eq!(metas.asked.lock().len(), 4);
        assert_eq!(catalogue.find(&"x".repeat(NAME_BYTES_MAX + 1)).await, Ok(None));
        assert_eq!(metas.asked.lock().len(), 4, "meta is not asked for what cannot be");
    }

    #[tokio::test]
    async fn without_an_answer_of_meta_nothing_is_known() {
        let (catalogue, metas) = catalogue(vec![
            Ok(MetaResponse::Unknown("disk".into())),
            Ok(MetaResponse::Table(table(7, "db3"))),
        ]);
        assert_eq!(catalogue.find("db3").await, Err(CallError::NoLeader("disk".into())));
        assert!(
            matches!(catalogue.find("db3").await, Err(CallError::Fault(_))),
            "another question's answer"
        );
        let all = futures::future::join_all((0..100).map(|_| catalogue.find("db3"))).await;
        assert!(all.iter().all(|found| matches!(found, Err(CallError::NoLeader(_)))), "{all:?}");
        assert_eq!(
            metas.asked.lock().len(),
            2 + 2 * 3,
            "each meta was asked for the first, and once for all others"
        );
        assert!(matches!(catalogue.find_all().await, Err(CallError::NoLeader(_))));
        assert!(catalogue.tables().is_empty());
    }

    #[tokio::test]
    async fn all_tables_are_asked_for() {
        let (catalogue, metas) =
            catalogue(vec![Ok(MetaResponse::Tables(vec![table(1, "db0"), table(2, "users")]))]);
        catalogue.apply_all(&[table(1, "db0")]);
        let all = catalogue.find_all().await.unwrap();
        assert_eq!(
            all.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(),
            ["db0", "users"]
        );
        assert_eq!(metas.asked.lock().len(), 1);
    }

    #[tokio::test]
    async fn a_crowd_asks_once() {
        let (catalogue, metas) = catalogue(vec![Ok(MetaResponse::Table(table(7, "db3")))]);
        let all = futures::future::join_all((0..100).map(|_| catalogue.ensure("db3"))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(metas.asked.lock().len(), 1);
    }

    #[tokio::test]
    async fn an_operators_change_is_asked_for_once() {
        let ask = |method: &str| MetaRequest::Admin {
            method: method.to_owned(),
            path: "/v1/tables".into(),
            body: Bytes::new(),
        };
        let lost = || Err(NetError::Lost("the link is gone".into()));
        for method in ["POST", "PUT", "DELETE"] {
            let (catalogue, metas) = catalogue(vec![not_leading(Some("b:1")), lost()]);
            let Ok(MetaResponse::Unknown(why)) = catalogue.ask(&ask(method)).await else {
                panic!("nobody knows")
            };
            assert!(why.contains("outcome unknown"), "{why}");
            assert_eq!(*metas.asked.lock(), ["a:1", "b:1"], "no other is asked");
        }
        let (one, metas) = catalogue(vec![Ok(MetaResponse::Unknown(String::new()))]);
        metas.garbled.store(true, Ordering::Relaxed);
        assert!(
            matches!(one.ask(&ask("POST")).await, Ok(MetaResponse::Unknown(_))),
            "an answer that nobody understands"
        );
        assert_eq!(metas.asked.lock().len(), 1);
        // What was not sent was not done, and what only asks may be asked again.
        let done = || Ok(MetaResponse::Admin { status: 200, body: Bytes::new() });
        let (one, _) = catalogue(vec![Err(NetError::NotSent("down".into())), done()]);
        assert!(matches!(one.ask(&ask("POST")).await, Ok(MetaResponse::Admin { .. })));
        let (one, _) = catalogue(vec![lost(), done()]);
        assert!(matches!(one.ask(&ask("GET")).await, Ok(MetaResponse::Admin { .. })));
    }

    #[tokio::test]
    async fn a_late_answer_does_not_bring_back_a_dropped_table() {
        let (catalogue, _) = catalogue(Vec::new());
        let deltas_applied =
            |catalogue: &RemoteCatalogue| catalogue.deltas_applied.load(Ordering::Acquire);
        // Asked before its successor was heard of.
        let asked = deltas_applied(&catalogue);
        catalogue.apply_all(&[table(9, "db3")]);
        assert_eq!(catalogue.cache_table(table(7, "db3"), asked).id, TableId(9));
        assert_eq!(catalogue.table("db3").map(|table| table.id), Some(TableId(9)));
        // Asked before it was heard that it is gone.
        let asked = deltas_applied(&catalogue);
        catalogue.apply_all(&[]);
        catalogue.cache_table(table(9, "db3"), asked);
        assert_eq!(catalogue.table("db3"), None, "it is asked for again");
        // The successor itself, before the news.
        catalogue.cache_table(table(10, "db3"), deltas_applied(&catalogue));
        let asked = deltas_applied(&catalogue);
        catalogue.apply_all(&[table(10, "db3")]);
        assert_eq!(catalogue.cache_table(table(11, "db3"), asked).id, TableId(11));
        assert_eq!(catalogue.table("db3").map(|table| table.id), Some(TableId(11)));
    }
}
