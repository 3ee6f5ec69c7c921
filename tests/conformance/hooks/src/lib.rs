//! The monitor of those who have no driver: hooks in libc's calls, as a library in `LD_PRELOAD` puts them there.
//!
//! A program that uses [`Hooks`] has its own `munmap`, `mremap`, `madvise`, `mmap`, `brk` and `sbrk`, which take the place
//! of libc's for everybody who calls them by name. What does not is not seen: libc itself, in `free`, when a thread ends
//! and when a library is unloaded; whoever makes the system call; other calls; other processes.
//!
//! It is a negative control, and linked into nothing but the programs that are one.

mod calls;

use std::hint;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use regcache::VaRange;
use regcache::monitor::{Cookie, Monitor};

/// The hooks as a monitor. One at a time in a process, with few watches.
#[derive(Debug)]
pub struct Hooks(());

/// Watches at a time.
const MAX_WATCHES: usize = 256;

/// A watch, or none if `end` is 0.
struct Watch {
    start: AtomicUsize,
    end: AtomicUsize,
    cookie: AtomicU64,
    /// 1 if it was hit and not reported.
    hit: AtomicUsize,
}

static GENERATION: AtomicU64 = AtomicU64::new(0);
static WATCHES: [Watch; MAX_WATCHES] = [const {
    Watch {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        cookie: AtomicU64::new(0),
        hit: AtomicUsize::new(0),
    }
}; MAX_WATCHES];

/// Of those who change the table. A hook is called with malloc's locks held, and only looks.
static CHANGES: Mutex<()> = Mutex::new(());

impl Hooks {
    /// Forgets what the last one watched.
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

/// What a hook calls before libc's call is made.
fn changes(start: usize, len: usize) {
    let end = start.saturating_add(len);
    let mut any = false;
    for watch in &WATCHES {
        if start < watch.end.load(Ordering::SeqCst) && watch.start.load(Ordering::SeqCst) < end {
            watch.hit.store(1, Ordering::SeqCst);
            any = true;
        }
    }
    if any {
        GENERATION.fetch_add(1, Ordering::SeqCst);
    }
    hint::black_box(any);
}

// SAFETY: it is not sound, which is what it is for. The device of the suite only reads, from pages that are
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
        watch.hit.store(0, Ordering::SeqCst);
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
            if watch.end.load(Ordering::SeqCst) != 0 && watch.hit.swap(0, Ordering::SeqCst) != 0 {
                invalidated(Cookie(watch.cookie.load(Ordering::SeqCst)));
            }
        }
        Ok(generation)
    }

    fn name(&self) -> &'static str {
        "hooks"
    }
}
