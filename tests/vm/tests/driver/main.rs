//! Tests the driver's contract, call by call. The tests need /dev/ummunotify, so `cargo xtask test`
//! runs them in a virtual machine.
//!
//! Each module tests a part of `kernel/Documentation/ummunotify.rst`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod aio;
mod arguments;
mod backed;
mod compat;
mod counter;
mod events;
mod faults;
mod fdinfo;
mod mapping;
mod misc;
mod order;
mod owner;
mod postponed;
mod protection;
mod reading;
mod saturated;
mod teardown;

use regcache_tests_vm::{DriverFile, PAGE, Pages};
use ummunotify_sys::{Event, HINT, INVAL, LAST};

/// Opens a file that watches `pages` pages. Each page is a separate range, and the page's number is
/// the cookie.
fn watched(pages: usize) -> (DriverFile, Pages) {
    let memory = Pages::new(pages).unwrap();
    let device = DriverFile::open().unwrap();
    for i in 0..pages {
        device.watch(memory.page(i), PAGE, i as u64).unwrap();
    }
    (device, memory)
}

/// Opens a file that watches `pages` pages as one range, with cookie 7.
fn watched_as_one(pages: usize) -> (DriverFile, Pages) {
    let memory = Pages::new(pages).unwrap();
    let device = DriverFile::open().unwrap();
    device.watch(memory.page(0), memory.len(), 7).unwrap();
    (device, memory)
}

/// Returns the event of a range that was invalidated once. The hint is the `len` bytes at `start`.
fn invalidated_once(cookie: u64, start: *const u8, len: usize) -> Event {
    Event {
        flags: HINT,
        ..invalidated_often(cookie, start, len)
    }
}

/// Returns the event of a range that was invalidated more than once. Such an event has no hint, so
/// `start` and `len` are those of the whole range.
fn invalidated_often(cookie: u64, start: *const u8, len: usize) -> Event {
    let start = start.addr() as u64;
    Event {
        kind: INVAL,
        flags: 0,
        hint_start: start,
        hint_end: start + len as u64,
        user_cookie_counter: cookie,
    }
}

fn last(counter: u64) -> Event {
    Event {
        kind: LAST,
        user_cookie_counter: counter,
        ..Event::default()
    }
}
