//! Tests how a program waits for events by `read`, `poll`, `epoll` and SIGIO. The tests also cover
//! signals during a wait, and buffers whose access causes a fault.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use regcache_tests_vm::{Child, DriverFile, PAGE, Pages};
use ummunotify_sys::{Event, INVAL, LAST};

use crate::{invalidated_once, last, watched};

fn blocking() -> (DriverFile, Pages) {
    let memory = Pages::new(2).unwrap();
    let device = DriverFile::open_with(OFlag::O_CLOEXEC).unwrap();
    device.watch(memory.page(0), PAGE, 0).unwrap();
    (device, memory)
}

const SHORTLY: Duration = Duration::from_millis(200);

#[test]
fn a_blocked_read_wakes_when_a_range_is_hit() {
    let (device, memory) = blocking();
    thread::scope(|scope| {
        let reader = scope.spawn(|| device.read(4).unwrap());
        thread::sleep(SHORTLY);
        memory.unmap(1, 1).unwrap();
        thread::sleep(SHORTLY);
        assert!(!reader.is_finished(), "the reader woke without an event");
        memory.unmap(0, 1).unwrap();
        assert_eq!(
            reader.join().unwrap(),
            [invalidated_once(0, memory.page(0), PAGE), last(1)]
        );
    });
}

#[test]
fn of_two_blocked_readers_one_is_given_the_event() {
    let (device, memory) = blocking();
    let counter = device.counter().unwrap();
    let delivered = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                delivered.fetch_add(device.read(4).unwrap().len() as u32, Ordering::SeqCst)
            });
        }
        thread::sleep(SHORTLY);
        memory.unmap(0, 1).unwrap();
        thread::sleep(SHORTLY);
        // The driver reports the invalidation a second time if the reader reads the first report
        // before `munmap` ends.
        let recorded = counter.get() as u32;
        let delivered = delivered.load(Ordering::SeqCst);
        assert_eq!(
            delivered,
            2 * recorded,
            "each invalidation must deliver INVAL and LAST once"
        );
        memory.map_over(0, 1).unwrap();
        memory.write(0, 1);
        memory.unmap(0, 1).unwrap();
    });
    assert_eq!(delivered.load(Ordering::SeqCst), 4);
}

static CAUGHT: AtomicU32 = AtomicU32::new(0);

extern "C" fn catch(_: i32) {
    CAUGHT.fetch_add(1, Ordering::SeqCst);
}

fn handle(signal: Signal, flags: SaFlags) {
    let action = SigAction::new(SigHandler::Handler(catch), flags, SigSet::empty());
    // SAFETY: the handler only increments an atomic.
    unsafe { sigaction(signal, &action) }.unwrap();
}

/// Sends a signal to a thread that is blocked in `read`, and returns the result of `read`. If the
/// signal does not end the `read`, the function ends the `read` by an invalidation.
fn read_under(signal: Signal) -> nix::Result<usize> {
    let (device, memory) = blocking();
    thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let reader = scope.spawn(|| {
            let tell = tell;
            tell.send(pthread_self()).unwrap();
            device.read(4).map(|events| events.len())
        });
        let reading = told.recv().unwrap();
        thread::sleep(SHORTLY);
        let before = CAUGHT.load(Ordering::SeqCst);
        pthread_kill(reading, signal).unwrap();
        thread::sleep(SHORTLY);
        assert_eq!(
            CAUGHT.load(Ordering::SeqCst),
            before + 1,
            "the handler did not run"
        );
        if !reader.is_finished() {
            memory.unmap(0, 1).unwrap();
        }
        reader.join().unwrap()
    })
}

#[test]
fn a_read_interrupted_by_a_signal_restarts_or_says_so() {
    handle(Signal::SIGUSR1, SaFlags::SA_RESTART);
    assert_eq!(read_under(Signal::SIGUSR1), Ok(2));
    handle(Signal::SIGUSR2, SaFlags::empty());
    assert_eq!(read_under(Signal::SIGUSR2), Err(Errno::EINTR));
}

