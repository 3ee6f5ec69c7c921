//! [`Queue`]: the work requests of one send queue, receive queue or shared receive queue.

use super::keys::InUse;
use super::sync::{Arc, AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, Weak, lock};
use super::users::Users;

/// The order in which a queue completes, and the requests that have a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// A send queue: signaled requests complete in the order of posting.
    Signaled,
    /// A receive queue: all requests complete in the order of posting.
    Each,
    /// A shared receive queue: all requests complete, in any order.
    Any,
}

/// The accounting of one queue (see the head of `mod.rs`). Requests have numbers from 1.
pub(crate) struct Queue {
    order: Order,
    posting: Mutex<Posting>,
    /// The device's lists of queues by key. The lists own this queue, so the reference is weak.
    users: Weak<Users>,
    in_use: InUse,
    /// The number of requests that will have a completion. Each is counted before the device gets
    /// it.
    expected: AtomicU64,
    /// The numbers of the signaled requests, for as many as can be outstanding. Empty if each
    /// request of the queue has a completion.
    signaled: Box<[AtomicU64]>,
    /// The number of completions that were counted.
    completed: AtomicU64,
    /// The number below which all requests are over.
    over: AtomicU64,
    /// The value to which `completed` rises once the completion queue was seen empty.
    settled: AtomicU64,
    /// True if a completion had no request, or a request found no room in `signaled`. The queue
    /// then counts as using every key.
    lost: AtomicBool,
    destroyed: AtomicBool,
}

/// The state that only the posting thread uses.
struct Posting {
    /// The number of the next request.
    next: u64,
    /// The value up to which `expected` may grow before `completed` must be read again.
    limit: u64,
}

impl Queue {
    /// Makes a queue for at most `requests` outstanding requests, with at most `keys_each` keys
    /// each.
    pub(super) fn new(users: Weak<Users>, order: Order, requests: u32, keys_each: u32) -> Self {
        let requests = requests as usize;
        let keys = requests.saturating_mul(keys_each.max(1) as usize);
        let signaled = match order {
            Order::Signaled => requests.max(1).next_power_of_two(),
            Order::Each | Order::Any => 0,
        };
        Self {
            order,
            posting: Mutex::new(Posting {
                next: 1,
                limit: signaled as u64,
            }),
            users,
            in_use: InUse::with_room_for(keys),
            expected: AtomicU64::new(0),
            signaled: (0..signaled).map(|_| AtomicU64::new(0)).collect(),
            completed: AtomicU64::new(0),
            over: AtomicU64::new(1),
            settled: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            destroyed: AtomicBool::new(false),
        }
    }

    /// Begins to post. Other threads wait until the result is dropped.
    #[inline]
    pub(crate) fn post(self: &Arc<Self>) -> Post<'_> {
        Post {
            posting: lock(&self.posting),
            queue: self,
            over: self.over.load(Ordering::Relaxed) as u32,
        }
    }

    /// Returns true if outstanding work of the queue uses the key.
    pub(super) fn uses(&self, key: u32) -> bool {
        !self.is_destroyed() && self.in_use.has(key, self.over())
    }

    /// Returns true if the queue has a word for a key of the group of `key`.
    pub(super) fn has_group(&self, key: u32) -> bool {
        !self.is_destroyed() && self.in_use.has_group(key)
    }

    /// Returns true if the shim must assume that the queue uses every key.
    pub(super) fn counts_for_every_key(&self) -> bool {
        let is_lost = self.lost.load(Ordering::Acquire);
        !self.is_destroyed() && (is_lost || self.in_use.is_crowded(self.over()))
    }

    pub(super) fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::Acquire)
    }

    fn over(&self) -> u32 {
        self.over.load(Ordering::Acquire) as u32
    }

    /// Marks the queue as destroyed. The device does no more work for its requests.
    pub(crate) fn destroy(&self) {
        self.destroyed.store(true, Ordering::Release);
    }

    /// Counts a successful completion. If the queue completes in order, the caller holds the lock
    /// of its completion queue.
    #[inline]
    pub(crate) fn complete(self: &Arc<Self>) {
        if self.order == Order::Any {
            return self.complete_any();
        }
        let before = self.completed.load(Ordering::Relaxed);
        if before >= self.expected.load(Ordering::Acquire) {
            self.lose();
            return;
        }
        let request = if self.order == Order::Each {
            before + 1
        } else {
            self.signaled(before).load(Ordering::Relaxed)
        };
        self.completed.store(before + 1, Ordering::Release);
        self.raise(request + 1);
    }

    /// Counts a completion of a shared receive queue. Several completion queues may serve the
    /// queue, so several threads may call this at once.
    fn complete_any(self: &Arc<Self>) {
        let completed = self.completed.fetch_add(1, Ordering::AcqRel) + 1;
        // A request is counted in `expected` before the device has it. So the device has at most
        // `expected` requests.
        let expected = self.expected.load(Ordering::Acquire);
        if completed > expected {
            self.lose();
        } else if completed == expected {
            self.over.fetch_max(expected + 1, Ordering::AcqRel);
        }
    }

    /// Marks all requests as over, because the queue pair was reset. The caller holds the locks of
    /// its completion queues, and passes whether [all completions were polled](all_polled). Returns
    /// false if completions from before the reset may still be polled. The caller must then call
    /// [`settle`](Self::settle) later.
    pub(crate) fn reset(&self, all_polled: bool) -> bool {
        let posting = lock(&self.posting);
        self.raise(posting.next);
        let expected = self.expected.load(Ordering::Relaxed);
        self.settled.store(expected, Ordering::Relaxed);
        if all_polled {
            self.completed.store(expected, Ordering::Release);
        }
        self.completed.load(Ordering::Relaxed) == expected
    }

    /// Returns the number of requests that may still have a successful completion, and the number
    /// of the other requests that are not over.
    fn unfinished(&self) -> (u64, u64) {
        let posting = lock(&self.posting);
        let all = posting.next - self.over.load(Ordering::Relaxed);
        let expected = self.expected.load(Ordering::Relaxed);
        let with_completion = expected.saturating_sub(self.completed.load(Ordering::Relaxed));
        (with_completion, all.saturating_sub(with_completion))
    }

    /// Corrects the count, because the completion queue was seen empty since the reset. The caller
    /// holds the lock of the completion queue.
    pub(crate) fn settle(&self) {
        let settled = self.settled.load(Ordering::Relaxed);
        if self.completed.load(Ordering::Relaxed) < settled {
            self.completed.store(settled, Ordering::Release);
        }
    }

    /// Marks the queue as lost: it counts as using every key from now on.
    #[cold]
    fn lose(self: &Arc<Self>) {
        self.lost.store(true, Ordering::Release);
        if let Some(users) = self.users.upgrade() {
            users.add_everywhere(self);
        }
    }

    /// Raises `over`. The caller holds the lock of the completion queue.
    #[inline]
    fn raise(&self, over: u64) {
        if over > self.over.load(Ordering::Relaxed) {
            self.over.store(over, Ordering::Release);
        }
    }

    #[inline]
    fn signaled(&self, nth: u64) -> &AtomicU64 {
        #[expect(
            clippy::indexing_slicing,
            reason = "the length is a power of two, and not 0 here"
        )]
        &self.signaled[nth as usize & (self.signaled.len() - 1)]
    }
}

