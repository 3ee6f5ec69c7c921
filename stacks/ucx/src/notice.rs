//! Writes messages for the user.

use std::fmt;

use regcache::internal::Notices;

/// The stderr that the process had when the library was loaded.
static STDERR: Notices = Notices::to(libc::STDERR_FILENO);

extern "C" fn at_load() {
    STDERR.begin();
}

#[used]
// SAFETY: the section holds addresses of functions without parameters, and the loader calls each
// once.
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

/// Writes one line.
pub(crate) fn notice(text: fmt::Arguments<'_>) {
    STDERR.write(&format!("regcache: ucx: {text}"));
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
