//! Tests rule M3 of the contract (see `regcache/src/monitor/contract.rs`). The counter must move
//! before `munmap` returns, and no lookup after `munmap` may be stale. Other threads and processes
//! use the driver and the cache at the same time. Needs the VM.
//!
//! `REGCACHE_ORDER_ROUNDS` sets the number of rounds. A debug kernel is slow, so fewer rounds suit
//! it.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::env;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use memmap2::MmapMut;
use regcache::monitor::{Cookie, Monitor, Ummunotify};
use regcache::{Cache, Registrar, VaRange};
use regcache_tests_vm::{Child, PAGE, Pages};
use regcache_verbs::{Access, Context, Loopback, Mr, MrRegistrar, Pd};

/// Returns the number of rounds against other threads.
fn rounds() -> u64 {
    env::var("REGCACHE_ORDER_ROUNDS").map_or(20_000, |it| it.parse().unwrap())
}

/// Returns the number of rounds against other processes. Processes run into the race far more often
/// than threads do. So fewer rounds suffice against processes.
fn process_rounds() -> u64 {
    rounds() / 4
}

/// Runs `rounds` while `contenders` other threads call `contender` repeatedly.
fn against(contenders: usize, contender: impl Fn(usize) + Sync, rounds: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for i in 0..contenders {
            let (stop, contender) = (&stop, &contender);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    contender(i);
                }
            });
        }
        // The scope waits for the threads. So the threads must stop even if `rounds` panics.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        rounds();
    });
}

/// Runs `rounds` while `contenders` other processes repeat the work that `contend` prepares.
///
/// A broken monitor may lose invalidations if two tasks run the same code of the kernel at the same
/// time. Two threads of one process cannot run this code at the same time, because of the lock of
/// their address space. Two processes have different address spaces. So only processes reveal such
/// a monitor.
fn against_processes<T: FnMut()>(
    contenders: usize,
    contend: impl Fn() -> T,
    rounds: impl FnOnce(),
) {
    let _contenders: Vec<_> = (0..contenders)
        .map(|_| {
            Child::fork(|| {
                // SAFETY: the call accesses no memory. The call requests that the kernel kill the
                // child when the test ends, even if the test is killed.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                let mut contend = contend();
                loop {
                    contend();
                }
            })
            .unwrap()
        })
        .collect();
    rounds();
}

/// In each round, maps a page, watches it, unmaps it and reads the counter. Returns the number of
/// rounds in which the counter had not moved when `munmap` returned.
fn late_rounds(monitor: &Ummunotify, rounds: u64) -> u64 {
    let mut late = 0;
    for round in 0..rounds {
        let memory = Pages::new(1).unwrap();
        let cookie = Cookie(100 + round);
        monitor
            .watch(VaRange::new(memory.page(0), PAGE).unwrap(), cookie)
            .unwrap();
        let before = monitor.generation();
        memory.unmap(0, 1).unwrap();
        // The counter moves twice if another thread reads the report before `munmap` ends. In that
        // case the driver reports the invalidation again at its end.
        late += u64::from(![before + 1, before + 2].contains(&monitor.generation()));
        monitor.unwatch(cookie).unwrap();
    }
    late
}

/// Tests the driver without a cache. One thread maps, watches, unmaps and reads the counter. The
/// contenders are threads that watch, unwatch and drain on the same file. Only `munmap` may move
/// the counter.
fn counter_has_moved_when_munmap_returns(contenders: usize) {
    let monitor = Ummunotify::open().unwrap();
    // No page is present in the contenders' ranges. Otherwise compaction could move a page, because
    // these pages are not pinned. The driver would report the move.
    let theirs = Pages::new(contenders.max(1)).unwrap();
    theirs
        .advise(0, contenders.max(1), libc::MADV_DONTNEED)
        .unwrap();
    let contender = |i: usize| {
        let range = VaRange::new(theirs.page(i), PAGE).unwrap();
        let cookie = Cookie(i as u64);
        monitor.watch(range, cookie).unwrap();
        monitor
            .drain(&mut |cookie| assert!(cookie.0 >= 100, "a contender's range was reported"))
            .unwrap();
        monitor.unwatch(cookie).unwrap();
    };
    let mut late = 0;
    against(contenders, contender, || {
        late = late_rounds(&monitor, rounds());
    });
    println!("contenders={contenders} rounds={} late={late}", rounds());
    assert_eq!(late, 0);
}

#[test]
fn the_counter_has_moved_when_munmap_returns() {
    for contenders in [0, 1, 3] {
        counter_has_moved_when_munmap_returns(contenders);
    }
}

/// Each contender is a process with its own memory and its own monitor. A contender repeats the
/// same calls as the test.
#[test]
fn the_counter_has_moved_when_munmap_returns_whatever_other_processes_do() {
    for contenders in [1, 3] {
        let contend = || {
            let monitor = Ummunotify::open().unwrap();
            move || {
                let memory = Pages::new(1).unwrap();
                let range = VaRange::new(memory.page(0), PAGE).unwrap();
                monitor.watch(range, Cookie(1)).unwrap();
                memory.unmap(0, 1).unwrap();
                monitor.unwatch(Cookie(1)).unwrap();
                monitor.drain(&mut |_| ()).unwrap();
            }
        };
        let mut late = 0;
        against_processes(contenders, contend, || {
            late = late_rounds(&Ummunotify::open().unwrap(), process_rounds());
        });
        println!(
            "processes={contenders} rounds={} late={late}",
            process_rounds()
        );
        assert_eq!(late, 0);
    }
}

