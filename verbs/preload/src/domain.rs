//! A protection domain, with the cache of its registrations.

use std::ffi::{c_int, c_uint};
use std::hint::cold_path;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use regcache::internal::NotYet;
use regcache::monitor::{Auto, Shared};
use regcache::{Cache, Error, Guard, Registrar, Stats, Uncancelled, VaRange};
use regcache_verbs_types::{Access, Context, Mr, Pd};

use crate::huge::is_huge;
use crate::objects::OpenDevice;
use crate::outstanding::Release;
use crate::real::{self, Inside};
use crate::settings::Settings;

/// A protection domain in which the program has registered memory.
pub(crate) struct Domain {
    /// The context and the handle that the domain had when this record was made. A later domain may
    /// have the same address, so these two values tell the domains apart.
    context: *mut Context,
    handle: u32,
    cache: Cache<PdRegistrar, Shared<Auto>>,
}

// SAFETY: this type never dereferences the address of the context, and only compares it.
unsafe impl Send for Domain {}
// SAFETY: the reasons for `Send` also hold for `Sync`.
unsafe impl Sync for Domain {}

/// A registration that the program holds.
pub(crate) struct Held(Guard<PdRegistrar, Shared<Auto>>);

/// The outcome of a registration that the program deregisters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The registration is idle, and stays in the cache.
    Kept,
    /// The shim deregistered it, because work that uses it may be outstanding.
    Outstanding,
    /// The shim deregistered it for another reason: the shim does not see all work, `ibv_rereg_mr`
    /// has changed the registration, its memory is in huge pages of hugetlbfs, or too many
    /// registrations are idle.
    Deregistered,
}

impl Held {
    #[inline]
    pub(crate) fn registration(&self) -> &Registered {
        self.0.registration()
    }

    /// Returns the registration as a pointer, for the slot of an `ibv_mr`.
    #[inline]
    pub(crate) fn into_raw(self) -> NonNull<()> {
        self.0.into_raw()
    }

    /// Returns the registration that [`into_raw`](Self::into_raw) has turned into this pointer.
    ///
    /// # Safety
    ///
    /// The pointer is from `into_raw`, and is used once.
    #[inline]
    pub(crate) unsafe fn from_raw(held: NonNull<()>) -> Self {
        // SAFETY: the caller keeps the contract.
        Self(unsafe { Guard::from_raw(held) })
    }

    /// Ends the program's use of the registration, and keeps the registration in the cache. If it
    /// must not stay there, returns the registration, which remains held, and the reason.
    #[inline(always)]
    pub(crate) fn keep(self) -> Result<(), (Self, Ended)> {
        let (registration, registrar) = (self.registration(), self.0.registrar());
        let device = &*registrar.device;
        let must_end = registration.must_end.load(Ordering::Relaxed);
        if must_end || device.marked().is_some() {
            return Err((self, Ended::Deregistered));
        }
        match device.work.release(registration.lkey) {
            Release::Keep => {
                registration.state.store(IDLE, Ordering::Release);
                if let Err(guard) = self.0.drop_at_once() {
                    cold_path();
                    drop(guard);
                }
                Ok(())
            }
            Release::Outstanding => Err((self, Ended::Outstanding)),
            Release::Crowded => Err((self, Ended::Deregistered)),
        }
    }

    /// Ends the program's use of the registration. If libibverbs refuses, returns the error number
    /// and the registration, which remains held.
    pub(crate) fn end(self) -> Result<Ended, (c_int, Self)> {
        let (held, ended) = match self.keep() {
            Ok(()) => return Ok(Ended::Kept),
            Err(because) => because,
        };
        if held.0.registrar().is_closed() {
            // The domain was closed, which ended its registrations. So nothing is left to
            // deregister.
            return Ok(ended);
        }
        match held.registration().end() {
            0 => {
                held.unlink();
                Ok(ended)
            }
            refused => Err((refused, held)),
        }
    }

