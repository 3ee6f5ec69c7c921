//! What goes on around every call from C: panics end there, errors become numbers and messages.

use std::any::Any;
use std::ffi::c_int;
use std::mem;
use std::panic::{self, AssertUnwindSafe};

use crate::error::Error;
use crate::thread::Thread;

/// Returns what `body` does, or its error's negative errno, and keeps the message.
#[inline]
pub(crate) fn call(body: impl FnOnce(&Thread) -> Result<c_int, Error>) -> c_int {
    let Some(thread) = Thread::mine() else {
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
fn failed(thread: &Thread, error: &Error) -> c_int {
    thread.set_message(error.message());
    -error.errno()
}

fn of_panic(panicked: Box<dyn Any + Send>) -> Error {
    let message = match panicked.downcast::<&str>() {
        Ok(text) => (*text).to_owned(),
        Err(panicked) => match panicked.downcast::<String>() {
            Ok(text) => *text,
            Err(panicked) => {
                // Its drop may panic as well.
                mem::forget(panicked);
                "it does not say what".to_owned()
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
        // SAFETY: NUL-terminated, and this thread's.
        let said = unsafe { CStr::from_ptr(Thread::mine().unwrap().message()) };
        let said = said.to_str().unwrap();
        assert!(said.ends_with("no luck"), "{said}");
        let status = call(|_| panic::panic_any(PanicsWhenDropped));
        assert_eq!(status, -libc::ENOTRECOVERABLE);
    }
}
