//! Calls on rows find the leader wherever it goes, and no write is applied twice,
//! whatever is lost on the way.
#![allow(clippy::unwrap_used, reason = "tests may fail here")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::net::{NetError, ServiceReply};
use cluster::routes::Routes;
use cluster::row_client::{LocalReplicas, RowClient, RowTransport, serve_rows};
use cluster::{
    Boxed, CallError, CallPartition, Leader, Member, PartitionId, Placement, ServerId, TableId,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const P: PartitionId = PartitionId { table: TableId(1), index: 3 };
const TIMEOUT: Duration = Duration::from_secs(5);

/// Adds this, and says which server did.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Add {
    by: u64,
    id: u64,
}

fn is_read(add: &Add) -> bool {
    add.by == 0
}

/// Fate of the next message to a server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Weather {
    NotSent,
    /// Not sent either, but the connection stands.
    Busy,
    /// The request does not arrive, and nobody can know.
    RequestLost,
    /// It is carried out, and the answer is lost.
    AnswerLost,
    Refused,
    TooLarge,
}

/// One partition over some servers that share a state, as if it were replicated.
#[derive(Default)]
struct World {
    leader: Mutex<Option<Leader>>,
    sum: AtomicU64,
    /// Number of times each write was applied.
    applied: Mutex<HashMap<u64, usize>>,
    servers: Mutex<HashMap<ServerId, Arc<Server>>>,
    weather: Mutex<HashMap<ServerId, Vec<Weather>>>,
    /// Everybody who was asked over the network, in order.
    asked: Mutex<Vec<u64>>,
    calls: AtomicUsize,
    /// The connection stands over which nothing was sent last.
    is_up: AtomicBool,
}

struct Server {
    id: ServerId,
    /// Its presumed leader.
    believed: Mutex<Option<Leader>>,
    world: std::sync::Weak<World>,
    local_calls: AtomicUsize,
    has_replica: Mutex<bool>,
}

impl Server {
    fn answer(&self, add: &Add) -> Result<(u64, u64), CallError> {
        let world = self.world.upgrade().unwrap();
        if !*self.has_replica.lock() {
            return Err(CallError::NoTable);
        }
        if world.leader.lock().is_none_or(|leader| leader.server != self.id) {
            return Err(CallError::NoLeader("not me".to_owned()));
        }
        if !is_read(add) {
            *world.applied.lock().entry(add.id).or_default() += 1;
        }
        Ok((self.id.0, world.sum.fetch_add(add.by, Relaxed) + add.by))
    }
}

impl CallPartition<Add, (u64, u64)> for Server {
    fn read_now(&self, _: PartitionId, add: &Add) -> Option<Result<(u64, u64), CallError>> {
        assert!(is_read(add));
        self.answer(add).ok().map(Ok)
    }

    fn call(&self, _: PartitionId, add: Add) -> Boxed<'_, Result<(u64, u64), CallError>> {
        self.local_calls.fetch_add(1, Relaxed);
        Box::pin(async move { self.answer(&add) })
    }
}

impl LocalReplicas<Add, (u64, u64)> for Server {
    fn server(&self) -> ServerId {
        self.id
    }

    fn leader(&self, _: PartitionId) -> Option<Leader> {
        *self.believed.lock()
    }
}

/// The network.
#[derive(Clone)]
struct Wires(Arc<World>);

impl RowTransport for Wires {
    async fn send(&self, to: ServerId, body: Bytes, _: Duration) -> Result<Bytes, NetError> {
        let world = &self.0;
        world.asked.lock().push(to.0);
        world.calls.fetch_add(1, Relaxed);
        let weather = world.weather.lock().get_mut(&to).and_then(Vec::pop);
        match weather {
            Some(Weather::NotSent) => return Err(NetError::NotSent("refused to connect".into())),
            Some(Weather::Busy) => {
                world.is_up.store(true, Relaxed);
                return Err(NetError::NotSent("too many calls".into()));
            }
            Some(Weather::RequestLost) => return Err(NetError::Lost("gone".into())),
            Some(Weather::Refused) => return Err(NetError::Refused("broken off".into())),
            Some(Weather::TooLarge) => return Err(NetError::TooLarge("9 bytes".into())),
            Some(Weather::AnswerLost) | None => {}
        }
        let server: Arc<dyn LocalReplicas<Add, (u64, u64)>> = world.servers.lock()[&to].clone();
        tokio::task::yield_now().await;
        let answer = match serve_rows(&server, is_read, &body) {
            ServiceReply::Now(answer) => answer,
            ServiceReply::Later(answer) => answer.await,
        };
        match weather {
            Some(Weather::AnswerLost) => Err(NetError::Lost("gone".into())),
            _ => answer.map_err(|error| NetError::Refused(error.to_string())),
        }
    }