#[test]
fn it_polls_readable_while_a_range_is_invalid_or_last_is_owed() {
    let (device, memory) = watched(2);
    let readable = || device.poll(0).unwrap().contains(PollFlags::POLLIN);
    assert!(!readable());
    memory.unmap(0, 2).unwrap();
    assert!(readable());
    device.read(1).unwrap();
    assert!(readable(), "the second range still waits to be read");
    device.read(1).unwrap();
    assert!(readable(), "LAST still waits to be read");
    device.read(1).unwrap();
    assert!(!readable());
}

#[test]
fn poll_wakes_when_a_range_is_hit() {
    let (device, memory) = watched(1);
    thread::scope(|scope| {
        let started = Instant::now();
        let waiter = scope.spawn(|| device.poll(30_000).unwrap());
        thread::sleep(SHORTLY);
        memory.unmap(0, 1).unwrap();
        assert_eq!(waiter.join().unwrap(), PollFlags::POLLIN);
        // `poll` checks the file once more when its timeout expires. So the result alone does not
        // prove that the driver woke the thread.
        assert!(
            started.elapsed() < Duration::from_secs(25),
            "poll was not woken"
        );
    });
}

#[test]
fn an_edge_triggered_epoll_wakes_for_each_range_that_becomes_invalid() {
    let (device, memory) = watched(2);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let interest = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 1);
    epoll.add(device.as_fd(), interest).unwrap();
    let mut woken = [EpollEvent::empty()];
    let mut wakes = || epoll.wait(&mut woken, EpollTimeout::ZERO).unwrap();
    assert_eq!(wakes(), 0);
    memory.unmap(0, 1).unwrap();
    assert_eq!(wakes(), 1);
    assert_eq!(wakes(), 0);
    memory.unmap(1, 1).unwrap();
    assert_eq!(
        wakes(),
        1,
        "the second range must wake epoll, although the first was not read"
    );
}

static SIGIO_FROM: AtomicI32 = AtomicI32::new(-1);

extern "C" fn catch_sigio(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO, the kernel passes a siginfo. For SIGIO with F_SETSIG, the siginfo
    // contains `si_fd`. This field is at offset 24, because `si_band` is a `long` at offset 16.
    let fd = unsafe { (*info.cast::<[i32; 8]>())[6] };
    SIGIO_FROM.store(fd, Ordering::SeqCst);
}

