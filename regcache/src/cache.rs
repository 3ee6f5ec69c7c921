//! [`Cache`]: lookup, miss, drain.
//!
//! # The protocol
//!
//! `generation` is the monitor's: it has moved before an invalidating call returns, and before the
//! address can be handed out again (M3). `drained` is the cache's: the generation up to which all
//! that was invalidated has been taken out.
//!
//! **Hit** ([`Cache::get`]). Load `generation`. If it equals `drained`, take a reference to the
//! entry that the hints name, provided that it is live; if it covers the request that is the
//! answer. No lock, no system call, no allocation; what is written is the entry's own cache line.
//!
//! **Drain** ([`Core::lock_current`]). Under the lock: ask the monitor for all that was hit, kill
//! and unlink each entry, then store into `drained` the generation of the moment at which there was
//! nothing left to report.
//!
//! **Miss** ([`miss`]). Make room; *watch, then register*; drain; if the watch was hit meanwhile
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
//! An uncached registration is made after the lookup began, so after U.
//!
//! # What is destroyed when
//!
//! A killed entry has its registration destroyed by the thread that drops its last reference: a
//! guard's drop, or, if there is no guard, whichever thread next leaves the slow path ([`bury`]).
//! Never under the lock. The slot is vacant again, and its room with it, after that.
//!
//! Each cached registration holds a reference to the core, so that guards may outlive the cache.
//!
//! [`bury`]: Core::bury

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::ptr::NonNull;

use crossbeam_utils::CachePadded;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use crate::entry::Entry;
use crate::error::is_exhaustion;
use crate::fork::ForkMark;
use crate::hints::Hints;
use crate::ledger::Ledger;
use crate::monitor::{Auto, Cookie, Monitor, auto};
use crate::slab::{Slab, Slot};
use crate::stats::{Counters, Stats};
use crate::sync::{Arc, AtomicU64, Mutex, MutexGuard, Ordering, lock};
use crate::{Access, Error, RegisterError, Registrar, VaRange};

/// Registrations of one range that may be spoilt, by its memory changing while they are made,
/// before the lookup is answered with one that is not kept.
const MAX_ATTEMPTS: u32 = 8;

const DEFAULT_MAX_ENTRIES: u32 = 65_536;

/// What any cache can hold: 16 777 216. Tables are sized by the limit when the cache is built.
const MAX_ENTRIES: u32 = 1 << 24;

/// A registration cache for one registrar.
///
/// [`get`](Self::get) returns a registration that covers a range of memory, made earlier if
/// possible, and never a stale one: see the [crate] for what that means.
///
/// A cache is shared between threads by reference (it is `Sync`). Guards may outlive it.
pub struct Cache<R: Registrar, M: Monitor = Auto> {
    core: Arc<Core<R, M>>,
}

/// A registration in use.
///
/// While a guard lives its registration is not destroyed, even if its memory is unmapped or the
/// cache is dropped: a transfer that was posted with it can complete. It may be sent to the thread
/// that sees the completion, and dropped there.
///
/// Dropping the guard does not end the registration as far as the device is concerned: a peer that
/// was given a remote key can use it until the cache gives the registration up.
pub struct Guard<R: Registrar, M: Monitor = Auto> {
    /// Owns a reference to this entry.
    entry: NonNull<Entry<Content<R, M>>>,
    owns: PhantomData<Content<R, M>>,
}

/// What an entry holds.
struct Content<R: Registrar, M: Monitor> {
    range: VaRange,
    access: R::Access,
    registration: R::Registration,
    /// Where the entry is in the slab and what it is watched as. An entry that is not cached is in
    /// a box of its own, and not watched.
    place: Option<(Slot, Cookie)>,
    core: Arc<Core<R, M>>,
}

