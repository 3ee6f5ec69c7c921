//! Tests which control group and which user the driver's memory is charged to. Also tests the
//! errors that the driver returns at a limit.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::mman::{MapFlags, MlockAllFlags, ProtFlags, mlockall, mmap_anonymous};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setuid};
use regcache_test_support::Swap;
use regcache_tests_vm::{Child, DriverFile, PAGE, Pages};

use crate::alone;
use crate::machine::{self, Group, Setting, wait_until};

/// The progress of a process, in memory that two processes share. A process at its memory limit can
/// report its progress by this memory, because a report allocates nothing. The memory stays mapped
/// until the process ends.
struct Progress(NonNull<AtomicU32>);

impl Progress {
    fn new() -> Self {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let len = NonZeroUsize::new(PAGE).unwrap();
        // SAFETY: the kernel chooses the address, so the call replaces no mapping.
        let memory = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_SHARED) };
        Self(memory.unwrap().cast())
    }

    fn step(&self) -> &AtomicU32 {
        // SAFETY: `new` has mapped the memory, and nothing unmaps it. The kernel has filled the
        // memory with zeros.
        unsafe { self.0.as_ref() }
    }

    fn reach(&self, step: u32) {
        self.step().store(step, Ordering::SeqCst);
    }

    fn has_reached(&self, step: u32) -> bool {
        self.step().load(Ordering::SeqCst) >= step
    }

    /// Waits for a step without allocating. So a process at its memory limit can call this
    /// function.
    fn spin_until(&self, step: u32) {
        while !self.has_reached(step) {
            thread::yield_now();
        }
    }
}

#[test]
fn ranges_without_end_are_enomem_at_the_groups_limit_and_nothing_is_lost() {
    let _alone = alone();
    let group = Group::new();
    let progress = Progress::new();
    group.set("memory.max", "4M");
    let child = Child::fork(|| {
        // At the limit, the kernel could not load another page of the program. So all pages of the
        // program are locked in memory first.
        mlockall(MlockAllFlags::MCL_CURRENT).unwrap();
        group.enter();
        setgid(Gid::from_raw(65534)).unwrap();
        setuid(Uid::from_raw(65534)).unwrap();
        let memory = Pages::new(1).unwrap();
        let device = DriverFile::open().unwrap();
        let counter = device.counter().unwrap();
        assert_eq!(counter.get(), 0);
        let mut ranges = 0;
        let refused = loop {
            match device.watch(memory.page(0), PAGE, ranges) {
                Ok(()) => ranges += 1,
                Err(errno) => break errno,
            }
        };
        let again = device.watch(memory.page(0), PAGE, ranges);
        progress.reach(1);
        progress.spin_until(2);
        assert_eq!((refused, again), (Errno::ENOMEM, Err(Errno::ENOMEM)));
        assert!(ranges > 1000, "only {ranges} ranges could be watched");
        memory.unmap(0, 1).unwrap();
        let (cookies, at) = device.drain().unwrap();
        assert!(cookies.into_iter().eq(0..ranges));
        assert_eq!((at, counter.get()), (1, 1));
        device.watch(memory.page(0), PAGE, ranges) == Ok(())
    })
    .unwrap();
    let events = group.file("memory.events");
    let kills = || machine::count(&events, "oom_kill");
    wait_until("a range is refused", || {
        progress.has_reached(1) || kills() > 0
    });
    assert_eq!(kills(), 0);
    assert!(
        machine::count(&events, "max") > 0,
        "the group did not reach its limit"
    );
    group.set("memory.max", "max");
    progress.reach(2);
    assert!(child.succeeded().unwrap());
}

/// Returns the number of bytes of kernel objects that are charged to the control group.
fn slab(group: &Group) -> u64 {
    // The kernel adds up the counts of all CPUs only every two seconds. So the function waits until
    // the sum is new.
    thread::sleep(Duration::from_secs(5));
    machine::count(group.file("memory.stat"), "slab")
}

#[test]
fn a_million_invalidations_that_nobody_reads_take_no_more_memory_than_a_thousand() {
    const RANGES: usize = 1000;
    let _alone = alone();
    let group = Group::new();
    let progress = Progress::new();
    let child = Child::fork(|| {
        group.enter();
        let memory = Pages::new(RANGES).unwrap();
        let device = DriverFile::open().unwrap();
        for i in 0..RANGES {
            device.watch(memory.page(i), PAGE, i as u64).unwrap();
        }
        let counter = device.counter().unwrap();
        let invalidate = || {
            for i in 0..RANGES {
                memory.advise(i, 1, libc::MADV_DONTNEED).unwrap();
            }
        };
        invalidate();
        assert_eq!(counter.get(), 1000);
        progress.reach(1);
        progress.spin_until(2);
        (1..1000).for_each(|_| invalidate());
        assert_eq!(counter.get(), 1_000_000);
        progress.reach(3);
        progress.spin_until(4);
        device.drain().unwrap().0.len() == RANGES
    })
    .unwrap();
    wait_until("there were a thousand invalidations", || {
        progress.has_reached(1)
    });
    let thousand = slab(&group);
    progress.reach(2);
    wait_until("there were a million invalidations", || {
        progress.has_reached(3)
    });
    let million = slab(&group);
    progress.reach(4);
    assert!(child.succeeded().unwrap());
    assert_eq!(thousand, million);
    assert!(
        thousand > RANGES as u64 * 64,
        "the ranges are not charged to the group"
    );
}

