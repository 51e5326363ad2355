//! The driver of commands that take several rounds ([`commands::rounds`]).
//!
//! It finds tables, routes units, and takes care of what is the same for all machines:
//! each round has the deadline of a call; the memory that a machine holds, and the answers
//! of a round, are counted as the client's and bounded by the limit of one command's
//! answer; partitions that are written are noted for WAITAOF; the thread is yielded
//! between rounds; a client that was killed ends its command unless the command has begun
//! to write.

use std::sync::Arc;

use cluster::{Boxed, CallError, PartitionId, Table, blocking};
use commands::Reply;
use commands::rounds::{
    Answers, Failure, Round, Rounds, TableAnswer, TableFacts, TableHandle, TableQuestion,
    UnitAnswer, UnitQuestion, UnitTarget,
};
use row::op::{Op, Request, Response};

use crate::client::memory_usage::MemoryUse;
use crate::session::{Session, TableRef};
use crate::settings::ByteLimit;
use crate::{errors, lookups, router};

impl Session {
    /// Carries out a command after everything before it. Boxed because it is rare and
    /// large, which keeps the common path small.
    pub(crate) fn drive(&mut self, machine: Box<dyn Rounds>) -> Boxed<'_, Reply> {
        Box::pin(self.drive_unboxed(machine))
    }

    async fn drive_unboxed(&mut self, mut machine: Box<dyn Rounds>) -> Reply {
        let mut tables = Vec::new();
        let mut has_written = false;
        let mut answers = Answers::Begin;
        loop {
            let round = match answers.work_ns() >= blocking::LONG_WORK_NS {
                true => blocking::block_in_place_with_permit(|| machine.next(answers)).await,
                false => machine.next(answers),
            };
            let round = match round {
                Ok(round) => round,
                Err(reply) => return reply,
            };
            let bytes_max = self.proxy.settings.load().answer_max();
            let held_bytes = machine.held_bytes();
            if held_bytes > bytes_max.bytes {
                return machine.too_large(&bytes_max);
            }
            self.track_memory(MemoryUse::Answers, held_bytes);
            answers = match round {
                Round::Done(reply) => return reply,
                Round::Table(question) => {
                    Answers::Table(self.answer_about_table(question, &mut tables).await)
                }
                Round::Units(units) => {
                    has_written |= units.iter().any(|unit| unit.ops.iter().any(Op::is_write));
                    match self.execute_round(units, &tables, held_bytes, bytes_max).await {
                        Some(answers) => Answers::Units(answers),
                        None => return machine.too_large(&bytes_max),
                    }
                }
            };
            self.yield_if_due().await;
            if self.client.is_killed() && !has_written {
                return Reply::error(errors::CLIENT_KILLED);
            }
        }
    }

    async fn answer_about_table(
        &mut self,
        question: TableQuestion,
        tables: &mut Vec<Arc<Table>>,
    ) -> Result<TableAnswer, Reply> {
        let table = match question {
            TableQuestion::Argument(arg) => {
                return match self.resolve_table(&arg).await? {
                    TableRef::Table(name) => {
                        Ok(TableAnswer::Name { is_selected: name == self.table_name, name })
                    }
                    TableRef::Unknown(reply) => Err(reply),
                };
            }
            TableQuestion::Selected => match self.find_table().await? {
                Some(table) => table,
                None => return Ok(TableAnswer::Missing(self.table_name.clone())),
            },
            TableQuestion::Create(name) => {
                self.chunk.absent = None;
                router::ensure(&self.proxy, &name)
                    .await
                    .map_err(|error| errors::catalogue_error(&error))?
                    .ok_or_else(|| errors::no_table(name.as_bytes()))?
            }
        };
        let known = tables.iter().position(|known| known.id == table.id);
        let handle = TableHandle(known.unwrap_or(tables.len()) as u32);
        let first_slots = (0..table.partitions).map(|index| table.first_slot(index)).collect();
        let name = table.name.as_str().into();
        if known.is_none() {
            tables.push(table);
        }
        Ok(TableAnswer::Found(TableFacts { handle, name, first_slots }))
    }

    /// The answers of the units, in their order; `None`: they would take too much memory.
    async fn execute_round(
        &mut self,
        units: Vec<UnitQuestion>,
        tables: &[Arc<Table>],
        held_bytes: usize,
        bytes_max: ByteLimit,
    ) -> Option<Vec<UnitAnswer>> {
        let mut answers = Vec::with_capacity(units.len());
        let mut requests = Vec::with_capacity(units.len());
        let mut counted = Vec::new();
        for (at, unit) in units.into_iter().enumerate() {
            answers.push(match place(&unit, tables) {
                Ok(partition) => {
                    if unit.ops.iter().any(Op::is_write) {
                        self.written.note(partition);
                    }
                    if unit.is_lookup {
                        counted.push(at);
                    }
                    requests.push((at, partition, request(unit)));
                    None
                }
                Err(reply) => Some(UnitAnswer::Failed(Failure::NotDone(reply))),
            });
        }
        let deadline = self.deadline();
        let budget = router::AnswerBudget::new(held_bytes, bytes_max.bytes);
        for (at, response) in
            router::execute_units(&self.proxy, requests, deadline, &budget).await?
        {
            answers[at] = Some(unit_answer(response));
        }
        for at in counted {
            if let Some(UnitAnswer::Done(outcomes)) = &answers[at] {
                lookups::count(&self.proxy.stats, outcomes);
            }
        }
        let lost = || UnitAnswer::Failed(Failure::NotDone(commands::errors::no_answer()));
        Some(answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect())
    }
}

/// The partition of a unit.
fn place(unit: &UnitQuestion, tables: &[Arc<Table>]) -> Result<PartitionId, Reply> {
    let table = tables.get(unit.table.0 as usize).ok_or_else(commands::errors::no_answer)?;
    match unit.target {
        UnitTarget::Partition(index) => Ok(PartitionId { table: table.id, index }),
        UnitTarget::OfRows => router::partition_of_unit(table, &unit.ops)
            .ok_or_else(|| Reply::error(errors::CROSSSLOT)),
    }
}

fn request(unit: UnitQuestion) -> Request {
    let joined = (1..unit.ops.len() as u32).collect();
    Request { ops: unit.ops, joined, watched: unit.watched }
}

fn unit_answer(response: Result<Response, CallError>) -> UnitAnswer {
    match response {
        Ok(Response::Done(outcomes)) => UnitAnswer::Done(outcomes),
        Ok(Response::Touched) => UnitAnswer::Touched,
        Err(error @ CallError::Unknown(_)) => {
            UnitAnswer::Failed(Failure::Unknown(errors::call_error(&error)))
        }
        Err(error) => UnitAnswer::Failed(Failure::NotDone(errors::call_error(&error))),
    }
}