/// What the cache and its entries share.
struct Core<R: Registrar, M: Monitor> {
    monitor: M,
    /// See the file's head. Written under the lock.
    drained: AtomicU64,
    /// Counts misses: the time of the budget. Written under the lock.
    clock: AtomicU64,
    fork: ForkMark,
    hints: Hints,
    slab: Slab<Content<R, M>>,
    registrar: R,
    page_size: usize,
    counters: Counters,
    ledger: CachePadded<Mutex<Ledger<R::Access>>>,
}

/// Builds a [`Cache`]; see [`Cache::builder`].
#[derive(Debug)]
pub struct Builder<R, M> {
    registrar: R,
    monitor: M,
    max_entries: u32,
    max_bytes: Option<usize>,
}

/// Stands for [`auto`] until [`Builder::build`].
#[derive(Debug)]
pub struct Unchosen(());

impl<R: Registrar> Cache<R> {
    /// Starts building a cache over `registrar`.
    ///
    /// Unless told otherwise it uses the best sound monitor that there is ([`auto`]), holds up to
    /// 65 536 registrations, and pins as much memory as `RLIMIT_MEMLOCK` allows, at most half of the
    /// machine's.
    pub fn builder(registrar: R) -> Builder<R, Unchosen> {
        Builder {
            registrar,
            monitor: Unchosen(()),
            max_entries: DEFAULT_MAX_ENTRIES,
            max_bytes: None,
        }
    }
}

impl<R: Registrar> Builder<R, Unchosen> {
    /// Uses this monitor, which the cache becomes the only reader of.
    pub fn monitor<M: Monitor>(self, monitor: M) -> Builder<R, M> {
        let Self {
            registrar,
            monitor: Unchosen(()),
            max_entries,
            max_bytes,
        } = self;
        Builder {
            registrar,
            monitor,
            max_entries,
            max_bytes,
        }
    }

    /// Builds the cache, with the monitor that [`auto`] chooses.
    ///
    /// # Errors
    ///
    /// As the other [`build`](Builder::build).
    pub fn build(self) -> io::Result<Cache<R, Auto>> {
        self.monitor(auto()).build()
    }
}

impl<R, M> Builder<R, M> {
    /// Holds at most so many registrations, and never more than 16 777 216. With 0 nothing is cached.
    #[must_use]
    pub fn max_entries(mut self, entries: u32) -> Self {
        self.max_entries = entries.min(MAX_ENTRIES);
        self
    }

    /// Pins at most so many bytes by registrations that are kept, whole pages counted. A range larger
    /// than this is not kept, and not counted.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = Some(bytes);
        self
    }
}

impl<R: Registrar, M: Monitor> Builder<R, M> {
    /// Builds the cache.
    ///
    /// # Errors
    ///
    /// If the kernel does not give a page under `MADV_WIPEONFORK` (Linux 4.14), by which the cache
    /// knows a forked child.
    pub fn build(self) -> io::Result<Cache<R, M>> {
        let Self {
            registrar,
            monitor,
            max_entries,
            max_bytes,
        } = self;
        let core = Core {
            drained: AtomicU64::new(monitor.generation()),
            monitor,
            clock: AtomicU64::new(0),
            fork: ForkMark::new()?,
            hints: Hints::new(max_entries),
            slab: Slab::new(max_entries),
            registrar,
            page_size: system_value(SysconfVar::PAGE_SIZE, 4096),
            counters: Counters::new(),
            ledger: CachePadded::new(Mutex::new(Ledger::new(
                max_entries as usize,
                max_bytes.unwrap_or_else(default_max_bytes),
            ))),
        };
        Ok(Cache {
            core: Arc::new(core),
        })
    }
}

impl<R: Registrar, M: Monitor> Cache<R, M> {
    /// A registration that covers the `len` bytes at `start` and allows `access`.
    ///
    /// The registration may be larger than that and allow more. It covers the memory that is mapped
    /// there now; it goes on covering that same memory, and no other, while the guard lives.
    ///
    /// # Errors
    ///
    /// [`Error`]: a bad range, a refusal of the device, a forked child, a monitor that failed.
    #[inline]
    pub fn get(
        &self,
        start: *const u8,
        len: usize,
        access: R::Access,
    ) -> Result<Guard<R, M>, Error> {
        let range = VaRange::new(start, len)?;
        let core = &self.core;
        if core.fork.in_child() {
            return Err(Error::Forked);
        }
        if core.is_current()
            && let Some(guard) = core.hit(range, access)
        {
            return Ok(guard);
        }
        self.get_slow(range, access)
    }

