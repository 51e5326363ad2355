//! Routes ops to their partitions: batched by partition, in order, in few requests;
//! partitions run concurrently.
//!
//! # Invariants
//! - Requests to one partition run one after another, so that on one connection a command
//!   sees everything sent before it.
//! - The ops of one command and partition are in one request: they are atomic together.
//! - A request is sent again only when it is known not to have been proposed, and never
//!   after the deadline.
//! - When a node answers only the first commands of a request because their answers are
//!   large, the others are not sent before these replies are made: a client's answers
//!   take at most that much plus one command's answer (`tests/memory.rs`).
//! - Answers of many partitions are kept up to the limit of one command, plus one answer;
//!   reads beyond that are left for a later request (`tests/memory.rs`,
//!   `large_answers_of_many_partitions_are_not_collected_in_vain`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cluster::{Boxed, CallError, Fault, PartitionId, SLOTS, Table, TableId};
use commands::{Reply, RowPlan};
use row::AnswerSize;
use row::PartitionOp;
use row::key;
use row::op::{Answer, Op, Refusal, Request, Response};
use smallvec::SmallVec;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::Proxy;

/// A request is full beyond these; the next command starts a new one.
const REQUEST_OPS_MAX: usize = 1000;
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Maximum number of partitions called concurrently, besides those of one command.
const PARTITIONS_MAX: usize = 4096;
/// Maximum number of concurrent requests with large answers.
const LARGE_REQUESTS_MAX: usize = 16;
/// Up to this many batches are searched linearly; more are found by a map.
const LINEAR_SEARCH_MAX: usize = 16;

/// Pause between two attempts while a partition has no leader. Elections take some
/// hundred ms.
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(100);

/// The outcome of one op.
pub(crate) type Outcome = Result<Answer, Refusal>;

/// The partition of a table that holds a key.
pub(crate) fn partition_of(table: &Table, key: &[u8]) -> PartitionId {
    // With one partition there is no need to hash.
    if table.partitions <= 1 {
        PartitionId { table: table.id, index: 0 }
    } else {
        table.partition_of(key::slot(key))
    }
}

/// The partition of all rows of an op, if it is the same for all; ops without keys go to
/// the first partition.
pub(crate) fn partition_of_op(table: &Table, op: &Op) -> Option<PartitionId> {
    if table.partitions <= 1 {
        return Some(PartitionId { table: table.id, index: 0 });
    }
    let mut keys = op.keys().into_iter().map(|key| partition_of(table, key));
    let first = keys.next().unwrap_or(PartitionId { table: table.id, index: 0 });
    keys.all(|other| other == first).then_some(first)
}

/// The partition of all rows of some ops, if it is the same for all.
pub(crate) fn partition_of_unit(table: &Table, ops: &[Op]) -> Option<PartitionId> {
    let mut places = ops.iter().map(|op| partition_of_op(table, op));
    let first = places.next()??;
    places.all(|other| other == Some(first)).then_some(first)
}

/// The partition of each op of a command; `None`: CROSSSLOT.
pub(crate) fn places(table: &Table, rows: &RowPlan) -> Option<SmallVec<[PartitionId; 4]>> {
    let places: SmallVec<[_; 4]> =
        rows.ops.iter().map(|op| partition_of_op(table, op)).collect::<Option<_>>()?;
    let is_torn = rows.same_partition && places.iter().any(|place| *place != places[0]);
    (!is_torn).then_some(places)
}

/// A table that does not exist, for routing only.
fn hypothetical(partitions: u32) -> Table {
    let (id, name) = (TableId(u32::MAX), String::new());
    Table {
        id,
        name,
        number: 0,
        partitions,
        replicas: 0,
        envs: BTreeMap::new(),
        default_ttl_since_ms: 0,
    }
}

/// A command that fits a table with this many partitions fits any: it lies in one slot.
pub(crate) fn finest_table() -> Table {
    hypothetical(SLOTS.into())
}

