//! Checks the accounting of outstanding work under loom. The models run every interleaving of a
//! poster, a poller and a thread that deregisters, within the bound of `LOOM_MAX_PREEMPTIONS`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p regcache-preload --release --test loom`
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

#[path = "../src/outstanding/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the suite uses a part")]
mod outstanding;

use outstanding::{Cell, Device, Order, Owners, Queue, Release};

const KEY: u32 = 0x1234;

/// A device with one queue. `outstanding` is true while work that uses the key is outstanding.
struct Model {
    device: Device,
    queue: Arc<Queue>,
    /// The cell of the queue pair, in which polls count.
    cell: &'static Cell,
    outstanding: AtomicBool,
}

impl Model {
    fn new(order: Order) -> Arc<Self> {
        let device = Device::new();
        let queue = device.queue(order, 2, 1);
        let cell = Box::leak(Box::default());
        // The other queue of the queue pair does not matter here.
        let other = device.queue(Order::Signaled, 2, 1);
        let is_read = match order {
            Order::Signaled => Owners::default().take(1, cell, &queue, None),
            Order::Each | Order::Any => Owners::default().take(1, cell, &other, Some(&queue)),
        };
        assert!(is_read);
        Arc::new(Self {
            device,
            queue,
            cell,
            outstanding: AtomicBool::new(false),
        })
    }

    /// Posts one request as the shim does. Returns false if the key had to be deregistered first.
    fn post(&self, signaled: bool) -> bool {
        if signaled && let Some(again) = self.queue.again(|| KEY).or_else(|| self.queue.switch(KEY))
        {
            self.outstanding.store(true, Ordering::Relaxed);
            again.end(0);
            return true;
        }
        let mut post = self.queue.post();
        let mark = post.mark();
        post.request(signaled);
        let noted = post.key(KEY);
        if self.device.is_idle(KEY) {
            // In the shim the key is deregistered now, and then the device refuses the request.
            post.take_back_to(mark);
            return false;
        }
        if signaled && let Some(at) = noted {
            post.run(KEY, at, 0);
        }
        self.outstanding.store(true, Ordering::Relaxed);
        true
    }

    /// Completes the request, and polls its completion.
    fn complete(&self) {
        self.outstanding.store(false, Ordering::Relaxed);
        self.count();
    }

    /// Counts a completion as a poll does.
    fn count(&self) {
        for counter in [&self.cell.sends, &self.cell.receives] {
            if self.queue.reads(counter) {
                counter.fetch_add(1, Ordering::Release);
            }
        }
    }
}

/// If the device gets a request while another thread deregisters the request's key, the
/// registration is not kept.
#[test]
fn a_poster_and_a_deregistration_see_one_another() {
    loom::model(|| {
        let model = Model::new(Order::Signaled);
        let poster = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.post(true))
        };
        let kept = model.device.release(KEY) == Release::Keep;
        assert!(!(poster.join().unwrap() && kept));
    });
}

/// The same holds if the queue has used the key before, so that the poster goes on with a run and
/// checks nothing else.
#[test]
fn a_poster_with_a_known_key_and_a_deregistration_see_one_another() {
    loom::model(|| {
        let model = Model::new(Order::Signaled);
        assert!(model.post(true));
        model.complete();
        let poster = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.post(true))
        };
        let kept = model.device.release(KEY) == Release::Keep;
        assert!(!(poster.join().unwrap() && kept));
    });
}

/// A thread deregisters other keys, and at least one of them is in the same group as `KEY`. The
/// thread cleans the list of the group, while a queue enters that list. The entry must not be lost.
#[test]
fn a_queue_enters_a_list_while_it_is_cleaned() {
    loom::model(|| {
        let model = Model::new(Order::Each);
        let poster = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.post(true))
        };
        // There are two groups of keys, so some of these keys are in the group of KEY.
        for key in [KEY + 1, KEY + 2, KEY + 3] {
            if model.device.release(key) == Release::Keep {
                model.device.forget(key);
            }
        }
        assert!(poster.join().unwrap());
        assert_eq!(model.device.release(KEY), Release::Outstanding);
        model.complete();
        assert_eq!(model.device.release(KEY), Release::Keep);
    });
}

