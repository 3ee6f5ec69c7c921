//! Decides which device libraries the shim can follow.
//!
//! The shim needs a device whose queues complete in order. Most devices complete in order, but EFA
//! does not. Some libraries, such as mlx5dv, also let a program write to the device's queues
//! without libibverbs. The shim decides by the name of the library that defines the device's
//! functions.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::elf;

/// The shim's verdict on a device's library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provider {
    /// The device's queues complete in order, and all work goes through libibverbs.
    Followed,
    /// The shim has no knowledge of the library.
    Unknown,
    /// The program is linked with the library, or has looked up one of its functions for direct
    /// use.
    Direct,
}

/// The libraries of devices whose queues complete in order. The second field is true if programs
/// can use the device directly.
const FOLLOWED: &[(&[u8], bool)] = &[
    (b"rxe", false),
    (b"siw", false),
    (b"mlx4", true),
    (b"mlx5", true),
];

/// The prefixes of the names of functions for direct use.
const DIRECT: &[&[u8]] = &[b"mlx5dv_", b"mlx4dv_", b"efadv_", b"manadv_", b"hnsdv_"];

/// True if the program has looked up, by name, a function for direct use.
static LOOKED_UP: AtomicBool = AtomicBool::new(false);

/// Records that the program has looked up a function by name, if that function is for direct use of
/// the device.
pub(crate) fn looked_up(name: &[u8]) {
    if DIRECT.iter().any(|direct| name.starts_with(direct)) {
        LOOKED_UP.store(true, Ordering::Relaxed);
    }
}

/// Returns the verdict on the library that defines this function.
pub(crate) fn of(function: *const c_void) -> Provider {
    let mut info = libc::Dl_info {
        dli_fname: ptr::null(),
        dli_fbase: ptr::null_mut(),
        dli_sname: ptr::null(),
        dli_saddr: ptr::null_mut(),
    };
    // SAFETY: `dladdr` accepts any address and writes only `info`.
    if unsafe { libc::dladdr(function, &raw mut info) } == 0 || info.dli_fname.is_null() {
        return Provider::Unknown;
    }
    // SAFETY: the loader's name of the library is a terminated string.
    let path = unsafe { CStr::from_ptr(info.dli_fname) }.to_bytes();
    let Some(name) = driver(path) else {
        return Provider::Unknown;
    };
    match FOLLOWED.iter().find(|(known, _)| *known == name) {
        None => Provider::Unknown,
        Some((_, true)) if LOOKED_UP.load(Ordering::Relaxed) || elf::is_needed(name) => {
            Provider::Direct
        }
        Some(_) => Provider::Followed,
    }
}

/// Returns the driver's name: `mlx5` for `/usr/lib/libibverbs/libmlx5-rdmav34.so` and for
/// `libmlx5.so.1`.
fn driver(path: &[u8]) -> Option<&[u8]> {
    let file = path.rsplit(|&byte| byte == b'/').next()?;
    let name = file.strip_prefix(b"lib")?;
    let end = name.iter().position(|byte| matches!(byte, b'-' | b'.'))?;
    name.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_known_by_its_file() {
        assert_eq!(
            driver(b"/usr/lib/libibverbs/libmlx5-rdmav34.so"),
            Some(&b"mlx5"[..])
        );
        assert_eq!(driver(b"libmlx5.so.1.24.44.0"), Some(&b"mlx5"[..]));
        assert_eq!(driver(b"/usr/bin/python3.11"), None);
    }

    #[test]
    fn a_function_of_another_library_is_of_no_provider() {
        assert_eq!(of(libc::qsort as *const c_void), Provider::Unknown);
    }

    #[test]
    fn libraries_that_are_needed_are_found() {
        assert!(elf::is_needed(b"c"));
        assert!(!elf::is_needed(b"mlx5"));
    }
}
