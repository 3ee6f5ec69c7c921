//! Projects the resources that many ranks on one node need. A rank is one process of a parallel
//! program.
//!
//! [`table`] makes the projection. Its inputs are the memory of one cache, which [`measure`]
//! measures here, and the cost of the driver, which `cargo xtask cost` counts.

use std::fs;
use std::io;

use memmap2::MmapMut;
use nix::unistd::{SysconfVar, sysconf};
use regcache::{Cache, Registrar, VaRange};
use regcache_test_support::{NeverReports, PAGE};

use crate::Error;
use crate::error::Trying;
use crate::table::{Rows, number};

/// The bytes of memory that the driver uses for an open file, from
/// `kernel/Documentation/ummunotify.rst`.
const FILE_BYTES: f64 = 8192.0;

/// The bytes of memory that the driver uses for a watched range, from
/// `kernel/Documentation/ummunotify.rst`.
const RANGE_BYTES: f64 = 128.0;

/// The instructions of the driver for one event: 586 to report the event, and 2610 to unwatch and
/// watch one of 10 000 ranges. `cargo xtask cost` counts both.
const EVENT_INSTRUCTIONS: f64 = 586.0 + 2610.0;

/// The assumed number of instructions that one CPU executes in a second. The number gives only the
/// order of magnitude.
const INSTRUCTIONS: f64 = 3e9;

/// The work of each rank.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Rank {
    /// Assume that the cache of each rank retains this many registrations
    #[arg(long, default_value_t = 1000)]
    pub entries: u32,
    /// Assume that the registrations of each rank pin this many MiB
    #[arg(long, default_value_t = 64)]
    pub mib: u64,
    /// Assume that each rank frees and registers again this many buffers in a second
    #[arg(long, default_value_t = 100)]
    pub frees: u32,
    /// Assume that registering and deregistering a buffer takes this many microseconds; `transfer
    /// cost` measures this time
    #[arg(long, default_value_t = 30.0)]
    pub registering: f64,
}

/// The resident memory of a cache, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// The memory of an empty cache.
    pub empty: f64,
    /// The memory of each registration, without the registrar's memory.
    pub entry: f64,
}

/// A registrar that does nothing.
struct RegistersNothing;

// SAFETY: there is no device, so nothing accesses memory through a registration.
unsafe impl Registrar for RegistersNothing {
    type Access = ();
    type Registration = ();

    fn register(&self, _: VaRange, (): ()) -> io::Result<()> {
        Ok(())
    }

    fn deregister(&self, (): ()) -> io::Result<()> {
        Ok(())
    }
}

/// Builds and fills caches, and measures by how much the resident memory of this process grows.
///
/// # Errors
///
/// Returns the errors of the cache and of the kernel.
pub fn measure(rank: Rank) -> Result<Footprint, Error> {
    const CACHES: usize = 8;
    let memory = MmapMut::map_anon(rank.entries as usize * PAGE).trying("map memory")?;
    let bare = resident()?;
    let mut caches = Vec::new();
    for _ in 0..CACHES {
        let cache = Cache::builder(RegistersNothing).monitor(NeverReports);
        let cache = cache.max_bytes(usize::MAX).build();
        caches.push(cache.trying("build a cache")?);
    }
    let empty = resident()?;
    for cache in &caches {
        for page in 0..rank.entries as usize {
            drop(cache.get(memory.as_ptr().wrapping_add(page * PAGE), PAGE, ())?);
        }
    }
    let full = resident()?;
    Ok(Footprint {
        empty: (empty - bare) / CACHES as f64,
        entry: (full - empty) / CACHES as f64 / f64::from(rank.entries),
    })
}

fn resident() -> Result<f64, Error> {
    let statm = fs::read_to_string("/proc/self/statm").trying("read /proc/self/statm")?;
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<f64>().ok());
    Ok(pages.unwrap_or(f64::NAN) * PAGE as f64)
}

/// Returns the size of this machine's memory, in bytes.
fn machine() -> f64 {
    let value = |which| sysconf(which).ok().flatten().unwrap_or(0) as f64;
    value(SysconfVar::_PHYS_PAGES) * value(SysconfVar::PAGE_SIZE)
}

/// Returns the table for 1 to 1 000 ranks.
#[must_use]
pub fn table(rank: Rank, footprint: Footprint) -> Rows {
    let head = [
        "ranks",
        "pinned",
        "share of this machine's memory",
        "ranges watched",
        "driver's memory",
        "caches' memory",
        "registrations of the adapter",
        "events/s",
        "CPUs for watching",
        "CPUs for registering",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for ranks in [1.0, 10.0, 100.0, 250.0, 1000.0] {
        let entries = ranks * f64::from(rank.entries);
        let pinned = ranks * (rank.mib << 20) as f64;
        let events = ranks * f64::from(rank.frees);
        let driver = ranks * FILE_BYTES + entries * RANGE_BYTES;
        let caches = ranks * footprint.empty + entries * footprint.entry;
        rows.push(vec![
            ranks.to_string(),
            size(pinned),
            format!("{:.1} %", 100.0 * pinned / machine()),
            entries.to_string(),
            size(driver),
            size(caches),
            entries.to_string(),
            events.to_string(),
            number(events * EVENT_INSTRUCTIONS / INSTRUCTIONS),
            number(events * rank.registering / 1e6),
        ]);
    }
    rows
}

fn size(bytes: f64) -> String {
    match bytes {
        b if b < 1024.0 * 1024.0 => format!("{:.0} KiB", b / 1024.0),
        b if b < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", b / 1024.0 / 1024.0),
        b => format!("{:.1} GiB", b / 1024.0 / 1024.0 / 1024.0),
    }
}