/// A thread polls the completion while another deregisters. The registration is kept only if the
/// work is over.
fn what_is_kept_is_over(order: Order) {
    loom::model(move || {
        let model = Model::new(order);
        assert!(model.post(true));
        let poller = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.complete())
        };
        if model.device.release(KEY) == Release::Keep {
            assert!(!model.outstanding.load(Ordering::Relaxed));
        }
        poller.join().unwrap();
    });
}

#[test]
fn what_is_kept_of_a_send_queue_is_over() {
    what_is_kept_is_over(Order::Signaled);
}

#[test]
fn what_is_kept_of_a_receive_queue_is_over() {
    what_is_kept_is_over(Order::Each);
}

#[test]
fn what_is_kept_of_a_shared_queue_is_over() {
    what_is_kept_is_over(Order::Any);
}

/// Two threads complete receives of a shared receive queue, while a third thread posts to the
/// queue.
#[test]
fn a_shared_queue_is_drained_by_several() {
    loom::model(|| {
        let model = Model::new(Order::Any);
        assert!(model.post(true));
        let mut other = model.queue.post();
        other.request(true);
        other.key(KEY + 1);
        drop(other);
        let pollers = [(), ()].map(|()| {
            let model = Arc::clone(&model);
            thread::spawn(move || model.count())
        });
        let mut third = model.queue.post();
        third.request(true);
        third.key(KEY + 2);
        drop(third);
        for poller in pollers {
            poller.join().unwrap();
        }
        // Two of the three receives are over, but the shim cannot tell which. So it must assume
        // that each key is in use.
        assert_eq!(model.device.release(KEY + 2), Release::Outstanding);
        model.count();
        for key in [KEY, KEY + 1, KEY + 2] {
            assert_eq!(model.device.release(key), Release::Keep);
            model.device.forget(key);
        }
    });
}

/// Two threads post to one queue at the same time. Both requests are counted.
#[test]
fn two_posters_are_both_counted() {
    loom::model(|| {
        let model = Model::new(Order::Each);
        assert!(model.post(true));
        model.count();
        let other = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.post(true))
        };
        assert!(model.post(true));
        assert!(other.join().unwrap());
        for _ in 0..2 {
            assert_eq!(model.device.release(KEY), Release::Outstanding);
            model.count();
        }
        assert_eq!(model.device.release(KEY), Release::Keep);
    });
}

/// A poll gets a completion from before a reset, and counts it after the queue has new work.
#[test]
fn a_late_poll_ends_no_new_work() {
    loom::model(|| {
        let model = Model::new(Order::Each);
        assert!(model.post(true));
        let poller = {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                model.cell.receives.fetch_add(1, Ordering::Release);
            })
        };
        model.queue.reset(false);
        assert!(model.queue.settle());
        assert!(model.post(true));
        assert_eq!(model.device.release(KEY), Release::Outstanding);
        poller.join().unwrap();
        assert_eq!(model.device.release(KEY), Release::Outstanding);
        model.queue.complete();
        assert_eq!(model.device.release(KEY), Release::Keep);
    });
}

/// A poster counts requests while an earlier request completes.
#[test]
fn a_send_queue_is_posted_to_and_polled_at_once() {
    loom::model(|| {
        let model = Model::new(Order::Signaled);
        assert!(model.post(true));
        let poller = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.complete())
        };
        let mut post = model.queue.post();
        for signaled in [false, true] {
            post.request(signaled);
            post.key(KEY + 1);
        }
        drop(post);
        poller.join().unwrap();
        assert_eq!(model.device.release(KEY), Release::Keep);
        assert_eq!(model.device.release(KEY + 1), Release::Outstanding);
        model.count();
        assert_eq!(model.device.release(KEY + 1), Release::Keep);
    });
}
