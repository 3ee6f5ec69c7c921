//! Tests that `pthread_cancel` ends no thread inside the cache, although the registrar and the
//! monitor declare that they reach no cancellation point.
#![cfg(all(not(loom), target_os = "linux"))]

mod unchanging;

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;

use regcache::{Cache, Error, Registrar, VaRange};
use unchanging::FakeMonitor;

unsafe extern "C" {
    // The crate `libc` declares this function only for other systems.
    fn pthread_cancel(thread: libc::pthread_t) -> c_int;
}

/// A device that refuses each range with the same error.
struct Refusing(c_int);

// SAFETY: there is no device, so nothing accesses memory through a registration.
unsafe impl Registrar for Refusing {
    type Access = ();
    type Registration = ();
    const CANCELLATION_POINT: bool = false;

    fn register(&self, _: VaRange, (): ()) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }

    fn deregister(&self, (): ()) -> io::Result<()> {
        Ok(())
    }
}

/// Cancels the calling thread, and looks up memory that the device refuses. The thread has no
/// cancellation point of its own after that.
extern "C" fn cancelled(errno: *mut c_void) -> *mut c_void {
    let errno = errno.addr() as c_int;
    let built = Cache::builder(Refusing(errno)).monitor(FakeMonitor).build();
    let Ok(cache) = built else {
        return ptr::null_mut();
    };
    // SAFETY: the calling thread exists.
    unsafe { pthread_cancel(libc::pthread_self()) };
    let refused = cache.get(ptr::without_provenance(1 << 20), 4096, ());
    let is_refused = matches!(refused, Err(Error::Register(_)));
    ptr::without_provenance_mut(usize::from(is_refused))
}

/// To explain an error, the cache reads files, which are cancellation points.
#[test]
fn a_cancelled_thread_gets_the_reason_for_a_refused_range() {
    for errno in [libc::EFAULT, libc::ENOMEM, libc::EINVAL] {
        let mut thread = 0;
        let argument = ptr::without_provenance_mut(errno as usize);
        // SAFETY: the function accepts any number, and the pointers are valid during the calls.
        let result = unsafe {
            let made = libc::pthread_create(&raw mut thread, ptr::null(), cancelled, argument);
            assert_eq!(made, 0);
            let mut result = ptr::null_mut();
            assert_eq!(libc::pthread_join(thread, &raw mut result), 0);
            result
        };
        assert_eq!(result.addr(), 1, "errno {errno}");
    }
}
