//! [`Queue`]: the work requests of one send queue, receive queue or shared receive queue.

use super::cells::Counter;
use super::keys::{Idle, InUse};
use super::sync::{
    Arc, AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering, Weak, add_to_locked, lock, pause,
};
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

/// The accounting of one queue (see the head of `mod.rs`).
#[repr(C, align(64))]
pub(crate) struct Queue {
    /// Twice the number of signaled requests that the device has, plus 1 while a thread has the
    /// lock.
    word: AtomicU64,
    /// The shape of the run's requests. Its meaning is the caller's.
    shape: AtomicU64,
    /// The key of the run; 0 if there is none.
    run: AtomicU32,
    /// The number of the word that the key of the run has.
    run_at: AtomicU32,
    order: Order,
    in_use: InUse,
    /// The idle keys of the device.
    idle: Arc<Idle>,
    /// The device's lists of queues by key. The lists own this queue, so the reference is weak.
    users: Weak<Users>,
    /// A position below which all requests are over, even if the completions do not show it.
    floor: AtomicU64,
    /// Is added to the number of completions that were counted.
    credit: AtomicU64,
    /// The number to which the completions rise once the completion queue was seen empty.
    settled: AtomicU64,
    unsignaled: Unsignaled,
    /// The cells in which polls count completions of this queue.
    counters: Mutex<Vec<Counter>>,
    /// True if a completion had no request. The queue then counts as using every key.
    lost: AtomicBool,
    destroyed: AtomicBool,
    counted: Counted,
}

/// The number of completions that were counted by [`Queue::complete`].
#[repr(align(64))]
struct Counted(AtomicU64);

/// The unsignaled requests that may not be over. Only the thread with the lock uses this.
#[derive(Default)]
struct Unsignaled {
    now: AtomicU64,
    /// The value of `now` at some time before.
    before: AtomicU64,
    /// The number of signaled requests at that time.
    accepted: AtomicU64,
}

/// The number from which signaled requests are counted. So position 0 is over from the beginning.
const FIRST: u64 = 1;

impl Queue {
    /// Makes a queue for at most `requests` outstanding requests, with at most `keys_each` keys
    /// each.
    pub(super) fn new(
        users: Weak<Users>,
        idle: Arc<Idle>,
        order: Order,
        requests: u32,
        keys_each: u32,
    ) -> Self {
        let keys = (requests as usize).saturating_mul(keys_each.max(1) as usize);
        Self {
            word: AtomicU64::new(2 * FIRST),
            shape: AtomicU64::new(u64::MAX),
            run: AtomicU32::new(0),
            run_at: AtomicU32::new(0),
            order,
            in_use: InUse::with_room_for(keys),
            idle,
            users,
            floor: AtomicU64::new(2 * FIRST),
            credit: AtomicU64::new(FIRST),
            settled: AtomicU64::new(0),
            unsignaled: Unsignaled::default(),
            counters: Mutex::new(Vec::new()),
            lost: AtomicBool::new(false),
            destroyed: AtomicBool::new(false),
            counted: Counted(AtomicU64::new(0)),
        }
    }

    /// Returns the shape that was last passed to [`Post::run`].
    #[inline]
    pub(crate) fn shape(&self) -> u64 {
        self.shape.load(Ordering::Relaxed)
    }

