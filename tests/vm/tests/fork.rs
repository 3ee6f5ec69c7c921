//! Tests forks of a process that has a cache, with and without the fork support of libibverbs. The
//! two cases run in separate processes, because a process cannot switch the support off again.
//! Needs the VM.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::env;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use regcache::monitor::Ummunotify;
use regcache::{Cache, Error};
use regcache_tests_vm::{Child, PAGE, Pages, pinned};
use regcache_verbs::{Access, Context, Loopback, MrRegistrar, Pd, fork_init};

type VerbsCache = Cache<MrRegistrar, Ummunotify>;

/// If this environment variable is set, the process switches the fork support on.
const SUPPORTED: &str = "REGCACHE_TEST_FORK_INIT";

/// Returns a lock that every test holds. Only one test runs at a time, because the kernel counts
/// pinned memory for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cache(background_reaper: bool) -> (Arc<Pd>, VerbsCache) {
    static SUPPORT: Once = Once::new();
    SUPPORT.call_once(|| {
        if env::var_os(SUPPORTED).is_some() {
            fork_init().unwrap();
        }
    });
    let pd = Pd::alloc(&Context::open_first().unwrap()).unwrap();
    let cache = Cache::builder(MrRegistrar::new(&pd))
        .monitor(Ummunotify::open().unwrap())
        .background_reaper(background_reaper)
        .build();
    (pd, cache.unwrap())
}

#[test]
fn all_of_this_with_fork_support() {
    if env::var_os(SUPPORTED).is_some() {
        return;
    }
    let _alone = alone();
    let mut again = Command::new(env::current_exe().unwrap());
    let status = again.env(SUPPORTED, "1").status().unwrap();
    assert!(status.success());
}

/// Writes to a page of `memory`, sends the page, and checks the byte that arrives.
fn sends_what_is_there(link: &mut Loopback, cache: &VerbsCache, memory: &Pages, byte: u8) {
    memory.write(0, byte);
    // SAFETY: the page is mapped, and no other reference to it exists during the call.
    let source = unsafe { std::slice::from_raw_parts(memory.page(0), PAGE) };
    // The sink is not on the heap. With the fork support, a child does not get the pages that
    // contain registered memory, and a child needs its heap.
    let sink = Pages::new(1).unwrap();
    // SAFETY: the page is mapped, and no other reference to it exists during the call.
    let received = unsafe { std::slice::from_raw_parts_mut(sink.page(0), PAGE) };
    link.send(cache, source, received).unwrap();
    assert_eq!(received[0], byte);
}

#[test]
fn a_parent_that_forks_loses_nothing() {
    let _alone = alone();
    let supported = env::var_os(SUPPORTED).is_some();
    let (pd, cache) = cache(true);
    let mut link = Loopback::connect(&pd).unwrap();
    let memory = Pages::new(1).unwrap();
    for round in 0..20 {
        sends_what_is_there(&mut link, &cache, &memory, 2 * round);
        let child = Child::fork(|| {
            // Without the fork support, the child writes to its copy of the page, and the parent's
            // page must stay the same. With the fork support, registered memory is not mapped in
            // the child. So the child must not touch the page.
            if !supported {
                memory.write(0, 0xFF);
            }
            matches!(
                cache.get(memory.page(0), PAGE, Access::LOCAL_WRITE),
                Err(Error::Forked)
            )
        });
        sends_what_is_there(&mut link, &cache, &memory, 2 * round + 1);
        assert!(child.unwrap().succeeded().unwrap());
        // `Command` starts the program by `vfork` and `exec`.
        assert!(Command::new("true").status().unwrap().success());
        sends_what_is_there(&mut link, &cache, &memory, 2 * round);
    }
    let stats = cache.stats();
    assert_eq!((stats.leaked, stats.uncached), (0, 0));
    assert!(stats.hits > 50, "{stats}");
}

#[test]
fn memory_that_is_unmapped_can_be_deregistered() {
    let _alone = alone();
    let (pd, cache) = cache(false);
    let mut link = Loopback::connect(&pd).unwrap();
    let before = pinned();
    for round in 0..20 {
        let memory = Pages::new(3).unwrap();
        sends_what_is_there(&mut link, &cache, &memory, round);
        // The calls below unmap a part of the registered addresses, and then all of these
        // addresses. Only after that, the cache deregisters the memory.
        let held = cache
            .get(memory.page(0), 3 * PAGE, Access::LOCAL_WRITE)
            .unwrap();
        memory.unmap(1, 1).unwrap();
        cache.reap().unwrap();
        memory.unmap(0, 3).unwrap();
        drop(held);
        cache.reap().unwrap();
    }
    assert_eq!(cache.stats().leaked, 0);
    drop((link, cache));
    assert_eq!(pinned(), before);
}
