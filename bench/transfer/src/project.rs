//! Projects the cost of registering to links of several rates. Computes the share of a transfer's
//! time that registering takes, and the share of the link's rate that one CPU reaches.
//!
//! The formulas use these variables:
//!
//! - `R` is the time to register and deregister a buffer, in seconds.
//! - `s` is the size of the buffer, in bytes.
//! - `B` is the rate of the link, in bits per second.
//! - `L` is the latency: the rest of a transfer's time. The default is 1 us.
//!
//! A transfer that waits for its registration takes `R + L + 8 s / B`. The share that registering
//! takes is
//!
//! ```text
//! R / (R + L + 8 s / B)
//! ```
//!
//! With enough transfers in flight, the latency `L` does not reduce the rate. But a CPU that
//! registers one buffer after another moves at most `s` bytes in the time `R`. So the share of the
//! link's rate that one CPU reaches is at most
//!
//! ```text
//! min(1, (8 s / B) / R)
//! ```
//!
//! For a cache with the driver, `R` is the time of a hit.

use crate::results::{Cost, Run};
use crate::table::Rows;
use crate::{bytes, table};

/// The rates of the links in the tables, in Gb/s.
pub const LINKS: [f64; 6] = [25.0, 50.0, 100.0, 200.0, 400.0, 800.0];

/// The default value of `L`, in nanoseconds.
pub const LATENCY_NS: f64 = 1000.0;

/// Returns the time that `size` bytes take on a link of this rate, in nanoseconds.
#[must_use]
pub fn wire_ns(size: usize, gbps: f64) -> f64 {
    8.0 * size as f64 / gbps
}

/// Returns the share of a transfer's time that registering takes.
#[must_use]
pub fn share(registering_ns: f64, size: usize, gbps: f64, latency_ns: f64) -> f64 {
    registering_ns / (registering_ns + latency_ns + wire_ns(size, gbps))
}

/// Returns the largest share of the link's rate that one CPU can reach if it registers each buffer.
#[must_use]
pub fn filled(registering_ns: f64, size: usize, gbps: f64) -> f64 {
    (wire_ns(size, gbps) / registering_ns).min(1.0)
}

/// Returns a table of shares of a transfer's time. Each cell has the share that registering per
/// transfer takes, and in brackets the share that a hit takes.
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

/// Returns a table of shares of the link's rate. Each cell has the share that one CPU reaches if it
/// registers per transfer.
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
        // 12 500 bytes are 100 000 bits, which take a microsecond at 100 Gb/s.
        assert_eq!(wire_ns(12_500, 100.0), 1000.0);
        assert_eq!(share(2000.0, 12_500, 100.0, 1000.0), 0.5);
        assert_eq!(filled(4000.0, 12_500, 100.0), 0.25);
        assert_eq!(filled(500.0, 12_500, 100.0), 1.0);
    }
}
