//! Generic commands with several calls: KEYS, SCAN, RANDOMKEY, MOVE, COPY ... DB.

use std::sync::Arc;

use bytes::Bytes;
use cluster::{Boxed, CallError, PartitionId, Table};
use commands::generic::KeyspaceCommand;
use commands::{Reply, ReplyWriter, replies};
use row::key;
use row::op::{
    Answer, Deadline, Op, Refusal, Request, Response, RowContent, RowKind, Ttl, WatchToken,
};
use row::{PartitionOp, RowOp};

use crate::client::memory_usage::MemoryUse;
use crate::session::{Session, TableRef};
use crate::{errors, lookups, router};

/// Rows per call of KEYS.
const KEYS_STEP: u64 = 1000;
/// Partitions that one SCAN may visit while it finds too few rows.
const SCAN_PARTITIONS_MAX: usize = 16;
/// RANDOMKEY chooses among this many rows.
const RANDOM_ROWS: u64 = 256;
/// A slot with more of these rows than this probably has many more, so a random one of
/// the slot is drawn.
const CROWDED_SLOT: usize = 16;
/// Attempts of MOVE when other clients write to the row.
const MOVE_TRIES: usize = 16;

/// A page of SCAN: cursor and keys.
pub(crate) fn page(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Page { keys, next, .. } => {
            reply.array(2);
            reply.bulk(next.to_string().as_bytes());
            replies::bulks(keys.iter(), reply);
        }
        _ => replies::no_answer(reply),
    }
}

/// The keys of a page that has all of them. KEYS in a transaction gets one page only,
/// since the partition waits for it.
pub(crate) fn names(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Page { keys, next: 0, .. } => replies::bulks(keys.iter(), reply),
        Answer::Page { .. } => reply.error("ERR too many rows for KEYS in a transaction, use SCAN"),
        _ => replies::no_answer(reply),
    }
}

/// The key that was drawn. RANDOMKEY in a transaction looks at one page only, since the
/// partition waits for it.
pub(crate) fn drawn(answer: Answer, reply: &mut dyn ReplyWriter) {
    match answer {
        Answer::Page { .. } => {
            reply.error("ERR too many expired rows for RANDOMKEY in a transaction, try again")
        }
        answer => replies::bulk(answer, reply),
    }
}

fn scanned(next: u64, keys: Vec<Bytes>) -> Reply {
    let cursor = Reply::Bulk(Bytes::from(next.to_string()));
    Reply::Array(vec![cursor, Reply::Array(keys.into_iter().map(Reply::Bulk).collect())])
}

/// A random cursor in the slots from `begin` to before `end`.
fn random_cursor(begin: u16, end: u16, slot_seed: u64, hash_seed: u64) -> u64 {
    let slot = begin + (slot_seed % u64::from((end - begin).max(1))) as u16;
    key::slot_cursor(slot) | (hash_seed >> (u64::BITS - key::CURSOR_HASH_BITS))
}

/// Maps a random number to an index, in proportion to the weights.
fn weighted(weights: &[u64], seed: u64) -> u32 {
    let total: u64 = weights.iter().sum();
    let mut left = seed % total.max(1);
    for (index, weight) in (0..).zip(weights) {
        if left < *weight {
            return index;
        }
        left -= weight;
    }
    0
}

/// The reply to a row that cannot be copied: a row too large to be read or written as a
/// whole gives RENAME's error.
fn not_copied(refusal: Refusal) -> Reply {
    commands::errors::refusal(match refusal {
        Refusal::TooLarge | Refusal::AnswerTooLarge => Refusal::RowTooLarge,
        other => other,
    })
}

/// A copy made by MOVE, and its watch token.
struct Copied {
    partition: PartitionId,
    watched: WatchToken,
}

/// `true` if both rows have the same content.
fn has_content_of(row: &Answer, other: &Answer) -> bool {
    match (row, other) {
        (Answer::RowContent { content, .. }, Answer::RowContent { content: other, .. }) => {
            content == other
        }
        _ => false,
    }
}

fn has_fields_that_expire(row: &Answer) -> bool {
    match row {
        Answer::RowContent { content: RowContent::Hash(fields), .. } => {
            fields.iter().any(|(.., at)| at.is_some())
        }
        _ => false,
    }
}

