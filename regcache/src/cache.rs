//! [`Cache`]: lookup, drain, and what is given up.
//!
//! # The protocol
//!
//! `generation` is the monitor's: it has moved before an invalidating call returns, and before the
//! address can be handed out again (M3). `drained` is the cache's: the generation up to which all
//! that was invalidated has been taken out.
//!
//! **Hit** ([`Cache::get`]). Load `generation`. If it equals `drained` (which no number does in a
//! forked child), take a reference to the
//! entry that the hints name, provided that it is live; if it covers the request that is the
//! answer. No lock, no system call, no allocation; what is written is the entry's own cache line.
//!
//! **Drain** ([`Core::lock_current`]). Under the lock: ask the monitor for all that was hit, kill
//! and unlink each entry, then store into `drained` the generation of the moment at which there was
//! nothing left to report.
//!
//! **Miss** (`miss.rs`). Make room; *watch, then register*; drain; if the watch was hit meanwhile
//! deregister and start over, else publish.
//!
//! # Why a lookup never returns a stale registration
//!
//! Let U be an operation that changed pages of the range, and let it have returned before the lookup
//! began, or let the looking-up thread have been given the address by a mapping call that could only
//! be satisfied because U had happened. Let E be an entry for the range, registered before U. To
//! show: the lookup does not return E.
//!
//! 1. E's watch was placed before its registration, hence before U ends. If U started after the
//!    watch was placed it is reported (M1). If U was under way then, it was over before the watch
//!    was in place, and so before the registration, which pinned the pages after U; or it is
//!    reported (M2).
//! 2. In either case the generation moved for U before the lookup began (M3). The lookup's load of
//!    `generation` returns that value, g, or a later one.
//! 3. The lookup goes on without draining only if `drained` equals what it loaded. `drained` takes
//!    values that a drain has returned, and a drain that returns g or more has reported U before.
//!    The store to `drained` releases and the load acquires, so this lookup sees all that the
//!    draining thread did before (the first value is from before there was any entry): E is dead, or, if U came while E was still being registered, was
//!    never published: the drain marked it as hit, and the miss looked at that mark under the lock
//!    after its own drain. Either way [`Entry::acquire`] does not give a reference to E.
//! 4. If `drained` differs, the lookup drains first and looks in the index, under one lock. The drain
//!    loads the generation, or reads the report, after the lookup began, so the same holds.
//!
//! With a monitor that is `CHECKED` step 2 holds because the lookup asks it first: either the generation
//! includes U when `is_intact` returns, and all that follows is as above; or whatever covers the range
//! is given up, and registrations being made that would cover it start over, so that whatever the
//! lookup finds was registered after it began, and so after U. What overlaps the range and does not
//! cover it is left alone: it is asked about when it is looked up.
//!
//! An uncached registration is made after the lookup began, so after U.
//!
//! # What is destroyed when
//!
//! A killed entry has its registration destroyed by the thread that drops its last reference: a
//! guard's drop, or, if there is no guard, whichever thread next leaves the slow path or is about to
//! register ([`bury`]), the reaper's among them (`reaper.rs`). Never under the lock. The slot is vacant
//! again, and its room with it, after that.
//!
//! Each cached registration holds a reference to the core, so that guards may outlive the cache.
//!
//! [`bury`]: Core::bury

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::panic::{self, AssertUnwindSafe};
use std::ptr::NonNull;

use crossbeam_utils::CachePadded;

use crate::completion::Completion;
use crate::core::hints::Hints;
use crate::core::lookup::miss;
use crate::core::reaper::Reaper;
use crate::core::slab::{Slab, Slot};
use crate::core::table::Ledger;
use crate::core::widen::Widening;
use crate::guard::Guard;
use crate::monitor::{Auto, Cookie, Monitor};
use crate::stats::Stats;
use crate::sys::fork::ForkMark;
use crate::sys::sync::{Arc, Condvar, Mutex, MutexGuard, Ordering, lock};
use crate::{Access, Error, RegisterError, Registrar, VaRange};

/// A registration cache for one registrar.
///
/// [`get`](Self::get) returns a registration that covers a range of memory, made earlier if
/// possible, and never a stale one: see the [crate] for what that means.
///
/// A cache is shared between threads by reference (it is `Sync`). Guards may outlive it.
pub struct Cache<R: Registrar, M: Monitor = Auto> {
    core: Arc<Core<R, M>>,
    reaper: Option<Reaper>,
}

/// What an entry holds. What a hit reads comes first, to be in one cache line with the entry's state.
#[repr(C)]
pub(crate) struct Content<R: Registrar, M: Monitor> {
    pub(crate) range: VaRange,
    pub(crate) access: R::Access,
    pub(crate) registration: R::Registration,
    pub(crate) place: Place,
    pub(crate) core: Arc<Core<R, M>>,
}

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the slab, and watched by this cookie.
    Slab(Slot, Cookie),
    /// In a box of its own, not cached and not watched, under this number in the ledger.
    Alone(u64),
}