    fn is_up(&self, _: ServerId) -> bool {
        self.0.is_up.swap(false, Relaxed)
    }
}

impl World {
    fn new(servers: u64) -> (Arc<World>, Arc<Routes>) {
        let world = Arc::new(World::default());
        for id in 1..=servers {
            let server = Server {
                id: ServerId(id),
                believed: Mutex::new(None),
                world: Arc::downgrade(&world),
                local_calls: AtomicUsize::new(0),
                has_replica: Mutex::new(true),
            };
            world.servers.lock().insert(ServerId(id), Arc::new(server));
        }
        let routes = Arc::new(Routes::default());
        let members =
            (1..=servers).map(|id| Member { raft_id: id + 100, server: ServerId(id) }).collect();
        routes.place(&Placement { partition: P, members, epoch: 1 });
        (world, routes)
    }

    /// A new leader; everybody but `except` knows.
    fn lead(&self, server: u64, term: u64, except: &[u64]) {
        let leader = Some(Leader { server: ServerId(server), term });
        *self.leader.lock() = leader;
        for (id, server) in self.servers.lock().iter().filter(|(id, _)| !except.contains(&id.0)) {
            let _ = id;
            *server.believed.lock() = leader;
        }
    }

    fn believe(&self, who: u64, leader: u64, term: u64) {
        *self.servers.lock()[&ServerId(who)].believed.lock() =
            Some(Leader { server: ServerId(leader), term });
    }

    fn server(&self, id: u64) -> Arc<Server> {
        self.servers.lock()[&ServerId(id)].clone()
    }

    fn asked(&self) -> Vec<u64> {
        std::mem::take(&mut self.asked.lock())
    }

    fn weather(&self, server: u64, weather: &[Weather]) {
        self.weather.lock().insert(ServerId(server), weather.iter().rev().copied().collect());
    }
}

type Door = RowClient<Add, (u64, u64), Wires>;

fn door(world: &Arc<World>, routes: &Arc<Routes>, local: Option<u64>) -> Door {
    let local = local.map(|id| world.server(id) as Arc<dyn LocalReplicas<_, _>>);
    RowClient::new(Wires(world.clone()), routes.clone(), local, is_read, TIMEOUT)
}

/// As a proxy does: again, while nothing was proposed, until a deadline.
async fn insist(rows: &Door, add: Add, deadline: Instant) -> Result<(u64, u64), CallError> {
    loop {
        match rows.call(P, add.clone()).await {
            Err(CallError::NoLeader(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(1)).await
            }
            other => return other,
        }
    }
}

fn write(id: u64) -> Add {
    Add { by: 1, id }
}

const READ: Add = Add { by: 0, id: 0 };

#[tokio::test]
async fn a_hint_is_followed_at_once_and_remembered() {
    let (world, routes) = World::new(3);
    let rows = door(&world, &routes, None);
    world.lead(3, 1, &[]);
    assert_eq!(rows.call(P, write(1)).await, Ok((3, 1)));
    assert_eq!(world.asked(), [1, 3]);
    assert_eq!(rows.call(P, write(2)).await, Ok((3, 2)));
    assert_eq!(rows.call(P, READ).await, Ok((3, 2)));
    assert_eq!(world.asked(), [3, 3]);
    world.lead(2, 2, &[]);
    assert_eq!(rows.call(P, write(3)).await, Ok((2, 3)));
    assert_eq!(world.asked(), [3, 2]);
}

