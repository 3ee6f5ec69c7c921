//! A race for an address. Thread A unmaps a page. Thread B maps a new page at the same address and
//! looks the page up.
//!
//! Thread A does not signal to thread B that the page is unmapped. Thread B calls `mmap` with
//! `MAP_FIXED_NOREPLACE` in a loop until the kernel grants the address. The old registration is
//! stale from the moment at which the kernel grants the address. So the race detects a monitor that
//! reports the unmap only after that moment.

use std::hint;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;

use regcache::monitor::Monitor;

use regcache_repro::{Device, PAGE, Result, Uring};
use regcache_test_support::{map_fixed, unmap};

const OLD: u8 = 0xA5;
const NEW: u8 = 0x3C;

/// The number of polls after which a waiting thread yields the CPU.
const SPINS: u32 = 200;

/// Fills the page with `byte`, and lets the device read the page. Returns true if the device read
/// only bytes with this value.
fn reads<M: Monitor>(device: &Uring<M>, page: *mut u8, byte: u8) -> Result<bool> {
    // SAFETY: this thread mapped the page, and this is the only reference to it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(page, PAGE) };
    bytes.fill(byte);
    let (arrived, _) = device.read_out(bytes)?;
    Ok(arrived.iter().all(|&it| it == byte))
}

/// Waits until `place` holds a value other than `value`, and returns the new value.
fn wait_while(place: &AtomicUsize, value: usize) -> usize {
    for round in 0_u32.. {
        let now = place.load(Ordering::Acquire);
        if now != value {
            return now;
        }
        if round % SPINS == SPINS - 1 {
            thread::yield_now();
        }
        hint::spin_loop();
    }
    value
}

/// Runs at most `rounds` rounds. Returns two numbers: the number of stale rounds, and the number of
/// rounds that were run. In a stale round, the device read the old page.
///
/// After each round, the function calls `goes_on` with the number of stale rounds so far. The
/// function stops if `goes_on` returns [`ControlFlow::Break`].
///
/// # Errors
///
/// The errors of the kernel or the device.
pub fn thread_reuse<M: Monitor>(
    device: &Uring<M>,
    rounds: u32,
    goes_on: impl Fn(u32) -> ControlFlow<()>,
) -> Result<(u32, u32)> {
    /// The value of `address` while no round is running.
    const NONE: usize = 0;
    /// The value of `address` when the race is over.
    const END: usize = 1;
    // `address` is the address that thread A unmaps in the current round. Thread B resets `address`
    // to `NONE` at the end of the round.
    let address = AtomicUsize::new(NONE);
    let stale = AtomicU32::new(0);
    thread::scope(|scope| {
        let b = scope.spawn(|| -> Result<()> {
            loop {
                let wanted = wait_while(&address, NONE);
                if wanted == END {
                    return Ok(());
                }
                let page = loop {
                    match map_fixed(wanted, PAGE, libc::MAP_FIXED_NOREPLACE) {
                        Ok(page) => break page,
                        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                        Err(error) => {
                            address.store(END, Ordering::Release);
                            return Err(error.into());
                        }
                    }
                };
                let read = reads(device, page, NEW);
                if !matches!(read, Ok(true)) {
                    stale.fetch_add(1, Ordering::Relaxed);
                }
                unmap(page, PAGE)?;
                let next = if read.is_ok() { NONE } else { END };
                address.store(next, Ordering::Release);
                read?;
            }
        });
        let mut played = 0;
        let mut a = || -> Result<()> {
            while played < rounds {
                // The address of the page is far from the addresses that the kernel chooses by
                // itself. So the kernel gives this address to no other thread.
                let place = 0x5000_0000_0000 + (played as usize % 1024) * 2 * PAGE;
                let page = map_fixed(place, PAGE, libc::MAP_FIXED_NOREPLACE)?;
                if !reads(device, page, OLD)? {
                    return Err(
                        "the device read an old page before thread A had unmapped the address"
                            .into(),
                    );
                }
                let wanted = page.expose_provenance();
                address.store(wanted, Ordering::Release);
                unmap(page, PAGE)?;
                played += 1;
                let ended = wait_while(&address, wanted) == END;
                if ended || goes_on(stale.load(Ordering::Relaxed)).is_break() {
                    return Ok(());
                }
            }
            Ok(())
        };
        let done = a();
        address.store(END, Ordering::Release);
        b.join().map_err(|_| "thread B panicked")??;
        done?;
        Ok((stale.load(Ordering::Relaxed), played))
    })
}
