//! What the meta that leads does by itself: takes the next step of creations and drops,
//! notices who has fallen silent, and keeps leaders even.
//!
//! Everything here starts from what is committed and what is reported, so whoever leads
//! next goes on where this one was.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Weak;
use std::time::{Duration, Instant};

use cluster::meta_protocol::Instruction;
use cluster::{Member, PartitionId, ServerId, TableId};
use tokio::sync::mpsc;

use crate::error::MetaError;
use crate::image::MetadataImage;
use crate::liveness::{HEARTBEAT_TIMEOUT, ServerTracker};
use crate::meta::{Meta, MetaMode};
use crate::placement::{self, LedPartition};
use crate::state::{MetaCommand, TablePhase};

/// How often it looks around when nothing stirs it.
const TICK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a majority of the metas may take to confirm that this one leads.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(500);
/// Without a majority's word for so long, three of Raft's leases, another meta leads if
/// one can: Raft's leader that is cut off from the others does not notice.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(3);
/// How long nobody may have come or gone before leaders are moved.
const BALANCE_DELAY: Duration = Duration::from_secs(5);
/// Between two rounds of moving leaders.
const BALANCE_INTERVAL: Duration = Duration::from_secs(1);
/// The most leaders that are moved in a round.
const TRANSFERS_MAX: usize = 4;
/// A leadership that was to be moved is not tried again for so long.
const TRANSFER_RETRY_AFTER: Duration = Duration::from_secs(30);
/// How long a leadership that an operator has moved is left alone.
const OPERATOR_HOLD: Duration = Duration::from_secs(600);
/// A member that lacks more entries of the log is not made a leader.
pub(crate) const LAG_MAX: u64 = 1000;

/// Orders that wait for a server's channel.
pub(crate) const INSTRUCTIONS_MAX: usize = 1024;

/// What the leader has in hand; of no consequence when it is lost.
#[derive(Debug)]
pub(crate) struct ControllerState {
    /// Where orders go, by server, with the channel's number.
    instructions: BTreeMap<ServerId, (u64, mpsc::Sender<Instruction>)>,
    /// Since when nobody has come or gone.
    servers_changed_at: Instant,
    /// When leaders were last moved.
    balanced_at: Option<Instant>,
    /// Leaderships that were to be moved, and when.
    attempted: BTreeMap<PartitionId, Instant>,
    /// Leaderships that an operator has moved: to whom, and when.
    operator_holds: BTreeMap<PartitionId, (ServerId, Instant)>,
    /// The last compaction of a table.
    compaction_runs: BTreeMap<TableId, u64>,
    /// How long the last compaction of a table has taken, once it was seen to have ended:
    /// which, and ms.
    compaction_ms: BTreeMap<TableId, (u64, u64)>,
}

impl ControllerState {
    pub(crate) fn new(now: Instant) -> ControllerState {
        ControllerState {
            instructions: BTreeMap::new(),
            servers_changed_at: now,
            balanced_at: None,
            attempted: BTreeMap::new(),
            operator_holds: BTreeMap::new(),
            compaction_runs: BTreeMap::new(),
            compaction_ms: BTreeMap::new(),
        }
    }

    /// A server has a channel.
    pub(crate) fn open(&mut self, server: ServerId, session: u64) -> mpsc::Receiver<Instruction> {
        let (sender, receiver) = mpsc::channel(INSTRUCTIONS_MAX);
        self.instructions.insert(server, (session, sender));
        self.servers_changed(Instant::now());
        receiver
    }

    /// Its channel is gone.
    pub(crate) fn close(&mut self, server: ServerId, session: u64) {
        if self.instructions.get(&server).is_some_and(|(current, _)| *current == session) {
            self.instructions.remove(&server);
        }
        self.servers_changed(Instant::now());
    }

    fn servers_changed(&mut self, now: Instant) {
        self.servers_changed_at = now;
        self.attempted.clear();
    }

    pub(crate) fn hold_for_operator(&mut self, partition: PartitionId, at: ServerId) {
        self.operator_holds.insert(partition, (at, Instant::now()));
    }

    /// The number of a new compaction: larger than all before, and its start in ms.
    pub(crate) fn new_run(&mut self, table: TableId, now_ms: u64) -> u64 {
        let last = self.compaction_runs.values().max().copied().unwrap_or(0);
        let run = now_ms.max(last + 1);
        self.compaction_runs.insert(table, run);
        run
    }

    /// The last compaction of a table that was begun here.
    pub(crate) fn compaction_run(&self, table: TableId) -> Option<u64> {
        self.compaction_runs.get(&table).copied()
    }

