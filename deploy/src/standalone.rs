//! `bridle standalone`: proxy, storage and meta in one process. They call each other's
//! functions; there is no network.

use anyhow::Context;
use cluster::ServerId;
use cluster::meta_protocol::{Roles, Server};
use meta::{Meta, MetaMode, MetaOptions};
use storage::Node;

use crate::components::{Components, StartContext};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::reconcile;
use crate::stores::Stores;

/// Opens all components, with all partitions of all tables.
pub(crate) async fn open(setup: &StartContext<'_>) -> anyhow::Result<Components> {
    let (config, data_dir, runtimes) = (setup.config, setup.data_dir, setup.runtimes);
    let stores = Stores::open(config, data_dir, &runtimes.write_on_park).await?;
    let cluster = data_dir.identity().cluster_number().unwrap_or_default();
    let options = MetaOptions {
        dir: data_dir.meta(),
        raft_runtime: runtimes.raft.handle().clone(),
        partitions: config.tables.partitions,
        replicas: 1,
        cluster,
        clock: setup.clock.clone(),
        mode: MetaMode::Standalone(only_server(config, data_dir)),
    };
    let meta = Meta::open(options, &stores.log, &stores.shared)
        .await
        .context("open the table catalogue")?;
    let (options, node_stores, first) =
        (setup.node_options(cluster, None), stores.clone(), meta.clone());
    // On the proxy's runtime, so that executors run beside the connections that they
    // answer.
    let node = runtimes.proxy.spawn(async move {
        let node = Node::open(options, node_stores.log, node_stores.shared);
        let tables = first.watch().borrow().clone();
        reconcile::reconcile_tables(&first, &node, &tables).await;
        node
    });
    let node = node.await?;
    let following = runtimes.proxy.spawn(reconcile::run_standalone(meta.clone(), node.clone()));
    Ok(Components {
        stores: Some(stores),
        rows: node.clone(),
        catalogue: meta.clone(),
        meta: Some(meta),
        node: Some(node),
        membership: None,
        tasks: vec![following.abort_handle()],
    })
}

/// The entry of this process in the table catalogue; no other process connects to it.
fn only_server(config: &Config, data_dir: &DataDir) -> Server {
    let roles = Roles { meta: true, storage: true, proxy: true };
    let id = ServerId(data_dir.identity().node_id);
    let durability = Some(config.storage.durability.to_cluster());
    Server {
        id,
        address: "this process".to_owned(),
        http: String::new(),
        clients: Vec::new(),
        zone: String::new(),
        roles,
        durability,
    }
}
