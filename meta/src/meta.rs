//! The meta group's member in this process: the group, the leader's decisions, and the
//! image that it publishes.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use cluster::meta_protocol::Server;
use cluster::net::Net;
use cluster::{Fault, ServerId, Table};
use engine::batch::Family;
use engine::log::Log;
use engine::raft::{
    Group, GroupError, GroupOptions, GroupStats, Leadership, Node, Ticker, Transport,
};
use engine::store::{SharedResources, Store, StoreHealth};
use engine::time::{SlewedClock, StampClock};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::codec;
use crate::controller::{self, ControllerState};
use crate::embedded::{CommittedTables, OpenTables};
use crate::error::MetaError;
use crate::image::MetadataImage;
use crate::liveness::ServerTracker;
use crate::state::{MetaCommand, MetaState};

/// Meta's group in the node's log and on the wire; partitions' numbers are far above.
pub const GROUP: u64 = 0;

/// Timeout for a majority to confirm a change and those before it. After that another
/// meta leads, if one can.
const MAJORITY_TIMEOUT: Duration = Duration::from_secs(5);
/// Standalone, no other meta can lead, however slow the disk is.
const STANDALONE_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Options of a meta.
#[derive(Clone)]
pub struct MetaOptions {
    /// Directory of its store.
    pub dir: PathBuf,
    /// The runtime that Raft runs on.
    pub raft_runtime: tokio::runtime::Handle,
    /// Partitions of a table that is created without saying how many.
    pub partitions: u32,
    /// Replicas of a partition of a table that is created without saying how many.
    pub replicas: u32,
    /// A random number: the cluster's id, if it is this meta that founds it.
    pub cluster: u64,
    /// The process's time, by which commands are stamped.
    pub clock: Arc<SlewedClock>,
    /// Membership of the group.
    pub mode: MetaMode,
}

/// Membership of the meta group.
#[derive(Clone)]
pub enum MetaMode {
    /// A group of one, in the process that is also the only server (standalone): no
    /// channels; updates are function calls.
    Standalone(Server),
    /// A member of a group.
    Member {
        /// The addresses of all members, the same list in the same order everywhere: the
        /// n-th has Raft id n and is [`ServerId::of_meta`] n to the wire.
        members: Vec<String>,
        /// Which of them this is; the first is 1.
        position: u32,
        /// Carries the group's Raft messages; it resolves meta indices to `members`.
        transport: Arc<dyn Transport>,
        /// The process's clock of groups.
        ticker: Arc<Ticker>,
        /// The way to the other metas, for requests that only the leader can answer.
        net: Arc<Net>,
    },
}

/// The leader's own copy of the state, under the lock that makes decisions one at a time.
#[derive(Debug, Default)]
struct LeaderState {
    state: MetaState,
    /// The term in which `state` was read from the store and since kept; `None`: it must
    /// be read again.
    term: Option<u64>,
}

/// A member of the meta group. Commands work on the one that leads; the others say who
/// that is.
pub struct Meta {
    /// Ourselves, for what must go on when its caller goes away.
    me: Weak<Meta>,
    pub(crate) options: MetaOptions,
    pub(crate) group: Group,
    store: Store,
    log: Arc<Log>,
    leader_state: tokio::sync::Mutex<LeaderState>,
    stamps: StampClock,
    /// When a majority of the metas has last confirmed that this one leads.
    pub(crate) confirmed: Mutex<Instant>,
    /// Locked before `image` is replaced, so that both are always of one leadership.
    pub(crate) tracker: Mutex<ServerTracker>,
    pub(crate) controller: Mutex<ControllerState>,
    pub(crate) image: watch::Sender<Arc<MetadataImage>>,
    /// Counts the controller's wakeups: reports and new images.
    pub(crate) wakeups: watch::Sender<u64>,
    pub(crate) tables: watch::Sender<Arc<CommittedTables>>,
    pub(crate) view: ArcSwap<OpenTables>,
    pub(crate) version: watch::Sender<u64>,
    tasks: Mutex<Vec<tokio::task::AbortHandle>>,
}

