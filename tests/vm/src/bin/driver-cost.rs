//! What the driver costs, in instructions of the machine: `cargo xtask cost` runs it in a virtual machine
//! whose time stamp counter counts them.
//!
//! Operations are measured one by one. Each figure is the mean without the lowest and the highest tenth: what the
//! kernel does once in a while for many operations counts, the timer's interrupts do not.

use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::error::Error;
use std::io;
use std::ptr;

use nix::errno::Errno;
use regcache_tests_vm::{DriverFile, PAGE, Pages};

/// Pages that a cycle maps, touches and unmaps.
const MAPPED: usize = 16;

/// Operations behind each figure.
const ROUNDS: usize = 2000;

/// Ranges that are watched elsewhere lie on both sides of it, `STRIDE` bytes apart.
const HERE: usize = 0x5000_0000_0000;
const STRIDE: usize = 64 * PAGE;

/// Where a cycle maps its pages.
#[derive(Clone, Copy)]
enum Place {
    /// Behind `HERE`, each time.
    Same,
    /// Behind one of the hundred ranges on each side of it, another each time.
    Changing,
}

impl Place {
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

/// Instructions executed so far.
fn now() -> u64 {
    // SAFETY: every machine that this program is built for has them.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// Instructions that `operation` takes, the measuring included.
fn count<T>(operation: impl FnOnce() -> T) -> (u64, T) {
    let start = now();
    let result = operation();
    (now() - start, result)
}

/// The mean of the middle four fifths.
fn mean(mut all: Vec<u64>) -> u64 {
    all.sort_unstable();
    let tenth = all.len() / 10;
    let middle = &all[tenth..all.len() - tenth];
    middle.iter().sum::<u64>() / middle.len() as u64
}

fn map_and_touch(at: *mut u8) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: where nothing is.
    let start = unsafe { libc::mmap(at.cast(), MAPPED * PAGE, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for page in 0..MAPPED {
        // SAFETY: just mapped.
        unsafe { at.add(page * PAGE).write_volatile(1) };
    }
    Ok(())
}

fn unmap(at: *mut u8) -> nix::Result<()> {
    // SAFETY: mapped by `map_and_touch`, and nobody has references to it.
    Errno::result(unsafe { libc::munmap(at.cast(), MAPPED * PAGE) }).map(drop)
}

/// Means of mmap + touch + munmap and of the munmap alone, with what is mapped watched so many times, and each
/// report read before the next cycle.
fn cycle(place: Place, device: Option<&DriverFile>, times: u64) -> Result<(u64, u64)> {
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
        let (unmapping, done) = count(|| unmap(at));
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

/// Watches so many single pages on both sides of where the cycles are, in turn.
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

/// Mean of registering a range and unregistering it.
fn register(device: &DriverFile) -> Result<u64> {
    let at = Place::Same.address(0);
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

/// Mean of one read that delivers so many events and LAST.
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

/// Cycles with no file open, to compare with.
struct Bare {
    place: Place,
    cycle: u64,
    unmap: u64,
}

impl Bare {
    fn measure(place: Place) -> Result<Self> {
        let (cycle, unmap) = cycle(place, None, 0)?;
        let what = match place {
            Place::Same => "no file open",
            Place::Changing => "no file open, at a hundred places in turn",
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
    // Enough for the sizes below.
    std::fs::write("/sys/module/ummunotify/parameters/max_regions", "200000")?;
    // Page tables and per-CPU lists are warm after it.
    for place in [Place::Same, Place::Changing] {
        cycle(place, None, 0)?;
    }

    println!(
        "| mmap + touch {MAPPED} pages + munmap | instructions | of bare | munmap alone | of bare |"
    );
    println!("|---|---|---|---|---|");
    let same = Bare::measure(Place::Same)?;
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

    let changing = Bare::measure(Place::Changing)?;
    let device = DriverFile::open()?;
    watch_elsewhere(&device, 0, 10_000)?;
    changing.row("the same, 10000 ranges watched elsewhere", Some(&device), 0)?;
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
