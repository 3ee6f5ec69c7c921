//! A monitor that needs no driver. It hooks functions of libc, as a library in `LD_PRELOAD` does.
//!
//! A program that uses [`Hooks`] contains functions named `munmap`, `mremap`, `madvise`, `mmap`,
//! `brk` and `sbrk`. Every call by one of these names reaches the hook instead of libc's function.
//! The hooks miss all other changes:
//!
//! - changes that libc makes itself, in `free`, at the end of a thread, or when it unloads a
//!   library;
//! - direct system calls;
//! - calls of other functions of libc;
//! - changes by other processes.
//!
//! This monitor is a negative control. With this monitor, the device must read stale bytes in some
//! scenarios, which proves that the suite detects them. Only the programs of the suite that need
//! the control are linked with this crate.

mod calls;

use std::hint;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use regcache::VaRange;
use regcache::monitor::{Cookie, Monitor};

/// The hooks as a monitor. A process can use only one such monitor at a time, with at most 256
/// watches.
#[derive(Debug)]
pub struct Hooks(());

/// The largest number of watches.
const MAX_WATCHES: usize = 256;

/// An element of the table of watches. An element is free if its `end` is 0.
struct Watch {
    start: AtomicUsize,
    end: AtomicUsize,
    cookie: AtomicU64,
    /// The value is 1 if the watch was invalidated and the invalidation was not reported yet. The
    /// value is 0 otherwise.
    invalidated: AtomicUsize,
}

static GENERATION: AtomicU64 = AtomicU64::new(0);
static WATCHES: [Watch; MAX_WATCHES] = [const {
    Watch {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        cookie: AtomicU64::new(0),
        invalidated: AtomicUsize::new(0),
    }
}; MAX_WATCHES];

/// The lock for changes of the set of watches. Every such change takes the lock. A hook never takes
/// the lock, because an allocator may call the hook while it holds its own locks. Taking the lock
/// there could cause a deadlock.
static CHANGES: Mutex<()> = Mutex::new(());

impl Hooks {
    /// Makes the monitor, and ends all watches of an earlier monitor.
    #[must_use]
    pub fn new() -> Self {
        calls::keep();
        for watch in &WATCHES {
            watch.end.store(0, Ordering::SeqCst);
        }
        Self(())
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Self::new()
    }
}

/// Records a change of these addresses. Each hook calls this function before it makes the system
/// call.
fn changes(start: usize, len: usize) {
    let end = start.saturating_add(len);
    let mut any = false;
    for watch in &WATCHES {
        if start < watch.end.load(Ordering::SeqCst) && watch.start.load(Ordering::SeqCst) < end {
            watch.invalidated.store(1, Ordering::SeqCst);
            any = true;
        }
    }
    if any {
        GENERATION.fetch_add(1, Ordering::SeqCst);
    }
    hint::black_box(any);
}

// SAFETY: this monitor is unsound, so a registration can be stale. That does no harm, because the
// device only reads, and a stale registration reaches only pages that are mapped nowhere.
unsafe impl Monitor for Hooks {
    fn generation(&self) -> u64 {
        GENERATION.load(Ordering::SeqCst)
    }

    fn watch(&self, range: VaRange, cookie: Cookie) -> io::Result<()> {
        let _changes = CHANGES.lock().map_err(|_| io::ErrorKind::Other)?;
        let free = WATCHES
            .iter()
            .find(|watch| watch.end.load(Ordering::SeqCst) == 0);
        let watch = free.ok_or(io::ErrorKind::QuotaExceeded)?;
        watch.invalidated.store(0, Ordering::SeqCst);
        watch.cookie.store(cookie.0, Ordering::SeqCst);
        watch.start.store(range.start(), Ordering::SeqCst);
        watch.end.store(range.end(), Ordering::SeqCst);
        Ok(())
    }

    fn unwatch(&self, cookie: Cookie) -> io::Result<()> {
        let _changes = CHANGES.lock().map_err(|_| io::ErrorKind::Other)?;
        let of = |watch: &&Watch| {
            watch.end.load(Ordering::SeqCst) != 0 && watch.cookie.load(Ordering::SeqCst) == cookie.0
        };
        let watch = WATCHES.iter().find(of).ok_or(io::ErrorKind::NotFound)?;
        watch.end.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn drain(&self, invalidated: &mut dyn FnMut(Cookie)) -> io::Result<u64> {
        let generation = self.generation();
        for watch in &WATCHES {
            if watch.end.load(Ordering::SeqCst) != 0
                && watch.invalidated.swap(0, Ordering::SeqCst) != 0
            {
                invalidated(Cookie(watch.cookie.load(Ordering::SeqCst)));
            }
        }
        Ok(generation)
    }

    fn name(&self) -> &'static str {
        "hooks"
    }
}
