//! The boundary between C and Rust. [`call`] and [`hot_call`] wrap every call of the C functions:
//! they catch panics, and convert an error to an errno and a message. A thread that is cancelled by
//! `pthread_cancel` does not end inside a call, see [`Uncancelled`].

use std::any::Any;
use std::ffi::c_int;
use std::mem;
use std::panic::{self, AssertUnwindSafe};

use regcache::Uncancelled;

use crate::error::Error;
use crate::thread_record::ThreadRecord;

/// Runs `body` and returns its value. If `body` fails, stores the error's message for this thread
/// and returns the negative errno.
pub(crate) fn call(body: impl FnOnce(&ThreadRecord) -> Result<c_int, Error>) -> c_int {
    let _uncancelled = Uncancelled::begin();
    hot_call(body)
}

/// Does the same as [`call`], for a body that reaches no cancellation point outside of the cache's
/// own code. The cache disables cancellation itself where it needs to, and a hit does not need it.
#[inline]
pub(crate) fn hot_call(body: impl FnOnce(&ThreadRecord) -> Result<c_int, Error>) -> c_int {
    let Some(thread) = ThreadRecord::mine() else {
        return -libc::ENOMEM;
    };
    match panic::catch_unwind(AssertUnwindSafe(|| body(thread))) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => failed(thread, &error),
        Err(panicked) => failed(thread, &of_panic(panicked)),
    }
}

#[cold]
#[inline(never)]
fn failed(thread: &ThreadRecord, error: &Error) -> c_int {
    thread.set_message(error.message());
    -error.errno()
}

fn of_panic(panicked: Box<dyn Any + Send>) -> Error {
    let message = match panicked.downcast::<&str>() {
        Ok(text) => (*text).to_owned(),
        Err(panicked) => match panicked.downcast::<String>() {
            Ok(text) => *text,
            Err(panicked) => {
                // Dropping the panic's value may panic as well, so leak the value.
                mem::forget(panicked);
                "a panic without a message".to_owned()
            }
        },
    };
    Error::Panicked { message }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    struct PanicsWhenDropped;

    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    #[test]
    fn a_panic_is_an_errno_and_a_message() {
        let status = call(|_| panic!("no {}", "luck"));
        assert_eq!(status, -libc::ENOTRECOVERABLE);
        // SAFETY: the message is NUL-terminated and belongs to this thread.
        let said = unsafe { CStr::from_ptr(ThreadRecord::mine().unwrap().message()) };
        let said = said.to_str().unwrap();
        assert!(said.ends_with("no luck"), "{said}");
        let status = call(|_| panic::panic_any(PanicsWhenDropped));
        assert_eq!(status, -libc::ENOTRECOVERABLE);
    }
}
