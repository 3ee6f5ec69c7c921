//! A device and monitors that do nothing but what the cache can see of them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapMut, MmapOptions};
use regcache::monitor::{Cookie, Monitor};
use regcache::{Registrar, VaRange};

use crate::Addresses;

/// Registers nothing, and counts.
#[derive(Debug, Default)]
pub struct DummyRegistrar {
    made: AtomicU64,
    destroyed: AtomicU64,
}

impl DummyRegistrar {
    /// Registrations made, and of those how many were destroyed.
    pub fn counts(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.made), count(&self.destroyed))
    }
}

// SAFETY: there is no device to reach memory.
unsafe impl Registrar for DummyRegistrar {
    type Access = ();
    /// Stands for a key.
    type Registration = u64;

    #[inline]
    fn register(&self, range: VaRange, (): ()) -> io::Result<u64> {
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(range.start() as u64)
    }

    #[inline]
    fn deregister(&self, _: u64) -> io::Result<()> {
        self.destroyed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A page that is shared with the kernel. The generation is its first word.
#[derive(Debug)]
struct Page(MmapMut);

impl Page {
    fn new() -> io::Result<Self> {
        Ok(Self(MmapOptions::new().len(4096).map_anon()?))
    }

    #[inline]
    fn word(&self) -> &AtomicU64 {
        // SAFETY: a mapping is page-aligned, at least a page long, lives as long as `self`, and is
        // only accessed here, as an atomic.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast_mut().cast()) }
    }

    /// As the real one does it.
    #[inline]
    fn generation(&self) -> u64 {
        let generation = self.word().load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        generation
    }
}

/// Has a generation, and watches nothing.
#[derive(Debug)]
pub struct DummyMonitor(Page);

impl DummyMonitor {
    /// # Errors
    ///
    /// If there is no memory for the page of the generation.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Page::new()?))
    }
}

// SAFETY: there is no device to reach memory.
unsafe impl Monitor for DummyMonitor {
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

/// What [`FakeMonitor`] shares with who invalidates.
#[derive(Debug)]
struct Kernel {
    page: Page,
    addresses: Arc<Addresses>,
    /// For each start of a range the cookie that it is watched by, or 0.
    cookies: Box<[AtomicU64]>,
    hit: Mutex<Vec<u64>>,
}

/// Models ummunotify: the generation is a word of a shared mapping, what was hit is reported once.
#[derive(Debug, Clone)]
pub struct FakeMonitor(Arc<Kernel>);

impl FakeMonitor {
    /// Watches ranges that start where `addresses` has one.
    ///
    /// # Errors
    ///
    /// If there is no memory for the page of the generation.
    pub fn new(addresses: &Arc<Addresses>) -> io::Result<Self> {
        Ok(Self(Arc::new(Kernel {
            page: Page::new()?,
            addresses: Arc::clone(addresses),
            cookies: (0..2 * addresses.count() + 2)
                .map(|_| AtomicU64::new(0))
                .collect(),
            hit: Mutex::default(),
        })))
    }

    /// The memory of the range that starts here changes.
    #[inline]
    pub fn invalidate(&self, start: usize) {
        let kernel = &*self.0;
        let cookie = kernel.cookies[kernel.addresses.place(start)].load(Ordering::Relaxed);
        if cookie == 0 {
            return;
        }
        let mut hit = kernel.hit.lock().unwrap_or_else(PoisonError::into_inner);
        hit.push(cookie);
        kernel.page.word().fetch_add(1, Ordering::Release);
    }
}

// SAFETY: there is no device to reach memory.
unsafe impl Monitor for FakeMonitor {
    #[inline]
    fn generation(&self) -> u64 {
        self.0.page.generation()
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let place = self.0.addresses.place(range.start());
        self.0.cookies[place].store(cookie.0, Ordering::Relaxed);
        Ok(())
    }

    fn unwatch(&self, _: Cookie) -> io::Result<()> {
        Ok(())
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let mut hit = self.0.hit.lock().unwrap_or_else(PoisonError::into_inner);
        for cookie in hit.drain(..) {
            invalidated(Cookie(cookie));
        }
        Ok(self.generation())
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}
