//! Commands on the keys of a whole table: KEYS, SCAN, RANDOMKEY.
//!
//! Each asks the partitions one after another for pages of keys. In a transaction, where
//! the only partition waits for them, they get one page.

use std::fmt;

use bytes::Bytes;
use row::PartitionOp;
use row::key;
use row::op::{Answer, Op, RowKind};
use row::random::SplitMix64;
use smallvec::smallvec;

use crate::plan::ReplyBuilder;
use crate::rounds::{
    Answers, InTransaction, Round, RoundResult, Rounds, TableFacts, TableQuestion,
};
use crate::{Reply, ReplyWriter, RowPlan, errors, replies};

/// Rows per page of KEYS.
const KEYS_PAGE: u64 = 1000;
/// Partitions that one SCAN may visit while it finds too few rows.
const SCAN_PARTITIONS_MAX: usize = 16;
/// RANDOMKEY chooses among this many rows.
const RANDOM_ROWS: u64 = 256;
/// A slot with more of these rows than this probably has many more, so a random one of
/// the slot is drawn.
const CROWDED_SLOT: usize = 16;

/// Memory of a key in a list, bytes.
fn key_bytes(key: &Bytes) -> usize {
    key.len() + size_of::<Reply>()
}

/// One page of one partition.
fn page_of(
    table: &TableFacts,
    partition: u32,
    cursor: u64,
    count: u64,
    glob: Option<Bytes>,
    kind: Option<RowKind>,
) -> Round {
    table.unit_in(partition, vec![PartitionOp::Scan { cursor, count, glob, kind }.into()]).into()
}

/// The keys of the page that was asked for from `cursor` on, and the cursor of the next
/// page; 0: the partition has no more.
fn page(answers: Answers, cursor: u64) -> Result<(Vec<Bytes>, u64), Reply> {
    match answers.outcome()?.map_err(errors::refusal)? {
        // A page that leads back would never end.
        Answer::Page { keys, next, .. } if next == 0 || next > cursor => Ok((keys, next)),
        _ => Err(errors::no_answer()),
    }
}

/// An op on the only partition, in a transaction.
fn in_one_partition(op: Op, write: fn(Answer, &mut dyn ReplyWriter)) -> InTransaction {
    InTransaction::Rows(RowPlan {
        ops: smallvec![op],
        same_partition: true,
        all_partitions: true,
        is_lookup: false,
        builder: ReplyBuilder::One(write),
    })
}

/// KEYS: every page of every partition, up to the limit of one answer.
#[derive(Debug)]
pub(super) struct Keys {
    glob: Bytes,
    table: Option<TableFacts>,
    partition: u32,
    cursor: u64,
    found: Vec<Reply>,
    bytes: usize,
}

impl Keys {
    pub(super) fn new(glob: Bytes) -> Keys {
        Keys { glob, table: None, partition: 0, cursor: 0, found: Vec::new(), bytes: 0 }
    }
}

impl Rounds for Keys {
    fn next(&mut self, answers: Answers) -> RoundResult {
        match answers {
            Answers::Begin => return Ok(Round::Table(TableQuestion::Selected)),
            Answers::Table(_) => {
                let Some(table) = answers.table()? else {
                    return Ok(Round::Done(Reply::Array(Vec::new())));
                };
                self.cursor = table.first_cursor(0);
                self.table = Some(table);
            }
            Answers::Units(_) => {
                let (keys, next) = page(answers, self.cursor)?;
                self.bytes += keys.iter().map(key_bytes).sum::<usize>();
                self.found.extend(keys.into_iter().map(Reply::Bulk));
                self.cursor = next;
                if let (0, Some(table)) = (next, &self.table) {
                    self.partition += 1;
                    if self.partition >= table.partitions() {
                        return Ok(Round::Done(Reply::Array(std::mem::take(&mut self.found))));
                    }
                    self.cursor = table.first_cursor(self.partition);
                }
            }
        }
        let table = self.table.as_ref().ok_or_else(errors::no_answer)?;
        Ok(page_of(table, self.partition, self.cursor, KEYS_PAGE, Some(self.glob.clone()), None))
    }

    fn held_bytes(&self) -> usize {
        self.bytes
    }

    fn too_large(&self, limit: &dyn fmt::Display) -> Reply {
        Reply::error(format!("ERR the keys take more than {limit}: use SCAN"))
    }

