//! [`Device`]: something that reads memory by cached registrations.

use std::error::Error as StdError;
use std::ops::Range;

use crate::scenario::{Prepared, Scenario};

/// Any of the errors that can come up; the suite only shows them.
pub type Result<T> = std::result::Result<T, Box<dyn StdError + Send + Sync>>;

/// How often a lookup may not be kept.
const MAX_ATTEMPTS: u32 = 8;

const OLD: u8 = 0xA5;
const NEW: u8 = 0x3C;

/// A device with a cache of its registrations.
pub trait Device {
    /// The device's name.
    fn name(&self) -> &'static str;

    /// The monitor's.
    fn monitor_name(&self) -> &'static str;

    /// Looks `bytes` up, and has the device read them by the registration. Returns what it read, and
    /// whether the registration is one that was kept.
    ///
    /// # Errors
    ///
    /// The device's.
    fn read_out(&self, bytes: &[u8]) -> Result<(Vec<u8>, bool)>;

    /// Gives up all registrations.
    ///
    /// # Errors
    ///
    /// The cache's.
    fn flush(&self) -> Result<()>;
}

/// What came of a transfer after the memory had changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device read the pages that are mapped.
    Fresh,
    /// It did, because the memory's first registration had not been kept.
    Uncached,
    /// The device read old pages.
    Stale,
}

/// The four-line bug, for one way of changing memory: the device reads it, the memory changes, the
/// device reads it again.
///
/// # Errors
///
/// If something fails on the way, or the bytes that arrive are neither those of the old pages nor those
/// of the new.
pub fn reuse(device: &impl Device, scenario: &Scenario) -> Result<Outcome> {
    let (mut old, mut kept, mut after) = (Vec::new(), false, false);
    let first = |prepared: &Prepared| -> Result<()> {
        let before;
        (before, after) = prepared.written();
        if before {
            fill(prepared, OLD);
        }
        // What was there before may be under suspicion still: several times.
        kept = false;
        for _ in 0..MAX_ATTEMPTS {
            if !kept {
                (old, kept) = read(device, prepared)?;
            }
        }
        if old == contents(prepared) {
            Ok(())
        } else {
            Err("bytes were lost before anything had changed".into())
        }
    };
    // SAFETY: no reference to the memory is left.
    let prepared = unsafe { scenario.changed_after(first) }?;
    if after {
        fill(&prepared, NEW);
    }
    let (arrived, _) = read(device, &prepared)?;
    // Looked at only now: that brings pages that nobody has touched.
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

/// Has the device read the memory, which nobody touches for that.
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
    // Old pages that nobody has, or nobody but the kernel.
    if (0..arrived.len()).all(is_either) {
        return Ok(Outcome::Stale);
    }
    Err("the bytes that arrived are of neither the old pages nor the new".into())
}