    /// Begins to post a signaled request whose only key is that of the run. Returns `None` if there
    /// is no run with this key, or another thread has the lock.
    ///
    /// This is the common way, so it has few instructions.
    #[inline]
    pub(crate) fn again(&self, key: impl FnOnce() -> u32) -> Option<Again<'_>> {
        if !self.try_lock() {
            return None;
        }
        if self.run.load(Ordering::Relaxed) != key() {
            self.unlock(0);
            return None;
        }
        Some(Again(self))
    }

    /// Begins a run with a key that the queue has used before, and its first request. The request
    /// is signaled, has only this key, and has the shape of the run before. Returns `None` if the
    /// key has no word, is idle, or another thread has the lock.
    #[inline]
    pub(crate) fn switch(&self, key: u32) -> Option<Again<'_>> {
        if !self.try_lock() {
            return None;
        }
        self.end_run();
        let Some(at) = self.in_use.find(key).filter(|_| !self.idle.has(key)) else {
            self.unlock(0);
            return None;
        };
        self.run_at.store(at as u32, Ordering::Relaxed);
        self.run.store(key, Ordering::Relaxed);
        Some(Again(self))
    }

    /// Begins to post. Other threads wait until the result is dropped.
    pub(crate) fn post(self: &Arc<Self>) -> Post<'_> {
        self.lock();
        self.end_run();
        let position = self.next_position();
        Post {
            queue: self,
            next: position,
            position,
        }
    }

    /// Returns true if outstanding work of the queue may use the key. If it returns false, a later
    /// post with the key checks whether the key is idle.
    pub(super) fn uses(self: &Arc<Self>, key: u32) -> bool {
        if self.is_destroyed() || !self.in_use.has_word(key) {
            return false;
        }
        if !self.lock_soon() {
            return true;
        }
        self.end_run();
        let uses = self.in_use.has(key, self.look());
        self.unlock(0);
        uses
    }

    /// Returns true if the queue has a word for a key of the group of `key`.
    pub(super) fn has_group(&self, key: u32) -> bool {
        !self.is_destroyed() && self.in_use.has_group(key)
    }

    /// Returns true if the queue counts as using every key.
    pub(super) fn counts_for_every_key(self: &Arc<Self>) -> bool {
        if self.is_destroyed() {
            return false;
        }
        if self.lost.load(Ordering::Acquire) || !self.lock_soon() {
            return true;
        }
        let is_crowded = self.in_use.is_crowded(self.over());
        self.unlock(0);
        is_crowded || self.lost.load(Ordering::Acquire)
    }

    pub(super) fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::Acquire)
    }

    /// Marks the queue as destroyed. The device does no more work for its requests.
    pub(crate) fn destroy(&self) {
        self.destroyed.store(true, Ordering::Release);
    }

    /// Also reads the completions of the queue in this counter from now on.
    pub(super) fn read(&self, count: &'static AtomicU64) {
        lock(&self.counters).push(Counter::new(count));
    }

    /// Returns true if the queue reads this counter.
    pub(crate) fn reads(&self, count: &AtomicU64) -> bool {
        lock(&self.counters).iter().any(|counter| counter.is(count))
    }

    /// Ignores what is counted in this counter from now on.
    pub(super) fn ignore(&self, count: &AtomicU64) {
        self.lock();
        self.keep(|counter| !counter.is(count));
        self.unlock(0);
    }

    /// Keeps some of the counters, and adds the values of the others to the credit. The caller has
    /// the lock.
    fn keep(&self, is_kept: impl Fn(&Counter) -> bool) {
        lock(&self.counters).retain(|counter| {
            let kept = is_kept(counter);
            if !kept {
                self.add_credit(counter.risen());
            }
            kept
        });
    }

    /// Counts a successful completion.
    #[inline]
    pub(crate) fn complete(&self) {
        self.counted.0.fetch_add(1, Ordering::Release);
    }

    /// Returns the number of completions. The caller has the lock.
    fn completed(&self) -> u64 {
        let counted = self.counted.0.load(Ordering::Acquire);
        let credit = self.credit.load(Ordering::Relaxed);
        let counters = lock(&self.counters);
        let risen = counters.iter().map(Counter::risen);
        risen.fold(counted.wrapping_add(credit), u64::wrapping_add)
    }

    fn add_credit(&self, credit: u64) {
        let before = self.credit.load(Ordering::Relaxed);
        self.credit
            .store(before.wrapping_add(credit), Ordering::Relaxed);
    }

    /// Raises the number of completions. The caller has the lock.
    fn raise(&self, completed: u64) {
        let missing = completed.saturating_sub(self.completed());
        self.add_credit(missing);
    }

    /// Returns the number of signaled requests that the device has. The caller has the lock.
    fn accepted(&self) -> u64 {
        self.word.load(Ordering::Relaxed) >> 1
    }

    /// Returns the position of the next request. The caller has the lock.
    fn next_position(&self) -> u64 {
        2 * self.accepted() + 1
    }

    /// Returns the position below which all requests are over. The caller has the lock.
    fn over(&self) -> u32 {
        let (completed, accepted) = (self.completed(), self.accepted());
        if completed > accepted {
            self.lost.store(true, Ordering::Release);
        }
        self.unsignaled.look(completed, accepted);
        let floor = self.floor.load(Ordering::Relaxed);
        if self.order == Order::Any && completed < accepted {
            return floor as u32;
        }
        let over = floor.max(2 * completed);
        self.floor.store(over, Ordering::Relaxed);
        over as u32
    }

    /// Returns what `over` returns. If the queue is lost, adds it to the queues that count as using
    /// every key.
    fn look(self: &Arc<Self>) -> u32 {
        let over = self.over();
        if self.lost.load(Ordering::Relaxed) {
            self.use_every_key();
        }
        over
    }

    #[cold]
    fn use_every_key(self: &Arc<Self>) {
        if let Some(users) = self.users.upgrade() {
            users.add_everywhere(self);
        }
    }

    /// Marks all requests as over, because the queue pair was reset. The caller passes whether [all
    /// completions were polled](Left::all_polled). Returns false if completions from before the
    /// reset may still be polled. The caller must then call [`settle`](Self::settle) later.
    pub(crate) fn reset(&self, all_polled: bool) -> bool {
        self.lock();
        self.end_run();
        // Positions of later requests must differ from those of unsignaled requests before the
        // reset. So one more request is counted, and it is complete.
        let accepted = self.accepted() + 1;
        self.add_credit(1);
        self.floor.store(2 * accepted, Ordering::Relaxed);
        self.settled.store(accepted, Ordering::Relaxed);
        self.unsignaled.reset(accepted);
        if all_polled {
            self.raise(accepted);
        }
        let is_settled = self.completed() == accepted;
        self.unlock(1);
        is_settled
    }

    /// Corrects the count, because the completion queue was seen empty since the reset. The cells
    /// are not read any more, since a poll from before may not have counted yet. Returns false if a
    /// thread is posting, so that the caller has to try again later.
    pub(crate) fn settle(&self) -> bool {
        if !self.lock_soon() {
            return false;
        }
        let settled = self.settled.load(Ordering::Relaxed);
        if self.completed() < settled {
            self.keep(|_| false);
            self.raise(settled);
        }
        self.unlock(0);
        true
    }

    /// Returns the number of requests that may still have a successful completion, and the number
    /// of the other requests that may not be over.
    fn unfinished(self: &Arc<Self>) -> (u64, u64) {
        self.lock();
        self.look();
        let with_completion = self.accepted().saturating_sub(self.completed());
        let others = self.unsignaled.now.load(Ordering::Relaxed);
        self.unlock(0);
        (with_completion, others)
    }

    /// Ends the run: notes the position of its last request. The caller has the lock.
    #[inline]
    fn end_run(&self) {
        let run = self.run.load(Ordering::Relaxed);
        if run != 0 {
            self.run.store(0, Ordering::Relaxed);
            let last = self.next_position() - 2;
            let at = self.run_at.load(Ordering::Relaxed);
            self.in_use.raise(run, at as usize, last as u32);
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.word.fetch_or(1, Ordering::Acquire) & 1 == 0
    }

    /// Waits until this thread has the lock. The owner may be in a system call of the device.
    fn lock(&self) {
        let mut tries = 0;
        while !self.try_lock() {
            tries += 1;
            pause(tries);
        }
    }

    /// Waits a short time for the lock. Returns false if another thread keeps it, or if this thread
    /// has it because it has begun an extended post.
    fn lock_soon(&self) -> bool {
        // Under loom two threads that wait in turn would wait for ever.
        const TRIES: u32 = if cfg!(loom) { 1 } else { 200 };
        (0..TRIES).any(|tries| {
            if tries > 0 {
                pause(tries);
            }
            self.try_lock()
        })
    }

    /// Releases the lock. The device has accepted so many more signaled requests.
    #[inline]
    fn unlock(&self, accepted: u64) {
        // The lock is 1, and each request is 2.
        add_to_locked(&self.word, (2 * accepted).wrapping_sub(1));
    }
}

