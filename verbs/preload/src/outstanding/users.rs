//! [`Users`]: the queues that may be using a key.
//!
//! A thread that deregisters must not look at each queue of the device, of which there may be
//! thousands. So keys are in groups, and each group has a list of the queues that have a word for
//! one of its keys. A queue enters the list before its first word for a key of the group, under the
//! lock of the list. It leaves when a thread that deregisters finds that it has no such word any
//! more, under the same lock. A key that has a word already needs neither: that is the common way
//! of posting.
//!
//! A queue that counts for every key is in a list of its own.

use super::keys::{GROUPS, group};
use super::queue::Queue;
use super::sync::{Arc, AtomicBool, Mutex, Ordering, lock};

/// See the file's head.
pub(super) struct Users {
    groups: Box<[Mutex<Vec<Arc<Queue>>>]>,
    /// Those that count for every key.
    everywhere: Mutex<Vec<Arc<Queue>>>,
    /// False if that list is empty.
    is_anywhere: AtomicBool,
}

impl Users {
    pub(super) fn new() -> Self {
        Self {
            groups: (0..GROUPS).map(|_| Mutex::new(Vec::new())).collect(),
            everywhere: Mutex::new(Vec::new()),
            is_anywhere: AtomicBool::new(false),
        }
    }

    fn of(&self, key: u32) -> &Mutex<Vec<Arc<Queue>>> {
        #[expect(clippy::indexing_slicing, reason = "there are so many groups")]
        &self.groups[group(key)]
    }

    /// Adds the queue for the key's group, and has it take a word for the key meanwhile.
    pub(super) fn add<T>(&self, key: u32, queue: &Arc<Queue>, take: impl FnOnce() -> T) -> T {
        let mut users = lock(self.of(key));
        enter(&mut users, queue);
        take()
    }

    /// Adds the queue for every key. Its state says so already.
    pub(super) fn add_everywhere(&self, queue: &Arc<Queue>) {
        let mut users = lock(&self.everywhere);
        enter(&mut users, queue);
        self.is_anywhere.store(true, Ordering::Release);
    }

    /// True unless nothing outstanding uses the key.
    pub(super) fn may_use(&self, key: u32) -> bool {
        let mut users = lock(self.of(key));
        users.retain(|queue| queue.has_group(key));
        let uses = users.iter().any(|queue| queue.uses(key));
        drop(users);
        uses || self.is_anywhere.load(Ordering::Acquire) && self.is_crowded()
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
        // Before it grows.
        users.retain(|user| !user.is_destroyed());
    }
    users.push(Arc::clone(queue));
}
