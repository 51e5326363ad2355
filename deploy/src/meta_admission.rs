//! Whether a meta whose directory is empty may take its seat.
//!
//! A member of a Raft group that has forgotten its votes and entries takes part in
//! decisions that contradict those it took part in before: tables that were made vanish,
//! and their ids are given again. So a process with a seat and without a past in it asks
//! the other metas first. The group is founded when all say that there is none; where
//! there is one, the meta that leads knows whose each seat is
//! ([`meta::state::State::seats`]).

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use cluster::ServerId;
use cluster::net::{Net, Service, To};
use cluster::news::{self, Ask, SeatWord, Told};
use futures::future::join_all;
use meta::state::Refusal;

use crate::components::StartupPhase;

/// How long a meta may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(200);

/// Waits until it is certain that `seat` may be taken by `server`.
///
/// # Errors
/// It is another server's.
pub(crate) async fn wait_for_admission(
    net: &Arc<Net>,
    others: Vec<String>,
    seat: u32,
    server: ServerId,
    phase: &StartupPhase,
) -> anyhow::Result<()> {
    let question = news::encode(&Ask::Seat { seat, server });
    let mut said = String::new();
    loop {
        let asked = others.iter().map(|meta| {
            net.call(To::Address(meta.clone()), Service::Meta, question.clone(), ANSWER_TIMEOUT)
        });
        let words: Vec<Option<SeatWord>> =
            join_all(asked).await.into_iter().map(|answer| word(&answer.ok()?)).collect();
        for word in words.iter().flatten() {
            match word {
                SeatWord::Free => return Ok(()),
                SeatWord::Taken(known) => bail!(
                    "this data directory is empty, and {}",
                    Refusal::SeatTaken { seat, server: *known }
                ),
                SeatWord::Unfounded | SeatWord::Unknown => {}
            }
        }
        if words.iter().all(|word| *word == Some(SeatWord::Unfounded)) {
            return Ok(());
        }
        let waits = waits_for(&others, &words);
        if waits != said {
            tracing::info!("{waits}");
            phase.set(waits.clone());
            said = waits;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is being waited for, for people.
fn waits_for(others: &[String], words: &[Option<SeatWord>]) -> String {
    if words.contains(&Some(SeatWord::Unknown)) {
        return "this meta's directory is empty, and there is a cluster: waiting for the meta \
                that leads to say whether the seat is free"
            .to_owned();
    }
    let silent = others
        .iter()
        .zip(words)
        .filter(|(_, word)| word.is_none())
        .map(|(meta, _)| meta.as_str())
        .collect::<Vec<_>>();
    format!(
        "this meta's directory is empty: a cluster is founded when all its metas are there; \
         waiting for {}",
        silent.join(", ")
    )
}

fn word(answer: &[u8]) -> Option<SeatWord> {
    match news::decode(answer) {
        Ok(Told::Seat(word)) => Some(word),
        _ => None,
    }
}
