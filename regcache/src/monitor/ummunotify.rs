//! [`Ummunotify`]: the monitor on the ummunotify driver.
//!
//! The driver keeps the rules M1 to M4 of [`Monitor`]. `kernel/Documentation/ummunotify.rst` has
//! the argument. M5 holds because the driver runs in the kernel. Other code of the process cannot
//! switch the driver off. For M6, [`watch`](Monitor::watch) asks the driver to refuse a range
//! unless the kernel reports the changes of its memory. An older driver does not know this request,
//! and watches any range. Such a driver is sound only for a registrar that registers only pages
//! that `get_user_pages` finds.
//!
//! One case of [`drain`](Monitor::drain) needs an argument here. The driver may have raised its
//! counter for a range that was unregistered afterwards. In that case the driver has nothing to
//! report. So `read` returns `EAGAIN` in place of a `LAST` event, and `drain` has to return the
//! generation that was loaded *before* that `read`. At the time of the `read` no watched range was
//! invalid. So each invalidation up to the earlier load was reported, or met a range that is no
//! longer watched.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{Mmap, MmapOptions};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ummunotify_sys as abi;

use super::contract::{Cookie, Monitor};
use super::poll_fd::when_readable;
use crate::range::VaRange;
use crate::sys::descriptor::Private;

/// The path of the driver's device, as udev creates it.
const DEVICE: &str = "/dev/ummunotify";

/// The maximum number of events that one `read` returns. The buffer for them takes 2 KiB of stack.
const BATCH: usize = 64;

