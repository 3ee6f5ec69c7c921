//! [`Device`]: the queues of one open device, and its idle keys.

use super::keys::Idle;
use super::queue::{Order, Queue};
use super::sync::Arc;
use super::users::Users;

/// The way to end a registration that the program deregisters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// No outstanding work uses its key, so the cache may keep it.
    Keep,
    /// The shim must deregister it, since outstanding work may use its key.
    Outstanding,
    /// The shim must deregister it, since the set of idle keys has no place for its key.
    Crowded,
}

/// The accounting of one open device. Work in any queue of the device may use any key of the
/// device.
pub(crate) struct Device {
    users: Arc<Users>,
    idle: Arc<Idle>,
}

impl Device {
    pub(crate) fn new() -> Self {
        Self {
            users: Arc::new(Users::new()),
            idle: Arc::new(Idle::new()),
        }
    }

    /// Makes a queue for at most `requests` outstanding requests, with at most `keys_each` keys
    /// each.
    pub(crate) fn queue(&self, order: Order, requests: u32, keys_each: u32) -> Arc<Queue> {
        let users = Arc::downgrade(&self.users);
        let idle = Arc::clone(&self.idle);
        Arc::new(Queue::new(users, idle, order, requests, keys_each))
    }

    /// Makes a held key idle, if no outstanding work uses it.
    #[inline(always)]
    pub(crate) fn release(&self, key: u32) -> Release {
        if !self.idle.add(key) {
            return Release::Crowded;
        }
        if self.users.may_use(key) {
            self.idle.remove(key);
            return Release::Outstanding;
        }
        Release::Keep
    }

    /// Removes a key from the idle keys, because it is held again or gone.
    #[inline(always)]
    pub(crate) fn forget(&self, key: u32) {
        self.idle.remove(key);
    }

    /// Returns true if the key is idle: a poster must then end its registration before it posts.
    #[inline]
    pub(crate) fn is_idle(&self, key: u32) -> bool {
        self.idle.has(key)
    }
}
