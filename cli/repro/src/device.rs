//! Defines the trait [`Device`] and the function [`reuse`]. A device reads memory through the
//! registrations of a cache. [`reuse`] tests whether a device reads old pages in a scenario.

use std::error::Error as StdError;
use std::ops::Range;

use crate::scenario::{Prepared, Scenario};

/// The result type of this crate. An error may have any type, because callers only display the
/// error.
pub type Result<T> = std::result::Result<T, Box<dyn StdError + Send + Sync>>;

/// The largest number of lookups before the change. [`reuse`] repeats the lookup until the cache
/// retains the registration.
const MAX_ATTEMPTS: u32 = 8;

const OLD: u8 = 0xA5;
const NEW: u8 = 0x3C;

/// A device with a cache of its registrations.
pub trait Device {
    /// Returns the name of the device.
    fn name(&self) -> &'static str;

    /// Returns the name of the cache's monitor.
    fn monitor_name(&self) -> &'static str;

    /// Looks `bytes` up, and lets the device read `bytes` through the registration. Returns the
    /// bytes that the device read, and whether the cache retains the registration.
    ///
    /// # Errors
    ///
    /// Returns the errors of the device.
    fn read_out(&self, bytes: &[u8]) -> Result<(Vec<u8>, bool)>;

    /// Flushes the cache.
    ///
    /// # Errors
    ///
    /// Returns the errors of the cache.
    fn flush(&self) -> Result<()>;
}

/// The result of a scenario: the pages that the device read after the memory had changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device read the pages that are mapped now, through the cached registration or through a
    /// new one.
    Fresh,
    /// The device read the pages that are mapped now. But the cache had not retained the
    /// registration of the first transfer. So no lookup could return this registration after the
    /// change.
    Uncached,
    /// The device read the old pages, so the registration was stale.
    Stale,
}

/// Runs one scenario: the device reads the memory, the memory changes, and the device reads the
/// memory again.
///
/// # Errors
///
/// Returns the errors of the scenario and of the device. Also returns an error if the device reads
/// bytes that belong neither to the old pages nor to the new pages.
pub fn reuse(device: &impl Device, scenario: &Scenario) -> Result<Outcome> {
    let (mut old, mut kept, mut after) = (Vec::new(), false, false);
    let first = |prepared: &Prepared| -> Result<()> {
        let before;
        (before, after) = prepared.written();
        if before {
            fill(prepared, OLD);
        }
        // After some changes, the userfaultfd monitor suspects a range for a while, and the cache
        // then retains no registration of the range. An earlier scenario may have made this range
        // suspect. So the lookup is repeated.
        kept = false;
        for _ in 0..MAX_ATTEMPTS {
            if !kept {
                (old, kept) = read(device, prepared)?;
            }
        }
        if old == contents(prepared) {
            Ok(())
        } else {
            Err("the device read wrong bytes before the memory had changed".into())
        }
    };
    // SAFETY: `first` leaves no reference to the memory.
    let prepared = unsafe { scenario.changed_after(first) }?;
    if after {
        fill(&prepared, NEW);
    }
    let (arrived, _) = read(device, &prepared)?;
    // The CPU reads the contents only after the transfer. An earlier read by the CPU would populate
    // pages that the scenario leaves unpopulated.
    judge(
        &arrived,
        &old,
        &contents(&prepared),
        prepared.changed(),
        kept,
    )
}

fn fill(prepared: &Prepared, byte: u8) {
    // SAFETY: the memory is mapped, and this is the only reference to it.
    unsafe { prepared.memory().bytes() }.fill(byte);
}

fn contents(prepared: &Prepared) -> Vec<u8> {
    // SAFETY: the memory is mapped, and this is the only reference to it.
    unsafe { prepared.memory().bytes() }.to_vec()
}

/// Lets the device read the memory. The CPU does not access the memory during this call.
fn read(device: &impl Device, prepared: &Prepared) -> Result<(Vec<u8>, bool)> {
    // SAFETY: the memory is mapped, and this is the only reference to it.
    device.read_out(unsafe { prepared.memory().bytes() })
}

fn judge(
    arrived: &[u8],
    old: &[u8],
    new: &[u8],
    changed: Range<usize>,
    kept: bool,
) -> Result<Outcome> {
    if arrived == new {
        return Ok(if kept {
            Outcome::Fresh
        } else {
            Outcome::Uncached
        });
    }
    let is_either = |i: usize| {
        let is_new = arrived[i] == new[i];
        is_new || changed.contains(&i) && arrived[i] == old[i]
    };
    // The bytes differ from the new bytes. So if each byte is either old or new, the device read at
    // least one old page.
    if (0..arrived.len()).all(is_either) {
        return Ok(Outcome::Stale);
    }
    Err("the device read bytes that belong neither to the old pages nor to the new pages".into())
}
