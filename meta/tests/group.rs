//! Three metas over real connections: what one has begun, the next one ends; what servers
//! report is known again after a change of the leader.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::cluster::meta_protocol::{
    self, MetaIndexStatus, MetaMessage, MetaRequest, MetaResponse, RegisterRequest, Roles, Server,
};
use ::cluster::net::{Destination, Net, NetOptions, Service};
use ::cluster::{PartitionId, ServerId, Table};
use bytes::Bytes;
use kit::cluster::{OneMeta, Servers, leader, metas, until};
use meta::state::TablePhase;

mod kit;

fn no_envs() -> BTreeMap<String, String> {
    BTreeMap::new()
}

fn meta_of(metas: &[Option<OneMeta>], index: usize) -> Arc<meta::Meta> {
    metas[index].as_ref().unwrap().meta.clone()
}

/// A meta's response to a request.
async fn ask(net: &Arc<Net>, address: &str, ask: MetaRequest) -> MetaResponse {
    let to = Destination::Address(address.to_owned());
    let answer = net
        .call(to, Service::Meta, meta_protocol::encode(&ask), std::time::Duration::from_secs(10))
        .await;
    meta_protocol::decode::<MetaResponse>(&answer.unwrap()).unwrap()
}

async fn status_of(meta: &meta::Meta, name: &str) -> TablePhase {
    let status = || Some(meta.image().ok()?.state.named(name)?.status);
    until("the table is known", status).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_is_finished_by_the_next_leader() {
    let dir = tempfile::tempdir().unwrap();
    let (mut metas, addresses) = metas(dir.path()).await;
    let servers = Servers::start(3, &addresses).await;
    servers.behaviour.leads_nothing.store(true, Ordering::Relaxed);
    let first = leader(&metas).await;
    let meta = meta_of(&metas, first);
    let creating = tokio::spawn(async move { meta.create("a", None, None, no_envs()).await });
    let meta = meta_of(&metas, first);
    assert_eq!(status_of(&meta, "a").await, TablePhase::Creating);
    let (cluster, before) = {
        let image = meta.image().unwrap();
        (image.state.cluster, image.state.placements.clone())
    };
    drop(meta);
    metas[first].take().unwrap().kill().await;
    assert!(creating.await.unwrap().is_err(), "whoever waited is told that it is not known");
    servers.behaviour.leads_nothing.store(false, Ordering::Relaxed);

    let second = leader(&metas).await;
    let meta = meta_of(&metas, second);
    until("the table is made ready", || {
        let image = meta.image().ok()?;
        (image.state.named("a")?.status == TablePhase::Ready).then_some(())
    })
    .await;
    let image = meta.image().unwrap();
    assert_eq!(
        (image.state.cluster, &image.state.placements),
        (cluster, &before),
        "the same cluster, the same placements"
    );
    // Everybody hears of it, with a leader for each partition.
    for follow in &servers.follows {
        let (tables, routes) = (follow.tables(), follow.routes());
        until("servers hear of it", || {
            let tables = tables.borrow().clone()?;
            let routes = routes.borrow().clone()?;
            let led = routes.values().filter(|route| route.leader.is_some()).count();
            (tables.len() == 1 && led == 4).then_some(())
        })
        .await;
    }
    // Whatever is asked of a meta that does not lead, it says who does.
    let third = (0..3).find(|index| ![first, second].contains(index)).unwrap();
    let net = Net::new(NetOptions::new(ServerId(3000), "nowhere:1")).unwrap();
    let ask = |address: String, question: MetaRequest| {
        let net = net.clone();
        async move { ask(&net, &address, question).await }
    };
    let ensure = || MetaRequest::EnsureTable { name: "db3".into() };
    let MetaResponse::NotLeading(other) = ask(addresses[third].clone(), ensure()).await else {
        panic!("it does not lead")
    };
    assert_eq!(other.leader.as_ref(), Some(&addresses[second]));
    let MetaResponse::Table(Table { name, partitions, replicas, .. }) =
        ask(addresses[second].clone(), ensure()).await
    else {
        panic!("the table is made")
    };
    assert_eq!((name.as_str(), partitions, replicas), ("db3", 4, 3));
    let list = MetaRequest::Admin {
        method: "GET".into(),
        path: "/v1/tables/db3/partitions".into(),
        body: Bytes::new(),
    };
    let MetaResponse::Admin { status: 200, body } = ask(addresses[second].clone(), list).await
    else {
        panic!("partitions are listed")
    };
    let list: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (list.as_array().unwrap().len(), &list[3]["members"][2]["lag"], &list[0]["term"]),
        (4, &0.into(), &1.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_rebuild_routes_and_a_drop_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut metas, addresses) = metas(dir.path()).await;
    let servers = Servers::start(3, &addresses).await;
    let first = leader(&metas).await;
    let meta = meta_of(&metas, first);
    let table = meta.create("a", None, None, no_envs()).await.unwrap();
    meta.create("b", Some(2), Some(1), no_envs()).await.unwrap();
    meta.set_env("a", "default_ttl", Some("60")).await.unwrap();
    // A leadership goes where it is sent.
    let partition = PartitionId { table: table.id, index: 0 };
    let to = meta.image().unwrap().state.placements[&partition].members[2].server;
    meta.transfer(partition, to).await.unwrap();
    let led_by = |meta: &meta::Meta| Some(meta.image().ok()?.routes.get(&partition)?.leader);
    let leader_before =
        until("the route follows", || led_by(&meta).flatten().filter(|leader| leader.server == to))
            .await;
    servers.behaviour.destroys_nothing.store(true, Ordering::Relaxed);
    meta.drop_table("b").await.unwrap();
    drop(meta);
    metas[first].take().unwrap().kill().await;

    let meta = meta_of(&metas, leader(&metas).await);
    let leader_now = until("routes are there again", || led_by(&meta).flatten()).await;
    assert_eq!(leader_now, leader_before);
    assert_eq!(meta.image().unwrap().state.tables.len(), 2, "what is dropped is still known");
    servers.behaviour.destroys_nothing.store(false, Ordering::Relaxed);
    until("the dropped table is forgotten", || {
        (meta.image().ok()?.state.tables.len() == 1).then_some(())
    })
    .await;
    let statuses = meta.server_statuses(&meta.image().unwrap());
    assert!(
        statuses.iter().all(|server| server.state == "up" && server.replicas == 4),
        "{statuses:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_confirmed_leader_finds_tables() {
    let dir = tempfile::tempdir().unwrap();
    let (mut metas, addresses) = metas(dir.path()).await;
    let _servers = Servers::start(3, &addresses).await;
    let first = leader(&metas).await;
    let meta = meta_of(&metas, first);
    let net = Net::new(NetOptions::new(ServerId(3000), "nowhere:1")).unwrap();
    let find = |name: &str| MetaRequest::FindTable { name: name.into() };
    let leading = &addresses[first];
    assert_eq!(ask(&net, leading, find("db3")).await, MetaResponse::Found(None));
    assert_eq!(
        ask(&net, leading, MetaRequest::ListTables).await,
        MetaResponse::Tables(Vec::new()),
        "to ask makes none"
    );
    let MetaResponse::Table(made) =
        ask(&net, leading, MetaRequest::EnsureTable { name: "db3".into() }).await
    else {
        panic!("the table is made")
    };
    for _ in 0..3 {
        assert_eq!(ask(&net, leading, find("db3")).await, MetaResponse::Found(Some(made.clone())));
        assert_eq!(ask(&net, leading, find("db30")).await, MetaResponse::Found(None));
        assert_eq!(
            ask(&net, leading, MetaRequest::ListTables).await,
            MetaResponse::Tables(vec![made.clone()])
        );
    }
    meta.drop_table("db3").await.unwrap();
    assert_eq!(ask(&net, leading, find("db3")).await, MetaResponse::Found(None));
    let other = &addresses[(first + 1) % 3];
    let MetaResponse::NotLeading(hint) = ask(&net, other, find("db3")).await else {
        panic!("it does not lead")
    };
    assert_eq!(hint.leader.as_ref(), Some(leading));
    // Without the others it can't know what they have decided, though it still takes
    // itself for the leader.
    for index in (0..3).filter(|index| *index != first) {
        metas[index].take().unwrap().kill().await;
    }
    let began = std::time::Instant::now();
    while let MetaResponse::Found(found) = ask(&net, leading, find("db3")).await {
        assert_eq!(found, None);
        assert!(began.elapsed() < std::time::Duration::from_secs(1), "its lease is over");
    }
    for question in [
        find("db3"),
        find("db4"),
        MetaRequest::ListTables,
        MetaRequest::EnsureTable { name: "db4".into() },
    ] {
        let told = ask(&net, leading, question.clone()).await;
        assert!(matches!(told, MetaResponse::NotLeading(_)), "{question:?}: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_meta_leader_without_majority_releases_its_servers() {
    let dir = tempfile::tempdir().unwrap();
    let (metas, addresses) = metas(dir.path()).await;
    let servers = Servers::start(3, &addresses).await;
    let first = leader(&metas).await;
    let all_follow = async |meta: usize| {
        for follow in &servers.follows {
            until("it follows the meta that leads", || {
                (follow.leader().borrow().as_ref() == Some(&addresses[meta])).then_some(())
            })
            .await;
        }
    };
    all_follow(first).await;
    let cut = &metas[first].as_ref().unwrap().cut;
    cut.store(true, Ordering::Relaxed);
    let leads = |meta: usize| meta_of(&metas, meta).image().is_ok();
    let second =
        until("another meta leads", || (0..3).find(|meta| *meta != first && leads(*meta))).await;
    all_follow(second).await;
    assert!(!leads(first), "it shows nothing any more");
    meta_of(&metas, second).create("a", None, None, no_envs()).await.unwrap();
    for follow in &servers.follows {
        let tables = follow.tables();
        until("servers hear of a table made through the new leader", || {
            tables.borrow().as_ref().is_some_and(|tables| tables.len() == 1).then_some(())
        })
        .await;
    }
    // Nobody has a majority; then the last leader may lead again in the term in which it
    // resigned.
    metas[(first + 1) % 3].as_ref().unwrap().cut.store(true, Ordering::Relaxed);
    metas[(first + 2) % 3].as_ref().unwrap().cut.store(true, Ordering::Relaxed);
    until("nobody leads without a majority", || (0..3).all(|meta| !leads(meta)).then_some(()))
        .await;
    metas.iter().flatten().for_each(|one| one.cut.store(false, Ordering::Relaxed));
    all_follow(leader(&metas).await).await;
}

/// Its proposal waits while it is cut off; those who reach only this
/// meta must not have to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_in_the_middle_of_a_change_resigns() {
    let dir = tempfile::tempdir().unwrap();
    let (metas, addresses) = metas(dir.path()).await;
    let servers = Servers::start(3, &addresses).await;
    servers.behaviour.leads_nothing.store(true, Ordering::Relaxed);
    let first = leader(&metas).await;
    let meta = meta_of(&metas, first);
    let creating = tokio::spawn(async move { meta.create("a", None, None, no_envs()).await });
    let meta = meta_of(&metas, first);
    assert_eq!(status_of(&meta, "a").await, TablePhase::Creating);
    // The last step is proposed, and nobody hears of it.
    let cut = &metas[first].as_ref().unwrap().cut;
    cut.store(true, Ordering::Relaxed);
    servers.behaviour.leads_nothing.store(false, Ordering::Relaxed);
    let began = std::time::Instant::now();
    until("it resigns", || meta.image().is_err().then_some(())).await;
    assert!(began.elapsed() < std::time::Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(creating.await.unwrap().is_err());
    let rest = metas
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != first)
        .map(|(_, one)| one.as_ref().unwrap().meta.clone());
    let rest: Vec<_> = rest.collect();
    let next = until("another leads", || rest.iter().find(|meta| meta.image().is_ok())).await;
    until("the table is made ready", || {
        (next.image().ok()?.state.named("a")?.status == TablePhase::Ready).then_some(())
    })
    .await;
    // Back again, it follows: it is not stuck in what it had begun.
    cut.store(false, Ordering::Relaxed);
    until("it knows the leader", || meta.leader_address()).await;
}

/// The votes of a meta index are those of one directory: each meta tells another so,
/// until an operator releases the index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_meta_index_is_kept_from_servers_without_its_votes() {
    let dir = tempfile::tempdir().unwrap();
    let (metas, addresses) = metas(dir.path()).await;
    let first = leader(&metas).await;
    let (old, new) = (ServerId(2003), ServerId(2004));
    let net = |server: ServerId| Net::new(NetOptions::new(server, &addresses[2])).unwrap();
    let roles = Roles { meta: true, storage: false, proxy: false };
    let register_request = |id: ServerId| {
        let server = Server {
            id,
            address: addresses[2].clone(),
            http: String::new(),
            clients: Vec::new(),
            zone: String::new(),
            roles,
            durability: None,
        };
        meta_protocol::encode(&RegisterRequest { server, cluster: None, software: "test".into() })
    };
    let (old_net, new_net) = (net(old), net(new));
    let first_word = |net: Arc<Net>, register_request: Bytes| {
        let to = Destination::Address(addresses[first].clone());
        async move {
            let mut channel = net.open(to, Service::Meta, register_request).await.unwrap();
            meta_protocol::decode::<MetaMessage>(&channel.recv().await.unwrap()).unwrap()
        }
    };
    let index = |server| MetaRequest::MetaIndex { index: 3, server };
    assert_eq!(
        ask(&new_net, &addresses[first], index(new)).await,
        MetaResponse::MetaIndex(MetaIndexStatus::Free)
    );
    assert!(matches!(
        first_word(old_net.clone(), register_request(old)).await,
        MetaMessage::RegisterAccepted(_)
    ));
    assert_eq!(
        ask(&new_net, &addresses[first], index(new)).await,
        MetaResponse::MetaIndex(MetaIndexStatus::Taken(old))
    );
    assert_eq!(
        ask(&old_net, &addresses[first], index(old)).await,
        MetaResponse::MetaIndex(MetaIndexStatus::Free)
    );
    let MetaMessage::Refused(why) = first_word(new_net.clone(), register_request(new)).await else {
        panic!("it is another's")
    };
    assert!(why.contains("bridle admin release 3"), "{why}");
    // Nor are its Raft messages taken, by those who do not lead either, once they have
    // heard of it.
    for one in metas.iter().flatten() {
        until("all know whose it is", || {
            (one.meta.owns_meta_index(3, old) && !one.meta.owns_meta_index(3, new)).then_some(())
        })
        .await;
    }
    let other = (first + 1) % 3;
    assert_eq!(
        ask(&new_net, &addresses[other], index(new)).await,
        MetaResponse::MetaIndex(MetaIndexStatus::Unknown),
        "it does not lead"
    );
    let meta = meta_of(&metas, first);
    until("the old one is down", || {
        let image = meta.image().ok()?;
        meta.server_statuses(&image).iter().all(|server| server.state != "up").then_some(())
    })
    .await;
    meta.release_meta_index(3).await.unwrap();
    assert!(matches!(
        first_word(new_net, register_request(new)).await,
        MetaMessage::RegisterAccepted(_)
    ));
}
