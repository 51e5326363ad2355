//! The single writer of a partition: it gathers requests, evaluates them as one batch,
//! proposes one log entry and answers.
//!
//! # Batches in flight
//! While a batch replicates, the executor evaluates new requests on top of its edits and
//! proposes them behind it. Neither evaluation nor the next fsync waits for the last one.
//! A batch that was evaluated on top of another is proposed with a [`BatchDependency`] to
//! it: when the other does not get into the log (the leader lost its quorum briefly, for
//! example), replicas leave this one out as well. Answers leave in the order of the
//! batches, so a batch is answered only after everything below it is applied.
//!
//! # Invariants
//! - An answer of an op that saw edits in flight leaves after these edits are applied.
//! - When a batch fails, all batches behind it fail with it. Each fails as not proposed
//!   if it or the failed batch was not proposed, as unknown otherwise.
//! - The executor acquires a leadership only when nothing is in flight.
//! - The executor evaluates and answers only in the lease's term. A leadership that was
//!   lost and won again is another one, which knows nothing of the writes of other
//!   leaders (`storage/tests/replication.rs`,
//!   `a_watched_row_that_another_leader_wrote_is_touched`,
//!   `a_leader_that_comes_back_evaluates_on_what_others_wrote`).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::CallError;
use engine::batch::BatchDependency;
use engine::mutants::{self, Rule};
use row::edits::{Edits, Family, Overlay};
use row::eval::EvalError;
use row::op::{Answer, Op, Refusal, Request, Response, WatchToken};
use row::value::DefaultTtl;
use row::view::{Fault, Rules, Stamp, Tx, View};
use row::{PartitionOp, eval, key};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use crate::group_commit::{BatchDelay, FULL_OPS};
use crate::queue::{BatchSize, Outcome, QueuedRequest, refuse};
use crate::quota::{Quota, Reservation};
use crate::reads::{ANSWERS_BYTES, ReadView};
use crate::replica::{Leadership, ProposeError, Replica};
use crate::row_cache::WriteTicket;
use crate::stripes::{self, Stripes};
use crate::{batch, expiry, reads};

/// Bounds of one batch: enough to fill an fsync, and small enough that its first request
/// does not wait long.
const BATCH_OPS_MAX: usize = 20_000;
const BATCH_BYTES_MAX: usize = 4 << 20;

/// A request whose edits have this many bytes writes nothing more. These edits and one
/// more op fit a log entry, whatever the ops are: a byte appended to a long string writes
/// the whole string anew.
const REQUEST_EDITS_MAX: usize = 16 << 20;

/// Batches that replicate at the same time: one is synced while the next waits in the
/// log.
const PIPELINE_DEPTH: usize = 2;

/// An answer of this many bytes is counted at once; smaller ones are counted with their
/// batch.
const LARGE_ANSWER_BYTES: usize = 64 << 10;

/// While a batch is in flight, this many queued ops are evaluated without a wait for
/// more.
const EAGER_OPS: usize = 64;

/// The number of requests whose rows are fetched from memory side by side.
const PREFETCH_MAX: usize = 64;

/// A new chain begins at this position, before the positions of the old one run out.
const CHAIN_PLACES_MAX: u32 = 1 << 31;

/// The interval at which batches in flight are checked: a full disk or a lost quorum may
/// hold them up.
const STUCK_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Runs until the replica stops.
pub(crate) async fn run(replica: Arc<Replica>) {
    let mut stuck = tokio::time::interval(STUCK_CHECK_INTERVAL);
    stuck.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut executor = Executor {
        replica,
        stuck,
        leadership: None,
        link: BatchDependency { term: 0, chain: 0, position: 0 },
        stripes: Stripes::default(),
        batch_delay: BatchDelay::default(),
        next: Batch::default(),
        in_flight: VecDeque::new(),
        is_default_ttl_tentative: false,
    };
    while executor.replica.queue.closed().is_none() {
        executor.wait().await;
        executor.collect().await;
        executor.propose_next().await;
        executor.reload_tentative_default_ttl();
    }
    // Batches in flight still land: their clients get the outcome.
    if let Some(why) = executor.replica.queue.closed() {
        executor.next.refuse(&why);
    }
    while !executor.in_flight.is_empty() {
        executor.await_oldest().await;
    }
}

