//! The client of meta: finds the leading meta, registers, sends reports and keeps the
//! metadata that it receives.
//!
//! While no meta can be reached, the last metadata stays in use. Each user subscribes to
//! its part.
//!
//! # Invariants
//! - A picture shows whole pages only: what comes in parts is shown when the last part
//!   has come (`incomplete_deltas_are_not_shown`).
//! - A process that belongs to a cluster does not take the word of another one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::meta_protocol::{
    self, Assignment, Delta, Instruction, MetaMessage, RegisterRequest, Report, Route, Server,
    ServerMessage,
};
use crate::net::{ChannelReceiver, ChannelSender, ClusterId, Destination, Net, Service};
use crate::{PartitionId, ServerId, Table, TableId};

/// Interval of heartbeats.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A meta without a heartbeat for this long is given up.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause before the next meta is tried.
const RETRY_DELAY: Duration = Duration::from_millis(150);
/// Pause after a rejection: something must change first.
const REJECTED_RETRY_DELAY: Duration = Duration::from_secs(2);

/// Source of the process's registration and reports.
pub trait ReportSource: Send + Sync + 'static {
    /// The registration, for each new channel.
    fn register_request(&self) -> RegisterRequest;
    /// A report. `whole`: of all replicas, for a meta that knows none yet; else of those
    /// that have changed since the last report.
    fn report(&self, whole: bool) -> Report;
}

/// A server's assignments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignments {
    /// To be said in [`Report::followed`] once they are true.
    pub version: u64,
    /// By table.
    pub tables: BTreeMap<TableId, Assignment>,
}

/// The metadata received from meta. `None`: nothing yet since the process started.
#[derive(Debug, Default)]
pub struct MetaClient {
    cluster: watch::Sender<Option<u64>>,
    leader: watch::Sender<Option<String>>,
    refused: watch::Sender<Option<String>>,
    servers: watch::Sender<Option<Arc<BTreeMap<ServerId, Server>>>>,
    tables: watch::Sender<Option<Arc<BTreeMap<TableId, Table>>>>,
    assignments: watch::Sender<Option<Arc<Assignments>>>,
    routes: watch::Sender<Option<Arc<BTreeMap<PartitionId, Route>>>>,
    changed: Notify,
    /// A report that is being gathered.
    pending_report: tokio::sync::Mutex<Option<JoinHandle<Report>>>,
}

/// Maps received on one channel.
#[derive(Default)]
struct OpenChannel {
    servers: DeltaMap<ServerId, Server>,
    tables: DeltaMap<TableId, Table>,
    assignments: DeltaMap<TableId, Assignment>,
    routes: DeltaMap<PartitionId, Route>,
}

/// End of a channel.
struct ChannelEnd {
    /// The leading meta, as the other side knows.
    leader: Option<String>,
    pause: Duration,
}

impl MetaClient {
    /// Starts to follow, until `stop`. `metas` are the addresses of the meta group;
    /// orders that find `orders` full are dropped, meta gives them again.
    pub fn start(
        net: Arc<Net>,
        metas: Vec<String>,
        source: Arc<dyn ReportSource>,
        orders: mpsc::Sender<Instruction>,
        stop: CancellationToken,
    ) -> Arc<MetaClient> {
        let follow = Arc::new(MetaClient::default());
        let following = follow.clone();
        tokio::spawn(async move {
            stop.run_until_cancelled(following.run(&net, &metas, &source, &orders)).await;
        });
        follow
    }

    /// There is something to report at once.
    pub fn report_now(&self) {
        self.changed.notify_one();
    }

    /// The cluster's id.
    pub fn cluster(&self) -> watch::Receiver<Option<u64>> {
        self.cluster.subscribe()
    }

    /// The address of the meta that leads and is being followed; `None` while there is
    /// none.
    pub fn leader(&self) -> watch::Receiver<Option<String>> {
        self.leader.subscribe()
    }

    /// Reason of meta's rejection of this process, while it lasts.
    pub fn refused(&self) -> watch::Receiver<Option<String>> {
        self.refused.subscribe()
    }

    /// The address book.
    pub fn servers(&self) -> watch::Receiver<Option<Arc<BTreeMap<ServerId, Server>>>> {
        self.servers.subscribe()
    }

    /// Tables that serve.
    pub fn tables(&self) -> watch::Receiver<Option<Arc<BTreeMap<TableId, Table>>>> {
        self.tables.subscribe()
    }

    /// This server's assignments.
    pub fn assignments(&self) -> watch::Receiver<Option<Arc<Assignments>>> {
        self.assignments.subscribe()
    }

    /// Placements and leaders of partitions.
    pub fn routes(&self) -> watch::Receiver<Option<Arc<BTreeMap<PartitionId, Route>>>> {
        self.routes.subscribe()
    }

