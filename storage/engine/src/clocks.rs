//! The machine's clocks, and the detection of pauses of the machine.
//!
//! The monotonic clock stops while the machine is suspended, and while a virtual machine
//! is paused. Other servers' clocks go on, and by them a lease expires that is still
//! valid by ours. The boot clock goes on during a suspension. If it stops as well (a
//! virtual machine paused from outside), the wall clock is corrected some time later.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time; tests bring their own.
pub trait Clocks: Send + Sync + 'static {
    /// Runs evenly from an arbitrary start, except while the machine is suspended.
    fn monotonic(&self) -> Duration;
    /// Runs evenly from an arbitrary start, also while the machine is suspended.
    fn boot(&self) -> Duration;
    /// Time since the Unix epoch; may be set.
    fn wall(&self) -> Duration;
}

/// The machine's own clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClocks;

impl Clocks for SystemClocks {
    fn monotonic(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }

    #[cfg(target_os = "linux")]
    fn boot(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
    }

    /// On other systems the monotonic clock goes on during a suspension, or nothing is
    /// known.
    #[cfg(not(target_os = "linux"))]
    fn boot(&self) -> Duration {
        self.monotonic()
    }

    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// The smallest jump of the boot and of the wall clock against the monotonic one, between
/// two checks. A lease leaves no more room for time that the boot clock does not show;
/// the wall clock is slewed and set in small steps all the time.
const JUMP_MIN: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(100)];

/// Clocks that were read within this time can be compared. A thread may be preempted
/// between two readings, but not again and again.
const READ_TOGETHER_MAX: Duration = Duration::from_millis(2);
const READ_TRIES: usize = 5;

/// Detects that clocks have jumped against each other since the last check.
pub(crate) struct JumpDetector {
    /// The lead of the boot and of the wall clock over the monotonic clock, ns.
    ahead_ns: [i128; 2],
}

impl JumpDetector {
    pub(crate) fn new(clocks: &dyn Clocks) -> JumpDetector {
        JumpDetector { ahead_ns: ahead_ns(clocks) }
    }

    /// The size of the jump, if there was one.
    pub(crate) fn jump(&mut self, clocks: &dyn Clocks) -> Option<Duration> {
        let now = ahead_ns(clocks);
        let jumps =
            std::iter::zip(now, self.ahead_ns).map(|(now, before)| (now - before).unsigned_abs());
        let large =
            std::iter::zip(jumps, JUMP_MIN).filter(|(jump, apart)| *jump > apart.as_nanos());
        let most = large.map(|(jump, _)| jump).max()?;
        self.ahead_ns = now;
        Some(Duration::from_nanos(u64::try_from(most).unwrap_or(u64::MAX)))
    }
}

fn ahead_ns(clocks: &dyn Clocks) -> [i128; 2] {
    let read = || {
        let before = clocks.monotonic();
        let others = [clocks.boot(), clocks.wall()];
        (before, others, clocks.monotonic().saturating_sub(before))
    };
    let mut best = read();
    for _ in 1..READ_TRIES {
        if best.2 <= READ_TOGETHER_MAX {
            break;
        }
        let again = read();
        if again.2 < best.2 {
            best = again;
        }
    }
    best.1.map(|other| other.as_nanos() as i128 - best.0.as_nanos() as i128)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct TestClocks(Mutex<[Duration; 3]>);

    impl Clocks for TestClocks {
        fn monotonic(&self) -> Duration {
            self.0.lock()[0]
        }

        fn boot(&self) -> Duration {
            self.0.lock()[1]
        }

        fn wall(&self) -> Duration {
            self.0.lock()[2]
        }
    }

    #[test]
    fn clocks_that_go_apart_at_once_are_noticed_once() {
        let clocks = TestClocks::default();
        let go_on = |ms: [u64; 3]| {
            let mut now = clocks.0.lock();
            std::iter::zip(&mut *now, ms)
                .for_each(|(clock, ms)| *clock += Duration::from_millis(ms));
        };
        go_on([1_000, 1_000, 1_700_000_000_000]);
        let mut detector = JumpDetector::new(&clocks);
        go_on([50, 50, 50]);
        assert_eq!(detector.jump(&clocks), None);
        // All are read late.
        go_on([5_000, 5_000, 5_001]);
        assert_eq!(detector.jump(&clocks), None);
        go_on([50, 60, 100]);
        assert_eq!(detector.jump(&clocks), None, "slewed");
        go_on([50, 75, 50]);
        assert_eq!(
            detector.jump(&clocks),
            Some(Duration::from_millis(35)),
            "together with what it was before"
        );
        // Suspended; paused from outside, and then corrected.
        for jump in [[10, 5_010, 5_010], [10, 10, 5_010]] {
            go_on(jump);
            assert!(detector.jump(&clocks).is_some_and(|jump| jump >= Duration::from_secs(5)));
            assert_eq!(detector.jump(&clocks), None, "once");
        }
        clocks.0.lock()[2] -= Duration::from_secs(60);
        assert!(
            detector.jump(&clocks).is_some_and(|jump| jump > Duration::from_secs(59)),
            "it is set back"
        );
    }

    #[test]
    fn the_boot_clock_of_the_machine_runs() {
        let before = SystemClocks.boot();
        std::thread::sleep(Duration::from_millis(5));
        assert!(SystemClocks.boot() >= before + Duration::from_millis(5));
    }
}
