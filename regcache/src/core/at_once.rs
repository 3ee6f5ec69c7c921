//! [`AtOnce`]: the hits that take the fewest instructions, for the C library.

use std::hint::cold_path;
use std::ptr::NonNull;

use crate::core::Core;
use crate::core::guard::Guard;
use crate::monitor::Monitor;
use crate::registrar::{Access as _, Registrar};

/// The part of a cache that serves simple hits.
#[doc(hidden)]
#[repr(transparent)]
pub struct AtOnce<R: Registrar, M: Monitor>(Core<R, M>);

impl<R: Registrar, M: Monitor> AtOnce<R, M> {
    pub(crate) fn of(core: &Core<R, M>) -> &Self {
        // SAFETY: the two types have the same layout.
        unsafe { NonNull::from(core).cast::<Self>().as_ref() }
    }

    /// Returns a registration as [`Cache::get`](crate::Cache::get) does, if the lookup is a hit of
    /// the kind that takes the fewest instructions. `access` returns the access. Otherwise returns
    /// an error, even if the cache has a registration. If the error has a guard, the guard does not
    /// serve the lookup, and the caller must [decline](Guard::decline) it.
    ///
    /// The C library calls this method before the methods that may fail. The method calls no other
    /// function, does not panic, and never registers memory. Each rare case returns at once, so
    /// that a hit need not save CPU registers.
    #[doc(hidden)]
    #[inline(always)]
    pub fn get(
        &self,
        start: *const u8,
        len: usize,
        access: impl FnOnce() -> R::Access,
    ) -> Result<Guard<R, M>, Option<Guard<R, M>>> {
        let start = start.addr();
        let Self(core) = self;
        let Some(slot) = core.hints.first(start) else {
            return Err(None);
        };
        // SAFETY: the hint was noted for an entry, so the slab has its slot.
        let entry = unsafe { core.slab.get_unchecked(slot) };
        if !core.is_current_at_once() || !entry.try_acquire() {
            return Err(None);
        }
        let guard = Guard::owning(NonNull::from(entry));
        let content = guard.content();
        // This is true if the entry begins after `start`, and in any case if `start` is null.
        if content.range.start().wrapping_sub(1) >= start {
            cold_path();
            return Err(Some(guard));
        }
        let end = content.range.end();
        if end <= start {
            cold_path();
            return Err(Some(guard));
        }
        // This is true if the entry ends before the range, and in any case if `len` is 0. A range
        // that runs past the end of the address space is longer than the rest of the entry.
        if len.wrapping_sub(1) >= end - start {
            cold_path();
            return Err(Some(guard));
        }
        if !content.access.serves_at_once(access()) {
            cold_path();
            return Err(Some(guard));
        }
        entry.touch();
        Ok(guard)
    }
}