    async fn run(
        &self,
        net: &Arc<Net>,
        metas: &[String],
        source: &Arc<dyn ReportSource>,
        orders: &mpsc::Sender<Instruction>,
    ) {
        let (mut hint, mut apply) = (None::<String>, 0);
        // Why each could not be reached, as it was said last.
        let mut said = BTreeMap::<String, String>::new();
        loop {
            let address = hint.take().or_else(|| metas.get(apply % metas.len().max(1)).cloned());
            apply += 1;
            let Some(address) = address else { return };
            let register_request = meta_protocol::encode(&source.register_request());
            let ended = match net
                .open(Destination::Address(address.clone()), Service::Meta, register_request)
                .await
            {
                Ok(channel) => {
                    said.remove(&address);
                    let (sender, receiver) = channel.split();
                    self.serve_channel(net, &address, source, orders, sender, receiver).await
                }
                Err(error) => {
                    let why = error.to_string();
                    if said.get(&address) != Some(&why) {
                        tracing::warn!(address, why, "cannot reach a meta");
                        // Hints of metas bring others than the configured ones, now and
                        // then.
                        said.retain(|address, _| metas.contains(address));
                        said.insert(address.clone(), why);
                    }
                    ChannelEnd { leader: None, pause: RETRY_DELAY }
                }
            };
            self.leader.send_if_modified(|leader| leader.take().is_some());
            hint = ended.leader.filter(|leader| *leader != address);
            sleep(ended.pause).await;
        }
    }

    /// One channel, from its first word to its end.
    async fn serve_channel(
        &self,
        net: &Arc<Net>,
        address: &str,
        source: &Arc<dyn ReportSource>,
        orders: &mpsc::Sender<Instruction>,
        sender: ChannelSender,
        mut receiver: ChannelReceiver,
    ) -> ChannelEnd {
        let lost = |leader| ChannelEnd { leader, pause: RETRY_DELAY };
        let first = match timeout(HEARTBEAT_TIMEOUT, receiver.recv()).await {
            Ok(Some(first)) => meta_protocol::decode::<MetaMessage>(&first),
            Ok(None) | Err(_) => return lost(None),
        };
        match first {
            Ok(MetaMessage::RegisterAccepted(welcome)) => {
                let before = self.cluster.borrow().or(source.register_request().cluster);
                if before.is_some_and(|before| before != welcome.cluster) {
                    return self.reject(format!("the meta at {address} is of another cluster"));
                }
                self.cluster.send_replace(Some(welcome.cluster));
                net.join(ClusterId(welcome.cluster));
            }
            Ok(MetaMessage::NotLeading(other)) => {
                // Somebody else may well lead: at once.
                let pause =
                    if other.leader.is_some() { Duration::from_millis(10) } else { RETRY_DELAY };
                return ChannelEnd { leader: other.leader, pause };
            }
            Ok(MetaMessage::Refused(why)) => return self.reject(why),
            Ok(_) => return self.reject(format!(
                "protocol error from meta {address}: it did not accept or reject the registration"
            )),
            Err(bad) => return self.reject(bad.to_string()),
        }
        self.refused.send_if_modified(|refused| refused.take().is_some());
        self.leader.send_replace(Some(address.to_owned()));
        tracing::info!(address, "registered with the leading meta");
        let mut hearing = OpenChannel::default();
        tokio::select! {
            () = self.send_reports(source, &sender) => lost(None),
            leader = self.receive(net, &mut hearing, orders, &mut receiver) => lost(leader),
        }
    }

    fn reject(&self, why: String) -> ChannelEnd {
        let new = self.refused.send_if_modified(|refused| {
            let new = refused.as_ref() != Some(&why);
            *refused = Some(why.clone());
            new
        });
        if new {
            tracing::warn!(why, "registration rejected by meta");
        }
        ChannelEnd { leader: None, pause: REJECTED_RETRY_DELAY }
    }

    /// Reports until the channel ends. What is reported is gathered elsewhere, as it may
    /// have to be read from a disk; while that takes long, signs of life are given.
    async fn send_reports(&self, source: &Arc<dyn ReportSource>, sender: &ChannelSender) {
        let mut pending_report = self.pending_report.lock().await;
        // What an earlier channel waited for counts as told: first it must be over.
        if pending_report.is_some() && await_report(&mut pending_report, sender).await.is_none() {
            return;
        }
        let mut whole = true;
        loop {
            let source = source.clone();
            *pending_report = Some(tokio::task::spawn_blocking(move || source.report(whole)));
            let Some(report) = await_report(&mut pending_report, sender).await else { return };
            let report = ServerMessage::Report(Report { whole, ..report });
            if sender.send(meta_protocol::encode(&report)).await.is_err() {
                return;
            }
            whole = false;
            // Changes that come together are reported together; a beat is due anyway.
            let _ = timeout(HEARTBEAT_INTERVAL, self.changed.notified()).await;
        }
    }

