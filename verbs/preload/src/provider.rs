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

/// The libraries of devices in software whose queues complete in order. Programs cannot use such a
/// device directly.
pub(crate) const SOFTWARE: [&[u8]; 2] = [b"rxe", b"siw"];

/// The libraries of adapters whose queues complete in order. Programs can use an adapter directly.
const ADAPTERS: [&[u8]; 2] = [b"mlx4", b"mlx5"];

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
    let Some(path) = library(function) else {
        return Provider::Unknown;
    };
    match driver(path) {
        Some(name) if SOFTWARE.contains(&name) => Provider::Followed,
        Some(name) if ADAPTERS.contains(&name) => {
            if LOOKED_UP.load(Ordering::Relaxed) || elf::is_needed(name) {
                Provider::Direct
            } else {
                Provider::Followed
            }
        }
        _ => Provider::Unknown,
    }
}

/// Returns the number in [`SOFTWARE`] of the library that defines this function, if it is one of
/// them.
pub(crate) fn software(function: *const c_void) -> Option<usize> {
    let name = driver(library(function)?)?;
    SOFTWARE.iter().position(|known| *known == name)
}

/// Returns the path of the library that defines this function.
fn library(function: *const c_void) -> Option<&'static [u8]> {
    let mut info = libc::Dl_info {
        dli_fname: ptr::null(),
        dli_fbase: ptr::null_mut(),
        dli_sname: ptr::null(),
        dli_saddr: ptr::null_mut(),
    };
    // SAFETY: `dladdr` accepts any address and writes only `info`.
    if unsafe { libc::dladdr(function, &raw mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's name of the library is a terminated string. It exists as long as the
    // library is loaded, and no caller keeps it.
    Some(unsafe { CStr::from_ptr(info.dli_fname) }.to_bytes())
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
