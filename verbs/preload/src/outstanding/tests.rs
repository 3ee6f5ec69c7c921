//! Tests the accounting on random sequences of posts, completions, errors and resets. A modelled
//! device records which work is outstanding. The tests also check that the search finds deliberate
//! faults of the accounting.

use std::collections::VecDeque;
use std::sync::LazyLock;

use parking_lot::Mutex;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use super::sync::{Arc, AtomicU64, Ordering};
use super::{Cell, Device, Order, Owners, Queue, Release, left};

/// A deliberate fault of the accounting.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The completions of a shared receive queue are assumed to come in order.
    OrderAssumed,
    /// Keys of unsignaled requests are not noted.
    UnsignaledForgotten,
    /// Completions with errors are counted.
    ErrorsCounted,
    /// The counting starts over after a reset, although completions from before can still be
    /// polled.
    StaleCounted,
    /// Completions are not counted.
    CompletionIgnored,
    /// Polls that began before the completion queue was seen empty are counted afterwards.
    LateCounted,
    /// Errors of before a reset are taken for errors of requests after the reset.
    StaleErrorsCounted,
}

#[derive(Clone, Debug)]
enum Step {
    /// The program posts a list of requests, and the device accepts at most this many.
    Post(Vec<(u32, bool)>, usize),
    /// One of the requests that can complete completes. If this request fails, all others fail as
    /// well.
    Complete(usize, bool),
    /// The program polls one completion. True if it sees the queue empty after the last one.
    Poll(bool),
    /// A thread polls one completion in the way that counts in cells, and has not counted it yet.
    PollLate,
    /// All such threads count.
    CountLate,
    Reset,
    /// The program deregisters the registration with this key.
    Release(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let keys = 1..6u32;
    let request = (keys.clone(), any::<bool>());
    prop_oneof![
        4 => (vec(request, 1..4), 0..5usize).prop_map(|(list, most)| Step::Post(list, most)),
        4 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(n, bad)| Step::Complete(n, bad)),
        4 => any::<bool>().prop_map(Step::Poll),
        1 => Just(Step::PollLate),
        1 => Just(Step::CountLate),
        1 => Just(Step::Reset),
        4 => keys.prop_map(Step::Release),
    ]
}

/// A request that the device has accepted.
struct Outstanding {
    key: u32,
    signaled: bool,
}

/// A model of one queue of a device, with its completions.
struct Model {
    order: Order,
    fault: Fault,
    device: Device,
    queue: Arc<Queue>,
    requests: VecDeque<Outstanding>,
    /// The completions that were not polled yet. True means success.
    completions: VecDeque<bool>,
    /// The cell in which polls count.
    cell: &'static AtomicU64,
    /// True if polls count in the record of the queue, under the lock of the completion queue.
    by_lock: bool,
    /// The successful completions that threads have polled and will count in the cell.
    late: u64,
    failed: bool,
    /// Completions with errors that were polled since the last reset.
    errors: u64,
    /// The most of them that may be from before the reset.
    stale: u64,
    /// The other queue of the queue pair, to which nothing is posted.
    other: Arc<Queue>,
    kept: usize,
}

/// The number of requests for which the queue has room.
const ROOM: usize = 6;