    #[cold]
    fn get_slow(&self, range: VaRange, access: R::Access) -> Result<Guard<R, M>, Error> {
        let result = miss(&self.core, range, access);
        self.core.bury();
        result
    }

    /// Registers a range, so that the next [`get`](Self::get) finds it, if it can be kept.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn prefetch(&self, start: *const u8, len: usize, access: R::Access) -> Result<(), Error> {
        self.get(start, len, access).map(drop)
    }

    /// Gives up every registration that is cached now. Those in use go with their last guard; one that
    /// another thread is making meanwhile may come after.
    ///
    /// # Errors
    ///
    /// [`Error::Forked`] in a forked child.
    pub fn flush(&self) -> Result<(), Error> {
        if self.core.fork.in_child() {
            return Err(Error::Forked);
        }
        lock(&self.core.ledger).unlink_all(&self.core.slab);
        self.core.bury();
        Ok(())
    }

    /// Reads the counters. Takes the cache's lock and looks at each entry: for a report, not for a
    /// loop. In a forked child all are 0.
    pub fn stats(&self) -> Stats {
        let core = &self.core;
        if core.fork.in_child() {
            return Stats::default();
        }
        let ledger = lock(&core.ledger);
        let (entries, bytes) = ledger.held();
        let counters = &core.counters;
        Stats {
            hits: ledger.hits(&core.slab),
            misses: counters.misses.get(),
            uncached: counters.uncached.get(),
            invalidations: counters.invalidations.get(),
            evictions: counters.evictions.get(),
            merges: counters.merges.get(),
            retries: counters.retries.get(),
            leaked: counters.leaked.get(),
            entries,
            bytes,
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
        if self.core.fork.in_child() {
            // What the registrar and the monitor would close is the parent's.
            mem::forget(Arc::clone(&self.core));
            return;
        }
        lock(&self.core.ledger).unlink_all(&self.core.slab);
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

/// A miss, and a hit that the hints did not know.
fn miss<R: Registrar, M: Monitor>(
    core: &Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
) -> Result<Guard<R, M>, Error> {
    let bytes = core.pinned(range);
    let mut relief = bytes;
    let mut attempts = 0;
    loop {
        let ledger = core.lock_current()?;
        if let Some(guard) = core.find(&ledger, range, access) {
            return Ok(guard);
        }
        if !ledger.could_hold(bytes) {
            drop(ledger);
            // What is more than the cache may hold is no reason to give up what it holds.
            return uncached(core, range, access, 0);
        }
        if attempts == MAX_ATTEMPTS {
            drop(ledger);
            return uncached(core, range, access, relief);
        }
        attempts += 1;
        let Some(mut reservation) = Reservation::new(core, ledger, range, access) else {
            return uncached(core, range, access, relief);
        };
        if let Err(error) = reservation.watch() {
            tracing::debug!(?range, %error, "cannot be watched");
            drop(reservation);
            return uncached(core, range, access, relief);
        }
        match core.registrar.register(range, access) {
            Ok(registration) => {
                if let Some(guard) = reservation.publish(registration)? {
                    return Ok(guard);
                }
                core.counters.retries.add(1);
            }
            Err(source) => {
                drop(reservation);
                if !(is_exhaustion(&source) && core.relieve(&mut relief)) {
                    return Err(core.refusal(range, access, source));
                }
                attempts -= 1;
            }
        }
    }
}

/// A registration that is not kept. For it up to `relief` bytes of idle ones are given up, if the
/// device says that it is exhausted.
fn uncached<R: Registrar, M: Monitor>(
    core: &Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
    mut relief: usize,
) -> Result<Guard<R, M>, Error> {
    let registration = loop {
        match core.registrar.register(range, access) {
            Ok(registration) => break registration,
            Err(source) if is_exhaustion(&source) && core.relieve(&mut relief) => {}
            Err(source) => return Err(core.refusal(range, access, source)),
        }
    };
    core.counters.misses.add(1);
    core.counters.uncached.add(1);
    let entry = Box::new(Entry::vacant());
    let content = Content {
        range,
        access,
        registration,
        place: None,
        core: Arc::clone(core),
    };
    // SAFETY: new, and not shared yet.
    unsafe { entry.occupy(content) };
    let entry = NonNull::from(Box::leak(entry));
    Ok(Guard::owning(entry))
}

impl<R: Registrar, M: Monitor> Core<R, M> {
    /// True if all that was invalidated has been taken out.
    #[inline]
    fn is_current(&self) -> bool {
        self.monitor.generation() == self.drained.load(Ordering::Acquire)
    }

    #[inline]
    fn hit(&self, range: VaRange, access: R::Access) -> Option<Guard<R, M>> {
        for slot in self.hints.probe(range.start()) {
            let Some(entry) = self.slab.get(slot) else {
                continue;
            };
            if !entry.acquire() {
                continue;
            }
            let guard = Guard::owning(NonNull::from(entry));
            let content = guard.content();
            if content.range.contains(&range) && content.access.serves(access) {
                entry.touch(self.clock.load(Ordering::Relaxed));
                return Some(guard);
            }
        }
        None
    }

    /// Takes the lock, with all that was invalidated before taken out.
    fn lock_current(&self) -> Result<MutexGuard<'_, Ledger<R::Access>>, Error> {
        let mut ledger = lock(&self.ledger);
        if !self.is_current() {
            let mut invalidations = 0;
            let generation = self.monitor.drain(&mut |cookie| {
                invalidations += u64::from(ledger.invalidate(&self.slab, cookie));
            });
            let generation = generation.map_err(|source| {
                // Whatever was reported and got lost may concern any of them.
                ledger.distrust(&self.slab);
                Error::Monitor {
                    monitor: self.monitor.name(),
                    source,
                }
            })?;
            self.counters.invalidations.add(invalidations);
            self.drained.store(generation, Ordering::Release);
        }
        Ok(ledger)
    }

    /// Looks in the index, and lets the hints know.
    fn find(
        &self,
        ledger: &MutexGuard<'_, Ledger<R::Access>>,
        range: VaRange,
        access: R::Access,
    ) -> Option<Guard<R, M>> {
        let (slot, entry) = ledger.find(&self.slab, range, access)?;
        self.hints.note(range.start(), slot);
        entry.touch(self.clock.load(Ordering::Relaxed));
        Some(Guard::owning(NonNull::from(entry)))
    }

    /// Gives up an idle entry, so that the device has more to give, and takes its bytes off `relief`.
    /// False if that is 0 already, or there is no idle entry.
    fn relieve(&self, relief: &mut usize) -> bool {
        if *relief == 0 {
            return false;
        }
        let now = self.clock.load(Ordering::Relaxed);
        let Some(bytes) = lock(&self.ledger).evict(&self.slab, now) else {
            return false;
        };
        *relief = relief.saturating_sub(bytes);
        self.counters.evictions.add(1);
        self.bury();
        true
    }

    /// Destroys the registrations that nobody uses and the cache has given up.
    fn bury(&self) {
        loop {
            let Some(slot) = lock(&self.ledger).pop_dead() else {
                return;
            };
            let Some(entry) = self.slab.get(slot) else {
                return;
            };
            // SAFETY: a dead entry is popped once, and became one because `kill` said to take it.
            let content = unsafe { entry.take() };
            self.destroy(content, entry.hits());
        }
    }

    /// Destroys a registration whose entry has been emptied.
    fn destroy(&self, content: Content<R, M>, hits: u64) {
        self.deregister(content.registration);
        if let Some((slot, cookie)) = content.place {
            self.unwatch(cookie);
            lock(&self.ledger).vacate(slot, hits);
        }
    }

    fn deregister(&self, registration: R::Registration) {
        if let Err(error) = self.registrar.deregister(registration) {
            self.counters.leaked.add(1);
            tracing::error!(%error, "the device refused to destroy a registration");
        }
    }

    fn unwatch(&self, cookie: Cookie) {
        if let Err(error) = self.monitor.unwatch(cookie) {
            tracing::error!(?cookie, %error, "the monitor refused to end a watch");
        }
    }

    fn refusal(&self, range: VaRange, access: R::Access, source: io::Error) -> Error {
        RegisterError::diagnose(range, access.writes(), source).into()
    }

    /// Bytes of the pages that a registration of `range` pins.
    fn pinned(&self, range: VaRange) -> usize {
        let first = range.start() / self.page_size;
        let last = (range.end() - 1) / self.page_size;
        (last - first + 1).saturating_mul(self.page_size)
    }
}

/// A slot and room for a registration that is being made, and then its watch. Given back when
/// dropped.
struct Reservation<'c, R: Registrar, M: Monitor> {
    core: &'c Arc<Core<R, M>>,
    range: VaRange,
    access: R::Access,
    slot: Slot,
    cookie: Cookie,
    watched: bool,
}

