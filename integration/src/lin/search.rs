//! The search for a linearization, for any model.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The sequential behaviour of the object under test.
pub trait Model {
    /// A state of the object.
    type State: Clone + Eq + Hash + Debug;
    /// An operation, with its outcome if that is known.
    type Op: Clone + PartialEq + Debug;

    /// The object before the first call.
    fn start() -> Self::State;

    /// The state after `op`; `None` when its outcome is impossible in this state, or when
    /// an op of unknown outcome would change nothing.
    fn step(state: &Self::State, op: &Self::Op) -> Option<Self::State>;

    /// By its outcome (or by any outcome), this op changes no state.
    fn only_reads(op: &Self::Op) -> bool;

    /// The parts of the object that the op may read and write, as bits. Two ops must
    /// commute (same outcomes, same state in either order) if neither writes what the
    /// other accesses.
    fn touches(_op: &Self::Op) -> (u64, u64) {
        (u64::MAX, u64::MAX)
    }

    /// Spontaneous events that follow from these calls, as calls of unknown outcome:
    /// expiries.
    fn events(_calls: &[Call<Self::Op>]) -> Vec<Call<Self::Op>> {
        Vec::new()
    }

    /// May rewrite a history into one that is linearizable exactly if the given one is,
    /// and is faster to check.
    fn simplify(_calls: &mut [Call<Self::Op>]) {}
}

/// One call of one client.
#[derive(Debug, Clone, PartialEq)]
pub struct Call<O> {
    /// Number of the client, for the report only.
    pub client: usize,
    /// The operation and its outcome.
    pub op: O,
    /// Time of the call: ns on a clock that all clients share.
    pub invoked_ns: u64,
    /// Time of the return; `None`: the outcome is unknown.
    pub returned_ns: Option<u64>,
}

/// Limits of a search.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum time for one history.
    pub time: Duration,
    /// Maximum number of points, including those of one return's search.
    pub points: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { time: Duration::from_secs(60), points: 1_000_000 }
    }
}

/// Verdict on a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has a linearization.
    Linearizable,
    /// It has none; the text says at which return the last explanation was lost.
    Violation(String),
    /// A limit was reached; the text says which.
    Undecided(String),
}

/// Used calls of unknown outcome: their class and number.
type Used = Vec<(u32, u32)>;

/// One explanation of everything that has returned.
#[derive(Debug, Clone)]
struct Point {
    /// Number of the state.
    state: u32,
    /// Open calls that have taken effect, ascending.
    done: Vec<u32>,
    /// Calls of unknown outcome that have taken effect, ascending by class.
    used: Used,
}

/// Points of which none covers another.
#[derive(Debug, Default)]
struct Front {
    points: HashMap<(u32, Vec<u32>), Vec<Used>>,
    len: usize,
}

impl Front {
    /// Adds a point; false when another one covers it.
    fn add(&mut self, point: &Point) -> bool {
        let found = self.points.entry((point.state, point.done.clone())).or_default();
        if found.iter().any(|other| covers(other, &point.used)) {
            return false;
        }
        let before = found.len();
        found.retain(|other| !covers(&point.used, other));
        found.push(point.used.clone());
        self.len = self.len + found.len() - before;
        true
    }

    fn into_points(self) -> Vec<Point> {
        let spread = |((state, done), all): ((u32, Vec<u32>), Vec<Used>)| {
            all.into_iter()
                .map(move |used| Point { state, done: done.clone(), used })
                .collect::<Vec<_>>()
        };
        self.points.into_iter().flat_map(spread).collect()
    }
}

/// `less` uses no class more often than `more`.
fn covers(less: &Used, more: &Used) -> bool {
    let mut rest = more.iter();
    less.iter().all(|(class, times)| rest.any(|(other, most)| other == class && most >= times))
}

/// Numbers of states, which keep points small.
#[derive(Debug)]
struct States<S> {
    all: Vec<S>,
    numbers: HashMap<S, u32>,
}

impl<S: Clone + Eq + Hash> States<S> {
    fn number(&mut self, state: S) -> u32 {
        let next = self.all.len() as u32;
        *self.numbers.entry(state).or_insert_with_key(|state| {
            self.all.push(state.clone());
            next
        })
    }
}

/// Checks a history for a linearization.
pub fn check<M: Model>(calls: &[Call<M::Op>], limits: &Limits) -> Verdict {
    let mut calls = [calls, &M::events(calls)].concat();
    // A read of unknown outcome constrains nothing.
    calls.retain(|call| call.returned_ns.is_some() || !M::only_reads(&call.op));
    M::simplify(&mut calls);
    Search::<M>::new(&calls, limits).run()
}

