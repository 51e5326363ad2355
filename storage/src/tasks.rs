//! Background tasks, which nobody waits for: a panic of one is told.
//!
//! tokio keeps a panic for whoever asks a task how it ended, and of these nobody does:
//! without a word a replica would follow its role no more, or nothing would expire until
//! the next start.

use std::any::Any;
use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;

/// The delay before a loop that panicked begins anew: the cause may still be there.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Runs a task on the runtime of the caller; should it panic, `panicked` is told with
/// what words, once all that it held is let go of.
pub(crate) fn spawn(
    task: impl Future<Output = ()> + Send + 'static,
    panicked: impl FnOnce(&str) + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Some(why) = outcome(task).await {
            panicked(&why);
        }
    })
}

/// Runs a loop on the runtime of the caller until it ends by itself. When it panics, that
/// is logged and counted, and it begins anew.
pub(crate) fn spawn_restarting<F>(
    name: &'static str,
    begin: impl Fn() -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        while let Some(why) = outcome(begin()).await {
            report_panic(name, &why);
            tokio::time::sleep(RESTART_DELAY).await;
        }
    })
}

/// Logs and counts a panic.
pub(crate) fn report_panic(name: &'static str, why: &str) {
    tracing::error!(task = name, why, "a background task panicked");
    metrics::counter!("bridle_task_panics_total", "task" => name).increment(1);
}

/// The words of its panic, if a task ended with one.
async fn outcome(task: impl Future<Output = ()> + Send + 'static) -> Option<String> {
    let error = tokio::spawn(task).await.err()?;
    error.is_panic().then(|| panic_message(error.into_panic().as_ref()).to_owned())
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_panic_of_a_task_is_reported() {
        let (told, heard) = std::sync::mpsc::channel();
        let report_panic = |told: &std::sync::mpsc::Sender<String>| {
            let told = told.clone();
            move |why: &str| told.send(why.to_owned()).expect("it is heard")
        };
        spawn(async {}, report_panic(&told)).await.expect("no panic");
        spawn(async { panic!("on {}", "purpose") }, report_panic(&told)).await.expect("no panic");
        spawn(async { std::panic::panic_any(7) }, report_panic(&told)).await.expect("no panic");
        drop(told);
        assert_eq!(heard.iter().collect::<Vec<_>>(), ["on purpose", "without a word"]);
    }

    #[tokio::test]
    async fn a_loop_that_panics_begins_anew() {
        let begun = Arc::new(AtomicU32::new(0));
        let counted = begun.clone();
        let begin = move || {
            let nth = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(nth > 0, "on purpose") }
        };
        spawn_restarting("test", begin).await.expect("no panic");
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }
}