    /// How long a compaction has taken: as long as it goes on `elapsed_ms`, then what it
    /// was when that was first asked for.
    pub(crate) fn compaction_ms(
        &mut self,
        table: TableId,
        run: u64,
        is_running: bool,
        elapsed_ms: u64,
    ) -> u64 {
        if is_running {
            return elapsed_ms;
        }
        let entry = self.compaction_ms.entry(table).or_insert((run, elapsed_ms));
        if entry.0 != run {
            *entry = (run, elapsed_ms);
        }
        entry.1
    }

    /// Which leaderships to move now: where to send the instruction, and what it says.
    fn transfers(
        &mut self,
        image: &MetadataImage,
        tracker: &ServerTracker,
        now: Instant,
    ) -> Vec<(ServerId, Instruction)> {
        let age = |since: Instant| now.saturating_duration_since(since);
        self.attempted.retain(|_, when| age(*when) < TRANSFER_RETRY_AFTER);
        self.operator_holds.retain(|partition, (_, since)| {
            age(*since) < OPERATOR_HOLD && image.state.placements.contains_key(partition)
        });
        self.compaction_runs.retain(|table, _| image.state.tables.contains_key(table));
        self.compaction_ms.retain(|table, _| image.state.tables.contains_key(table));
        if age(self.servers_changed_at) < BALANCE_DELAY
            || self.balanced_at.is_some_and(|balanced_at| age(balanced_at) < BALANCE_INTERVAL)
        {
            return Vec::new();
        }
        let wanted = placement::balance(&leaders(image, tracker, &self.operator_holds));
        let mut instructions = Vec::new();
        for (partition, to) in wanted
            .into_iter()
            .filter(|(partition, _)| !self.attempted.contains_key(partition))
            .take(TRANSFERS_MAX)
        {
            let member =
                image.state.placements.get(&partition).and_then(|placement| placement.on(to));
            if let (Some(leader), Some(member)) = (tracker.leader(partition), member) {
                instructions.push((
                    leader.server,
                    Instruction::Transfer { partition, term: leader.term, to: member.raft_id },
                ));
            }
        }
        self.balanced_at = Some(now);
        for (_, instruction) in &instructions {
            if let Instruction::Transfer { partition, .. } = instruction {
                self.attempted.insert(*partition, now);
            }
        }
        instructions
    }
}

/// Partitions that have a leader, with those who could lead them.
fn leaders(
    image: &MetadataImage,
    tracker: &ServerTracker,
    operator_holds: &BTreeMap<PartitionId, (ServerId, Instant)>,
) -> Vec<LedPartition> {
    let serves = |table| {
        image.state.tables.get(&table).is_some_and(|record| record.status == TablePhase::Ready)
    };
    let placements =
        image.state.placements.values().filter(|placement| serves(placement.partition.table));
    let led = placements.filter_map(|placement| {
        let partition = placement.partition;
        let leader =
            tracker.leader(partition).filter(|_| tracker.leading(partition).is_some())?.server;
        let preferred = placement.members.first()?.server;
        if operator_holds.get(&partition).is_some_and(|(at, _)| *at == leader) {
            return Some(LedPartition {
                partition,
                leader: Some(leader),
                preferred: leader,
                able: vec![leader],
            });
        }
        // Whose disk is slow, full or failed has handed over what it led, and gets it
        // back when it is well.
        let should_lead = |member: &&Member| {
            tracker.should_lead(member.server, partition, member.raft_id, LAG_MAX)
        };
        let able = placement.members.iter().filter(should_lead);
        Some(LedPartition {
            partition,
            leader: Some(leader),
            preferred,
            able: able.map(|member| member.server).collect(),
        })
    });
    led.collect()
}

/// Leads whenever the group says so, until the meta is gone.
pub(crate) async fn run_controller(meta: Weak<Meta>) {
    let (mut role, mut wakeups) = match meta.upgrade() {
        Some(meta) => (meta.group.leadership_changes(), meta.wakeups.subscribe()),
        None => return,
    };
    loop {
        wakeups.borrow_and_update();
        let now = *role.borrow_and_update();
        {
            let Some(meta) = meta.upgrade() else { return };
            meta.tick(now.is_leader, now.term).await;
        }
        tokio::select! {
            _ = wakeups.changed() => {}
            changed = role.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(TICK_INTERVAL) => {}
        }
    }
}

/// Sees to it that this meta does not go on to act as the leader without a majority,
/// whatever else it waits for, until it is gone.
pub(crate) async fn run_confirmation(meta: Weak<Meta>) {
    loop {
        {
            let Some(meta) = meta.upgrade() else { return };
            meta.confirm_or_resign().await;
        }
        tokio::time::sleep(TICK_INTERVAL).await;
    }
}

