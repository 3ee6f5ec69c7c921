//! [`Device`]: the queues of one open device, and its idle keys.

use super::keys::Idle;
use super::queue::Queue;
use super::sync::{Arc, Ordering, RwLock, fence};

/// How to end a registration that the program gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// Nothing outstanding uses its key: it may be kept.
    Keep,
    /// It has to be deregistered for real, since something outstanding may use its key.
    Outstanding,
    /// It has to be deregistered for real, since there is no place for its key among the idle ones.
    Crowded,
}

/// All queues of an open device, whose keys may be in use by any of them.
pub(crate) struct Device {
    queues: RwLock<Vec<Arc<Queue>>>,
    idle: Idle,
}

/// So many idle keys find a place nearly always, and few that many.
#[cfg(not(loom))]
const IDLE_BITS: u32 = 16;
#[cfg(loom)]
const IDLE_BITS: u32 = 1;

impl Device {
    pub(crate) fn new() -> Self {
        Self {
            queues: RwLock::new(Vec::new()),
            idle: Idle::with_bits(IDLE_BITS),
        }
    }

    /// Adds a queue that was created.
    pub(crate) fn add(&self, queue: Arc<Queue>) {
        let mut queues = self.queues.write().unwrap_or_else(|it| it.into_inner());
        queues.push(queue);
    }

    /// Removes a queue that was destroyed, and with it all of its requests.
    pub(crate) fn remove(&self, queue: &Arc<Queue>) {
        let mut queues = self.queues.write().unwrap_or_else(|it| it.into_inner());
        if let Some(at) = queues.iter().position(|it| Arc::ptr_eq(it, queue)) {
            queues.swap_remove(at);
        }
    }

    /// Makes a held key idle, if nothing outstanding uses it.
    pub(crate) fn release(&self, key: u32) -> Release {
        if !self.idle.add(key) {
            return Release::Crowded;
        }
        fence(Ordering::SeqCst);
        let queues = self.queues.read().unwrap_or_else(|it| it.into_inner());
        if queues.iter().any(|queue| queue.may_use(key)) {
            self.idle.remove(key);
            return Release::Outstanding;
        }
        Release::Keep
    }

    /// The key is held again, or gone.
    pub(crate) fn forget(&self, key: u32) {
        self.idle.remove(key);
    }

    /// Between the last key that a poster notes and its first look at an idle one.
    #[inline]
    pub(crate) fn noted(&self) {
        fence(Ordering::SeqCst);
    }

    /// True if a poster must not post with the key before it is gone.
    #[inline]
    pub(crate) fn is_idle(&self, key: u32) -> bool {
        self.idle.has(key)
    }
}
