//! Whether a meta whose directory is empty may take its seat.
//!
//! A member of a Raft group that has forgotten its votes and entries takes part in decisions that contradict those it took part in before: tables that were made vanish, and
//! their ids are given again. So a process with a seat and without a past in it asks the other metas first. The group is founded when all say that there is none; where there is
//! one, the meta that leads knows whose each seat is ([`meta::state::State::seats`]).

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use cluster::ServerId;
use cluster::net::{Net, Service, To};
use cluster::news::{self, Ask, SeatWord, Told};
use futures::future::join_all;
use meta::state::Refusal;

use crate::opened::Stage;

/// How long a meta may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(200);

/// Waits until it is certain that `seat` may be taken by `server`.
///
/// # Errors
/// It is another server's.
pub(crate) async fn may_be_taken(net: &Arc<Net>, others: Vec<String>, seat: u32, server: ServerId, stage: &Stage) -> anyhow::Result<()> {
    let question = news::encode(&Ask::Seat { seat, server });
    loop {
        let asked = others.iter().map(|meta| net.call(To::Address(meta.clone()), Service::Meta, question.clone(), ANSWER_PATIENCE));
        let words: Vec<Option<SeatWord>> = join_all(asked).await.into_iter().map(|answer| word(&answer.ok()?)).collect();
        for word in words.iter().flatten() {
            match word {
                SeatWord::Free => return Ok(()),
                SeatWord::Taken(known) => bail!("this data directory is empty, and {}", Refusal::SeatTaken { seat, server: *known }),
                SeatWord::Unfounded | SeatWord::Unknown => {}
            }
        }
        if words.iter().all(|word| *word == Some(SeatWord::Unfounded)) {
            return Ok(());
        }
        let is_founded = words.contains(&Some(SeatWord::Unknown));
        stage.set(match is_founded {
            true => "this meta's directory is empty, and the cluster is founded: waiting for the meta that leads to say whether the seat is free",
            false => "this meta's directory is empty: waiting for all other metas to say that there is no cluster yet",
        });
        tokio::time::sleep(PAUSE).await;
    }
}

fn word(answer: &[u8]) -> Option<SeatWord> {
    match news::decode(answer) {
        Ok(Told::Seat(word)) => Some(word),
        _ => None,
    }
}