/// The file that contains the largest number of ranges that a user may watch.
const LIMIT: &str = "/sys/module/ummunotify/parameters/max_user_regions";

fn become_user(uid: u32) {
    setgid(Gid::from_raw(uid)).unwrap();
    setuid(Uid::from_raw(uid)).unwrap();
}

/// Watches the page with cookies from 0 upwards until the driver refuses a watch. Returns the
/// number of accepted watches, and the error.
fn watch_until_refused(device: &DriverFile, memory: &Pages) -> (u64, Errno) {
    let limit = machine::count_in(LIMIT);
    for cookie in 0..2 * limit {
        if let Err(errno) = device.watch(memory.page(0), PAGE, cookie) {
            return (cookie, errno);
        }
    }
    panic!("{} ranges, of {limit}", 2 * limit)
}

#[test]
fn the_ranges_of_a_user_are_bounded_over_all_files_and_processes() {
    const MAX: u64 = 5000;
    const OURS: u32 = 60_001;
    let _alone = alone();
    let _limit = Setting::set(LIMIT, &MAX.to_string());
    let child = Child::fork(|| {
        become_user(OURS);
        let memory = Pages::new(1).unwrap();
        let (one, two) = (DriverFile::open().unwrap(), DriverFile::open().unwrap());
        let (ranges, refused) = watch_until_refused(&one, &memory);
        // The rest of the limit is charged for the two files.
        assert!(ranges > MAX - 500 && ranges < MAX, "{ranges}");
        assert_eq!(refused, Errno::ENOSPC);
        // The limit also covers another file and another process. The limit even covers another
        // user of a namespace that the process makes.
        assert_eq!(watch_until_refused(&two, &memory), (0, Errno::ENOSPC));
        let in_child = Child::fork(|| {
            unshare(CloneFlags::CLONE_NEWUSER).unwrap();
            // An open file is charged too, and another file would exceed the limit. So the child
            // cannot open a file.
            DriverFile::open().unwrap_err().raw_os_error() == Some(libc::EMFILE)
        });
        assert!(in_child.unwrap().succeeded().unwrap());
        // If one file ends a watch, another file can watch a range instead. After the drop of the
        // first file, the second file can watch as many ranges as the first file did.
        one.unwatch(17).unwrap();
        two.watch(memory.page(0), PAGE, 1).unwrap();
        assert_eq!(one.watch(memory.page(0), PAGE, 17), Err(Errno::ENOSPC));
        memory.unmap(0, 1).unwrap();
        assert_eq!(one.drain().unwrap().0.len() as u64, ranges - 1);
        drop(one);
        let (again, refused) = watch_until_refused(&two, &memory);
        // The second file already uses cookie 1, so the driver refuses this cookie.
        assert_eq!((again, refused), (1, Errno::EINVAL));
        for cookie in 2..ranges {
            two.watch(memory.page(0), PAGE, cookie).unwrap();
        }
        true
    });
    assert!(child.unwrap().succeeded().unwrap());
    let other = Child::fork(|| {
        become_user(OURS + 1);
        let memory = Pages::new(1).unwrap();
        watch_until_refused(&DriverFile::open().unwrap(), &memory).0 > MAX - 500
    });
    assert!(other.unwrap().succeeded().unwrap());
}

#[test]
fn the_users_of_a_namespace_are_the_one_who_made_it() {
    const MAX: u64 = 5000;
    const OURS: u32 = 60_005;
    let _alone = alone();
    let _limit = Setting::set(LIMIT, &MAX.to_string());
    let progress = Progress::new();
    let maker = Child::fork(|| {
        become_user(OURS);
        unshare(CloneFlags::CLONE_NEWUSER).unwrap();
        progress.reach(1);
        progress.spin_until(2);
        setuid(Uid::from_raw(5)).unwrap();
        let memory = Pages::new(1).unwrap();
        let device = DriverFile::open().unwrap();
        let (_, refused) = watch_until_refused(&device, &memory);
        progress.reach(3);
        progress.spin_until(4);
        refused == Errno::ENOSPC
    })
    .unwrap();
    wait_until("the process has a namespace", || progress.has_reached(1));
    machine::write(format!("/proc/{}/uid_map", maker.id()), "0 200000 100");
    progress.reach(2);
    wait_until("the user has reached the limit", || progress.has_reached(3));
    let outside = Child::fork(|| {
        become_user(OURS);
        DriverFile::open().unwrap_err().raw_os_error() == Some(libc::EMFILE)
    });
    assert!(outside.unwrap().succeeded().unwrap());
    progress.reach(4);
    assert!(maker.succeeded().unwrap());
}