    /// Takes in what is told until the channel ends; who leads then, if that was said.
    async fn receive(
        &self,
        net: &Net,
        hearing: &mut OpenChannel,
        orders: &mpsc::Sender<Instruction>,
        receiver: &mut ChannelReceiver,
    ) -> Option<String> {
        loop {
            let message = match timeout(HEARTBEAT_TIMEOUT, receiver.recv()).await {
                Ok(Some(message)) => message,
                Ok(None) => return None,
                Err(_) => {
                    let seconds = HEARTBEAT_TIMEOUT.as_secs();
                    tracing::warn!("lost the leading meta: no heartbeat for {seconds} s");
                    return None;
                }
            };
            match self.apply_message(hearing, &message) {
                Ok(Some(MetaMessage::NotLeading(other))) => return other.leader,
                Ok(Some(MetaMessage::Servers(_))) => {
                    for server in self.servers.borrow().iter().flat_map(|servers| servers.values())
                    {
                        net.set_address(server.id, &server.address);
                    }
                }
                Ok(Some(MetaMessage::Instruction(order))) => {
                    if let Err(error) = orders.try_send(order) {
                        tracing::warn!(%error, "an instruction of meta is dropped: too many wait");
                    }
                }
                Ok(_) => {}
                Err(why) => {
                    tracing::warn!(why, "protocol error from meta");
                    return None;
                }
            }
        }
    }

    /// Takes in pages; gives back what is for somebody else, and the address book's page
    /// when it was the last of its kind (emptied).
    fn apply_message(
        &self,
        hearing: &mut OpenChannel,
        message: &Bytes,
    ) -> Result<Option<MetaMessage>, String> {
        match meta_protocol::decode::<MetaMessage>(message).map_err(|bad| bad.to_string())? {
            MetaMessage::Servers(page) => {
                let last = Delta { upserts: BTreeMap::new(), removed: Vec::new(), ..page };
                if let Some(servers) = hearing.servers.apply(page)? {
                    self.servers.send_replace(Some(Arc::new(servers)));
                    return Ok(Some(MetaMessage::Servers(last)));
                }
            }
            MetaMessage::Tables(page) => {
                if let Some(tables) = hearing.tables.apply(page)? {
                    self.tables.send_replace(Some(Arc::new(tables)));
                }
            }
            MetaMessage::Routes(page) => {
                if let Some(routes) = hearing.routes.apply(page)? {
                    self.routes.send_replace(Some(Arc::new(routes)));
                }
            }
            MetaMessage::Assignments(page) => {
                let version = page.version;
                if let Some(tables) = hearing.assignments.apply(page)? {
                    self.assignments.send_replace(Some(Arc::new(Assignments { version, tables })));
                }
            }
            MetaMessage::Heartbeat | MetaMessage::RegisterAccepted(_) => {}
            MetaMessage::Refused(why) => return Err(why),
            other => return Ok(Some(other)),
        }
        Ok(None)
    }
}

/// Waits for what is being gathered, and gives signs of life meanwhile; `None`: the
/// channel has ended, or the report is none.
async fn await_report(
    pending_report: &mut Option<JoinHandle<Report>>,
    sender: &ChannelSender,
) -> Option<Report> {
    loop {
        match timeout(HEARTBEAT_INTERVAL, pending_report.as_mut()?).await {
            Ok(report) => {
                *pending_report = None;
                return report.inspect_err(|error| tracing::error!(%error, "report failed")).ok();
            }
            Err(_) => sender
                .send(meta_protocol::encode(&ServerMessage::Report(Report::default())))
                .await
                .ok()?,
        }
    }
}

/// A map that is told in pages.
struct DeltaMap<K: Ord, V> {
    /// `None` before the first fresh page.
    entries: Option<BTreeMap<K, V>>,
}

impl<K: Ord, V> Default for DeltaMap<K, V> {
    fn default() -> Self {
        DeltaMap { entries: None }
    }
}

impl<K: Ord + Clone, V: Clone> DeltaMap<K, V> {
    /// Takes a page in; the whole map when it was the last one.
    fn apply(&mut self, page: Delta<K, V>) -> Result<Option<BTreeMap<K, V>>, String> {
        if page.is_snapshot {
            self.entries = Some(BTreeMap::new());
        }
        let entries = self.entries.as_mut().ok_or("it begins in the middle")?;
        for key in page.removed {
            entries.remove(&key);
        }
        entries.extend(page.upserts);
        Ok((!page.has_more).then(|| entries.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(
        is_snapshot: bool,
        has_more: bool,
        upserts: &[(u32, u32)],
        removed: &[u32],
    ) -> Delta<u32, u32> {
        Delta {
            version: 1,
            is_snapshot,
            has_more,
            upserts: upserts.iter().copied().collect(),
            removed: removed.to_vec(),
        }
    }

    #[test]
    fn incomplete_deltas_are_not_shown() {
        let mut book = DeltaMap::default();
        assert!(book.apply(page(false, false, &[(1, 1)], &[])).is_err());
        assert_eq!(book.apply(page(true, true, &[(1, 1)], &[])), Ok(None));
        assert_eq!(
            book.apply(page(false, false, &[(2, 2)], &[])),
            Ok(Some(BTreeMap::from([(1, 1), (2, 2)])))
        );
        assert_eq!(book.apply(page(false, true, &[(3, 3)], &[1])), Ok(None));
        assert_eq!(
            book.apply(page(false, false, &[], &[])),
            Ok(Some(BTreeMap::from([(2, 2), (3, 3)])))
        );
        assert_eq!(
            book.apply(page(true, false, &[(9, 9)], &[])),
            Ok(Some(BTreeMap::from([(9, 9)])))
        );
    }
}