/// Returns true if no successful completion of a queue pair's two queues is left to be polled.
/// `errors` is the number of completions with errors that were polled since the last reset.
///
/// Each request has at most one completion. An unsignaled request has one only if it fails. In the
/// worst case, each unfinished unsignaled request has had one of the errors. The rest of the errors
/// then belong to the unfinished requests that always have a completion, and each of those has
/// failed. So if the rest is at least the number of those requests, no successful completion is
/// left.
pub(crate) fn all_polled(sends: &Queue, receives: &Queue, errors: u64) -> bool {
    let ((sends, unsignaled), (receives, _)) = (sends.unfinished(), receives.unfinished());
    sends + receives <= errors.saturating_sub(unsignaled)
}

/// Requests that a thread is posting.
///
/// The thread drops this value after the device has all of the requests.
pub(crate) struct Post<'q> {
    posting: MutexGuard<'q, Posting>,
    queue: &'q Arc<Queue>,
    over: u32,
}

/// The state of a queue at some time, to which a post can be taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    next: u64,
    expected: u64,
}

impl Post<'_> {
    /// Counts one more request. The keys noted after this call are its keys.
    #[inline]
    pub(crate) fn request(&mut self, signaled: bool) {
        let queue = self.queue;
        let number = self.posting.next;
        self.posting.next = number + 1;
        if !signaled {
            return;
        }
        let expected = queue.expected.load(Ordering::Relaxed);
        if queue.order == Order::Signaled {
            if expected >= self.posting.limit && !self.has_room(expected) {
                return;
            }
            let place = queue.signaled(expected);
            place.store(number, Ordering::Relaxed);
        }
        queue.expected.store(expected + 1, Ordering::Release);
    }

    /// Reads `completed` again. If there is still no room, marks the queue as lost.
    #[cold]
    fn has_room(&mut self, expected: u64) -> bool {
        let completed = self.queue.completed.load(Ordering::Acquire);
        self.posting.limit = completed + self.queue.signaled.len() as u64;
        let has_room = expected < self.posting.limit;
        if !has_room {
            self.queue.lose();
        }
        has_room
    }

    /// Notes a key of the request that was counted last.
    #[inline]
    pub(crate) fn key(&mut self, key: u32) {
        let request = (self.posting.next as u32).wrapping_sub(1);
        if !self.queue.in_use.renew(key, request) {
            self.insert(key, request);
        }
    }

    #[inline(never)]
    fn insert(&mut self, key: u32, request: u32) {
        let queue = self.queue;
        let Some(users) = queue.users.upgrade() else {
            // The device is closed.
            return;
        };
        let take = || queue.in_use.insert(key, request, self.over);
        if !users.add(key, queue, take) {
            queue.in_use.crowd(request);
            users.add_everywhere(queue);
        }
    }

    /// Subtracts the last `requests` requests, which the device has not accepted. `signaled` of
    /// them were signaled. Their keys stay noted, under numbers that later requests get.
    pub(crate) fn take_back(&mut self, requests: u64, signaled: u64) {
        let expected = self.queue.expected.load(Ordering::Relaxed);
        self.take_back_to(Mark {
            next: self.posting.next.saturating_sub(requests),
            expected: expected.saturating_sub(signaled),
        });
    }

    /// Returns the current state of the queue.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            next: self.posting.next,
            expected: self.queue.expected.load(Ordering::Relaxed),
        }
    }

    /// Subtracts all requests since `mark`, of which the device has accepted none.
    pub(crate) fn take_back_to(&mut self, mark: Mark) {
        self.posting.next = mark.next;
        self.queue.expected.store(mark.expected, Ordering::Release);
    }
}
