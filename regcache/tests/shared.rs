//! These tests compare the shares of a monitor with a simple model. They call the shares directly,
//! without caches. The monitor is modelled, and reports whatever a test tells it to.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::mem;
use std::ptr;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use regcache::VaRange;
use regcache::monitor::{Cookie, Monitor, Shared};

const MEMBERS: usize = 3;
const RANGES: usize = 6;

/// A call of a share, or a report that the monitor makes at its next drain.
#[derive(Debug, Clone, Copy)]
enum Call {
    Watch {
        member: usize,
        range: usize,
        /// 0 until [`Plan`] has chosen the cookie.
        cookie: u64,
        /// True if the monitor refuses to place a watch.
        refused: bool,
    },
    Unwatch {
        member: usize,
        /// A random number, which [`Plan`] replaces with a cookie.
        cookie: u64,
    },
    /// Report one of all watches that were ever placed, in the order in which they were placed.
    Report(usize),
    /// Report a cookie that the monitor was never given.
    Forge(u64),
    Drain {
        member: usize,
        /// True if the monitor fails after it has made all reports.
        fails: bool,
    },
}

#[derive(Debug, Clone)]
enum Step {
    /// Make a call. If it places a watch, make the other calls while the monitor places the watch.
    Call(Call, Vec<Call>),
    /// Drop the share, and let another cache take its place.
    Leave(usize),
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Done(Result<(), ErrorKind>),
    Reported(Option<u64>),
    /// The result of a drain, and the sorted cookies that it has reported.
    Drained(Result<u64, ErrorKind>, Vec<u64>),
}

/// The state of the modelled monitor.
#[derive(Default)]
struct State {
    live: BTreeMap<u64, VaRange>,
    /// The cookies of all watches that were ever placed or refused.
    ever: Vec<u64>,
    reports: Vec<u64>,
    generation: u64,
    refuses: bool,
    fails: bool,
    during_watch: Option<Box<dyn FnOnce() + Send>>,
}

#[derive(Clone, Default)]
struct FakeMonitor(Arc<Mutex<State>>);

type Share = Arc<Shared<FakeMonitor>>;

// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Monitor for FakeMonitor {
    fn generation(&self) -> u64 {
        self.0.lock().unwrap().generation
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        assert!(
            !state.ever.contains(&cookie.0),
            "{cookie:?} names two watches"
        );
        state.ever.push(cookie.0);
        let refuses = mem::take(&mut state.refuses);
        let during_watch = state.during_watch.take();
        drop(state);
        if let Some(during_watch) = during_watch {
            during_watch();
        }
        if refuses {
            return Err(ErrorKind::PermissionDenied.into());
        }
        self.0.lock().unwrap().live.insert(cookie.0, range);
        Ok(())
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        let ended = self.0.lock().unwrap().live.remove(&cookie.0);
        ended.map(drop).ok_or(ErrorKind::InvalidInput.into())
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let mut state = self.0.lock().unwrap();
        for cookie in mem::take(&mut state.reports) {
            invalidated(Cookie(cookie));
        }
        if mem::take(&mut state.fails) {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(state.generation)
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}

fn range(i: usize) -> VaRange {
    // The ranges overlap, and some have the same start.
    VaRange::new(ptr::without_provenance(0x1000 + i / 2), 1 + i).unwrap()
}

/// Makes a call, and returns its outcome.
fn make(call: Call, monitor: &FakeMonitor, shares: &[Share]) -> Outcome {
    let kind = |error: io::Error| error.kind();
    let report = |state: &mut State, cookie| {
        state.reports.push(cookie);
        state.generation += 1;
        Outcome::Reported(Some(cookie))
    };
    match call {
        Call::Watch {
            member,
            range: i,
            cookie,
            refused,
        } => {
            monitor.0.lock().unwrap().refuses = refused;
            let watched = shares[member].watch(range(i), Cookie(cookie));
            monitor.0.lock().unwrap().refuses = false;
            Outcome::Done(watched.map_err(kind))
        }
        Call::Unwatch { member, cookie } => {
            Outcome::Done(shares[member].unwatch(Cookie(cookie)).map_err(kind))
        }
        Call::Report(which) => {
            let state = &mut *monitor.0.lock().unwrap();
            let len = state.ever.len().max(1);
            match state.ever.get(which % len).copied() {
                Some(cookie) => report(state, cookie),
                None => Outcome::Reported(None),
            }
        }
        Call::Forge(cookie) => report(&mut monitor.0.lock().unwrap(), cookie),
        Call::Drain { member, fails } => {
            monitor.0.lock().unwrap().fails = fails;
            let mut reported = Vec::new();
            let drained = shares[member].drain(&mut |cookie| reported.push(cookie.0));
            reported.sort_unstable();
            Outcome::Drained(drained.map_err(kind), reported)
        }
    }
}

/// A simple model of the shares. A watch has the cookie that the monitor was given for it.
#[derive(Default)]
struct Model {
    /// The range of each watch, and its subscriptions as pairs of a member and a cookie.
    watches: BTreeMap<u64, (usize, BTreeSet<(usize, u64)>)>,
    /// The watch of each range that new subscriptions join.
    open: BTreeMap<usize, u64>,
    /// The watches that were reported, which no new subscription joins.
    reported: BTreeSet<u64>,
    marked: BTreeSet<(usize, u64)>,
    lost: [bool; MEMBERS],
    reports: Vec<u64>,
    generation: u64,
    /// The cookies of all watches in the order in which they were placed or refused, and the number
    /// of those that this model knows.
    ever: (Vec<u64>, usize),
}

impl Model {
    /// Adds a subscription. Returns its watch if the watch is new.
    fn begin(&mut self, range: usize, subscription: (usize, u64)) -> Option<u64> {
        let joined = self.open.get(&range).copied();
        let watch = joined.unwrap_or_else(|| {
            self.ever.1 += 1;
            self.ever.0[self.ever.1 - 1]
        });
        let of_watch = self
            .watches
            .entry(watch)
            .or_insert((range, BTreeSet::new()));
        assert!(of_watch.1.insert(subscription));
        joined.is_none().then_some(watch)
    }

    fn end(&mut self, subscription: (usize, u64)) -> Result<(), ErrorKind> {
        let mut watches = self.watches.iter_mut();
        let (&watch, (_, subscriptions)) = watches
            .find(|(_, (_, its))| its.contains(&subscription))
            .ok_or(ErrorKind::NotFound)?;
        self.marked.remove(&subscription);
        subscriptions.remove(&subscription);
        if subscriptions.is_empty() {
            self.watches.remove(&watch);
            self.open.retain(|_, open| *open != watch);
        }
        Ok(())
    }

    fn leave(&mut self, member: usize) {
        let all = self.watches.values().flat_map(|(_, its)| its);
        let its: Vec<_> = all.filter(|it| it.0 == member).copied().collect();
        for subscription in its {
            self.end(subscription).unwrap();
        }
        self.lost[member] = false;
    }

    fn report(&mut self, cookie: u64) -> Outcome {
        self.reports.push(cookie);
        self.generation += 1;
        Outcome::Reported(Some(cookie))
    }

    fn drain(&mut self, member: usize, fails: bool) -> Outcome {
        for watch in mem::take(&mut self.reports) {
            if let Some((_, subscriptions)) = self.watches.get(&watch) {
                self.marked.extend(subscriptions);
                self.reported.insert(watch);
                self.open.retain(|_, open| *open != watch);
            }
        }
        if fails {
            self.lost = [true; MEMBERS];
        }
        let (its, others) = self.marked.iter().partition(|it| it.0 == member);
        self.marked = others;
        let result = match (fails, mem::take(&mut self.lost[member])) {
            (true, _) => Err(ErrorKind::TimedOut),
            (false, true) => Err(ErrorKind::Other),
            (false, false) => Ok(self.generation),
        };
        let its: BTreeSet<(usize, u64)> = its;
        Outcome::Drained(result, its.into_iter().map(|it| it.1).collect())
    }

    /// Makes a call, and the calls that are made while it places a watch. Adds their outcomes.
    fn make(&mut self, call: Call, during: &[Call], outcomes: &mut Vec<Outcome>) {
        let outcome = match call {
            Call::Watch {
                member,
                range,
                cookie,
                refused,
            } => Outcome::Done(match self.begin(range, (member, cookie)) {
                None => Ok(()),
                Some(watch) => {
                    for &call in during {
                        self.make(call, &[], outcomes);
                    }
                    if refused {
                        self.end((member, cookie)).unwrap();
                        Err(ErrorKind::PermissionDenied)
                    } else {
                        if !self.reported.contains(&watch) {
                            self.open.entry(range).or_insert(watch);
                        }
                        Ok(())
                    }
                }
            }),
            Call::Unwatch { member, cookie } => Outcome::Done(self.end((member, cookie))),
            Call::Report(which) => {
                let ever = &self.ever.0[..self.ever.1];
                match ever.get(which % ever.len().max(1)).copied() {
                    Some(cookie) => self.report(cookie),
                    None => Outcome::Reported(None),
                }
            }
            Call::Forge(cookie) => self.report(cookie),
            Call::Drain { member, fails } => self.drain(member, fails),
        };
        outcomes.push(outcome);
    }
}

/// Chooses the cookies of calls. Members use the same cookies, as caches do.
#[derive(Default)]
struct Plan {
    last: [u64; MEMBERS],
}

impl Plan {
    fn concrete(&mut self, call: Call) -> Call {
        match call {
            Call::Watch {
                member,
                range,
                refused,
                ..
            } => {
                self.last[member] += 1;
                let cookie = self.last[member];
                Call::Watch {
                    member,
                    range,
                    cookie,
                    refused,
                }
            }
            // Recent cookies are more likely to have a watch.
            Call::Unwatch { member, cookie } => Call::Unwatch {
                member,
                cookie: self.last[member].saturating_sub(cookie),
            },
            other => other,
        }
    }
}

fn calls() -> impl Strategy<Value = Call> {
    let member = 0..MEMBERS;
    let watch = (member.clone(), 0..RANGES, prop::bool::weighted(0.1));
    prop_oneof![
        8 => watch.prop_map(|(member, range, refused)| Call::Watch {
            member,
            range,
            cookie: 0,
            refused
        }),
        5 => (member.clone(), 0..20_u64)
            .prop_map(|(member, cookie)| Call::Unwatch { member, cookie }),
        5 => any::<usize>().prop_map(Call::Report),
        1 => prop_oneof![0..5_u64, any::<u64>()].prop_map(Call::Forge),
        3 => (member, prop::bool::weighted(0.1))
            .prop_map(|(member, fails)| Call::Drain { member, fails }),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let during = prop::collection::vec(calls(), 0..6);
    prop_oneof![
        20 => calls().prop_map(|call| Step::Call(call, Vec::new())),
        3 => (calls(), during).prop_map(|(call, during)| Step::Call(call, during)),
        1 => (0..MEMBERS).prop_map(Step::Leave),
    ]
}

proptest! {
    #[test]
    fn shares_subscribe_report_and_end_watches_as_the_model(
        steps in prop::collection::vec(steps(), 0..200),
    ) {
        let monitor = FakeMonitor::default();
        let first = Shared::new(monitor.clone()).unwrap();
        let mut shares = vec![Arc::new(first)];
        for _ in 1..MEMBERS {
            shares.push(Arc::new(shares[0].subscribe().unwrap()));
        }
        let (mut model, mut plan) = (Model::default(), Plan::default());
        for step in steps {
            let (call, during) = match step {
                Step::Call(call, during) => (plan.concrete(call), during),
                Step::Leave(member) => {
                    // The member of a share that has left is used for the next share.
                    let other = Arc::clone(&shares[(member + 1) % MEMBERS]);
                    drop(shares.remove(member));
                    shares.insert(member, Arc::new(other.subscribe().unwrap()));
                    model.leave(member);
                    prop_assert_eq!(other.watches(), model.watches.len());
                    continue;
                }
            };
            // No cache ends a watch that it is still placing.
            let ends_it = |inner: &Call| match (call, *inner) {
                (
                    Call::Watch { member, cookie, .. },
                    Call::Unwatch { member: other, cookie: ended },
                ) => (member, cookie) == (other, ended),
                _ => false,
            };
            let mut during: Vec<_> = during.into_iter().map(|it| plan.concrete(it)).collect();
            during.retain(|it| !ends_it(it));
            let outcomes = Arc::new(Mutex::new(Vec::new()));
            monitor.0.lock().unwrap().during_watch = Some(Box::new({
                let (during, outcomes) = (during.clone(), Arc::clone(&outcomes));
                let (monitor, shares) = (monitor.clone(), shares.clone());
                move || {
                    for call in during {
                        outcomes.lock().unwrap().push(make(call, &monitor, &shares));
                    }
                }
            }));
            let outcome = make(call, &monitor, &shares);
            monitor.0.lock().unwrap().during_watch = None;
            let mut outcomes = mem::take(&mut *outcomes.lock().unwrap());
            outcomes.push(outcome);

            let mut expected = Vec::new();
            model.ever.0 = monitor.0.lock().unwrap().ever.clone();
            model.make(call, &during, &mut expected);
            prop_assert_eq!(outcomes, expected, "{:?} with {:?} meanwhile", call, during);
            prop_assert_eq!(model.ever.1, model.ever.0.len(), "a watch that nobody needs");
            let watches = model.watches.iter().map(|(&watch, &(at, _))| (watch, range(at)));
            prop_assert_eq!(&monitor.0.lock().unwrap().live, &watches.collect());
            prop_assert_eq!(shares[0].watches(), model.watches.len());
        }
        drop(shares);
        prop_assert!(monitor.0.lock().unwrap().live.is_empty());
    }
}
