//! A model of the ummunotify driver and of a device, for tests on machines that have neither.
//!
//! The modelled memory is a few pages. Each page has a version, which stands for the physical page.
//! The fake device pins a page by recording its version. Remapping a page marks the watches of the
//! page, raises the generation, and then changes the version. The driver makes these steps in the
//! same order.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::eventfd::{EfdFlags, EventFd};
use regcache::monitor::{Cookie, Monitor};
use regcache::{Access, Builder, Cache, Registrar, VaRange};

pub(crate) const PAGE: usize = 4096;
/// The address of the first modelled page.
pub(crate) const BASE: usize = 0x10_0000;

/// Returns the address of page `i`.
pub(crate) fn page(i: usize) -> *const u8 {
    std::ptr::without_provenance(BASE + i * PAGE)
}

fn pages(range: VaRange) -> Range<usize> {
    (range.start() - BASE) / PAGE..(range.end() - BASE).div_ceil(PAGE)
}

/// A pseudo-random generator (xorshift64).
pub(crate) struct Random(u64);

impl Random {
    /// Makes a generator. The seed must not be 0.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// Returns the number in this environment variable, or `otherwise` if the variable is not set.
pub(crate) fn number(variable: &str, otherwise: u64) -> u64 {
    env::var(variable).map_or(otherwise, |it| it.parse().unwrap())
}

#[derive(Default)]
struct Watches {
    live: BTreeMap<u64, VaRange>,
    invalidated: BTreeSet<u64>,
}

/// The modelled pages, and the watches on them.
pub(crate) struct FakeKernel {
    versions: Vec<AtomicU64>,
    generation: AtomicU64,
    watches: Mutex<Watches>,
    pub(crate) refuse_watches: AtomicBool,
    /// If true, a drain fails and loses the reports.
    pub(crate) break_reports: AtomicBool,
    /// An eventfd that polls readable while there is something to report.
    readable: Option<EventFd>,
}

impl FakeKernel {
    pub(crate) fn new(pages: usize) -> Arc<Self> {
        Self::with(pages, None)
    }

    /// Returns a kernel whose monitors have a file descriptor.
    pub(crate) fn with_descriptor(pages: usize) -> Arc<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Self::with(pages, Some(EventFd::from_flags(flags).unwrap()))
    }

    fn with(pages: usize, readable: Option<EventFd>) -> Arc<Self> {
        Arc::new(Self {
            readable,
            versions: (0..pages).map(|_| AtomicU64::new(0)).collect(),
            generation: AtomicU64::new(0),
            watches: Mutex::default(),
            refuse_watches: AtomicBool::new(false),
            break_reports: AtomicBool::new(false),
        })
    }

    pub(crate) fn version(&self, page: usize) -> u64 {
        self.versions[page].load(Ordering::Acquire)
    }

    /// Models a `munmap` and a `mmap` of one page.
    pub(crate) fn remap(&self, page: usize) {
        self.remap_all(page..page + 1);
    }

    /// Models one `munmap` and one `mmap` of several pages.
    pub(crate) fn remap_all(&self, changed: Range<usize>) {
        let mut watches = self.watches.lock().unwrap();
        let is_changed = |its: Range<usize>| its.start < changed.end && changed.start < its.end;
        let watched: Vec<_> = watches
            .live
            .iter()
            .filter(|(_, r)| is_changed(pages(**r)))
            .map(|w| *w.0)
            .collect();
        if !watched.is_empty() {
            watches.invalidated.extend(watched);
            if let Some(readable) = &self.readable {
                readable.write(1).unwrap();
            }
            self.generation.fetch_add(1, Ordering::Release);
        }
        // The lock is still held, so no watch is placed between the report and the change (rule
        // M2).
        for page in changed {
            self.versions[page].fetch_add(1, Ordering::Release);
        }
        drop(watches);
    }

    pub(crate) fn watches(&self) -> usize {
        self.watches.lock().unwrap().live.len()
    }
}

/// A monitor on the modelled kernel, which keeps all rules of [`Monitor`].
pub(crate) struct FakeMonitor(pub(crate) Arc<FakeKernel>);

// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Monitor for FakeMonitor {
    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        if self.0.refuse_watches.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let old = self.0.watches.lock().unwrap().live.insert(cookie.0, range);
        assert!(old.is_none(), "a cookie was used twice");
        Ok(())
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        let mut watches = self.0.watches.lock().unwrap();
        watches.invalidated.remove(&cookie.0);
        watches
            .live
            .remove(&cookie.0)
            .map(drop)
            .ok_or(io::ErrorKind::NotFound.into())
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let mut watches = self.0.watches.lock().unwrap();
        if self.0.break_reports.load(Ordering::Relaxed) {
            watches.invalidated.clear();
            return Err(io::Error::other("broken on purpose"));
        }
        if let Some(readable) = &self.0.readable {
            let _ = readable.read();
        }
        for cookie in std::mem::take(&mut watches.invalidated) {
            invalidated(Cookie(cookie));
        }
        Ok(self.0.generation.load(Ordering::Acquire))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.readable.as_ref().map(EventFd::as_fd)
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}

/// An access that is a set of bits. An access serves another access if it has all bits of the
/// other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bits(pub(crate) u8);

impl Access for Bits {
    fn serves(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    fn is_remote(self) -> bool {
        self.0 & 4 != 0
    }
}

/// A registration, which records the pages that the device pinned.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) id: u32,
    /// The number of the first page.
    pub(crate) first: usize,
    /// The version of each page at the time of the registration, beginning with the first page.
    pub(crate) versions: Vec<u64>,
}

/// A function that is called in the middle of each registration, after the pages were pinned.
type Hook = Box<dyn Fn(&FakeDevice, VaRange) + Send + Sync>;

type PinnedHook = Box<dyn Fn(&Pinned) + Send + Sync>;

pub(crate) struct FakeDevice {
    pub(crate) kernel: Arc<FakeKernel>,
    pub(crate) live: Arc<AtomicU32>,
    pub(crate) made: Arc<AtomicU32>,
    /// The number of registrations that the device has room for.
    pub(crate) capacity: u32,
    /// The size of the largest registration that the device makes, in pages.
    pub(crate) largest: usize,
    /// The number of the page that is not mapped, if there is such a page.
    pub(crate) hole: Option<usize>,
    pub(crate) hook: Option<Hook>,
    /// The number of registrations that the device still refuses with `EFAULT` after the hook.
    pub(crate) refusals: Option<Arc<AtomicU32>>,
    /// A function that is called before each deregistration.
    pub(crate) before_deregistering: Option<PinnedHook>,
    /// A function that is called after each deregistration.
    pub(crate) after_deregistering: Option<PinnedHook>,
}

impl FakeDevice {
    pub(crate) fn new(kernel: &Arc<FakeKernel>) -> Self {
        Self {
            kernel: Arc::clone(kernel),
            live: Arc::default(),
            made: Arc::default(),
            capacity: u32::MAX,
            largest: usize::MAX,
            hole: None,
            hook: None,
            refusals: None,
            before_deregistering: None,
            after_deregistering: None,
        }
    }

    /// Builds a cache on this device and on its kernel's monitor.
    pub(crate) fn builder(self) -> Builder<Self, FakeMonitor> {
        let monitor = FakeMonitor(Arc::clone(&self.kernel));
        Cache::builder(self).monitor(monitor)
    }
}

// SAFETY: a model has no device, so a stale registration reaches no memory.
unsafe impl Registrar for FakeDevice {
    type Access = Bits;
    type Registration = Pinned;

    fn register(&self, range: VaRange, _: Bits) -> io::Result<Pinned> {
        if let Some(hole) = self.hole
            && pages(range).contains(&hole)
        {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let too_large = pages(range).len() > self.largest;
        if self.live.fetch_add(1, Ordering::Relaxed) >= self.capacity || too_large {
            self.live.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        let pages = pages(range);
        let pinned = Pinned {
            id: self.made.fetch_add(1, Ordering::Relaxed),
            first: pages.start,
            versions: pages.map(|page| self.kernel.version(page)).collect(),
        };
        if let Some(hook) = &self.hook {
            hook(self, range);
        }
        let fewer = |left: u32| left.checked_sub(1);
        if let Some(left) = &self.refusals
            && left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer)
                .is_ok()
        {
            self.live.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        Ok(pinned)
    }

    fn deregister(&self, pinned: Pinned) -> io::Result<()> {
        if let Some(before) = &self.before_deregistering {
            before(&pinned);
        }
        assert!(
            self.live.fetch_sub(1, Ordering::Relaxed) > 0,
            "deregistered twice"
        );
        if let Some(after) = &self.after_deregistering {
            after(&pinned);
        }
        Ok(())
    }
}

impl Pinned {
    /// Returns true if the kernel has replaced a page of `range` since the page was pinned.
    pub(crate) fn is_stale(&self, kernel: &FakeKernel, range: VaRange) -> bool {
        pages(range).any(|page| self.versions[page - self.first] != kernel.version(page))
    }
}
