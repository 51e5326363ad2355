//! Threads for which no request waits: those that write memtables, flush and compact.
//!
//! They take a core for tens of milliseconds every few seconds. At the niceness of all
//! others the kernel deals that out fairly, and a request waits up to a time slice (3 ms
//! and more) at each change of threads. So they are nicer: whoever is woken to serve gets
//! the core at once, and they keep a tenth of one that everybody wants. Much nicer would
//! be wrong: at 19, on a machine that is busy with something else, writes waited for a
//! flush for seconds.
//!
//! # Invariants
//! - No such thread is as nice as those that serve (`integration/tests/resource_limits.rs`,
//!   `background_threads_have_a_lower_priority`).

use std::thread::{Builder, JoinHandle};

use super::Fault;

/// Added to the niceness of the process.
const NICENESS: i32 = 10;

/// Starts a thread of the background; so are the threads that it starts.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Fault> {
    let nicer = || {
        // It serves as well otherwise, with longer waits.
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::warn!(%error, "a background thread has the priority of all others");
        }
        run()
    };
    Builder::new()
        .name(name.to_owned())
        .spawn(nicer)
        .map_err(|error| Fault::io(format!("start the thread {name}"), error))
}
