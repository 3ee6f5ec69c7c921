//! Defines [`DriverFile`], an open file of /dev/ummunotify, for tests of the driver itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, MmapOptions};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ummunotify_sys::{self as abi, Event, Register, Register2};

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// An open file of the driver.
#[derive(Debug)]
pub struct DriverFile(File);

/// A mapping of the generation counter.
#[derive(Debug)]
pub struct Counter(Mmap);

impl Counter {
    /// Returns the generation.
    #[must_use]
    pub fn get(&self) -> u64 {
        // SAFETY: the pointer is the start of a mapped page. The kernel writes to the page by whole
        // aligned words, and this process only loads from the page.
        let counter = unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast_mut().cast()) };
        counter.load(Ordering::Acquire)
    }

    /// Returns the address of the page.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
}

impl DriverFile {
    /// Opens the device in non-blocking mode.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn open() -> io::Result<Self> {
        Self::open_with(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
    }

    /// Opens the device for reading, with these flags.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn open_with(flags: OFlag) -> io::Result<Self> {
        let mut options = File::options();
        Ok(Self(
            options
                .read(true)
                .custom_flags(flags.bits())
                .open("/dev/ummunotify")?,
        ))
    }

    /// Returns the number of the file descriptor.
    #[must_use]
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Returns the open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Requests the features in `mask`, and replaces `mask` by the features that the driver grants.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn exchange(&self, mask: &mut u32) -> nix::Result<()> {
        // SAFETY: the mask is a writable `u32`.
        unsafe { abi::exchange_features(self.raw(), mask) }.map_err(errno)
    }

    /// Watches the addresses `[start, start + len)`.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn watch(&self, start: *const u8, len: usize, cookie: u64) -> nix::Result<()> {
        let start = start.addr() as u64;
        let end = start + len as u64;
        self.register(&Register {
            start,
            end,
            user_cookie: cookie,
            flags: 0,
            reserved: 0,
        })
    }

    /// Watches the range of `region`. The driver returns an error if the range is invalid.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn register(&self, region: &Register) -> nix::Result<()> {
        // SAFETY: the structure is readable.
        unsafe { abi::register_region(self.raw(), region) }.map_err(errno)
    }

    /// Watches the range of `region` by the call REGISTER_REGION2.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn register2(&self, region: &Register2) -> nix::Result<()> {
        assert!(region.size as usize <= size_of::<Register2>());
        // SAFETY: the structure is readable.
        unsafe { abi::register_region2(self.raw(), region) }.map_err(errno)
    }

    /// Watches the addresses `[start, start + len)` by the call REGISTER_REGION2, with these flags.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn watch_with(
        &self,
        flags: u32,
        start: *const u8,
        len: usize,
        cookie: u64,
    ) -> nix::Result<()> {
        let start = start.addr() as u64;
        self.register2(&Register2 {
            flags,
            start,
            end: start + len as u64,
            user_cookie: cookie,
            ..Register2::default()
        })
    }

    /// Ends the watch with this cookie.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn unwatch(&self, cookie: u64) -> nix::Result<()> {
        // SAFETY: the cookie is a readable `u64`.
        unsafe { abi::unregister_region(self.raw(), &raw const cookie) }.map_err(errno)
    }

    /// Reads at most `max` events by one call of `read`.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn read(&self, max: usize) -> nix::Result<Vec<Event>> {
        let mut events = vec![Event::default(); max];
        let bytes = size_of_val(&events[..]);
        // SAFETY: the buffer is writable, and any bytes form valid events.
        let n = unsafe { libc::read(self.raw(), events.as_mut_ptr().cast(), bytes) };
        let n = Errno::result(n)?.unsigned_abs();
        assert_eq!(
            n % size_of::<Event>(),
            0,
            "read returned a part of an event"
        );
        events.truncate(n / size_of::<Event>());
        Ok(events)
    }

    /// Reads events until the event LAST. Returns the cookies of the invalidated ranges in
    /// ascending order, and the generation in LAST.
    ///
    /// # Errors
    ///
    /// The error of `read`. The error is `EAGAIN` if there is nothing to read.
    pub fn drain(&self) -> nix::Result<(Vec<u64>, u64)> {
        let mut cookies = Vec::new();
        loop {
            for event in self.read(16)? {
                if event.kind == abi::LAST {
                    cookies.sort_unstable();
                    return Ok((cookies, event.user_cookie_counter));
                }
                cookies.push(event.user_cookie_counter);
            }
        }
    }

    /// Returns the cookies of the ranges that were invalidated since the last call, in ascending
    /// order.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn invalidated(&self) -> nix::Result<Vec<u64>> {
        match self.drain() {
            Ok((cookies, _)) => Ok(cookies),
            Err(Errno::EAGAIN) => Ok(Vec::new()),
            Err(errno) => Err(errno),
        }
    }

    /// Maps the page of the generation counter.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn counter(&self) -> io::Result<Counter> {
        // SAFETY: the kernel changes the page, so `Counter` reads it only as an atomic.
        Ok(Counter(unsafe { MmapOptions::new().len(8).map(&self.0) }?))
    }

    /// Polls the file for at most `timeout_ms` milliseconds, and returns the events of `poll`.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn poll(&self, timeout_ms: u16) -> nix::Result<PollFlags> {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(timeout_ms))?;
        Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
    }
}

impl From<File> for DriverFile {
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl AsFd for DriverFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
