//! [`Device`]: a device that reads memory by cached registrations, and [`reuse`], which tests it.

use std::error::Error as StdError;
use std::ops::Range;

use crate::scenario::{Prepared, Scenario};

/// Any error of a scenario, which is only displayed.
pub type Result<T> = std::result::Result<T, Box<dyn StdError + Send + Sync>>;

/// How often a lookup may return an uncached registration before the scenario counts as uncached.
const MAX_ATTEMPTS: u32 = 8;

const OLD: u8 = 0xA5;
const NEW: u8 = 0x3C;

/// A device with a cache of its registrations.
pub trait Device {
    /// Returns the name of the device.
    fn name(&self) -> &'static str;

    /// Returns the name of the monitor.
    fn monitor_name(&self) -> &'static str;

    /// Looks `bytes` up, and lets the device read them by the registration. Returns the bytes that
    /// it read, and whether the cache retains the registration.
    ///
    /// # Errors
    ///
    /// The errors of the device.
    fn read_out(&self, bytes: &[u8]) -> Result<(Vec<u8>, bool)>;

    /// Flushes the cache.
    ///
    /// # Errors
    ///
    /// The errors of the cache.
    fn flush(&self) -> Result<()>;
}

/// The result of a transfer after the memory has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device read the pages that are mapped.
    Fresh,
    /// It did so because the cache had not retained the first registration.
    Uncached,
    /// The device read old pages.
    Stale,
}

/// Plays one scenario: the device reads the memory, the memory changes, the device reads it again.
///
/// # Errors
///
/// The errors of the scenario and of the device; an error if the bytes that arrive belong neither
/// to the old pages nor to the new ones.
pub fn reuse(device: &impl Device, scenario: &Scenario) -> Result<Outcome> {
    let (mut old, mut kept, mut after) = (Vec::new(), false, false);
    let first = |prepared: &Prepared| -> Result<()> {
        let before;
        (before, after) = prepared.written();
        if before {
            fill(prepared, OLD);
        }
        // A monitor may still suspect the addresses because of an earlier change, so several
        // lookups are tried.
        kept = false;
        for _ in 0..MAX_ATTEMPTS {
            if !kept {
                (old, kept) = read(device, prepared)?;
            }
        }
        if old == contents(prepared) {
            Ok(())
        } else {
            Err("wrong bytes arrived before anything had changed".into())
        }
    };
    // SAFETY: no reference to the memory is left.
    let prepared = unsafe { scenario.changed_after(first) }?;
    if after {
        fill(&prepared, NEW);
    }
    let (arrived, _) = read(device, &prepared)?;
    // The contents are read only now, since reading brings pages that nobody has touched.
    judge(
        &arrived,
        &old,
        &contents(&prepared),
        prepared.changed(),
        kept,
    )
}

fn fill(prepared: &Prepared, byte: u8) {
    // SAFETY: mapped, and the only reference.
    unsafe { prepared.memory().bytes() }.fill(byte);
}

fn contents(prepared: &Prepared) -> Vec<u8> {
    // SAFETY: mapped, and the only reference.
    unsafe { prepared.memory().bytes() }.to_vec()
}

/// Lets the device read the memory, which this function does not touch.
fn read(device: &impl Device, prepared: &Prepared) -> Result<(Vec<u8>, bool)> {
    // SAFETY: mapped, and the only reference.
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
    // The old pages are mapped nowhere, or the kernel alone still has them.
    if (0..arrived.len()).all(is_either) {
        return Ok(Outcome::Stale);
    }
    Err("the bytes that arrived belong neither to the old pages nor to the new ones".into())
}
