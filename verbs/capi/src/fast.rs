//! The short way through a get and a put.
//!
//! Most calls are hits and puts of guards that are not the last. They need no error, no memory and
//! no callback of the application. This file serves them with few instructions: nothing is returned
//! through memory, no function is called, and the thread's record is looked up once. A call that
//! needs more goes the long way (`api.rs`), which begins again and finds out why. The way there is
//! a jump, so that the short way need not save CPU registers.
//!
//! The checks are those of the long way. So a handle that is not valid, a nested call and a null
//! pointer are found out there.

use std::convert::Infallible;
use std::ffi::c_uint;
use std::mem;
use std::ptr;
use std::sync::atomic::Ordering;

use regcache::internal;
use regcache::monitor::{Auto, Shared};
use regcache_verbs::Access;

use crate::caches;
use crate::device::{AnyDevice, Keys};
use crate::guards::{self, Guard};
use crate::thread_record::ThreadRecord;
use crate::types::Mr;

pub(crate) type Contended = internal::Contended<'static, AnyDevice, Shared<Auto>>;

/// The reason why a lookup is not served at once.
pub(crate) enum NotYet {
    /// The long way must serve it, with these arguments.
    Unknown(Given),
    /// The same, but the caller must call [`decline`] with this guard before.
    Declines(Given, Guard),
    /// The caller must call [`share`] with this entry.
    Contended(Given, Contended),
}

/// Two of a lookup's arguments: the number that was passed as the cache, and the access. Copies in
/// the thread's record save two CPU registers until the long way needs them.
#[derive(Clone, Copy)]
pub(crate) struct Given {
    pub(crate) cache: u64,
    pub(crate) access: c_uint,
}

/// Serves a lookup, if it is a simple hit.
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
) -> Result<(), NotYet> {
    let thread = ThreadRecord::known_or_none();
    let given = Given { cache, access };
    if mr.is_null() {
        return Err(NotYet::Unknown(given));
    }
    let found = caches::use_at_once(thread, cache);
    let (using, cache) = found.ok_or(NotYet::Unknown(given))?;
    thread.set_access(access);
    let given = || Given {
        cache: thread.busy.load(Ordering::Relaxed),
        access: thread.access_again(),
    };
    if !guards::has_room(thread) {
        return Err(NotYet::Unknown(given()));
    }
    // An access flag that the device does not know is in no entry, and this finds only entries that
    // have the same flags, apart from the permissions.
    let access = || Access::from_bits_retain(thread.access());
    let guard = match cache.get(addr, length, access) {
        Ok(guard) => guard,
        Err(internal::NotYet::Unknown) => return Err(NotYet::Unknown(given())),
        Err(internal::NotYet::Declines(other)) => {
            mem::forget(using);
            return Err(NotYet::Declines(given(), other));
        }
        Err(internal::NotYet::Contended(entry)) => {
            mem::forget(using);
            return Err(NotYet::Contended(given(), entry));
        }
    };
    // SAFETY: there was room, and no function was called since.
    let enter = |guard| Ok(unsafe { guards::enter_at_once(thread, guard) });
    // SAFETY: the pointer is not null, so by the contract it is writable.
    let Ok::<_, Infallible>(()) = unsafe { hand_over(mr, guard, enter) };
    Ok(())
}

/// Declines a guard that does not serve a lookup, and ends the use of the cache.
#[cold]
pub(crate) fn decline(other: Guard) {
    other.decline();
    end_use();
}

/// Ends the use of the cache, which the lookup has left to this function. Releases for the same
/// reason as the drop of `Using` (`table.rs`).
fn end_use() {
    let busy = &ThreadRecord::known_or_none().busy;
    busy.store(0, Ordering::Release);
}

/// Serves a lookup whose entry several threads use, and ends the use of the cache. Returns false if
/// the long way must serve the lookup.
///
/// # Safety
///
/// [`get`] has just returned `given` and `entry` for these arguments.
#[cold]
pub(crate) unsafe fn share(
    given: Given,
    addr: *const u8,
    length: usize,
    mr: *mut Mr,
    entry: Contended,
) -> bool {
    let access = Access::from_bits_retain(given.access);
    // SAFETY: the lookup has left the end of its use to this function.
    let cache = unsafe { caches::used_at_once(given.cache) };
    let guard = cache.get_contended(addr, length, access, entry);
    let is_served = guard.is_some();
    if let Some(guard) = guard {
        // SAFETY: `get` has found room, and the thread has entered no guard since.
        let enter =
            |guard| Ok(unsafe { guards::enter_at_once(ThreadRecord::known_or_none(), guard) });
        // SAFETY: `get` has found that the pointer is not null, so by the contract it is writable.
        let Ok::<_, Infallible>(()) = unsafe { hand_over(mr, guard, enter) };
    }
    end_use();
    is_served
}

/// Writes the registration of a guard, and the handle under which `enter` enters the guard into its
/// table. If `enter` fails, the handle is not written.
///
/// # Safety
///
/// `mr` is writable.
#[inline(always)]
pub(crate) unsafe fn hand_over<E>(
    mr: *mut Mr,
    guard: Guard,
    enter: impl FnOnce(Guard) -> Result<u64, E>,
) -> Result<(), E> {
    let (range, keys) = (guard.range(), *guard.registration());
    // SAFETY: the pointer is writable. The three fields from `lkey` on are laid out as `Keys` is
    // (`device.rs`).
    unsafe {
        (&raw mut (*mr).lkey).cast::<Keys>().write(keys);
        (&raw mut (*mr).addr).write(ptr::without_provenance_mut(range.start()));
        (&raw mut (*mr).length).write(range.len());
    }
    let handle = enter(guard)?;
    // SAFETY: the pointer is writable.
    unsafe { (&raw mut (*mr).guard).write(ptr::without_provenance_mut(handle as usize)) };
    Ok(())
}

/// Takes a guard out of its table, if the handle is valid. Otherwise the long way has to find out
/// why it is not.
#[inline(always)]
pub(crate) fn take(handle: u64) -> Option<Guard> {
    guards::take_at_once(ThreadRecord::known_or_none(), handle)
}
