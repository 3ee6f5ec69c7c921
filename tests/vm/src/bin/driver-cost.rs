//! Measures the cost of the driver in instructions. `cargo xtask cost` runs the program in a
//! virtual machine in which the time stamp counter counts instructions.
//!
//! The program measures each operation separately. Each figure is a mean, which leaves out the
//! lowest tenth and the highest tenth of the measurements. A mean, unlike a median, includes the
//! work that the kernel does once for many operations. The highest tenth is left out because it
//! contains timer interrupts.

use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::error::Error;
use std::io;
use std::ptr;

use regcache_test_support::{map_fixed, unmap};
use regcache_tests_vm::{DriverFile, PAGE, Pages};

/// The number of pages that a cycle maps, touches and unmaps.
const MAPPED: usize = 16;

/// The number of operations that are measured for one figure.
const ROUNDS: usize = 2000;

/// The number of ranges whose reports nobody reads.
const UNREAD: u64 = 65_536;

/// The address around which `watch_elsewhere` places its ranges.
const HERE: usize = 0x5000_0000_0000;
/// The distance in bytes between two neighbouring ranges of `watch_elsewhere`.
const STRIDE: usize = 64 * PAGE;

/// The place at which a cycle maps its pages.
#[derive(Clone, Copy)]
enum Placement {
    /// Every cycle maps its pages one page above `HERE`.
    Same,
    /// Successive cycles map their pages alternately above and below `HERE`. Each place is one page
    /// above one of the hundred nearest ranges of `watch_elsewhere` on that side.
    Changing,
}

impl Placement {
    fn address(self, round: usize) -> *mut u8 {
        let steps = match self {
            Self::Same => 0,
            Self::Changing => 1 + round * 37 % 100,
        };
        let distance = steps * STRIDE;
        let start = if round.is_multiple_of(2) {
            HERE + distance
        } else {
            HERE - distance
        };
        ptr::with_exposed_provenance_mut(start + PAGE)
    }
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Returns the number of instructions that the machine has executed so far.
fn now() -> u64 {
    // SAFETY: every x86-64 CPU supports these instructions.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// Runs `operation`. Returns the number of instructions, and the result of `operation`. The number
/// includes the instructions of the measurement itself.
fn count<T>(operation: impl FnOnce() -> T) -> (u64, T) {
    let start = now();
    let result = operation();
    (now() - start, result)
}

/// Returns the mean, which leaves out the lowest tenth and the highest tenth of the figures.
fn mean(mut all: Vec<u64>) -> u64 {
    all.sort_unstable();
    let tenth = all.len() / 10;
    let middle = &all[tenth..all.len() - tenth];
    middle.iter().sum::<u64>() / middle.len() as u64
}

fn map_and_touch(at: *mut u8) -> io::Result<()> {
    map_fixed(at.addr(), MAPPED * PAGE, libc::MAP_FIXED_NOREPLACE)?;
    for page in 0..MAPPED {
        // SAFETY: the page was mapped above.
        unsafe { at.add(page * PAGE).write_volatile(1) };
    }
    Ok(())
}

/// Returns two means. The first is the mean of a whole cycle: `mmap`, touching the pages, and
/// `munmap`. The second is the mean of `munmap` alone.
///
/// If `device` is not `None`, the file watches the mapped range `times` times. The program reads
/// all reports before the next cycle.
fn cycle(place: Placement, device: Option<&DriverFile>, times: u64) -> Result<(u64, u64)> {
    const OURS: u64 = 1 << 40;
    let (mut cycles, mut unmaps) = (Vec::new(), Vec::new());
    for cookie in 0..times {
        if let Some(device) = device {
            device.watch(place.address(0), MAPPED * PAGE, OURS + cookie)?;
        }
    }
    for round in 0..ROUNDS {
        let at = place.address(round);
        let (mapping, done) = count(|| map_and_touch(at));
        done?;
        let (unmapping, done) = count(|| unmap(at, MAPPED * PAGE));
        done?;
        cycles.push(mapping + unmapping);
        unmaps.push(unmapping);
        if let (Some(device), 1..) = (device, times) {
            let (cookies, _) = device.drain()?;
            assert_eq!(cookies.len() as u64, times);
        }
    }
    for cookie in 0..times {
        if let Some(device) = device {
            device.unwatch(OURS + cookie)?;
        }
    }
    Ok((mean(cycles), mean(unmaps)))
}

/// Watches single pages, alternately above and below `HERE`.
fn watch_elsewhere(device: &DriverFile, from: usize, to: usize) -> Result<()> {
    for i in from..to {
        let distance = (i / 2 + 1) * STRIDE;
        let page = if i.is_multiple_of(2) {
            HERE + distance
        } else {
            HERE - distance
        };
        device.watch(ptr::without_provenance(page), PAGE, i as u64)?;
    }
    Ok(())
}

/// Watches the first `pages` pages of a cycle `UNREAD` times. Then invalidates each of these ranges
/// twice and reads no report, which saturates the ranges.
fn watch_without_reading(device: &DriverFile, pages: usize) -> Result<()> {
    let at = Placement::Same.address(0);
    for cookie in 0..UNREAD {
        device.watch(at, pages * PAGE, cookie)?;
    }
    for _ in 0..2 {
        map_and_touch(at)?;
        unmap(at, MAPPED * PAGE)?;
    }
    Ok(())
}

/// Returns the mean number of instructions of a `munmap` of one populated page.
fn unmap_page() -> Result<u64> {
    let at = Placement::Same.address(0);
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        map_fixed(at.addr(), PAGE, libc::MAP_FIXED_NOREPLACE)?;
        // SAFETY: the page was mapped above.
        unsafe { at.write_volatile(1) };
        let (instructions, done) = count(|| unmap(at, PAGE));
        done?;
        all.push(instructions);
    }
    Ok(mean(all))
}

/// Returns the mean number of instructions of registering and unregistering a range.
fn register(device: &DriverFile) -> Result<u64> {
    let at = Placement::Same.address(0);
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        let (instructions, done) = count(|| {
            device.watch(at, PAGE, u64::MAX)?;
            device.unwatch(u64::MAX)
        });
        done?;
        all.push(instructions);
    }
    Ok(mean(all))
}