struct Executor {
    replica: Arc<Replica>,
    /// The timer of the check of batches in flight.
    stuck: tokio::time::Interval,
    /// The leadership under which batches are evaluated; `None`: it is to be acquired.
    leadership: Option<Leadership>,
    /// The next batch's position in its chain.
    link: BatchDependency,
    stripes: Stripes,
    batch_delay: BatchDelay,
    /// The batch that is evaluated and not yet proposed.
    next: Batch,
    /// The proposed batches, oldest first.
    in_flight: VecDeque<InFlight>,
    /// True while the table's `default_ttl` in force is that of a batch that may still
    /// fail.
    is_default_ttl_tentative: bool,
}

/// Requests that are evaluated and proposed as one.
#[derive(Default)]
struct Batch {
    edits: Edits,
    size: BatchSize,
    outcomes: Vec<Outcome>,
    answers: Vec<oneshot::Sender<Outcome>>,
    /// Bytes of the answers in `outcomes`.
    answer_bytes: usize,
    /// The node's memory that edits and answers take.
    reservation: Option<Reservation>,
    /// The stamp of the last request, ms.
    stamp_ms: u64,
    /// The latest time that an answer takes for past, ms.
    observed_expiry_ms: u64,
    /// True when the batch wrote rows and then cleared the partition: its edits lack
    /// these rows.
    loses_own_writes: bool,
}

/// Raft's outcome of a proposed batch.
type CommitFuture = Pin<Box<dyn Future<Output = Result<(), ProposeError>> + Send>>;

/// A batch in flight. A batch that was not proposed changes nothing, and waits only for
/// the batches before it.
struct InFlight {
    batch: Batch,
    proposed: Option<Proposed>,
    began: Instant,
}

struct Proposed {
    committed: CommitFuture,
    ticket: WriteTicket,
}

impl InFlight {
    async fn outcome(&mut self) -> Result<(), ProposeError> {
        match &mut self.proposed {
            Some(proposed) => proposed.committed.as_mut().await,
            None => Ok(()),
        }
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    fn room(&self) -> BatchSize {
        BatchSize {
            requests: usize::MAX,
            ops: BATCH_OPS_MAX.saturating_sub(self.size.ops),
            bytes: BATCH_BYTES_MAX.saturating_sub(self.size.bytes),
        }
    }

    fn has_room(&self) -> bool {
        self.size.ops < BATCH_OPS_MAX
            && self.size.bytes < BATCH_BYTES_MAX
            && self.edits.bytes() < BATCH_BYTES_MAX
            && self.answer_bytes < ANSWERS_BYTES
    }

    /// Reserves the memory that the batch takes by now: edits count twice, as they are
    /// and as a log entry.
    fn reserve(&mut self, quota: &Arc<Quota>) {
        let bytes = 2 * self.edits.bytes() + self.answer_bytes;
        self.reservation.get_or_insert_with(|| quota.reservation()).resize(bytes);
    }

    fn answer(self) {
        for (answer, outcome) in self.answers.into_iter().zip(self.outcomes) {
            // A caller that has gone away needs no answer.
            let _ = answer.send(outcome);
        }
    }

    fn refuse(&mut self, why: &CallError) {
        refuse(self.answers.drain(..), why);
    }
}

impl Executor {
    /// Waits for work: the oldest batch has landed (and is completed), or enough requests
    /// are queued.
    async fn wait(&mut self) {
        let (replica, in_flight) = (self.replica.clone(), self.in_flight.len());
        let Some(first) = self.in_flight.front_mut() else {
            if self.next.is_empty() {
                replica.queue.wait_until_queued(1, 1).await;
                self.batch_delay.wait(&replica.queue, 0).await;
            }
            return;
        };
        // A second batch is worth a flight of its own at the first one's size; a smaller
        // one grows for longer.
        let missing = match in_flight {
            PIPELINE_DEPTH.. => usize::MAX,
            _ => first.batch.size.requests.saturating_sub(self.next.size.requests).max(1),
        };
        tokio::select! {
            biased;
            outcome = first.outcome() => {
                self.complete(outcome).await;
                if self.in_flight.is_empty() && self.batch_delay.is_small() {
                    self.batch_delay.wait(&replica.queue, self.next.size.requests).await;
                }
            }
            // Without room or memory for more requests, only the oldest batch's landing
            // helps.
            () = replica.queue.wait_until_queued(missing, EAGER_OPS),
                if self.next.has_room() && replica.queue.quota().left() > 0 => {}
            _ = self.stuck.tick() => self.fail_if_stuck().await,
        }
    }

