//! What registering would eat of a real link: a projection, from what it costs and a link's rate.
//!
//! With `R` the time to register and deregister a buffer of `s` bytes, `B` the link's rate in bits a second and `L` the
//! time that a transfer takes besides its bytes (1 us if not told otherwise), a transfer that waits for its registration
//! takes `R + L + 8 s / B`, of which registering is the share
//!
//! ```text
//! R / (R + L + 8 s / B)
//! ```
//!
//! With enough transfers under way latency is hidden, but a processor that registers one buffer after another still
//! passes no more than `s` bytes in each `R`: the rate is at most
//!
//! ```text
//! min(1, (8 s / B) / R)
//! ```
//!
//! of the link's. With a cache `R` is the time of a hit with the driver.

use crate::results::{Cost, Run};
use crate::table::Rows;
use crate::{bytes, table};

/// Rates of links that are sold, in Gb/s.
pub const LINKS: [f64; 6] = [25.0, 50.0, 100.0, 200.0, 400.0, 800.0];

/// What a transfer takes besides its bytes, in nanoseconds, if it is not told.
pub const LATENCY_NS: f64 = 1000.0;

/// Nanoseconds that `size` bytes take on a link of so many Gb/s.
#[must_use]
pub fn wire_ns(size: usize, gbps: f64) -> f64 {
    8.0 * size as f64 / gbps
}

/// The share of a transfer's time that registering takes.
#[must_use]
pub fn share(registering_ns: f64, size: usize, gbps: f64, latency_ns: f64) -> f64 {
    registering_ns / (registering_ns + latency_ns + wire_ns(size, gbps))
}

/// The share of the link's rate that one processor which registers each buffer can fill.
#[must_use]
pub fn filled(registering_ns: f64, size: usize, gbps: f64) -> f64 {
    (wire_ns(size, gbps) / registering_ns).min(1.0)
}

/// The table: what registering each time takes of a transfer, and in brackets what a hit takes with the driver.
#[must_use]
pub fn shares(run: &Run, latency_ns: f64) -> Rows {
    rows(run, |cost, gbps| {
        let of = |ns| 100.0 * share(ns, cost.size, gbps, latency_ns);
        format!(
            "{:.1} % ({:.2} %)",
            of(cost.both_ns()),
            of(cost.word_hit_ns)
        )
    })
}

/// The table: which share of the link one processor can fill that registers each time.
#[must_use]
pub fn fills(run: &Run) -> Rows {
    rows(run, |cost, gbps| {
        format!("{:.1} %", 100.0 * filled(cost.both_ns(), cost.size, gbps))
    })
}

fn rows(run: &Run, cell: impl Fn(&Cost, f64) -> String) -> Rows {
    let mut head = vec!["size".to_owned(), "register + deregister, us".to_owned()];
    head.extend(LINKS.map(|gbps| format!("{gbps} Gb/s")));
    let mut rows = vec![head];
    for cost in &run.costs {
        let mut row = vec![bytes(cost.size), table::number(cost.both_ns() / 1e3)];
        row.extend(LINKS.map(|gbps| cell(cost, gbps)));
        rows.push(row);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formulas_at_round_numbers() {
        // 12 500 bytes at 100 Gb/s: a microsecond.
        assert_eq!(wire_ns(12_500, 100.0), 1000.0);
        assert_eq!(share(2000.0, 12_500, 100.0, 1000.0), 0.5);
        assert_eq!(filled(4000.0, 12_500, 100.0), 0.25);
        assert_eq!(filled(500.0, 12_500, 100.0), 1.0);
    }
}