    /// Calls `change` with libibverbs's `ibv_mr`. `change` changes the registration as the program
    /// asked. Returns the result of `change`, which is true if the registration may differ from now
    /// on.
    pub(crate) fn change(&mut self, change: impl FnOnce(NonNull<Mr>) -> bool) -> bool {
        // The program holds the registration, so no other thread uses it.
        let is_changed = change(self.registration().mr);
        if is_changed {
            self.registration().must_end.store(true, Ordering::Relaxed);
            self.unlink();
        }
        is_changed
    }

    /// Unlinks the registration, so that no lookup finds it from now on.
    fn unlink(&self) {
        let range = self.0.range();
        let start = std::ptr::without_provenance(range.start());
        if let Some(domain) = self.0.registrar().domain.get().and_then(Weak::upgrade) {
            // The shim need not wait until the registration is deregistered. `invalidate` fails
            // only in a forked child, which has no registrations.
            let _ = domain.cache.invalidate(start, range.len());
        }
    }
}

impl Domain {
    /// Makes a cache for the domain at `pd`. The program must not deallocate the domain before the
    /// shim's `ibv_dealloc_pd` has run.
    ///
    /// # Safety
    ///
    /// `pd` is a protection domain.
    pub(crate) unsafe fn new(
        pd: NonNull<Pd>,
        device: Arc<OpenDevice>,
        monitor: Shared<Auto>,
        settings: &Settings,
        made: Arc<AtomicU64>,
    ) -> io::Result<Arc<Self>> {
        let registrar = PdRegistrar {
            pd,
            device,
            closed: AtomicBool::new(false),
            domain: OnceLock::new(),
            made,
        };
        // The program may rely on the device to refuse accesses beyond its registration.
        let mut builder = Cache::builder(registrar).monitor(monitor).granularity(1);
        if let Some(entries) = settings.max_entries {
            builder = builder.max_entries(entries);
        }
        if let Some(bytes) = settings.max_bytes {
            builder = builder.max_bytes(bytes);
        }
        // SAFETY: the contract says that `pd` is a protection domain.
        let of = unsafe { pd.as_ref() };
        let domain = Arc::new(Self {
            context: of.context,
            handle: of.handle,
            cache: builder.build()?,
        });
        // This succeeds, because nobody else has the registrar yet.
        let _ = domain.registrar().domain.set(Arc::downgrade(&domain));
        Ok(domain)
    }

    #[inline]
    fn registrar(&self) -> &PdRegistrar {
        self.cache.registrar()
    }

    /// Returns true if the domain at `pd` is the one for which this record was made.
    #[inline]
    pub(crate) fn is_of(&self, pd: &Pd) -> bool {
        self.context == pd.context && self.handle == pd.handle
    }

    pub(crate) fn is_on(&self, context: *mut Context) -> bool {
        self.context == context
    }

    pub(crate) fn is_of_device(&self, device: &OpenDevice) -> bool {
        std::ptr::eq(&*self.registrar().device, device)
    }

    /// Returns the reason why the shim does not see all work that is posted to the device, if there
    /// is one.
    pub(crate) fn unseen(&self) -> Option<&'static str> {
        self.registrar().device.unseen()
    }

    /// Returns a registration for the program to hold, if the cache has one and finds it at once.
    #[inline(always)]
    pub(crate) fn register_at_once(
        &self,
        addr: *const u8,
        length: usize,
        access: Access,
    ) -> Option<Held> {
        let guard = match self.cache.at_once().get(addr, length, || access) {
            Ok(guard) => guard,
            Err(NotYet::Declines(other)) => {
                other.decline();
                return None;
            }
            Err(NotYet::Unknown | NotYet::Contended(_)) => return None,
        };
        match self.claim(guard.registration()) {
            true => Some(Held(guard)),
            false => {
                guard.decline();
                None
            }
        }
    }

    /// Returns a registration for the program to hold; `None` if the program already holds the
    /// cached one.
    pub(crate) fn register(
        &self,
        addr: *const u8,
        length: usize,
        access: Access,
    ) -> Result<Option<Held>, Error> {
        let guard = self.cache.get(addr, length, access)?;
        Ok(self.claim(guard.registration()).then_some(Held(guard)))
    }

    /// Claims a registration for one `ibv_mr`. Returns false if another one has it.
    #[inline(always)]
    fn claim(&self, registration: &Registered) -> bool {
        let (order, failed) = (Ordering::AcqRel, Ordering::Relaxed);
        let state = &registration.state;
        let is_claimed = state.compare_exchange(IDLE, HELD, order, failed).is_ok();
        if is_claimed {
            self.registrar().device.work.forget(registration.lkey);
        }
        is_claimed
    }

    /// Returns a table of the registrations.
    pub(crate) fn snapshot(&self) -> String {
        // This fails only in a forked child, which has no domain of its parent.
        let snapshot = self.cache.snapshot();
        snapshot.map_or_else(|error| error.to_string(), |table| table.to_string())
    }

    pub(crate) fn stats(&self) -> Stats {
        self.cache.stats()
    }

    /// Deregisters the cached registrations that the program does not hold, and waits until other
    /// threads have done so, for `grace` at most. Returns true if there were any.
    pub(crate) fn give_up_idle(&self, grace: Duration) -> bool {
        let stats = self.cache.stats();
        self.cache.flush_idle(grace);
        stats.entries > stats.unreleased
    }

    /// Marks the domain as closed. libibverbs has freed or is about to free the domain's
    /// registrations, so the shim must not deregister them.
    pub(crate) fn close(&self) {
        self.registrar().closed.store(true, Ordering::Release);
    }
}

