//! Wall time for stamps: it follows the machine's wall clock without its jumps.
//!
//! Stamps are persistent, and every later leader continues from them. So a wall clock
//! that is wrong for a moment (not yet set by NTP, a virtual machine that resumes, `date
//! -s`) must not push them far ahead at once. When it is right again, it must not stop
//! them until it has caught up with them.
//!
//! [`SlewedClock`] is the process's clock. It runs at the pace of the steady clock. While
//! the wall clock is behind, it runs slower until the wall clock has caught up; after the
//! wall clock has jumped ahead, it runs faster until it has caught up itself.
//! [`StampClock`] is a group's clock. It equals the process's clock, but is never before
//! the last stamp: from a later stamp it continues at the slower pace until the process's
//! clock has caught up.
//!
//! The steady clock is the boot clock ([`Clocks::boot`]): a suspension of the machine is
//! no jump.
//!
//! # Invariants
//! - A clock never runs backwards and never stops
//!   (`time_goes_on_whatever_the_wall_clock_does`, `stamps_go_on_from_one_far_ahead`).
//! - No step of the wall clock larger than [`STEP_MAX`] is followed at once
//!   (`a_clock_that_was_ahead_for_a_moment_leaves_little`).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clocks::{Clocks, SystemClocks};

/// The largest forward step of the wall clock, relative to the steady clock, that is
/// followed at once. Larger ones are followed at a tenth of the pace.
pub const STEP_MAX: Duration = Duration::from_secs(10);
/// The difference between two clocks that are read one after the other.
const NOISE_US: i64 = 2_000;
/// Attempts to read both clocks at the same moment.
const PAIR_TRIES: usize = 4;
/// Smaller differences are not logged.
const LOGGED_MIN_MS: i64 = 100;
/// A wall clock before 2025 was never set; the first setting is followed at once.
const UNSET_BEFORE_US: i64 = 1_735_689_600_000_000;
/// The value of the offset while the clock is slewed.
const SLEWED: i64 = i64::MIN;

/// The pace of the clock, in tenths of the steady clock's.
const SLOW: i64 = 9;
const EVEN: i64 = 10;
const FAST: i64 = 11;

/// A clock with a constant pace: it shows `at_us` when the steady clock shows `from_us`.
#[derive(Debug, Clone, Copy)]
struct LinearClock {
    from_us: i64,
    at_us: i64,
    pace: i64,
}

impl LinearClock {
    fn at(&self, steady_us: i64) -> i64 {
        self.at_us + (steady_us - self.from_us) * self.pace / EVEN
    }
}

/// The process's wall clock.
pub struct SlewedClock {
    clocks: Box<dyn Clocks>,
    /// The wall clock's lead over the steady clock, unless slewed.
    offset_us: AtomicI64,
    line: Mutex<LinearClock>,
}

impl std::fmt::Debug for SlewedClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlewedClock").field("line", &*self.line.lock()).finish_non_exhaustive()
    }
}

impl SlewedClock {
    /// A clock on the operating system's clocks.
    pub fn system() -> Arc<SlewedClock> {
        Self::new(SystemClocks)
    }

    /// A clock that starts with the time of the wall clock.
    pub fn new(clocks: impl Clocks) -> Arc<SlewedClock> {
        let (from_us, at_us) = (us(clocks.boot()), us(clocks.wall()));
        let line = Mutex::new(LinearClock { from_us, at_us, pace: EVEN });
        Arc::new(SlewedClock {
            clocks: Box::new(clocks),
            offset_us: AtomicI64::new(at_us - from_us),
            line,
        })
    }

    fn wall_us(&self) -> i64 {
        us(self.clocks.wall())
    }

    fn steady_us(&self) -> i64 {
        us(self.clocks.boot())
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        ms(self.now_us(self.steady_us()))
    }

    /// Milliseconds since an arbitrary start, on a clock that is never set.
    pub fn steady_ms(&self) -> u64 {
        ms(self.steady_us())
    }

    /// The lead of this clock over the wall clock; negative if it is behind, 0 within the
    /// noise of both.
    pub fn ahead_ms(&self) -> i64 {
        self.ahead_of_wall_ms(self.now_us(self.steady_us()))
    }

