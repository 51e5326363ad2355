//! Many who ask the same at one time share one question.
//!
//! An answer must be of a moment after its asker came, and a question that was under way
//! by then may be answered out of an earlier one. So who comes waits for that one to end
//! and shares the next, which is put once for all who wait: whatever the crowd, there is
//! one question about a thing at a time.
//!
//! # Invariants
//! - An answer is to a question that was put after its asker came
//!   (`a_caller_gets_an_answer_of_after_its_call`).
//! - Whoever puts a question may leave: the next in line puts it again
//!   (`a_cancelled_caller_does_not_block_waiters`).
//! - Nothing is kept of what nobody asks about
//!   (`finished_calls_leave_nothing_behind`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Questions that are under way, by what they are about.
pub(crate) struct SingleFlight<T> {
    in_flight: Mutex<HashMap<String, Weak<InFlight<T>>>>,
}

/// Those who ask about one thing.
struct InFlight<T> {
    /// Questions put so far.
    calls_started: AtomicU64,
    /// The last answer, with the number of its question. Locked while a question is under
    /// way.
    last: tokio::sync::Mutex<Option<(u64, T)>>,
}

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        SingleFlight { in_flight: Mutex::default() }
    }
}

impl<T: Clone> SingleFlight<T> {
    /// The answer to `question`, or to one that somebody else has put about the same
    /// since this was called.
    pub(crate) async fn call(&self, about: &str, question: impl Future<Output = T>) -> T {
        let entry = self.entry(about);
        let before = entry.calls_started.load(Ordering::SeqCst);
        let mut last = entry.last.lock().await;
        if let Some((number, answer)) = &*last
            && *number > before
        {
            return answer.clone();
        }
        let number = entry.calls_started.fetch_add(1, Ordering::SeqCst) + 1;
        let answer = question.await;
        *last = Some((number, answer.clone()));
        answer
    }

    fn entry(&self, about: &str) -> Arc<InFlight<T>> {
        let mut in_flight = self.in_flight.lock();
        if let Some(entry) = in_flight.get(about).and_then(Weak::upgrade) {
            return entry;
        }
        in_flight.retain(|_, entry| entry.strong_count() > 0);
        let entry = Arc::new(InFlight {
            calls_started: AtomicU64::new(0),
            last: tokio::sync::Mutex::new(None),
        });
        in_flight.insert(about.to_owned(), Arc::downgrade(&entry));
        entry
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_caller_gets_an_answer_of_after_its_call() {
        let shared = SingleFlight::default();
        let (answer, answered) = oneshot::channel();
        let mut first = Box::pin(shared.call("a", async { answered.await.unwrap() }));
        assert_eq!(first.as_mut().now_or_never(), None);
        // They come while the first question is under way, which may be answered as it
        // was before they came.
        let mut second = Box::pin(shared.call("a", async { 2 }));
        let mut third = Box::pin(shared.call("a", async { 3 }));
        assert_eq!((second.as_mut().now_or_never(), third.as_mut().now_or_never()), (None, None));
        assert_eq!(
            shared.call("b", async { 4 }).await,
            4,
            "what others ask about is in nobody's way"
        );
        answer.send(1).unwrap();
        assert_eq!(first.await, 1);
        assert_eq!((second.await, third.await), (2, 2), "one question for both");
        assert_eq!(shared.call("a", async { 5 }).await, 5, "an answer is not kept");
    }

    #[tokio::test]
    async fn a_cancelled_caller_does_not_block_waiters() {
        let shared = SingleFlight::default();
        let mut first = Box::pin(shared.call("a", std::future::pending()));
        assert_eq!(first.as_mut().now_or_never(), None);
        let mut second = Box::pin(shared.call("a", async { 2 }));
        assert_eq!(second.as_mut().now_or_never(), None);
        drop(first);
        assert_eq!(second.await, 2);
    }

    #[tokio::test]
    async fn finished_calls_leave_nothing_behind() {
        let shared = SingleFlight::default();
        for n in 0..100 {
            assert_eq!(shared.call(&n.to_string(), async { n }).await, n);
        }
        let mut left = Box::pin(shared.call("left", std::future::pending()));
        assert_eq!(left.as_mut().now_or_never(), None);
        assert_eq!(shared.in_flight.lock().len(), 1, "the one that is under way");
    }
}