impl Model {
    fn new(order: Order, fault: Fault) -> Self {
        let device = Device::new();
        let counted = match fault {
            Fault::OrderAssumed => Order::Each,
            _ => order,
        };
        let queue = device.queue(counted, ROOM as u32, 1);
        let other = device.queue(Order::Each, 1, 1);
        // A cell lives for ever. The list shows the leak detector that no cell is lost.
        static CELLS: Mutex<Vec<&'static AtomicU64>> = Mutex::new(Vec::new());
        let cell: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(3)));
        CELLS.lock().push(cell);
        queue.read(cell);
        Self {
            cell,
            by_lock: false,
            late: 0,
            errors: 0,
            stale: 0,
            other,
            order,
            fault,
            device,
            queue,
            requests: VecDeque::new(),
            completions: VecDeque::new(),
            failed: false,
            kept: 0,
        }
    }

    fn post(&mut self, list: &[(u32, bool)], most: usize) -> Result<(), TestCaseError> {
        let has_each = self.order != Order::Signaled;
        let room = ROOM - self.requests.len();
        let accepted = if self.failed {
            0
        } else {
            most.min(room).min(list.len())
        };
        let (posted, refused) = list.split_at(accepted);
        let requests = posted.iter().map(|&(key, signaled)| Outstanding {
            key,
            signaled: signaled || has_each,
        });
        let requests: Vec<_> = requests.collect();
        if let [(key, signaled)] = *list
            && (signaled || has_each)
            && let Some(again) = self.queue.again(|| key).or_else(|| self.queue.switch(key))
        {
            prop_assert!(
                !self.device.is_idle(key),
                "the device got the idle key {key}"
            );
            again.end(i32::from(accepted == 0));
            self.requests.extend(requests);
            return Ok(());
        }
        let mut post = self.queue.post();
        let mut noted = None;
        for &(key, signaled) in list {
            let signaled = signaled || has_each;
            post.request(signaled);
            if signaled || self.fault != Fault::UnsignaledForgotten {
                noted = post.key(key);
            }
        }
        for &(key, _) in list {
            // The shim would deregister an idle key before it posts.
            self.device.forget(key);
        }
        if let [(key, signaled)] = *list
            && (signaled || has_each)
            && let Some(at) = noted
        {
            post.run(key, at, 0);
        }
        let signaled = refused.iter().filter(|it| it.1 || has_each).count();
        post.take_back(signaled as u64);
        self.requests.extend(requests);
        Ok(())
    }

    fn complete(&mut self, which: usize, bad: bool) {
        if self.requests.is_empty() {
            return;
        }
        if bad {
            // The first request fails, and the device flushes all others.
            self.failed = true;
            let flushed = self.requests.drain(..).map(|_| false);
            self.completions.extend(flushed);
            return;
        }
        let which = match self.order {
            Order::Any => which % self.requests.len(),
            Order::Signaled | Order::Each => 0,
        };
        if let Some(done) = self.requests.remove(which)
            && done.signaled
        {
            self.completions.push_back(true);
        }
    }

    fn poll(&mut self, seen_empty: bool) {
        match self.completions.pop_front() {
            Some(_) if self.fault == Fault::CompletionIgnored => {}
            Some(succeeded) if succeeded || self.fault == Fault::ErrorsCounted => {
                if self.by_lock {
                    self.queue.complete();
                } else {
                    self.cell.fetch_add(1, Ordering::Release);
                }
            }
            Some(_) => self.errors += 1,
            None if seen_empty && self.by_lock => assert!(self.queue.settle()),
            None => {}
        }
    }

    fn poll_late(&mut self) {
        match self.completions.pop_front() {
            Some(true) => self.late += 1,
            Some(false) => self.errors += 1,
            None => {}
        }
    }

    fn count_late(&mut self) {
        let late = std::mem::take(&mut self.late);
        if self.fault == Fault::LateCounted {
            (0..late).for_each(|_| self.queue.complete());
        } else {
            self.cell.fetch_add(late, Ordering::Release);
        }
    }

    fn reset(&mut self) {
        if self.order == Order::Any {
            return;
        }
        self.requests.clear();
        self.failed = false;
        let (errors, stale) = (self.errors, self.stale);
        let left = match self.order {
            Order::Signaled => left(&self.queue, &self.other, errors, stale),
            Order::Each | Order::Any => left(&self.other, &self.queue, errors, stale),
        };
        self.errors = 0;
        if self.fault != Fault::StaleErrorsCounted {
            self.stale = left.errors;
        }
        self.by_lock |= !self.queue.reset(left.all_polled);
        if self.fault == Fault::StaleCounted {
            self.queue.settle();
        }
    }

    fn release(&mut self, key: u32) -> Result<(), TestCaseError> {
        // The program holds the key before it deregisters.
        self.device.forget(key);
        if self.device.release(key) == Release::Keep {
            self.kept += 1;
            let uses = self.requests.iter().any(|request| request.key == key);
            prop_assert!(!uses, "key {key} was kept while a request uses it");
        }
        Ok(())
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        for step in steps {
            match step {
                Step::Post(list, most) => self.post(list, *most)?,
                Step::Complete(which, bad) => self.complete(*which, *bad),
                Step::Poll(seen_empty) => self.poll(*seen_empty),
                Step::PollLate => self.poll_late(),
                Step::CountLate => self.count_late(),
                Step::Reset => self.reset(),
                Step::Release(key) => self.release(*key)?,
            }
        }
        Ok(())
    }
}

/// Runs many sequences. Returns the first that shows a registration that was kept too long.
fn search(order: Order, fault: Fault) -> Result<(), String> {
    let config = ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    };
    let found = TestRunner::new(config).run(&vec(step(), 1..60), |steps| {
        Model::new(order, fault).run(&steps)
    });
    found.map_err(|error| error.to_string())
}

#[test]
fn nothing_is_kept_that_a_request_uses() {
    for order in [Order::Signaled, Order::Each, Order::Any] {
        assert_eq!(search(order, Fault::None), Ok(()), "{order:?}");
    }
}