impl<R: Registrar, M: Monitor> Content<R, M> {
    #[inline]
    fn serves(&self, range: VaRange, access: R::Access) -> bool {
        self.range.contains(&range) && self.access.serves(access)
    }
}

/// What the cache and its entries share.
pub(crate) struct Core<R: Registrar, M: Monitor> {
    pub(crate) monitor: M,
    /// See the file's head: the generation, its bits inverted, so that it is never 0, and 0 in a
    /// forked child. Written under the lock.
    pub(crate) drained: ForkMark,
    pub(crate) hints: Hints,
    pub(crate) slab: Slab<Content<R, M>>,
    pub(crate) registrar: R,
    pub(crate) page_size: usize,
    pub(crate) widening: Widening,
    pub(crate) revoke_remote_keys: bool,
    /// Apart from what a hit reads.
    pub(crate) ledger: CachePadded<Mutex<Ledger<R::Access>>>,
    /// Signalled when something that was given up is gone, if anybody waits for that.
    pub(crate) vacated: Condvar,
}

impl<R: Registrar, M: Monitor> Cache<R, M> {
    pub(crate) fn new(core: Arc<Core<R, M>>, reaper: Option<Reaper>) -> Self {
        Self { core, reaper }
    }

    /// A registration that covers the `len` bytes at `start` and allows `access`.
    ///
    /// The registration may be larger than that and allow more. It covers the memory that is mapped
    /// there now; it goes on covering that same memory, and no other, while the guard lives.
    ///
    /// # Errors
    ///
    /// [`Error`]: a bad range, a refusal of the device, a forked child, a monitor that failed.
    #[inline(always)]
    pub fn get(
        &self,
        start: *const u8,
        len: usize,
        access: R::Access,
    ) -> Result<Guard<R, M>, Error> {
        let range = VaRange::new(start, len)?;
        let core = &self.core;
        if M::CHECKED && !core.monitor.is_intact(range) {
            return self.get_anew(range, access);
        }
        // Whatever is out of the ordinary leaves here for good, so that registers need not be saved.
        let Some(slot) = core.hints.first(range.start()) else {
            return self.get_slow(range, access, None);
        };
        let Some(entry) = core.slab.get(slot) else {
            return self.get_slow(range, access, None);
        };
        if !(core.is_current() && entry.try_acquire()) {
            return self.get_slow(range, access, None);
        }
        let guard = Guard::owning(NonNull::from(entry));
        if !guard.content().serves(range, access) {
            return self.get_slow(range, access, Some(guard));
        }
        entry.touch();
        Ok(guard)
    }

    /// The monitor does not vouch for what was registered of the range until now.
    #[cold]
    #[inline(never)]
    fn get_anew(&self, range: VaRange, access: R::Access) -> Result<Guard<R, M>, Error> {
        let core = &self.core;
        if core.in_child() {
            return Err(Error::Forked);
        }
        let mut ledger = lock(&core.ledger);
        ledger.distrust(&core.slab, range);
        core.unlock(ledger);
        miss(core, range, access)
    }

    /// `other` was not what the lookup is for.
    #[cold]
    #[inline(never)]
    fn get_slow(
        &self,
        range: VaRange,
        access: R::Access,
        other: Option<Guard<R, M>>,
    ) -> Result<Guard<R, M>, Error> {
        if let Some(guard) = other {
            guard.decline();
        }
        let core = &self.core;
        if core.in_child() {
            return Err(Error::Forked);
        }
        if core.is_current() {
            let hit = |slot| core.hit(slot, range, access);
            if let Some(guard) = core.hints.any(range.start(), hit) {
                return Ok(guard);
            }
        }
        miss(core, range, access)
    }

    /// Registers a range, so that the next [`get`](Self::get) finds it, if it can be kept. Remote
    /// access is not, if its [keys are to be revoked](crate::Builder::revoke_remote_keys).
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn prefetch(&self, start: *const u8, len: usize, access: R::Access) -> Result<(), Error> {
        self.get(start, len, access).map(drop)
    }

    /// Gives up every registration that covers any of the `len` bytes at `start`: what is looked up
    /// from now on is registered anew. Those in use go with their last guard, which the result can
    /// wait for.
    ///
    /// For an application that knows better than the monitor, or wants its memory unpinned now. There
    /// is no need to call this before unmapping.
    ///
    /// # Errors
    ///
    /// [`Error::ZeroLength`], [`Error::AddressWraps`], and [`Error::Forked`] in a forked child.
    pub fn invalidate(&self, start: *const u8, len: usize) -> Result<Completion<R, M>, Error> {
        let range = VaRange::new(start, len)?;
        self.give_up(|ledger, slab| ledger.give_up(slab, range))
    }