/// The reason why the driver could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The device does not exist.
    #[error(
        "{path} does not exist: install the driver (the package ummunotify-dkms, or `make -C kernel dkms-install`), and load it with `modprobe ummunotify`"
    )]
    NoDriver {
        /// The path of the device.
        path: PathBuf,
    },
    /// The process may not open the device.
    #[error("no permission to open {path}: it needs read access (`chmod a+r {path}`)")]
    NoPermission {
        /// The path of the device.
        path: PathBuf,
    },
    /// The device could not be opened for another reason.
    #[error("cannot open {path}")]
    Open {
        /// The path of the device.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file opens, but is not the driver's device.
    #[error("{path} is not the ummunotify driver's device")]
    NotTheDriver {
        /// The path of the device.
        path: PathBuf,
        /// The error that the kernel returned to a request for the driver's features.
        source: io::Error,
    },
    /// The generation counter could not be mapped.
    #[error("cannot map the generation counter of {path}")]
    Map {
        /// The path of the device.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The monitor on `/dev/ummunotify`.
///
/// The device's file descriptor is private, because reading from it would take reports away from
/// the cache. [`descriptor`](Monitor::descriptor) returns another file descriptor, which can only
/// be polled.
#[derive(Debug)]
pub struct Ummunotify {
    device: Private<File>,
    /// The flags of each range.
    flags: u32,
    counter: Mmap,
    /// An epoll instance for callers, which polls readable when the device does.
    ready: Private<OwnedFd>,
}

impl Ummunotify {
    /// Opens `/dev/ummunotify` to watch the memory of this process.
    ///
    /// # Errors
    ///
    /// Returns [`OpenError`], whose message says what to do.
    pub fn open() -> Result<Self, OpenError> {
        Self::open_at(DEVICE)
    }

    /// Opens the driver's device at another path.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`open`](Self::open).
    pub fn open_at(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let device = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(|source| {
                let path = path.to_owned();
                match source.kind() {
                    io::ErrorKind::NotFound => OpenError::NoDriver { path },
                    io::ErrorKind::PermissionDenied => OpenError::NoPermission { path },
                    _ => OpenError::Open { path, source },
                }
            })?;
        let mut features = 0;
        // SAFETY: `features` is a mask of this function, so the driver may read and write it.
        unsafe { abi::exchange_features(device.as_raw_fd(), &raw mut features) }.map_err(
            |source| OpenError::NotTheDriver {
                path: path.to_owned(),
                source,
            },
        )?;
        let page = size_of::<AtomicU64>();
        // SAFETY: only loads of `word()` read the mapping, as an atomic. So the kernel's writes to
        // the mapping are no data race.
        let counter = unsafe { MmapOptions::new().len(page).map(&device) }.map_err(|source| {
            OpenError::Map {
                path: path.to_owned(),
                source,
            }
        })?;
        let ready = when_readable(&[&device]).map_err(|source| OpenError::Open {
            path: path.to_owned(),
            source,
        })?;
        let device = Private::new(device).map_err(|source| OpenError::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            device,
            flags: abi::MUST_BE_BACKED,
            counter,
            ready,
        })
    }

    /// Makes the monitor report changes of protection as well, as `mprotect` makes them.
    ///
    /// Such a change leaves the pages in place, so a registration stays right. But a new
    /// registration might be refused: for writing, if the memory has become read-only. With this
    /// option, the cache asks the device again after each change of protection. The price is that
    /// the kernel also changes protections for its own purposes: for the parent at each `fork`,
    /// when it scans for NUMA balancing, and when it writes a file's pages back. Each of these
    /// costs the affected registrations.
    #[must_use]
    pub fn with_changes_of_protection(mut self) -> Self {
        self.flags |= abi::PROTECTION;
        self
    }

    #[inline]
    fn word(&self) -> &AtomicU64 {
        // SAFETY: a mapping is page-aligned, at least a page long and lives as long as `self`. Only
        // the kernel writes to it, by aligned stores of 8 bytes. Only relaxed loads read the
        // mapping. Read-only memory allows relaxed loads on targets that load 8 bytes in one
        // access.
        unsafe { AtomicU64::from_ptr(self.counter.as_ptr().cast_mut().cast()) }
    }

    /// Waits until a watched range is invalid, for at most `timeout_ms` milliseconds. Returns true
    /// if a range is invalid. Returns false after the time-out or a signal.
    ///
    /// # Errors
    ///
    /// Returns the error of `poll`.
    pub fn wait(&self, timeout_ms: u16) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.device.unchecked(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(timeout_ms)) {
            // `poll` reports POLLERR in a forked child. POLLERR does not mean that a range is
            // invalid.
            Ok(_) => Ok(fds[0].revents() == Some(PollFlags::POLLIN)),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Watches a range by the driver's original call of 2010. The driver ignores the flags of that
    /// call. So the call watches even memory whose changes the kernel does not report.
    fn watch_unchecked(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let region = abi::Register {
            start: range.start() as u64,
            end: range.end() as u64,
            user_cookie: cookie.0,
            ..abi::Register::default()
        };
        let device = self.device.get_quickly()?.as_raw_fd();
        // SAFETY: the driver only reads the structure, which lives until the call returns.
        unsafe { abi::register_region(device, &raw const region) }
    }

    /// Reads events into the buffer, and returns their number. The number is 0 if there was no
    /// event.
    fn read(&self, events: &mut [abi::Event; BATCH]) -> io::Result<usize> {
        let device = self.device.get()?.as_raw_fd();
        loop {
            // SAFETY: the buffer is valid for its size, and every bit pattern is an `Event`.
            let n = unsafe { libc::read(device, events.as_mut_ptr().cast(), size_of_val(events)) };
            match Errno::result(n) {
                Ok(bytes) => return Ok(bytes.unsigned_abs() / size_of::<abi::Event>()),
                Err(Errno::EAGAIN) => return Ok(0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

// SAFETY: the head of this file argues that the driver keeps each rule of the trait.
unsafe impl Monitor for Ummunotify {
    #[inline]
    fn generation(&self) -> u64 {
        let generation = self.word().load(Ordering::Relaxed);
        // Rust does not allow an acquire load from read-only memory. So a fence follows a relaxed
        // load. On x86-64 the fence compiles to no instruction.
        fence(Ordering::Acquire);
        generation
    }

    fn counter(&self) -> Option<NonNull<AtomicU64>> {
        Some(NonNull::from(self.word()))
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let region = abi::Register2 {
            flags: self.flags,
            start: range.start() as u64,
            end: range.end() as u64,
            user_cookie: cookie.0,
            ..abi::Register2::default()
        };
        let device = self.device.get_quickly()?.as_raw_fd();
        loop {
            // SAFETY: the driver only reads the structure, which lives until the call returns.
            let watched = unsafe { abi::register_region2(device, &raw const region) };
            match watched.as_ref().err().and_then(io::Error::raw_os_error) {
                // A signal interrupted the wait. The range is not watched yet, so the call is
                // repeated.
                Some(libc::EINTR) => {}
                Some(libc::ENOTTY) => return self.watch_unchecked(range, cookie),
                _ => return watched,
            }
        }
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        let device = self.device.get_quickly()?.as_raw_fd();
        // SAFETY: the driver only reads the cookie, which lives until the call returns.
        unsafe { abi::unregister_region(device, &raw const cookie.0) }
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let mut events = [abi::Event::default(); BATCH];
        loop {
            let before = self.generation();
            let n = self.read(&mut events)?;
            if n == 0 {
                return Ok(before);
            }
            for event in &events[..n] {
                match event.kind {
                    abi::INVAL => invalidated(Cookie(event.user_cookie_counter)),
                    abi::LAST => return Ok(event.user_cookie_counter),
                    // An event of unknown type may be a lost report, so the cache has to drop all
                    // entries.
                    kind => {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("ummunotify event of unknown type {kind}"),
                        ));
                    }
                }
            }
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.unchecked())
    }

    fn name(&self) -> &'static str {
        "ummunotify"
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_a_typed_error_that_says_what_to_do() {
        let error = Ummunotify::open_at("/nonexistent/ummunotify").unwrap_err();
        assert!(matches!(error, OpenError::NoDriver { .. }));
        assert!(error.to_string().contains("modprobe"));
    }

    #[test]
    fn a_device_that_is_not_the_driver_is_a_typed_error() {
        let error = Ummunotify::open_at("/dev/null").unwrap_err();
        assert!(matches!(error, OpenError::NotTheDriver { .. }), "{error}");
    }
}