/// A verbs registrar that numbers its registrations. The number shows when a registration was made.
struct Dated {
    registrar: MrRegistrar,
    made: AtomicU64,
}

struct DatedMr {
    number: u64,
    mr: Mr,
}

// SAFETY: the registrar passes all calls on to `MrRegistrar`, which upholds the contract.
unsafe impl Registrar for Dated {
    type Access = Access;
    type Registration = DatedMr;

    fn register(&self, range: VaRange, access: Access) -> io::Result<DatedMr> {
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        Ok(DatedMr {
            number,
            mr: self.registrar.register(range, access)?,
        })
    }

    fn deregister(&self, registration: DatedMr) -> io::Result<()> {
        self.registrar.deregister(registration.mr)
    }
}

/// A cache on the real driver and device, and a connection with a buffer. The device copies bytes
/// into the buffer, and the test checks these bytes.
struct Rig {
    cache: Cache<Dated, Ummunotify>,
    loopback: Loopback,
    sink: MmapMut,
}

impl Rig {
    fn new() -> Self {
        let pd = Pd::alloc(&Context::open_first().unwrap()).unwrap();
        let loopback = Loopback::connect(&pd).unwrap();
        let dated = Dated {
            registrar: MrRegistrar::new(&pd),
            made: AtomicU64::new(0),
        };
        let cache = Cache::builder(dated)
            .monitor(Ummunotify::open().unwrap())
            .build()
            .unwrap();
        Self {
            cache,
            loopback,
            sink: MmapMut::map_anon(PAGE).unwrap(),
        }
    }
}

const ACCESS: Access = Access::LOCAL_WRITE;

/// Maps memory that no other thread uses, looks the memory up, and unmaps it.
fn look_up_and_unmap(cache: &Cache<Dated, Ummunotify>) {
    let memory = Pages::new(2).unwrap();
    let whole = cache.get(memory.page(0), 2 * PAGE, ACCESS).unwrap();
    drop(cache.get(memory.page(1), PAGE, ACCESS).unwrap());
    memory.unmap(1, 1).unwrap();
    drop(whole);
    drop(cache.get(memory.page(0), PAGE, ACCESS).unwrap());
}

/// In each round, maps a page at the same address, looks the page up, and unmaps it. Returns the
/// number of rounds in which the lookup was stale.
///
/// A registration is stale if it began before the `munmap` of the previous round. In one of 64
/// rounds, the function also checks the bytes that the device reads.
fn stale_rounds(
    cache: &Cache<Dated, Ummunotify>,
    loopback: &mut Loopback,
    sink: &mut MmapMut,
    rounds: u64,
) -> u64 {
    let mut stale = 0;
    let memory = Pages::new(1).unwrap();
    for round in 0..rounds {
        let unmapped_at = cache.registrar().made.load(Ordering::SeqCst);
        if round > 0 {
            memory.map_over(0, 1).unwrap();
        }
        memory.write(0, round as u8);
        let guard = cache.get(memory.page(0), PAGE, ACCESS).unwrap();
        let mut is_stale = guard.registration().number < unmapped_at;
        if round % 64 == 0 {
            // SAFETY: the page is mapped, and nothing writes to it while the slice lives.
            let bytes = unsafe { std::slice::from_raw_parts(memory.page(0), PAGE) };
            let out = cache.get(sink.as_ptr(), PAGE, ACCESS).unwrap();
            let (from, to) = (&guard.registration().mr, &out.registration().mr);
            // SAFETY: a stale registration reaches only a page that is mapped nowhere.
            unsafe { loopback.send_registered(bytes, from, sink, to) }.unwrap();
            is_stale |= sink[0] != round as u8;
        }
        stale += u64::from(is_stale);
        memory.unmap(0, 1).unwrap();
    }
    let stats = cache.stats();
    println!("rounds={rounds} stale={stale}: {stats}");
    assert_eq!(stats.leaked, 0);
    stale
}

#[test]
fn no_lookup_after_a_munmap_is_stale() {
    for contenders in [0, 1, 3] {
        let mut rig = Rig::new();
        let (cache, loopback, sink) = (&rig.cache, &mut rig.loopback, &mut rig.sink);
        let mut stale = 0;
        let contender = |_| look_up_and_unmap(cache);
        against(contenders, contender, || {
            stale = stale_rounds(cache, loopback, sink, rounds());
        });
        assert_eq!(stale, 0, "against {contenders} threads");
    }
}

#[test]
fn no_lookup_after_a_munmap_is_stale_whatever_other_processes_do() {
    for contenders in [1, 3] {
        let contend = || {
            let rig = Rig::new();
            move || look_up_and_unmap(&rig.cache)
        };
        let mut stale = 0;
        against_processes(contenders, contend, || {
            let mut rig = Rig::new();
            stale = stale_rounds(
                &rig.cache,
                &mut rig.loopback,
                &mut rig.sink,
                process_rounds(),
            );
        });
        assert_eq!(stale, 0, "against {contenders} processes");
    }
}