#[test]
fn the_files_of_a_user_are_bounded_and_all_is_given_back() {
    let _alone = alone();
    let _limit = Setting::set(LIMIT, "5000");
    let fill = || {
        let child = Child::fork(|| {
            become_user(60_003);
            setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).unwrap();
            let mut files = Vec::new();
            let refused = loop {
                match DriverFile::open() {
                    Ok(device) => files.push(device),
                    Err(error) => break error,
                }
            };
            assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));
            (20..500).contains(&files.len())
        });
        assert!(child.unwrap().succeeded().unwrap());
    };
    fill();
    fill();
}

/// By default, one file may watch at least half a million ranges.
#[test]
fn one_file_may_watch_half_a_million_ranges() {
    let _alone = alone();
    let memory = Pages::new(1).unwrap();
    let device = DriverFile::open().unwrap();
    for cookie in 0..512 << 10 {
        device.watch(memory.page(0), PAGE, cookie).unwrap();
    }
}

/// The lines that the kernel has logged since the value was made.
struct Log(File);

impl Log {
    fn from_now() -> Self {
        let mut options = File::options();
        let mut log = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .unwrap();
        log.seek(SeekFrom::End(0)).unwrap();
        Self(log)
    }

    fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(n) => lines.push(String::from_utf8_lossy(&record[..n]).into_owned()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return lines,
                Err(error) => panic!("/dev/kmsg: {error}"),
            }
        }
    }
}

/// Tests a user without a memory limit on a machine with little free memory.
#[test]
fn a_user_who_registers_without_end_is_enospc_and_nobody_is_killed() {
    const LEFT: u64 = 500 << 20;
    let _alone = alone();
    let available = || machine::count("/proc/meminfo", "MemAvailable") << 10;
    let mut log = Log::from_now();
    let killed = machine::vmstat("oom_kill");
    let most = machine::count_in(LIMIT);
    // This memory stands for the memory of an application, which the OOM killer must not end.
    let filler = Pages::new(((available() - LEFT) >> 12) as usize).unwrap();
    filler.touch();
    let child = Child::fork(|| {
        become_user(65_534);
        let memory = Pages::new(1).unwrap();
        let files = [(); 4].map(|()| DriverFile::open().unwrap());
        let mut ranges = 0;
        for device in &files {
            let (some, refused) = watch_until_refused(device, &memory);
            assert_eq!(refused, Errno::ENOSPC);
            ranges += some;
        }
        println!("{ranges} ranges of {most}");
        ranges > most / 2 && ranges < most
    });
    let done = child.unwrap().succeeded().unwrap();
    println!("{} MiB were left", available() >> 20);
    assert_eq!(machine::vmstat("oom_kill"), killed);
    assert_eq!(log.lines(), Vec::<String>::new());
    drop(filler);
    assert!(done);
}

/// Returns the time that the kernel takes to reclaim half of the memory of a child. The child
/// watches all of its memory `watches` times. Before the reclaim, the child invalidates all of its
/// memory `invalidations` times and reads no report.
fn reclaim(watches: u64, invalidations: usize) -> Duration {
    const PAGES: usize = 8 << 20 >> 12;
    let group = Group::new();
    let progress = Progress::new();
    let child = Child::fork(|| {
        group.enter();
        become_user(65_534);
        let memory = Pages::new(PAGES).unwrap();
        let device = DriverFile::open().unwrap();
        for cookie in 0..watches {
            device.watch(memory.page(0), memory.len(), cookie).unwrap();
        }
        for _ in 0..invalidations {
            memory.advise(0, PAGES, libc::MADV_DONTNEED).unwrap();
            memory.touch();
        }
        progress.reach(1);
        while !progress.has_reached(2) {
            thread::sleep(Duration::from_millis(10));
        }
        true
    })
    .unwrap();
    wait_until("the child watches its memory", || progress.has_reached(1));
    let start = Instant::now();
    group.set("memory.reclaim", "4M");
    let took = start.elapsed();
    progress.reach(2);
    assert!(child.succeeded().unwrap());
    took
}

/// One process watches memory, and another process reclaims the memory. Watches must not make the
/// reclaim slower.
#[test]
fn reclaim_costs_no_more_under_unread_watches() {
    const WATCHES: u64 = 65_536;
    const ROUNDS: usize = 5;
    /// The largest accepted ratio of the times. If the driver visited each watch for each page, the
    /// ratio would be about a hundred.
    const MOST: u32 = 2;
    let _alone = alone();
    let _swap = Swap::on();
    reclaim(0, 2);
    let kinds = [(0, 2), (WATCHES, 2), (WATCHES, 0)];
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|_| kinds.map(|(watches, invalidations)| reclaim(watches, invalidations)))
        .collect();
    let [bare, unread, new] = [0, 1, 2].map(|kind| rounds.iter().map(|it| it[kind]).min().unwrap());
    println!(
        "reclaim of 4 MiB: {bare:?}; under {WATCHES} unread watches {unread:?}, under new ones {new:?}"
    );
    assert!(unread < bare * MOST && new < bare * MOST);
}
