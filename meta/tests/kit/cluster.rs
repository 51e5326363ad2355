//! Three metas in one process, over real connections, and servers that only say that they
//! hold what they are assigned.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::cluster::meta_client::{Assignments, MetaClient, ReportSource};
use ::cluster::meta_protocol::{
    Instruction, RegisterRequest, Replica, ReplicaHealth, Report, Roles, Server,
};
use ::cluster::net::{
    Channel, Destination, Net, NetError, NetOptions, Peer, Service, ServiceError, ServiceReply,
    Services,
};
use ::cluster::{Boxed, PartitionId, ServerId, Table};
use bytes::Bytes;
use engine::log::{Log, LogOptions};
use engine::raft::{Node, RaftMessage, Ticker, Transport, TransportError};
use engine::store::{SharedResources, StoreSettings};
use engine::time::SlewedClock;
use meta::admin::{CompactionStatus, HostProcess, NodeStatus, TableUsage};
use meta::{Meta, MetaMode, MetaOptions};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The process around a meta: nothing of it is asked here.
pub struct Nobody;

impl HostProcess for Nobody {
    fn authorised(&self, _: Option<std::net::IpAddr>, _: Option<&[u8]>) -> bool {
        true
    }
    fn status(&self) -> NodeStatus {
        NodeStatus {
            version: "1".into(),
            cluster: "c".into(),
            cluster_id: "0".into(),
            node_id: 1,
            uptime_seconds: 0,
            ready: true,
            durability: "always".into(),
            addresses: Vec::new(),
            clients: 0,
            tables: 0,
            partitions: 0,
            disk_bytes: 0,
            log_bytes: 0,
            memory_bytes: 0,
            faults: Vec::new(),
        }
    }
    fn server_figures(&self) -> cluster::meta_protocol::ServerStats {
        cluster::meta_protocol::ServerStats { disk_free_bytes: 7, ..Default::default() }
    }
    fn figures(&self, _: &Table) -> TableUsage {
        panic!("the reports say what tables hold")
    }
    fn compact(&self, _: &Arc<Table>) -> CompactionStatus {
        panic!("servers are ordered to compact")
    }
    fn compaction(&self, _: &Table) -> CompactionStatus {
        panic!("servers report how it goes")
    }
}

/// Carries Raft messages over [`Net`]; meta indices are resolved to the metas' addresses.
struct NetTransport {
    net: Arc<Net>,
    metas: Vec<String>,
    cut: Arc<AtomicBool>,
}

impl Transport for NetTransport {
    fn send(&self, to: &Node, message: RaftMessage) -> Boxed<'_, Result<Bytes, TransportError>> {
        let index = ServerId(to.server).meta_index().expect("metas only");
        let to = Destination::Address(self.metas[index as usize - 1].clone());
        let service = if message.kind.is_bulk() { Service::RaftBulk } else { Service::Raft };
        Box::pin(async move {
            if self.cut.load(Ordering::Relaxed) {
                return Err(TransportError::NotSent("cut off".into()));
            }
            self.net.call(to, service, message.encode(), message.timeout).await.map_err(|error| {
                match error {
                    NetError::NotSent(why) => TransportError::NotSent(why),
                    NetError::Lost(why) => TransportError::Lost(why),
                    NetError::Refused(why) | NetError::TooLarge(why) => {
                        TransportError::Refused(why)
                    }
                }
            })
        })
    }
}

#[derive(Default)]
struct Door {
    meta: OnceLock<Arc<Meta>>,
    cut: Arc<AtomicBool>,
}