    fn in_transaction(self: Box<Self>) -> InTransaction {
        let all =
            PartitionOp::Scan { cursor: 0, count: u64::MAX, glob: Some(self.glob), kind: None }
                .into();
        in_one_partition(all, |answer, reply| match answer {
            Answer::Page { keys, next: 0, .. } => replies::bulks(keys.iter(), reply),
            Answer::Page { .. } => {
                reply.error("ERR too many rows for KEYS in a transaction, use SCAN")
            }
            _ => replies::no_answer(reply),
        })
    }
}

/// SCAN: about `count` rows from the cursor, continuing in the next partition.
#[derive(Debug)]
pub(super) struct Scan {
    cursor: u64,
    count: u64,
    glob: Option<Bytes>,
    /// `None`: of any kind.
    kind: Option<RowKind>,
    table: Option<TableFacts>,
    partition: u32,
    visited: usize,
    found: Vec<Bytes>,
}

impl Scan {
    pub(super) fn new(cursor: u64, count: u64, glob: Option<Bytes>, kind: Option<RowKind>) -> Scan {
        Scan { cursor, count, glob, kind, table: None, partition: 0, visited: 0, found: Vec::new() }
    }

    fn done(&mut self, next: u64) -> RoundResult {
        Ok(Round::Done(scanned(next, std::mem::take(&mut self.found))))
    }
}

/// SCAN's reply.
pub(super) fn scanned(next: u64, keys: Vec<Bytes>) -> Reply {
    let cursor = Reply::Bulk(Bytes::from(next.to_string()));
    Reply::Array(vec![cursor, Reply::Array(keys.into_iter().map(Reply::Bulk).collect())])
}

impl Rounds for Scan {
    fn next(&mut self, answers: Answers) -> RoundResult {
        match answers {
            Answers::Begin => {
                return match key::cursor_slot(self.cursor) {
                    Some(_) => Ok(Round::Table(TableQuestion::Selected)),
                    None => self.done(0),
                };
            }
            Answers::Table(_) => {
                let Some(table) = answers.table()? else { return self.done(0) };
                self.partition = table.partition_of(key::cursor_slot(self.cursor).unwrap_or(0));
                self.table = Some(table);
            }
            Answers::Units(_) => {
                let (keys, next) = page(answers, self.cursor)?;
                self.found.extend(keys);
                if next != 0 {
                    return self.done(next);
                }
                let table = self.table.as_ref().ok_or_else(errors::no_answer)?;
                self.partition += 1;
                if self.partition >= table.partitions() {
                    return self.done(0);
                }
                self.cursor = table.first_cursor(self.partition);
                self.visited += 1;
                if self.found.len() as u64 >= self.count || self.visited >= SCAN_PARTITIONS_MAX {
                    return self.done(self.cursor);
                }
            }
        }
        let table = self.table.as_ref().ok_or_else(errors::no_answer)?;
        let wanted = self.count.saturating_sub(self.found.len() as u64).max(1);
        Ok(page_of(table, self.partition, self.cursor, wanted, self.glob.clone(), self.kind))
    }

    fn held_bytes(&self) -> usize {
        self.found.iter().map(key_bytes).sum()
    }

    fn too_large(&self, limit: &dyn fmt::Display) -> Reply {
        errors::answer_too_large(limit)
    }

    fn in_transaction(self: Box<Self>) -> InTransaction {
        let Scan { cursor, count, glob, kind, .. } = *self;
        in_one_partition(PartitionOp::Scan { cursor, count, glob, kind }.into(), |answer, reply| {
            match answer {
                Answer::Page { keys, next, .. } => {
                    reply.array(2);
                    reply.bulk(next.to_string().as_bytes());
                    replies::bulks(keys.iter(), reply);
                }
                _ => replies::no_answer(reply),
            }
        })
    }
}

/// RANDOMKEY: draws a partition in proportion to its rows, and in it one of the rows
/// behind a random position, or of all rows if they are few. If many of these share its
/// slot (by a common hash tag), the row next to a random position in the slot. Partitions
/// without live rows are skipped.
#[derive(Debug)]
pub(super) struct RandomKey {
    random: SplitMix64,
    step: RandomStep,
}

