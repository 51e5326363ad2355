//! `bridle admin`: the admin API's client, with answers as tables for people or JSON for scripts.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use meta::admin::{Compaction, EnvValue, NewTable, NodeStatus, TableStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::{Admin, Ask, Env};
use crate::config::Secret;

/// How long an answer may take; opening many partitions takes a while.
const TIMEOUT: Duration = Duration::from_secs(60);
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

/// Asks, and gives the text to print.
pub(crate) fn run(admin: &Admin) -> anyhow::Result<String> {
    let server = Server::new(admin)?;
    match &admin.ask {
        Ask::Status => server.show(server.get("/v1/status")?, |status: NodeStatus| node(&status)),
        Ask::Tables => server.show(server.get("/v1/tables")?, |list: Vec<TableStatus>| tables(&list)),
        Ask::Create { name, partitions, env } => {
            let envs = env.iter().map(|pair| key_value(pair)).collect::<anyhow::Result<BTreeMap<_, _>>>()?;
            let new = NewTable { name: name.clone(), partitions: *partitions, replicas: None, envs };
            server.show(server.send("POST", "/v1/tables", &new)?, |table: TableStatus| tables(&[table]))
        }
        Ask::Drop { name } => server.show(server.delete(&table_path(name, ""))?, |table: TableStatus| {
            format!("{} is dropped; {} of disk are being given back\n", table.name, bytes(table.figures.disk_bytes))
        }),
        Ask::Env(Env::Get { table, key: Some(key) }) => {
            let value = server.get(&table_path(table, &format!("/envs/{}", encoded(key))))?;
            server.show(value, |env: EnvValue| format!("{}\n", env.value))
        }
        Ask::Env(Env::Get { table, key: None }) => server.show(server.get(&table_path(table, "/envs"))?, |all| envs(&all)),
        Ask::Env(Env::Set { table, key, value }) => {
            let path = table_path(table, &format!("/envs/{}", encoded(key)));
            server.show(server.send("PUT", &path, &EnvValue { value: value.clone() })?, |all| envs(&all))
        }
        Ask::Env(Env::Del { table, key }) => {
            server.show(server.delete(&table_path(table, &format!("/envs/{}", encoded(key))))?, |all| envs(&all))
        }
        Ask::Compact { name, progress, wait } => {
            let path = table_path(name, "/compaction");
            let mut stands = if *progress { server.get(&path)? } else { server.send("POST", &path, &Value::Null)? };
            while *wait && stands["status"] == "running" {
                std::thread::sleep(PROGRESS_PERIOD);
                stands = server.get(&path)?;
            }
            if *wait && stands["status"] != "done" {
                bail!("the compaction failed: {}", stands["error"].as_str().unwrap_or("no reason given"));
            }
            server.show(stands, |stands: Compaction| compaction(&stands))
        }
    }
}

fn key_value(pair: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = pair.split_once('=').with_context(|| format!("--env {pair}: expected key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn table_path(name: &str, rest: &str) -> String {
    format!("/v1/tables/{}{rest}", encoded(name))
}

/// Percent-encodes what may not stand in a path's segment.
fn encoded(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    segment.bytes().map(encode).collect()
}

/// A server that is asked.
struct Server {
    agent: ureq::Agent,
    url: String,
    authorization: Option<String>,
    json: bool,
}

impl Server {
    fn new(admin: &Admin) -> anyhow::Result<Server> {
        let password = match &admin.password_file {
            Some(path) => Some(Secret::from_file(Path::new(path)).map_err(anyhow::Error::msg)?.reveal().to_owned()),
            None => std::env::var("BRIDLE_PASSWORD").ok().filter(|password| !password.is_empty()),
        };
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).proxy(None).build();
        Ok(Server {
            agent: config.into(),
            url: admin.url.trim_end_matches('/').to_owned(),
            authorization: password.map(|password| format!("Bearer {password}")),
            json: admin.json,
        })
    }

    fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.get(format!("{}{path}", self.url));
        self.answer(self.authorized(request).call())
    }

    fn delete(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.delete(format!("{}{path}", self.url));
        self.answer(self.authorized(request).call())
    }

    fn send(&self, method: &str, path: &str, body: &impl Serialize) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.url);
        let request = if method == "PUT" { self.agent.put(url) } else { self.agent.post(url) };
        self.answer(self.authorized(request).send_json(body))
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.authorization {
            Some(authorization) => request.header("authorization", authorization),
            None => request,
        }
    }

    fn answer(&self, outcome: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Value> {
        let mut response = outcome.with_context(|| format!("ask {} (is the server running? --url says where)", self.url))?;
        let status = response.status();
        let body: Value = match response.body_mut().read_json() {
            Ok(body) => body,
            Err(error) if status.is_success() => return Err(error).with_context(|| format!("read the answer of {}", self.url)),
            Err(_) => bail!("{} answered {status}: is this Bridle's HTTP port?", self.url),
        };
        if !status.is_success() {
            bail!("{}", body["error"].as_str().unwrap_or(status.as_str()));
        }
        Ok(body)
    }

    fn show<T: DeserializeOwned>(&self, body: Value, words: impl FnOnce(T) -> String) -> anyhow::Result<String> {
        match self.json {
            true => Ok(format!("{}\n", serde_json::to_string_pretty(&body)?)),
            false => Ok(words(serde_json::from_value(body).context("understand the answer (is the server of this version?)")?)),
        }
    }
}

