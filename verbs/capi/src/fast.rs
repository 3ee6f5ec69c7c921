//! The short way through a get and a put.
//!
//! Most calls are hits and puts of guards that are not the last. They need no error, no memory and
//! no callback of the application. This file serves them with few instructions: nothing is returned
//! through memory, and the thread's record is looked up once. A call that needs more goes the long
//! way (`api.rs`), which begins again and finds out why.
//!
//! The checks are those of the long way. So a handle that is not valid, a nested call and a null
//! pointer are found out there.

use std::ffi::c_uint;
use std::ptr;

use regcache_verbs::Access;

use crate::caches;
use crate::guards::{self, Guard};
use crate::thread_record::ThreadRecord;
use crate::types::Mr;

/// Serves a lookup, if it is a simple hit. Returns false if the long way must serve it.
///
/// # Safety
///
/// `mr` is null or writable.
#[inline(always)]
pub(crate) unsafe fn get(
    cache: u64,
    addr: *const u8,
    length: usize,
    access: c_uint,
    mr: *mut Mr,
) -> bool {
    let Some(thread) = ThreadRecord::known() else {
        return false;
    };
    if mr.is_null() || addr.is_null() {
        return false;
    }
    let served = caches::try_with(thread, cache, |instance| {
        if access & instance.unknown_access != 0 {
            return None;
        }
        let access = Access::from_bits_retain(access);
        let guard = instance.cache.get_at_once(addr, length, access)?;
        // SAFETY: the pointer is not null, so by the contract it is writable.
        unsafe { describe(mr, &guard) };
        let handle = guards::try_enter(thread, cache, guard)?;
        // SAFETY: as above.
        unsafe { (&raw mut (*mr).guard).write(ptr::without_provenance_mut(handle as usize)) };
        Some(())
    });
    served.is_some()
}

/// Writes the fields of a registration, except for its guard.
///
/// # Safety
///
/// `mr` is writable.
#[inline(always)]
pub(crate) unsafe fn describe(mr: *mut Mr, guard: &Guard) {
    let (range, registered) = (guard.range(), guard.registration());
    // SAFETY: the pointer is writable.
    unsafe {
        (&raw mut (*mr).lkey).write(registered.lkey);
        (&raw mut (*mr).rkey).write(registered.rkey);
        (&raw mut (*mr).registration).write(registered.registration);
        (&raw mut (*mr).addr).write(ptr::without_provenance_mut(range.start()));
        (&raw mut (*mr).length).write(range.len());
    }
}

/// Takes a guard out of its table, if the handle is valid. Otherwise the long way has to find out
/// why it is not.
#[inline(always)]
pub(crate) fn take(handle: u64) -> Option<Guard> {
    guards::try_take(ThreadRecord::known()?, handle)
}
