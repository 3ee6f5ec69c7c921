//! The end of files, of processes, and of the module.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::Mode;
use nix::unistd::{close, pipe, read, write};
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
        // dup2 over it closes the file without giving the number away.
        let null = fs::File::open("/dev/null").unwrap();
        // SAFETY: the number stays open, for `device` to close.
        let duplicated = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), fd) };
        assert_eq!(duplicated, fd);
        memory.unmap(0, 1).unwrap();
        assert_eq!(reader.join().unwrap().unwrap().len(), 2);
    });
}

#[test]
fn a_file_may_outlive_the_memory_that_it_watches() {
    // A parent opens, forks a child that keeps the descriptor, and goes; the child closes it then.
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
        // Leaves the grandchild to itself.
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
    assert!(parent.succeeded().unwrap(), "the memory was there");
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
    // SAFETY: a string literal with its end.
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

/// Ranges that one file may watch; changed, so that the test does not need a million.
struct Limit(String);

const LIMIT: &str = "/sys/module/ummunotify/parameters/max_regions";

impl Limit {
    fn set(limit: u32) -> Self {
        let before = fs::read_to_string(LIMIT).unwrap();
        fs::write(LIMIT, limit.to_string()).unwrap();
        Self(before)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = fs::write(LIMIT, self.0.trim());
    }
}

#[test]
fn a_full_table_is_enospc_and_loses_nothing() {
    // More than the other tests use.
    const MAX: u64 = 5000;
    let _limit = Limit::set(MAX as u32);
    let memory = Pages::new(1).unwrap();
    let device = DriverFile::open().unwrap();
    for cookie in 0..MAX {
        device.watch(memory.page(0), PAGE, cookie).unwrap();
    }
    assert_eq!(device.watch(memory.page(0), PAGE, MAX), Err(Errno::ENOSPC));
    device.unwatch(17).unwrap();
    device.watch(memory.page(0), PAGE, MAX).unwrap();
    memory.unmap(0, 1).unwrap();
    assert_eq!(device.drain().unwrap().0.len() as u64, MAX);
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

/// Opening takes all locks of the address space, and gives up when a signal comes meanwhile. It must not
/// say then that it watches.
#[test]
fn an_open_that_a_signal_interrupts_fails_or_watches() {
    extern "C" fn nothing(_: i32) {}
    const ENOUGH: usize = 10;
    let child = Child::fork(|| {
        let action = SigAction::new(
            SigHandler::Handler(nothing),
            SaFlags::empty(),
            SigSet::empty(),
        );
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGALRM, &action) }.unwrap();
        // Many mappings, so that there are many locks.
        let many = Pages::new(8000).unwrap();
        for page in (0..8000).step_by(2) {
            many.protect(page, 1, libc::PROT_READ).unwrap();
        }
        let memory = Pages::new(1).unwrap();
        let (mut interrupted, mut opened) = (0, 0);
        for round in 0..3000 {
            // Sooner or later in the call.
            let after = libc::timeval {
                tv_sec: 0,
                tv_usec: 20 + round * 37 % 2000,
            };
            let once = libc::itimerval {
                it_interval: libc::timeval {
                    tv_sec: 0,
                    tv_usec: 0,
                },
                it_value: after,
            };
            // SAFETY: a structure that may be read.
            unsafe { libc::setitimer(libc::ITIMER_REAL, &once, std::ptr::null_mut()) };
            match open("/dev/ummunotify", OFlag::O_RDONLY, Mode::empty()) {
                Err(Errno::EINTR) => interrupted += 1,
                Err(_) => return false,
                Ok(fd) => {
                    opened += 1;
                    let device = DriverFile::from(fs::File::from(fd));
                    let counter = device.counter().unwrap();
                    device.watch(memory.page(0), PAGE, 1).unwrap();
                    memory.map_over(0, 1).unwrap();
                    memory.touch();
                    if counter.get() != 1 {
                        return false;
                    }
                }
            }
            if interrupted >= ENOUGH && opened > 0 {
                return true;
            }
        }
        false
    });
    assert!(child.unwrap().succeeded().unwrap());
}
