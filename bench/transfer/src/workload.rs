//! [`Workload`]: one kind of transfers to measure. [`Strategy`]: the way in which the buffers of a
//! workload are registered.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The operation of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// An RDMA write of the buffer; with io_uring, `WRITE_FIXED`
    Write,
    /// An RDMA read into the buffer; with io_uring, `READ_FIXED`
    Read,
    /// A send of the buffer
    Send,
}

impl Op {
    /// All operations.
    pub const ALL: [Self; 3] = [Self::Write, Self::Read, Self::Send];

    /// Returns true if the buffer is the source of the bytes.
    #[must_use]
    pub fn is_from_buffer(self) -> bool {
        self != Self::Read
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Send => "send",
        })
    }
}

/// The way in which the buffers of a workload are registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Strategy {
    /// Register before each transfer and deregister after it
    #[value(name = "register-per-transfer")]
    PerTransfer,
    /// Look the buffer up in a cache
    Regcache,
    /// Register all buffers before the first transfer, for programs that never free a buffer
    PreRegistered,
    /// Copy through memory that stays registered
    Copy,
    /// Register before the first transfer without pinning; the device pages memory in on demand
    Odp,
    /// Look the buffer up in a cache without a monitor, which moves stale bytes after an unmap
    Naive,
}

impl Strategy {
    /// The strategies that each cell without unmaps compares. The first strategy is the base of the
    /// ratios.
    pub const ALL: [Self; 4] = [
        Self::PreRegistered,
        Self::Regcache,
        Self::PerTransfer,
        Self::Copy,
    ];

    /// Returns the name of the strategy in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PerTransfer => "register-per-transfer",
            Self::Regcache => "regcache",
            Self::PreRegistered => "pre-registered",
            Self::Copy => "copy",
            Self::Odp => "odp",
            Self::Naive => "naive",
        }
    }
}

/// One kind of transfers to measure. Variants with different strategies do this work in interleaved
/// rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// The operation.
    pub op: Op,
    /// The number of bytes in each transfer.
    pub size: usize,
    /// The number of buffers in each thread. The thread uses its buffers in random order.
    pub set: usize,
    /// The number of transfers that each thread keeps in flight.
    pub depth: usize,
    /// The number of threads. Each thread has a separate connection.
    pub threads: usize,
    /// The interval N between unmaps: the buffer is unmapped and mapped again before every Nth
    /// transfer. If N is 0, no buffer is unmapped.
    pub unmap_every: u64,
    /// If true, the bytes at the other end are checked after each transfer.
    pub checked: bool,
}

impl Workload {
    /// Makes a workload with one buffer, which every transfer uses.
    #[must_use]
    pub fn plain(op: Op, size: usize) -> Self {
        Self {
            op,
            size,
            set: 1,
            depth: 1,
            threads: 1,
            unmap_every: 0,
            checked: false,
        }
    }

    /// Sets the number of buffers in each thread.
    #[must_use]
    pub fn set(self, set: usize) -> Self {
        Self { set, ..self }
    }

    /// Sets the number of transfers that each thread keeps in flight.
    #[must_use]
    pub fn depth(self, depth: usize) -> Self {
        Self { depth, ..self }
    }

    /// Sets the number of threads.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Sets the interval between unmaps: the buffer is unmapped before every `transfers`th
    /// transfer. Also checks every payload.
    #[must_use]
    pub fn unmap_every(self, transfers: u64) -> Self {
        Self {
            unmap_every: transfers,
            checked: true,
            ..self
        }
    }

    /// Returns true if the workload is a plain workload: one thread, one transfer in flight, and
    /// one buffer, which is never unmapped and never checked.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::plain(self.op, self.size)
    }

    /// Returns the operation, and each setting that differs from the plain workload. Slashes
    /// separate them, as in `write/set=100`.
    #[must_use]
    pub fn name(&self) -> String {
        let mut name = self.op.to_string();
        for (what, value, usual) in [
            ("set", self.set, 1),
            ("depth", self.depth, 1),
            ("threads", self.threads, 1),
        ] {
            if value != usual {
                name += &format!("/{what}={value}");
            }
        }
        if self.unmap_every > 0 {
            name += &format!("/unmaps={}%", 100.0 / self.unmap_every as f64);
        }
        name
    }
}

/// Formats a size for people: `64 B`, `4 KiB`, `16 MiB`.
#[must_use]
pub fn bytes(n: usize) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..0x10_0000 => format!("{} KiB", n / 1024),
        _ => format!("{} MiB", n >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_what_is_unusual() {
        let plain = Workload::plain(Op::Write, 64);
        assert_eq!(plain.name(), "write");
        assert!(plain.is_plain());
        let other = plain.set(100).depth(16).unmap_every(200);
        assert_eq!(other.name(), "write/set=100/depth=16/unmaps=0.5%");
        assert!(other.checked && !other.is_plain());
    }
}
