//! The leading meta's control loop: advances the creation and removal of tables, tracks
//! liveness and balances leaders.
//!
//! Each step starts from the committed state and the reports, so the next leader
//! continues where this one stopped.

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

/// Interval of the loop when nothing wakes it.
const TICK_INTERVAL: Duration = Duration::from_millis(250);
/// Timeout for a majority of the metas to confirm that this one leads.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(500);
/// Without confirmation for this long (three of Raft's leases) another meta leads if one
/// can: a Raft leader that is cut off does not notice it.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(3);
/// Leaders are balanced after no server has connected or disconnected for this long.
const BALANCE_DELAY: Duration = Duration::from_secs(5);
/// Interval between two rounds of balancing.
const BALANCE_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of transfers in a round.
const TRANSFERS_MAX: usize = 4;
/// A transfer that was attempted is not repeated before this time has passed.
const TRANSFER_RETRY_AFTER: Duration = Duration::from_secs(30);
/// A leadership that an operator has moved is not balanced for this long.
const OPERATOR_HOLD: Duration = Duration::from_secs(600);
/// A member that lacks more entries of the log is not made a leader.
pub(crate) const LAG_MAX: u64 = 1000;

/// Orders that wait for a server's channel.
pub(crate) const INSTRUCTIONS_MAX: usize = 1024;

/// The controller's memory; nothing depends on it after it is lost.
#[derive(Debug)]
pub(crate) struct ControllerState {
    /// Senders of instructions, by server, with the channel's number.
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
    /// Run and duration (ms) of the last compaction of a table, once it has ended.
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

    /// Duration of a compaction: `elapsed_ms` while it runs, then the value of the first
    /// question after its end.
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
            // Attached servers must look for the present leader.
            tracing::warn!(
                "this meta steps down: no majority of the metas confirms its leadership"
            );
            self.resign();
        }
    }

    async fn tick(&self, is_leader: bool, term: u64) {
        let leads_in = self.image.borrow().term;
        if !is_leader {
            if leads_in.is_some() {
                tracing::info!("this meta no longer leads");
                self.resign();
            }
            return;
        }
        if leads_in != Some(term) {
            match self.ensure_leading().await {
                Ok(()) => tracing::info!(term, "this meta leads"),
                Err(error) => {
                    tracing::debug!(%error, "this meta cannot lead yet");
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
                        tracing::warn!(
                            %disk_problem,
                            %error,
                            "no other meta can take over the leadership"
                        )
                    }
                }
            });
        }
    }

    /// Marks servers without heartbeats as down, and publishes new leaders.
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
            let seconds = HEARTBEAT_TIMEOUT.as_secs();
            tracing::warn!(%server, address, "server is down: no heartbeat for {seconds} s");
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
                    tracing::warn!(id = id.0, %error, "cannot make a new table ready yet")
                }
            }
        }
        for (id, server) in destroyed {
            match self.command(MetaCommand::MarkDestroyed { id, server }).await {
                Ok(_) | Err(MetaError::Refused(_)) => {}
                Err(error) => {
                    tracing::warn!(id = id.0, %error, "cannot forget a dropped table yet")
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
            let index = partition.index;
            tracing::info!(
                table,
                partition = index,
                from = %server,
                to_member = to,
                "balancing leaders: leadership transfer"
            );
            if let Err(error) = self.send_instruction(server, instruction) {
                tracing::debug!(%server, %error, "cannot transfer a leadership");
            }
        }
    }

    /// Sends an instruction to a server.
    ///
    /// # Errors
    /// [`MetaError::NotNow`]: it has no channel, or its queue of instructions is full.
    pub(crate) fn send_instruction(
        &self,
        server: ServerId,
        instruction: Instruction,
    ) -> Result<(), MetaError> {
        let not_now = |why: &str| MetaError::NotNow(format!("server {server} {why}"));
        let controller = self.controller.lock();
        let (_, sender) =
            controller.instructions.get(&server).ok_or_else(|| not_now("is not connected"))?;
        sender.try_send(instruction).map_err(|_| not_now("takes no more instructions"))
    }
}
