//! One protection domain, with the cache of its registrations.

use std::ffi::{c_int, c_uint};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use regcache::monitor::{Auto, Shared};
use regcache::{Cache, Error, Guard, Registrar, Stats, VaRange};
use regcache_verbs_types::{Access, Context, Mr, Pd};

use crate::objects::OpenDevice;
use crate::outstanding::Release;
use crate::real::{self, Inside};
use crate::settings::Settings;

/// How long registrations may take to go, before a domain is deallocated that the program has none
/// left in.
const GRACE: Duration = Duration::from_secs(30);

/// A protection domain that the program has registered memory in.
pub(crate) struct Domain {
    /// The context and the number that the domain had when this was made. Another domain may have
    /// the same address later.
    context: *mut Context,
    handle: u32,
    device: Arc<OpenDevice>,
    cache: Cache<PdRegistrar, Shared<Auto>>,
    /// How many of its registrations the program holds.
    held: AtomicUsize,
    closed: Arc<AtomicBool>,
}

// SAFETY: the address of the context is only compared.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

/// A registration that the program holds.
pub(crate) struct Held {
    /// Dropped before what it is counted in.
    guard: Guard<PdRegistrar, Shared<Auto>>,
    count: Count,
    /// By `ibv_rereg_mr` it has become another one than the cache has made.
    changed: bool,
}

struct Count(Arc<Domain>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Release);
    }
}

/// How a registration ended that the program gave back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is idle.
    Kept,
    /// It was deregistered, since work that uses it may be outstanding.
    Outstanding,
    /// It was deregistered for another reason: work is not seen, `ibv_rereg_mr` has changed it, or
    /// too many are idle.
    Deregistered,
}

impl Held {
    pub(crate) fn registration(&self) -> &Registered {
        self.guard.registration()
    }

    fn domain(&self) -> &Domain {
        &self.count.0
    }

    /// Ends it, for the program; if libibverbs refuses, with what it said, it is still there.
    pub(crate) fn end(self) -> Result<Ended, (c_int, Self)> {
        let (registration, device) = (self.registration(), &self.domain().device);
        if self.domain().closed.load(Ordering::Acquire) {
            // It went with its domain.
            return Ok(Ended::Deregistered);
        }
        let is_certain = !self.changed && device.unseen().is_none();
        let release = is_certain.then(|| device.work.release(registration.lkey));
        let ended = match release {
            Some(Release::Keep) => {
                registration.state.store(IDLE, Ordering::Release);
                return Ok(Ended::Kept);
            }
            Some(Release::Outstanding) => Ended::Outstanding,
            Some(Release::Crowded) | None => Ended::Deregistered,
        };
        match registration.end() {
            0 => {
                self.unlink();
                Ok(ended)
            }
            refused => Err((refused, self)),
        }
    }

    /// The program has the registration itself changed by `change`, which is given libibverbs's
    /// `ibv_mr`; true if it may be another one from now on.
    pub(crate) fn change(&mut self, change: impl FnOnce(NonNull<Mr>) -> bool) -> bool {
        // While it is held nobody else uses it.
        let is_changed = change(self.registration().mr);
        if is_changed {
            self.changed = true;
            self.unlink();
        }
        is_changed
    }

    /// No lookup finds it from now on.
    fn unlink(&self) {
        let range = self.guard.range();
        let start = std::ptr::without_provenance(range.start());
        // There is nothing to wait for, and in a child there is no cache.
        let _ = self.domain().cache.invalidate(start, range.len());
    }
}

impl Domain {
    /// A cache for the domain at `pd`, which the program must not deallocate without telling.
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
    ) -> io::Result<Self> {
        let closed = Arc::new(AtomicBool::new(false));
        let registrar = PdRegistrar {
            pd,
            device: Arc::clone(&device),
            closed: Arc::clone(&closed),
            made,
        };
        let mut builder = Cache::builder(registrar).monitor(monitor);
        if let Some(entries) = settings.max_entries {
            builder = builder.max_entries(entries);
        }
        if let Some(bytes) = settings.max_bytes {
            builder = builder.max_bytes(bytes);
        }
        // SAFETY: by the contract a domain.
        let of = unsafe { pd.as_ref() };
        Ok(Self {
            context: of.context,
            handle: of.handle,
            device,
            cache: builder.build()?,
            held: AtomicUsize::new(0),
            closed,
        })
    }

    /// True if what is at `pd` now is the domain that this was made for.
    pub(crate) fn is_of(&self, pd: &Pd) -> bool {
        self.context == pd.context && self.handle == pd.handle
    }

    pub(crate) fn is_on(&self, context: *mut Context) -> bool {
        self.context == context
    }

    pub(crate) fn is_of_device(&self, device: &OpenDevice) -> bool {
        std::ptr::eq(&*self.device, device)
    }

    /// Why not all work that is posted to its device is seen, if so.
    pub(crate) fn unseen(&self) -> Option<&'static str> {
        self.device.unseen()
    }

    /// A registration for the program to hold; `None` if the program holds the one that there is.
    pub(crate) fn register(
        self: &Arc<Self>,
        addr: *const u8,
        length: usize,
        access: Access,
    ) -> Result<Option<Held>, Error> {
        let guard = self.cache.get(addr, length, access)?;
        let registration = guard.registration();
        let claimed =
            registration
                .state
                .compare_exchange(IDLE, HELD, Ordering::AcqRel, Ordering::Relaxed);
        if claimed.is_err() {
            return Ok(None);
        }
        self.device.work.forget(registration.lkey);
        self.held.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Held {
            guard,
            count: Count(Arc::clone(self)),
            changed: false,
        }))
    }

    pub(crate) fn stats(&self) -> Stats {
        self.cache.stats()
    }

    /// Gives up what the program does not hold; true if there was anything. Returns when it is
    /// gone, as long as there is nothing else to wait for.
    pub(crate) fn give_up_idle(&self) -> bool {
        let stats = self.cache.stats();
        let Ok(mut leaving) = self.cache.flush() else {
            return false;
        };
        if self.held.load(Ordering::Acquire) == 0 {
            leaving.wait(GRACE);
        }
        stats.entries > stats.unreleased
    }

    /// The domain is gone, or is going, with all that was made in it: libibverbs must not be asked
    /// to deregister any of that.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// Registers in one protection domain, through libibverbs.