    fn ahead_of_wall_ms(&self, now_us: i64) -> i64 {
        let ahead_us = now_us - self.wall_us();
        if ahead_us.abs() <= 5 * NOISE_US { 0 } else { ahead_us / 1000 }
    }

    /// The time at a moment of the steady clock, which is that of this call or shortly
    /// before.
    fn now_us(&self, steady_us: i64) -> i64 {
        let offset_us = self.offset_us.load(Ordering::Acquire);
        if offset_us != SLEWED && (self.wall_us() - steady_us - offset_us).abs() <= NOISE_US {
            return steady_us + offset_us;
        }
        self.slew(steady_us)
    }

    #[cold]
    fn slew(&self, before_us: i64) -> i64 {
        let mut line = self.line.lock();
        // Read again: the previous holder of the lock may have used a later moment.
        let (wall_us, steady_us) = self.read_both();
        let steady_us = steady_us.max(before_us);
        let now_us = line.at(steady_us);
        let off_us = wall_us - now_us;
        let step_us = STEP_MAX.as_micros() as i64;
        // Only from an even pace: a jump that is being followed at a tenth of the pace is
        // followed so to its end.
        let is_step = off_us > NOISE_US && line.pace != FAST && off_us <= step_us
            || now_us < UNSET_BEFORE_US && off_us > 0;
        let (at_us, pace) = match off_us {
            _ if is_step => (wall_us, EVEN),
            ..=-1 if line.pace == SLOW => (now_us, SLOW),
            1.. if line.pace == FAST => (now_us, FAST),
            off_us if off_us < -NOISE_US => (now_us, SLOW),
            off_us if off_us > NOISE_US => (now_us, FAST),
            _ => (now_us, EVEN),
        };
        if line.pace != pace {
            log_pace(pace, off_us / 1000);
        }
        // Not at every call, as each would round down.
        if line.pace != pace || is_step {
            *line = LinearClock { from_us: steady_us, at_us, pace };
        }
        self.offset_us.store(
            if pace == EVEN { line.at_us - line.from_us } else { SLEWED },
            Ordering::Release,
        );
        at_us
    }

    /// Reads both clocks at the same moment, unless this thread is preempted between them
    /// again and again.
    fn read_both(&self) -> (i64, i64) {
        let mut before_us = self.steady_us();
        for _ in 0..PAIR_TRIES {
            let (wall_us, after_us) = (self.wall_us(), self.steady_us());
            if after_us - before_us <= NOISE_US / 2 {
                return (wall_us, after_us);
            }
            before_us = after_us;
        }
        (self.wall_us(), before_us)
    }
}

fn log_pace(pace: i64, off_ms: i64) {
    match pace {
        _ if off_ms.abs() < LOGGED_MIN_MS => {}
        SLOW => tracing::warn!(
            behind_ms = -off_ms,
            "the wall clock is behind: stamp time runs 10 % slower until it has caught up"
        ),
        FAST => tracing::warn!(
            ahead_ms = off_ms,
            "the wall clock has jumped ahead: stamp time runs 10 % faster until it has caught up"
        ),
        _ => tracing::info!(ahead_ms = off_ms, "stamp time equals the wall clock again"),
    }
}