impl Unsignaled {
    /// Counts a request.
    fn add(&self) -> u64 {
        let now = self.now.load(Ordering::Relaxed) + 1;
        self.now.store(now, Ordering::Relaxed);
        now
    }

    /// Subtracts the requests that are over: those before a signaled request that has completed.
    fn look(&self, completed: u64, accepted: u64) {
        if completed > self.accepted.load(Ordering::Relaxed) {
            let before = self.before.load(Ordering::Relaxed);
            let left = self.now.load(Ordering::Relaxed) - before;
            self.now.store(left, Ordering::Relaxed);
            self.before.store(left, Ordering::Relaxed);
            self.accepted.store(accepted, Ordering::Relaxed);
        }
    }

    fn reset(&self, accepted: u64) {
        self.now.store(0, Ordering::Relaxed);
        self.before.store(0, Ordering::Relaxed);
        self.accepted.store(accepted, Ordering::Relaxed);
    }
}

/// The completions of a queue pair that may be left to be polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// True if no successful completion is left to be polled. Completions with errors may be left.
    pub(crate) all_polled: bool,
    /// The largest number of completions with errors that may be left.
    pub(crate) errors: u64,
}

/// Returns the completions of a queue pair's two queues that may be left to be polled. `errors` is
/// the number of completions with errors that were polled since the last reset. At most `stale` of
/// them are from before that reset.
///
/// Each request has at most one completion. A completion with an error may belong to an unsignaled
/// request, which has none if it succeeds. Suppose that all unsignaled requests had one. The
/// remaining errors belong to requests that cannot succeed any more. So if they are at least as
/// many as the unfinished requests, no successful completion is left.
pub(crate) fn left(sends: &Arc<Queue>, receives: &Arc<Queue>, errors: u64, stale: u64) -> Left {
    let ((sends, unsignaled), (receives, _)) = (sends.unfinished(), receives.unfinished());
    let unfinished = sends + receives;
    let own = errors.saturating_sub(stale);
    Left {
        all_polled: unfinished <= own.saturating_sub(unsignaled),
        errors: (stale + unfinished + unsignaled).saturating_sub(errors),
    }
}

