//! Scenarios with memory that lies in huge pages, or that the kernel collapses into a huge page.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use regcache_repro::{Memory, PAGE, SCENARIO_LEN, Scenario, map_at, mmap, scenario, unmap};

use super::calls::{advise, middle, none, supported};

const MADV_COLLAPSE: i32 = 25;

/// The size of a huge page in bytes.
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
            // SAFETY: the address range lies within the scenario's mapping, and nothing refers to
            // this memory.
            let whole = unsafe { Memory::at(BASE.load(Ordering::Relaxed), 2 * HUGE) }?;
            let start = whole.as_ptr().addr().next_multiple_of(HUGE);
            // A request for 0 bytes fails only if the kernel does not support `MADV_COLLAPSE`.
            // SAFETY: the address range lies within the scenario's mapping, and nothing refers to
            // this memory.
            supported(advise(unsafe { Memory::at(start, 0) }?, MADV_COLLAPSE))?;
            // The kernel refuses to collapse the range if a device has pinned a page in it. So the
            // scenario ignores the error.
            // SAFETY: the address range lies within the scenario's mapping, and nothing refers to
            // this memory.
            let _ = advise(unsafe { Memory::at(start, HUGE) }?, MADV_COLLAPSE);
            Ok(())
        })
    },
    Scenario {
        make: map_hugetlb,
        free: unmap_hugetlb,
        ..scenario("hugetlb_munmap_then_mmap", |memory| {
            // SAFETY: the address range lies within the scenario's mapping, and nothing refers to
            // this memory.
            let page = unsafe { Memory::at(memory.as_ptr().addr(), HUGE) }?;
            unmap(page);
            let again = mmap(Some(page), HUGE, HUGETLB | libc::MAP_FIXED_NOREPLACE, -1);
            // `ENOMEM` means that no huge page is free, so the scenario is not supported.
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
            // SAFETY: the address range lies within the scenario's mapping, and nothing refers to
            // this memory.
            let page = unsafe { Memory::at(memory.as_ptr().addr(), HUGE) }?;
            supported(advise(page, libc::MADV_DONTNEED))
        })
    },
];

/// The start address of the current scenario's mapping.
static BASE: AtomicUsize = AtomicUsize::new(0);

/// Maps twice the size of a huge page, and returns a small part of this memory. If `huge` is true,
/// the part lies in a transparent huge page. If `huge` is false, the part lies in 4 KiB pages that
/// the kernel can collapse later.
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
    // SAFETY: the memory is mapped, and this is the only reference to it.
    unsafe { whole.bytes() }.fill(1);
    let start = whole.as_ptr().addr().next_multiple_of(HUGE);
    // SAFETY: the address range lies within the scenario's mapping, and nothing refers to this
    // memory.
    let mut memory = unsafe { Memory::at(start + 64 * PAGE, SCENARIO_LEN) };
    if advised.is_err() || huge && !is_huge(whole)? {
        memory = Err(io::ErrorKind::Unsupported.into());
    }
    if memory.is_err() {
        unmap(whole);
    } else if !huge {
        // The kernel collapses only memory for which `MADV_HUGEPAGE` was set.
        supported(advise(whole, libc::MADV_HUGEPAGE))?;
    }
    memory
}

fn unmap_huge(_: Memory) {
    // SAFETY: the address range lies within the scenario's mapping, and nothing refers to this
    // memory.
    if let Ok(whole) = unsafe { Memory::at(BASE.load(Ordering::Relaxed), 2 * HUGE) } {
        unmap(whole);
    }
}

/// Returns true if any part of the memory is a huge page.
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

/// The file that contains the number of reserved huge pages.
const RESERVE: &str = "/proc/sys/vm/nr_hugepages";

/// The file that contains the number of free reserved huge pages.
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// The maximum number of times that `two_are_free` reads the number of free pages. The function
/// waits 10 ms after each attempt, because a device may release its pages late.
const LOOKS: u32 = 100;

/// Maps a hugetlbfs page, and returns a small part of the page. The function first reserves two
/// more huge pages. Only root can reserve them. One page would not suffice, because the
/// registration keeps the old page in use while the scenario maps a new page.
fn map_hugetlb() -> io::Result<Memory> {
    // In fragmented memory the kernel finds no huge page. So memory is compacted first.
    let _ = fs::write("/proc/sys/vm/compact_memory", "1");
    add_to(RESERVE, 2).map_err(|_| io::ErrorKind::Unsupported)?;
    let mapped = if two_are_free() {
        mmap(None, HUGE, HUGETLB, -1)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    };
    match mapped {
        Ok(page) => {
            // SAFETY: the address range lies within the scenario's mapping, and nothing refers to
            // this memory.
            unsafe { Memory::at(page.as_ptr().addr(), SCENARIO_LEN) }
        }
        Err(_) => {
            let _ = add_to(RESERVE, -2);
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

/// Waits until two huge pages are free. Returns false if fewer are free after all attempts. Without
/// a second free page, the kernel would kill the process when the process touches the new page.
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
    // SAFETY: the address range lies within the scenario's mapping, and nothing refers to this
    // memory.
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
