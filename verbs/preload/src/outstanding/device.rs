//! [`Device`]: the queues of one open device, and its idle keys.

use super::keys::Idle;
use super::queue::{Order, Queue};
use super::sync::{Arc, Ordering, fence};
use super::users::Users;

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
    users: Arc<Users>,
    idle: Idle,
}

/// So many idle keys find a place nearly always, and few that many.
const IDLE_BITS: u32 = if cfg!(loom) { 1 } else { 16 };

impl Device {
    pub(crate) fn new() -> Self {
        Self {
            users: Arc::new(Users::new()),
            idle: Idle::with_bits(IDLE_BITS),
        }
    }

    /// Makes a queue for at most so many requests and keys at a time.
    pub(crate) fn queue(&self, order: Order, requests: u32, keys_each: u32) -> Arc<Queue> {
        let users = Arc::downgrade(&self.users);
        Arc::new(Queue::new(users, order, requests, keys_each))
    }

    /// Makes a held key idle, if nothing outstanding uses it.
    pub(crate) fn release(&self, key: u32) -> Release {
        if !self.idle.add(key) {
            return Release::Crowded;
        }
        fence(Ordering::SeqCst);
        if self.users.may_use(key) {
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
