//! Requests of tests to a cluster's admin API.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{Cluster, SECRET};
use crate::admin_cli::admin_json;

impl Cluster {
    /// The output of `bridle admin --json` through a process.
    ///
    /// # Panics
    /// When it fails, or does not print JSON.
    pub fn admin(&self, number: usize, words: &[&str]) -> Json {
        admin_json(&self.url(number), Some(SECRET), words)
    }

    /// The response of the admin API, of the first process that answers.
    ///
    /// # Errors
    /// The error of the last process.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Json>) -> Result<Json, String> {
        let limit = Some(Duration::from_secs(5));
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(limit)
            .build()
            .into();
        let bearer = format!("Bearer {SECRET}");
        let mut last = "no process runs".to_owned();
        for member in
            self.members.iter().filter(|member| member.child.is_some() && member.role == "node")
        {
            let url = format!("http://{}:{}{path}", member.ip, member.http_port);
            let answer = match (method, body) {
                ("PUT", Some(body)) => {
                    agent.put(&url).header("Authorization", &bearer).send_json(body)
                }
                _ => agent.get(&url).header("Authorization", &bearer).call(),
            };
            match answer {
                Ok(mut answer) if answer.status().is_success() => {
                    return answer.body_mut().read_json().map_err(|error| error.to_string());
                }
                Ok(mut answer) => {
                    last = format!(
                        "{url}: {}: {}",
                        answer.status(),
                        answer.body_mut().read_to_string().unwrap_or_default()
                    )
                }
                Err(error) => last = format!("{url}: {error}"),
            }
        }
        Err(last)
    }

    /// The number of the process with this address.
    fn number_of(&self, address: &str) -> Option<usize> {
        self.members
            .iter()
            .position(|member| format!("{}:{}", member.ip, member.cluster_port) == address)
    }

    /// The process that leads each partition of a table.
    ///
    /// # Errors
    /// The error of the admin API.
    pub fn leaders(&self, table: &str) -> Result<Vec<Option<usize>>, String> {
        let partitions = self.ask("GET", &format!("/v1/tables/{table}/partitions"), None)?;
        let leader = |partition: &Json| {
            let leading =
                partition["members"].as_array()?.iter().find(|member| member["leads"] == true)?;
            self.number_of(leading["address"].as_str()?)
        };
        Ok(partitions.as_array().ok_or("not a list of partitions")?.iter().map(leader).collect())
    }

    /// The process that leads the metas.
    ///
    /// # Errors
    /// The error of the admin API.
    pub fn meta_leader(&self) -> Result<Option<usize>, String> {
        let status = self.ask("GET", "/v1/cluster", None)?;
        let leading = status["metas"]
            .as_array()
            .and_then(|metas| metas.iter().find(|meta| meta["leads"] == true));
        Ok(leading.and_then(|meta| self.number_of(meta["address"].as_str()?)))
    }

    /// Makes a process the leader of a partition.
    ///
    /// # Errors
    /// The error of the admin API.
    pub fn transfer(&self, table: &str, partition: usize, to: usize) -> Result<(), String> {
        let wanted = format!("{}:{}", self.members[to].ip, self.members[to].cluster_port);
        let nodes = self.ask("GET", "/v1/nodes", None)?;
        let node = nodes
            .as_array()
            .and_then(|nodes| nodes.iter().find(|node| node["address"] == wanted.as_str()));
        let id = node
            .and_then(|node| node["id"].as_str())
            .ok_or_else(|| format!("no node is at {wanted}"))?;
        let path = format!("/v1/tables/{table}/partitions/{partition}/leader");
        self.ask("PUT", &path, Some(&json!({ "to": id }))).map(drop)
    }
}
