//! Writes messages for the user.

regcache::notices_to_stderr!("regcache: ucx: ");

/// Writes a message the first time that the program gets here.
macro_rules! notice_once {
    ($($text:tt)*) => {{
        use std::sync::atomic::{AtomicBool, Ordering};
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            $crate::notice::notice(format_args!($($text)*));
        }
    }};
}

pub(crate) use notice_once;
