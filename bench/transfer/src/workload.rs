//! What is measured: [`Workload`], and by whom: [`Strategy`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// An RDMA write of the buffer; with io_uring, `WRITE_FIXED`.
    Write,
    /// An RDMA read into the buffer; with io_uring, `READ_FIXED`.
    Read,
    /// A send of the buffer.
    Send,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Write, Self::Read, Self::Send];

    /// True if the buffer is where the bytes come from.
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

/// How a buffer comes to be registered when a transfer wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Strategy {
    /// Registered before each transfer, deregistered after it.
    PerTransfer,
    /// Looked up in a cache.
    Regcache,
    /// Registered before the first transfer, for good: what no program that frees memory can do.
    PreRegistered,
    /// Copied through memory that is registered for good: what many do instead.
    Copy,
    /// Registered before the first transfer, without pinning anything: the device pages in what it finds mapped.
    Odp,
    /// Looked up in a cache that is told of nothing: fast, and wrong.
    Naive,
}

impl Strategy {
    /// What every device can do, the one that others are compared with first.
    pub const ALL: [Self; 4] = [
        Self::PreRegistered,
        Self::Regcache,
        Self::PerTransfer,
        Self::Copy,
    ];

    /// As reports call it.
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

/// One kind of work, which variants do by rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Which transfer.
    pub op: Op,
    /// Bytes of each.
    pub size: usize,
    /// Buffers in round, in random order; each thread has as many.
    pub set: usize,
    /// Transfers under way at a time, of each thread.
    pub depth: usize,
    /// Threads, each with a connection of its own.
    pub threads: usize,
    /// Before every so manieth transfer its buffer is unmapped, and mapped anew at the same address. 0: never.
    pub unmap_every: u64,
    /// The other end of each transfer is compared, byte by byte, with what should be there.
    pub checked: bool,
}

impl Workload {
    /// One buffer, used again and again.
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

    /// With so many buffers.
    #[must_use]
    pub fn set(self, set: usize) -> Self {
        Self { set, ..self }
    }

    /// With so many transfers under way.
    #[must_use]
    pub fn depth(self, depth: usize) -> Self {
        Self { depth, ..self }
    }

    /// With so many threads.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// With unmaps, and every payload checked.
    #[must_use]
    pub fn unmap_every(self, transfers: u64) -> Self {
        Self {
            unmap_every: transfers,
            checked: true,
            ..self
        }
    }

    /// True if one transfer at a time uses one buffer that stays.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::plain(self.op, self.size)
    }

    /// The transfer and what is unusual about it, divided by slashes: `write/set=100`.
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

/// Bytes as people write them: `64 B`, `4 KiB`, `16 MiB`.
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