/// The registrar of one protection domain, which registers through libibverbs.
pub(crate) struct PdRegistrar {
    pd: NonNull<Pd>,
    device: Arc<OpenDevice>,
    closed: AtomicBool,
    /// The domain, which owns the cache and so the registrar.
    domain: OnceLock<Weak<Domain>>,
    /// The number of registrations made.
    made: Arc<AtomicU64>,
}

// SAFETY: any thread may call libibverbs with the domain.
unsafe impl Send for PdRegistrar {}
// SAFETY: the reasons for `Send` also hold for `Sync`.
unsafe impl Sync for PdRegistrar {}

/// The state of a registration that no `ibv_mr` of the program uses.
const IDLE: u8 = 0;
/// The state of a registration that one `ibv_mr` of the program uses. No second `ibv_mr` can use
/// it.
const HELD: u8 = 1;
/// The state of a registration that is deregistered.
const OVER: u8 = 2;

/// A registration that libibverbs has made, and its numbers.
pub(crate) struct Registered {
    mr: NonNull<Mr>,
    state: AtomicU8,
    /// True if the registration must not stay in the cache. Its memory is in huge pages of
    /// hugetlbfs, or `ibv_rereg_mr` has changed it.
    must_end: AtomicBool,
    pub(crate) handle: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

impl PdRegistrar {
    #[inline]
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Registered {
    /// Deregisters the registration, for the thread that holds it. Returns libibverbs's result.
    fn end(&self) -> c_int {
        // SAFETY: `register` made the registration. The state ensures that it is deregistered only
        // once.
        let refused = unsafe { deregister(self.mr) };
        if refused == 0 {
            self.state.store(OVER, Ordering::Release);
        }
        refused
    }
}

// SAFETY: any thread may deregister the registration. Otherwise only the thread that holds the
// registration uses the address.
unsafe impl Send for Registered {}
// SAFETY: the reasons for `Send` also hold for `Sync`.
unsafe impl Sync for Registered {}

// SAFETY:
// - libibverbs registers the whole range or fails. The registration has the requested access and
//   the process's own addresses: the function has no iova, or the start of the range is the iova.
// - The kernel pins the pages between call and return, and keeps them pinned until the
//   deregistration, since `Access` has no ON_DEMAND.
// - `ibv_dereg_mr` returns 0 once the kernel has invalidated the key and unpinned the pages, since
//   `Access` has no MW_BIND. A registration that is OVER ended that way. When a device is closed,
//   the kernel ends all of its registrations.
unsafe impl Registrar for PdRegistrar {
    type Access = Access;
    type Registration = Registered;