/// A table as its first write would create it, for routing only.
pub(crate) async fn new_table(proxy: &Proxy) -> Result<Table, CallError> {
    learn(proxy, || proxy.catalogue.partitions_of_new()).await.map(hypothetical)
}

/// All partitions of a table, in slot order.
pub(crate) fn partitions(table: &Table) -> impl Iterator<Item = PartitionId> + use<> {
    let id = table.id;
    (0..table.partitions).map(move |index| PartitionId { table: id, index })
}

/// The ops of some commands by partition, and later their outcomes.
#[derive(Default)]
pub(crate) struct Batches {
    batches: SmallVec<[PartitionBatch; 1]>,
    /// Indexes of the batches beyond the first few.
    places: HashMap<PartitionId, u16>,
}

/// The requests to one partition.
struct PartitionBatch {
    partition: PartitionId,
    /// Requests to execute.
    open: SmallVec<[RequestBuilder; 1]>,
    done: VecDeque<Done>,
    /// Memory of the outcomes in `done`.
    held_bytes: usize,
}

#[derive(Default)]
struct RequestBuilder {
    request: Request,
    bytes: usize,
    writes: bool,
}

/// An executed request: the outcomes not taken yet, or the error that stands for that
/// many.
enum Done {
    Outcomes(std::vec::IntoIter<Outcome>),
    Failed(CallError, usize),
}

impl Batches {
    /// Adds an op for a partition and returns the index for [`Batches::take`]. With
    /// `joins`, the op shares a request with the op of the same command added before it.
    pub(crate) fn add(&mut self, partition: PartitionId, op: Op, joins: bool) -> u16 {
        let first = self
            .batches
            .iter()
            .take(LINEAR_SEARCH_MAX)
            .position(|batch| batch.partition == partition);
        let index =
            match first.or_else(|| self.places.get(&partition).map(|index| usize::from(*index))) {
                Some(index) => index,
                None => {
                    let index = self.batches.len();
                    self.batches.push(PartitionBatch {
                        partition,
                        open: SmallVec::new(),
                        done: VecDeque::new(),
                        held_bytes: 0,
                    });
                    if index >= LINEAR_SEARCH_MAX {
                        self.places.insert(partition, batch_index(index));
                    }
                    index
                }
            };
        let batch = &mut self.batches[index];
        let is_full = |open: &RequestBuilder| {
            open.request.ops.len() >= REQUEST_OPS_MAX || open.bytes >= REQUEST_BYTES_MAX
        };
        if batch.open.last().is_none_or(|open| !joins && is_full(open)) {
            batch.open.push(RequestBuilder::default());
        }
        let open = batch.open.last_mut().expect("one was just pushed if there was none");
        if op.is_write() {
            open.writes = true;
            open.bytes += op.bytes();
        }
        if joins && !open.request.ops.is_empty() {
            open.request.joined.push(open.request.ops.len() as u32);
        }
        open.request.ops.push(op);
        batch_index(index)
    }

    /// `true` if so many partitions are pending that they must be called before more is
    /// added.
    pub(crate) fn is_full(&self) -> bool {
        self.batches.len() >= PARTITIONS_MAX
    }

    /// The partitions with pending writes.
    pub(crate) fn written(&self) -> impl Iterator<Item = PartitionId> {
        self.batches
            .iter()
            .filter(|batch| batch.open.iter().any(|open| open.writes))
            .map(|batch| batch.partition)
    }

    /// Executes pending requests; of large answers, a part only ([`Batches::is_done`]).
    pub(crate) async fn execute(&mut self, proxy: &Proxy, deadline: Instant) {
        self.execute_within(
            proxy,
            deadline,
            AnswerBudget::new(self.held_bytes(), proxy.settings.load().answer_max().bytes),
        )
        .await;
    }

    /// Executes all requests. None of the answers is large.
    pub(crate) async fn execute_small(&mut self, proxy: &Proxy, deadline: Instant) {
        self.execute_within(proxy, deadline, AnswerBudget::new(0, usize::MAX)).await;
    }

