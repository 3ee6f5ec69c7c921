//! [`AnyDevice`]: one registrar for `ibv_mr`s and for the registrations of callbacks.

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::mem::offset_of;
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering;

use regcache::{Registrar, VaRange};
use regcache_verbs::{Access, MrRegistrar};

use crate::thread_record::{OUTSIDE, ThreadRecord};
use crate::types;

/// A device of libibverbs, or one that the application implements.
pub(crate) enum AnyDevice {
    Verbs(MrRegistrar),
    Callbacks(Callbacks),
}

impl AnyDevice {
    /// Returns the access flags that the device does not know.
    pub(crate) fn unknown_access(&self) -> c_uint {
        match self {
            Self::Verbs(_) => !Access::all().bits(),
            Self::Callbacks(_) => 0,
        }
    }
}

type RegMr = unsafe extern "C" fn(
    *mut c_void,
    *mut c_void,
    usize,
    c_uint,
    *mut types::Registration,
) -> c_int;
type DeregMr = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;

/// A `struct regcache_device` whose two callbacks are set.
pub(crate) struct Callbacks {
    pub(crate) user: *mut c_void,
    pub(crate) reg_mr: RegMr,
    pub(crate) dereg_mr: DeregMr,
}

// SAFETY: the header states that the callbacks are called from any thread, several at once, with
// `user`.
unsafe impl Send for Callbacks {}
// SAFETY: the reasons for `Send` also hold for `Sync`.
unsafe impl Sync for Callbacks {}

/// A registration: the fields that every lookup returns, as in [`types::Mr`]. No more is kept, so
/// that an entry of the cache fits in one cache line.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
    pub(crate) registration: *mut c_void,
}

const _: () = {
    let first = offset_of!(types::Mr, lkey);
    assert!(offset_of!(types::Mr, rkey) - first == offset_of!(Keys, rkey));
    assert!(offset_of!(types::Mr, registration) - first == offset_of!(Keys, registration));
};

// SAFETY: the pointer is the one to an `ibv_mr`, or one that a callback returned. Any thread may
// use an `ibv_mr`, as `regcache_verbs::Mr` states. By the header, callbacks may be called with
// their pointer from any thread.
unsafe impl Send for Keys {}
// SAFETY: the reasons for `Send` also hold for `Sync`. This crate does not dereference the pointer.
unsafe impl Sync for Keys {}

// SAFETY: for verbs, `MrRegistrar` keeps the contract. For callbacks, the header states the
// contract, and the author of the callbacks must keep it.
unsafe impl Registrar for AnyDevice {
    type Access = Access;
    type Registration = Keys;

    fn register(&self, range: VaRange, access: Access) -> io::Result<Keys> {
        match self {
            Self::Verbs(registrar) => {
                let mr = registrar.register_raw(range, access)?;
                // SAFETY: the registration was just made, and no other code has the pointer.
                let (lkey, rkey) = unsafe { (mr.as_ref().lkey, mr.as_ref().rkey) };
                let registration = mr.as_ptr().cast();
                Ok(Keys {
                    lkey,
                    rkey,
                    registration,
                })
            }
            Self::Callbacks(callbacks) => callbacks.register(range, access),
        }
    }

    fn prepare(&self, range: VaRange) -> bool {
        match self {
            Self::Verbs(registrar) => registrar.prepare(range),
            Self::Callbacks(_) => false,
        }
    }

    fn finish(&self, range: VaRange) {
        if let Self::Verbs(registrar) = self {
            registrar.finish(range);
        }
    }

    fn deregister(&self, Keys { registration, .. }: Keys) -> io::Result<()> {
        match self {
            Self::Verbs(registrar) => {
                let mr = NonNull::new(registration.cast()).ok_or(io::ErrorKind::InvalidInput)?;
                // SAFETY: `register` has made the registration. The cache deregisters it once.
                unsafe { registrar.deregister_raw(mr) }
            }
            Self::Callbacks(callbacks) => callbacks.deregister(registration),
        }
    }
}

impl Callbacks {
    fn register(&self, range: VaRange, access: Access) -> io::Result<Keys> {
        let mut made = types::Registration {
            registration: ptr::null_mut(),
            lkey: 0,
            rkey: 0,
        };
        let addr = ptr::without_provenance_mut(range.start());
        let access = access.with_implied().bits();
        let _outside = Outside::go();
        // SAFETY: this is the application's function, called as the header states.
        let status = unsafe { (self.reg_mr)(self.user, addr, range.len(), access, &raw mut made) };
        check(status)?;
        Ok(Keys {
            lkey: made.lkey,
            rkey: made.rkey,
            registration: made.registration,
        })
    }

    fn deregister(&self, registration: *mut c_void) -> io::Result<()> {
        let _outside = Outside::go();
        // SAFETY: this is the application's function, called as the header states.
        check(unsafe { (self.dereg_mr)(self.user, registration) })
    }
}

/// Converts a callback's status, which is 0, an errno or a negative errno.
fn check(status: c_int) -> io::Result<()> {
    match status {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno.saturating_abs())),
    }
}

/// A mark that this thread is in a callback, so that caches refuse its calls. Dropping it removes
/// the mark.
struct Outside(Option<&'static ThreadRecord>);

impl Outside {
    fn go() -> Self {
        // If the thread already uses a cache, its `busy` word makes caches refuse nested calls. So
        // the thread needs no mark.
        let idle = |thread: &&ThreadRecord| thread.busy.load(Ordering::Relaxed) == 0;
        let thread = ThreadRecord::mine().filter(idle);
        if let Some(thread) = thread {
            thread.busy.store(OUTSIDE, Ordering::Relaxed);
        }
        Self(thread)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if let Some(thread) = self.0 {
            thread.busy.store(0, Ordering::Relaxed);
        }
    }
}