#[test]
fn faults_are_found() {
    for (order, fault) in [
        (Order::Any, Fault::OrderAssumed),
        (Order::Signaled, Fault::UnsignaledForgotten),
        (Order::Signaled, Fault::ErrorsCounted),
        (Order::Signaled, Fault::StaleCounted),
        (Order::Each, Fault::StaleCounted),
    ] {
        assert!(search(order, fault).is_err(), "{order:?} {fault:?}");
    }
}

/// Two faults show only in sequences that a random search rarely finds.
#[test]
fn rare_faults_are_found_by_their_sequences() {
    use Step::{Complete, CountLate, Poll, PollLate, Post, Release, Reset};
    let post = |key| Post(vec![(key, true)], 1);
    let late = vec![
        post(5),
        Complete(0, false),
        PollLate,
        Reset,
        Poll(true),
        post(5),
        CountLate,
        Release(5),
    ];
    let stale = vec![
        post(5),
        Complete(0, true),
        Reset,
        // This is the error of the first request. Then the completion queue is seen empty.
        Poll(false),
        Poll(true),
        post(1),
        Complete(0, false),
        Reset,
        // This is the success of the second request.
        Poll(false),
        post(5),
        Release(5),
    ];
    for order in [Order::Signaled, Order::Each] {
        for (steps, fault) in [
            (&late, Fault::LateCounted),
            (&stale, Fault::StaleErrorsCounted),
        ] {
            let run = |fault| Model::new(order, fault).run(steps);
            assert!(run(Fault::None).is_ok(), "{order:?} {fault:?}");
            assert!(run(fault).is_err(), "{order:?} {fault:?}");
        }
    }
}

/// Returns true if all registrations of a program that awaits its completions are kept.
fn is_kept(order: Order, fault: Fault, signaled: bool) -> bool {
    let mut model = Model::new(order, fault);
    for round in 0..100 {
        assert!(model.post(&[(round % 5 + 1, signaled)], 1).is_ok());
        if !signaled {
            assert!(model.post(&[(6, true)], 1).is_ok());
            model.complete(0, false);
        }
        model.complete(0, false);
        model.poll(false);
        assert!(model.release(round % 5 + 1).is_ok());
    }
    model.kept == 100
}

#[test]
fn what_has_completed_is_kept() {
    for order in [Order::Signaled, Order::Each, Order::Any] {
        assert!(is_kept(order, Fault::None, true), "{order:?}");
        assert!(!is_kept(order, Fault::CompletionIgnored, true), "{order:?}");
    }
    assert!(is_kept(Order::Signaled, Fault::None, false));
}

/// Many registrations are in use at once, and each is deregistered when its own request has
/// completed.
#[test]
fn of_many_outstanding_requests_those_that_are_over_are_known() {
    let (device, depth) = (Device::new(), 256);
    let queue = device.queue(Order::Signaled, depth, 1);
    let key = |number: u32| (number % (2 * depth) + 1) << 8;
    let mut kept = 0;
    for number in 0..20 * depth {
        let mut post = queue.post();
        post.request(true);
        post.key(key(number));
        drop(post);
        if number >= depth - 1 {
            queue.complete();
            let over = number - (depth - 1);
            kept += u32::from(device.release(key(over)) == Release::Keep);
            device.forget(key(over));
            assert_eq!(device.release(key(number)), Release::Outstanding);
        }
    }
    // Two keys may have the same place in the set of idle keys, so a few registrations are not
    // kept.
    assert!(kept > 19 * depth, "{kept}");
}

#[test]
fn more_completions_than_requests_leave_nothing_certain() {
    for order in [Order::Signaled, Order::Each, Order::Any] {
        let device = Device::new();
        let queue = device.queue(order, 4, 1);
        let mut post = queue.post();
        post.request(true);
        post.key(6);
        drop(post);
        queue.complete();
        assert_eq!(device.release(6), Release::Keep);
        device.forget(6);
        queue.complete();
        // The surplus is noticed when the shim looks at the queue.
        assert_eq!(device.release(6), Release::Outstanding);
        assert_eq!(device.release(7), Release::Outstanding);
        // The destroyed queue counts for no key any more.
        queue.destroy();
        assert_eq!(device.release(7), Release::Keep);
    }
}

/// A thread that deregisters finds the queues that use a key, even after they have used many keys.
#[test]
fn queues_come_and_go_while_keys_change() {
    let device = Device::new();
    for round in 0..50u32 {
        let queues: Vec<_> = (0..8).map(|_| device.queue(Order::Each, 8, 1)).collect();
        for number in 1..200u32 {
            let key = (number + round) << 8;
            for (at, queue) in queues.iter().enumerate() {
                let mut post = queue.post();
                post.request(true);
                post.key(key);
                drop(post);
                // One of the eight queues still uses the key.
                if at != number as usize % 8 {
                    queue.complete();
                }
            }
            assert_eq!(device.release(key), Release::Outstanding);
            queues[number as usize % 8].complete();
            assert_eq!(device.release(key), Release::Keep);
            device.forget(key);
        }
        // The last request is outstanding until its queue is destroyed.
        let mut post = queues[0].post();
        post.request(true);
        post.key(7);
        drop(post);
        assert_eq!(device.release(7), Release::Outstanding);
        queues.iter().for_each(|queue| queue.destroy());
        assert_eq!(device.release(7), Release::Keep);
        device.forget(7);
    }
}