    async fn execute_within(&mut self, proxy: &Proxy, deadline: Instant, room: AnswerBudget) {
        match self.batches.as_mut_slice() {
            [] => {}
            [batch] => batch.execute(proxy, deadline, &room).await,
            batches => {
                let each = batches
                    .iter_mut()
                    .map(|batch| Box::pin(batch.execute(proxy, deadline, &room)) as Boxed<'_, ()>);
                futures::future::join_all(each.collect::<Vec<_>>()).await;
            }
        }
    }

    /// `true` if no request is pending.
    pub(crate) fn is_done(&self) -> bool {
        self.batches.iter().all(|batch| batch.open.is_empty())
    }

    /// Memory of the outcomes that are not taken yet, bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.batches.iter().map(|batch| batch.held_bytes).sum()
    }

    /// `true` if the next outcomes of these batches (one for each time that a batch is
    /// named) are available, or never will be.
    pub(crate) fn has(&self, batches: &[u16]) -> bool {
        let is_there = |batch: u16, count: usize| match self.batches.get(usize::from(batch)) {
            Some(batch) => batch.open.is_empty() || batch.outcomes() >= count,
            None => true,
        };
        if let [batch] = batches {
            return is_there(*batch, 1);
        }
        let mut counts = HashMap::<u16, usize>::new();
        batches.iter().for_each(|batch| *counts.entry(*batch).or_default() += 1);
        counts.into_iter().all(|(batch, count)| is_there(batch, count))
    }

    /// Discards the next outcomes of these batches, and skips pending reads. Returns the
    /// batches whose outcomes are still to come.
    pub(crate) fn forget(&mut self, batches: &[u16]) -> SmallVec<[u16; 4]> {
        let is_to_come = |batch: &u16| match self.batches.get_mut(usize::from(*batch)) {
            Some(batch) if !batch.open.is_empty() && batch.outcomes() == 0 => !batch.skip_read(),
            _ => {
                let _forgotten = self.take(*batch);
                false
            }
        };
        batches.iter().copied().filter(is_to_come).collect()
    }

    /// The outcome of the next op of a batch. Outcomes are taken in the order in which
    /// the ops were added, once they are [available](Batches::has).
    pub(crate) fn take(&mut self, batch: u16) -> Result<Outcome, CallError> {
        let lost =
            || CallError::Fault(Fault::internal("a node answered fewer ops than it was asked"));
        let batch = self.batches.get_mut(usize::from(batch)).ok_or_else(lost)?;
        loop {
            match batch.done.front_mut().ok_or_else(lost)? {
                Done::Outcomes(outcomes) => match outcomes.next() {
                    Some(outcome) => {
                        batch.held_bytes = batch.held_bytes.saturating_sub(outcome_bytes(&outcome));
                        return Ok(outcome);
                    }
                    None => drop(batch.done.pop_front()),
                },
                Done::Failed(_, 0) => drop(batch.done.pop_front()),
                Done::Failed(error, left) => {
                    *left -= 1;
                    return Err(error.clone());
                }
            }
        }
    }

    /// Removes everything and keeps the allocation.
    pub(crate) fn clear(&mut self) {
        self.batches.clear();
        self.places.clear();
    }
}

/// Memory of an outcome, bytes.
fn outcome_bytes(outcome: &Outcome) -> usize {
    size_of::<Outcome>() + outcome.as_ref().map_or(0, Answer::bytes)
}

/// A batch's index.
fn batch_index(index: usize) -> u16 {
    u16::try_from(index).expect(
        "PARTITIONS_MAX and the partitions of one table, 16,384 at most, are fewer than u16 holds",
    )
}

impl Done {
    fn len(&self) -> usize {
        match self {
            Done::Outcomes(outcomes) => outcomes.len(),
            Done::Failed(_, left) => *left,
        }
    }
}

impl PartitionBatch {
    /// Number of outcomes not taken yet.
    fn outcomes(&self) -> usize {
        self.done.iter().map(Done::len).sum()
    }