    /// Reloads the `default_ttl` in force from the applied state once nothing is in
    /// flight.
    fn reload_tentative_default_ttl(&mut self) {
        if self.is_default_ttl_tentative && self.in_flight.is_empty() && self.next.is_empty() {
            // A store that can't be read has stopped the replica already.
            self.is_default_ttl_tentative = self.replica.reload_default_ttl().is_err();
        }
    }

    /// Waits for the oldest batch alone.
    async fn await_oldest(&mut self) {
        if let Some(outcome) = self.oldest_outcome().await {
            self.complete(outcome).await;
        }
    }

    /// Raft's result for the oldest batch. Clients that would wait too long for it or
    /// behind it get an error meanwhile.
    async fn oldest_outcome(&mut self) -> Option<Result<(), ProposeError>> {
        loop {
            let first = self.in_flight.front_mut()?;
            tokio::select! {
                biased;
                outcome = first.outcome() => return Some(outcome),
                _ = self.stuck.tick() => {}
            }
            self.fail_if_stuck().await;
        }
    }

    /// Completes the oldest batch, which has landed.
    async fn complete(&mut self, outcome: Result<(), ProposeError>) {
        let Some(flight) = self.in_flight.pop_front() else { return };
        self.finish(flight, outcome.as_ref().err().map(CallError::from));
        self.replica.set_in_flight(self.in_flight.len());
        let Err(error) = outcome else {
            // Another leader may have committed the batch and written more behind it. An
            // evaluation here would miss those writes.
            self.end_leadership_if_over();
            return;
        };
        // No batch behind it takes effect unless it did. The executor learns which of
        // them got into the log before it evaluates anything else.
        self.leadership = None;
        let base = match &error {
            ProposeError::NotProposed(why) => CallError::NoLeader(why.clone()),
            ProposeError::Unknown(why) => CallError::Unknown(why.clone()),
        };
        while let Some(outcome) = self.oldest_outcome().await {
            let Some(flight) = self.in_flight.pop_front() else { break };
            // A batch that is not in the log has no effect. Any other depends on the
            // failed batch and shares its outcome.
            let is_void =
                matches!(outcome, Err(ProposeError::NotProposed(_))) || flight.proposed.is_none();
            let why = if is_void { leadership_lost() } else { base.clone() };
            self.finish(flight, Some(why));
        }
        self.replica.set_in_flight(0);
        // The next batch was evaluated on edits that may never be applied.
        std::mem::take(&mut self.next).refuse(&leadership_lost());
    }

    /// Ends a leadership whose term is not the lease's, and refuses the requests that
    /// were evaluated under it and not proposed.
    fn end_leadership_if_over(&mut self) {
        let Some(leadership) = &self.leadership else { return };
        if self.replica.leads_in(leadership.term()) || mutants::breaks(Rule::Term) {
            return;
        }
        self.leadership = None;
        std::mem::take(&mut self.next).refuse(&leadership_lost());
    }