impl Meta {
    /// Opens the store and starts the group. Standalone, it also waits until it leads and
    /// has read its state; a member of a group of several is open before there is a
    /// leader.
    ///
    /// # Errors
    /// [`MetaError::Fault`]: store or log can't be read; the configured members are not
    /// as many as a group may have.
    pub async fn open(
        options: MetaOptions,
        log: &Arc<Log>,
        shared: &SharedResources,
    ) -> Result<Arc<Meta>, MetaError> {
        let (dir, shared) = (options.dir.clone(), shared.clone());
        let store = tokio::task::spawn_blocking(move || Store::open(&shared, dir)).await?;
        let store = store?;
        let (group_log, group_store, mode) =
            (log.group_log(GROUP), store.clone(), options.mode.clone());
        let start = async move {
            match mode {
                MetaMode::Standalone(_) => {
                    Group::start_standalone(1, "meta".to_owned(), group_log, group_store)
                        .await
                        .map_err(MetaError::from)
                }
                MetaMode::Member { members, position, transport, ticker, net: _ } => {
                    check_members(&members, position)?;
                    let metas = (1..=members.len() as u32)
                        .map(|n| (u64::from(n), Node { server: ServerId::of_meta(n).0 }))
                        .collect();
                    let options = GroupOptions {
                        group: GROUP,
                        id: u64::from(position),
                        name: "meta".to_owned(),
                        log: group_log,
                        store: group_store,
                        transport,
                        initial: Some(metas),
                        ticker,
                    };
                    Group::start(options).await.map_err(MetaError::from)
                }
            }
        };
        let group = options.raft_runtime.spawn(start).await??;
        let stamps = StampClock::new(options.clock.clone(), 0);
        let meta = Arc::new_cyclic(|me| Meta {
            me: me.clone(),
            options,
            group,
            store,
            log: log.clone(),
            leader_state: tokio::sync::Mutex::default(),
            stamps,
            confirmed: Mutex::new(Instant::now()),
            tracker: Mutex::default(),
            controller: Mutex::new(ControllerState::new(Instant::now())),
            image: watch::Sender::new(Arc::new(MetadataImage::empty())),
            wakeups: watch::Sender::new(0),
            tables: watch::Sender::default(),
            view: ArcSwap::default(),
            version: watch::Sender::new(0),
            tasks: Mutex::default(),
        });
        if matches!(meta.options.mode, MetaMode::Standalone(_)) {
            meta.ensure_leading().await?;
        }
        let tasks = [
            tokio::spawn(controller::run_controller(meta.me.clone())),
            tokio::spawn(controller::run_confirmation(meta.me.clone())),
        ];
        *meta.tasks.lock() = tasks.iter().map(tokio::task::JoinHandle::abort_handle).collect();
        Ok(meta)
    }

    /// Makes sure that this meta leads and that the published image is of this
    /// leadership.
    pub(crate) async fn ensure_leading(&self) -> Result<(), MetaError> {
        let mut leader_state = self.leader_state.lock().await;
        self.ensure_current(&mut leader_state).await?;
        Ok(())
    }

    /// Makes sure that we lead and that the copy of the state is that of the store.
    async fn ensure_current(
        &self,
        leader_state: &mut LeaderState,
    ) -> Result<Leadership, MetaError> {
        let established =
            tokio::time::timeout(self.majority_timeout(), self.group.acquire_leadership()).await;
        let established = established.unwrap_or_else(|_| {
            Err(GroupError::NotLeader { why: "no majority answers".to_owned(), leader: None })
        });
        let leadership = established.map_err(|error| self.refused(error))?;
        *self.confirmed.lock() = Instant::now();
        // Who has resigned for want of a majority may lead again in the same term.
        if leader_state.term == Some(leadership.term())
            && self.image.borrow().term == leader_state.term
        {
            return Ok(leadership);
        }
        leader_state.state = self.read_state()?;
        leader_state.term = Some(leadership.term());
        self.propose_changes(
            leader_state,
            &leadership,
            MetaCommand::BootstrapCluster { cluster: self.options.cluster },
        )
        .await?;
        if let MetaMode::Standalone(server) = &self.options.mode {
            self.propose_changes(leader_state, &leadership, MetaCommand::Register(server.clone()))
                .await?;
        }
        self.publish(&leader_state.state, leadership.term());
        Ok(leadership)
    }