/// Rows of cells as aligned columns; numbers stand to the right.
fn columns(heads: &[&str], rows: &[Vec<String>]) -> String {
    let numeric = |column: usize| !rows.is_empty() && rows.iter().all(|row| row[column].starts_with(|c: char| c.is_ascii_digit()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).chain([heads[column].len()]).max().unwrap_or(0);
    let line = |cells: Vec<&str>| {
        let cells = cells.into_iter().enumerate().map(|(column, cell)| match numeric(column) {
            true => format!("{cell:>width$}", width = width(column)),
            false => format!("{cell:<width$}", width = width(column)),
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    [line(heads.to_vec())].into_iter().chain(body).collect()
}

/// Bytes as people read them.
fn bytes(count: u64) -> String {
    let unit = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)].into_iter().find(|(_, bits)| count >> bits != 0);
    match unit {
        Some((name, bits)) => format!("{:.1} {name}", count as f64 / (1u64 << bits) as f64),
        None => format!("{count} B"),
    }
}

fn tables(list: &[TableStatus]) -> String {
    if list.is_empty() {
        return "no tables yet: db0 to db15 come with their first write, others by `bridle admin create`\n".to_owned();
    }
    let row = |table: &TableStatus| {
        let envs = table.envs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
        let status = if table.figures.faults.is_empty() { table.status.clone() } else { format!("{}, faulty", table.status) };
        let figures = &table.figures;
        vec![
            table.id.to_string(),
            table.name.clone(),
            status,
            table.partitions.to_string(),
            figures.rows.to_string(),
            figures.expiring.to_string(),
            bytes(figures.disk_bytes),
            bytes(figures.memtable_bytes),
            envs,
        ]
    };
    let mut out = columns(
        &["ID", "NAME", "STATUS", "PARTITIONS", "ROWS", "EXPIRING", "DISK", "MEMTABLES", "ENVS"],
        &list.iter().map(row).collect::<Vec<_>>(),
    );
    for table in list {
        for (index, fault) in &table.figures.faults {
            out.push_str(&format!("{} partition {index}: {fault}\n", table.name));
        }
    }
    out
}

fn envs(all: &BTreeMap<String, String>) -> String {
    match all.is_empty() {
        true => "none set\n".to_owned(),
        false => columns(&["ENV", "VALUE"], &all.iter().map(|(key, value)| vec![key.clone(), value.clone()]).collect::<Vec<_>>()),
    }
}

fn node(status: &NodeStatus) -> String {
    let ready = if status.ready { "ready" } else { "not ready" };
    let (days, hours, minutes, seconds) =
        (status.uptime_seconds / 86_400, status.uptime_seconds / 3600 % 24, status.uptime_seconds / 60 % 60, status.uptime_seconds % 60);
    let lines = [
        ("status", format!("{ready}, up {days}d {hours:02}:{minutes:02}:{seconds:02}")),
        ("version", status.version.clone()),
        ("cluster", format!("{} ({}), node {}", status.cluster, status.cluster_id, status.node_id)),
        ("serves", status.addresses.join(", ")),
        ("durability", status.durability.clone()),
        ("clients", status.clients.to_string()),
        ("tables", format!("{} with {} partitions", status.tables, status.partitions)),
        ("disk", format!("{} of rows, {} of log", bytes(status.disk_bytes), bytes(status.log_bytes))),
        ("memory", bytes(status.memory_bytes)),
    ];
    let mut out: String = lines.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    for fault in &status.faults {
        out.push_str(&format!("fault       {fault}\n"));
    }
    out
}

fn compaction(stands: &Compaction) -> String {
    let seconds = stands.elapsed_ms as f64 / 1000.0;
    let parts = format!("{} of {} partitions", stands.partitions_done, stands.partitions);
    let sizes = format!("{} before, {} now", bytes(stands.disk_bytes_before), bytes(stands.disk_bytes));
    match stands.status.as_str() {
        "none" => "no compaction was asked for since the server started\n".to_owned(),
        "running" => format!("running for {seconds:.1} s: {parts} done; {sizes}\n"),
        "done" => format!("done in {seconds:.1} s: {parts}; {sizes}\n"),
        other => format!("{other} after {seconds:.1} s: {parts} done: {}\n", stands.error.as_deref().unwrap_or("no reason given")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["1".into(), "db0".into()], vec!["10".into(), "a-long-name".into()]];
        assert_eq!(columns(&["ID", "NAME"], &rows), "ID  NAME\n 1  db0\n10  a-long-name\n");
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)], ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
    }

    #[test]
    fn names_are_encoded_for_paths() {
        assert_eq!(table_path("a:b/c d", "/envs"), "/v1/tables/a%3Ab%2Fc%20d/envs");
    }

    #[test]
    fn status_is_readable() {
        let status = NodeStatus {
            version: "0.1.0".into(),
            cluster: "bridle".into(),
            cluster_id: "0123456789abcdef".into(),
            node_id: 1,
            uptime_seconds: 90_061,
            ready: true,
            durability: "always".into(),
            addresses: vec!["127.0.0.1:6379".into()],
            clients: 3,
            tables: 1,
            partitions: 1,
            disk_bytes: 0,
            log_bytes: 1 << 20,
            memory_bytes: 50 << 20,
            faults: vec!["db0 partition 0: storage fault: x".into()],
        };
        let shown = node(&status);
        assert!(shown.starts_with("status      ready, up 1d 01:01:01\n"), "{shown}");
        assert!(
            shown.contains("disk        0 B of rows, 1.0 MiB of log\n")
                && shown.ends_with("fault       db0 partition 0: storage fault: x\n"),
            "{shown}"
        );
    }
}