    /// Answers a batch that has landed: as evaluated, or with the error.
    fn finish(&mut self, mut flight: InFlight, error: Option<CallError>) {
        let replica = &self.replica;
        let is_proposed = flight.proposed.is_some();
        if let Some(proposed) = flight.proposed {
            self.batch_delay.record_round(flight.began.elapsed());
            replica.row_cache.end_write(
                &replica.cache_scope,
                &flight.batch.edits,
                proposed.ticket,
                error.is_none(),
            );
        }
        if let Some(error) = error {
            return flight.batch.refuse(&error);
        }
        if is_proposed {
            replica.clock.advance(flight.batch.stamp_ms);
        }
        replica.expiry.note_expiry(expiry::earliest_expiry(&flight.batch.edits));
        metrics::histogram!("bridle_batch_requests").record(flight.batch.size.requests as f64);
        self.batch_delay
            .record_batch(flight.batch.size, replica.queue.len() + self.next.size.requests);
        flight.batch.answer();
    }

    /// Evaluates queued requests, as far as they fit into the next batch.
    async fn collect(&mut self) {
        // The queue gives at least one request, however large: a full batch must not take
        // it.
        if !self.next.has_room() {
            return;
        }
        let mut room = self.next.room();
        if self.replica.queue.quota().left() == 0 {
            // Batches under way give their memory back as they land. Without such a
            // batch, the queue gives back its own memory, request by request.
            if !self.in_flight.is_empty() || !self.next.is_empty() {
                return;
            }
            room.requests = 1;
        }
        let mut waiting = self.replica.queue.take(room);
        if waiting.is_empty() {
            return;
        }
        if let Err(error) = self.ensure_leadership().await {
            return refuse(waiting.into_iter().map(|waiting| waiting.answer), &error);
        }
        // Requests that only read (or watch) go first: all queued requests are
        // concurrent. Few watches then fall behind a write that shares their stripe.
        waiting.sort_by_key(|waiting| waiting.writes);
        let evaluated =
            match reads::are_long(&self.replica, waiting.iter().map(|waiting| &waiting.request)) {
                true => cluster::blocking::block_in_place(|| self.evaluate(&waiting)),
                false => self.evaluate(&waiting),
            };
        // After a fault no request goes back to the queue: all of them get the fault.
        let left = waiting.split_off(*evaluated.as_ref().unwrap_or(&waiting.len()));
        for waiting in waiting {
            self.next.size.add(&waiting);
            self.next.answers.push(waiting.answer);
        }
        match evaluated {
            Ok(_) => self.replica.queue.put_back(left),
            Err(fault) => std::mem::take(&mut self.next).refuse(&fault),
        }
    }

    /// Acquires a leadership to evaluate under, with everything of earlier terms applied,
    /// unless there is one.
    async fn ensure_leadership(&mut self) -> Result<(), CallError> {
        self.end_leadership_if_over();
        if self.leadership.is_some() {
            return Ok(());
        }
        if !self.in_flight.is_empty() {
            // The next leader commits the batches of the last leadership, or they are
            // lost. Until their outcome is known, an evaluation could miss a committed
            // write.
            return Err(leadership_lost());
        }
        let leadership = self.replica.acquire_leadership().await?;
        // Writes that are not seen here, those of other leaders, may have changed any
        // row: every earlier watch counts as touched.
        self.stripes.touch_all();
        self.link =
            BatchDependency { term: leadership.term(), chain: self.link.chain + 1, position: 0 };
        self.leadership = Some(leadership);
        Ok(())
    }