#[derive(Debug)]
enum RandomStep {
    Begin,
    /// The partitions are asked for the numbers of their rows.
    Count(TableFacts),
    /// A partition is asked for rows.
    Draw(Draw),
    /// The partition is asked for a row in a crowded slot; this one was drawn first.
    InSlot(Bytes),
}

/// The search for live rows.
#[derive(Debug)]
struct Draw {
    table: TableFacts,
    rows: Vec<u64>,
    partition: u32,
    visited: u32,
    cursor: u64,
    /// The search has come to the last row and begun again at the first.
    is_wrapped: bool,
    found: Vec<Bytes>,
}

impl RandomKey {
    pub(super) fn new(seed: u64) -> RandomKey {
        RandomKey { random: SplitMix64::new(seed), step: RandomStep::Begin }
    }

    fn page(&mut self, draw: Draw) -> Round {
        let round = page_of(&draw.table, draw.partition, draw.cursor, RANDOM_ROWS, None, None);
        self.step = RandomStep::Draw(draw);
        round
    }

    /// Asks the partition that has its turn.
    fn enter(&mut self, mut draw: Draw) -> Round {
        let slots = draw.table.slots(draw.partition);
        (draw.is_wrapped, draw.found) = (false, Vec::new());
        draw.cursor = match draw.is_small() {
            true => draw.table.first_cursor(draw.partition),
            false => random_cursor(slots, self.random.draw(), self.random.draw()),
        };
        self.page(draw)
    }

    fn counted(&mut self, table: TableFacts, answers: Answers) -> RoundResult {
        let count = |outcome| match outcome {
            Ok(Answer::Int(count)) => Ok(u64::try_from(count).unwrap_or(0)),
            Ok(_) => Err(errors::no_answer()),
            Err(refusal) => Err(errors::refusal(refusal)),
        };
        let rows = answers.units()?.into_iter().map(|unit| count(unit.outcome()?));
        let rows = rows.collect::<Result<Vec<_>, Reply>>()?;
        let partition = weighted(&rows, self.random.draw());
        Ok(self.enter(Draw {
            table,
            rows,
            partition,
            visited: 0,
            cursor: 0,
            is_wrapped: false,
            found: Vec::new(),
        }))
    }

    fn drawn(&mut self, mut draw: Draw, answers: Answers) -> RoundResult {
        let (keys, next) = page(answers, draw.cursor)?;
        if keys.is_empty() && next != 0 {
            draw.cursor = next;
            return Ok(self.page(draw));
        }
        draw.found.extend(keys);
        draw.found.truncate(RANDOM_ROWS as usize);
        if !draw.is_small() && !draw.is_wrapped && (draw.found.len() as u64) < RANDOM_ROWS {
            (draw.is_wrapped, draw.cursor) = (true, draw.table.first_cursor(draw.partition));
            return Ok(self.page(draw));
        }
        if draw.found.is_empty() {
            draw.visited += 1;
            if draw.visited >= draw.table.partitions() {
                return Ok(Round::Done(Reply::Nil));
            }
            draw.partition = (draw.partition + 1) % draw.table.partitions();
            return Ok(self.enter(draw));
        }
        let chosen = (self.random.draw() % draw.found.len() as u64) as usize;
        let slot = key::slot(&draw.found[chosen]);
        let in_slot = draw.found.iter().filter(|key| key::slot(key) == slot).count();
        let key = draw.found.swap_remove(chosen);
        if draw.is_small() || in_slot <= CROWDED_SLOT {
            return Ok(Round::Done(Reply::Bulk(key)));
        }
        let cursor = random_cursor(slot..slot + 1, 0, self.random.draw());
        self.step = RandomStep::InSlot(key);
        Ok(draw
            .table
            .unit_in(draw.partition, vec![PartitionOp::FirstAtOrAfter { cursor }.into()])
            .into())
    }
}

impl Draw {
    fn is_small(&self) -> bool {
        self.rows.get(self.partition as usize).is_none_or(|rows| *rows <= RANDOM_ROWS)
    }
}

/// A row next to a random position in the slot of `key`, or that key.
fn nearest(key: Bytes, answers: Answers) -> RoundResult {
    Ok(Round::Done(Reply::Bulk(match answers.outcome()?.map_err(errors::refusal)? {
        Answer::Bytes(other) if key::slot(&other) == key::slot(&key) => other,
        // A page is returned when all its rows have expired.
        Answer::Bytes(_) | Answer::Nil | Answer::Page { .. } => key,
        _ => return Err(errors::no_answer()),
    })))
}

