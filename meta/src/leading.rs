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

use crate::catalogue::{Meta, MetaMode};
use crate::error::MetaError;
use crate::picture::Picture;
use crate::placement::{self, Led};
use crate::roster::{Roster, SILENCE_MAX};
use crate::state::{Command, Status};

/// How often it looks around when nothing stirs it.
const TICK: Duration = Duration::from_millis(250);
/// How long a majority of the metas may take to confirm that this one leads.
const CONFIRM_PATIENCE: Duration = Duration::from_millis(500);
/// Without a majority's word for so long, three of Raft's leases, another meta leads if
/// one can: Raft's leader that is cut off from the others does not notice.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(3);
/// How long nobody may have come or gone before leaders are moved.
const CALM: Duration = Duration::from_secs(5);
/// Between two rounds of moving leaders.
const ROUND: Duration = Duration::from_secs(1);
/// The most leaders that are moved in a round.
const MOVES_MAX: usize = 4;
/// A leadership that was to be moved is not tried again for so long.
const RETRY: Duration = Duration::from_secs(30);
/// How long a leadership that an operator has moved is left alone.
const HELD: Duration = Duration::from_secs(600);
/// A member that lacks more entries of the log is not made a leader.
pub(crate) const LAG_MAX: u64 = 1000;

/// Orders that wait for a server's channel.
pub(crate) const ORDERS_MAX: usize = 1024;

/// What the leader has in hand; of no consequence when it is lost.
#[derive(Debug)]
pub(crate) struct Desk {
    /// Where orders go, by server, with the channel's number.
    orders: BTreeMap<ServerId, (u64, mpsc::Sender<Instruction>)>,
    /// Since when nobody has come or gone.
    calm_since: Instant,
    /// When leaders were last moved.
    moved: Option<Instant>,
    /// Leaderships that were to be moved, and when.
    tried: BTreeMap<PartitionId, Instant>,
    /// Leaderships that an operator has moved: to whom, and when.
    held: BTreeMap<PartitionId, (ServerId, Instant)>,
    /// The last compaction of a table.
    runs: BTreeMap<TableId, u64>,
    /// How long the last compaction of a table has taken, once it was seen to have ended:
    /// which, and ms.
    took: BTreeMap<TableId, (u64, u64)>,
}

impl Desk {
    pub(crate) fn new(now: Instant) -> Desk {
        Desk {
            orders: BTreeMap::new(),
            calm_since: now,
            moved: None,
            tried: BTreeMap::new(),
            held: BTreeMap::new(),
            runs: BTreeMap::new(),
            took: BTreeMap::new(),
        }
    }

    /// A server has a channel.
    pub(crate) fn open(&mut self, server: ServerId, session: u64) -> mpsc::Receiver<Instruction> {
        let (sender, receiver) = mpsc::channel(ORDERS_MAX);
        self.orders.insert(server, (session, sender));
        self.stirred(Instant::now());
        receiver
    }

    /// Its channel is gone.
    pub(crate) fn close(&mut self, server: ServerId, session: u64) {
        if self.orders.get(&server).is_some_and(|(current, _)| *current == session) {
            self.orders.remove(&server);
        }
        self.stirred(Instant::now());
    }

    fn stirred(&mut self, now: Instant) {
        self.calm_since = now;
        self.tried.clear();
    }

    pub(crate) fn hold(&mut self, partition: PartitionId, at: ServerId) {
        self.held.insert(partition, (at, Instant::now()));
    }

    /// The number of a new compaction: larger than all before, and its start in ms.
    pub(crate) fn new_run(&mut self, table: TableId, now_ms: u64) -> u64 {
        let last = self.runs.values().max().copied().unwrap_or(0);
        let run = now_ms.max(last + 1);
        self.runs.insert(table, run);
        run
    }

    /// The last compaction of a table that was begun here.
    pub(crate) fn run(&self, table: TableId) -> Option<u64> {
        self.runs.get(&table).copied()
    }

