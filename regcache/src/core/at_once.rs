//! [`AtOnce`]: the hits that take the fewest instructions, for the C library.

use std::hint::cold_path;
use std::ptr::NonNull;

use crate::core::entry::{Attempt, Entry};
use crate::core::guard::Guard;
use crate::core::spread::has_lane;
use crate::core::{Content, Core};
use crate::monitor::Monitor;
use crate::range::VaRange;
use crate::registrar::{Access as _, Registrar};

/// The part of a cache that serves simple hits.
#[doc(hidden)]
#[repr(transparent)]
pub struct AtOnce<R: Registrar, M: Monitor>(Core<R, M>);

/// The reason why [`AtOnce::get`] does not serve a lookup.
#[doc(hidden)]
pub enum NotYet<'c, R: Registrar, M: Monitor> {
    /// Another method must serve it.
    Unknown,
    /// The same, but the caller must [decline](Guard::decline) this guard before, which does not
    /// serve the lookup.
    Declines(Guard<R, M>),
    /// [`AtOnce::get_contended`] may serve it.
    Contended(Contended<'c, R, M>),
}

/// An entry that several threads use.
#[doc(hidden)]
pub struct Contended<'c, R: Registrar, M: Monitor>(&'c Entry<Content<R, M>>);

impl<R: Registrar, M: Monitor> AtOnce<R, M> {
    pub(crate) fn of(core: &Core<R, M>) -> &Self {
        // SAFETY: the two types have the same layout.
        unsafe { NonNull::from(core).cast::<Self>().as_ref() }
    }

    /// Returns a registration as [`Cache::get`](crate::Cache::get) does, if the lookup is a hit of
    /// the kind that takes the fewest instructions. `access` returns the access. Otherwise returns
    /// an error, even if the cache has a registration.
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
    ) -> Result<Guard<R, M>, NotYet<'_, R, M>> {
        let start = start.addr();
        let Self(core) = self;
        let Some(slot) = core.hints.first(start) else {
            return Err(NotYet::Unknown);
        };
        // SAFETY: the hint was noted for an entry, so the slab has its slot.
        let entry = unsafe { core.slab.get_unchecked(slot) };
        if !core.is_current_at_once() {
            return Err(NotYet::Unknown);
        }
        if !entry.try_acquire() {
            return Err(NotYet::Contended(Contended(entry)));
        }
        let guard = Guard::owning(NonNull::from(entry));
        let content = guard.content();
        // This is true if the entry begins after `start`, and in any case if `start` is null.
        if content.range.start().wrapping_sub(1) >= start {
            cold_path();
            return Err(NotYet::Declines(guard));
        }
        let end = content.range.end();
        if end <= start {
            cold_path();
            return Err(NotYet::Declines(guard));
        }
        // This is true if the entry ends before the range, and in any case if `len` is 0. A range
        // that runs past the end of the address space is longer than the rest of the entry.
        if len.wrapping_sub(1) >= end - start {
            cold_path();
            return Err(NotYet::Declines(guard));
        }
        if !content.access.serves_at_once(access()) {
            cold_path();
            return Err(NotYet::Declines(guard));
        }
        entry.touch();
        Ok(guard)
    }

    /// Serves a lookup for which [`get`](Self::get) has just met a contended entry. Returns `None`
    /// if another method must serve it.
    #[doc(hidden)]
    #[cold]
    pub fn get_contended(
        &self,
        start: *const u8,
        len: usize,
        access: R::Access,
        Contended(entry): Contended<'_, R, M>,
    ) -> Option<Guard<R, M>> {
        let range = VaRange::new(start, len).ok()?;
        if has_lane() {
            match entry.try_acquire_spread() {
                Attempt::Acquired => return Guard::serving(entry, range, access),
                Attempt::NotSpread => {}
                Attempt::Undo(spread) => {
                    spread.undo();
                    return None;
                }
            }
        }
        Guard::contended(entry, range, access)
    }
}