pub(crate) struct PdRegistrar {
    pd: NonNull<Pd>,
    device: Arc<OpenDevice>,
    closed: Arc<AtomicBool>,
    /// Counts registrations.
    made: Arc<AtomicU64>,
}

// SAFETY: libibverbs may be called with the domain from any thread.
unsafe impl Send for PdRegistrar {}
// SAFETY: as above.
unsafe impl Sync for PdRegistrar {}

/// No `ibv_mr` of the program's has the registration.
const IDLE: u8 = 0;
/// One has it, and no other can.
const HELD: u8 = 1;
/// It is deregistered.
const OVER: u8 = 2;

/// A registration that libibverbs has made, and its numbers.
pub(crate) struct Registered {
    mr: NonNull<Mr>,
    state: AtomicU8,
    pub(crate) handle: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

impl Registered {
    /// Deregisters it, for who holds it; what libibverbs says.
    fn end(&self) -> c_int {
        // SAFETY: made by `register`, and deregistered once, by the state.
        let refused = unsafe { deregister(self.mr) };
        if refused == 0 {
            self.state.store(OVER, Ordering::Release);
        }
        refused
    }
}

// SAFETY: it may be deregistered in any thread, and only who holds it does more with the address.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

// SAFETY:
// - libibverbs covers the whole range or fails, with the access asked for, at the process's own
//   addresses: the function without an iova, or the start as the iova.
// - It has the kernel pin the pages between call and return, until deregistered; `Access` has no
//   ON_DEMAND.
// - `ibv_dereg_mr` returns 0 once the kernel has invalidated the key and unpinned, and `Access` has
//   no MW_BIND. An OVER registration ended that way. Of a device that is closed the kernel has
//   taken all registrations back.
unsafe impl Registrar for PdRegistrar {
    type Access = Access;
    type Registration = Registered;

    fn register(&self, range: VaRange, access: Access) -> io::Result<Registered> {
        // SAFETY: the domain is there as long as the program may ask for registrations in it.
        let mr = unsafe { register(self.pd, range, access) };
        let mr = NonNull::new(mr).ok_or_else(io::Error::last_os_error)?;
        self.made.fetch_add(1, Ordering::Relaxed);
        // SAFETY: just made, and nobody else's.
        let numbers = unsafe { mr.as_ref() };
        Ok(Registered {
            mr,
            state: AtomicU8::new(IDLE),
            handle: numbers.handle,
            lkey: numbers.lkey,
            rkey: numbers.rkey,
        })
    }

    fn deregister(&self, registration: Registered) -> io::Result<()> {
        if registration.state.load(Ordering::Acquire) == OVER {
            return Ok(());
        }
        if self.closed.load(Ordering::Acquire) {
            self.device.work.forget(registration.lkey);
            return Ok(());
        }
        // SAFETY: made by `register`, deregistered once, and its domain is there still.
        match unsafe { deregister(registration.mr) } {
            0 => {
                // Until here a poster would have waited for this.
                self.device.work.forget(registration.lkey);
                Ok(())
            }
            -1 => Err(io::Error::last_os_error()),
            errno => Err(io::Error::from_raw_os_error(errno.saturating_abs())),
        }
    }
}

/// libibverbs's registration of a range at its own addresses; null with `errno` set if it is
/// refused.
///
/// # Safety
///
/// `pd` is a protection domain.
pub(crate) unsafe fn register(pd: NonNull<Pd>, range: VaRange, access: Access) -> *mut Mr {
    let start = range.start();
    let addr = std::ptr::without_provenance_mut(start);
    let _inside = Inside::enter();
    // As the header's macro does: flags that may be ignored are for the function that can ignore
    // them.
    match (real::reg_mr_iova2(), real::reg_mr()) {
        (Some(register), _) if access.contains(Access::RELAXED_ORDERING) => {
            // SAFETY: libibverbs's function, with a domain. The address is only passed to the
            // kernel.
            unsafe { register(pd.as_ptr(), addr, range.len(), start as u64, access.bits()) }
        }
        (_, Some(register)) => {
            let access = access.bits().cast_signed();
            // SAFETY: as above.
            unsafe { register(pd.as_ptr(), addr, range.len(), access) }
        }
        _ => {
            // SAFETY: this thread's.
            unsafe { *libc::__errno_location() = libc::ENOSYS };
            std::ptr::null_mut()
        }
    }
}

/// libibverbs's `ibv_dereg_mr`.
///
/// # Safety
///
/// `mr` is a registration of libibverbs's, not used after.
pub(crate) unsafe fn deregister(mr: NonNull<Mr>) -> c_int {
    let _inside = Inside::enter();
    match real::dereg_mr() {
        // SAFETY: by the contract.
        Some(deregister) => unsafe { deregister(mr.as_ptr()) },
        None => libc::ENOSYS,
    }
}

/// The flags as the program passes them, if they are all ones that can be cached.
pub(crate) fn cacheable(flags: c_uint) -> Option<Access> {
    let access = Access::from_bits(flags)?;
    // The device refuses the others itself.
    (access.with_implied() == access).then_some(access)
}