    fn majority_timeout(&self) -> Duration {
        match self.options.mode {
            MetaMode::Standalone(_) => STANDALONE_TIMEOUT,
            MetaMode::Member { .. } => MAJORITY_TIMEOUT,
        }
    }

    fn read_state(&self) -> Result<MetaState, MetaError> {
        let mut state = MetaState::default();
        let mut bad = None;
        // Keys below 0x01 are the store's own.
        self.store.range(
            Family::Default,
            &[1],
            &[],
            false,
            &mut |key, value| match codec::load(&mut state, key, value) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    bad = Some(error);
                    ControlFlow::Break(())
                }
            },
        )?;
        bad.map_or(Ok(state), |error| Err(MetaError::Fault(Fault::damaged(error.to_string()))))
    }

    fn writable(&self) -> Result<(), MetaError> {
        self.log.writable().map_err(|full| MetaError::DiskFull(full.to_string()))?;
        match self.store.health() {
            StoreHealth::Good => Ok(()),
            StoreHealth::DiskFull(why) => Err(MetaError::DiskFull(why)),
            StoreHealth::Failing(fault) => Err(fault.into()),
        }
    }

    /// Decides a command, and waits until it is applied. Runs to its end even when the
    /// caller goes away: a decision that is under way must not be followed by one on a
    /// state that lacks it. Answers the table that it was about.
    pub(crate) async fn command(
        &self,
        command: MetaCommand,
    ) -> Result<Option<Arc<Table>>, MetaError> {
        let meta = self.me.upgrade().expect("`self` is borrowed from the Arc that `me` points to");
        tokio::spawn(async move { meta.decide(command).await })
            .await
            .map_err(|error| MetaError::Unknown(error.to_string()))?
    }

    /// As [`Meta::command`], of a command that is about a table.
    pub(crate) async fn table_command(
        &self,
        command: MetaCommand,
    ) -> Result<Arc<Table>, MetaError> {
        Ok(self.command(command).await?.expect("commands about tables answer one"))
    }

    async fn decide(&self, command: MetaCommand) -> Result<Option<Arc<Table>>, MetaError> {
        let mut leader_state = self.leader_state.lock().await;
        let leadership = self.ensure_current(&mut leader_state).await?;
        let (table, changed) =
            self.propose_changes(&mut leader_state, &leadership, command).await?;
        if changed {
            self.publish(&leader_state.state, leadership.term());
        }
        Ok(table)
    }

    /// Decides a command under a leadership, proposes what it changes, and waits until
    /// that is applied.
    async fn propose_changes(
        &self,
        leader_state: &mut LeaderState,
        leadership: &Leadership,
        command: MetaCommand,
    ) -> Result<(Option<Arc<Table>>, bool), MetaError> {
        self.stamps.advance_to(leader_state.state.stamp_ms);
        let stamp_ms = self.stamps.now_ms();
        let decided = leader_state.state.decide(command, stamp_ms)?;
        if decided.changes.is_empty() {
            return Ok((decided.table, false));
        }
        self.writable()?;
        // Until we know how it went, our copy counts for nothing.
        leader_state.term = None;
        // Raft does not notify a leader that is cut off, and its proposal would wait
        // for as long as the cut lasts, and with it all that is to be decided. What
        // became of it is seen in the state that is read before the next decision, which
        // waits for it.
        let batch = codec::batch(&decided.changes, stamp_ms);
        let proposed =
            tokio::time::timeout(self.majority_timeout(), self.group.propose(leadership, batch))
                .await;
        let proposed = proposed.unwrap_or_else(|_| {
            Err(GroupError::Unknown("no majority of the metas has confirmed it in time".to_owned()))
        });
        proposed.map_err(|error| self.refused(error))?;
        leader_state.state.apply(&decided.changes, stamp_ms);
        leader_state.term = Some(leadership.term());
        Ok((decided.table, true))
    }

    /// A refusal by the group, with the leader's address as far as we know.
    fn refused(&self, error: GroupError) -> MetaError {
        match MetaError::from(error) {
            MetaError::NotLeading { .. } => MetaError::NotLeading { leader: self.leader_address() },
            other => other,
        }
    }

    /// The address of the meta that leads, as far as this one knows; `None` also when it
    /// is this one.
    pub fn leader_address(&self) -> Option<String> {
        let MetaMode::Member { members, position, .. } = &self.options.mode else { return None };
        let leader = self.group.stats().leader?.raft_id;
        let address = members.get(usize::try_from(leader).ok()?.checked_sub(1)?)?;
        (leader != u64::from(*position)).then(|| address.clone())
    }

    fn publish(&self, state: &MetaState, term: u64) {
        let mut tracker = self.tracker.lock();
        let before = self.image.borrow().clone();
        if before.term != Some(term) {
            tracker.reset();
            if let MetaMode::Standalone(server) = &self.options.mode {
                tracker.on_connected(server.id, String::new(), Instant::now());
            }
        }
        tracker.retain_known(state);
        self.image.send_replace(Arc::new(before.next(term, state, &tracker)));
        drop(tracker);
        self.publish_to_local_server();
        self.wake();
    }

    /// This meta does not lead any more.
    pub(crate) fn resign(&self) {
        let mut tracker = self.tracker.lock();
        tracker.reset();
        let resigned = self.image.borrow().resigned();
        self.image.send_replace(Arc::new(resigned));
        drop(tracker);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        self.wakeups.send_modify(|count| *count += 1);
    }

    /// The image, while this meta leads.
    ///
    /// # Errors
    /// [`MetaError::NotLeading`].
    pub fn image(&self) -> Result<Arc<MetadataImage>, MetaError> {
        let image = self.image.borrow().clone();
        match image.term {
            Some(_) => Ok(image),
            None => Err(MetaError::NotLeading { leader: self.leader_address() }),
        }
    }

    /// The image, once it is certain that no other meta had decided anything by the time
    /// of the call. A table that any process has announced before the call is therefore
    /// in it.
    ///
    /// # Errors
    /// [`MetaError::NotLeading`], also without a majority of the metas.
    pub(crate) async fn confirmed(&self) -> Result<Arc<MetadataImage>, MetaError> {
        let term = self.group.confirm_leadership().await.map_err(|error| self.refused(error))?;
        let image = self.image.borrow().clone();
        if image.term == Some(term) {
            return Ok(image);
        }
        // It has only just come to lead, and shows what was before.
        self.ensure_leading().await?;
        self.image()
    }

    /// True if a meta index belongs to a server, or to none yet. Raft messages of another
    /// server would come from a meta that has lost its votes.
    pub fn owns_meta_index(&self, index: u64, server: ServerId) -> bool {
        let Ok(index) = u32::try_from(index) else { return false };
        match self.store.get(Family::Default, &codec::meta_index_key(index)) {
            Ok(Some(known)) => codec::meta_index_owner(&known) == Some(server),
            Ok(None) => true,
            // A meta that cannot read its own records accepts nothing.
            Err(_) => false,
        }
    }

    /// True if the cluster has an id, as far as this meta knows.
    pub(crate) fn has_cluster_id(&self) -> bool {
        !matches!(self.store.get(Family::Default, codec::CLUSTER), Ok(None))
    }

    /// The member of the group, for incoming Raft messages and for figures.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// The group's figures.
    pub fn figures(&self) -> GroupStats {
        self.group.stats()
    }

    /// Stops the group and flushes its store. Call it after everybody else has stopped.
    pub async fn close(&self) -> Result<(), MetaError> {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        let _nobody_decides = self.leader_state.lock().await;
        self.resign();
        self.group.shutdown().await;
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.close()).await??;
        Ok(())
    }
}

fn check_members(members: &[String], position: u32) -> Result<(), MetaError> {
    if ![1, 3, 5].contains(&members.len()) {
        return Err(MetaError::Fault(Fault::internal(format!(
            "a meta group has 1, 3 or 5 members, and {} are configured",
            members.len()
        ))));
    }
    if position == 0 || position as usize > members.len() {
        return Err(MetaError::Fault(Fault::internal(format!(
            "this meta is said to be member {position} of {}",
            members.len()
        ))));
    }
    Ok(())
}

/// The wall clock, ms since the epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
