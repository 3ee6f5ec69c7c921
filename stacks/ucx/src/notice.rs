//! Writes messages for the user.

use std::fmt;

/// Writes one line to stderr with one call of `write`.
pub(crate) fn notice(text: fmt::Arguments<'_>) {
    let line = format!("regcache: ucx: {text}\n");
    // SAFETY: the bytes may be read. If the program has closed stderr, the line is lost.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

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
