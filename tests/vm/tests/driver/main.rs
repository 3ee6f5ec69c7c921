//! The driver's contract, call by call. Needs /dev/ummunotify; `cargo xtask test` runs it in its VM.
//!
//! Each file is a part of `kernel/Documentation/ummunotify.rst`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod aio;
mod arguments;
mod compat;
mod contexts;
mod counter;
mod events;
mod faults;
mod mapping;
mod order;
mod owner;
mod protection;
mod reading;
mod teardown;

use std::path::{Path, PathBuf};
use std::process::Command;

use regcache::monitor::abi::{Event, HINT, INVAL, LAST};
use regcache_tests_vm::{DriverFile, PAGE, Pages};

/// A device that watches some pages, each under its number as cookie.
fn watched(pages: usize) -> (DriverFile, Pages) {
    let memory = Pages::new(pages).unwrap();
    let device = DriverFile::open().unwrap();
    for i in 0..pages {
        device.watch(memory.page(i), PAGE, i as u64).unwrap();
    }
    (device, memory)
}

/// A device that watches some pages as one range, under cookie 7.
fn watched_as_one(pages: usize) -> (DriverFile, Pages) {
    let memory = Pages::new(pages).unwrap();
    let device = DriverFile::open().unwrap();
    device.watch(memory.page(0), memory.len(), 7).unwrap();
    (device, memory)
}

/// The directory of debugfs, which is mounted if nobody has yet.
fn debugfs() -> PathBuf {
    let dir = Path::new("/sys/kernel/debug");
    if !dir.join("ummunotify").exists() {
        let mounted = Command::new("mount")
            .args(["-t", "debugfs", "debugfs"])
            .arg(dir)
            .status();
        assert!(mounted.unwrap().success());
    }
    dir.to_path_buf()
}

/// Hit once, from `start` for `len` bytes.
fn hit_once(cookie: u64, start: *const u8, len: usize) -> Event {
    Event {
        flags: HINT,
        ..hit_often(cookie, start, len)
    }
}

/// Hit more often; the range is all that is known.
fn hit_often(cookie: u64, start: *const u8, len: usize) -> Event {
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
