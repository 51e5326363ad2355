//! Carries ops to their partitions: gathered by partition, in order, in few requests;
//! partitions run concurrently.
//!
//! # Invariants
//! - Requests to one partition run one after another, so that on one connection a command
//!   sees what was sent before it.
//! - The ops of one command and partition are in one request: they are atomic together.
//! - A request is sent again only when it is known not to have been proposed, and never
//!   after the deadline.
//! - Where a node answers the first commands of a request only, as their answers are
//!   large, the others are not asked for before these have been told: at most that much
//!   is held for a client besides one command's answer (`tests/memory.rs`).
//! - Of the answers of many partitions no more are kept than one command may have, and
//!   one: what is read beyond that is left to be asked for again (`tests/memory.rs`,
//!   `large_answers_of_many_partitions_are_not_collected_in_vain`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cluster::{Boxed, CallError, PartitionId, SLOTS, Table, TableId};
use commands::{Reply, RowPlan};
use row::answer_size::AnswerSize;
use row::key;
use row::op::{Answer, Op, Refusal, Request, Response};
use smallvec::SmallVec;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::Proxy;

/// A request is full beyond these; the next command opens another one.
const REQUEST_OPS_MAX: usize = 1000;
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// So many partitions are asked at once, plus those of one command.
const PARTITIONS_MAX: usize = 4096;
/// So many partitions are asked at once for what may be large.
const LARGE_REQUESTS_MAX: usize = 16;
/// Up to so many lines are looked through; more are found by a map.
const LINEAR_SEARCH_MAX: usize = 16;

/// Between two tries while a partition has no leader: elections take some hundred ms.
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(100);

/// What became of one op.
pub(crate) type Outcome = Result<Answer, Refusal>;

/// The partition of a table that holds a key.
pub(crate) fn partition_of(table: &Table, key: &[u8]) -> PartitionId {
    // With one partition nobody needs to hash.
    if table.partitions <= 1 {
        PartitionId { table: table.id, index: 0 }
    } else {
        table.partition_of(key::slot(key))
    }
}

/// The partition of all rows that an op names, if it is one and the same; ops that name
/// none are at home in the first.
pub(crate) fn partition_of_op(table: &Table, op: &Op) -> Option<PartitionId> {
    if table.partitions <= 1 {
        return Some(PartitionId { table: table.id, index: 0 });
    }
    let mut keys = op.keys().into_iter().map(|key| partition_of(table, key));
    let first = keys.next().unwrap_or(PartitionId { table: table.id, index: 0 });
    keys.all(|other| other == first).then_some(first)
}

/// The partition of each op of a command on a table; `None`: they lie in several where
/// they must not.
pub(crate) fn places(table: &Table, rows: &RowPlan) -> Option<SmallVec<[PartitionId; 4]>> {
    let places: SmallVec<[_; 4]> =
        rows.ops.iter().map(|op| partition_of_op(table, op)).collect::<Option<_>>()?;
    let is_torn = rows.same_partition && places.iter().any(|place| *place != places[0]);
    (!is_torn).then_some(places)
}

/// A table that is not there, as far as it says where rows would lie.
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

/// What fits a table of so many partitions fits any: it lies in one slot.
pub(crate) fn finest_table() -> Table {
    hypothetical(SLOTS.into())
}

/// A table as its first write would make it, as far as it says where rows would lie.
pub(crate) async fn new_table(proxy: &Proxy) -> Result<Table, CallError> {
    learn(proxy, || proxy.catalogue.partitions_of_new()).await.map(hypothetical)
}

/// All partitions of a table, in slot order.
pub(crate) fn partitions(table: &Table) -> impl Iterator<Item = PartitionId> + use<> {
    let id = table.id;
    (0..table.partitions).map(move |index| PartitionId { table: id, index })
}

/// Where a SCAN of a partition begins.
pub(crate) fn first_cursor(table: &Table, index: u32) -> u64 {
    key::slot_cursor(table.first_slot(index).min(SLOTS - 1))
}

/// The ops of some commands, by partition, and then what became of them.
#[derive(Default)]
pub(crate) struct Batches {
    batches: SmallVec<[PartitionBatch; 1]>,
    /// Where the lines beyond the first few are.
    places: HashMap<PartitionId, u16>,
}

/// Requests for one partition.
struct PartitionBatch {
    partition: PartitionId,
    /// What is to be carried out.
    open: SmallVec<[RequestBuilder; 1]>,
    done: VecDeque<Done>,
    /// What the outcomes in `done` take.
    held_bytes: usize,
}