#[tokio::test]
async fn without_hints_every_replica_is_asked_once() {
    let (world, routes) = World::new(3);
    let rows = door(&world, &routes, None);
    *world.leader.lock() = Some(Leader { server: ServerId(2), term: 4 });
    assert_eq!(rows.call(P, write(1)).await, Ok((2, 1)));
    assert_eq!(world.asked(), [1, 2]);
    assert_eq!(rows.call(P, write(2)).await, Ok((2, 2)), "who answered leads");
    assert_eq!(world.asked(), [2]);
    *world.leader.lock() = None;
    assert_eq!(rows.call(P, write(3)).await, Err(CallError::NoLeader("not me".into())));
    assert_eq!(world.asked(), [2, 1, 3]);
}

#[tokio::test]
async fn hints_that_loop_end() {
    let (world, routes) = World::new(3);
    let rows = door(&world, &routes, None);
    world.believe(1, 2, 7);
    world.believe(2, 3, 7);
    world.believe(3, 1, 7);
    assert!(matches!(rows.call(P, write(1)).await, Err(CallError::NoLeader(_))));
    assert!(world.asked().len() <= 5);
    // Terms that grow, too.
    for round in 0..20 {
        world.believe(1, 2, 10 + 3 * round);
        world.believe(2, 3, 11 + 3 * round);
        world.believe(3, 1, 12 + 3 * round);
        assert!(matches!(rows.call(P, write(1)).await, Err(CallError::NoLeader(_))));
        assert!(world.asked().len() <= 5);
    }
    assert_eq!(world.sum.load(Relaxed), 0);
}