/// A random cursor in these slots.
fn random_cursor(slots: std::ops::Range<u16>, slot_seed: u64, hash_seed: u64) -> u64 {
    let count = slots.end.saturating_sub(slots.start).max(1);
    let slot = slots.start + (slot_seed % u64::from(count)) as u16;
    key::slot_cursor(slot) | (hash_seed >> (u64::BITS - key::CURSOR_HASH_BITS))
}

/// Maps a random number to an index, in proportion to the weights.
fn weighted(weights: &[u64], seed: u64) -> u32 {
    let total = weights.iter().fold(0, |sum: u64, weight| sum.saturating_add(*weight));
    let mut left = seed % total.max(1);
    for (index, weight) in (0..).zip(weights) {
        if left < *weight {
            return index;
        }
        left -= weight;
    }
    0
}

impl Rounds for RandomKey {
    fn next(&mut self, answers: Answers) -> RoundResult {
        match std::mem::replace(&mut self.step, RandomStep::Begin) {
            RandomStep::Begin => match answers {
                Answers::Begin => Ok(Round::Table(TableQuestion::Selected)),
                Answers::Table(_) => {
                    let Some(table) = answers.table()? else {
                        return Ok(Round::Done(Reply::Nil));
                    };
                    let count = table.in_all_partitions(&PartitionOp::Rows.into());
                    self.step = RandomStep::Count(table);
                    Ok(count)
                }
                Answers::Units(_) => Err(errors::no_answer()),
            },
            RandomStep::Count(table) => self.counted(table, answers),
            RandomStep::Draw(draw) => self.drawn(draw, answers),
            RandomStep::InSlot(key) => nearest(key, answers),
        }
    }

    fn held_bytes(&self) -> usize {
        match &self.step {
            RandomStep::Begin | RandomStep::Count(_) => 0,
            RandomStep::Draw(draw) => {
                draw.rows.len() * size_of::<u64>() + draw.found.iter().map(key_bytes).sum::<usize>()
            }
            RandomStep::InSlot(key) => key.len(),
        }
    }

    fn too_large(&self, limit: &dyn fmt::Display) -> Reply {
        errors::answer_too_large(limit)
    }

    fn in_transaction(mut self: Box<Self>) -> InTransaction {
        // Two bits less: positions are below 2^62.
        let cursor = key::cursor(self.random.draw() >> 2);
        in_one_partition(
            PartitionOp::FirstAtOrAfter { cursor }.into(),
            |answer, reply| match answer {
                Answer::Page { .. } => reply
                    .error("ERR too many expired rows for RANDOMKEY in a transaction, try again"),
                answer => replies::bulk(answer, reply),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::TableHandle;

    /// Slot 12182 and the upper 39 bits of the hash.
    const CURSOR_OF_FOO: u64 = 6_697_493_470_360_067;

    /// Clients keep cursors between calls and over upgrades.
    #[test]
    fn cursors_are_frozen() {
        let table = TableFacts {
            handle: TableHandle(0),
            name: "db0".into(),
            first_slots: [0, 4096, 8192, 12288].into(),
        };
        assert_eq!(table.first_cursor(0), 0);
        assert_eq!(table.first_cursor(1), 2_251_799_813_685_248);
        assert_eq!(random_cursor(5..6, 0, 0), 2_748_779_069_440);
        assert_eq!(random_cursor(5..6, 7, u64::MAX), 3_298_534_883_327);
        assert_eq!(key::cursor(key::position(b"foo")), CURSOR_OF_FOO);
        assert_eq!(
            scanned(CURSOR_OF_FOO, vec![Bytes::from_static(b"foo")]),
            Reply::Array(vec![
                Reply::Bulk(Bytes::from(CURSOR_OF_FOO.to_string())),
                Reply::Array(vec![Reply::Bulk(Bytes::from_static(b"foo"))]),
            ])
        );
    }

    #[test]
    fn draws_are_in_proportion_to_the_weights() {
        assert_eq!(
            (0..6).map(|seed| weighted(&[1, 0, 2], seed)).collect::<Vec<_>>(),
            [0, 2, 2, 0, 2, 2]
        );
        assert_eq!(weighted(&[], 7), 0);
        assert_eq!(weighted(&[u64::MAX, 1], u64::MAX), 0);
    }
}
