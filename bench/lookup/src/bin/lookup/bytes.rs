//! Measures the memory of a cache: of an empty one, and of each entry.

use std::fs;
use std::hint::black_box;
use std::sync::Arc;

use regcache_bench_lookup::figure::{Figure, Threshold};
use regcache_bench_lookup::{Addresses, CLibrary, Subject, Unwatched, loops, peer};

use crate::Result;
use crate::pair::room;
use crate::report::Report;

/// The number of caches whose memory is measured together.
const CACHES: usize = 16;

const ENTRIES: usize = 1_000_000;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    if report.wants("bytes/empty") {
        let before = resident()?;
        let caches = (0..CACHES).map(|_| Unwatched::new(room(1)));
        let caches = black_box(caches.collect::<std::io::Result<Vec<_>>>()?);
        let bytes = (resident()? - before) / CACHES as f64;
        drop(caches);
        let figure = Figure::new("bytes/empty", bytes, "bytes");
        report.add(figure.threshold(Threshold::Value(102_400.0)));
    }
    if report.wants("bytes/entry/rust") {
        let addresses = Arc::new(Addresses::new(ENTRIES, 4096)?);
        let bytes = of_entries(&Unwatched::new(room(ENTRIES))?, &addresses)?;
        let mut figure = Figure::new("bytes/entry/rust", bytes, "bytes");
        if let Some(peer) = peer(room(ENTRIES))?.filter(|_| cfg!(feature = "ucx")) {
            let ucx = of_entries(&peer, &addresses)?;
            figure.ucx = Some(ucx);
            figure.ratio_ucx = Some(bytes / ucx);
        }
        report.add(figure.threshold(Threshold::Value(160.0)));
    }
    if report.wants("bytes/entry/c")
        && let Some(library) = CLibrary::new(room(ENTRIES))?
    {
        let addresses = Addresses::new(ENTRIES, 4096)?;
        let figure = Figure::new("bytes/entry/c", of_entries(&library, &addresses)?, "bytes");
        report.add(figure.threshold(Threshold::Value(256.0)));
    }
    Ok(())
}

/// Returns the number of bytes that a cache takes for each range when it registers all ranges.
fn of_entries(subject: &impl Subject, addresses: &Addresses) -> Result<f64> {
    let before = resident()?;
    loops::fill(subject, addresses);
    Ok((resident()? - before) / addresses.count() as f64)
}

/// Returns the bytes of this process that are in memory, without what malloc could give back.
fn resident() -> Result<f64> {
    // SAFETY: the call has no preconditions.
    unsafe { libc::malloc_trim(0) };
    let status = fs::read_to_string("/proc/self/status")?;
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes: f64 = kilobytes.ok_or("/proc/self/status has no VmRSS")?.parse()?;
    Ok(kilobytes * 1024.0)
}