    /// Gives up every registration, as [`invalidate`](Self::invalidate) does those of a range.
    ///
    /// # Errors
    ///
    /// [`Error::Forked`] in a forked child.
    pub fn flush(&self) -> Result<Completion<R, M>, Error> {
        self.give_up(|ledger, slab| {
            ledger.give_up_all(slab);
            ledger.leaving(|_| true)
        })
    }

    fn give_up(
        &self,
        from: impl FnOnce(&mut Ledger<R::Access>, &Slab<Content<R, M>>) -> Vec<Place>,
    ) -> Result<Completion<R, M>, Error> {
        let core = &self.core;
        if core.in_child() {
            return Err(Error::Forked);
        }
        let leaving = from(&mut lock(&core.ledger), &core.slab);
        core.bury();
        Ok(Completion::of(core, leaving))
    }

    /// Closes the cache: stops the thread that reaps, gives up every registration, and tells what is
    /// still in use, by guards that outlive the cache. Dropping it does the same without telling.
    ///
    /// # Errors
    ///
    /// [`Error::Forked`] in a forked child.
    pub fn close(mut self) -> Result<Completion<R, M>, Error> {
        self.reaper.take();
        self.flush()
    }

    /// Releases what the monitor reports to be stale, without waiting for a lookup to do it. To be
    /// called when [`descriptor`](Self::descriptor) is readable, where there is no
    /// [background reaper](crate::Builder::background_reaper).
    ///
    /// # Errors
    ///
    /// [`Error::Monitor`] if it has failed, and [`Error::Forked`] in a forked child.
    pub fn reap(&self) -> Result<(), Error> {
        if self.core.in_child() {
            return Err(Error::Forked);
        }
        self.core.reap()
    }

    /// What polls readable while there is something to [`reap`](Self::reap), if the monitor has it.
    /// There is nothing to be read from it.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.core.monitor.descriptor()
    }

    /// Reads the counters: looks at each entry, but writes nothing that a hit reads. In a forked child
    /// all are 0.
    pub fn stats(&self) -> Stats {
        let core = &self.core;
        if core.in_child() {
            return Stats::default();
        }
        let (slots, stats) = {
            let ledger = lock(&core.ledger);
            (ledger.slots(), ledger.stats())
        };
        let entries = (0..slots).filter_map(|i| core.slab.get(Slot(i)));
        Stats {
            hits: entries.map(|entry| entry.hits()).sum(),
            ..stats
        }
    }

    /// The name of the monitor. The monitor itself is the cache's alone: whoever drained it would
    /// take reports away.
    pub fn monitor_name(&self) -> &'static str {
        self.core.monitor.name()
    }

    /// The registrar.
    pub fn registrar(&self) -> &R {
        &self.core.registrar
    }
}

impl<R: Registrar, M: Monitor> Drop for Cache<R, M> {
    fn drop(&mut self) {
        if self.core.in_child() {
            // What the registrar and the monitor would close is the parent's, and so is the thread.
            mem::forget(Arc::clone(&self.core));
            mem::forget(self.reaper.take());
            return;
        }
        self.reaper.take();
        lock(&self.core.ledger).give_up_all(&self.core.slab);
        self.core.bury();
    }
}

impl<R: Registrar, M: Monitor> fmt::Debug for Cache<R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("monitor", &self.core.monitor.name())
            .field("stats", &self.stats())
            .finish()
    }
}

impl<R: Registrar, M: Monitor> Core<R, M> {
    /// True if all that was invalidated has been taken out. False in a forked child.
    #[inline]
    fn is_current(&self) -> bool {
        !self.monitor.generation() == self.drained.load(Ordering::Acquire)
    }

    /// True in a process that is not the one that built the cache.
    pub(crate) fn in_child(&self) -> bool {
        self.drained.in_child()
    }

    /// A reference to the entry at `slot`, if it serves the request.
    fn hit(&self, slot: Slot, range: VaRange, access: R::Access) -> Option<Guard<R, M>> {
        let entry = self.slab.get(slot)?;
        if !entry.acquire_kept() {
            return None;
        }
        let guard = Guard::owning(NonNull::from(entry));
        if guard.content().serves(range, access) {
            entry.touch();
            return Some(guard);
        }
        guard.decline();
        None
    }