    /// Skips the first pending op if it only reads.
    fn skip_read(&mut self) -> bool {
        let Some(open) = self.open.first_mut() else { return false };
        if open.request.ops.first().is_none_or(Op::is_write) {
            return false;
        }
        without_first(&mut open.request, 1);
        if open.request.ops.is_empty() {
            self.open.remove(0);
        }
        true
    }

    /// Executes one request after another, up to the first that is answered in part. A
    /// node may answer only the first commands when their answers are large, and reads
    /// are left for later when the budget is exhausted.
    async fn execute(&mut self, proxy: &Proxy, deadline: Instant, room: &AnswerBudget) {
        let mut all = std::mem::take(&mut self.open).into_iter();
        while let Some(mut open) = all.next() {
            if !self.done.is_empty() {
                // The request before may have been a thousand reads on this thread, or
                // MiB of copying.
                tokio::task::yield_now().await;
            }
            let asked = open.request.ops.len();
            let _turn = room.turn(&open.request).await;
            let outcomes = match open.writes {
                _ if !open.writes && room.is_taken() => None,
                true => Some(call(proxy, self.partition, &open.request, deadline).await),
                false => Some(read_once(proxy, self.partition, &open.request, deadline).await)
                    .filter(|_| !room.is_taken()),
            };
            let Some(outcomes) = outcomes else {
                self.open = std::iter::once(open).chain(all).collect();
                return;
            };
            proxy.stats.batch(asked);
            let done = match outcomes {
                Ok(outcomes) if outcomes.is_empty() && asked > 0 => Err(CallError::Fault(
                    Fault::internal("a node answered none of the ops that it was asked"),
                )),
                outcomes => outcomes,
            };
            let answered = done.as_ref().map_or(asked, Vec::len);
            room.take(self.keep(done, asked));
            if answered < asked {
                without_first(&mut open.request, answered);
                self.open = std::iter::once(open).chain(all).collect();
                return;
            }
        }
    }

    /// Stores the outcomes of `ops` ops and returns their memory.
    fn keep(&mut self, outcomes: Result<Vec<Outcome>, CallError>, ops: usize) -> usize {
        let (done, bytes) = match outcomes {
            Ok(outcomes) => {
                let bytes = outcomes.iter().map(outcome_bytes).sum();
                (Done::Outcomes(outcomes.into_iter()), bytes)
            }
            Err(error) => (Done::Failed(error, ops), 0),
        };
        self.done.push_back(done);
        self.held_bytes += bytes;
        bytes
    }
}

/// The budget of outcomes that are not taken yet, and of what is held beside them. It is
/// exhausted when they take more than the answer of one command may: then the next command
/// either has all its outcomes, or is refused.
pub(crate) struct AnswerBudget {
    held_bytes: AtomicUsize,
    bytes_max: usize,
    large: Semaphore,
}

impl AnswerBudget {
    pub(crate) fn new(held_bytes: usize, bytes_max: usize) -> AnswerBudget {
        AnswerBudget {
            held_bytes: AtomicUsize::new(held_bytes),
            bytes_max,
            large: Semaphore::new(LARGE_REQUESTS_MAX),
        }
    }

    fn is_taken(&self) -> bool {
        self.held_bytes.load(Ordering::Relaxed) > self.bytes_max
    }

    fn take(&self, bytes: usize) {
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Waits for a permit to send a request with a large answer, as answers in flight are
    /// not counted yet. `None`: the answer is small.
    async fn turn(&self, request: &Request) -> Option<SemaphorePermit<'_>> {
        let is_large = request.ops.iter().any(|op| op.answer_size() == AnswerSize::Large);
        if is_large { self.large.acquire().await.ok() } else { None }
    }
}

/// The index of a unit's question, its partition, and the request.
type UnitRequest = (usize, PartitionId, Request);
/// The index of a unit's question, and its answer.
type UnitResponse = (usize, Result<Response, CallError>);

