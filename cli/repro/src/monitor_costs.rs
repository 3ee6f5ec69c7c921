//! Measures the costs of a hit, a miss, a registration and `munmap` with several monitors. Samples
//! of the monitors alternate, so that a disturbance affects all monitors alike.

use std::hint::black_box;
use std::io;
use std::ptr;
use std::time::Instant;

use memmap2::MmapMut;
use regcache::monitor::Monitor;
use regcache::{Registrar, VaRange};

use crate::device::Result;
use crate::{PAGE, Uring};

/// A cache whose costs this module measures.
pub trait Costed {
    /// Looks `bytes` up in the cache.
    ///
    /// # Errors
    ///
    /// Returns the errors of the cache.
    fn look_up(&self, bytes: &[u8]) -> Result<()>;

    /// Flushes the cache.
    ///
    /// # Errors
    ///
    /// Returns the errors of the cache.
    fn flush_cache(&self) -> Result<()>;

    /// Registers and deregisters `bytes` without the cache.
    ///
    /// # Errors
    ///
    /// Returns the errors of the device.
    fn register(&self, bytes: &[u8]) -> Result<()>;
}

impl<M: Monitor> Costed for Uring<M> {
    fn look_up(&self, bytes: &[u8]) -> Result<()> {
        black_box(self.cache().get(bytes.as_ptr(), bytes.len(), ())?);
        Ok(())
    }

    fn flush_cache(&self) -> Result<()> {
        self.cache().flush()?;
        Ok(())
    }

    fn register(&self, bytes: &[u8]) -> Result<()> {
        let registrar = self.cache().registrar();
        let range = VaRange::new(bytes.as_ptr(), bytes.len())?;
        Ok(registrar.deregister(registrar.register(range, ())?)?)
    }
}

type Sample = fn(&dyn Costed, &[u8]) -> Result<f64>;

/// The rows of the table. A row has a name, the number of pages of the memory, and a function that
/// measures one sample in nanoseconds.
const ROWS: [(&str, usize, Sample); 6] = [
    ("hit of 64 KiB", 16, |cache, bytes| {
        cache.look_up(bytes)?;
        nanoseconds(16, || cache.look_up(bytes))
    }),
    ("hit of 1 MiB", 256, |cache, bytes| {
        cache.look_up(bytes)?;
        nanoseconds(16, || cache.look_up(bytes))
    }),
    (
        "registration and deregistration of 64 KiB",
        16,
        |cache, bytes| nanoseconds(1, || cache.register(bytes)),
    ),
    ("flush and miss of 64 KiB", 16, |cache, bytes| {
        nanoseconds(1, || {
            cache.flush_cache()?;
            cache.look_up(bytes)
        })
    }),
    ("munmap of a page", 0, |_, _| unmap(|_| Ok(()))),
    ("munmap of a cached page", 0, |cache, _| {
        unmap(|page| cache.look_up(page))
    }),
];

/// Prints a table with a column for each cache. Each cell has the median of `times` samples, and in
/// brackets the ratio of this median to the first column's median.
///
/// # Errors
///
/// Returns the errors of the cache and of the device.
pub fn monitor_costs(columns: &[(&str, &dyn Costed)], times: usize) -> Result<()> {
    let names: Vec<_> = columns.iter().map(|it| it.0).collect();
    println!(
        "| ns, median of {times} alternating samples | {} |",
        names.join(" | ")
    );
    println!("|---|{}", "---|".repeat(columns.len()));
    for (what, pages, sample) in ROWS {
        let mut memory = MmapMut::map_anon(pages.max(1) * PAGE)?;
        memory.fill(1);
        let mut samples = vec![Vec::new(); columns.len()];
        for _ in 0..times {
            for ((_, cache), samples) in columns.iter().zip(&mut samples) {
                samples.push(sample(*cache, &memory)?);
                if columns.len() > 1 {
                    // Only one userfaultfd can watch a range at a time. So the flush ends the watch
                    // of this cache before the next cache watches the same memory.
                    cache.flush_cache()?;
                }
            }
        }
        let medians: Vec<_> = samples.into_iter().map(median).collect();
        let cell = |ns: &f64| format!("{ns:.0} ({:.2})", ns / medians[0]);
        let cells: Vec<_> = medians.iter().map(cell).collect();
        println!("| {what} | {} |", cells.join(" | "));
    }
    Ok(())
}

/// Returns the mean time of `batch` consecutive calls, in nanoseconds per call.
fn nanoseconds(batch: u32, what: impl Fn() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    for _ in 0..batch {
        what()?;
    }
    Ok(started.elapsed().as_nanos() as f64 / f64::from(batch))
}

/// Maps a page, calls `before` with the page, and unmaps the page. Returns the time of `munmap` in
/// nanoseconds.
fn unmap(before: impl Fn(&[u8]) -> Result<()>) -> Result<f64> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: the kernel chooses the address, so the call replaces no mapping.
    let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the page was mapped above, and the reference ends before the page is unmapped.
    before(unsafe { std::slice::from_raw_parts(page.cast(), PAGE) })?;
    let started = Instant::now();
    // SAFETY: the page was mapped above, and no reference to it is left.
    unsafe { libc::munmap(page, PAGE) };
    Ok(started.elapsed().as_nanos() as f64)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
