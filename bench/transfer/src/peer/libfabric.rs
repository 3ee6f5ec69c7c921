//! Implements the process of a libfabric [`Peer`](super::Peer). The process does transfers on
//! command.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::Write as _;
use std::io::{self, BufRead, Write};
use std::net::IpAddr;
use std::ptr;
use std::time::{Duration, Instant};

use regcache_test_support::Random;

use crate::buffers::Buffers;
use crate::error::Trying;
use crate::timing::{Stopwatch, Timing};
use crate::worker::pause;
use crate::{Error, Op};

#[repr(C)]
struct Link {
    _private: [u8; 0],
}

#[repr(C)]
struct Mr {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn fabric_link_open(node: *const c_char, size: usize, out: *mut *mut Link) -> c_int;
    fn fabric_link_prepare(
        link: *mut Link,
        op: c_int,
        buffer: *mut c_void,
        len: usize,
        mr: *mut *mut Mr,
    ) -> c_int;
    fn fabric_link_release(mr: *mut Mr) -> c_int;
    fn fabric_link_post(
        link: *mut Link,
        op: c_int,
        buffer: *mut c_void,
        len: usize,
        mr: *mut Mr,
    ) -> c_int;
    fn fabric_link_poll(link: *mut Link) -> c_int;
}

/// The number of fruitless polls after which the polling thread sleeps between polls. The endpoints
/// of this crate use the same number.
const POLLS: u32 = 30;

/// The time for which the polling thread sleeps. The endpoints of this crate use the same time.
const SLEEP: Duration = Duration::from_micros(20);

fn check(what: &'static str, result: c_int) -> Result<c_int, Error> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result)).trying(what);
    }
    Ok(result)
}

/// Reads a number of transfers from each input line, does these transfers, and prints an output
/// line. The output line has the total time of these transfers in nanoseconds, and then the
/// [`Timing`] of each transfer. Returns at the end of the input.
///
/// # Errors
///
/// Returns the errors of libfabric.
pub fn serve(address: IpAddr, op: Op, size: usize) -> Result<(), Error> {
    let node = CString::new(address.to_string());
    let node = node.map_err(|why| Error::Cannot(why.to_string()))?;
    let mut link = ptr::null_mut();
    // SAFETY: `node` and `link` outlive the call. The link that the call opens lives as long as the
    // process.
    let opened = unsafe { fabric_link_open(node.as_ptr(), size, &raw mut link) };
    check("connect by libfabric", opened)?;
    let buffers = Buffers::new(1, size)?;
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    let mut begun = 0;
    for line in io::stdin().lock().lines() {
        let line = line.trying("read a command")?;
        let transfers: u64 = line.trim().parse().unwrap_or(0);
        let mut timings = Vec::with_capacity(usize::try_from(transfers).unwrap_or(0));
        let mut aside = Duration::ZERO;
        let started = Instant::now();
        for _ in 0..transfers {
            begun += 1;
            aside += pause(&mut random, true);
            // SAFETY: the link is open. The buffer is mapped and has this size.
            timings.push(unsafe { transfer(begun, link, op, buffers.at(0).cast(), size) }?);
        }
        let took = started.elapsed().saturating_sub(aside);
        let mut answer = took.as_nanos().to_string();
        for timing in timings {
            let _ = write!(answer, " {timing}");
        }
        println!("{answer}");
        io::stdout().flush().trying("answer")?;
    }
    Ok(())
}

/// # Safety
///
/// The link must be open. The buffer must have `size` bytes, and nothing else may use these bytes.
unsafe fn transfer(
    number: u64,
    link: *mut Link,
    op: Op,
    buffer: *mut c_void,
    size: usize,
) -> Result<Timing, Error> {
    let (code, awaited) = match op {
        Op::Write => (0, 1),
        Op::Read => (1, 1),
        Op::Send => (2, 2),
    };
    let prepare = || {
        let mut mr = ptr::null_mut();
        // SAFETY: the caller promises an open link and a buffer of this size.
        let prepared = unsafe { fabric_link_prepare(link, code, buffer, size, &raw mut mr) };
        check("register by libfabric", prepared).map(|_| mr)
    };
    let (mr, watch) = Stopwatch::prepare(number, prepare)?;
    // SAFETY: the caller promises an open link and a buffer of this size. The buffer is now
    // registered.
    check("post by libfabric", unsafe {
        fabric_link_post(link, code, buffer, size, mr)
    })?;
    let (mut done, mut polls) = (0, 0);
    while done < awaited {
        // SAFETY: the caller promises an open link.
        let polled = check("poll libfabric", unsafe { fabric_link_poll(link) })?;
        done += polled;
        if polled == 0 {
            polls += 1;
            if polls > POLLS {
                std::thread::sleep(SLEEP);
            } else {
                std::thread::yield_now();
            }
        }
    }
    watch.release(|| {
        // SAFETY: the registration was made above, and the transfer that used the registration has
        // ended.
        let released = unsafe { fabric_link_release(mr) };
        check("deregister by libfabric", released).map(drop)
    })
}
