//! The queue of requests for the executor of one partition.

use std::collections::VecDeque;
use std::sync::Arc;

use cluster::CallError;
use parking_lot::Mutex;
use row::op::{Op, Request, Response};
use tokio::sync::{Notify, oneshot};

use crate::quota::{Quota, Reservation};

/// Bounds of one partition's queue.
const REQUESTS_MAX: usize = 100_000;
const BYTES_MAX: usize = 256 << 20;

/// A request's response, or the error that it gets instead.
pub(crate) type Outcome = Result<Response, CallError>;

/// A queued request, and the sender of its outcome.
pub(crate) struct QueuedRequest {
    pub(crate) request: Request,
    pub(crate) writes: bool,
    pub(crate) bytes: usize,
    pub(crate) answer: oneshot::Sender<Outcome>,
}

/// A number of requests, ops and bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BatchSize {
    pub(crate) requests: usize,
    pub(crate) ops: usize,
    pub(crate) bytes: usize,
}

/// Requests waiting for the executor of one partition.
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    queued: Notify,
    quota: Arc<Quota>,
}

struct QueueState {
    waiting: VecDeque<QueuedRequest>,
    size: BatchSize,
    /// The node's memory that queued requests take.
    reservation: Reservation,
    /// The executor sleeps until this many requests or ops are queued.
    wake_at: Option<BatchSize>,
    /// The reason why the queue takes no more requests: the replica has stopped.
    closed: Option<CallError>,
}

impl Queue {
    /// A queue that takes its memory from the node's quota.
    pub(crate) fn new(quota: Arc<Quota>) -> Queue {
        let reservation = quota.reservation();
        let state = QueueState {
            waiting: VecDeque::new(),
            size: BatchSize::default(),
            reservation,
            wake_at: None,
            closed: None,
        };
        Queue { state: Mutex::new(state), queued: Notify::new(), quota }
    }

    /// The memory that requests and batches of all partitions take.
    pub(crate) fn quota(&self) -> &Arc<Quota> {
        &self.quota
    }

    /// Queues a request; the receiver gets its outcome.
    pub(crate) fn push(&self, request: Request) -> Result<oneshot::Receiver<Outcome>, CallError> {
        let bytes = size_of::<QueuedRequest>() + request.memory_bytes();
        let writes = request.ops.iter().any(Op::is_write);
        let (answer, outcome) = oneshot::channel();
        let mut state = self.state.lock();
        if let Some(why) = &state.closed {
            return Err(why.clone());
        }
        // An empty queue has room for any one request, however large.
        if state.waiting.len() >= REQUESTS_MAX
            || (state.size.bytes > 0 && state.size.bytes + bytes > BYTES_MAX)
        {
            return Err(CallError::Overloaded);
        }
        let held = state.size.bytes + bytes;
        if !state.reservation.try_resize(held) {
            return Err(CallError::OutOfMemory);
        }
        let waiting = QueuedRequest { request, writes, bytes, answer };
        state.size.add(&waiting);
        state.waiting.push_back(waiting);
        let wakes = state.is_enough();
        if wakes {
            state.wake_at = None;
        }
        drop(state);
        if wakes {
            self.queued.notify_one();
        }
        Ok(outcome)
    }

    /// Refuses all requests from now on, and those that are queued.
    pub(crate) fn close(&self, why: &CallError) {
        self.state.lock().closed.get_or_insert_with(|| why.clone());
        self.refuse(why);
        self.queued.notify_one();
    }

    /// The reason why the queue is closed, if it is.
    pub(crate) fn closed(&self) -> Option<CallError> {
        self.state.lock().closed.clone()
    }

    /// Refuses the queued requests.
    pub(crate) fn refuse(&self, why: &CallError) {
        let left = {
            let mut state = self.state.lock();
            state.size = BatchSize::default();
            state.reservation.resize(0);
            std::mem::take(&mut state.waiting)
        };
        refuse(left.into_iter().map(|waiting| waiting.answer), why);
    }

    /// Waits until this many requests or ops are queued, or the queue is closed.
    pub(crate) async fn wait_until_queued(&self, requests: usize, ops: usize) {
        loop {
            {
                let mut state = self.state.lock();
                state.wake_at = Some(BatchSize { requests, ops, bytes: 0 });
                if state.closed.is_some() || state.is_enough() {
                    state.wake_at = None;
                    return;
                }
            }
            self.queued.notified().await;
        }
    }

