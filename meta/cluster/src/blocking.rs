//! Work that computes for long, where a runtime's threads serve everybody.
//!
//! Each of these threads serves many clients, so nothing may compute on one for long: the
//! others, the links to other servers among them, would wait. Such work is done while
//! another thread takes over what the calling one serves ([`block_in_place`]). There is
//! no use in more of it at a time than there are cores, and harm to those who serve: so
//! it takes turns ([`acquire`]), and what takes very long gives others theirs in between
//! ([`yield_permit`]).

use std::cell::RefCell;
use std::pin::pin;
use std::sync::LazyLock;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinError;

/// From so many ns on, work is not done where others wait for it.
pub const LONG_WORK_NS: u64 = 2_000_000;

/// A turn is passed on after so long, if others wait; the clock is looked at once in so
/// many steps.
const PERMIT_HOLD_MAX: Duration = Duration::from_millis(10);
const STEPS_PER_CHECK: u32 = 256;

static PERMITS: LazyLock<Semaphore> = LazyLock::new(|| {
    Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from).max(2))
});

/// The right to compute for long, until it is dropped.
#[derive(Debug)]
pub struct ComputePermit(Option<SemaphorePermit<'static>>);

/// Waits for a permit: first come, first served.
pub async fn acquire() -> ComputePermit {
    // Nobody closes it.
    ComputePermit(PERMITS.acquire().await.ok())
}

impl ComputePermit {
    /// Lets the others that wait have theirs first. On a thread that may block.
    fn pass_on(&mut self) {
        self.0 = None;
        self.0 = Handle::current().block_on(PERMITS.acquire()).ok();
    }
}

/// The turn of this thread's work.
struct HeldPermit {
    permit: ComputePermit,
    since: Instant,
    steps: u32,
}

thread_local! {
    static HELD_PERMIT: RefCell<Option<HeldPermit>> = const { RefCell::new(None) };
}

/// Does work that takes long on a thread of its own, holding a permit ([`acquire`]). If
/// it may take very long, it is to [pass its permit on](yield_permit) at each of its
/// steps.
///
/// # Errors
/// It panicked, or the process ends.
pub async fn spawn<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, JoinError> {
    /// Gives the turn back, whatever becomes of the work.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            HELD_PERMIT.set(None);
        }
    }
    let permit = acquire().await;
    let block_in_place_with_permit = move || {
        HELD_PERMIT.set(Some(HeldPermit { permit, since: Instant::now(), steps: 0 }));
        let _end = End;
        work()
    };
    tokio::task::spawn_blocking(block_in_place_with_permit).await
}

/// A step of [spawned](spawn) work: it passes its turn on if it has had it for long.
/// Nothing happens to other work.
pub fn yield_permit() {
    HELD_PERMIT.with_borrow_mut(|taken| {
        let Some(HeldPermit { permit, since, steps }) = taken else { return };
        *steps += 1;
        if *steps % STEPS_PER_CHECK == 0 && since.elapsed() > PERMIT_HOLD_MAX {
            permit.pass_on();
            *since = Instant::now();
        }
    });
}

/// Does work that takes long, while another thread takes over what this one serves. (A
/// runtime of one thread, as tests have, is held up.)
pub fn block_in_place<R>(work: impl FnOnce() -> R) -> R {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// As [`block_in_place`], in a [`acquire`].
pub async fn block_in_place_with_permit<R>(work: impl FnOnce() -> R) -> R {
    let _turn = acquire().await;
    block_in_place(work)
}

/// Polls a future that may compute for long between two waits as [`block_in_place`] does
/// it.
pub async fn poll_in_place<R>(future: impl Future<Output = R>) -> R {
    let mut future = pin!(future);
    std::future::poll_fn(|context| -> Poll<R> { block_in_place(|| future.as_mut().poll(context)) })
        .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// While one task computes, another on the same only thread is served.
    #[test]
    fn others_are_served_meanwhile() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let computes = tokio::spawn(block_in_place_with_permit(|| {
                std::thread::sleep(Duration::from_secs(2))
            }));
            let polled =
                tokio::spawn(poll_in_place(async { std::thread::sleep(Duration::from_secs(2)) }));
            let began = Instant::now();
            let other = tokio::spawn(async { tokio::time::sleep(Duration::from_millis(10)).await });
            other.await.expect("it ends");
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            computes.await.expect("it ends");
            polled.await.expect("it ends");
        });
    }

    /// More endless work than there are turns does not keep other work from its own.
    #[test]
    fn yielding_work_lets_other_work_run() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let is_over = Arc::new(AtomicBool::new(false));
        runtime.block_on(async {
            let endless = || {
                let is_over = is_over.clone();
                move || {
                    while !is_over.load(Ordering::Relaxed) {
                        yield_permit();
                        std::hint::spin_loop();
                    }
                }
            };
            let all: Vec<_> = (0..PERMITS.available_permits() + 2)
                .map(|_| tokio::spawn(spawn(endless())))
                .collect();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let waits = tokio::time::timeout(Duration::from_secs(20), spawn(|| ())).await;
            is_over.store(true, Ordering::Relaxed);
            waits.expect("it has its turn").expect("it ends");
            for one in all {
                one.await.expect("it ends").expect("it ends");
            }
        });
    }
}