impl<'c, R: Registrar, M: Monitor> Reservation<'c, R, M> {
    /// Makes room. `None` if there is none to be had.
    fn new(
        core: &'c Arc<Core<R, M>>,
        mut ledger: MutexGuard<'c, Ledger<R::Access>>,
        range: VaRange,
        access: R::Access,
    ) -> Option<Self> {
        let bytes = core.pinned(range);
        core.clock.fetch_add(1, Ordering::Relaxed);
        loop {
            if let Some((slot, cookie)) = ledger.reserve(range, access, bytes) {
                return Some(Self {
                    core,
                    range,
                    access,
                    slot,
                    cookie,
                    watched: false,
                });
            }
            if !ledger.has_dead() {
                let now = core.clock.load(Ordering::Relaxed);
                let evicted = ledger.make_room(&core.slab, bytes, now)?;
                core.counters.evictions.add(evicted);
            }
            // Room comes back when the dead are buried, ours and those that others have left.
            drop(ledger);
            core.bury();
            ledger = lock(&core.ledger);
        }
    }

    fn watch(&mut self) -> io::Result<()> {
        self.core.monitor.watch(self.range, self.cookie)?;
        self.watched = true;
        Ok(())
    }

    /// Enters the registration into the cache, unless its memory has changed since the watch was
    /// placed: then destroys it and returns `None`. If another thread was faster, returns a guard of
    /// that one's.
    fn publish(self, registration: R::Registration) -> Result<Option<Guard<R, M>>, Error> {
        let core = self.core;
        let verdict = core.lock_current().map(|ledger| {
            let hit = ledger.was_hit(self.slot);
            let other = if hit {
                None
            } else {
                core.find(&ledger, self.range, self.access)
            };
            (ledger, hit, other)
        });
        let mut ledger = match verdict {
            Ok((ledger, false, None)) => ledger,
            Ok((ledger, _, other)) => {
                drop(ledger);
                core.deregister(registration);
                return Ok(other);
            }
            Err(error) => {
                core.deregister(registration);
                return Err(error);
            }
        };
        let now = core.clock.load(Ordering::Relaxed);
        let merged = ledger.link(&core.slab, self.slot, now);
        core.counters.merges.add(merged);
        core.counters.misses.add(1);
        core.hints.note(self.range.start(), self.slot);
        let entry = core.slab.prepare(self.slot);
        let content = Content {
            range: self.range,
            access: self.access,
            registration,
            place: Some((self.slot, self.cookie)),
            core: Arc::clone(core),
        };
        // SAFETY: the slot was reserved vacant, and is this reservation's alone.
        unsafe { entry.publish(content) };
        drop(ledger);
        // The entry's now.
        mem::forget(self);
        Ok(Some(Guard::owning(NonNull::from(entry))))
    }
}

