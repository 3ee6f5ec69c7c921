//! Tests what happens at the end of files, of processes, and of the module.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, close, pipe, read, write};
use regcache_tests_vm::{Child, DriverFile, PAGE, Pages};

use crate::watched;

#[test]
fn a_file_is_closed_with_ranges_and_events_outstanding() {
    for _ in 0..50 {
        let (device, memory) = watched(20);
        memory.unmap(3, 9).unwrap();
        device.read(2).unwrap();
        drop(device);
    }
}

#[test]
fn closing_while_another_thread_reads_leaves_the_reader_its_events() {
    let memory = Pages::new(1).unwrap();
    let device = DriverFile::open_with(OFlag::O_CLOEXEC).unwrap();
    device.watch(memory.page(0), PAGE, 0).unwrap();
    let fd = device.raw();
    thread::scope(|scope| {
        let reader = scope.spawn(|| device.read(4));
        thread::sleep(Duration::from_millis(200));
        // `dup2` closes the file of the driver, and the file descriptor then refers to /dev/null.
        let null = fs::File::open("/dev/null").unwrap();
        // SAFETY: the file descriptor stays open. So `device` closes a valid file descriptor when
        // `device` is dropped.
        let duplicated = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), fd) };
        assert_eq!(duplicated, fd);
        memory.unmap(0, 1).unwrap();
        assert_eq!(reader.join().unwrap().unwrap().len(), 2);
    });
}

#[test]
fn a_file_may_outlive_the_memory_that_it_watches() {
    // A parent opens the file, forks a child that inherits the file, and exits. After that, the
    // child closes the file.
    let (child_end, our_end) = pipe().unwrap();
    let (told, tell) = pipe().unwrap();
    let parent = Child::fork(|| {
        let (device, memory) = watched(4);
        memory.unmap(0, 2).unwrap();
        let grandchild = Child::fork(|| {
            let _ = close(our_end.as_fd_number());
            let mut byte = [0];
            let go = read(&child_end, &mut byte) == Ok(1);
            let refused = device.read(1) == Err(Errno::EPERM);
            drop(device);
            write(&tell, &[u8::from(go && refused)]) == Ok(1)
        });
        // The grandchild must live on after its parent has exited. Dropping the value would kill
        // the grandchild, so the value is not dropped.
        std::mem::forget(grandchild);
        true
    })
    .unwrap();
    assert!(parent.succeeded().unwrap());
    write(&our_end, &[1]).unwrap();
    let mut byte = [0];
    assert_eq!(read(&told, &mut byte), Ok(1));
    assert_eq!(byte, [1]);
}

trait Number {
    fn as_fd_number(&self) -> i32;
}

impl Number for std::os::fd::OwnedFd {
    fn as_fd_number(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(self)
    }
}