    /// Evaluates requests on top of everything in flight and of the next batch, until
    /// that batch has no more room. Returns the number of requests evaluated.
    fn evaluate(&mut self, waiting: &[QueuedRequest]) -> Result<usize, CallError> {
        let Executor { replica, in_flight, next, stripes, link, is_default_ttl_tentative, .. } =
            self;
        let state = ReadView::for_executor(replica);
        let (stamp, rules) = (replica.clock.now(), replica.rules());
        next.stamp_ms = stamp.now_ms;
        let mut in_flight = in_flight.iter().map(|flight| &flight.batch.edits);
        let evaluated = on_top_of(&mut in_flight, &state, &mut |view| {
            let mut evaluation = Evaluation {
                replica,
                state: &state,
                view,
                stamp,
                rules,
                term: link.term,
                stripes,
                is_default_ttl_tentative: &mut *is_default_ttl_tentative,
            };
            let mut evaluated = 0;
            for waiting in waiting.chunks(PREFETCH_MAX) {
                let keys = waiting
                    .iter()
                    .flat_map(|waiting| &waiting.request.ops)
                    .filter_map(Op::first_key);
                replica
                    .row_cache
                    .prefetch(&replica.cache_scope, keys.map(|key| key::position(key)));
                for waiting in waiting {
                    if next.edits.bytes() >= BATCH_BYTES_MAX || next.answer_bytes >= ANSWERS_BYTES {
                        return Ok(evaluated);
                    }
                    let outcome = match evaluation.request(&waiting.request, next) {
                        Ok(response) => Ok(response),
                        Err(RequestError::OutOfMemory) => Err(CallError::OutOfMemory),
                        Err(RequestError::Fault(fault)) => return Err(fault),
                    };
                    next.outcomes.push(outcome);
                    evaluated += 1;
                }
            }
            Ok(evaluated)
        });
        next.reserve(replica.queue.quota());
        next.observed_expiry_ms = next.observed_expiry_ms.max(state.observed_expiry_ms());
        evaluated
    }

    /// Proposes the next batch when it is due.
    async fn propose_next(&mut self) {
        let size = self.next.size;
        let is_worth_it = |first: &InFlight| {
            size.requests >= first.batch.size.requests && size.ops >= FULL_OPS
                || !self.next.has_room()
        };
        let is_full = self.in_flight.len() >= PIPELINE_DEPTH
            || (self.link.position >= CHAIN_PLACES_MAX && !self.in_flight.is_empty());
        if self.next.is_empty() || is_full || !self.in_flight.front().is_none_or(is_worth_it) {
            return;
        }
        let batch = std::mem::take(&mut self.next);
        let proposed = match self.propose(&batch).await {
            Ok(proposed) => proposed,
            Err(error) => {
                // Nothing was proposed: batches in flight are not affected.
                let mut batch = batch;
                return batch.refuse(&error);
            }
        };
        let is_proposed = proposed.is_some();
        self.in_flight.push_back(InFlight { batch, proposed, began: Instant::now() });
        self.replica.set_in_flight(self.in_flight.len());
        // Without an entry and without a batch before it, its outcome is known: it is
        // answered at once.
        if !is_proposed && self.in_flight.len() == 1 {
            self.await_oldest().await;
        }
    }

    /// True when the stamps of the batches before it cover every time that the batch took
    /// for past.
    fn is_time_covered(&self, batch: &Batch) -> bool {
        let mut stamps = self
            .in_flight
            .iter()
            .filter(|flight| flight.proposed.is_some())
            .map(|flight| flight.batch.stamp_ms);
        batch.observed_expiry_ms <= self.replica.clock.committed_ms()
            || stamps.any(|stamp_ms| batch.observed_expiry_ms <= stamp_ms)
    }