/// The op that writes a copied row.
fn restoring(key: Bytes, row: Answer, replace: bool) -> Result<Op, Reply> {
    let Answer::RowContent { content, expires_at_ms } = row else {
        return Err(commands::errors::no_answer());
    };
    let until = |at| Ttl::Until(Deadline::At(i64::try_from(at).unwrap_or(i64::MAX)));
    Ok(Op::Row(RowOp::Restore {
        key: key.into(),
        content,
        ttl: expires_at_ms.map_or(Ttl::Default, until),
        replace,
    }))
}

impl Session {
    /// Runs a command on rows that takes several calls.
    pub(crate) fn run_keyspace(&mut self, command: KeyspaceCommand) -> Boxed<'_, Reply> {
        Box::pin(async move {
            match command {
                KeyspaceCommand::Keys { glob } => self.keys(glob).await,
                KeyspaceCommand::Scan { cursor, count, glob, kind, none } => {
                    self.scan(cursor, count, glob, kind, none).await
                }
                KeyspaceCommand::RandomKey => self.random_key().await,
                KeyspaceCommand::Move { key, table } => self.move_row(key, &table).await,
                KeyspaceCommand::CopyTo { from, to, table, replace } => {
                    self.copy_row(from, to, &table, replace).await
                }
            }
        })
    }

    /// KEYS: every page of every partition, up to the limit of one answer.
    async fn keys(&mut self, glob: Bytes) -> Reply {
        let table = match self.find_table().await {
            Ok(Some(table)) => table,
            Ok(None) => return Reply::Array(Vec::new()),
            Err(reply) => return reply,
        };
        let bytes_max = self.proxy.settings.load().answer_max();
        let (mut all, mut bytes) = (Vec::new(), 0);
        for partition in router::partitions(&table) {
            let mut cursor = router::first_cursor(&table, partition.index);
            loop {
                let (keys, next) =
                    match self.step(partition, cursor, KEYS_STEP, Some(glob.clone()), None).await {
                        Ok(page) => page,
                        Err(reply) => return reply,
                    };
                bytes += keys.iter().map(|key| key.len() + size_of::<Reply>()).sum::<usize>();
                if bytes > bytes_max.bytes {
                    return Reply::error(format!(
                        "ERR the keys take more than {bytes_max}: use SCAN"
                    ));
                }
                self.track_memory(MemoryUse::Answers, bytes);
                all.extend(keys.into_iter().map(Reply::Bulk));
                self.yield_if_due().await;
                if next == 0 || self.client.is_killed() {
                    break;
                }
                cursor = next;
            }
        }
        Reply::Array(all)
    }

    /// SCAN: about `count` rows from the cursor, continuing in the next partition.
    async fn scan(
        &mut self,
        cursor: u64,
        count: u64,
        glob: Option<Bytes>,
        kind: Option<RowKind>,
        none: bool,
    ) -> Reply {
        let Some(slot) = key::cursor_slot(cursor).filter(|_| !none) else {
            return scanned(0, Vec::new());
        };
        let table = match self.find_table().await {
            Ok(Some(table)) => table,
            Ok(None) => return scanned(0, Vec::new()),
            Err(reply) => return reply,
        };
        let (mut partition, mut cursor, mut found) = (table.partition_of(slot), cursor, Vec::new());
        for _ in 0..SCAN_PARTITIONS_MAX {
            let wanted = count.saturating_sub(found.len() as u64).max(1);
            let (keys, next) = match self.step(partition, cursor, wanted, glob.clone(), kind).await
            {
                Ok(page) => page,
                Err(reply) => return reply,
            };
            found.extend(keys);
            self.yield_if_due().await;
            if next != 0 {
                return scanned(next, found);
            }
            partition.index += 1;
            if partition.index >= table.partitions {
                return scanned(0, found);
            }
            cursor = router::first_cursor(&table, partition.index);
            if found.len() as u64 >= count {
                break;
            }
        }
        scanned(cursor, found)
    }

    async fn step(
        &mut self,
        partition: PartitionId,
        cursor: u64,
        count: u64,
        glob: Option<Bytes>,
        kind: Option<RowKind>,
    ) -> Result<(Vec<Bytes>, u64), Reply> {
        match self
            .ask(partition, Op::Partition(PartitionOp::Scan { cursor, count, glob, kind }))
            .await?
        {
            Ok(Answer::Page { keys, next, .. }) => Ok((keys, next)),
            Ok(_) => Err(commands::errors::no_answer()),
            Err(refusal) => Err(commands::errors::refusal(refusal)),
        }
    }

    /// RANDOMKEY: draws a partition in proportion to its rows, and in it one of the rows
    /// behind a random position, or of all rows if they are few. If many of these share
    /// its slot (by a common hash tag), the row next to a random position in the slot.
    /// Partitions without live rows are skipped.
    async fn random_key(&mut self) -> Reply {
        let table = match self.find_table().await {
            Ok(Some(table)) => table,
            Ok(None) => return Reply::Nil,
            Err(reply) => return reply,
        };
        self.random_row(&table)
            .await
            .map_or_else(|reply| reply, |found| found.map_or(Reply::Nil, Reply::Bulk))
    }

    async fn random_row(&mut self, table: &Table) -> Result<Option<Bytes>, Reply> {
        let rows = router::count_rows(&self.proxy, table, self.deadline()).await?;
        let first = weighted(&rows, self.next_seed());
        for step in 0..table.partitions {
            let index = (first + step) % table.partitions;
            let partition = PartitionId { table: table.id, index };
            let is_small = rows.get(index as usize).is_none_or(|rows| *rows <= RANDOM_ROWS);
            let begin = router::first_cursor(table, index);
            let place = match is_small {
                true => begin,
                false => random_cursor(
                    table.first_slot(index),
                    table.first_slot(index + 1),
                    self.next_seed(),
                    self.next_seed(),
                ),
            };
            let mut some = self.live_from(partition, place).await?;
            if !is_small && (some.len() as u64) < RANDOM_ROWS {
                // Wraps around from the last row to the first.
                some.extend(self.live_from(partition, begin).await?);
                some.truncate(RANDOM_ROWS as usize);
            }
            if some.is_empty() {
                continue;
            }
            let chosen = (self.next_seed() % some.len() as u64) as usize;
            let slot = key::slot(&some[chosen]);
            if !is_small && some.iter().filter(|key| key::slot(key) == slot).count() > CROWDED_SLOT
            {
                let again = random_cursor(slot, slot + 1, 0, self.next_seed());
                if let Some(other) =
                    self.nearest(partition, again).await?.filter(|other| key::slot(other) == slot)
                {
                    return Ok(Some(other));
                }
            }
            return Ok(Some(some.swap_remove(chosen)));
        }
        Ok(None)
    }

    /// The first page with live rows from a cursor on; empty: there are none up to the
    /// end of the partition.
    async fn live_from(
        &mut self,
        partition: PartitionId,
        mut cursor: u64,
    ) -> Result<Vec<Bytes>, Reply> {
        loop {
            let (keys, next) = self.step(partition, cursor, RANDOM_ROWS, None, None).await?;
            if !keys.is_empty() || next == 0 {
                return Ok(keys);
            }
            self.yield_if_due().await;
            cursor = next;
        }
    }

    async fn nearest(
        &mut self,
        partition: PartitionId,
        cursor: u64,
    ) -> Result<Option<Bytes>, Reply> {
        match self.ask(partition, Op::Partition(PartitionOp::FirstAtOrAfter { cursor })).await? {
            Ok(Answer::Bytes(key)) => Ok(Some(key)),
            // A page is returned when all its rows have expired.
            Ok(Answer::Nil | Answer::Page { .. }) => Ok(None),
            Ok(_) => Err(commands::errors::no_answer()),
            Err(refusal) => Err(commands::errors::refusal(refusal)),
        }
    }

    /// COPY source destination DB n.
    async fn copy_row(&mut self, from: Bytes, to: Bytes, table: &[u8], replace: bool) -> Reply {
        let name = match self.resolve_table(table).await {
            Ok(TableRef::Table(name)) => name,
            Ok(TableRef::Unknown(reply)) | Err(reply) => return reply,
        };
        if name == self.table_name && from == to {
            return Reply::error(errors::SAME_OBJECT);
        }
        let source = match self.find_table().await {
            Ok(Some(source)) => source,
            Ok(None) => return Reply::Int(0),
            Err(reply) => return reply,
        };
        let dump = self
            .ask(router::partition_of(&source, &from), Op::Row(RowOp::Dump { key: from.into() }))
            .await;
        if let Ok(outcome) = &dump {
            lookups::count(&self.proxy.stats, std::slice::from_ref(outcome));
        }
        match dump {
            Ok(Ok(Answer::Nil)) => Reply::Int(0),
            Ok(Ok(row)) => self
                .restore(&name, to, row, replace)
                .await
                .map_or_else(|reply| reply, |done| Reply::Int(i64::from(done.is_some()))),
            Ok(Err(refusal)) => not_copied(refusal),
            Err(reply) => reply,
        }
    }

    /// MOVE key db: copies the row, then deletes it if no other client has touched it.
    /// For a moment a reader may find the key in both tables.
    async fn move_row(&mut self, key: Bytes, table: &[u8]) -> Reply {
        let name = match self.resolve_table(table).await {
            Ok(TableRef::Table(name)) => name,
            Ok(TableRef::Unknown(reply)) | Err(reply) => return reply,
        };
        if name == self.table_name {
            return Reply::error(errors::SAME_OBJECT);
        }
        let source = match self.find_table().await {
            Ok(Some(source)) => source,
            Ok(None) => return Reply::Int(0),
            Err(reply) => return reply,
        };
        self.move_between(&source, key, &name)
            .await
            .map_or_else(|reply| reply, |moved| Reply::Int(i64::from(moved)))
    }

    /// Other clients may write to the target at any time. The first copy requires that
    /// the target has no such key, and it is replaced or deleted only while no other
    /// client has written to it.
    async fn move_between(
        &mut self,
        source: &Arc<Table>,
        key: Bytes,
        name: &str,
    ) -> Result<bool, Reply> {
        let from = router::partition_of(source, &key);
        let mut copy: Option<Copied> = None;
        for _ in 0..MOVE_TRIES {
            let (watched, row) = match self.look(from, &key).await {
                Ok(found) => found,
                Err(why) if copy.is_some() => {
                    return Err(errors::in_both(name, &source.name, &why));
                }
                Err(why) => return Err(why),
            };
            if row == Answer::Nil {
                // The row never existed, or was deleted in the meantime: its copy is
                // deleted as well.
                if let Some(copy) = copy {
                    self.take_back(copy, &key)
                        .await
                        .map_err(|why| errors::only_in_target(name, &source.name, &why))?;
                }
                return Ok(false);
            }
            let Some(to) =
                self.put_copy(name, &key, &row, copy.take()).await.map_err(|(is_there, why)| {
                    match is_there {
                        true => errors::in_both(name, &source.name, &why),
                        false => why,
                    }
                })?
            else {
                return Ok(false);
            };
            // Read before the row is deleted from the source: the copy may be replaced
            // only if it is still this one.
            copy = match self.look(to, &key).await {
                Ok((watched, seen)) => {
                    has_content_of(&seen, &row).then_some(Copied { partition: to, watched })
                }
                Err(why) => return Err(errors::in_both(name, &source.name, &why)),
            };
            self.written.note(from);
            let delete = Request {
                ops: vec![Op::Row(RowOp::Delete { key: key.clone().into() })],
                joined: Vec::new(),
                watched: vec![watched],
            };
            match router::respond(&self.proxy, from, &delete, self.deadline()).await {
                Ok(Response::Done(_)) => return Ok(true),
                // The target holds the copy without some of its fields, which have
                // expired, or another client's row.
                Ok(Response::Touched) if copy.is_none() && has_fields_that_expire(&row) => {
                    return Err(errors::in_both(
                        name,
                        &source.name,
                        &Reply::error("ERR both have changed since"),
                    ));
                }
                Ok(Response::Touched) => {}
                Err(error @ CallError::Unknown(_)) => {
                    return Err(errors::perhaps_in_both(
                        name,
                        &source.name,
                        &errors::call_error(&error),
                    ));
                }
                Err(error) => {
                    return Err(errors::in_both(name, &source.name, &errors::call_error(&error)));
                }
            }
        }
        if let Some(copy) = copy {
            self.take_back(copy, &key)
                .await
                .map_err(|why| errors::in_both(name, &source.name, &why))?;
        }
        Err(Reply::error("ERR the key changes too fast to be moved"))
    }

    /// A row and its watch token.
    async fn look(
        &mut self,
        partition: PartitionId,
        key: &Bytes,
    ) -> Result<(WatchToken, Answer), Reply> {
        let ops = vec![
            Op::Row(RowOp::Watch { key: key.clone().into() }),
            Op::Row(RowOp::Dump { key: key.clone().into() }),
        ];
        let look = Request { ops, joined: vec![1], watched: Vec::new() };
        let looked = router::respond(&self.proxy, partition, &look, self.deadline()).await;
        let Response::Done(outcomes) = looked.map_err(|error| errors::call_error(&error))? else {
            return Err(commands::errors::no_answer());
        };
        let mut outcomes = outcomes.into_iter();
        match (outcomes.next(), outcomes.next()) {
            (Some(Ok(Answer::WatchToken(watched))), Some(Ok(row))) => Ok((watched, row)),
            (_, Some(Err(refusal))) => Err(not_copied(refusal)),
            _ => Err(commands::errors::no_answer()),
        }
    }

    /// Copies a row if the target has no such key, or over its earlier copy if that is
    /// unchanged. Returns the copy's partition; `None`: there is another row.
    ///
    /// # Errors
    /// The earlier copy, if it is still there, and the reason why this one was not made.
    async fn put_copy(
        &mut self,
        name: &str,
        key: &Bytes,
        row: &Answer,
        earlier: Option<Copied>,
    ) -> Result<Option<PartitionId>, (bool, Reply)> {
        let Some(Copied { partition, watched }) = earlier else {
            return self
                .restore(name, key.clone(), row.clone(), false)
                .await
                .map_err(|why| (false, why));
        };
        let replace = restoring(key.clone(), row.clone(), true).map_err(|why| (true, why))?;
        let replace = Request { ops: vec![replace], joined: Vec::new(), watched: vec![watched] };
        match router::respond(&self.proxy, partition, &replace, self.deadline()).await {
            Ok(Response::Done(outcomes)) => match outcomes.into_iter().next() {
                Some(Ok(_)) => Ok(Some(partition)),
                Some(Err(refusal)) => Err((true, not_copied(refusal))),
                None => Err((true, commands::errors::no_answer())),
            },
            // Another client has written there: the row is moved as if there had been no
            // copy.
            Ok(Response::Touched) => self
                .restore(name, key.clone(), row.clone(), false)
                .await
                .map_err(|why| (false, why)),
            Err(error) => Err((true, errors::call_error(&error))),
        }
    }

    /// Deletes a copy unless another client has written to it.
    async fn take_back(&mut self, copy: Copied, key: &Bytes) -> Result<(), Reply> {
        let delete = Request {
            ops: vec![Op::Row(RowOp::Delete { key: key.clone().into() })],
            joined: Vec::new(),
            watched: vec![copy.watched],
        };
        let done = router::respond(&self.proxy, copy.partition, &delete, self.deadline()).await;
        done.map(drop).map_err(|error| errors::call_error(&error))
    }

    /// Writes a copied row into a table and returns the partition; `None`: the key
    /// exists.
    async fn restore(
        &mut self,
        name: &str,
        to: Bytes,
        row: Answer,
        replace: bool,
    ) -> Result<Option<PartitionId>, Reply> {
        let target = router::ensure(&self.proxy, name)
            .await
            .map_err(|error| errors::catalogue_error(&error))?;
        let target = target.ok_or_else(|| errors::no_table(name.as_bytes()))?;
        let partition = router::partition_of(&target, &to);
        match self.ask(partition, restoring(to, row, replace)?).await? {
            Ok(_) => Ok(Some(partition)),
            Err(Refusal::BusyKey) => Ok(None),
            Err(refusal) => Err(not_copied(refusal)),
        }
    }

    async fn ask(&mut self, partition: PartitionId, op: Op) -> Result<router::Outcome, Reply> {
        if op.is_write() {
            self.written.note(partition);
        }
        router::ask(&self.proxy, partition, op, self.deadline()).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cluster::TableId;

    use super::*;

    /// Slot 12182 and the upper 39 bits of the hash.
    const CURSOR_OF_FOO: u64 = 6_697_493_470_360_067;

    /// Clients keep cursors between calls and over upgrades.
    #[test]
    fn cursors_are_frozen() {
        let table = Table {
            id: TableId(1),
            name: "db0".into(),
            number: 0,
            partitions: 4,
            replicas: 1,
            envs: BTreeMap::new(),
            default_ttl_since_ms: 0,
        };
        assert_eq!(router::first_cursor(&table, 0), 0);
        assert_eq!(router::first_cursor(&table, 1), 2_251_799_813_685_248);
        assert_eq!(random_cursor(5, 6, 0, 0), 2_748_779_069_440);
        assert_eq!(random_cursor(5, 6, 7, u64::MAX), 3_298_534_883_327);
        assert_eq!(key::cursor(key::position(b"foo")), CURSOR_OF_FOO);
        assert_eq!(
            scanned(CURSOR_OF_FOO, vec![Bytes::from_static(b"foo")]),
            Reply::Array(vec![
                Reply::Bulk(Bytes::from(CURSOR_OF_FOO.to_string())),
                Reply::Array(vec![Reply::Bulk(Bytes::from_static(b"foo"))]),
            ])
        );
    }
}
