//! Many who ask the same at one time share one question.
//!
//! An answer must be of a moment after its asker came, and a question that was under way
//! by then may be answered out of an earlier one. So who comes waits for that one to end
//! and shares the next, which is put once for all who wait: whatever the crowd, there is
//! one question about a thing at a time.
//!
//! # Invariants
//! - An answer is to a question that was put after its asker came
//!   (`nobody_is_told_of_a_moment_before_it_came`).
//! - Whoever puts a question may leave: the next in line puts it again
//!   (`who_leaves_holds_nobody_up`).
//! - Nothing is kept of what nobody asks about
//!   (`nothing_is_kept_of_what_nobody_asks_about`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Questions that are under way, by what they are about.
pub(crate) struct Shared<T> {
    lines: Mutex<HashMap<String, Weak<Line<T>>>>,
}

/// Those who ask about one thing.
struct Line<T> {
    /// Questions put so far.
    put: AtomicU64,
    /// The last answer, with the number of its question. Locked while a question is under
    /// way.
    last: tokio::sync::Mutex<Option<(u64, T)>>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared { lines: Mutex::default() }
    }
}

impl<T: Clone> Shared<T> {
    /// The answer to `question`, or to one that somebody else has put about the same
    /// since this was called.
    pub(crate) async fn ask(&self, about: &str, question: impl Future<Output = T>) -> T {
        let line = self.line(about);
        let before = line.put.load(Ordering::SeqCst);
        let mut last = line.last.lock().await;
        if let Some((number, answer)) = &*last
            && *number > before
        {
            return answer.clone();
        }
        let number = line.put.fetch_add(1, Ordering::SeqCst) + 1;
        let answer = question.await;
        *last = Some((number, answer.clone()));
        answer
    }

    fn line(&self, about: &str) -> Arc<Line<T>> {
        let mut lines = self.lines.lock();
        if let Some(line) = lines.get(about).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let line = Arc::new(Line { put: AtomicU64::new(0), last: tokio::sync::Mutex::new(None) });
        lines.insert(about.to_owned(), Arc::downgrade(&line));
        line
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn nobody_is_told_of_a_moment_before_it_came() {
        let shared = Shared::default();
        let (answer, answered) = oneshot::channel();
        let mut first = Box::pin(shared.ask("a", async { answered.await.unwrap() }));
        assert_eq!(first.as_mut().now_or_never(), None);
        // They come while the first question is under way, which may be answered as it
        // was before they came.
        let mut second = Box::pin(shared.ask("a", async { 2 }));
        let mut third = Box::pin(shared.ask("a", async { 3 }));
        assert_eq!((second.as_mut().now_or_never(), third.as_mut().now_or_never()), (None, None));
        assert_eq!(
            shared.ask("b", async { 4 }).await,
            4,
            "what others ask about is in nobody's way"
        );
        answer.send(1).unwrap();
        assert_eq!(first.await, 1);
        assert_eq!((second.await, third.await), (2, 2), "one question for both");
        assert_eq!(shared.ask("a", async { 5 }).await, 5, "an answer is not kept");
    }

    #[tokio::test]
    async fn who_leaves_holds_nobody_up() {
        let shared = Shared::default();
        let mut first = Box::pin(shared.ask("a", std::future::pending()));
        assert_eq!(first.as_mut().now_or_never(), None);
        let mut second = Box::pin(shared.ask("a", async { 2 }));
        assert_eq!(second.as_mut().now_or_never(), None);
        drop(first);
        assert_eq!(second.await, 2);
    }

    #[tokio::test]
    async fn nothing_is_kept_of_what_nobody_asks_about() {
        let shared = Shared::default();
        for n in 0..100 {
            assert_eq!(shared.ask(&n.to_string(), async { n }).await, n);
        }
        let mut left = Box::pin(shared.ask("left", std::future::pending()));
        assert_eq!(left.as_mut().now_or_never(), None);
        assert_eq!(shared.lines.lock().len(), 1, "the one that is under way");
    }
}