    /// How long a compaction has taken: as long as it goes on `elapsed_ms`, then what it
    /// was when that was first asked for.
    pub(crate) fn took(
        &mut self,
        table: TableId,
        run: u64,
        is_running: bool,
        elapsed_ms: u64,
    ) -> u64 {
        if is_running {
            return elapsed_ms;
        }
        let entry = self.took.entry(table).or_insert((run, elapsed_ms));
        if entry.0 != run {
            *entry = (run, elapsed_ms);
        }
        entry.1
    }

    /// Which leaderships to move now: where to send the order, and what it says.
    fn moves(
        &mut self,
        picture: &Picture,
        roster: &Roster,
        now: Instant,
    ) -> Vec<(ServerId, Instruction)> {
        let age = |since: Instant| now.saturating_duration_since(since);
        self.tried.retain(|_, when| age(*when) < RETRY);
        self.held.retain(|partition, (_, since)| {
            age(*since) < HELD && picture.state.placements.contains_key(partition)
        });
        self.runs.retain(|table, _| picture.state.tables.contains_key(table));
        self.took.retain(|table, _| picture.state.tables.contains_key(table));
        if age(self.calm_since) < CALM || self.moved.is_some_and(|moved| age(moved) < ROUND) {
            return Vec::new();
        }
        let wanted = placement::balance(&leaders(picture, roster, &self.held));
        let mut orders = Vec::new();
        for (partition, to) in wanted
            .into_iter()
            .filter(|(partition, _)| !self.tried.contains_key(partition))
            .take(MOVES_MAX)
        {
            let member =
                picture.state.placements.get(&partition).and_then(|placement| placement.on(to));
            if let (Some(leader), Some(member)) = (roster.leader(partition), member) {
                orders.push((
                    leader.server,
                    Instruction::Transfer { partition, term: leader.term, to: member.raft_id },
                ));
            }
        }
        self.moved = Some(now);
        for (_, order) in &orders {
            if let Instruction::Transfer { partition, .. } = order {
                self.tried.insert(*partition, now);
            }
        }
        orders
    }
}

/// Partitions that have a leader, with those who could lead them.
fn leaders(
    picture: &Picture,
    roster: &Roster,
    held: &BTreeMap<PartitionId, (ServerId, Instant)>,
) -> Vec<Led> {
    let serves = |table| {
        picture.state.tables.get(&table).is_some_and(|record| record.status == Status::Ready)
    };
    let placements =
        picture.state.placements.values().filter(|placement| serves(placement.partition.table));
    let led = placements.filter_map(|placement| {
        let partition = placement.partition;
        let leader =
            roster.leader(partition).filter(|_| roster.leading(partition).is_some())?.server;
        let preferred = placement.members.first()?.server;
        if held.get(&partition).is_some_and(|(at, _)| *at == leader) {
            return Some(Led {
                partition,
                leader: Some(leader),
                preferred: leader,
                able: vec![leader],
            });
        }
        // Whose disk is slow, full or failed has handed over what it led, and gets it
        // back when it is well.
        let may_lead =
            |member: &&Member| roster.may_lead(member.server, partition, member.raft_id, LAG_MAX);
        let able = placement.members.iter().filter(may_lead);
        Some(Led {
            partition,
            leader: Some(leader),
            preferred,
            able: able.map(|member| member.server).collect(),
        })
    });
    led.collect()
}

