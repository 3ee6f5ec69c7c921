//! Counts the registrations of a miss, by the state of the memory, on the real driver and device.
//! Pinning some kinds of memory replaces its pages, and the driver reports the replacement to the
//! watch that was placed before. Needs the VM.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use regcache::monitor::Ummunotify;
use regcache::{Cache, Registrar, VaRange};
use regcache_verbs::{Access, Context, Mr, MrRegistrar, Pd, fork_init};

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;

/// Returns a lock that every test holds, because each of them counts its registrations.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A registrar that counts its registrations.
struct Counting {
    inner: MrRegistrar,
    made: AtomicU64,
}

// SAFETY: all calls go to the wrapped registrar, which fulfils the contract of the trait.
unsafe impl Registrar for Counting {
    type Access = Access;
    type Registration = Mr;

    fn register(&self, range: VaRange, access: Access) -> io::Result<Mr> {
        self.made.fetch_add(1, Ordering::Relaxed);
        self.inner.register(range, access)
    }

    fn prepare(&self, range: VaRange) -> bool {
        self.inner.prepare(range)
    }

    fn finish(&self, range: VaRange) {
        self.inner.finish(range);
    }

    fn deregister(&self, registration: Mr) -> io::Result<()> {
        self.inner.deregister(registration)
    }
}

fn cache() -> Cache<Counting, Ummunotify> {
    let pd = Pd::alloc(&Context::open_first().unwrap()).unwrap();
    let registrar = Counting {
        inner: MrRegistrar::new(&pd),
        made: AtomicU64::new(0),
    };
    let builder = Cache::builder(registrar).monitor(Ummunotify::open().unwrap());
    builder.background_reaper(false).build().unwrap()
}

/// A mapping of `len` bytes. It begins at a multiple of 2 MiB, and has holes on both sides.
/// Dropping it unmaps the memory.
struct Memory {
    hole: *mut u8,
    start: *mut u8,
    len: usize,
    file: Option<File>,
}

impl Memory {
    fn map(len: usize, flags: i32, file: Option<File>) -> Self {
        let (none, anonymous) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let whole = len + 2 * HUGE;
        // SAFETY: the new mapping replaces no other.
        let hole = unsafe { libc::mmap(ptr::null_mut(), whole, none, anonymous, -1, 0) };
        assert_ne!(hole, libc::MAP_FAILED);
        let hole = hole.cast::<u8>();
        let start = hole
            .wrapping_add(PAGE)
            .map_addr(|it| it.next_multiple_of(HUGE));
        let fd = file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_FIXED);
        // SAFETY: the new mapping replaces a part of the hole.
        let mapped = unsafe { libc::mmap(start.cast(), len, protection, flags, fd, 0) };
        assert_eq!(mapped.cast(), start, "{}", io::Error::last_os_error());
        Self {
            hole,
            start,
            len,
            file,
        }
    }

    fn anonymous(len: usize, advice: i32) -> Self {
        let memory = Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None);
        // SAFETY: this is the value's own mapping. The call does not change its content.
        let advised = unsafe { libc::madvise(memory.start.cast(), len, advice) };
        assert_eq!(advised, 0);
        memory
    }

    fn small_pages(len: usize) -> Self {
        Self::anonymous(len, libc::MADV_NOHUGEPAGE)
    }

    fn read(self) -> Self {
        for i in (0..self.len).step_by(PAGE) {
            // SAFETY: the page is mapped.
            unsafe { self.start.add(i).read_volatile() };
        }
        self
    }

    fn written(self) -> Self {
        // SAFETY: the memory is mapped, and no other thread has it.
        unsafe { self.start.write_bytes(7, self.len) };
        self
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this is the value's own mapping, with the holes around it.
        unsafe { libc::munmap(self.hole.cast(), self.len + 2 * HUGE) };
        drop(self.file.take());
    }
}

/// Returns a memfd of `len` bytes. The driver reports its pages as it does those of other files.
fn file(len: usize) -> File {
    // SAFETY: the name is terminated.
    let fd = unsafe { libc::memfd_create(c"fresh".as_ptr(), 0) };
    assert!(fd >= 0);
    // SAFETY: the file descriptor was just made, and has no other owner.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(&vec![5; len]).unwrap();
    file
}