impl Meta {
    async fn confirm_or_resign(&self) {
        let Some(leads_in) = self.image.borrow().term else { return };
        if matches!(
            tokio::time::timeout(CONFIRM_TIMEOUT, self.group.confirm_leadership()).await,
            Ok(Ok(_))
        ) {
            *self.confirmed.lock() = Instant::now();
        } else if self.confirmed.lock().elapsed() >= UNCONFIRMED_MAX
            && self.image.borrow().term == Some(leads_in)
        {
            // Who is attached here is to look for the one that leads now.
            tracing::warn!(
                "no majority of the metas confirms that this one leads: it does not act as the \
                 leader any more"
            );
            self.resign();
        }
    }

    async fn tick(&self, is_leader: bool, term: u64) {
        let leads_in = self.image.borrow().term;
        if !is_leader {
            if leads_in.is_some() {
                tracing::info!("this meta does not lead any more");
                self.resign();
            }
            return;
        }
        if leads_in != Some(term) {
            match self.ensure_leading().await {
                Ok(()) => tracing::info!(term, "this meta leads"),
                Err(error) => {
                    tracing::debug!(%error, "this meta can't lead yet");
                    return;
                }
            }
        }
        self.refresh_liveness();
        self.leave_ailing_disk();
        self.advance_tables().await;
        self.balance_leaders();
    }

    /// Has another meta lead while the disk of this one is slow, full or failed.
    fn leave_ailing_disk(&self) {
        if let (MetaMode::Member { .. }, Some(disk_problem)) =
            (&self.options.mode, self.group.disk_problem())
        {
            let group = self.group.clone();
            tokio::spawn(async move {
                // No lease of meta's outlives the decision that it was taken for.
                match group.evict_leader(disk_problem.clone(), Box::new(|| ())).await {
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%disk_problem, %error, "another meta should lead, and none can")
                    }
                }
            });
        }
    }

    /// Who has fallen silent, and who leads now.
    fn refresh_liveness(&self) {
        let now = Instant::now();
        let mut tracker = self.tracker.lock();
        if let MetaMode::Standalone(server) = &self.options.mode {
            tracker.touch(server.id, now);
        }
        let silent = tracker.take_timed_out(now);
        let image = self.image.borrow().clone();
        if image.term.is_some() && image.has_old_leaders(&tracker) {
            self.image.send_replace(std::sync::Arc::new(
                MetadataImage::clone(&image).with_leaders(&tracker),
            ));
        }
        drop(tracker);
        for server in silent {
            let address = image.servers.get(&server).map(|server| server.address.clone());
            tracing::warn!(%server, address, "server is down: nothing was heard of it for {} s", HEARTBEAT_TIMEOUT.as_secs());
            self.controller.lock().servers_changed(now);
        }
    }

    /// Takes the next step of creations and drops.
    async fn advance_tables(&self) {
        let (tables_formed, destroyed) = {
            let (tracker, image) = (self.tracker.lock(), self.image.borrow());
            (tracker.tables_formed(&image.state), tracker.destroyed(&image.state))
        };
        for id in tables_formed {
            match self.command(MetaCommand::MarkReady { id }).await {
                Ok(table) => tracing::info!(
                    id = id.0,
                    table = table.map(|table| table.name.clone()),
                    "table created"
                ),
                Err(MetaError::Refused(_)) => {}
                Err(error) => {
                    tracing::warn!(id = id.0, %error, "a new table can't be made ready yet")
                }
            }
        }
        for (id, server) in destroyed {
            match self.command(MetaCommand::MarkDestroyed { id, server }).await {
                Ok(_) | Err(MetaError::Refused(_)) => {}
                Err(error) => {
                    tracing::warn!(id = id.0, %error, "a dropped table can't be forgotten yet")
                }
            }
        }
    }

    fn balance_leaders(&self) {
        let transfers = {
            let tracker = self.tracker.lock();
            let image = self.image.borrow().clone();
            self.controller.lock().transfers(&image, &tracker, Instant::now())
        };
        for (server, instruction) in VecDeque::from(transfers) {
            let Instruction::Transfer { partition, term: _, to } = &instruction else { continue };
            let table =
                self.image.borrow().tables.get(&partition.table).map(|table| table.name.clone());
            tracing::info!(table, partition = partition.index, from = %server, to_member = to, "leaders are evened out: a leadership is handed over");
            if let Err(error) = self.send_instruction(server, instruction) {
                tracing::debug!(%server, %error, "a leadership can't be moved");
            }
        }
    }

    /// Sends an instruction to a server.
    ///
    /// # Errors
    /// [`MetaError::NotNow`]: it has no channel, or does not take its orders.
    pub(crate) fn send_instruction(
        &self,
        server: ServerId,
        instruction: Instruction,
    ) -> Result<(), MetaError> {
        let not_now = |why: &str| MetaError::NotNow(format!("server {server} {why}"));
        let controller = self.controller.lock();
        let (_, sender) =
            controller.instructions.get(&server).ok_or_else(|| not_now("is not connected"))?;
        sender.try_send(instruction).map_err(|_| not_now("does not take its orders"))
    }
}