    /// Takes requests from the front as long as they fit; the first one always does.
    pub(crate) fn take(&self, room: BatchSize) -> Vec<QueuedRequest> {
        let mut state = self.state.lock();
        let mut taken = BatchSize::default();
        for waiting in &state.waiting {
            let mut with = taken;
            with.add(waiting);
            if taken.requests > 0 && (with.ops > room.ops || with.bytes > room.bytes) {
                break;
            }
            taken = with;
        }
        state.size.requests -= taken.requests;
        state.size.ops -= taken.ops;
        state.size.bytes -= taken.bytes;
        let held = state.size.bytes;
        state.reservation.resize(held);
        state.waiting.drain(..taken.requests).collect()
    }

    /// Puts requests that were taken and not evaluated back to the front of the queue.
    pub(crate) fn put_back(&self, waiting: Vec<QueuedRequest>) {
        let mut state = self.state.lock();
        let Some(why) = state.closed.clone() else {
            waiting.into_iter().rev().for_each(|waiting| {
                state.size.add(&waiting);
                state.waiting.push_front(waiting);
            });
            let held = state.size.bytes;
            state.reservation.resize(held);
            return;
        };
        drop(state);
        refuse(waiting.into_iter().map(|waiting| waiting.answer), &why);
    }

    /// The number of queued requests.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

/// Answers requests with an error.
pub(crate) fn refuse(answers: impl Iterator<Item = oneshot::Sender<Outcome>>, why: &CallError) {
    for answer in answers {
        // A caller that has gone away needs no answer.
        let _ = answer.send(Err(why.clone()));
    }
}

impl QueueState {
    fn is_enough(&self) -> bool {
        self.wake_at.is_some_and(|enough| {
            self.size.requests >= enough.requests || self.size.ops >= enough.ops
        })
    }
}

impl BatchSize {
    /// Counts a request in.
    pub(crate) fn add(&mut self, waiting: &QueuedRequest) {
        self.requests += 1;
        self.ops += waiting.request.ops.len();
        self.bytes += waiting.bytes;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use row::StringOp;

    use super::*;

    const MIB: usize = 1 << 20;

    fn append(bytes: usize) -> Request {
        let op = Op::String(StringOp::Append {
            key: Bytes::from_static(b"k").into(),
            value: Bytes::from(vec![b'v'; bytes]),
        });
        Request { ops: vec![op], joined: Vec::new(), watched: Vec::new() }
    }

    fn reads(ops: usize) -> Request {
        Request {
            ops: vec![Op::String(StringOp::Get { key: Bytes::from_static(b"k").into() }); ops],
            joined: Vec::new(),
            watched: Vec::new(),
        }
    }

    #[test]
    fn all_queues_together_are_bounded() {
        let quota = Quota::new(16 * MIB);
        let queues: Vec<Queue> = (0..4).map(|_| Queue::new(quota.clone())).collect();
        let fill = |request: &dyn Fn() -> Request| {
            let mut outcomes = Vec::new();
            while let Ok(outcome) = queues[outcomes.len() % 4].push(request()) {
                outcomes.push(outcome);
            }
            outcomes
        };
        let outcomes = fill(&|| append(MIB));
        assert!((12..=16).contains(&outcomes.len()), "{}", outcomes.len());
        assert!(
            queues
                .iter()
                .all(|queue| matches!(queue.push(append(MIB)), Err(CallError::OutOfMemory)))
        );
        // Memory that one queue gives back is free for another.
        let taken = queues[0].take(BatchSize { requests: usize::MAX, ops: 1, bytes: usize::MAX });
        assert_eq!(taken.len(), 1);
        assert!(queues[3].push(append(MIB)).is_ok() && queues[0].push(append(MIB)).is_err());
        queues[0].put_back(taken);
        queues.iter().for_each(|queue| queue.refuse(&CallError::Overloaded));
        assert_eq!(quota.left(), 16 * MIB);
        // Ops that carry nothing take memory as well.
        let ops: usize = fill(&|| reads(1000)).len() * 1000;
        assert!(ops * size_of::<Op>() <= 16 * MIB && ops * size_of::<Op>() > 8 * MIB, "{ops} ops");
        drop(queues);
        assert_eq!(quota.left(), 16 * MIB);
    }
}