/// Returns the mean number of instructions of a `read` that delivers `events` events and the event
/// LAST.
fn read(events: usize) -> Result<u64> {
    let device = DriverFile::open()?;
    let memory = Pages::new(events)?;
    for page in 0..events {
        device.watch(memory.page(page), PAGE, page as u64)?;
    }
    let mut all = Vec::new();
    for _ in 0..ROUNDS / 10 {
        memory.advise(0, events, libc::MADV_DONTNEED)?;
        let (instructions, delivered) = count(|| device.read(events + 1));
        assert_eq!(delivered?.len(), events + 1);
        all.push(instructions);
    }
    Ok(mean(all))
}

/// The means of cycles without an open file of the driver. The ratios in the other rows refer to
/// these means.
struct Bare {
    place: Placement,
    cycle: u64,
    unmap: u64,
}

impl Bare {
    fn measure(place: Placement) -> Result<Self> {
        let (cycle, unmap) = cycle(place, None, 0)?;
        let what = match place {
            Placement::Same => "no file open",
            Placement::Changing => "no file open, at a hundred places in turn",
        };
        println!("| {what} | {cycle} | 1 | {unmap} | 1 |");
        Ok(Self {
            place,
            cycle,
            unmap,
        })
    }

    fn row(&self, what: &str, device: Option<&DriverFile>, times: u64) -> Result<()> {
        let (cycle, unmap) = cycle(self.place, device, times)?;
        println!(
            "| {what} | {cycle} | {:.4} | {unmap} | {:.4} |",
            cycle as f64 / self.cycle as f64,
            unmap as f64 / self.unmap as f64
        );
        Ok(())
    }
}

fn main() -> Result<()> {
    // The first cycles are not counted. They warm up page tables and per-CPU lists.
    for place in [Placement::Same, Placement::Changing] {
        cycle(place, None, 0)?;
    }

    println!(
        "| mmap + touch {MAPPED} pages + munmap | instructions | of bare | munmap alone | of bare |"
    );
    println!("|---|---|---|---|---|");
    let same = Bare::measure(Placement::Same)?;
    same.row("no file open, once more", None, 0)?;
    let device = DriverFile::open()?;
    same.row("a file open", Some(&device), 0)?;
    let mut registering = Vec::new();
    let mut watched = 0;
    for ranges in [1, 1_000, 10_000, 100_000] {
        watch_elsewhere(&device, watched, ranges)?;
        watched = ranges;
        let what = format!("{ranges} ranges watched elsewhere");
        same.row(&what, Some(&device), 0)?;
        registering.push((ranges, register(&device)?));
    }
    drop(device);
    let device = DriverFile::open()?;
    for times in [1, 16] {
        let what = format!("the range itself watched, {times} times");
        same.row(&what, Some(&device), times)?;
    }
    drop(device);

    let device = DriverFile::open()?;
    watch_without_reading(&device, MAPPED)?;
    let what = format!("the range itself watched, {UNREAD} times, and not read");
    same.row(&what, Some(&device), 0)?;
    drop(device);

    let changing = Bare::measure(Placement::Changing)?;
    let device = DriverFile::open()?;
    watch_elsewhere(&device, 0, 10_000)?;
    changing.row("the same, 10000 ranges watched elsewhere", Some(&device), 0)?;
    drop(device);

    println!("\n| munmap of one page | instructions | of bare |\n|---|---|---|");
    let bare = unmap_page()?;
    println!("| no file open | {bare} | 1 |");
    let device = DriverFile::open()?;
    watch_without_reading(&device, 1)?;
    let unread = unmap_page()?;
    let ratio = unread as f64 / bare as f64;
    println!("| watched, {UNREAD} times, and not read | {unread} | {ratio:.4} |");
    drop(device);

    println!("\n| register + unregister | instructions | of 1 range |\n|---|---|---|");
    for &(ranges, instructions) in &registering {
        let ratio = instructions as f64 / registering[0].1 as f64;
        println!("| among {ranges} ranges | {instructions} | {ratio:.4} |");
    }
    println!("\n| read | instructions | an event |\n|---|---|---|");
    for events in [1, 1_000] {
        let instructions = read(events)?;
        println!(
            "| of {events} events and LAST | {instructions} | {} |",
            instructions / (events as u64 + 1)
        );
    }
    Ok(())
}