/// Executes the units of one round, each of which is a request: those of one partition one
/// after another, partitions concurrently.
///
/// `None`: not all reads were executed, since the answers exhaust the budget. All writes
/// were.
pub(crate) async fn execute_units(
    proxy: &Proxy,
    mut units: Vec<UnitRequest>,
    deadline: Instant,
    room: &AnswerBudget,
) -> Option<Vec<UnitResponse>> {
    if units.len() == 1 {
        return execute_in_order(proxy, units, deadline, room).await;
    }
    // Sorted stably: the units of a partition keep their order.
    units.sort_by_key(|(_, partition, _)| *partition);
    let mut lanes = Vec::<Vec<UnitRequest>>::new();
    for unit in units {
        match lanes.last_mut().filter(|lane| lane[0].1 == unit.1) {
            Some(lane) => lane.push(unit),
            None => lanes.push(vec![unit]),
        }
    }
    let each = lanes.into_iter().map(|lane| {
        Box::pin(execute_in_order(proxy, lane, deadline, room))
            as Boxed<'_, Option<Vec<UnitResponse>>>
    });
    let all = futures::future::join_all(each.collect::<Vec<_>>()).await;
    let lanes: Option<Vec<_>> = all.into_iter().collect();
    Some(lanes?.into_iter().flatten().collect())
}

/// Executes units one after another. `None`: a read was left out.
async fn execute_in_order(
    proxy: &Proxy,
    units: Vec<UnitRequest>,
    deadline: Instant,
    room: &AnswerBudget,
) -> Option<Vec<UnitResponse>> {
    let mut answers = Vec::with_capacity(units.len());
    let mut is_whole = true;
    for (at, partition, request) in units {
        if !answers.is_empty() {
            // The unit before may have been a long read on this thread.
            tokio::task::yield_now().await;
        }
        let _turn = room.turn(&request).await;
        let writes = request.ops.iter().any(Op::is_write);
        if !writes && room.is_taken() {
            is_whole = false;
            continue;
        }
        proxy.stats.batch(request.ops.len());
        let response = if writes || !request.watched.is_empty() {
            respond(proxy, partition, &request, deadline).await
        } else {
            read_once(proxy, partition, &request, deadline).await.map(Response::Done)
        };
        if let Ok(Response::Done(outcomes)) = &response {
            room.take(outcomes.iter().map(outcome_bytes).sum());
        }
        answers.push((at, response));
    }
    is_whole.then_some(answers)
}

/// Removes the first ops of a request, which are done.
fn without_first(request: &mut Request, ops: usize) {
    request.ops.drain(..ops);
    request.joined.retain(|at| *at as usize > ops);
    request.joined.iter_mut().for_each(|at| *at -= ops as u32);
}

/// Reads, on this thread if the leader is in this process.
async fn read_once(
    proxy: &Proxy,
    partition: PartitionId,
    request: &Request,
    deadline: Instant,
) -> Result<Vec<Outcome>, CallError> {
    match proxy.rows.read_now(partition, request) {
        Some(Ok(response)) => done(response),
        Some(Err(error)) if !is_transient(&error) => Err(error),
        _ => call(proxy, partition, request, deadline).await,
    }
}

/// Calls a partition, and retries while it has no leader, until the deadline.
async fn call(
    proxy: &Proxy,
    partition: PartitionId,
    request: &Request,
    deadline: Instant,
) -> Result<Vec<Outcome>, CallError> {
    done(respond(proxy, partition, request, deadline).await?)
}

/// As [`call`], for requests with watch tokens.
pub(crate) async fn respond(
    proxy: &Proxy,
    partition: PartitionId,
    request: &Request,
    deadline: Instant,
) -> Result<Response, CallError> {
    retry_until(proxy, deadline, || proxy.rows.call(partition, request.clone())).await
}

/// Retries while nothing was done and an attempt may succeed soon, until the deadline or
/// the end of the server.
async fn retry_until<'a, T>(
    proxy: &Proxy,
    deadline: Instant,
    attempt: impl Fn() -> Boxed<'a, Result<T, CallError>>,
) -> Result<T, CallError> {
    let mut pause = RETRY_MIN;
    loop {
        match attempt().await {
            Err(error)
                if is_transient(&error)
                    && Instant::now() + pause < deadline
                    && !proxy.shutdown.is_cancelled() =>
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            other => return other,
        }
    }
}