#[test]
fn sigio_comes_when_a_range_is_hit() {
    let (device, memory) = watched(1);
    let action = SigAction::new(
        SigHandler::SigAction(catch_sigio),
        SaFlags::SA_SIGINFO,
        SigSet::empty(),
    );
    // SAFETY: the handler only reads its argument and stores to an atomic.
    unsafe { sigaction(Signal::SIGIO, &action) }.unwrap();
    let fcntl = |command: i32, argument: i32| {
        // SAFETY: the call accesses no memory.
        Errno::result(unsafe { libc::fcntl(device.raw(), command, argument) }).unwrap()
    };
    fcntl(libc::F_SETOWN, std::process::id() as i32);
    fcntl(10 /* F_SETSIG */, libc::SIGIO);
    fcntl(libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK);
    memory.unmap(0, 1).unwrap();
    for _ in 0..100 {
        if SIGIO_FROM.load(Ordering::SeqCst) == device.raw() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!(
        "no SIGIO, or not for this file: {}",
        SIGIO_FROM.load(Ordering::SeqCst)
    );
}

#[test]
fn a_buffer_that_faults_loses_no_event() {
    const RANGES: usize = 40;
    let (device, memory) = watched(RANGES);
    let mut buffer = MmapMut::map_anon(2 * PAGE).unwrap();
    let end = buffer.as_mut_ptr().wrapping_add(PAGE);
    // SAFETY: the page belongs to this test, and the test does not touch the page again.
    let protected = unsafe { libc::mprotect(end.cast(), PAGE, libc::PROT_NONE) };
    assert_eq!(protected, 0);
    memory.unmap(0, RANGES).unwrap();

    let mut seen = 0;
    for room in [0, 1, 16, 31, 32, 33, 100, 450, 640] {
        let start = end.wrapping_sub(room);
        // SAFETY: the kernel writes only to the writable part of the buffer, and fails at the rest.
        let n = unsafe { libc::read(device.raw(), start.cast(), PAGE) };
        match Errno::result(n) {
            Ok(n) => {
                assert!(n.unsigned_abs() <= room);
                seen += n.unsigned_abs() / 32;
            }
            Err(errno) => assert_eq!(errno, Errno::EFAULT),
        }
    }
    assert!(
        seen < RANGES,
        "the buffers must be too small for all events"
    );
    let (cookies, counter) = device.drain().unwrap();
    assert_eq!(cookies.len() + seen, RANGES);
    assert_eq!(counter, 1);
    assert_eq!(device.read(1), Err(Errno::EAGAIN));
}

#[test]
fn a_hint_survives_a_fault_and_a_hit_in_between_is_not_lost() {
    let (device, memory) = watched(3);
    let bad = || {
        // SAFETY: address 8 is never mapped.
        let n = unsafe { libc::read(device.raw(), std::ptr::without_provenance_mut(8), 320) };
        assert_eq!(Errno::result(n), Err(Errno::EFAULT));
    };
    memory.unmap(0, 1).unwrap();
    bad();
    memory.unmap(1, 1).unwrap();
    bad();
    let expected = [
        invalidated_once(0, memory.page(0), PAGE),
        invalidated_once(1, memory.page(1), PAGE),
    ];
    assert_eq!(device.read(2).unwrap(), expected);
    bad();
    assert_eq!(device.read(2).unwrap(), [last(2)], "LAST is still owed");
}

/// Calls `preadv2` with these flags, and with `buffers` buffers of one event each. Returns the
/// kinds of the events.
fn readv(device: &DriverFile, buffers: usize, flags: i32) -> nix::Result<Vec<u32>> {
    let mut events = vec![Event::default(); buffers];
    let parts: Vec<_> = events
        .iter_mut()
        .map(|event| libc::iovec {
            iov_base: (&raw mut *event).cast(),
            iov_len: size_of::<Event>(),
        })
        .collect();
    let (parts, count) = (parts.as_ptr(), parts.len() as i32);
    // SAFETY: each part is writable, and any bytes form a valid event.
    let n = unsafe { libc::preadv2(device.raw(), parts, count, -1, flags) };
    let n = Errno::result(n)?.unsigned_abs();
    let kinds = events[..n / size_of::<Event>()]
        .iter()
        .map(|event| event.kind);
    Ok(kinds.collect())
}

#[test]
fn a_read_into_several_buffers_returns_what_there_is() {
    let (device, memory) = blocking();
    memory.unmap(0, 1).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| readv(&device, 3, 0));
        thread::sleep(SHORTLY);
        let slept = !reader.is_finished();
        if slept {
            memory.map_over(0, 1).unwrap();
            memory.write(0, 1);
            memory.unmap(0, 1).unwrap();
        }
        assert_eq!(reader.join().unwrap(), Ok(vec![INVAL, LAST]));
        assert!(!slept, "the read slept, although all events were delivered");
    });
}

#[test]
fn a_read_that_must_not_wait_does_not_though_the_file_blocks() {
    let (device, memory) = blocking();
    assert_eq!(readv(&device, 2, libc::RWF_NOWAIT), Err(Errno::EAGAIN));
    memory.unmap(0, 1).unwrap();
    assert_eq!(readv(&device, 1, libc::RWF_NOWAIT), Ok(vec![INVAL]));
    assert_eq!(readv(&device, 2, libc::RWF_NOWAIT), Ok(vec![LAST]));
    assert_eq!(readv(&device, 2, libc::RWF_NOWAIT), Err(Errno::EAGAIN));
}

#[test]
fn a_long_read_ends_when_the_process_is_killed() {
    const RANGES: u64 = 200_000;
    let child = Child::fork(|| {
        let memory = Pages::new(1).unwrap();
        let device = DriverFile::open().unwrap();
        for cookie in 0..RANGES {
            device.watch(memory.page(0), PAGE, cookie).unwrap();
        }
        loop {
            memory.advise(0, 1, libc::MADV_DONTNEED).unwrap();
            memory.touch();
            let read = device.read(RANGES as usize + 1).unwrap();
            assert_eq!(read.len() as u64, RANGES + 1);
        }
    })
    .unwrap();
    thread::sleep(10 * SHORTLY);
    let started = Instant::now();
    drop(child);
    assert!(started.elapsed() < Duration::from_secs(20));
}
