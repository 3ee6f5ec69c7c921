//! Provides a registrar that has no device, and monitors that do not use the kernel. They do only
//! the work whose results the cache can observe.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use memmap2::{MmapMut, MmapOptions};
use regcache::monitor::{Cookie, Monitor};
use regcache::{Registrar, VaRange};

use crate::Addresses;

/// A registrar that has no device. It only counts its calls.
#[derive(Debug, Default)]
pub struct DummyRegistrar {
    made: AtomicU64,
    destroyed: AtomicU64,
    /// The time that a deregistration takes.
    deregistering: Duration,
}

impl DummyRegistrar {
    /// Makes a registrar whose deregistrations take as long as `deregistering`.
    pub fn slow(deregistering: Duration) -> Self {
        Self {
            deregistering,
            ..Self::default()
        }
    }

    /// Returns the number of registrations that were made, and the number that were destroyed.
    pub fn counts(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.made), count(&self.destroyed))
    }
}

// SAFETY: there is no device, so nothing accesses memory through a registration.
unsafe impl Registrar for DummyRegistrar {
    type Access = ();
    /// A number in place of the device's keys.
    type Registration = u64;

    /// As UCX's cache, the measured cache leaves the cancellation of threads to the device's code.
    const CANCELLATION_POINT: bool = false;

    #[inline]
    fn register(&self, range: VaRange, (): ()) -> io::Result<u64> {
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(range.start() as u64)
    }

    #[inline]
    fn deregister(&self, _: u64) -> io::Result<()> {
        if !self.deregistering.is_zero() {
            let start = Instant::now();
            while start.elapsed() < self.deregistering {
                std::hint::spin_loop();
            }
        }
        self.destroyed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A stand-in for the page with the generation that the driver shares with a process. The first
/// word of the page is the generation.
#[derive(Debug)]
struct Page(MmapMut);

impl Page {
    fn new() -> io::Result<Self> {
        Ok(Self(MmapOptions::new().len(4096).map_anon()?))
    }

    #[inline]
    fn word(&self) -> &AtomicU64 {
        // SAFETY: the mapping is page-aligned, is at least a page long, and lives as long as
        // `self`. Only this function accesses the mapping, and only as an atomic.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast_mut().cast()) }
    }

    /// Reads the generation with the same ordering as the real monitor.
    #[inline]
    fn generation(&self) -> u64 {
        let generation = self.word().load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        generation
    }
}

/// A monitor that has a generation and watches nothing.
#[derive(Debug)]
pub struct DummyMonitor(Page);

impl DummyMonitor {
    /// Makes a monitor.
    ///
    /// # Errors
    ///
    /// Returns an error if the page of the generation cannot be mapped.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Page::new()?))
    }
}

// SAFETY: this crate uses the monitor with registrars that have no device. So no registration can
// become stale.
unsafe impl Monitor for DummyMonitor {
    const CANCELLATION_POINT: bool = false;

    #[inline]
    fn generation(&self) -> u64 {
        self.0.generation()
    }

    #[inline]
    fn watch(&self, _: VaRange, _: Cookie) -> io::Result<()> {
        Ok(())
    }

    fn unwatch(&self, _: Cookie) -> io::Result<()> {
        Ok(())
    }

    fn drain(&self, _: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        Ok(self.generation())
    }

    fn name(&self) -> &'static str {
        "dummy"
    }
}

/// The state that the clones of a [`FakeMonitor`] share. The cache owns one clone, and the code
/// that invalidates ranges uses another.
#[derive(Debug)]
struct Kernel {
    page: Page,
    addresses: Arc<Addresses>,
    /// The cookie of each range's watch, by the number of the range. The cookie is 0 if the range
    /// has not been watched yet.
    cookies: Box<[AtomicU64]>,
    invalidated: Mutex<Vec<u64>>,
}

/// A model of the driver ummunotify. The generation is a word of a mapped page, as with the driver.
/// Each invalidation is reported once.
#[derive(Debug, Clone)]
pub struct FakeMonitor(Arc<Kernel>);

impl FakeMonitor {
    /// Makes a monitor for the ranges of `addresses`.
    ///
    /// # Errors
    ///
    /// Returns an error if the page of the generation cannot be mapped.
    pub fn new(addresses: &Arc<Addresses>) -> io::Result<Self> {
        Ok(Self(Arc::new(Kernel {
            page: Page::new()?,
            addresses: Arc::clone(addresses),
            cookies: (0..2 * addresses.count() + 2)
                .map(|_| AtomicU64::new(0))
                .collect(),
            invalidated: Mutex::default(),
        })))
    }

    /// Invalidates the range that starts at `start`.
    #[inline]
    pub fn invalidate(&self, start: usize) {
        let kernel = &*self.0;
        let cookie = kernel.cookies[kernel.addresses.number(start)].load(Ordering::Relaxed);
        if cookie == 0 {
            return;
        }
        let mut invalidated = kernel
            .invalidated
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        invalidated.push(cookie);
        kernel.page.word().fetch_add(1, Ordering::Release);
    }

    /// Invalidates the ranges with these starts in one change.
    pub fn invalidate_all(&self, starts: impl Iterator<Item = usize>) {
        let kernel = &*self.0;
        let cookie = |start| {
            let number = kernel.addresses.number(start);
            kernel.cookies[number].load(Ordering::Relaxed)
        };
        let mut invalidated = kernel
            .invalidated
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        invalidated.extend(starts.map(cookie).filter(|&cookie| cookie != 0));
        kernel.page.word().fetch_add(1, Ordering::Release);
    }
}

// SAFETY: this crate uses the monitor with registrars that have no device. So no registration can
// become stale.
unsafe impl Monitor for FakeMonitor {
    const CANCELLATION_POINT: bool = false;

    #[inline]
    fn generation(&self) -> u64 {
        self.0.page.generation()
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let number = self.0.addresses.number(range.start());
        self.0.cookies[number].store(cookie.0, Ordering::Relaxed);
        Ok(())
    }

    fn unwatch(&self, _: Cookie) -> io::Result<()> {
        Ok(())
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let mut pending = self
            .0
            .invalidated
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for cookie in pending.drain(..) {
            invalidated(Cookie(cookie));
        }
        Ok(self.generation())
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}