/// Leads whenever the group says so, until the meta is gone.
pub(crate) async fn lead_on(meta: Weak<Meta>) {
    let (mut role, mut stirred) = match meta.upgrade() {
        Some(meta) => (meta.group.leadership_changes(), meta.stirred.subscribe()),
        None => return,
    };
    loop {
        stirred.borrow_and_update();
        let now = *role.borrow_and_update();
        {
            let Some(meta) = meta.upgrade() else { return };
            meta.look_around(now.is_leader, now.term).await;
        }
        tokio::select! {
            _ = stirred.changed() => {}
            changed = role.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Sees to it that this meta does not go on to act as the leader without a majority,
/// whatever else it waits for, until it is gone.
pub(crate) async fn confirm_on(meta: Weak<Meta>) {
    loop {
        {
            let Some(meta) = meta.upgrade() else { return };
            meta.confirm_or_resign().await;
        }
        tokio::time::sleep(TICK).await;
    }
}

impl Meta {
    async fn confirm_or_resign(&self) {
        let Some(leads_in) = self.picture.borrow().term else { return };
        if matches!(
            tokio::time::timeout(CONFIRM_PATIENCE, self.group.confirm_leadership()).await,
            Ok(Ok(_))
        ) {
            *self.confirmed.lock() = Instant::now();
        } else if self.confirmed.lock().elapsed() >= UNCONFIRMED_MAX
            && self.picture.borrow().term == Some(leads_in)
        {
            // Who is attached here is to look for the one that leads now.
            tracing::warn!(
                "no majority of the metas confirms that this one leads: it does not act as the \
                 leader any more"
            );
            self.resign();
        }
    }

    async fn look_around(&self, is_leader: bool, term: u64) {
        let leads_in = self.picture.borrow().term;
        if !is_leader {
            if leads_in.is_some() {
                tracing::info!("this meta does not lead any more");
                self.resign();
            }
            return;
        }
        if leads_in != Some(term) {
            match self.take_the_lead().await {
                Ok(()) => tracing::info!(term, "this meta leads"),
                Err(error) => {
                    tracing::debug!(%error, "this meta can't lead yet");
                    return;
                }
            }
        }
        self.take_note();
        self.leave_ailing_disk();
        self.go_on().await;
        self.even_out_leaders();
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
    fn take_note(&self) {
        let now = Instant::now();
        let mut roster = self.roster.lock();
        if let MetaMode::Standalone(server) = &self.options.mode {
            roster.touch(server.id, now);
        }
        let silent = roster.expire(now);
        let picture = self.picture.borrow().clone();
        if picture.term.is_some() && picture.is_stale(&roster) {
            self.picture
                .send_replace(std::sync::Arc::new(Picture::clone(&picture).routed(&roster)));
        }
        drop(roster);
        for server in silent {
            let address = picture.servers.get(&server).map(|server| server.address.clone());
            tracing::warn!(%server, address, "server is down: nothing was heard of it for {} s", SILENCE_MAX.as_secs());
            self.desk.lock().stirred(now);
        }
    }

    /// Takes the next step of creations and drops.
    async fn go_on(&self) {
        let (formed, destroyed) = {
            let (roster, picture) = (self.roster.lock(), self.picture.borrow());
            (roster.formed(&picture.state), roster.destroyed(&picture.state))
        };
        for id in formed {
            match self.command(Command::Created { id }).await {
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
            match self.command(Command::Destroyed { id, server }).await {
                Ok(_) | Err(MetaError::Refused(_)) => {}
                Err(error) => {
                    tracing::warn!(id = id.0, %error, "a dropped table can't be forgotten yet")
                }
            }
        }
    }

    fn even_out_leaders(&self) {
        let moves = {
            let roster = self.roster.lock();
            let picture = self.picture.borrow().clone();
            self.desk.lock().moves(&picture, &roster, Instant::now())
        };
        for (server, order) in VecDeque::from(moves) {
            let Instruction::Transfer { partition, term: _, to } = &order else { continue };
            let table =
                self.picture.borrow().tables.get(&partition.table).map(|table| table.name.clone());
            tracing::info!(table, partition = partition.index, from = %server, to_member = to, "leaders are evened out: a leadership is handed over");
            if let Err(error) = self.order(server, order) {
                tracing::debug!(%server, %error, "a leadership can't be moved");
            }
        }
    }

    /// Sends an order to a server.
    ///
    /// # Errors
    /// [`MetaError::NotNow`]: it has no channel, or does not take its orders.
    pub(crate) fn order(&self, server: ServerId, order: Instruction) -> Result<(), MetaError> {
        let not_now = |why: &str| MetaError::NotNow(format!("server {server} {why}"));
        let desk = self.desk.lock();
        let (_, sender) = desk.orders.get(&server).ok_or_else(|| not_now("is not connected"))?;
        sender.try_send(order).map_err(|_| not_now("does not take its orders"))
    }
}
