//! [`Guard`]: a reference to a registration in use, and the release of that reference.

use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::ptr::NonNull;

use crate::core::Content;
use crate::core::batch::Batch;
use crate::core::entry::{Entry, Left};
use crate::core::slot::EntryId;
use crate::core::spread::{choose_lane, has_lane};
use crate::monitor::{Auto, Monitor};
use crate::range::VaRange;
use crate::registrar::Registrar;
use crate::sys::cancel::Uncancelled;
use crate::sys::sync::Arc;

/// A reference to a registration in use. Drop the guard only after you have polled the completions
/// of all work that was posted with the registration's keys. The keys stay valid on the device
/// after the drop.
///
/// This teardown is wrong, because a send of the peer may overwrite memory that has another owner:
///
/// ```text
/// post_receive(&queue_pair, &buffer, guard.registration().lkey());
/// drop(guard);       // The receive is still posted.
/// drop(buffer);      // The allocator may hand out the memory again.
/// drop(queue_pair);  // This has to come first, because it ends all work.
/// ```
///
/// While a guard lives, its registration is not deregistered, even if the memory is unmapped or the
/// cache is dropped. So a transfer that was posted with the registration can complete. A guard may
/// be sent to the thread that polls the completion, and dropped there.
///
/// Dropping the guard does not end the registration on the device. A peer with a remote key can use
/// the key until the cache deregisters the memory, which may never happen. To revoke the key with
/// the last guard, set [`Builder::revoke_remote_keys`](crate::Builder::revoke_remote_keys).
pub struct Guard<R: Registrar, M: Monitor = Auto> {
    /// The entry. The guard owns a reference to it.
    entry: NonNull<Entry<Content<R, M>>>,
    owns: PhantomData<Content<R, M>>,
}

// SAFETY: a guard is a counted reference to an entry, which any thread may release. A guard gives
// access to the registration, which is `Send + Sync` by the trait. A guard also gives access to the
// core, which is `Sync` and may be dropped in any thread.
unsafe impl<R: Registrar, M: Monitor> Send for Guard<R, M> {}
// SAFETY: by shared reference, a guard gives access only to `&R::Registration` and `Copy` values.
unsafe impl<R: Registrar, M: Monitor> Sync for Guard<R, M> {}

impl<R: Registrar, M: Monitor> Guard<R, M> {
    /// Returns a guard that takes over the caller's reference to `entry`.
    #[inline]
    pub(crate) fn owning(entry: NonNull<Entry<Content<R, M>>>) -> Self {
        Self {
            entry,
            owns: PhantomData,
        }
    }

    #[inline]
    fn entry(&self) -> &Entry<Content<R, M>> {
        // SAFETY: the entry is in a slab or in a box of its own. The content holds a reference to
        // the core, which keeps the slab alive. So neither the slab nor the box is freed before the
        // reference that this guard owns is released.
        unsafe { self.entry.as_ref() }
    }

    #[inline]
    pub(crate) fn content(&self) -> &Content<R, M> {
        // SAFETY: this guard owns a reference to the entry while `self` is borrowed.
        unsafe { self.entry().content() }
    }

    /// Returns the registration, which contains what is needed to post a transfer.
    #[inline]
    pub fn registration(&self) -> &R::Registration {
        &self.content().registration
    }

    /// Returns the registrar that made the registration.
    #[doc(hidden)]
    #[inline]
    pub fn registrar(&self) -> &R {
        &self.content().core.registrar
    }

    /// Returns the addresses that the registration covers. The lookup's range is within these
    /// addresses.
    #[inline]
    pub fn range(&self) -> VaRange {
        self.content().range
    }

    /// Returns the access that the registration allows. The returned access serves the one that the
    /// lookup requested.
    #[inline]
    pub fn access(&self) -> R::Access {
        self.content().access
    }

    /// Returns true if the registration was put into the cache, and false if it is uncached. An
    /// uncached registration is deregistered when this guard is dropped.
    pub fn is_cached(&self) -> bool {
        self.content().core.slab.slot_of(self.entry()).is_some()
    }

    /// Returns a guard that owns the caller's reference to the entry, if the entry serves the
    /// request. Otherwise declines the reference.
    pub(crate) fn serving(
        entry: &Entry<Content<R, M>>,
        range: VaRange,
        access: R::Access,
    ) -> Option<Self> {
        let guard = Self::owning(NonNull::from(entry));
        if guard.content().serves(range, access) {
            entry.touch_shared();
            return Some(guard);
        }
        guard.decline();
        None
    }

    /// Returns a guard of an entry that several threads use, if the entry can be acquired and
    /// serves the request. The caller has found the cache to be current.
    #[cold]
    #[inline(never)]
    pub(crate) fn contended(
        entry: &Entry<Content<R, M>>,
        range: VaRange,
        access: R::Access,
    ) -> Option<Self> {
        choose_lane();
        if !entry.acquire_contended(end_spread::<R, M>) {
            return None;
        }
        Self::serving(entry, range, access)
    }

    /// Drops a guard whose entry does not serve the lookup, and subtracts the hit that was counted
    /// for the guard.
    #[doc(hidden)]
    #[cold]
    pub fn decline(self) {
        let entry = self.entry;
        mem::forget(self);
        // SAFETY: the guard owned the reference and is not used any more. The entry exists until
        // the reference is released.
        if unsafe { entry.as_ref().decline() } == Left::Nobody {
            deregister_last(entry);
        }
    }
}

