//! /dev/ummunotify as it is, for tests of the driver itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, MmapOptions};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use regcache::monitor::abi::{self, Event, Register};

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// An open file of the driver.
#[derive(Debug)]
pub struct DriverFile(File);

/// Its generation counter, mapped.
#[derive(Debug)]
pub struct Counter(Mmap);

impl Counter {
    /// The generation.
    #[must_use]
    pub fn get(&self) -> u64 {
        // SAFETY: a page that the kernel writes by whole aligned words; only loaded here.
        let counter = unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast_mut().cast()) };
        counter.load(Ordering::Acquire)
    }

    /// The address of the page.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
}

impl DriverFile {
    /// Opens it so that reads do not block.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        Self::open_with(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
    }

    /// Opens it for reading, with these flags.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn open_with(flags: OFlag) -> io::Result<Self> {
        let mut options = File::options();
        Ok(Self(
            options
                .read(true)
                .custom_flags(flags.bits())
                .open("/dev/ummunotify")?,
        ))
    }

    /// The descriptor's number.
    #[must_use]
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Asks for features; what is granted replaces the mask.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn exchange(&self, mask: &mut u32) -> nix::Result<()> {
        // SAFETY: the mask may be written.
        unsafe { abi::exchange_features(self.raw(), mask) }.map_err(errno)
    }

    /// Watches `[start, start + len)`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
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

    /// Watches a range that need not make sense.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn register(&self, region: &Register) -> nix::Result<()> {
        // SAFETY: the structure may be read.
        unsafe { abi::register_region(self.raw(), region) }.map_err(errno)
    }

    /// Stops watching.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn unwatch(&self, cookie: u64) -> nix::Result<()> {
        // SAFETY: the cookie may be read.
        unsafe { abi::unregister_region(self.raw(), &raw const cookie) }.map_err(errno)
    }

    /// One read of at most `max` events.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn read(&self, max: usize) -> nix::Result<Vec<Event>> {
        let mut events = vec![Event::default(); max];
        let bytes = size_of_val(&events[..]);
        // SAFETY: the buffer may be written, and any bytes are events.
        let n = unsafe { libc::read(self.raw(), events.as_mut_ptr().cast(), bytes) };
        let n = Errno::result(n)?.unsigned_abs();
        assert_eq!(n % size_of::<Event>(), 0, "part of an event");
        events.truncate(n / size_of::<Event>());
        Ok(events)
    }

    /// The cookies of all ranges that are invalid, in ascending order, and the counter at LAST.
    ///
    /// # Errors
    ///
    /// What the kernel says; EAGAIN if there is nothing to read.
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

    /// Maps the counter.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn counter(&self) -> io::Result<Counter> {
        // SAFETY: `Counter` reads it as an atomic.
        Ok(Counter(unsafe { MmapOptions::new().len(8).map(&self.0) }?))
    }

    /// What poll says, within `timeout_ms` milliseconds.
    ///
    /// # Errors
    ///
    /// What the kernel says.
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
