//! Chooses the number of operations in a sample.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::Variant;

/// Returns how many operations of `ns` nanoseconds each fit into `time`. The result is clamped to
/// `bounds`.
#[must_use]
pub fn operations_in(time: Duration, ns: f64, bounds: RangeInclusive<u64>) -> u64 {
    let fit = (time.as_nanos() as f64 / ns.max(0.1)) as u64;
    fit.clamp(*bounds.start(), *bounds.end())
}

/// Returns the number of operations that fill `time`. The first trial sample also warms up the
/// variant.
pub(crate) fn calibrate(time: Duration, run: &mut Variant<'_>) -> usize {
    let mut operations = 100;
    for _ in 0..4 {
        operations = operations_in(time, run(operations).ns, 16..=10_000_000) as usize;
    }
    operations
}
