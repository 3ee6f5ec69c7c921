//! Tests a poll by Linux AIO. If the AIO context is busy, the kernel finishes the poll in a kernel
//! thread. The driver must serve this thread, although the thread is not the owner of the file.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::watched;

/// The kernel's `struct iocb` on a little-endian machine.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    events: u64,
    rest: [u64; 4],
}

/// The kernel's `struct io_event`.
#[repr(C)]
#[derive(Default)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

const IOCB_CMD_POLL: u16 = 5;

fn submit(context: u64, poll: &mut Iocb) {
    let mut list = [&raw mut *poll];
    // SAFETY: the list holds one request, and the request stays in place until it has completed.
    let n = unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) };
    assert_eq!(Errno::result(n), Ok(1));
}

#[test]
fn aio_poll_by_the_owner_is_no_error() {
    const PENDING: usize = 1000;
    let (device, memory) = watched(1);
    let poll = |fd: i32| Iocb {
        opcode: IOCB_CMD_POLL,
        fd: fd as u32,
        events: libc::POLLIN as u64,
        ..Iocb::default()
    };
    let mut context = 0_u64;
    // SAFETY: the context is a writable word.
    let made = unsafe { libc::syscall(libc::SYS_io_setup, PENDING + 10, &raw mut context) };
    Errno::result(made).unwrap();
    // The test keeps the context busy. The context has many polls that never complete, and a thread
    // searches these polls all the time.
    let (quiet, _other_end) = nix::unistd::pipe().unwrap();
    let mut pending = vec![poll(quiet.as_raw_fd()); PENDING];
    for one in &mut pending {
        submit(context, one);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut unknown = Iocb::default();
            let mut event = IoEvent::default();
            while !stop.load(Ordering::Relaxed) {
                let (unknown, event) = (&raw mut unknown, &raw mut event);
                // SAFETY: `unknown` and `event` point to structures that are readable and writable.
                unsafe { libc::syscall(libc::SYS_io_cancel, context, unknown, event) };
            }
        });
        let until = Instant::now() + Duration::from_secs(4);
        let mut results = Vec::new();
        while Instant::now() < until {
            let mut request = poll(device.raw());
            submit(context, &mut request);
            memory.advise(0, 1, libc::MADV_DONTNEED).unwrap();
            memory.write(0, 1);
            let mut event = IoEvent::default();
            let patience = libc::timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            let (event_ptr, patience) = (&raw mut event, &raw const patience);
            let n = loop {
                // SAFETY: the buffer has room for one event, and the request stays in place until
                // the event has arrived.
                let n = unsafe {
                    libc::syscall(libc::SYS_io_getevents, context, 1, 1, event_ptr, patience)
                };
                // The call can return EINTR, because other tests send signals.
                if n != -1 || Errno::last() != Errno::EINTR {
                    break n;
                }
            };
            results.push((n, event.res));
            let _ = device.drain();
        }
        stop.store(true, Ordering::Relaxed);
        let good = |&&(n, result): &&(i64, i64)| {
            n == 1 && result & (i64::from(libc::POLLIN | libc::POLLERR)) == i64::from(libc::POLLIN)
        };
        let bad: Vec<_> = results.iter().filter(|result| !good(result)).collect();
        assert!(
            bad.is_empty(),
            "of {} results, these are wrong: {bad:?}",
            results.len()
        );
    });
    // SAFETY: the call ends the pending requests, and the requests stay in place until it returns.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
}
