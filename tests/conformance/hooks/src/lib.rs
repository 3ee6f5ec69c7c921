//! A monitor without a driver: hooks in libc's calls, as a library in `LD_PRELOAD` installs them.
//!
//! A program that uses [`Hooks`] has its own `munmap`, `mremap`, `madvise`, `mmap`, `brk` and
//! `sbrk`, which replace libc's for every caller by name. Other changes are not seen: those of libc
//! itself, in `free`, at the end of a thread and at the unloading of a library; direct system
//! calls; other calls; other processes.
//!
//! It is a negative control, so only programs that need one are linked with it.

mod calls;

use std::hint;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use regcache::VaRange;
use regcache::monitor::{Cookie, Monitor};

/// The hooks as a monitor. A process has one at a time, with at most 256 watches.
#[derive(Debug)]
pub struct Hooks(());

/// The most watches at a time.
const MAX_WATCHES: usize = 256;

/// A watch; an `end` of 0 marks a free place.
struct Watch {
    start: AtomicUsize,
    end: AtomicUsize,
    cookie: AtomicU64,
    /// 1 if it was invalidated and not reported yet.
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

/// The lock of changes of the table. A hook runs with malloc's locks held, and only reads the
/// table.
static CHANGES: Mutex<()> = Mutex::new(());

impl Hooks {
    /// Makes the monitor, and ends the watches of an earlier one.
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

/// Records a change; a hook calls it before the system call.
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

// SAFETY: it is deliberately unsound. The device of the suite only reads, from pages that are
// mapped nowhere.
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
