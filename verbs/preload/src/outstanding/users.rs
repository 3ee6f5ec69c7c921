//! [`Users`]: the queues that may be using a key.
//!
//! A device may have thousands of queues, so a thread that deregisters must not look at each of
//! them. So keys are in groups, and each group has a list of the queues that have a word for one of
//! its keys. (A word is an element of `keys::InUse`.) A queue enters the list before its first word
//! for a key of the group, under the lock of the list. The queue leaves the list under the same
//! lock, when a thread that deregisters finds no such word. A poster whose key already has a word
//! enters no list, and takes no list's lock. Most posts use a key that already has a word.
//!
//! A queue that counts as using every key is in a separate list.

use super::keys::{GROUPS, boxed, group};
use super::queue::Queue;
use super::sync::{Arc, AtomicBool, Mutex, MutexGuard, Ordering, lock};

/// The lists of queues. See the file's head.
pub(super) struct Users {
    groups: Box<[Mutex<Vec<Arc<Queue>>>; GROUPS]>,
    /// The queues that count as using every key.
    everywhere: Mutex<Vec<Arc<Queue>>>,
    /// False if `everywhere` is empty.
    is_anywhere: AtomicBool,
}

impl Users {
    pub(super) fn new() -> Self {
        Self {
            groups: boxed(|| Mutex::new(Vec::new())),
            everywhere: Mutex::new(Vec::new()),
            is_anywhere: AtomicBool::new(false),
        }
    }

    fn of(&self, key: u32) -> &Mutex<Vec<Arc<Queue>>> {
        #[expect(clippy::indexing_slicing, reason = "there are so many groups")]
        &self.groups[group(key)]
    }

    /// Adds the queue to the list of the key's group, and calls `take` under the lock of the list.
    pub(super) fn add<T>(&self, key: u32, queue: &Arc<Queue>, take: impl FnOnce() -> T) -> T {
        let mut users = lock(self.of(key));
        enter(&mut users, queue);
        take()
    }

    /// Adds the queue to the list of queues that count as using every key. The state of the queue
    /// was changed before this call.
    pub(super) fn add_everywhere(&self, queue: &Arc<Queue>) {
        let mut users = lock(&self.everywhere);
        enter(&mut users, queue);
        self.is_anywhere.store(true, Ordering::Release);
    }

    /// Returns true if outstanding work may use the key.
    #[inline(always)]
    pub(super) fn may_use(&self, key: u32) -> bool {
        let users = lock(self.of(key));
        if users.is_empty() {
            drop(users);
        } else if Self::is_user(users, key) {
            return true;
        }
        self.is_anywhere.load(Ordering::Acquire) && self.is_crowded()
    }

    /// Returns true if work in one of these queues may use the key.
    #[inline(never)]
    fn is_user(mut users: MutexGuard<'_, Vec<Arc<Queue>>>, key: u32) -> bool {
        users.retain(|queue| queue.has_group(key));
        users.iter().any(|queue| queue.uses(key))
    }

    fn is_crowded(&self) -> bool {
        let mut users = lock(&self.everywhere);
        users.retain(|queue| queue.counts_for_every_key());
        self.is_anywhere.store(!users.is_empty(), Ordering::Release);
        !users.is_empty()
    }
}

fn enter(users: &mut Vec<Arc<Queue>>, queue: &Arc<Queue>) {
    if users.iter().any(|user| Arc::ptr_eq(user, queue)) {
        return;
    }
    if users.len() == users.capacity() {
        // The list is full. So destroyed queues leave it before it grows.
        users.retain(|user| !user.is_destroyed());
    }
    users.push(Arc::clone(queue));
}