    /// Hands a batch to Raft; `None` for a batch that changes nothing, which is answered
    /// as soon as the batches before it are.
    async fn propose(&mut self, batch: &Batch) -> Result<Option<Proposed>, CallError> {
        let replica = self.replica.clone();
        let Some(leadership) = &self.leadership else { return Err(leadership_lost()) };
        // A batch without edits gets an entry when it took a time for past that no stamp
        // covers: under the next leader's clock, a row that a client saw expired could
        // live again.
        if batch.edits.is_empty() && self.is_time_covered(batch) {
            // Raft checks with an entry that this replica leads in the term of the
            // evaluation. Without an entry the lease must show it: the reads could miss
            // another leader's write.
            let term = match replica.lease.term() {
                Some(term) => term,
                None => replica.renew_lease().await?,
            };
            let is_covered = term == leadership.term() || mutants::breaks(Rule::Term);
            return if is_covered { Ok(None) } else { Err(leadership_lost()) };
        }
        replica.writable()?;
        if self.in_flight.is_empty() && self.link.position >= CHAIN_PLACES_MAX {
            self.link = BatchDependency { chain: self.link.chain + 1, position: 0, ..self.link };
        }
        let payload = batch::encode(&batch.edits, batch.stamp_ms, self.link);
        self.link.position += 1;
        metrics::histogram!("bridle_batch_bytes").record(payload.len() as f64);
        // Before the entry is submitted: as soon as it is applied, a reader must not find
        // the old records in the row cache.
        let ticket = replica.row_cache.begin_write(&replica.cache_scope, &batch.edits);
        self.stripes.touch(&batch.edits);
        // Its edits lack the rows that it wrote before the clear, so that all stripes are
        // touched.
        if batch.loses_own_writes {
            self.stripes.touch_all();
        }
        let committed: CommitFuture = match replica.submit(leadership, payload).await {
            Ok(outcome) => Box::pin(outcome),
            // The group has stopped; the flight reports this as its outcome.
            Err(error) => Box::pin(async move { Err(error) }),
        };
        Ok(Some(Proposed { committed, ticket }))
    }

    /// Fails the requests that a full disk or a lost quorum holds up. A disk that is
    /// suddenly full holds up entries that are in the log already, and so does a quorum
    /// out of reach. Requests that wait behind them are refused, and those in flight get
    /// an unknown outcome: no client waits until there is space or a quorum again.
    async fn fail_if_stuck(&mut self) {
        if self.in_flight.front().is_none_or(|first| first.began.elapsed() < STUCK_CHECK_INTERVAL) {
            return;
        }
        // The next check would be too late for batches whose time is up before it.
        let unknown_after = self.replica.unknown_after.saturating_sub(STUCK_CHECK_INTERVAL);
        let (refusal, unknown, timeout) = match self.replica.writable() {
            Err(CallError::ReadOnly(why)) => (
                CallError::ReadOnly(why.clone()),
                format!("it takes effect when there is space again: {why}"),
                STUCK_CHECK_INTERVAL,
            ),
            _ => match self.replica.renew_lease().await {
                // A quorum confirms the leadership: the batch is slow, not stuck.
                Ok(_) => return,
                Err(error) => (
                    CallError::NoLeader(error.to_string()),
                    format!("no quorum has confirmed it: {error}"),
                    unknown_after,
                ),
            },
        };
        for flight in self.in_flight.iter_mut().filter(|flight| flight.began.elapsed() >= timeout) {
            flight.batch.refuse(&CallError::Unknown(unknown.clone()));
        }
        std::mem::take(&mut self.next).refuse(&refusal);
        self.replica.queue.refuse(&refusal);
    }
}

/// The error of requests that are neither proposed nor answered.
fn leadership_lost() -> CallError {
    CallError::NoLeader("leadership was lost".to_owned())
}

/// Calls `then` with the view of all edits, oldest first, on top of `view`.
fn on_top_of<'e, R>(
    edits: &mut dyn Iterator<Item = &'e Edits>,
    view: &dyn View,
    then: &mut dyn FnMut(&dyn View) -> R,
) -> R {
    match edits.next() {
        Some(first) => on_top_of(edits, &Overlay { edits: first, view }, then),
        None => then(view),
    }
}

/// The context in which requests are evaluated.
struct Evaluation<'a> {
    replica: &'a Replica,
    state: &'a ReadView<'a>,
    view: &'a dyn View,
    stamp: Stamp,
    rules: Rules,
    term: u64,
    stripes: &'a mut Stripes,
    is_default_ttl_tentative: &'a mut bool,
}

