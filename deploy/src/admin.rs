//! `bridle admin`: the client of the admin API. Prints tables for people or JSON for
//! scripts.

mod certs;
mod client;
mod format;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use client::AdminClient;
use meta::admin::{
    ClusterStatus, CompactionStatus, EnvValue, NewLeader, NewTable, NodeStatus, PartitionStatus,
    ServerStatus, TableStatus,
};
use serde_json::Value;

use crate::cli::{Admin, AdminCommand, Env};

const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

/// Executes a subcommand; returns the text to print.
pub(crate) fn run(admin: &Admin) -> anyhow::Result<String> {
    if let AdminCommand::Certs { dir, days, hosts } = &admin.command {
        return certs::make(dir, *days, hosts, admin.json);
    }
    let server = AdminClient::new(admin)?;
    match &admin.command {
        AdminCommand::Status => status(&server),
        AdminCommand::Nodes => {
            server.show(server.get("/v1/nodes")?, |list: Vec<ServerStatus>| format::nodes(&list))
        }
        AdminCommand::Forget { node } => {
            let id = node_id(&server, node)?;
            server.delete(&format!("/v1/nodes/{id}"))?;
            server.show(serde_json::json!({ "forgotten": id }), |_: Value| {
                format!("{id} is removed\n")
            })
        }
        AdminCommand::Release { index } => {
            server.delete(&format!("/v1/metas/{index}"))?;
            server.show(serde_json::json!({ "released": index }), |_: Value| {
                format!("meta {index} is released: start the server that replaces it\n")
            })
        }
        AdminCommand::Tables => {
            server.show(server.get("/v1/tables")?, |list: Vec<TableStatus>| format::tables(&list))
        }
        AdminCommand::Partitions { table } => server
            .show(server.get(&table_path(table, "/partitions"))?, |list: Vec<PartitionStatus>| {
                format::partitions(&list)
            }),
        AdminCommand::Create { name, partitions, replicas, env } => {
            let envs = env
                .iter()
                .map(|pair| key_value(pair))
                .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
            let new =
                NewTable { name: name.clone(), partitions: *partitions, replicas: *replicas, envs };
            server.show(server.send("POST", "/v1/tables", &new)?, |table: TableStatus| {
                format::tables(&[table])
            })
        }
        AdminCommand::Drop { name } => {
            server.show(server.delete(&table_path(name, ""))?, |table: TableStatus| {
                format!(
                    "{} is dropped; {} of disk space are being reclaimed\n",
                    table.name,
                    format::bytes(table.figures.disk_bytes)
                )
            })
        }
        AdminCommand::Transfer { table, partition, to } => {
            let to = node_id(&server, to)?;
            let path = table_path(table, &format!("/partitions/{partition}/leader"));
            server.show(
                server.send("PUT", &path, &NewLeader { to })?,
                |partition: PartitionStatus| format::partitions(&[partition]),
            )
        }
        AdminCommand::Env(Env::Get { table, key: Some(key) }) => {
            let value = server.get(&table_path(table, &format!("/envs/{}", encoded(key))))?;
            server.show(value, |env: EnvValue| format!("{}\n", env.value))
        }
        AdminCommand::Env(Env::Get { table, key: None }) => {
            server.show(server.get(&table_path(table, "/envs"))?, |all| format::envs(&all))
        }
        AdminCommand::Env(Env::Set { table, key, value }) => {
            let path = table_path(table, &format!("/envs/{}", encoded(key)));
            server.show(server.send("PUT", &path, &EnvValue { value: value.clone() })?, |all| {
                format::envs(&all)
            })
        }
        AdminCommand::Env(Env::Del { table, key }) => server
            .show(server.delete(&table_path(table, &format!("/envs/{}", encoded(key))))?, |all| {
                format::envs(&all)
            }),
        AdminCommand::Compact { name, progress, wait } => {
            compact(&server, &table_path(name, "/compaction"), *progress, *wait)
        }
        AdminCommand::Certs { .. } => unreachable!("needs no server, and returned above"),
    }
}

/// The status of the process, followed by that of its cluster if it is part of one; in
/// JSON, the latter is the field `in_cluster`.
fn status(server: &AdminClient) -> anyhow::Result<String> {
    let mut status = server.get("/v1/status")?;
    let node: NodeStatus = serde_json::from_value(status.clone())
        .context("parse the answer (does the server have the same version?)")?;
    if node.node_id < cluster::META_IDS_END {
        return server.show(status, |status| format::node(&status));
    }
    match server.get("/v1/cluster") {
        Ok(cluster) => {
            let known: ClusterStatus = serde_json::from_value(cluster.clone())
                .context("parse the status of the cluster")?;
            status["in_cluster"] = cluster;
            server.show(status, |status| format::node(&status) + &format::cluster(&known))
        }
        Err(error) => {
            status["in_cluster"] = serde_json::json!({ "error": format!("{error:#}") });
            server.show(status, |status| {
                format::node(&status)
                    + &format!("fault       the status of the cluster is unknown: {error:#}\n")
            })
        }
    }
}

fn compact(server: &AdminClient, path: &str, progress: bool, wait: bool) -> anyhow::Result<String> {
    let mut progress =
        if progress { server.get(path)? } else { server.send("POST", path, &Value::Null)? };
    let shows = wait && !server.json && std::io::stderr().is_terminal();
    while wait && progress["status"] == "running" {
        if shows && let Ok(now) = serde_json::from_value::<CompactionStatus>(progress.clone()) {
            // Progress is for people only: a failure to show it is no error.
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", format::compaction(&now).trim_end());
        }
        std::thread::sleep(PROGRESS_PERIOD);
        progress = server.get(path)?;
    }
    if shows {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    if wait && progress["status"] != "done" {
        bail!("the compaction failed: {}", progress["error"].as_str().unwrap_or("no reason given"));
    }
    server.show(progress, |progress: CompactionStatus| format::compaction(&progress))
}

/// The id of a process that is given by its id or one of its addresses.
fn node_id(server: &AdminClient, named: &str) -> anyhow::Result<String> {
    let nodes: Vec<ServerStatus> =
        serde_json::from_value(server.get("/v1/nodes")?).context("parse the list of nodes")?;
    let is_meant = |node: &&ServerStatus| {
        node.id == named
            || node.address == named
            || node.clients.iter().any(|clients| clients == named)
    };
    match nodes.iter().find(is_meant) {
        Some(node) => Ok(node.id.clone()),
        None => bail!("no node has the id or address '{named}'; `bridle admin nodes` lists them"),
    }
}

fn key_value(pair: &str) -> anyhow::Result<(String, String)> {
    let (key, value) =
        pair.split_once('=').with_context(|| format!("--env {pair}: expected key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn table_path(name: &str, rest: &str) -> String {
    format!("/v1/tables/{}{rest}", encoded(name))
}

/// Percent-encodes a segment of a path.
fn encoded(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode =
        |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    segment.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_for_paths() {
        assert_eq!(table_path("a:b/c d", "/envs"), "/v1/tables/a%3Ab%2Fc%20d/envs");
    }
}
