//! Admission of a meta with an empty data directory to the meta group.
//!
//! A member of a Raft group that has lost its votes and entries can take part in
//! decisions that contradict its earlier ones: created tables vanish, and their ids are
//! given again. So a process that is in the list of metas and has no data of the group
//! asks the other metas first. They bootstrap the group when all answer that there is
//! none; otherwise the meta leader knows the server that each position belongs to
//! ([`meta::state::MetaState::meta_members`]).

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use cluster::ServerId;
use cluster::meta_protocol::{self, MetaIndexStatus, MetaRequest, MetaResponse};
use cluster::net::{Destination, Net, Service};
use futures::future::join_all;
use meta::state::Refusal;

use crate::components::StartupPhase;

/// Timeout of a question to a meta.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two rounds of questions.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Waits until `server` may become the meta at this position.
///
/// # Errors
/// The position belongs to another server.
pub(crate) async fn wait_for_admission(
    net: &Arc<Net>,
    others: Vec<String>,
    index: u32,
    server: ServerId,
    phase: &StartupPhase,
) -> anyhow::Result<()> {
    let question = meta_protocol::encode(&MetaRequest::MetaIndex { index, server });
    let mut reported = String::new();
    loop {
        let asked = others.iter().map(|meta| {
            net.call(
                Destination::Address(meta.clone()),
                Service::Meta,
                question.clone(),
                ANSWER_TIMEOUT,
            )
        });
        let statuses: Vec<Option<MetaIndexStatus>> =
            join_all(asked).await.into_iter().map(|answer| status(&answer.ok()?)).collect();
        for status in statuses.iter().flatten() {
            match status {
                MetaIndexStatus::Free => return Ok(()),
                MetaIndexStatus::Taken(known) => bail!(
                    "this data directory is empty, and {}",
                    Refusal::MetaIndexTaken { index, server: *known }
                ),
                MetaIndexStatus::NoCluster | MetaIndexStatus::Unknown => {}
            }
        }
        if statuses.iter().all(|status| *status == Some(MetaIndexStatus::NoCluster)) {
            return Ok(());
        }
        let description = describe_wait(&others, &statuses);
        if description != reported {
            tracing::info!("{description}");
            phase.set(description.clone());
            reported = description;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// A description of what the start waits for.
fn describe_wait(others: &[String], statuses: &[Option<MetaIndexStatus>]) -> String {
    if statuses.contains(&Some(MetaIndexStatus::Unknown)) {
        return "this meta's directory is empty, and the cluster exists: waiting for the meta \
                leader to admit this server"
            .to_owned();
    }
    let silent = others
        .iter()
        .zip(statuses)
        .filter(|(_, status)| status.is_none())
        .map(|(meta, _)| meta.as_str())
        .collect::<Vec<_>>();
    format!(
        "this meta's directory is empty: a new cluster starts when all its metas are up; \
         waiting for {}",
        silent.join(", ")
    )
}

fn status(answer: &[u8]) -> Option<MetaIndexStatus> {
    match meta_protocol::decode(answer) {
        Ok(MetaResponse::MetaIndex(status)) => Some(status),
        _ => None,
    }
}