impl<R: Registrar, M: Monitor> Guard<R, M> {
    /// Returns the guard as a pointer, for a table of the C library.
    #[doc(hidden)]
    #[inline(always)]
    pub fn into_raw(self) -> NonNull<()> {
        let entry = self.entry.cast();
        mem::forget(self);
        entry
    }

    /// Returns the guard that [`into_raw`](Self::into_raw) has turned into this pointer.
    ///
    /// # Safety
    ///
    /// The pointer is from `into_raw` of this type, and is used once.
    #[doc(hidden)]
    #[inline(always)]
    pub unsafe fn from_raw(guard: NonNull<()>) -> Self {
        Self::owning(guard.cast())
    }

    /// Drops the guard, if that takes few instructions. Otherwise returns the guard. The C library
    /// calls this method, so that the rest is a jump.
    ///
    /// # Errors
    ///
    /// Returns the guard, which the caller should drop.
    #[doc(hidden)]
    #[inline(always)]
    pub fn drop_at_once(self) -> Result<(), Self> {
        // SAFETY: this guard owns the reference, and is forgotten if the reference was released.
        if unsafe { self.entry().try_release() } {
            mem::forget(self);
            return Ok(());
        }
        Err(self)
    }
}

impl<R: Registrar, M: Monitor> Drop for Guard<R, M> {
    #[inline]
    fn drop(&mut self) {
        if self.entry().awaits_last_guard() {
            release_noting(self.entry);
            return;
        }
        // SAFETY: this guard owns the reference, and the guard is not used afterwards.
        if unsafe { self.entry().release() } == Left::Nobody {
            deregister_last(self.entry);
        }
    }
}

/// Ends an entry whose references were spread, and which the caller has claimed (`spread.rs`).
///
/// # Safety
///
/// `entry` is an [`Entry`] for a [`Content`] of this type. The caller has claimed it, and it has
/// this number of hits.
unsafe fn end_spread<R: Registrar, M: Monitor>(entry: NonNull<()>, hits: u64) {
    let entry = entry.cast::<Entry<Content<R, M>>>();
    // SAFETY: the caller has claimed the entry. The content is still there, and keeps the slab
    // alive.
    unsafe { entry.as_ref().reset(hits) };
    deregister_last(entry);
}

/// Deregisters a registration whose last guard was dropped.
#[cold]
fn deregister_last<R: Registrar, M: Monitor>(entry: NonNull<Entry<Content<R, M>>>) {
    let _uncancelled = Uncancelled::begin();
    // SAFETY: the content has not been taken yet, so it still holds a reference to the core. The
    // core keeps the slab alive, as in `Guard::entry`. An entry in a box lives until the box is
    // freed below.
    let shared = unsafe { entry.as_ref() };
    // SAFETY: `release` has just told this thread to take the content.
    let content = unsafe { shared.take() };
    if content.core.in_child() {
        // The registration belongs to the parent process, so the child must not deregister it. The
        // child leaks it.
        mem::forget(content);
        return;
    }
    let core = Arc::clone(&content.core);
    let id = core.id(shared, content.number);
    if let EntryId::Uncached(_) = id {
        // SAFETY: an entry outside the slab comes from a box, and the last reference to the entry
        // is gone.
        drop(unsafe { Box::from_raw(entry.as_ptr()) });
    }
    core.deregister_entry(content, id);
}

/// Releases a reference to an entry with a flag that the drop of a guard must act on.
#[cold]
#[inline(never)]
fn release_noting<R: Registrar, M: Monitor>(entry: NonNull<Entry<Content<R, M>>>) {
    // SAFETY: the caller's reference keeps the entry alive, as in `Guard::entry`. That reference is
    // released only below.
    let shared = unsafe { entry.as_ref() };
    // As in `Cache::get`, each rare case is a jump.
    if !(shared.is_only_spread() && has_lane()) {
        return release_last(entry);
    }
    shared.spread_of_reference().drop_and_end();
}

/// Releases a reference to a revocable, parked or spread entry. If this was the last guard, revokes
/// the registration, or makes the entry a candidate for eviction again.
#[cold]
fn release_last<R: Registrar, M: Monitor>(entry: NonNull<Entry<Content<R, M>>>) {
    let _uncancelled = Uncancelled::begin();
    // SAFETY: the caller's reference keeps the entry alive, as in `Guard::entry`. That reference is
    // released only below.
    let shared = unsafe { entry.as_ref() };
    // SAFETY: the caller's reference is released only below.
    let content = unsafe { shared.content() };
    let core = Arc::clone(&content.core);
    let id = core.id(shared, content.number);
    choose_lane();
    // SAFETY: the reference that is released is the caller's, and the caller does not use it
    // afterwards. The core keeps the slab alive.
    match unsafe { shared.release_told() } {
        Left::Nobody => deregister_last(entry),
        Left::Index if core.in_child() => {}
        Left::Index => {
            if let EntryId::Cached(slot, cookie) = id {
                let mut batch = Batch::default();
                let mut table = core.lock();
                table.last_guard_dropped(&core.slab, slot, cookie, &mut batch);
                drop(table);
                core.deregister_and_vacate(&batch);
            }
        }
        Left::Others => {}
    }
}

impl<R: Registrar, M: Monitor> fmt::Debug for Guard<R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("range", &self.range())
            .field("access", &self.access())
            .field("cached", &self.is_cached())
            .finish_non_exhaustive()
    }
}