/// A request of the run that a thread is posting. The thread has the lock of the queue.
#[must_use]
pub(crate) struct Again<'q>(&'q Queue);

impl Again<'_> {
    /// Ends the post. The caller passes the device's result, which is 0 if the device has accepted
    /// the request.
    #[inline]
    pub(crate) fn end(self, refused: i32) {
        // The mask leaves out the sign. So the compiler does not conclude that the result is 0, and
        // does not set the register that has it. A device that returned `i32::MIN` would seem to
        // have accepted the request, which is safe.
        if refused & i32::MAX == 0 {
            self.0.unlock(1);
        } else {
            self.refused();
        }
    }

    #[cold]
    #[inline(never)]
    fn refused(self) {
        self.0.unlock(0);
    }
}

/// Requests that a thread is posting. The thread has the lock of the queue.
///
/// The thread drops this value after the device has all of the requests.
pub(crate) struct Post<'q> {
    queue: &'q Arc<Queue>,
    /// The position of the next request.
    next: u64,
    /// The position of the last request.
    position: u64,
}

/// The state of a post at some time, to which it can be taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(u64);

impl Post<'_> {
    /// Counts one more request. The keys noted after this call are its keys.
    #[inline]
    pub(crate) fn request(&mut self, signaled: bool) {
        self.position = self.next;
        if signaled {
            self.next += 2;
        } else if self.queue.unsignaled.add().is_multiple_of(64) {
            self.queue.look();
        }
    }

    /// Notes a key of the request that was counted last. Returns the number of the key's word;
    /// `None` if the queue has no room for the key.
    #[inline]
    pub(crate) fn key(&mut self, key: u32) -> Option<usize> {
        let noted = self.queue.in_use.renew(key, self.position as u32);
        noted.or_else(|| self.insert(key))
    }

    #[inline(never)]
    fn insert(&mut self, key: u32) -> Option<usize> {
        let queue = self.queue;
        // The device is closed if there are no lists.
        let users = queue.users.upgrade()?;
        let (position, over) = (self.position as u32, queue.look());
        let taken = users.add(key, queue, || queue.in_use.insert(key, position, over));
        if taken.is_none() {
            queue.in_use.crowd(position);
            users.add_everywhere(queue);
        }
        taken
    }

    /// Begins a run with the last request, which is signaled and has only this key, whose word has
    /// the number `at`. Later requests of this shape are posted by [`Queue::again`].
    #[inline]
    pub(crate) fn run(&self, key: u32, at: usize, shape: u64) {
        self.queue.run.store(key, Ordering::Relaxed);
        self.queue.run_at.store(at as u32, Ordering::Relaxed);
        self.queue.shape.store(shape, Ordering::Relaxed);
    }

    /// Subtracts the last `signaled` signaled requests, which the device has not accepted. Their
    /// keys stay noted, at positions that later requests get.
    pub(crate) fn take_back(&mut self, signaled: u64) {
        self.next = self.next.saturating_sub(2 * signaled);
    }

    /// Returns the current state.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.next)
    }

    /// Subtracts all requests since `mark`, of which the device has accepted none.
    pub(crate) fn take_back_to(&mut self, mark: Mark) {
        self.next = mark.0;
    }
}

impl Drop for Post<'_> {
    fn drop(&mut self) {
        let accepted = (self.next - self.queue.next_position()) / 2;
        self.queue.unlock(accepted);
    }
}