    /// Takes the lock, with all that was invalidated before taken out. If that cannot be told all is taken
    /// out and destroyed.
    #[inline]
    pub(crate) fn lock_current(&self) -> Result<MutexGuard<'_, Ledger<R::Access>>, Error> {
        let ledger = lock(&self.ledger);
        if self.is_current() {
            return Ok(ledger);
        }
        self.drained(ledger)
    }

    #[cold]
    fn drained<'l>(
        &'l self,
        mut ledger: MutexGuard<'l, Ledger<R::Access>>,
    ) -> Result<MutexGuard<'l, Ledger<R::Access>>, Error> {
        match self.drain(&mut ledger) {
            Ok(()) => Ok(ledger),
            Err(error) => {
                self.unlock(ledger);
                Err(error)
            }
        }
    }

    fn drain(&self, ledger: &mut Ledger<R::Access>) -> Result<(), Error> {
        let mut reports = 0;
        let generation = self.monitor.drain(&mut |cookie| {
            reports += u64::from(ledger.invalidate(&self.slab, cookie));
        });
        let generation = generation.map_err(|source| {
            // Whatever was reported and got lost may concern any of them.
            ledger.give_up_all(&self.slab);
            Error::Monitor {
                monitor: self.monitor.name(),
                source,
            }
        })?;
        ledger.counts.spurious += u64::from(reports == 0);
        self.drained.store(!generation, Ordering::Release);
        Ok(())
    }

    /// Releases what the monitor reports.
    pub(crate) fn reap(&self) -> Result<(), Error> {
        self.unlock(self.lock_current()?);
        Ok(())
    }

    /// Whether a lookup with this access is for a registration that goes with its last guard.
    pub(crate) fn is_fleeting(&self, access: R::Access) -> bool {
        self.revoke_remote_keys && access.is_remote()
    }

    /// Looks in the index, and lets the hints know.
    pub(crate) fn find(
        &self,
        ledger: &mut Ledger<R::Access>,
        range: VaRange,
        access: R::Access,
    ) -> Option<Guard<R, M>> {
        let fleeting = self.is_fleeting(access);
        let (slot, entry, whole) = ledger.find(&self.slab, range, access, fleeting)?;
        if !fleeting {
            self.hints.note_found(range.start(), slot, whole);
        }
        entry.touch();
        Some(Guard::owning(NonNull::from(entry)))
    }

    /// Gives the lock back, and destroys what died under it.
    pub(crate) fn unlock(&self, ledger: MutexGuard<'_, Ledger<R::Access>>) {
        let dead = ledger.has_dead();
        drop(ledger);
        if dead {
            self.bury();
        }
    }

    /// Destroys the registrations that nobody uses and the cache has given up.
    pub(crate) fn bury(&self) {
        loop {
            let Some(slot) = lock(&self.ledger).pop_dead() else {
                return;
            };
            let Some(entry) = self.slab.get(slot) else {
                return;
            };
            // SAFETY: a dead entry is popped once, and became one because `kill` said to take it.
            self.destroy(unsafe { entry.take() });
        }
    }

    /// Destroys a registration whose entry has been emptied.
    pub(crate) fn destroy(&self, content: Content<R, M>) {
        tracing::trace!(range = ?content.range, "deregistering");
        self.deregister(content.registration);
        if let Place::Slab(_, cookie) = content.place {
            self.unwatch(cookie);
        }
        let mut ledger = lock(&self.ledger);
        match content.place {
            Place::Slab(slot, _) => {
                self.hints.forget(slot, content.range);
                ledger.vacate(slot);
            }
            Place::Alone(number) => ledger.alone_no_more(number),
        }
        self.tell_waiting(&ledger);
    }

    /// A registration has gone.
    pub(crate) fn tell_waiting(&self, ledger: &Ledger<R::Access>) {
        if ledger.waiting > 0 {
            self.vacated.notify_all();
        }
    }

    pub(crate) fn deregister(&self, registration: R::Registration) {
        // Whoever comes here has come for something else, and there may be more to destroy.
        let deregister = AssertUnwindSafe(|| self.registrar.deregister(registration));
        match panic::catch_unwind(deregister) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::error!(%error, "the device refused to destroy a registration");
            }
            Err(_) => {
                tracing::error!("the registrar panicked when it was to destroy a registration");
            }
        }
        lock(&self.ledger).counts.leaked += 1;
    }

    pub(crate) fn unwatch(&self, cookie: Cookie) {
        if let Err(error) = self.monitor.unwatch(cookie) {
            tracing::error!(?cookie, %error, "the monitor refused to end a watch");
        }
    }

    pub(crate) fn refusal(&self, range: VaRange, access: R::Access, source: io::Error) -> Error {
        RegisterError::diagnose(range, access.writes(), source).into()
    }

    /// Bytes of the pages that a registration of `range` pins.
    pub(crate) fn pinned(&self, range: VaRange) -> usize {
        // Pages are a power of two, and dividing by a number that is not known here takes long.
        let within = self.page_size - 1;
        let (first, last) = (range.start() & !within, (range.end() - 1) | within);
        (last - first).saturating_add(1)
    }
}
