//! Calls on rows over real connections: from one process's end to another's, through a
//! failover.
#![allow(clippy::unwrap_used, reason = "tests may fail here")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::net::{Channel, Net, NetOptions, Peer, Service, ServiceError, ServiceReply, Services};
use cluster::routes::Routes;
use cluster::row_client::{LocalReplicas, RowClient, serve_rows};
use cluster::{
    Boxed, CallError, CallPartition, Leader, Member, PartitionId, Placement, ServerId, TableId,
};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const P: PartitionId = PartitionId { table: TableId(1), index: 0 };

/// A number to add, and some ballast; 0 reads.
type Request = (u64, Bytes);

fn is_read(request: &Request) -> bool {
    request.0 == 0
}

/// A sum that all servers share, as if it were replicated, and who leads.
#[derive(Default)]
struct World {
    leader: Mutex<Option<Leader>>,
    sum: AtomicU64,
}

struct Server {
    id: ServerId,
    world: Arc<World>,
}

impl CallPartition<Request, (u64, Bytes)> for Server {
    fn read_now(
        &self,
        _: PartitionId,
        request: &Request,
    ) -> Option<Result<(u64, Bytes), CallError>> {
        let leads = self.world.leader.lock().is_some_and(|leader| leader.server == self.id);
        leads.then(|| Ok((self.world.sum.load(Relaxed), request.1.clone())))
    }

    fn call(&self, _: PartitionId, request: Request) -> Boxed<'_, Result<(u64, Bytes), CallError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            match *self.world.leader.lock() {
                Some(leader) if leader.server == self.id => {
                    Ok((self.world.sum.fetch_add(request.0, Relaxed) + request.0, request.1))
                }
                _ => Err(CallError::NoLeader("not me".to_owned())),
            }
        })
    }
}

impl LocalReplicas<Request, (u64, Bytes)> for Server {
    fn server(&self) -> ServerId {
        self.id
    }

    fn leader(&self, _: PartitionId) -> Option<Leader> {
        *self.world.leader.lock()
    }
}

struct Serving(Arc<dyn LocalReplicas<Request, (u64, Bytes)>>);

impl Services for Serving {
    fn call(&self, _: &Peer, service: Service, body: Bytes) -> ServiceReply {
        match service {
            Service::Rows => serve_rows(&self.0, is_read, &body),
            _ => ServiceReply::Now(Err(ServiceError::NotOpen("only rows are served here"))),
        }
    }

    fn channel(&self, _: &Peer, _: Service, _: Bytes, _: Channel) {}
}

/// Starts servers, and gives a door to them, what they share, and what stops each.
async fn start(
    count: u64,
) -> (Arc<RowClient<Request, (u64, Bytes)>>, Arc<World>, Vec<CancellationToken>) {
    let world = Arc::new(World::default());
    let client = Net::new(NetOptions::new(ServerId(100), "127.0.0.1:1")).unwrap();
    let mut stops = Vec::new();
    for id in 1..=count {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let net = Net::new(NetOptions::new(ServerId(id), &address)).unwrap();
        client.set_address(ServerId(id), &address);
        let serving =
            Arc::new(Serving(Arc::new(Server { id: ServerId(id), world: world.clone() })));
        let stop = CancellationToken::new();
        stops.push(stop.clone());
        tokio::spawn(async move { net.serve(listener, serving, stop).await });
    }
    let routes = Arc::new(Routes::default());
    let members = (1..=count).map(|id| Member { raft_id: id, server: ServerId(id) }).collect();
    routes.place(&Placement { partition: P, members, epoch: 1 });
    (Arc::new(RowClient::new(client, routes, None, is_read, Duration::from_secs(5))), world, stops)
}

fn lead(world: &World, server: u64, term: u64) {
    *world.leader.lock() = Some(Leader { server: ServerId(server), term });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hands_over_and_stops_is_not_noticed() {
    let (rows, world, stops) = start(3).await;
    lead(&world, 2, 1);
    let sum = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..20)
        .map(|_| {
            let (rows, sum) = (rows.clone(), sum.clone());
            tokio::spawn(async move {
                for _ in 0..300 {
                    loop {
                        match rows.call(P, (1, Bytes::from_static(b"ballast"))).await {
                            Ok((_, ballast)) => assert_eq!(ballast, "ballast"),
                            Err(CallError::NoLeader(_)) => {
                                tokio::time::sleep(Duration::from_millis(5)).await;
                                continue;
                            }
                            Err(error) => panic!("{error}"),
                        }
                        break;
                    }
                    sum.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    lead(&world, 3, 2);
    tokio::time::sleep(Duration::from_millis(50)).await;
    stops[1].cancel();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!((sum.load(Relaxed), world.sum.load(Relaxed)), (6000, 6000), "each was applied once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_many_callers_share_their_connection() {
    const CALLERS: u64 = 50;
    let each = if cfg!(debug_assertions) { 200 } else { 4000 };
    let (rows, world, _stops) = start(1).await;
    lead(&world, 1, 1);
    rows.call(P, (7, Bytes::new())).await.unwrap();
    let began = Instant::now();
    let readers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let rows = rows.clone();
            tokio::spawn(async move {
                let ballast = Bytes::from(vec![caller as u8; 64]);
                for _ in 0..each {
                    assert_eq!(rows.call(P, (0, ballast.clone())).await, Ok((7, ballast.clone())));
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    let calls = (CALLERS * each) as f64;
    eprintln!(
        "{calls} reads of {CALLERS} callers, {:.0} a second",
        calls / began.elapsed().as_secs_f64()
    );
}