struct Search<'a, M: Model> {
    calls: &'a [Call<M::Op>],
    limits: &'a Limits,
    began: Instant,
    states: States<M::State>,
    points: Vec<Point>,
    /// Calls that will return and have not yet.
    open: Vec<u32>,
    /// A call of each class of unknown outcomes, and the number of calls so far that not
    /// every point has used.
    classes: Vec<(u32, u32)>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(calls: &'a [Call<M::Op>], limits: &'a Limits) -> Self {
        let mut states = States { all: Vec::new(), numbers: HashMap::new() };
        let start = Point { state: states.number(M::start()), done: Vec::new(), used: Vec::new() };
        Search {
            calls,
            limits,
            began: Instant::now(),
            states,
            points: vec![start],
            open: Vec::new(),
            classes: Vec::new(),
        }
    }

    fn run(mut self) -> Verdict {
        // At the same nanosecond, calls precede returns: they count as concurrent, which
        // never makes a correct history a violation.
        let mut moments: Vec<(u64, bool, u32)> = Vec::with_capacity(self.calls.len() * 2);
        for (at, call) in self.calls.iter().enumerate() {
            moments.push((call.invoked_ns, false, at as u32));
            moments.extend(call.returned_ns.map(|returned| (returned, true, at as u32)));
        }
        moments.sort_unstable();
        for (_, returns, at) in moments {
            match (returns, self.calls[at as usize].returned_ns) {
                (false, Some(_)) => self.called(at),
                (false, None) => self.called_for_ever(at),
                (true, _) => match self.returned(at) {
                    Ok(found) if found.is_empty() => return Verdict::Violation(self.report(at)),
                    Ok(found) => self.points = found,
                    Err(why) => return Verdict::Undecided(why),
                },
            }
            if returns {
                self.open.retain(|open| *open != at);
                self.forget_what_all_used();
            }
        }
        Verdict::Linearizable
    }

    fn op(&self, at: u32) -> &'a M::Op {
        &self.calls[at as usize].op
    }

    /// A call that will return.
    fn called(&mut self, at: u32) {
        self.open.push(at);
        let op = self.op(at);
        if M::only_reads(op) {
            for point in &mut self.points {
                if M::step(&self.states.all[point.state as usize], op).is_some() {
                    insert(&mut point.done, at);
                }
            }
        }
    }

    /// A call of unknown outcome.
    fn called_for_ever(&mut self, at: u32) {
        let op = self.op(at);
        match self.classes.iter_mut().find(|(first, _)| self.calls[*first as usize].op == *op) {
            Some((_, left)) => *left += 1,
            None => self.classes.push((at, 1)),
        }
    }

    /// The points in which the call has taken effect, which are those after its return.
    fn returned(&mut self, at: u32) -> Result<Vec<Point>, String> {
        let (mut found, mut seen, mut next) = (Front::default(), Front::default(), VecDeque::new());
        for point in std::mem::take(&mut self.points) {
            self.keep(at, point, &mut found, &mut seen, &mut next);
        }
        // For the report, in case of a violation.
        self.points = next.iter().cloned().collect();
        let (others, classes) = self.concerning(at);
        let mut steps = 0_u32;
        while let Some(point) = next.pop_front() {
            steps += 1;
            if steps % 64 == 1 && self.began.elapsed() > self.limits.time {
                return Err(format!("after {:?}", self.began.elapsed()));
            }
            if found.len + seen.len > self.limits.points {
                return Err(format!("at {} points", found.len + seen.len));
            }
            for &other in &others {
                if point.done.binary_search(&other).is_ok() {
                    continue;
                }
                if let Some(mut after) = self.step(&point, self.op(other)) {
                    insert(&mut after.done, other);
                    self.keep(at, after, &mut found, &mut seen, &mut next);
                }
            }
            for &class in &classes {
                let (first, left) = self.classes[class as usize];
                let place = point.used.binary_search_by_key(&class, |(class, _)| *class);
                if left <= place.map_or(0, |place| point.used[place].1) {
                    continue;
                }
                if let Some(mut after) = self.step(&point, self.op(first)) {
                    match place {
                        Ok(place) => after.used[place].1 += 1,
                        Err(place) => after.used.insert(place, (class, 1)),
                    }
                    self.keep(at, after, &mut found, &mut seen, &mut next);
                }
            }
        }
        Ok(found.into_points())
    }

    /// Open calls, and classes of unknown outcome, that can affect a returning call:
    /// those that access the same parts, transitively. All others can equally take effect
    /// after it. Reads are left out: they take effect where they fit.
    fn concerning(&self, at: u32) -> (Vec<u32>, Vec<u32>) {
        let mut open: Vec<u32> = self.open.clone();
        let mut classes: Vec<u32> = (0..self.classes.len() as u32)
            .filter(|class| self.classes[*class as usize].1 > 0)
            .collect();
        let (mut calls, mut unknown) = (Vec::new(), Vec::new());
        let (mut reads, mut writes) = M::touches(self.op(at));
        loop {
            let (before, mut wider) = ((reads, writes), (reads, writes));
            let mut concerns = |op: &M::Op| {
                let (its_reads, its_writes) = M::touches(op);
                let concerns = its_writes & (reads | writes) != 0 || its_reads & writes != 0;
                if concerns {
                    wider = (wider.0 | its_reads, wider.1 | its_writes);
                }
                concerns
            };
            calls.extend(open.extract_if(.., |other| *other == at || concerns(self.op(*other))));
            unknown.extend(
                classes.extract_if(.., |class| concerns(self.op(self.classes[*class as usize].0))),
            );
            (reads, writes) = wider;
            if wider == before {
                break;
            }
        }
        calls.retain(|other| !M::only_reads(self.op(*other)));
        (calls, unknown)
    }

    /// The point after an op, with every open read that fits it.
    fn step(&mut self, point: &Point, op: &M::Op) -> Option<Point> {
        let state = M::step(&self.states.all[point.state as usize], op)?;
        let mut done = point.done.clone();
        for open in &self.open {
            let read = self.op(*open);
            if M::only_reads(read) && M::step(&state, read).is_some() {
                insert(&mut done, *open);
            }
        }
        Some(Point { state: self.states.number(state), done, used: point.used.clone() })
    }

    /// Files a point: as found if the returning call has taken effect in it, otherwise to
    /// be extended.
    fn keep(
        &self,
        at: u32,
        mut point: Point,
        found: &mut Front,
        seen: &mut Front,
        next: &mut VecDeque<Point>,
    ) {
        match point.done.binary_search(&at) {
            Ok(place) => {
                point.done.remove(place);
                found.add(&point);
            }
            Err(_) => {
                if seen.add(&point) {
                    next.push_back(point);
                }
            }
        }
    }

    /// Removes calls that every point has used.
    fn forget_what_all_used(&mut self) {
        let Some(first) = self.points.first() else { return };
        let mut common = first.used.clone();
        for point in &self.points[1..] {
            if common.is_empty() {
                return;
            }
            common.retain_mut(|(class, times)| {
                match point.used.binary_search_by_key(class, |(class, _)| *class) {
                    Ok(place) => {
                        *times = (*times).min(point.used[place].1);
                        true
                    }
                    Err(_) => false,
                }
            });
        }
        for (class, times) in common {
            self.classes[class as usize].1 -= times;
            for point in &mut self.points {
                if let Ok(place) = point.used.binary_search_by_key(&class, |(class, _)| *class) {
                    point.used[place].1 -= times;
                    if point.used[place].1 == 0 {
                        point.used.remove(place);
                    }
                }
            }
        }
    }

    /// The report of a violation: where the last explanation was lost.
    fn report(&self, at: u32) -> String {
        let told = |at: u32| {
            let call = &self.calls[at as usize];
            let returned =
                call.returned_ns.map_or("never".to_owned(), |ns| format!("{:.6}", seconds(ns)));
            format!(
                "  client {} {:.6}..{returned} {:?}\n",
                call.client,
                seconds(call.invoked_ns),
                call.op
            )
        };
        let mut text =
            format!("nothing explains this call:\n{}the row could have been:\n", told(at));
        for point in self.points.iter().take(5) {
            text += &format!(
                "  {:?} with {} open calls done\n",
                self.states.all[point.state as usize],
                point.done.len()
            );
        }
        text += "calls still open:\n";
        self.open.iter().filter(|open| **open != at).for_each(|open| text += &told(*open));
        let unknown: Vec<_> = self.classes.iter().filter(|(_, left)| *left > 0).collect();
        text += &format!(
            "calls of unknown outcome that may still take effect: {}, the latest:\n",
            unknown.len()
        );
        unknown.iter().rev().take(10).for_each(|(first, _)| text += &told(*first));
        text += "what returned before:\n";
        let invoked = self.calls[at as usize].invoked_ns;
        let mut before: Vec<u32> = (0..self.calls.len() as u32)
            .filter(|other| *other != at && self.calls[*other as usize].returned_ns.is_some())
            .collect();
        before.retain(|other| {
            self.calls[*other as usize].returned_ns < self.calls[at as usize].returned_ns
        });
        before.sort_by_key(|other| std::cmp::Reverse(self.calls[*other as usize].returned_ns));
        before.iter().take(15).for_each(|other| text += &told(*other));
        text + &format!("(called at {:.6})", seconds(invoked))
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn insert(sorted: &mut Vec<u32>, number: u32) {
    if let Err(place) = sorted.binary_search(&number) {
        sorted.insert(place, number);
    }
}
