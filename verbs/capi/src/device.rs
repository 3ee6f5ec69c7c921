//! [`AnyDevice`]: `ibv_mr`s, or what callbacks make, behind one registrar.

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ptr;
use std::sync::atomic::Ordering;

use regcache::{Registrar, VaRange};
use regcache_verbs::{Access, Mr, MrRegistrar};

use crate::caches;
use crate::thread::Thread;
use crate::types;

/// See the file's head.
pub(crate) enum AnyDevice {
    Verbs(MrRegistrar),
    Callbacks(Callbacks),
}

impl AnyDevice {
    /// The access flags that mean nothing to it.
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

/// A `struct regcache_device` with both functions.
pub(crate) struct Callbacks {
    pub(crate) user: *mut c_void,
    pub(crate) reg_mr: RegMr,
    pub(crate) dereg_mr: DeregMr,
}

// SAFETY: the header says that the functions are called from any thread, several at once, with `user`.
unsafe impl Send for Callbacks {}
// SAFETY: as above.
unsafe impl Sync for Callbacks {}

/// A registration. What a lookup hands out comes first.
pub(crate) struct Registered {
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
    pub(crate) registration: *mut c_void,
    /// Of verbs.
    mr: Option<Mr>,
}

// SAFETY: the pointer is the device's, for any thread: an `ibv_mr`'s, as `Mr` is, or the callbacks'.
unsafe impl Send for Registered {}
// SAFETY: as above; it is not dereferenced here.
unsafe impl Sync for Registered {}

// SAFETY: for verbs the promise is `MrRegistrar`'s; for callbacks it is what the header says of them, and so that of
// whoever wrote them.
unsafe impl Registrar for AnyDevice {
    type Access = Access;
    type Registration = Registered;

    fn register(&self, range: VaRange, access: Access) -> io::Result<Registered> {
        match self {
            Self::Verbs(registrar) => {
                let mr = registrar.register(range, access)?;
                Ok(Registered {
                    lkey: mr.lkey(),
                    rkey: mr.rkey(),
                    registration: mr.as_ptr().cast(),
                    mr: Some(mr),
                })
            }
            Self::Callbacks(callbacks) => callbacks.register(range, access),
        }
    }

    fn deregister(&self, registered: Registered) -> io::Result<()> {
        match (self, registered.mr) {
            (Self::Verbs(registrar), Some(mr)) => registrar.deregister(mr),
            (Self::Callbacks(callbacks), _) => callbacks.deregister(registered.registration),
            (Self::Verbs(_), None) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Callbacks {
    fn register(&self, range: VaRange, access: Access) -> io::Result<Registered> {
        let mut made = types::Registration {
            registration: ptr::null_mut(),
            lkey: 0,
            rkey: 0,
        };
        let addr = ptr::without_provenance_mut(range.start());
        let access = access.with_implied().bits();
        let _outside = Outside::go();
        // SAFETY: the application's function, called as the header says.
        let status = unsafe { (self.reg_mr)(self.user, addr, range.len(), access, &raw mut made) };
        check(status)?;
        Ok(Registered {
            lkey: made.lkey,
            rkey: made.rkey,
            registration: made.registration,
            mr: None,
        })
    }

    fn deregister(&self, registration: *mut c_void) -> io::Result<()> {
        let _outside = Outside::go();
        // SAFETY: the application's function, called as the header says.
        check(unsafe { (self.dereg_mr)(self.user, registration) })
    }
}

/// 0, or an errno, negative or not.
fn check(status: c_int) -> io::Result<()> {
    match status {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno.saturating_abs())),
    }
}

/// This thread is in a function of the application's: caches refuse it.
struct Outside(Option<&'static Thread>);

impl Outside {
    fn go() -> Self {
        // If it uses a cache already, that is what they refuse it for.
        let idle = |thread: &&Thread| thread.busy.load(Ordering::Relaxed) == 0;
        let thread = Thread::mine().filter(idle);
        if let Some(thread) = thread {
            thread.busy.store(caches::OUTSIDE, Ordering::Relaxed);
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