#[derive(Default)]
struct RequestBuilder {
    request: Request,
    bytes: usize,
    writes: bool,
}

/// A request carried out: the outcomes not yet taken, or the error that stands for that
/// many.
enum Done {
    Outcomes(std::vec::IntoIter<Outcome>),
    Failed(CallError, usize),
}

impl Batches {
    /// Adds an op for a partition; the number is what [`Batches::take`] wants. `joins`:
    /// it must share its request with the op of the same command that was added before.
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

    /// So many partitions are asked that they should be before more is added.
    pub(crate) fn is_full(&self) -> bool {
        self.batches.len() >= PARTITIONS_MAX
    }

    /// The partitions that are written to.
    pub(crate) fn written(&self) -> impl Iterator<Item = PartitionId> {
        self.batches
            .iter()
            .filter(|batch| batch.open.iter().any(|open| open.writes))
            .map(|batch| batch.partition)
    }

    /// Carries out what is left; of answers that are large, a part only
    /// ([`Batches::is_done`]).
    pub(crate) async fn execute(&mut self, proxy: &Proxy, deadline: Instant) {
        self.execute_within(
            proxy,
            deadline,
            AnswerBudget::new(self.held_bytes(), proxy.settings.load().answer_max().bytes),
        )
        .await;
    }

    /// Carries out everything, of which no answer is large.
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

    /// Nothing is left to be carried out.
    pub(crate) fn is_done(&self) -> bool {
        self.batches.iter().all(|batch| batch.open.is_empty())
    }

    /// What the outcomes that wait to be taken take, bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.batches.iter().map(|batch| batch.held_bytes).sum()
    }

    /// Whether the next outcomes of these lines, one for each time that a line is named,
    /// are there, or never will be.
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

    /// Forgets the next outcomes of these lines, and has what would only be read not read
    /// at all; the lines whose outcomes are still to come.
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

    /// The outcome of the next op of a line; to be taken in the order in which they were
    /// added, once they are [there](Batches::has).
    pub(crate) fn take(&mut self, batch: u16) -> Result<Outcome, CallError> {
        let lost = || CallError::Fault("a node answered fewer ops than it was asked".into());
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

    /// Forgets everything, keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.batches.clear();
        self.places.clear();
    }
}

/// What an outcome takes, bytes.
fn outcome_bytes(outcome: &Outcome) -> usize {
    size_of::<Outcome>() + outcome.as_ref().map_or(0, Answer::bytes)
}