impl Services for Door {
    fn call(&self, _: &Peer, service: Service, body: Bytes) -> ServiceReply {
        let Some(meta) = self.meta.get().cloned() else {
            return ServiceReply::Now(Err(ServiceError::NotOpen("not open yet")));
        };
        let cut = self.cut.load(Ordering::Relaxed);
        match service {
            Service::Meta => ServiceReply::Later(meta.answer(body, Arc::new(Nobody))),
            _ => ServiceReply::Later(Box::pin(async move {
                if cut {
                    return Err(ServiceError::NotOpen("cut off"));
                }
                let message = RaftMessage::decode(body)
                    .map_err(|bad| ServiceError::BadRequest(bad.to_string()))?;
                let received = meta.group().receive(message).await;
                received.map_err(|error| ServiceError::NotDone(error.to_string()))
            })),
        }
    }

    fn channel(&self, from: &Peer, _: Service, hello: Bytes, channel: Channel) {
        if let Some(meta) = self.meta.get() {
            meta.channel(from, hello, channel);
        }
    }
}

/// One meta of three.
pub struct OneMeta {
    pub meta: Arc<Meta>,
    log: Arc<Log>,
    stop: CancellationToken,
    /// True while no Raft messages go between it and the other metas; servers still reach
    /// it.
    pub cut: Arc<AtomicBool>,
}

impl OneMeta {
    /// It is gone, in the middle of whatever it was doing.
    pub async fn kill(self) {
        self.stop.cancel();
        self.meta.close().await.unwrap();
        self.log.close().unwrap();
    }
}

/// Three metas, and where they are.
pub async fn metas(dir: &Path) -> (Vec<Option<OneMeta>>, Vec<String>) {
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<String> =
        listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    let mut metas = Vec::new();
    for (listener, position) in listeners.into_iter().zip(1..) {
        let dir = dir.join(format!("meta{position}"));
        let net = Net::new(NetOptions::new(
            ServerId(1000 + u64::from(position)),
            &addresses[position as usize - 1],
        ))
        .unwrap();
        let (door, stop) = (Arc::new(Door::default()), CancellationToken::new());
        let serving = (net.clone(), door.clone(), stop.clone());
        tokio::spawn(async move { serving.0.serve(listener, serving.1, serving.2).await });
        let log =
            Log::open(LogOptions { segment_bytes: 1 << 20, ..LogOptions::new(dir.join("log")) })
                .unwrap();
        let shared = SharedResources::new(StoreSettings {
            disk_reserve_bytes: 0,
            ..StoreSettings::default()
        })
        .unwrap();
        let cut = door.cut.clone();
        let transport =
            Arc::new(NetTransport { net: net.clone(), metas: addresses.clone(), cut: cut.clone() });
        let mode = MetaMode::Member {
            members: addresses.clone(),
            position,
            transport,
            ticker: Ticker::start(),
            net,
        };
        let raft_runtime = tokio::runtime::Handle::current();
        let (cluster, clock) = (70 + u64::from(position), SlewedClock::system());
        let options = MetaOptions {
            dir: dir.join("meta"),
            raft_runtime,
            partitions: 4,
            replicas: 3,
            cluster,
            clock,
            mode,
        };
        let meta = Meta::open(options, &log, &shared).await.unwrap();
        door.meta.set(meta.clone()).ok().unwrap();
        metas.push(Some(OneMeta { meta, log, stop, cut }));
    }
    (metas, addresses)
}

/// Faults of the fake servers.
#[derive(Default)]
pub struct Behaviour {
    pub leads_nothing: AtomicBool,
    pub destroys_nothing: AtomicBool,
}

/// A server that reports to hold what it was assigned, and to lead where it is the first
/// member or the target of a transfer.
pub struct FakeServer {
    id: ServerId,
    address: String,
    behaviour: Arc<Behaviour>,
    known: Mutex<Option<Arc<Assignments>>>,
    /// Leaderships that were handed over: to whom, and in which term. Shared by all
    /// servers: that is Raft's part.
    leaders: Arc<Mutex<BTreeMap<PartitionId, (u64, u64)>>>,
    cluster: Mutex<Option<u64>>,
}