/// The reason why a request has no response of its own.
enum RequestError {
    /// Its answers do not fit the node's memory now. None of its ops is done.
    OutOfMemory,
    /// The applied state can't be read.
    Fault(CallError),
}

impl Evaluation<'_> {
    /// Evaluates the commands of a request, at least the first; commands behind large
    /// answers are left out.
    fn request(&mut self, request: &Request, batch: &mut Batch) -> Result<Response, RequestError> {
        for watched in &request.watched {
            if !self.is_untouched(watched, batch).map_err(RequestError::Fault)? {
                return Ok(Response::Touched);
            }
        }
        let edits_max = batch.edits.bytes() + REQUEST_EDITS_MAX;
        let mut outcomes = Vec::with_capacity(request.ops.len());
        for ops in request.commands() {
            let done = outcomes.len();
            if done > 0 && batch.answer_bytes >= ANSWERS_BYTES {
                break;
            }
            // After a clear, the edits lack the rows that the same batch wrote before it.
            batch.loses_own_writes |= ops.contains(&Op::Partition(PartitionOp::Clear))
                && (ops.len() > 1 || !batch.edits.is_empty());
            if batch.edits.bytes() >= edits_max && ops.iter().any(Op::is_write) {
                outcomes.extend(ops.iter().map(|_| Err(Refusal::TooMuch)));
            } else if let [op] = ops {
                let step = matches!(op, Op::Partition(PartitionOp::ExpireDue { .. }))
                    .then(|| self.state.begin_step());
                outcomes.push(self.op(op, &mut batch.edits).map_err(RequestError::Fault)?);
                if matches!(op, Op::Partition(PartitionOp::SetDefaultTtl { .. })) {
                    self.apply_default_ttl(batch).map_err(RequestError::Fault)?;
                }
                if let Some(began) = step {
                    self.replica.expiry.record_step(self.state.since(began));
                }
            } else {
                match self.all_or_nothing(ops, &mut batch.edits) {
                    Ok(all) => outcomes.extend(all),
                    // The commands before it are answered, and their answers give back
                    // the memory that they take.
                    Err(RequestError::OutOfMemory) if done > 0 => break,
                    Err(undone) => return Err(undone),
                }
            }
            let mut bytes: usize = outcomes[done..].iter().flatten().map(Answer::bytes).sum();
            // Only a read's answer may be dropped: a write has left its edits in the
            // batch.
            if let [op] = ops
                && !op.is_write()
            {
                if bytes > self.answers_max() {
                    outcomes[done] = Err(Refusal::AnswerTooLarge);
                    bytes = 0;
                } else if !self.fits(bytes) {
                    outcomes.truncate(done);
                    if done == 0 {
                        return Err(RequestError::OutOfMemory);
                    }
                    break;
                }
            }
            batch.answer_bytes += bytes;
            if bytes > LARGE_ANSWER_BYTES {
                batch.reserve(self.replica.queue.quota());
            }
        }
        Ok(Response::Done(outcomes))
    }

    /// True when the node has memory for the answers of one command.
    fn fits(&self, bytes: usize) -> bool {
        bytes <= ANSWERS_BYTES || bytes <= self.replica.queue.quota().left()
    }

    /// Puts the `default_ttl` that the batch sets into force for the ops that follow, one
    /// millisecond later: older rows count from the batch's own stamp. Should the batch
    /// fail, no answer has relied on the rule: such an answer is committed behind the
    /// batch.
    fn apply_default_ttl(&mut self, batch: &mut Batch) -> Result<(), CallError> {
        let Some(Some(record)) = batch.edits.get(Family::State, key::DEFAULT_TTL) else {
            return Ok(());
        };
        let rule = DefaultTtl::decode(record).map_err(|fault| self.replica.fault(fault))?;
        self.replica.apply_default_ttl(&rule);
        *self.is_default_ttl_tentative = true;
        self.rules = self.replica.rules();
        self.stamp = self.replica.clock.after(self.stamp);
        batch.stamp_ms = self.stamp.now_ms;
        Ok(())
    }

    fn op(&mut self, op: &Op, edits: &mut Edits) -> Result<Result<Answer, Refusal>, CallError> {
        let mut tx = Tx { view: self.view, edits, stamp: self.stamp, rules: self.rules };
        self.on(op, &mut tx).map_err(|fault| self.replica.fault(fault))
    }

    fn on(&mut self, op: &Op, tx: &mut Tx<'_>) -> Result<Result<Answer, Refusal>, Fault> {
        match eval::eval(op, tx) {
            Ok(Answer::WatchToken(watched)) => Ok(Ok(Answer::WatchToken(self.watch(watched)))),
            Ok(answer) => Ok(Ok(answer)),
            Err(EvalError::Refused(refusal)) => Ok(Err(refusal)),
            Err(EvalError::Fault(fault)) => Err(fault),
        }
    }

    /// Evaluates ops of which all are done, or none when they are too much.
    fn all_or_nothing(
        &mut self,
        ops: &[Op],
        edits: &mut Edits,
    ) -> Result<Vec<Result<Answer, Refusal>>, RequestError> {
        let bytes_max = self.rules.edits_bytes_max().unwrap_or(usize::MAX);
        let answers_max = self.answers_max();
        let mut is_out_of_memory = false;
        let mut tx = Tx { view: self.view, edits, stamp: self.stamp, rules: self.rules };
        let done = eval::eval_bounded(bytes_max, Refusal::TooMuch, &mut tx, |tx| {
            let (mut done, mut bytes) = (Vec::with_capacity(ops.len()), 0);
            for op in ops {
                let outcome = self.on(op, tx)?;
                bytes += outcome.as_ref().map_or(0, Answer::bytes);
                is_out_of_memory = !self.fits(bytes);
                if bytes > answers_max || is_out_of_memory {
                    return Err(Refusal::AnswerTooLarge.into());
                }
                done.push(outcome);
            }
            Ok(done)
        });
        match done {
            Ok(done) => Ok(done),
            Err(EvalError::Refused(_)) if is_out_of_memory => Err(RequestError::OutOfMemory),
            Err(EvalError::Refused(refusal)) => Ok(ops.iter().map(|_| Err(refusal)).collect()),
            Err(EvalError::Fault(fault)) => Err(RequestError::Fault(self.replica.fault(fault))),
        }
    }

    /// The largest answer of one command, or of ops that are all done or none, bytes. At
    /// most half of the node's memory for requests: an answer that is refused for want of
    /// memory fits at another time.
    fn answers_max(&self) -> usize {
        let of_table =
            if self.rules.answer_bytes_max == 0 { usize::MAX } else { self.rules.answer_bytes_max };
        of_table.min(self.replica.queue.quota().bytes_max() / 2)
    }

    fn watch(&mut self, mut watched: WatchToken) -> WatchToken {
        watched.term = self.term;
        watched.touched = self.stripes.watch(&key::head(&watched.key));
        watched
    }

    /// True when the watched row is untouched. Batches in flight have touched their
    /// stripes when they were proposed.
    fn is_untouched(&self, watched: &WatchToken, batch: &Batch) -> Result<bool, CallError> {
        // No leader gave this token: the row's table did not exist when it was watched.
        if watched.term == 0 {
            return self.was_never_written(&batch.edits);
        }
        let head_key = key::head(&watched.key);
        Ok(watched.term == self.term
            && !batch.loses_own_writes
            && self.stripes.last_touch(&head_key, watched.existed) <= watched.touched
            && !stripes::changes(&batch.edits, &head_key, watched.existed)
            && watched.expires_at_ms.is_none_or(|at| at > self.stamp.now_ms))
    }

    /// True when no row of the partition has ever been written.
    fn was_never_written(&self, edits: &Edits) -> Result<bool, CallError> {
        let count = Overlay { edits, view: self.view }.get(Family::State, key::ROWS);
        Ok(count.map_err(|fault| self.replica.fault(fault))?.is_none())
    }
}
