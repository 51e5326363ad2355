//! A process of a cluster: `bridle node`, `storage`, `proxy` or `meta`.
//!
//! # Life of a start
//! 1. The cluster's port serves immediately, for the components that are already open:
//!    metas need each other before any of them can answer.
//! 2. A meta opens its member of the meta group.
//! 3. The process registers with the meta leader ([`MetaClient`]), and learns the
//!    id of its cluster, if it is new.
//! 4. Storage opens the replicas that meta assigns. The proxy waits for the list of
//!    tables, so that it does not report an existing table as missing.
//!
//! From then on reads, writes and failovers need no metas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cluster::ServerId;
use cluster::catalogue::RemoteCatalogue;
use cluster::meta_client::MetaClient;
use cluster::meta_protocol::{Durability, Instruction, Roles, Server};
use cluster::net::{ClusterId, Destination, Net, NetOptions, Service};
use cluster::routes::Routes;
use cluster::row_client::{LocalReplicas, RowClient, SyncRequest};
use engine::raft::{Ticker, TransferReason, Transport};
use meta::{Meta, MetaMode, MetaOptions};
use row::op::{Request, Response};
use storage::{Node, Peers};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::components::{Components, StartContext};
use crate::config::Config;
use crate::meta_admission;
use crate::ports::BoundAddresses;
use crate::process_info::ProcessInfo;
use crate::raft_transport::NetTransport;
use crate::reachability::Reachability;
use crate::reconcile;
use crate::reporter::Reporter;
use crate::rpc_services::{RpcServices, is_read};
use crate::stores::{self, Stores};

/// Maximum number of queued instructions of meta.
const INSTRUCTIONS_MAX: usize = 1024;
/// Minimum of the maximum frame size, bytes; larger when answers may be larger.
const FRAME_BYTES_MIN: usize = 64 << 20;
/// Maximum size of the envelope around an answer, bytes.
const ENVELOPE_BYTES: usize = 1 << 20;
/// Maximum of the cluster's protocol.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// Timeout of a request to fsync a copy.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before such a request is repeated.
const SYNC_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The cluster as a process sees it.
pub(crate) struct ClusterView {
    pub(crate) id: ServerId,
    pub(crate) net: Arc<Net>,
    pub(crate) reachability: Arc<Reachability>,
    pub(crate) meta_client: Arc<MetaClient>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) catalogue: Arc<RemoteCatalogue>,
}

impl ClusterView {
    /// The weakest durability that a storage server reports, which holds for every
    /// acknowledged write whatever server leads its partition. `None`: no server is
    /// known.
    pub(crate) fn durability(&self) -> Option<Durability> {
        self.durabilities().into_keys().next()
    }

    /// The durabilities that the storage servers report, the weakest first, with the
    /// servers' addresses.
    fn durabilities(&self) -> BTreeMap<Durability, Vec<String>> {
        durabilities(self.meta_client.servers().borrow().as_deref())
    }

    /// Waits until another server has fsynced a partition's log up to an entry.
    pub(crate) async fn sync_copy(&self, server: ServerId, asked: SyncRequest) {
        loop {
            let answer = self
                .net
                .call(Destination::Server(server), Service::Sync, asked.encode(), SYNC_TIMEOUT)
                .await;
            match answer {
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(%server, ?asked, %error, "cannot confirm an fsync of a copy")
                }
            }
            tokio::time::sleep(SYNC_RETRY_INTERVAL).await;
        }
    }
}

fn durabilities(servers: Option<&BTreeMap<ServerId, Server>>) -> BTreeMap<Durability, Vec<String>> {
    let mut reported = BTreeMap::<Durability, Vec<String>>::new();
    for server in servers.into_iter().flat_map(BTreeMap::values) {
        if let Some(durability) = server.durability {
            reported.entry(durability).or_default().push(server.address.clone());
        }
    }
    reported
}

/// Warns when storage servers differ in durability: a write is then as durable as the
/// servers that acknowledge it, which differ from write to write.
async fn warn_on_mixed_durability(meta_client: Arc<MetaClient>) {
    let (mut servers, mut warned) = (meta_client.servers(), BTreeMap::new());
    loop {
        let reported = durabilities(servers.borrow_and_update().as_deref());
        if reported.len() > 1 && reported != warned {
            let list = reported
                .iter()
                .map(|(durability, servers)| {
                    format!("{} on {}", durability.word(), servers.join(", "))
                })
                .collect::<Vec<_>>();
            let why = list.join("; ");
            tracing::warn!(
                why,
                "storage servers differ in durability: the weakest is reported to clients \
                 (storage.durability)"
            );
        }
        warned = reported;
        if servers.changed().await.is_err() {
            return;
        }
    }
}

/// The process's membership in its cluster.
pub(crate) struct Membership {
    pub(crate) view: Arc<ClusterView>,
    rpc_services: Arc<RpcServices>,
    reporter: Arc<Reporter>,
    stop_following: CancellationToken,
    stop_serving: CancellationToken,
    serving: JoinHandle<()>,
}