/// A line's number.
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
    /// How many outcomes wait to be taken.
    fn outcomes(&self) -> usize {
        self.done.iter().map(Done::len).sum()
    }

    /// Leaves out the first op that is to be carried out, if it only reads.
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

    /// One request after another, up to the first of which a part is done. A node may do
    /// the first commands only, when their answers are large; and what is read when all
    /// room is taken is left for later.
    async fn execute(&mut self, proxy: &Proxy, deadline: Instant, room: &AnswerBudget) {
        let mut all = std::mem::take(&mut self.open).into_iter();
        while let Some(mut open) = all.next() {
            if !self.done.is_empty() {
                // A thousand reads have perhaps been answered on the spot, or some MiB
                // copied.
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
                    "a node answered none of the ops that it was asked".to_owned(),
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

    /// Keeps what became of so many ops, and says what that takes.
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

/// The room that outcomes have which wait to be taken. It is taken when they take more
/// than one command's answer may: then either the next command has all of its outcomes,
/// or it is refused.
struct AnswerBudget {
    held_bytes: AtomicUsize,
    bytes_max: usize,
    large: Semaphore,
}

impl AnswerBudget {
    fn new(held_bytes: usize, bytes_max: usize) -> AnswerBudget {
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

    /// Waits until a request may be asked: what is under way is not counted yet. `None`:
    /// its answer is small.
    async fn turn(&self, request: &Request) -> Option<SemaphorePermit<'_>> {
        let is_large = request.ops.iter().any(|op| op.answer_size() == AnswerSize::Large);
        if is_large { self.large.acquire().await.ok() } else { None }
    }
}

/// What is left of a request of which the first commands are done.
fn without_first(request: &mut Request, ops: usize) {
    request.ops.drain(..ops);
    request.joined.retain(|at| *at as usize > ops);
    request.joined.iter_mut().for_each(|at| *at -= ops as u32);
}

/// Reads, on this thread when the leader is here.
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

/// Calls, again and again while there is no leader, until the deadline.
async fn call(
    proxy: &Proxy,
    partition: PartitionId,
    request: &Request,
    deadline: Instant,
) -> Result<Vec<Outcome>, CallError> {
    done(respond(proxy, partition, request, deadline).await?)
}

/// As [`call`], for requests that watch.
pub(crate) async fn respond(
    proxy: &Proxy,
    partition: PartitionId,
    request: &Request,
    deadline: Instant,
) -> Result<Response, CallError> {
    retry_until(proxy, deadline, || proxy.rows.call(partition, request.clone())).await
}

/// Tries again and again while nothing was done and it may be possible soon, until the
/// deadline or the end of the server.
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

/// One op for one partition.
pub(crate) async fn ask(
    proxy: &Proxy,
    partition: PartitionId,
    op: Op,
    deadline: Instant,
) -> Result<Outcome, Reply> {
    let request = Request { ops: vec![op], joined: Vec::new(), watched: Vec::new() };
    let outcomes = match request.ops[0].is_write() {
        true => call(proxy, partition, &request, deadline).await,
        false => read_once(proxy, partition, &request, deadline).await,
    };
    let first = outcomes.map_err(|error| crate::errors::call_error(&error))?.into_iter().next();
    first.ok_or_else(commands::errors::no_answer)
}

/// The rows of each partition of a table, in slot order; the first error, if there is
/// one.
pub(crate) async fn count_rows(
    proxy: &Proxy,
    table: &Table,
    deadline: Instant,
) -> Result<Vec<u64>, Reply> {
    count(proxy, table, &Op::Rows, deadline).await
}

/// What an op that answers with a number says of each partition of a table, as
/// [`count_rows`].
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

/// Whether a table is one of those that come with their first write; others come only by
/// an operator's will.
pub(crate) fn is_created_on_write(proxy: &Proxy, name: &str) -> bool {
    cluster::database(name).is_some_and(|number| number < proxy.settings.load().databases)
}

/// The number of a table; `None`: nothing is known of it here.
pub(crate) fn number_of(proxy: &Proxy, name: &str) -> Option<u32> {
    cluster::database(name).or_else(|| proxy.catalogue.table(name).map(|table| table.number))
}

/// The table by its name; one of the databases is created when it is missing. A named one
/// may be missing because it was dropped after a client had selected it: it must not come
/// back by that client's next write.
pub(crate) async fn ensure(proxy: &Proxy, name: &str) -> Result<Option<Arc<Table>>, CallError> {
    if !is_created_on_write(proxy, name) {
        return find(proxy, name).await;
    }
    learn(proxy, || proxy.catalogue.ensure(name)).await.map(Some)
}

/// The table by its name, whether this proxy has heard of it yet or not. `None`: at some
/// moment since the call there was none.
pub(crate) async fn find(proxy: &Proxy, name: &str) -> Result<Option<Arc<Table>>, CallError> {
    learn(proxy, || proxy.catalogue.find(name)).await
}

/// All tables, those that this proxy has not heard of yet among them.
pub(crate) async fn find_all(proxy: &Proxy) -> Result<Vec<Arc<Table>>, CallError> {
    learn(proxy, || proxy.catalogue.find_all()).await
}

/// Asks the catalogue until a deadline. Its questions may be given up at any time, unlike
/// requests to partitions.
async fn learn<'a, T>(
    proxy: &Proxy,
    attempt: impl Fn() -> Boxed<'a, Result<T, CallError>>,
) -> Result<T, CallError> {
    let deadline = Instant::now() + Duration::from_millis(proxy.settings.load().call_deadline_ms);
    let asked =
        tokio::time::timeout_at(deadline.into(), retry_until(proxy, deadline, attempt)).await;
    asked.unwrap_or_else(|_| Err(CallError::NoLeader("none has answered in time".to_owned())))
}

/// Nothing was done, and it may be possible soon.
fn is_transient(error: &CallError) -> bool {
    matches!(error, CallError::NoLeader(_))
}

fn done(response: Response) -> Result<Vec<Outcome>, CallError> {
    match response {
        Response::Done(outcomes) => Ok(outcomes),
        Response::Touched => {
            Err(CallError::Fault("a node says that a row was touched which nobody watched".into()))
        }
    }
}
