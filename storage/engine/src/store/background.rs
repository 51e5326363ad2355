//! Background threads: those that write memtables, flush and compact. No request waits
//! for them.
//!
//! They use a core for tens of milliseconds every few seconds. At normal niceness the
//! kernel shares the core fairly, and a request waits up to a time slice (3 ms and more)
//! at each thread switch. With a higher niceness, a thread that is woken to serve a
//! request gets the core at once, and background threads keep a tenth of a busy core. A
//! much higher niceness would be wrong: at 19, on a machine that was busy otherwise,
//! writes waited seconds for a flush.
//!
//! # Invariants
//! - Background threads have a higher niceness than those that serve requests
//!   (`integration/tests/resource_limits.rs`,
//!   `background_threads_have_a_lower_priority`).

use std::thread::{Builder, JoinHandle};

use super::Fault;

/// Added to the niceness of the process.
const NICENESS: i32 = 10;

/// Starts a background thread. The threads that it starts inherit its niceness.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Fault> {
    let nicer = || {
        // Without it the thread works as well, but requests wait longer.
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::warn!(%error, "cannot lower the priority of a background thread");
        }
        run()
    };
    Builder::new()
        .name(name.to_owned())
        .spawn(nicer)
        .map_err(|error| Fault::io(format!("start the thread {name}"), error))
}