    fn register(&self, range: VaRange, access: Access) -> io::Result<Registered> {
        // SAFETY: the domain exists as long as the program may request registrations in it.
        let mr = unsafe { register(self.pd, range, access) };
        let mr = NonNull::new(mr).ok_or_else(io::Error::last_os_error)?;
        self.made.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `mr` was just made, and no other thread has it.
        let numbers = unsafe { mr.as_ref() };
        Ok(Registered {
            mr,
            state: AtomicU8::new(IDLE),
            must_end: AtomicBool::new(is_huge(range.start()) || is_huge(range.end() - 1)),
            handle: numbers.handle,
            lkey: numbers.lkey,
            rkey: numbers.rkey,
        })
    }

    // A program can call `ibv_fork_init` after the shim has begun to cache. libibverbs then marks
    // registered memory `MADV_DONTFORK`. These two calls have libibverbs count one registration
    // more, so that the mark is set before the range is watched.
    fn prepare(&self, range: VaRange) -> bool {
        let start = std::ptr::without_provenance_mut(range.start());
        // SAFETY: the call changes no memory of the process, and fails if part of the range is not
        // mapped.
        real::dontfork_range().is_some_and(|mark| unsafe { mark(start, range.len()) } == 0)
    }

    fn finish(&self, range: VaRange) {
        let start = std::ptr::without_provenance_mut(range.start());
        if let Some(unmark) = real::dofork_range() {
            // SAFETY: the call changes no memory of the process. It undoes one call of `prepare`.
            unsafe { unmark(start, range.len()) };
        }
    }

    fn deregister(&self, registration: Registered) -> io::Result<()> {
        if registration.state.load(Ordering::Acquire) == OVER {
            return Ok(());
        }
        if self.is_closed() || !self.device.has_descriptor() {
            self.device.work.forget(registration.lkey);
            return Ok(());
        }
        // SAFETY: `register` made the registration, this is its only deregistration, and its domain
        // exists.
        match unsafe { deregister(registration.mr) } {
            0 => {
                // Until this call, a thread that posts with the key waits for the deregistration.
                self.device.work.forget(registration.lkey);
                Ok(())
            }
            -1 => Err(io::Error::last_os_error()),
            errno => Err(io::Error::from_raw_os_error(errno.saturating_abs())),
        }
    }
}

/// Registers a range at its own addresses through libibverbs. Returns null and sets `errno` if
/// libibverbs refuses.
///
/// # Safety
///
/// `pd` is a protection domain.
pub(crate) unsafe fn register(pd: NonNull<Pd>, range: VaRange, access: Access) -> *mut Mr {
    let start = range.start();
    let addr = std::ptr::without_provenance_mut(start);
    let _inside = Inside::enter();
    // The header's macro chooses the same way: only `ibv_reg_mr_iova2` can ignore optional flags.
    match (real::reg_mr_iova2(), real::reg_mr()) {
        (Some(register), _) if access.contains(Access::RELAXED_ORDERING) => {
            // SAFETY: this is libibverbs's function, and `pd` is a domain. libibverbs only passes
            // the address to the kernel.
            unsafe { register(pd.as_ptr(), addr, range.len(), start as u64, access.bits()) }
        }
        (_, Some(register)) => {
            let access = access.bits().cast_signed();
            // SAFETY: this is libibverbs's function, and `pd` is a domain.
            unsafe { register(pd.as_ptr(), addr, range.len(), access) }
        }
        _ => {
            // SAFETY: the location belongs to this thread.
            unsafe { *libc::__errno_location() = libc::ENOSYS };
            std::ptr::null_mut()
        }
    }
}

/// Calls libibverbs's `ibv_dereg_mr`, and returns its result.
///
/// # Safety
///
/// `mr` is a registration of libibverbs, and no code uses it after this call.
pub(crate) unsafe fn deregister(mr: NonNull<Mr>) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let _inside = Inside::enter();
    match real::dereg_mr() {
        // SAFETY: the caller keeps the contract of this function.
        Some(deregister) => unsafe { deregister(mr.as_ptr()) },
        None => libc::ENOSYS,
    }
}

/// Returns the access that the program's flags ask for; `None` if a flag cannot be cached.
pub(crate) fn cacheable(flags: c_uint) -> Option<Access> {
    let access = Access::from_bits(flags)?;
    // The device itself refuses flags that lack an implied flag.
    (access.with_implied() == access).then_some(access)
}