/// Runs `body` while a forked child lives.
fn beside_a_child(body: impl FnOnce()) {
    // SAFETY: the child calls nothing but async-signal-safe functions.
    let child = match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: the call only suspends the child.
            unsafe { libc::pause() };
        },
        child => child,
    };
    body();
    // SAFETY: these calls only end and reap the child made above.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, ptr::null_mut(), 0);
    }
}

/// Returns the number of registrations of each of four misses, one for each memory. Every one of
/// them is cached.
fn registrations(memories: &[Memory], access: Access) -> Vec<u64> {
    let cache = cache();
    let made = || cache.registrar().made.load(Ordering::Relaxed);
    let miss = |memory: &Memory| {
        let before = made();
        let guard = cache.get(memory.start, memory.len, access).unwrap();
        assert!(guard.is_cached());
        drop(guard);
        let misses = cache.stats().misses;
        drop(cache.get(memory.start, memory.len, access).unwrap());
        assert_eq!(cache.stats().misses, misses, "the next lookup is a hit");
        made() - before
    };
    memories.iter().map(miss).collect()
}

fn check(kind: &str, len: usize, make: impl Fn() -> Memory, child: bool) {
    for access in [Access::LOCAL_WRITE, Access::empty()] {
        let memories: Vec<_> = (0..4).map(|_| make()).collect();
        let mut made = Vec::new();
        let mut count = || made = registrations(&memories, access);
        if child {
            beside_a_child(count);
        } else {
            count();
        }
        println!("{kind}, {len} bytes, {access:?}: registrations of each miss: {made:?}");
        assert!(made[0] <= 2, "{kind}: {made:?}");
        assert_eq!(made[1..], [1, 1, 1], "{kind}");
    }
}

#[test]
fn fresh_memory_is_registered_once_after_the_first_of_its_kind() {
    let _alone = alone();
    let private = libc::MAP_PRIVATE;
    for len in [PAGE, 64 * PAGE] {
        check("written", len, || Memory::small_pages(len).written(), false);
        check("never touched", len, || Memory::small_pages(len), false);
        check("zero page", len, || Memory::small_pages(len).read(), false);
        check(
            "fork-shared",
            len,
            || Memory::small_pages(len).written(),
            true,
        );
        check(
            "private file, read",
            len,
            || Memory::map(len, private, Some(file(len))).read(),
            false,
        );
        check(
            "shared file",
            len,
            || Memory::map(len, libc::MAP_SHARED, Some(file(len))),
            false,
        );
    }
    let len = 2 * HUGE;
    let huge = || Memory::anonymous(len, libc::MADV_HUGEPAGE);
    check("huge, written", len, || huge().written(), false);
    check("huge, never touched", len, huge, false);
    check("huge zero page", len, || huge().read(), false);
    check("huge, fork-shared", len, || huge().written(), true);
}

const WITH_FORK_SUPPORT: &str = "REGCACHE_TEST_WITH_FORK_SUPPORT";

/// Buffers of 4 MiB that begin and end within a huge page. libibverbs cannot turn its fork support
/// off again, so another process runs the test.
#[test]
fn a_large_buffer_is_registered_once_under_fork_support() {
    let _alone = alone();
    if env::var_os(WITH_FORK_SUPPORT).is_none() {
        let this = "a_large_buffer_is_registered_once_under_fork_support";
        let mut test = Command::new(env::current_exe().unwrap());
        test.args(["--exact", "--nocapture", this])
            .env(WITH_FORK_SUPPORT, "1");
        assert!(test.env("RDMAV_FORK_SAFE", "1").status().unwrap().success());
        return;
    }
    fork_init().unwrap();
    let areas: Vec<_> = (0..4)
        .map(|_| Memory::anonymous(4 * HUGE, libc::MADV_HUGEPAGE).written())
        .collect();
    let cache = cache();
    for round in 0..3 {
        for (i, area) in areas.iter().enumerate() {
            let start = area.start.wrapping_add(HUGE / 2);
            let guard = cache.get(start, 2 * HUGE, Access::LOCAL_WRITE).unwrap();
            assert!(guard.is_cached(), "round {round}, buffer {i}");
        }
        cache.flush().unwrap();
    }
    let made = cache.registrar().made.load(Ordering::Relaxed);
    println!(
        "12 misses of 4 MiB made {made} registrations; {}",
        cache.stats()
    );
    assert_eq!(made, 12);
}