fn free_mib() -> usize {
    let info = fs::read_to_string("/proc/meminfo").unwrap();
    let line = info
        .lines()
        .find(|line| line.starts_with("MemFree:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        >> 10
}

#[test]
fn a_forgotten_descriptor_does_not_keep_dead_memory() {
    const MIB: usize = 300;
    let (child_end, our_end) = pipe().unwrap();
    let before = free_mib();
    let parent = Child::fork(|| {
        let device = DriverFile::open().unwrap();
        let grandchild = Child::fork(|| {
            let mut byte = [0];
            let held = device.raw() >= 0;
            held && read(&child_end, &mut byte).is_ok()
        });
        std::mem::forget(grandchild);
        let memory = Pages::new(MIB << 20 >> 12).unwrap();
        device.watch(memory.page(0), memory.len(), 1).unwrap();
        std::mem::forget(memory);
        free_mib() + MIB / 2 < before
    })
    .unwrap();
    assert!(
        parent.succeeded().unwrap(),
        "the process must have used the memory"
    );
    let deadline = Instant::now() + Duration::from_secs(20);
    while free_mib() + MIB / 3 < before {
        assert!(
            Instant::now() < deadline,
            "{before} MiB were free, {} MiB are",
            free_mib()
        );
        thread::sleep(Duration::from_millis(100));
    }
    write(&our_end, &[1]).unwrap();
}

#[test]
fn the_module_cannot_be_unloaded_while_a_file_is_open() {
    let (device, memory) = watched(1);
    // SAFETY: the name ends with a null byte.
    let result = unsafe {
        libc::syscall(
            libc::SYS_delete_module,
            c"ummunotify".as_ptr(),
            libc::O_NONBLOCK,
        )
    };
    assert_eq!(Errno::result(result), Err(Errno::EWOULDBLOCK));
    memory.unmap(0, 1).unwrap();
    assert_eq!(device.drain().unwrap(), (vec![0], 1));
}

#[test]
fn a_process_may_die_with_everything_in_use() {
    for _ in 0..20 {
        let child = Child::fork(|| {
            let (device, memory) = watched(8);
            let counter = device.counter().unwrap();
            thread::spawn(move || {
                let blocked = DriverFile::open_with(OFlag::O_CLOEXEC).unwrap();
                let _ = blocked.read(1);
            });
            memory.unmap(0, 4).unwrap();
            std::mem::forget((device, memory));
            counter.get() == 1
        });
        assert!(child.unwrap().succeeded().unwrap());
    }
}

/// The first watch of an address space takes all locks of that address space. If the thread that
/// makes the first watch is killed, the driver watches nothing. If another process with the same
/// address space then watches a range, that watch must attach the driver itself.
#[test]
fn a_first_registration_that_is_killed_leaves_the_next_one_to_watch() {
    const ENOUGH: usize = 10;
    const ROUNDS: usize = 3000;
    extern "C" fn register(device: *mut libc::c_void) -> i32 {
        // SAFETY: the pointer is that of the file below, and the file outlives the child.
        let device = unsafe { &*device.cast::<DriverFile>() };
        i32::from(device.watch(std::ptr::null(), PAGE, 1).is_err())
    }
    let child = Child::fork(|| {
        // Each mapping has a lock. So with many mappings, the first watch takes long.
        let many = Pages::new(8000).unwrap();
        for page in (0..8000).step_by(2) {
            many.protect(page, 1, libc::PROT_READ).unwrap();
        }
        let memory = Pages::new(1).unwrap();
        let mut stack = vec![0_u128; 16 << 10];
        let (mut killed, mut registered) = (0, 0);
        for round in 0..ROUNDS {
            let mut device = DriverFile::open().unwrap();
            let counter = device.counter().unwrap();
            let (top, flags) = (stack.as_mut_ptr_range().end, libc::CLONE_VM | libc::SIGCHLD);
            let argument = (&raw mut device).cast();
            // SAFETY: the stack is large enough, and nothing else uses it until the child has
            // exited.
            let pid = unsafe { libc::clone(register, top.cast(), flags, argument) };
            let pid = Pid::from_raw(Errno::result(pid).unwrap());
            // The delay varies, so that the signal arrives at different points of the call.
            thread::sleep(Duration::from_micros((20 + round * 37 % 4000) as u64));
            kill(pid, Signal::SIGKILL).unwrap();
            waitpid(pid, None).unwrap();
            if device.unwatch(1).is_ok() {
                registered += 1;
            } else {
                killed += 1;
            }
            device.watch(memory.page(0), PAGE, 2).unwrap();
            memory.map_over(0, 1).unwrap();
            memory.touch();
            if counter.get() != 1 {
                return false;
            }
            if killed >= ENOUGH && registered >= ENOUGH {
                return true;
            }
        }
        false
    });
    assert!(child.unwrap().succeeded().unwrap());
}

/// The first watch takes all locks of the address space. If a signal could interrupt the first
/// watch, each signal would make the driver start the watch again. So the driver must block signals
/// during this call.
#[test]
fn a_first_registration_ends_though_a_timer_interrupts_it_all_the_time() {
    extern "C" fn nothing(_: i32) {}
    const MOST: Duration = Duration::from_secs(10);
    // Lockdep counts up to 4095 locks of a kind.
    let has_lockdep = Path::new("/proc/lockdep_stats").exists();
    let mappings = if has_lockdep { 2000 } else { 20_000 };
    let child = Child::fork(|| {
        // Each page that is touched becomes a separate mapping with a separate lock.
        let many = Pages::new(2 * mappings).unwrap();
        many.map_over(0, 2 * mappings).unwrap();
        many.protect(0, 2 * mappings, libc::PROT_NONE).unwrap();
        for page in (0..2 * mappings).step_by(2) {
            many.protect(page, 1, libc::PROT_READ | libc::PROT_WRITE)
                .unwrap();
            many.write(page, 1);
        }
        let action = SigAction::new(
            SigHandler::Handler(nothing),
            SaFlags::SA_RESTART,
            SigSet::empty(),
        );
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGALRM, &action) }.unwrap();
        let first_watch = || {
            let device = DriverFile::open().unwrap();
            let start = Instant::now();
            device.watch(many.page(0), PAGE, 1).unwrap();
            start.elapsed()
        };
        // Taking the locks takes longer than this interval, and handling a signal takes less.
        let shortest = (0..3).map(|_| first_watch()).min();
        let interval = shortest.unwrap_or_default() / 8;
        let often = libc::timeval {
            tv_sec: interval.as_secs() as libc::time_t,
            tv_usec: libc::suseconds_t::from(interval.subsec_micros()),
        };
        let often = libc::itimerval {
            it_interval: often,
            it_value: often,
        };
        // SAFETY: the structure is readable.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const often, std::ptr::null_mut()) };
        first_watch() < MOST
    });
    let ended = child.unwrap().succeeded_within(6 * MOST);
    assert!(ended.unwrap(), "the registration has tried for too long");
}