impl Membership {
    /// Makes the open process available to other servers and to meta.
    pub(crate) fn publish(&self, process: &Arc<ProcessInfo>) {
        self.rpc_services.set_process(process);
        self.reporter.set_process(process);
    }

    /// Deregisters from meta, answers requests in flight, and closes the port.
    pub(crate) async fn leave(self) {
        self.stop_following.cancel();
        self.stop_serving.cancel();
        if self.serving.await.is_err() {
            tracing::warn!("the cluster's port was not closed cleanly");
        }
    }
}

/// Opens the components that the process's roles need, and joins the cluster.
pub(crate) async fn open(
    setup: &StartContext<'_>,
    listener: std::net::TcpListener,
) -> anyhow::Result<Components> {
    let (config, data_dir, runtimes, roles) =
        (setup.config, setup.data_dir, setup.runtimes, setup.roles);
    let server = server(config, roles, setup.bound, data_dir.identity().node_id)?;
    let metas = config.cluster.meta_addresses();
    // First, since Raft's restart guard counts from here.
    let ticker = {
        let _on = runtimes.raft.enter();
        Ticker::start()
    };
    ticker.set_snapshot_rate(config.cluster.snapshot_rate.0);
    ticker.set_log_policy(stores::log_policy(config));
    let (net, listener) = {
        let _on = runtimes.net.enter();
        (Net::new(net_options(config, &server, setup))?, TcpListener::from_std(listener)?)
    };
    let transport: Arc<dyn Transport> = Arc::new(NetTransport::new(net.clone(), metas.clone()));
    let (rpc_services, reporter) =
        (RpcServices::new(server.id), Reporter::new(server.clone(), data_dir.clone()));
    let (stop_serving, stop_following) = (CancellationToken::new(), CancellationToken::new());
    let serving = {
        let (net, rpc_services, stop) = (net.clone(), rpc_services.clone(), stop_serving.clone());
        runtimes.net.spawn(async move { net.serve(listener, rpc_services, stop).await })
    };

    let stores = match roles.storage || roles.meta {
        true => Some(Stores::open(config, data_dir, &runtimes.write_on_park).await?),
        false => None,
    };
    let meta = match (&stores, config.cluster.meta_index()) {
        (Some(stores), Some(position)) => {
            let has_history = stores.log.groups().contains(&meta::GROUP);
            rpc_services
                .set_has_history(has_history || data_dir.identity().cluster_number().is_some());
            if !has_history {
                let others = metas
                    .iter()
                    .zip(1..)
                    .filter(|(_, index)| *index != position)
                    .map(|(address, _)| address.clone());
                meta_admission::wait_for_admission(
                    &net,
                    others.collect(),
                    position,
                    server.id,
                    setup.phase,
                )
                .await?;
            }
            let mode = MetaMode::Member {
                members: metas.clone(),
                position,
                transport: transport.clone(),
                ticker: ticker.clone(),
                net: net.clone(),
            };
            let options = MetaOptions {
                dir: data_dir.meta(),
                raft_runtime: runtimes.raft.handle().clone(),
                partitions: config.tables.partitions,
                replicas: config.tables.replicas,
                cluster: rand::random(),
                clock: setup.clock.clone(),
                mode,
            };
            let stores = stores.clone();
            let opened = runtimes
                .net
                .spawn(async move { Meta::open(options, &stores.log, &stores.shared).await })
                .await?;
            let meta = opened.context("open the table catalogue")?;
            rpc_services.set_meta(&meta);
            Some(meta)
        }
        _ => None,
    };

    let (instruction, instructions) = mpsc::channel::<Instruction>(INSTRUCTIONS_MAX);
    let meta_client = {
        let _on = runtimes.net.enter();
        MetaClient::start(
            net.clone(),
            metas.clone(),
            reporter.clone(),
            instruction,
            stop_following.clone(),
        )
    };
    let (routes, catalogue) =
        (Arc::new(Routes::default()), Arc::new(RemoteCatalogue::new(net.clone(), metas)));
    let mut tasks = Vec::new();
    tasks.push(spawn({
        let (routes, published) = (routes.clone(), meta_client.routes());
        async move { routes.run(published).await }
    }));
    tasks.push(spawn({
        let (catalogue, tables, leader) =
            (catalogue.clone(), meta_client.tables(), meta_client.leader());
        async move { catalogue.run(tables, leader).await }
    }));

    tasks.push(spawn(warn_on_mixed_durability(meta_client.clone())));

    setup.phase.set("waiting for a meta leader");
    let cluster = match data_dir.identity().cluster_number() {
        Some(cluster) => cluster,
        None => {
            let cluster = first_value(meta_client.cluster()).await?;
            data_dir.join(cluster)?;
            cluster
        }
    };
    let node = match (&stores, roles.storage) {
        (Some(stores), true) => {
            let peers = Peers { server: server.id, transport, ticker };
            let (options, stores) = (setup.node_options(cluster, Some(peers)), stores.clone());
            // On the proxy's runtime, so that executors run beside the connections that
            // they answer.
            let node = runtimes
                .proxy
                .spawn(async move { Node::open(options, stores.log, stores.shared) })
                .await?;
            rpc_services.set_node(&node);
            reporter.set_node(&node);
            let (first, followed) = oneshot::channel();
            let assignments =
                reconcile::run_member(node.clone(), reporter.clone(), meta_client.clone(), first);
            tasks.push(runtimes.proxy.spawn(assignments).abort_handle());
            tasks.push(spawn(reconcile::report_changes(node.clone(), meta_client.clone())));
            tasks.push(
                runtimes
                    .proxy
                    .spawn(reconcile::run_instructions(
                        node.clone(),
                        reporter.clone(),
                        meta_client.clone(),
                        instructions,
                    ))
                    .abort_handle(),
            );
            if followed.await.is_err() {
                bail!("the replicas could not be opened");
            }
            Some(node)
        }
        _ => None,
    };
    if roles.proxy {
        let tables = first_value(meta_client.tables()).await?;
        catalogue.apply_all(tables.values());
        // Routes arrive before tables.
        if let Some(all) = meta_client.routes().borrow().as_ref() {
            routes.apply_all(all);
        }
    }
    let replicas = node.clone().map(|node| -> Arc<dyn LocalReplicas<Request, Response>> { node });
    let rows = RowClient::new(
        net.clone(),
        routes.clone(),
        replicas,
        is_read,
        config.cluster.call_timeout.0,
    );
    let reachability = Arc::new(Reachability::new(roles, Instant::now()));
    let view = Arc::new(ClusterView {
        id: server.id,
        net,
        reachability: reachability.clone(),
        meta_client,
        routes,
        catalogue: catalogue.clone(),
    });
    tasks.push(runtimes.proxy.spawn(reachability.run(view.clone(), node.clone())).abort_handle());
    let membership =
        Membership { view, rpc_services, reporter, stop_following, stop_serving, serving };
    Ok(Components {
        stores,
        meta,
        node,
        membership: Some(membership),
        rows: Arc::new(rows),
        catalogue,
        tasks,
    })
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> tokio::task::AbortHandle {
    tokio::spawn(task).abort_handle()
}

/// Waits for the first value of a watch.
async fn first_value<T: Clone>(mut value: watch::Receiver<Option<T>>) -> anyhow::Result<T> {
    let word =
        value.wait_for(Option::is_some).await.context("the connection to the cluster has ended")?;
    word.clone().context("the value was removed")
}

fn net_options(config: &Config, server: &Server, setup: &StartContext<'_>) -> NetOptions {
    let mut options = NetOptions::new(server.id, &server.address);
    options.cluster = setup.data_dir.identity().cluster_number().map(ClusterId);
    options.secret = config.cluster.net_secret();
    options.tls = config.cluster.net_tls();
    let answer = config.storage.max_answer_size.0 as usize + ENVELOPE_BYTES;
    options.raft_runtime = Some(setup.runtimes.raft.handle().clone());
    options.rows_runtime = Some(setup.runtimes.proxy.handle().clone());
    options.frame_bytes_max = answer.clamp(FRAME_BYTES_MIN, FRAME_BYTES_MAX);
    options
}

/// The entry of this process in the cluster's list of servers.
fn server(
    config: &Config,
    roles: Roles,
    bound: &BoundAddresses,
    id: u64,
) -> anyhow::Result<Server> {
    let section = &config.cluster;
    let address = section
        .advertised(bound.cluster.context("a process of a cluster has a port for the others")?);
    // A port that is bound to all addresses is advertised with the host of the cluster's
    // port.
    let host = section
        .advertise
        .as_ref()
        .map_or_else(|| section.listen.ip().to_string(), |address| address.host().to_owned());
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let shown = |at: &std::net::SocketAddr| match at.ip().is_unspecified() {
        true => format!("{host}:{}", at.port()),
        false => at.to_string(),
    };
    let clients = bound.plain.iter().chain(&bound.tls).map(shown).collect();
    let durability = roles.storage.then(|| config.storage.durability.to_cluster());
    let server = Server {
        id: ServerId(id),
        address,
        http: shown(&bound.http),
        clients,
        zone: section.zone.clone(),
        roles,
        durability,
    };
    server.check()?;
    Ok(server)
}

/// Transfers the meta group's leadership to another meta, if this one leads.
pub(crate) async fn transfer_meta_leadership(meta: &Meta, timeout: Duration) {
    let status = meta.group().status();
    if !status.stats.is_leader {
        return;
    }
    let near = status
        .followers
        .iter()
        .filter(|follower| follower.is_voter && follower.last_contact.is_some());
    let Some(next) = near.max_by_key(|follower| follower.matched) else { return };
    // Meta's leases end with the decision that they were acquired for.
    match tokio::time::timeout(
        timeout,
        meta.group().transfer_leader_with(next.raft_id, TransferReason::Stopping, Box::new(|| ())),
    )
    .await
    {
        Ok(Ok(())) => tracing::info!(to = next.raft_id, "transferred the meta leadership"),
        Ok(Err(error)) => tracing::info!(%error, "meta leadership transfer failed"),
        Err(_) => tracing::info!("the metas' leadership was not handed over in time"),
    }
}
