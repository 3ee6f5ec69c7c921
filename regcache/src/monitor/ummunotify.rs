//! The monitor on the ummunotify driver.
//!
//! M1 to M4 are the driver's, and argued in its documentation. M5: the kernel does not ask the
//! process's other code. What is left to argue here is [`drain`](Monitor::drain), in the one case
//! in which the driver has moved its counter and has nothing to report: the range that was hit has
//! been unregistered since. `read` then says `EAGAIN` instead of `LAST`, and the generation to
//! return is the one loaded *before* that `read`. At the time of the `read` no watched range was
//! invalid, so that every invalidation up to the earlier load has been reported or belonged to a
//! range that is no longer watched.
//!
//! [`watch`](Monitor::watch) asks the driver to refuse a range without memory whose changes the kernel
//! announces. A driver that is too old to be asked watches it, and is as good for a registrar that
//! registers only what `get_user_pages` finds.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{Mmap, MmapOptions};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::Epoll;

use super::ready::when_readable;
use super::{Cookie, Monitor, abi};
use crate::VaRange;

const _: () = assert!(usize::BITS == 64, "the counter is loaded in one piece");

/// Where udev puts the driver's device.
const DEVICE: &str = "/dev/ummunotify";

/// Events asked for by one `read`: 2 KiB of stack.
const BATCH: usize = 64;

/// Why the driver could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such device.
    #[error(
        "{path} does not exist: build the driver with `make -C kernel`, load it with `insmod kernel/ummunotify.ko`"
    )]
    NoDriver {
        /// The device looked for.
        path: PathBuf,
    },
    /// The device is there, for others.
    #[error("no permission to open {path}: it needs read access (`chmod a+r {path}`)")]
    NoPermission {
        /// The device looked for.
        path: PathBuf,
    },
    /// The device could not be opened, for another reason.
    #[error("cannot open {path}")]
    Open {
        /// The device looked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It opens, and is something else.
    #[error("{path} is not the ummunotify driver's device")]
    NotTheDriver {
        /// The device looked for.
        path: PathBuf,
        /// What the kernel said when it was asked for the driver's features.
        source: io::Error,
    },
    /// It does not give its generation counter.
    #[error("cannot map the generation counter of {path}")]
    Map {
        /// The device looked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Watches by `/dev/ummunotify`.
///
/// The device's descriptor stays inside: whoever read from it would take reports away from the cache. What
/// [`descriptor`](Monitor::descriptor) gives can only be polled.
#[derive(Debug)]
pub struct Ummunotify {
    device: File,
    counter: Mmap,
    /// Readable when the device is, and nothing else: what is given out to poll.
    ready: Epoll,
}

impl Ummunotify {
    /// Opens `/dev/ummunotify` for the memory of this process.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which says what to do about it.
    pub fn open() -> Result<Self, OpenError> {
        Self::open_at(DEVICE)
    }

    /// Opens the driver's device under another name.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
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
        // SAFETY: the driver reads and writes a mask.
        unsafe { abi::exchange_features(device.as_raw_fd(), &raw mut features) }.map_err(
            |errno| OpenError::NotTheDriver {
                path: path.to_owned(),
                source: errno.into(),
            },
        )?;
        let page = size_of::<AtomicU64>();
        // SAFETY: the mapping is only read through `counter()`, as an atomic, so that the kernel's
        // writes to it are no data race.
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
        Ok(Self {
            device,
            counter,
            ready,
        })
    }

    #[inline]
    fn counter(&self) -> &AtomicU64 {
        // SAFETY: a mapping is page-aligned and at least a page long, lives as long as `self`, and
        // is written by the kernel alone, by aligned stores of 8 bytes. Relaxed loads are all that is
        // ever done with it, which read-only memory allows where 8 bytes are loaded at once.
        unsafe { AtomicU64::from_ptr(self.counter.as_ptr().cast_mut().cast()) }
    }

    /// Waits until a watched range is invalid, for at most `timeout_ms` milliseconds; true if one
    /// is.
    ///
    /// # Errors
    ///
    /// What `poll` says; a signal counts as a time-out.
    pub fn wait(&self, timeout_ms: u16) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(timeout_ms)) {
            // An error is no event: a forked child gets one.
            Ok(_) => Ok(fds[0].revents() == Some(PollFlags::POLLIN)),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Watches a range by the call of 2010, which takes no flags.
    fn watch_unchecked(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let region = abi::Register {
            start: range.start() as u64,
            end: range.end() as u64,
            user_cookie: cookie.0,
            ..abi::Register::default()
        };
        // SAFETY: the driver reads the structure during the call, and nothing else.
        unsafe { abi::register_region(self.device.as_raw_fd(), &raw const region) }?;
        Ok(())
    }

    /// How many events were read, 0 if there was none.
    fn read(&self, events: &mut [abi::Event; BATCH]) -> io::Result<usize> {
        loop {
            // SAFETY: the buffer is valid for the bytes that it has, and every bit pattern is an
            // `Event`.
            let n = unsafe {
                libc::read(
                    self.device.as_raw_fd(),
                    events.as_mut_ptr().cast(),
                    size_of_val(events),
                )
            };
            match Errno::result(n) {
                Ok(bytes) => return Ok(bytes.unsigned_abs() / size_of::<abi::Event>()),
                Err(Errno::EAGAIN) => return Ok(0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

// SAFETY: see the file's head.
unsafe impl Monitor for Ummunotify {
    #[inline]
    fn generation(&self) -> u64 {
        let generation = self.counter().load(Ordering::Relaxed);
        // No instruction on x86-64; a load that acquires is not allowed from read-only memory.
        fence(Ordering::Acquire);
        generation
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let region = abi::Register2 {
            flags: abi::MUST_BE_BACKED,
            start: range.start() as u64,
            end: range.end() as u64,
            user_cookie: cookie.0,
            ..abi::Register2::default()
        };
        loop {
            // SAFETY: the driver reads the structure during the call, and nothing else.
            match unsafe { abi::register_region2(self.device.as_raw_fd(), &raw const region) } {
                Ok(_) => return Ok(()),
                // A signal came while it waited: nothing is watched yet.
                Err(Errno::EINTR) => {}
                Err(Errno::ENOTTY) => return self.watch_unchecked(range, cookie),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        // SAFETY: as in `watch`.
        unsafe { abi::unregister_region(self.device.as_raw_fd(), &raw const cookie.0) }?;
        Ok(())
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
                    // What it stands for is lost, and the cache gives up all it has.
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
        Some(self.ready.0.as_fd())
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
        assert!(error.to_string().contains("insmod"));
    }

    #[test]
    fn a_device_that_is_not_the_driver_is_a_typed_error() {
        let error = Ummunotify::open_at("/dev/null").unwrap_err();
        assert!(matches!(error, OpenError::NotTheDriver { .. }), "{error}");
    }
}
