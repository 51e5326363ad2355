//! The single writer of a partition: gathers requests, evaluates them as one batch, proposes one entry, answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::CallError;
use parking_lot::Mutex;
use row::edits::Edits;
use row::eval::Failed;
use row::op::{Answer, Op, Refusal, Request, Response, Watched};
use row::view::{Stamp, Tx};
use row::{Family, eval, key, value};
use tokio::sync::{Notify, oneshot};

use crate::pace::Pace;
use crate::reads::Applied;
use crate::replica::{Leadership, ProposeError, Replica};
use crate::stripes::{self, Stripes};
use crate::{batch, clock, expiry};

/// How much one batch may gather: enough to fill an fsync, little enough to keep the first in it from waiting long.
const BATCH_OPS_MAX: usize = 20_000;
const BATCH_BYTES_MAX: usize = 4 << 20;

/// What may wait for one partition.
const QUEUE_REQUESTS_MAX: usize = 100_000;
const QUEUE_BYTES_MAX: usize = 256 << 20;

/// How often a batch that is under way is looked at: is it the disk that it waits for?
const STUCK_PERIOD: Duration = Duration::from_millis(500);

/// The answer, or why there is none.
pub(crate) type Outcome = Result<Response, CallError>;

struct Waiting {
    request: Request,
    writes: bool,
    bytes: usize,
    answer: oneshot::Sender<Outcome>,
}

/// Requests waiting for the executor of one partition.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Line>,
    filled: Notify,
}

#[derive(Default)]
struct Line {
    requests: VecDeque<Waiting>,
    bytes: usize,
    /// Why nothing more is taken: the replica has stopped.
    closed: Option<CallError>,
}

impl Queue {
    /// Puts a request in line; the receiver gets its outcome.
    pub(crate) fn push(&self, request: Request) -> Result<oneshot::Receiver<Outcome>, CallError> {
        let bytes = request.ops.iter().map(Op::bytes).sum();
        let writes = request.ops.iter().any(Op::is_write);
        let (answer, outcome) = oneshot::channel();
        {
            let mut line = self.waiting.lock();
            if let Some(why) = &line.closed {
                return Err(why.clone());
            }
            // One request always fits, however large.
            if line.requests.len() >= QUEUE_REQUESTS_MAX || (line.bytes > 0 && line.bytes + bytes > QUEUE_BYTES_MAX) {
                return Err(CallError::Overloaded);
            }
            line.bytes += bytes;
            line.requests.push_back(Waiting { request, writes, bytes, answer });
        }
        self.filled.notify_one();
        Ok(outcome)
    }

    /// Refuses everything from now on, and those in line too.
    pub(crate) fn close(&self, why: &CallError) {
        self.waiting.lock().closed.get_or_insert_with(|| why.clone());
        self.refuse(why);
        self.filled.notify_one();
    }

    /// Why nothing is taken any more, if so.
    pub(crate) fn closed(&self) -> Option<CallError> {
        self.waiting.lock().closed.clone()
    }

    /// Refuses those in line.
    fn refuse(&self, why: &CallError) {
        let left = {
            let mut line = self.waiting.lock();
            line.bytes = 0;
            std::mem::take(&mut line.requests)
        };
        for waiting in left {
            // A caller that went away is not missed.
            let _ = waiting.answer.send(Err(why.clone()));
        }
    }

    /// Waits until something waits; false: closed.
    async fn filled(&self) -> bool {
        loop {
            {
                let line = self.waiting.lock();
                if line.closed.is_some() {
                    return false;
                }
                if !line.requests.is_empty() {
                    return true;
                }
            }
            self.filled.notified().await;
        }
    }

    /// How many requests wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.lock().requests.len()
    }
}

impl Line {
    fn take_batch(&mut self) -> Vec<Waiting> {
        let (mut ops, mut bytes, mut count) = (0, 0, 0);
        for waiting in &self.requests {
            if count > 0 && (ops + waiting.request.ops.len() > BATCH_OPS_MAX || bytes + waiting.bytes > BATCH_BYTES_MAX) {
                break;
            }
            ops += waiting.request.ops.len();
            bytes += waiting.bytes;
            count += 1;
        }
        self.bytes -= bytes;
        self.requests.drain(..count).collect()
    }
}

/// Runs until the replica stops.
pub(crate) async fn run(replica: Arc<Replica>) {
    let mut executor = Executor { replica, leadership: None, stripes: Stripes::default(), pace: Pace::default() };
    while executor.replica.queue.filled().await {
        executor.pace.gather(&executor.replica.queue).await;
        let waiting = executor.replica.queue.waiting.lock().take_batch();
        let requests = waiting.len();
        executor.batch(waiting).await;
        executor.pace.answered(requests, executor.replica.queue.len());
    }
}

/// A disk that is suddenly full holds up what is in the log already. Its clients are told so, and those in line are refused: neither is to wait
/// until there is space again.
fn tell_if_full(replica: &Replica, answers: &mut Vec<oneshot::Sender<Outcome>>) {
    let Err(CallError::ReadOnly(why)) = replica.writable() else { return };
    for answer in answers.drain(..) {
        // A caller that went away is not missed.
        let _ = answer.send(Err(CallError::Unknown(format!("it takes effect when there is space again: {why}"))));
    }
    replica.queue.refuse(&CallError::ReadOnly(why));
}

struct Executor {
    replica: Arc<Replica>,
    /// Under which term batches are evaluated; `None` = to be asked for.
    leadership: Option<Leadership>,
    stripes: Stripes,
    pace: Pace,
}