#[tokio::test]
async fn a_hint_of_a_later_term_leads_back_to_who_was_asked_before() {
    let (world, routes) = World::new(2);
    let rows = door(&world, &routes, None);
    world.believe(1, 2, 5);
    world.believe(2, 1, 6);
    *world.leader.lock() = None;
    let leads_later = async {
        while world.calls.load(Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        world.lead(1, 6, &[]);
    };
    let (answer, ()) = tokio::join!(rows.call(P, write(1)), leads_later);
    assert_eq!((answer, world.asked()), (Ok((1, 1)), vec![1, 2, 1]));
}

#[tokio::test]
async fn a_request_that_was_not_sent_goes_to_another_server() {
    let (world, routes) = World::new(3);
    let rows = door(&world, &routes, None);
    world.lead(1, 1, &[]);
    routes.learn(P, Leader { server: ServerId(1), term: 1 });
    assert_eq!(rows.call(P, write(1)).await, Ok((1, 1)));
    world.weather(1, &[Weather::NotSent; 100]);
    // The others do not know yet that it is dead, and are not believed.
    assert!(matches!(rows.call(P, write(2)).await, Err(CallError::NoLeader(_))));
    assert_eq!(world.asked(), [1, 1, 2, 3]);
    assert!(matches!(rows.call(P, write(2)).await, Err(CallError::NoLeader(_))));
    assert_eq!(world.asked(), [2, 3], "who cannot be reached is left alone for a while");
    world.lead(3, 2, &[2]);
    assert_eq!(rows.call(P, write(2)).await, Ok((3, 2)));
}

#[tokio::test]
async fn a_leader_that_has_too_much_to_do_stays_the_leader() {
    let (world, routes) = World::new(3);
    let rows = door(&world, &routes, None);
    world.lead(1, 1, &[]);
    world.weather(1, &[Weather::Busy]);
    assert_eq!(rows.call(P, write(1)).await, Err(CallError::NoLeader("too many calls".into())));
    assert_eq!(rows.call(P, write(1)).await, Ok((1, 1)));
    assert_eq!(world.asked(), [1, 1]);
}

#[tokio::test]
async fn a_write_that_was_lost_is_not_sent_again() {
    let (world, routes) = World::new(3);
    let rows = door(&world, &routes, None);
    world.lead(1, 1, &[]);
    for (weather, sum) in
        [(Weather::RequestLost, 0), (Weather::AnswerLost, 1), (Weather::Refused, 1)]
    {
        routes.learn(P, Leader { server: ServerId(1), term: 1 });
        world.lead(1, 1, &[]);
        world.weather(1, &[weather]);
        tokio::time::sleep(Duration::from_millis(501)).await;
        let answer = rows.call(P, write(1)).await;
        assert!(matches!(answer, Err(CallError::Unknown(_))), "{weather:?}: {answer:?}");
        assert_eq!(world.asked(), [1]);
        assert_eq!(world.sum.load(Relaxed), sum);
    }
}

#[tokio::test]
async fn a_request_too_large_to_send_was_not_done() {
    let (world, routes) = World::new(3);
    let rows = door(&world, &routes, None);
    world.lead(1, 1, &[]);
    for request in [write(1), READ] {
        world.weather(1, &[Weather::TooLarge]);
        assert_eq!(rows.call(P, request).await, Err(CallError::TooLarge("9 bytes".into())));
        assert_eq!((world.asked(), world.sum.load(Relaxed)), (vec![1], 0), "others are not asked");
    }
}

#[tokio::test]
async fn a_read_that_was_lost_may_be_sent_again() {
    let (world, routes) = World::new(3);
    let rows = door(&world, &routes, None);
    world.lead(1, 1, &[]);
    world.weather(1, &[Weather::AnswerLost]);
    assert!(matches!(rows.call(P, READ).await, Err(CallError::NoLeader(_))));
    world.lead(2, 2, &[]);
    assert_eq!(rows.call(P, READ).await, Ok((2, 0)));
}

#[tokio::test]
async fn a_leader_in_this_process_is_called_without_a_network() {
    let (world, routes) = World::new(3);
    let rows = door(&world, &routes, Some(2));
    world.lead(2, 1, &[]);
    assert_eq!(rows.read_now(P, &READ), Some(Ok((2, 0))));
    assert_eq!(rows.call(P, write(1)).await, Ok((2, 1)));
    assert_eq!((world.asked().len(), world.server(2).local_calls.load(Relaxed)), (0, 1));
    // It moves; the replica here knows where, so it is one hop.
    world.lead(3, 2, &[]);
    assert_eq!(rows.read_now(P, &READ), None);
    assert_eq!(rows.call(P, write(2)).await, Ok((3, 2)));
    assert_eq!(world.asked(), [3]);
    // The replica here still believes in itself: the next try finds the leader.
    world.believe(2, 2, 2);
    assert!(matches!(rows.call(P, write(3)).await, Err(CallError::NoLeader(_))));
    *world.server(2).believed.lock() = None;
    assert_eq!(rows.call(P, write(3)).await, Ok((3, 3)));
    // And the replica leaves this server: no reason to say that there is no table.
    *world.server(2).has_replica.lock() = false;
    assert_eq!(rows.call(P, write(4)).await, Ok((3, 4)));
    world.believe(2, 2, 2);
    assert!(matches!(rows.call(P, write(5)).await, Err(CallError::NoLeader(_))));
}

#[tokio::test]
async fn a_replica_that_has_moved_away_is_no_dropped_table() {
    let (world, routes) = World::new(2);
    let rows = door(&world, &routes, None);
    *world.server(1).has_replica.lock() = false;
    *world.leader.lock() = Some(Leader { server: ServerId(2), term: 1 });
    assert_eq!(rows.call(P, write(1)).await, Ok((2, 1)));
    assert_eq!(world.asked(), [1, 2]);
    *world.server(2).has_replica.lock() = false;
    assert!(matches!(rows.call(P, write(2)).await, Err(CallError::NoLeader(_))));
    routes.apply_all(&Default::default());
    assert_eq!(rows.call(P, write(2)).await, Err(CallError::NoTable));
    let unheard = PartitionId { table: TableId(9), index: 0 };
    assert!(
        matches!(rows.call(unheard, write(2)).await, Err(CallError::NoLeader(_))),
        "it may only not be known here yet"
    );
}

/// Leaders move, die and lie; requests and answers are lost. Every write is applied once
/// if it was acknowledged, at most once if its outcome is unknown, never if it was
/// refused.
#[tokio::test]
async fn no_write_is_applied_twice() {
    let seed: u64 = std::env::var("BRIDLE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random);
    eprintln!("BRIDLE_SEED={seed}");
    let mut state = seed | 1;
    let mut draw = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let (world, routes) = World::new(3);
    let doors = [
        door(&world, &routes, None),
        door(&world, &routes, Some(1)),
        door(&world, &routes, Some(3)),
    ];
    let (mut acknowledged, mut unknown, mut refused) = (0, 0, 0);
    for id in 0..4000 {
        match draw(10) {
            0 => world.lead(1 + draw(3), id, &[]),
            1 => world.lead(1 + draw(3), id, &[1 + draw(3)]),
            2 => *world.leader.lock() = None,
            3 => world.believe(1 + draw(3), 1 + draw(3), draw(id + 1)),
            4 | 5 => {
                let all = [
                    Weather::NotSent,
                    Weather::RequestLost,
                    Weather::AnswerLost,
                    Weather::Refused,
                    Weather::Busy,
                ];
                world.weather(1 + draw(3), &[all[draw(5) as usize]]);
            }
            _ => {}
        }
        let rows = &doors[draw(3) as usize];
        let answer = insist(rows, write(id), Instant::now() + Duration::from_millis(2)).await;
        let applied = world.applied.lock().get(&id).copied().unwrap_or(0);
        match answer {
            Ok(_) => {
                assert_eq!((applied, acknowledged += 1), (1, ()), "write {id} was acknowledged")
            }
            Err(CallError::Unknown(_)) => {
                assert!((applied, unknown += 1).0 <= 1, "write {id} has an unknown outcome")
            }
            Err(CallError::NoLeader(_)) => {
                assert_eq!((applied, refused += 1), (0, ()), "write {id} was refused")
            }
            Err(other) => panic!("{other}"),
        }
    }
    eprintln!("{acknowledged} acknowledged, {unknown} unknown, {refused} refused");
    assert!(
        acknowledged > 500 && unknown > 50 && refused > 50,
        "the weather is too good or too bad to show anything"
    );
}

#[tokio::test]
async fn strange_bodies_are_answered() {
    let (world, _) = World::new(1);
    let server: Arc<dyn LocalReplicas<Add, (u64, u64)>> = world.server(1);
    for body in [
        &b""[..],
        b"\x02",
        b"\x03\x01\x03\x01\x01",
        b"\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let ServiceReply::Now(Ok(said)) = serve_rows(&server, is_read, body) else {
            panic!("{body:?}")
        };
        assert_eq!(said[..2], *b"\x02\x03", "version 2, the fourth variant");
    }
}

/// Frozen: add vectors for new versions, never edit these.
#[tokio::test]
async fn version_2_is_frozen() {
    let (world, routes) = World::new(1);
    let server: Arc<dyn LocalReplicas<Add, (u64, u64)>> = world.server(1);
    let serve = |body: &'static [u8]| {
        let server = server.clone();
        async move {
            match serve_rows(&server, is_read, body) {
                ServiceReply::Now(answer) => answer.unwrap(),
                ServiceReply::Later(answer) => answer.await.unwrap(),
            }
        }
    };
    // Table 1, partition 3, add 5 with id 9.
    assert_eq!(serve(b"\x02\x01\x03\x05\x09").await, &b"\x02\x02\x00\x06not me"[..]);
    world.lead(1, 1, &[]);
    assert_eq!(serve(b"\x02\x01\x03\x05\x09").await, &b"\x02\x00\x01\x05"[..]);
    world.believe(1, 2, 300);
    assert_eq!(
        serve(b"\x02\x01\x03\x05\x09").await,
        &b"\x02\x02\x01\x02\xac\x02\x15another replica leads"[..]
    );
    *world.server(1).believed.lock() = None;
    *world.server(1).has_replica.lock() = false;
    assert_eq!(serve(b"\x02\x01\x03\x05\x09").await, &b"\x02\x01\x03"[..]);
    let (sent, sending) = tokio::sync::oneshot::channel();
    let wires = Keeper(Mutex::new(Some(sent)));
    let rows: RowClient<Add, (u64, u64), Keeper> =
        RowClient::new(wires, routes, None, is_read, TIMEOUT);
    assert_eq!(rows.call(P, Add { by: 5, id: 9 }).await, Ok((1, 5)));
    assert_eq!(sending.await.unwrap(), &b"\x02\x01\x03\x05\x09"[..]);
}

/// Keeps what is sent.
struct Keeper(Mutex<Option<tokio::sync::oneshot::Sender<Bytes>>>);

impl RowTransport for Keeper {
    async fn send(&self, _: ServerId, body: Bytes, _: Duration) -> Result<Bytes, NetError> {
        self.0.lock().take().unwrap().send(body).unwrap();
        Ok(Bytes::from_static(b"\x02\x00\x01\x05"))
    }

    fn is_up(&self, _: ServerId) -> bool {
        true
    }
}