/// More keys are outstanding than a line has words. So the queue counts as using every key.
#[test]
fn a_queue_without_room_counts_for_every_key() {
    let device = Device::new();
    // The queue has one line of eight words.
    let queue = device.queue(Order::Each, 1, 1);
    let mut post = queue.post();
    for key in 1..=9u32 {
        post.request(true);
        post.key(key);
    }
    drop(post);
    assert_eq!(device.release(1000), Release::Outstanding);
    (0..9).for_each(|_| queue.complete());
    for key in (1..=9).chain([1000]) {
        assert_eq!(device.release(key), Release::Keep);
        device.forget(key);
    }
}

/// A program polls all completions before it resets a queue pair. Its registrations are kept
/// afterwards, even if it never sees the completion queue empty.
#[test]
fn a_queue_pair_that_was_drained_and_reset_is_followed_as_before() {
    for order in [Order::Signaled, Order::Each] {
        let mut model = Model::new(order, Fault::None);
        for _ in 0..10 {
            let list = [(1, true), (2, false), (3, true), (4, true)];
            assert!(model.post(&list, 4).is_ok());
            model.complete(0, false);
            model.complete(0, true);
            while !model.completions.is_empty() {
                model.poll(false);
            }
            assert_eq!(model.device.release(3), Release::Outstanding);
            model.reset();
            assert!(model.post(&[(5, true)], 1).is_ok());
            assert_eq!(model.device.release(5), Release::Outstanding);
            model.complete(0, false);
            model.poll(false);
            for key in 1..6 {
                assert_eq!(model.device.release(key), Release::Keep, "{order:?} {key}");
                model.device.forget(key);
            }
        }
    }
}

/// A cell is read by the queues of one queue pair at most, and only if no completion of another
/// queue pair can be counted there.
#[test]
fn a_cell_has_one_owner() {
    let device = Device::new();
    static CELL: LazyLock<Cell> = LazyLock::new(Cell::default);
    let cell: &'static Cell = &CELL;
    let mut owners = Owners::default();
    let queue = |order| device.queue(order, 4, 1);
    let pairs: Vec<_> = (0..6)
        .map(|_| (queue(Order::Signaled), queue(Order::Each)))
        .collect();
    let takes = |owners: &mut Owners, pair: usize, number| {
        let (sends, receives) = &pairs[pair];
        let took = owners.take(number, cell, sends, Some(receives));
        assert_eq!(sends.reads(&cell.sends), took);
        assert_eq!(receives.reads(&cell.receives), took);
        took
    };
    assert!(takes(&mut owners, 0, 1));
    // All completions of the first were polled, so the second may have the same number.
    owners.give_back(1, true);
    assert!(takes(&mut owners, 1, 1));
    assert!(!pairs[0].0.reads(&cell.sends));
    // The third has another number with the same cell.
    assert!(!takes(&mut owners, 2, 0x1_0001));
    assert!(!pairs[1].0.reads(&cell.sends));
    assert!(!pairs[1].1.reads(&cell.receives));
    owners.give_back(1, true);
    assert!(!takes(&mut owners, 3, 1));
    assert!(takes(&mut owners, 4, 2));
    owners.give_back(2, false);
    assert!(!takes(&mut owners, 5, 2));
}

/// An error of an unsignaled send does not prove that a receive's completion was polled.
#[test]
fn errors_of_unsignaled_requests_vouch_for_nothing() {
    let device = Device::new();
    let (sends, receives) = (
        device.queue(Order::Signaled, 4, 1),
        device.queue(Order::Each, 4, 1),
    );
    let post = |queue: &Arc<Queue>, key: u32, signaled: bool| {
        let mut post = queue.post();
        post.request(signaled);
        post.key(key);
    };
    post(&sends, 1, false);
    post(&receives, 2, true);
    // The receive has succeeded, and the send has not. Only the error was polled.
    let polled = |errors, stale| left(&sends, &receives, errors, stale).all_polled;
    assert!(!polled(1, 0));
    assert!(polled(2, 0));
    // One of the two errors may be from before a reset.
    assert!(!polled(2, 1));
    receives.reset(polled(1, 0));
    post(&receives, 3, true);
    // This completion is from before the reset.
    receives.complete();
    assert_eq!(device.release(3), Release::Outstanding);
}