impl<R: Registrar, M: Monitor> Drop for Reservation<'_, R, M> {
    fn drop(&mut self) {
        if self.watched {
            self.core.unwatch(self.cookie);
        }
        lock(&self.core.ledger).vacate(self.slot, 0);
    }
}

// SAFETY: a guard is a counted reference to an entry, which may be released in any thread; the
// content that it reaches is a registration, `Send + Sync` by the trait, and the core, which is
// `Sync` and dropped in whichever thread is last.
unsafe impl<R: Registrar, M: Monitor> Send for Guard<R, M> {}
// SAFETY: by shared reference a guard gives nothing but `&R::Registration` and `Copy` values.
unsafe impl<R: Registrar, M: Monitor> Sync for Guard<R, M> {}

impl<R: Registrar, M: Monitor> Guard<R, M> {
    /// Takes over a reference to `entry` that the caller owns.
    #[inline]
    fn owning(entry: NonNull<Entry<Content<R, M>>>) -> Self {
        Self {
            entry,
            owns: PhantomData,
        }
    }

    #[inline]
    fn content(&self) -> &Content<R, M> {
        // SAFETY: the entry is in a slab that the content keeps alive, by its core, or in a box of
        // its own, until the reference that this guard owns is released.
        let entry = unsafe { self.entry.as_ref() };
        // SAFETY: this guard owns a reference, for as long as `self` is borrowed at least.
        unsafe { entry.content() }
    }

