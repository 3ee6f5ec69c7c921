//! Scenarios of memory in huge pages, and of memory that becomes a huge page.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use regcache_repro::{Memory, PAGE, SCENARIO_LEN, Scenario, map_at, mmap, scenario, unmap};

use super::calls::{advise, middle, none, supported};

const MADV_COLLAPSE: i32 = 25;

/// A huge page.
const HUGE: usize = 2 << 20;

pub(super) const HUGE_PAGES: &[Scenario] = &[
    Scenario {
        make: || map_huge(true),
        changed: middle,
        free: unmap_huge,
        ..scenario("dontneed_of_a_part_of_a_huge_page", |memory| {
            advise(memory.part(middle(memory)), libc::MADV_DONTNEED)
        })
    },
    Scenario {
        make: || map_huge(true),
        free: unmap_huge,
        ..scenario("munmap_of_a_part_of_a_huge_page", |memory| {
            unmap(memory);
            map_at(memory, libc::MAP_FIXED_NOREPLACE)
        })
    },
    Scenario {
        make: || map_huge(false),
        changed: none,
        free: unmap_huge,
        replaces: false,
        ..scenario("collapse_into_a_huge_page", |_| {
            // SAFETY: within the mapping of the scenario, to which nothing refers.
            let whole = unsafe { Memory::at(BASE.load(Ordering::Relaxed), 2 * HUGE) }?;
            let start = whole.as_ptr().addr().next_multiple_of(HUGE);
            // A request for no bytes shows whether the kernel knows it.
            // SAFETY: within the mapping of the scenario, to which nothing refers.
            supported(advise(unsafe { Memory::at(start, 0) }?, MADV_COLLAPSE))?;
            // The kernel refuses it where a device has pinned a page.
            // SAFETY: within the mapping of the scenario, to which nothing refers.
            let _ = advise(unsafe { Memory::at(start, HUGE) }?, MADV_COLLAPSE);
            Ok(())
        })
    },
    Scenario {
        make: map_hugetlb,
        free: unmap_hugetlb,
        ..scenario("hugetlb_munmap_then_mmap", |memory| {
            // SAFETY: within the mapping of the scenario, to which nothing refers.
            let page = unsafe { Memory::at(memory.as_ptr().addr(), HUGE) }?;
            unmap(page);
            let again = mmap(Some(page), HUGE, HUGETLB | libc::MAP_FIXED_NOREPLACE, -1);
            // No huge page is left.
            again.map(drop).map_err(|error| match error.raw_os_error() {
                Some(libc::ENOMEM) => io::ErrorKind::Unsupported.into(),
                _ => error,
            })
        })
    },
    Scenario {
        make: map_hugetlb,
        free: unmap_hugetlb,
        ..scenario("hugetlb_dontneed", |memory| {
            // SAFETY: within the mapping of the scenario, to which nothing refers.
            let page = unsafe { Memory::at(memory.as_ptr().addr(), HUGE) }?;
            supported(advise(page, libc::MADV_DONTNEED))
        })
    },
];

/// The start of the mapping of the current scenario.
static BASE: AtomicUsize = AtomicUsize::new(0);

/// Maps a part of a transparent huge page, or of memory that is not one yet.
fn map_huge(huge: bool) -> io::Result<Memory> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let whole = mmap(None, 2 * HUGE, flags, -1)?;
    BASE.store(whole.as_ptr().addr(), Ordering::Relaxed);
    let advice = if huge {
        libc::MADV_HUGEPAGE
    } else {
        libc::MADV_NOHUGEPAGE
    };
    let advised = supported(advise(whole, advice));
    // SAFETY: mapped, and the only reference.
    unsafe { whole.bytes() }.fill(1);
    let start = whole.as_ptr().addr().next_multiple_of(HUGE);
    // SAFETY: within the mapping of the scenario, to which nothing refers.
    let mut memory = unsafe { Memory::at(start + 64 * PAGE, SCENARIO_LEN) };
    if advised.is_err() || huge && !is_huge(whole)? {
        memory = Err(io::ErrorKind::Unsupported.into());
    }
    if memory.is_err() {
        unmap(whole);
    } else if !huge {
        // The kernel collapses only memory that allows it.
        supported(advise(whole, libc::MADV_HUGEPAGE))?;
    }
    memory
}

fn unmap_huge(_: Memory) {
    // SAFETY: within the mapping of the scenario, to which nothing refers.
    if let Ok(whole) = unsafe { Memory::at(BASE.load(Ordering::Relaxed), 2 * HUGE) } {
        unmap(whole);
    }
}

/// Whether any part of the memory is a huge page.
fn is_huge(memory: Memory) -> io::Result<bool> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let (start, end) = (
        memory.as_ptr().addr(),
        memory.as_ptr().addr() + memory.len(),
    );
    let mut within = false;
    for line in smaps.lines() {
        if let Some((from, _)) = line.split_once('-')
            && let Ok(from) = usize::from_str_radix(from, 16)
        {
            within = (start..end).contains(&from);
        }
        if within && line.starts_with("AnonHugePages:") && !line.ends_with(" 0 kB") {
            return Ok(true);
        }
    }
    Ok(false)
}

const HUGETLB: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;

/// The number of pages that an administrator reserves.
const RESERVE: &str = "/proc/sys/vm/nr_hugepages";

/// The number of reserved pages that are free.
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// How often to look, every 10 ms, whether a device has released its pages.
const LOOKS: u32 = 100;

/// Maps a part of a hugetlbfs page. As root it reserves two more pages, since the old page is in
/// use until its registration has ended.
fn map_hugetlb() -> io::Result<Memory> {
    // Fragmented memory has no huge page until it is compacted.
    let _ = fs::write("/proc/sys/vm/compact_memory", "1");
    add_to(RESERVE, 2).map_err(|_| io::ErrorKind::Unsupported)?;
    let mapped = if two_are_free() {
        mmap(None, HUGE, HUGETLB, -1)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    };
    match mapped {
        Ok(page) => {
            // SAFETY: within the mapping of the scenario, to which nothing refers.
            unsafe { Memory::at(page.as_ptr().addr(), SCENARIO_LEN) }
        }
        Err(_) => {
            let _ = add_to(RESERVE, -2);
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

/// Waits until two pages are free. With fewer the kernel kills the process that touches the second
/// one.
fn two_are_free() -> bool {
    (0..LOOKS).any(|_| {
        let free = number_in(FREE).is_ok_and(|free| free >= 2);
        if !free {
            thread::sleep(Duration::from_millis(10));
        }
        free
    })
}

fn unmap_hugetlb(memory: Memory) {
    // SAFETY: within the mapping of the scenario, to which nothing refers.
    if let Ok(page) = unsafe { Memory::at(memory.as_ptr().addr(), HUGE) } {
        unmap(page);
    }
    let _ = add_to(RESERVE, -2);
}

fn add_to(path: &str, more: i64) -> io::Result<()> {
    let now = number_in(path)?;
    fs::write(path, (now + more).max(0).to_string())
}

fn number_in(path: &str) -> io::Result<i64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(io::Error::other)
}