/// The number of rows of each partition of a table, in slot order; or the first error.
pub(crate) async fn count_rows(
    proxy: &Proxy,
    table: &Table,
    deadline: Instant,
) -> Result<Vec<u64>, Reply> {
    count(proxy, table, &Op::Partition(PartitionOp::Rows), deadline).await
}

/// The numbers that an op answers in each partition of a table, as [`count_rows`].
pub(crate) async fn count(
    proxy: &Proxy,
    table: &Table,
    op: &Op,
    deadline: Instant,
) -> Result<Vec<u64>, Reply> {
    let mut batches = Batches::default();
    let indexes: Vec<u16> =
        partitions(table).map(|partition| batches.add(partition, op.clone(), false)).collect();
    batches.execute_small(proxy, deadline).await;
    let count = |index| match batches.take(index) {
        Ok(Ok(Answer::Int(count))) => Ok(u64::try_from(count).unwrap_or(0)),
        Ok(Ok(_)) => Err(commands::errors::no_answer()),
        Ok(Err(refusal)) => Err(commands::errors::refusal(refusal)),
        Err(error) => Err(crate::errors::call_error(&error)),
    };
    indexes.into_iter().map(count).collect()
}

/// `true` for tables that their first write creates; others are created by an
/// administrator.
pub(crate) fn is_created_on_write(proxy: &Proxy, name: &str) -> bool {
    cluster::database(name).is_some_and(|number| number < proxy.settings.load().databases)
}

/// The number of a table; `None`: the table is not known here.
pub(crate) fn number_of(proxy: &Proxy, name: &str) -> Option<u32> {
    cluster::database(name).or_else(|| proxy.catalogue.table(name).map(|table| table.number))
}

/// The table with this name; a numbered table is created when it is missing. A named
/// table may be missing because it was dropped after a client had selected it; that
/// client's next write must not bring it back.
pub(crate) async fn ensure(proxy: &Proxy, name: &str) -> Result<Option<Arc<Table>>, CallError> {
    if !is_created_on_write(proxy, name) {
        return find(proxy, name).await;
    }
    learn(proxy, || proxy.catalogue.ensure(name)).await.map(Some)
}

/// The table with this name, also if this proxy does not know it yet. `None`: at some
/// time since the call it did not exist.
pub(crate) async fn find(proxy: &Proxy, name: &str) -> Result<Option<Arc<Table>>, CallError> {
    learn(proxy, || proxy.catalogue.find(name)).await
}

/// All tables, including those that this proxy does not know yet.
pub(crate) async fn find_all(proxy: &Proxy) -> Result<Vec<Arc<Table>>, CallError> {
    learn(proxy, || proxy.catalogue.find_all()).await
}

/// Asks the catalogue until the deadline. Unlike requests to partitions, these questions
/// may be cancelled at any time.
async fn learn<'a, T>(
    proxy: &Proxy,
    attempt: impl Fn() -> Boxed<'a, Result<T, CallError>>,
) -> Result<T, CallError> {
    let deadline = Instant::now() + Duration::from_millis(proxy.settings.load().call_deadline_ms);
    let asked =
        tokio::time::timeout_at(deadline.into(), retry_until(proxy, deadline, attempt)).await;
    asked.unwrap_or_else(|_| Err(CallError::NoLeader("none has answered in time".to_owned())))
}

/// `true` if nothing was done and an attempt may succeed soon.
fn is_transient(error: &CallError) -> bool {
    matches!(error, CallError::NoLeader(_))
}

fn done(response: Response) -> Result<Vec<Outcome>, CallError> {
    match response {
        Response::Done(outcomes) => Ok(outcomes),
        Response::Touched => Err(CallError::Fault(Fault::internal(
            "a node says that a row was touched which nobody watched",
        ))),
    }
}
