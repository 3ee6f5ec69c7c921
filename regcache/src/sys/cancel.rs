//! [`Uncancelled`]: keeps `pthread_cancel` from ending the thread inside the library.
//!
//! `pthread_cancel` ends a thread at its next cancellation point, for example in `read`, `open` or
//! `nanosleep`. glibc then unwinds the stack. The unwinding must not meet functions of Rust: such a
//! function cannot give up its locks that way, and usually aborts the process. So the library
//! disables cancellation wherever a call can reach a cancellation point. A call that only finds a
//! cached registration reaches none, unless the monitor has to be called at each lookup
//! ([`Monitor::CHECKED`](crate::Monitor::CHECKED)).

use std::cell::Cell;
use std::ffi::c_int;
use std::marker::PhantomData;

/// `PTHREAD_CANCEL_DISABLE`, which has this value in glibc and in musl.
const DISABLE: c_int = 1;

unsafe extern "C" {
    // The crate `libc` declares this function only for other systems.
    fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
}

thread_local! {
    static BEGUN: Cell<bool> = const { Cell::new(false) };
}

/// A mark that `pthread_cancel` does not end the calling thread now. If the thread is cancelled
/// meanwhile, it ends at its first cancellation point after the drop of the mark.
///
/// The cache sets the mark itself. Bindings for other languages can set it around other code of
/// theirs.
#[derive(Debug)]
pub struct Uncancelled {
    /// The state of the thread before, or `None` if the mark does not change it.
    before: Option<c_int>,
    /// True if the thread had a mark before.
    nested: bool,
    /// The state belongs to the thread, so the mark must stay in the thread.
    stays: PhantomData<*const ()>,
}

impl Uncancelled {
    /// Disables cancellation of the calling thread until the mark is dropped.
    #[must_use]
    pub fn begin() -> Self {
        let mut before = DISABLE;
        // SAFETY: the call writes `before`, and changes only the state of this thread.
        unsafe { pthread_setcancelstate(DISABLE, &raw mut before) };
        Self::marked(Some(before))
    }

    /// Does the same as [`begin`](Self::begin) if the code under the mark may reach a cancellation
    /// point. Otherwise cancellation stays enabled, which saves two atomic operations.
    #[must_use]
    #[inline]
    pub(crate) fn begin_if(may_reach_one: bool) -> Self {
        if may_reach_one {
            return Self::begin();
        }
        Self::marked(None)
    }

    fn marked(before: Option<c_int>) -> Self {
        Self {
            before,
            nested: BEGUN.replace(true),
            stays: PhantomData,
        }
    }

    /// Returns true if the calling thread has such a mark now. In a signal handler, true means that
    /// the signal has interrupted code that may hold locks of the library.
    #[must_use]
    pub fn is_begun() -> bool {
        BEGUN.get()
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        BEGUN.set(self.nested);
        if let Some(before) = self.before {
            let mut disabled = 0;
            // SAFETY: as in `begin`. musl allows no null pointer as the second argument before 1.1.
            unsafe { pthread_setcancelstate(before, &raw mut disabled) };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn state() -> c_int {
        let mut now = 0;
        // SAFETY: each call writes `now`, and changes only the state of this thread.
        unsafe {
            pthread_setcancelstate(DISABLE, &raw mut now);
            let mut disabled = 0;
            pthread_setcancelstate(now, &raw mut disabled);
        }
        now
    }

    #[test]
    fn marks_nest_and_the_last_one_restores_the_state() {
        let before = state();
        assert_ne!(before, DISABLE);
        let outer = Uncancelled::begin();
        let inner = Uncancelled::begin();
        drop(inner);
        assert!(Uncancelled::is_begun());
        assert_eq!(state(), DISABLE);
        drop(outer);
        assert!(!Uncancelled::is_begun());
        assert_eq!(state(), before);
        let only_a_mark = Uncancelled::begin_if(false);
        assert!(Uncancelled::is_begun());
        assert_eq!(state(), before);
        drop(only_a_mark);
        let disabled = Uncancelled::begin_if(true);
        assert_eq!(state(), DISABLE);
        drop(disabled);
        assert!(!Uncancelled::is_begun());
        assert_eq!(state(), before);
    }
}