    /// The registration: what to post a transfer with.
    #[inline]
    pub fn registration(&self) -> &R::Registration {
        &self.content().registration
    }

    /// The addresses that it covers, at least those asked for.
    #[inline]
    pub fn range(&self) -> VaRange {
        self.content().range
    }

    /// The access that it allows, at least the one asked for.
    #[inline]
    pub fn access(&self) -> R::Access {
        self.content().access
    }

    /// False if the registration ends with this guard.
    pub fn is_cached(&self) -> bool {
        self.content().place.is_some()
    }
}

impl<R: Registrar, M: Monitor> Drop for Guard<R, M> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: as in `content`.
        let entry = unsafe { self.entry.as_ref() };
        // SAFETY: this guard owns the reference and is not used after.
        if unsafe { entry.release() } {
            bury_last(self.entry);
        }
    }
}

/// Destroys the registration whose last guard has gone.
#[cold]
fn bury_last<R: Registrar, M: Monitor>(entry: NonNull<Entry<Content<R, M>>>) {
    // SAFETY: as in `Guard::content`: the content, and with it the core, is still in place.
    let shared = unsafe { entry.as_ref() };
    let hits = shared.hits();
    // SAFETY: `release` has just said to.
    let content = unsafe { shared.take() };
    if content.core.fork.in_child() {
        // It is the parent's to destroy.
        mem::forget(content);
        return;
    }
    if content.place.is_none() {
        // SAFETY: entries that are not in the slab come from a box, and this was the last reference.
        drop(unsafe { Box::from_raw(entry.as_ptr()) });
    }
    let core = Arc::clone(&content.core);
    core.destroy(content, hits);
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

fn system_value(which: SysconfVar, otherwise: usize) -> usize {
    match sysconf(which) {
        Ok(Some(value)) => usize::try_from(value).unwrap_or(otherwise),
        _ => otherwise,
    }
}

/// What `RLIMIT_MEMLOCK` allows, or half of the memory if that is less.
fn default_max_bytes() -> usize {
    let memory = system_value(SysconfVar::_PHYS_PAGES, 1 << 18)
        .saturating_mul(system_value(SysconfVar::PAGE_SIZE, 4096));
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) if soft != RLIM_INFINITY => {
            usize::try_from(soft).unwrap_or(usize::MAX).min(memory / 2)
        }
        _ => memory / 2,
    }
}