impl ReportSource for FakeServer {
    fn register_request(&self) -> RegisterRequest {
        let roles = Roles { meta: false, storage: true, proxy: true };
        let server = Server {
            id: self.id,
            address: self.address.clone(),
            http: String::new(),
            clients: Vec::new(),
            zone: String::new(),
            roles,
            durability: None,
        };
        RegisterRequest { server, cluster: *self.cluster.lock(), software: "test".into() }
    }

    fn report(&self, _: bool) -> Report {
        let Some(known) = self.known.lock().clone() else { return Report::default() };
        let mut report = Report { followed: known.version, ..Report::default() };
        for (id, assignment) in &known.tables {
            if assignment.destroy {
                if !self.behaviour.destroys_nothing.load(Ordering::Relaxed) {
                    report.destroyed.push(*id);
                }
                continue;
            }
            for placement in &assignment.placements {
                let own = placement.on(self.id).unwrap().raft_id;
                let (leader, term) = self
                    .leaders
                    .lock()
                    .get(&placement.partition)
                    .copied()
                    .unwrap_or((placement.members[0].raft_id, 1));
                let leads = leader == own && !self.behaviour.leads_nothing.load(Ordering::Relaxed);
                report.replicas.push(Replica {
                    partition: placement.partition,
                    raft_id: own,
                    health: ReplicaHealth::Running,
                    fault: None,
                    term,
                    leads,
                    last_log: 10,
                    applied: 10,
                    matched: if leads {
                        placement.members.iter().map(|member| (member.raft_id, 10)).collect()
                    } else {
                        Vec::new()
                    },
                    rows: 5,
                    expiring: 0,
                    disk_bytes: 100,
                    memtable_bytes: 0,
                });
            }
        }
        report
    }
}

/// Servers that follow whichever meta leads.
pub struct Servers {
    pub behaviour: Arc<Behaviour>,
    pub follows: Vec<Arc<MetaClient>>,
    /// Kept, so that their connections are.
    pub nets: Vec<Arc<Net>>,
}

impl Servers {
    pub async fn start(count: u64, metas: &[String]) -> Servers {
        let behaviour = Arc::new(Behaviour::default());
        let leaders = Arc::new(Mutex::default());
        let (mut follows, mut nets) = (Vec::new(), Vec::new());
        for n in 0..count {
            let id = ServerId(2000 + n);
            let address = format!("127.0.0.1:{}", 1 + n);
            let net = Net::new(NetOptions::new(id, &address)).unwrap();
            let source = Arc::new(FakeServer {
                id,
                address,
                behaviour: behaviour.clone(),
                known: Mutex::default(),
                leaders: leaders.clone(),
                cluster: Mutex::default(),
            });
            let (orders, mut ordered) = mpsc::channel(16);
            let follow = MetaClient::start(
                net.clone(),
                metas.to_vec(),
                source.clone(),
                orders,
                CancellationToken::new(),
            );
            let (reporter, leaders) = (follow.clone(), leaders.clone());
            tokio::spawn(async move {
                let mut assignments = reporter.assignments();
                loop {
                    tokio::select! {
                        changed = assignments.changed() => if changed.is_err() { return },
                        order = ordered.recv() => match order {
                            Some(Instruction::Transfer { partition, term, to }) => {
                                leaders.lock().insert(partition, (to, term + 1));
                            }
                            Some(Instruction::Compact { .. }) => {}
                            None => return,
                        },
                        () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    }
                    source.known.lock().clone_from(&assignments.borrow_and_update());
                    *source.cluster.lock() = *reporter.cluster().borrow();
                    reporter.report_now();
                }
            });
            follows.push(follow);
            nets.push(net);
        }
        Servers { behaviour, follows, nets }
    }
}

/// Waits until something is so, at most 20 s.
pub async fn until<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = is_so() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Which of the metas leads.
pub async fn leader(metas: &[Option<OneMeta>]) -> usize {
    until("a meta leads", || {
        metas.iter().position(|one| one.as_ref().is_some_and(|one| one.meta.image().is_ok()))
    })
    .await
}