fn us(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

fn ms(us: i64) -> u64 {
    u64::try_from(us / 1000).unwrap_or(0)
}

/// A group's clock for stamps: the process's clock, but never before the last stamp and
/// the time since.
#[derive(Debug)]
pub struct StampClock {
    clock: Arc<SlewedClock>,
    /// The time at the steady clock's zero, at the [`SLOW`] pace. The process's clock is
    /// never slower, so only the stamps of others raise it.
    base_us: AtomicI64,
    /// The last stamp. Calls around a change of pace may differ a little, and the
    /// migration of a virtual machine may set even the steady clock back: neither lets a
    /// stamp go back.
    last_ms: AtomicU64,
}

impl StampClock {
    /// Continues from `last_ms`, the last stamp; 0 if there is none.
    pub fn new(clock: Arc<SlewedClock>, last_ms: u64) -> StampClock {
        let stamps =
            StampClock { clock, base_us: AtomicI64::new(i64::MIN), last_ms: AtomicU64::new(0) };
        stamps.advance_to(last_ms);
        stamps
    }

    /// Never returns less than `stamp_ms` from here on.
    pub fn advance_to(&self, stamp_ms: u64) {
        let steady_us = self.clock.steady_us();
        let stamp_us = i64::try_from(stamp_ms).unwrap_or(i64::MAX / 1000).saturating_mul(1000);
        self.base_us.fetch_max(stamp_us - slow(steady_us), Ordering::AcqRel);
        self.last_ms.fetch_max(stamp_ms, Ordering::AcqRel);
    }

    /// Milliseconds since the Unix epoch. Later calls never return less, regardless of
    /// the group's earlier leaders. The shared number is written at most once a
    /// millisecond.
    pub fn now_ms(&self) -> u64 {
        let (now_ms, last_ms) = (ms(self.now_us()), self.last_ms.load(Ordering::Acquire));
        match now_ms > last_ms {
            true => self.last_ms.fetch_max(now_ms, Ordering::AcqRel).max(now_ms),
            false => last_ms,
        }
    }

    fn now_us(&self) -> i64 {
        let steady_us = self.clock.steady_us();
        let on_us = self.base_us.load(Ordering::Acquire).saturating_add(slow(steady_us));
        self.clock.now_us(steady_us).max(on_us)
    }

    /// The lead over the wall clock; negative if it is behind.
    pub fn ahead_ms(&self) -> i64 {
        self.clock.ahead_of_wall_ms(self.now_us())
    }
}

fn slow(steady_us: i64) -> i64 {
    steady_us / EVEN * SLOW
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_US: i64 = 1_790_000_000_000_000;
    const DAY_US: i64 = 86_400_000_000;
    const SECOND_US: i64 = 1_000_000;

    /// Clocks that a test sets: wall, steady.
    #[derive(Clone, Default)]
    struct TestClocks(Arc<(AtomicI64, AtomicI64)>);

    impl Clocks for TestClocks {
        fn wall(&self) -> Duration {
            Duration::from_micros(self.wall_us() as u64)
        }

        fn boot(&self) -> Duration {
            Duration::from_micros(self.steady_us() as u64)
        }

        fn monotonic(&self) -> Duration {
            self.boot()
        }
    }

    impl TestClocks {
        fn wall_us(&self) -> i64 {
            self.0.0.load(Ordering::SeqCst).max(0)
        }

        fn steady_us(&self) -> i64 {
            self.0.1.load(Ordering::SeqCst)
        }

        fn new(wall_us: i64) -> TestClocks {
            TestClocks(Arc::new((wall_us.into(), 77_000_000.into())))
        }

        fn pass(&self, us: i64) {
            self.0.0.fetch_add(us, Ordering::SeqCst);
            self.0.1.fetch_add(us, Ordering::SeqCst);
        }

        fn step(&self, us: i64) {
            self.0.0.fetch_add(us, Ordering::SeqCst);
        }
    }

    fn is_near(found_us: i64, wanted_us: i64) -> bool {
        (found_us - wanted_us).abs() < 50_000
    }

    #[test]
    fn a_clock_that_was_ahead_for_a_moment_leaves_little() {
        let hands = TestClocks::new(START_US);
        let clock = SlewedClock::new(hands.clone());
        let now = || clock.now_us(hands.steady_us());
        hands.pass(SECOND_US);
        assert_eq!(now(), START_US + SECOND_US);
        // A small step is followed at once, a large one at a tenth of the pace.
        hands.step(9 * SECOND_US);
        assert_eq!(now(), START_US + 10 * SECOND_US);
        hands.step(DAY_US);
        assert_eq!(now(), START_US + 10 * SECOND_US);
        hands.pass(100 * SECOND_US);
        assert!(is_near(now(), START_US + 120 * SECOND_US), "{}", now());
        assert!(clock.ahead_ms() < -86_000_000, "the metric shows it: {}", clock.ahead_ms());
        // It was wrong: the part that was followed is undone, without a step back.
        hands.step(-DAY_US);
        let before = now();
        assert_eq!(clock.ahead_ms(), 10_000);
        hands.pass(50 * SECOND_US);
        assert!(is_near(now() - before, 45 * SECOND_US));
        hands.pass(50 * SECOND_US + 100_000);
        now();
        hands.pass(SECOND_US);
        assert_eq!((clock.ahead_ms(), now()), (0, hands.wall_us()));
    }

    #[test]
    fn time_goes_on_however_often_it_is_asked_for() {
        for (step_us, passed_us) in [(-DAY_US, 900_000), (DAY_US, 1_100_000)] {
            let hands = TestClocks::new(START_US);
            let clock = SlewedClock::new(hands.clone());
            hands.step(step_us);
            for _ in 0..SECOND_US {
                hands.pass(1);
                clock.now_us(hands.steady_us());
            }
            assert!(is_near(clock.now_us(hands.steady_us()), START_US + passed_us), "{step_us}");
        }
    }

    #[test]
    fn a_jump_that_was_right_is_taken_over_in_the_end() {
        let hands = TestClocks::new(START_US);
        let clock = SlewedClock::new(hands.clone());
        hands.step(60 * SECOND_US);
        for _ in 0..599 {
            clock.now_ms();
            hands.pass(SECOND_US);
        }
        // Less than the largest step is left, but it is not followed at once.
        let before = clock.now_us(hands.steady_us());
        assert!(before < hands.wall_us() - 50_000);
        for _ in 0..3 {
            hands.pass(SECOND_US);
            clock.now_ms();
        }
        assert_eq!(clock.ahead_ms(), 0);
    }

    #[test]
    fn a_clock_that_was_never_set_is_taken_over_when_it_is() {
        let hands = TestClocks::new(5 * SECOND_US);
        let clock = SlewedClock::new(hands.clone());
        hands.pass(SECOND_US);
        hands.step(START_US);
        assert_eq!(clock.now_us(hands.steady_us()), hands.wall_us());
    }

    #[test]
    fn stamps_go_on_from_one_far_ahead() {
        let hands = TestClocks::new(START_US);
        // A restart or a failover, after a stamp that is a day ahead.
        let clock = SlewedClock::new(hands.clone());
        let last_ms = ms(START_US + DAY_US);
        let stamps = StampClock::new(clock.clone(), last_ms);
        assert_eq!(stamps.now_ms(), last_ms);
        assert_eq!(stamps.ahead_ms(), 86_400_000);
        hands.pass(10 * SECOND_US);
        assert_eq!(stamps.now_ms(), last_ms + 9_000, "it neither stands still nor runs back");
        assert_eq!(clock.now_ms(), ms(hands.wall_us()), "the process's is not concerned");
        hands.pass(10 * DAY_US);
        assert_eq!(stamps.now_ms(), ms(hands.wall_us()), "the wall clock has caught up");
        // The same stamp again does not set it back.
        stamps.advance_to(last_ms);
        hands.step(-DAY_US);
        let before = stamps.now_ms();
        hands.pass(SECOND_US);
        assert_eq!(stamps.now_ms(), before + 900);
        // A stamp far behind changes nothing.
        assert_eq!(StampClock::new(clock, 0).now_ms(), stamps.now_ms());
    }

    proptest::proptest! {
        #[test]
        fn time_goes_on_whatever_the_wall_clock_does(moves: Vec<(bool, i32, u16, bool)>) {
            let hands = TestClocks::new(START_US);
            let clock = SlewedClock::new(hands.clone());
            let mut stamps = StampClock::new(clock.clone(), 0);
            let (mut last_us, mut stamp_us) = (clock.now_us(hands.steady_us()), stamps.now_us());
            for (is_step, step_ms, pass_ms, restarts) in moves {
                if is_step {
                    hands.step(i64::from(step_ms) * 100);
                }
                if restarts {
                    stamps = StampClock::new(clock.clone(), ms(stamp_us));
                }
                let pass_us = i64::from(pass_ms) * 1000;
                hands.pass(pass_us);
                let (now_us, next_us) = (clock.now_us(hands.steady_us()), stamps.now_us());
                let least_us = pass_us * 9 / 10;
                let most_us = pass_us * 11 / 10 + STEP_MAX.as_micros() as i64 + NOISE_US;
                let passed_us = now_us - last_us;
                proptest::prop_assert!(
                    (least_us..=most_us).contains(&passed_us),
                    "{passed_us} in {pass_us}"
                );
                proptest::prop_assert!(next_us - stamp_us >= least_us - 1000 && next_us >= now_us);
                (last_us, stamp_us) = (now_us, next_us);
            }
        }
    }
}