/// A batch evaluated and not yet proposed.
struct Evaluated {
    edits: Edits,
    responses: Vec<Response>,
}

impl Executor {
    /// Those that only read (or watch) go first: all in a batch are concurrent, and so no watch falls behind a write that shares its number.
    async fn batch(&mut self, mut waiting: Vec<Waiting>) {
        waiting.sort_by_key(|w| w.writes);
        let (requests, mut answers): (Vec<Request>, Vec<_>) = waiting.into_iter().map(|w| (w.request, w.answer)).unzip();
        let replica = self.replica.clone();
        let carrying = self.carry_out(&requests);
        tokio::pin!(carrying);
        let outcome = loop {
            match tokio::time::timeout(STUCK_PERIOD, &mut carrying).await {
                Ok(outcome) => break outcome,
                Err(_) => tell_if_full(&replica, &mut answers),
            }
        };
        let outcomes = match outcome {
            Ok(responses) => responses.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); answers.len()],
        };
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // A caller that went away is not missed.
            let _ = answer.send(outcome);
        }
    }

    /// Evaluates, proposes and waits for application.
    async fn carry_out(&mut self, requests: &[Request]) -> Result<Vec<Response>, CallError> {
        let leadership = self.lead().await?;
        let stamp = self.replica.clock.write();
        let Evaluated { mut edits, responses } = self.evaluate(requests, stamp, leadership.term())?;
        if !edits.is_empty() {
            self.replica.writable()?;
            edits.put(Family::State, clock::STAMP, value::encode_counter(stamp.now_ms));
            let payload = batch::encode(&edits);
            metrics::histogram!("bridle_batch_bytes").record(payload.len() as f64);
            self.replica.heads.begin(&self.replica.owner, &edits);
            let began = Instant::now();
            let proposed = self.replica.propose(&leadership, payload).await;
            self.pace.took(began.elapsed());
            self.replica.heads.end(&self.replica.owner, &edits, proposed.is_ok());
            if let Err(error) = proposed {
                self.leadership = None;
                return Err(match error {
                    ProposeError::NotProposed(why) => CallError::NoLeader(why),
                    ProposeError::Unknown(why) => CallError::Unknown(why),
                });
            }
            self.stripes.touch(&edits);
            self.replica.expiry.note(expiry::earliest(&edits));
        } else if !self.replica.lease.is_valid() {
            // What was only read is only answered by a leader.
            self.replica.confirm_lease().await?;
        }
        self.after_expiry_step(requests, &responses)?;
        metrics::histogram!("bridle_batch_requests").record(requests.len() as f64);
        Ok(responses)
    }

    /// A step of the expiry cycle was among the requests: when is the next one due?
    fn after_expiry_step(&self, requests: &[Request], responses: &[Response]) -> Result<(), CallError> {
        for (request, response) in requests.iter().zip(responses) {
            let ([Op::ExpireDue { cursor, .. }], Response::Done(outcomes)) = (request.ops.as_slice(), response) else { continue };
            if let Some(Ok(Answer::Page { next, .. })) = outcomes.first() {
                self.replica.expiry.stepped(*cursor, *next, self.replica.next_due_ms()?);
            }
        }
        Ok(())
    }

    /// The leadership to evaluate under, with everything of earlier terms applied.
    async fn lead(&mut self) -> Result<Leadership, CallError> {
        if let Some(leadership) = &self.leadership {
            return Ok(leadership.clone());
        }
        let leadership = self.replica.establish().await?;
        self.replica.restore_clock()?;
        self.stripes.forget();
        self.leadership = Some(leadership.clone());
        Ok(leadership)
    }

    fn evaluate(&mut self, requests: &[Request], stamp: Stamp, term: u64) -> Result<Evaluated, CallError> {
        let replica = self.replica.clone();
        let view = Applied::at_rest(&replica);
        let rules = self.replica.rules();
        let mut edits = Edits::default();
        let mut responses = Vec::with_capacity(requests.len());
        for request in requests {
            if !request.watched.iter().all(|watched| self.is_untouched(watched, &edits, stamp, term)) {
                responses.push(Response::Touched);
                continue;
            }
            let mut outcomes = Vec::with_capacity(request.ops.len());
            for op in &request.ops {
                let mut tx = Tx { view: &view, edits: &mut edits, stamp, rules };
                outcomes.push(self.evaluate_op(op, &mut tx, term)?);
            }
            responses.push(Response::Done(outcomes));
        }
        Ok(Evaluated { edits, responses })
    }

    fn evaluate_op(&mut self, op: &Op, tx: &mut Tx<'_>, term: u64) -> Result<Result<Answer, Refusal>, CallError> {
        match eval::eval(op, tx) {
            Ok(Answer::Watched(watched)) => Ok(Ok(Answer::Watched(self.watch(watched, term)))),
            Ok(answer) => Ok(Ok(answer)),
            Err(Failed::Refused(refusal)) => Ok(Err(refusal)),
            Err(Failed::Fault(fault)) => Err(self.replica.fault(fault)),
        }
    }

    fn watch(&mut self, mut watched: Watched, term: u64) -> Watched {
        let head_key = key::head(&watched.key);
        watched.term = term;
        watched.touched = self.stripes.watch(&head_key);
        watched
    }

    fn is_untouched(&self, watched: &Watched, edits: &Edits, stamp: Stamp, term: u64) -> bool {
        let head_key = key::head(&watched.key);
        watched.term == term
            && self.stripes.last_touch(&head_key) <= watched.touched
            && !stripes::changes(edits, &head_key)
            && watched.expires_at_ms.is_none_or(|at| at > stamp.now_ms)
    }
}
