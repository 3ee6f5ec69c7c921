//! Scenarios that call `mremap`, `madvise` or `mprotect`. Some of these scenarios change no page.

use std::io;
use std::ptr;

use regcache_repro::{Memory, SCENARIO_LEN, Scenario, Written, map, map_at, scenario, unmap};

use super::calls::{advise, middle, moved, mremap, none, protect, supported};

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

pub(super) const MAPPINGS: &[Scenario] = &[
    scenario("mremap_onto", |memory| mremap(map(SCENARIO_LEN)?, memory)),
    scenario("mremap_dontunmap", |memory| {
        let to = map(SCENARIO_LEN)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        moved(memory, memory.len(), flags, to.as_ptr())?;
        unmap(to);
        Ok(())
    }),
    Scenario {
        changed: |memory| memory.len() / 2..memory.len(),
        ..scenario("mremap_shrink_then_grow", |memory| {
            let half = memory.part(0..memory.len() / 2);
            moved(memory, half.len(), 0, ptr::null_mut())?;
            moved(half, memory.len(), 0, ptr::null_mut())
        })
    },
    Scenario {
        make: || {
            let both = map(2 * SCENARIO_LEN)?;
            unmap(both.part(SCENARIO_LEN..2 * SCENARIO_LEN));
            Ok(both.part(0..SCENARIO_LEN))
        },
        changed: none,
        replaces: false,
        ..scenario("mremap_grow_in_place", |memory| {
            moved(memory, 2 * SCENARIO_LEN, 0, ptr::null_mut())?;
            moved(
                // SAFETY: the scenario has mapped these addresses, and nothing refers to this
                // memory.
                unsafe { Memory::at(memory.as_ptr().addr(), 2 * SCENARIO_LEN) }?,
                SCENARIO_LEN,
                0,
                ptr::null_mut(),
            )
        })
    },
    Scenario {
        // The second half of the mapping prevents the first half from growing in place. So `mremap`
        // has to move the first half.
        make: || Ok(map(2 * SCENARIO_LEN)?.part(0..SCENARIO_LEN)),
        free: |memory| {
            // SAFETY: the scenario has mapped these addresses, and nothing refers to this memory.
            if let Ok(both) = unsafe { Memory::at(memory.as_ptr().addr(), 2 * SCENARIO_LEN) } {
                unmap(both);
            }
        },
        ..scenario("mremap_grow_elsewhere_then_mmap", |memory| {
            let start = memory.as_ptr().cast();
            // SAFETY: the memory is the scenario's own, and no reference to it exists.
            let to = unsafe {
                libc::mremap(start, SCENARIO_LEN, 2 * SCENARIO_LEN, libc::MREMAP_MAYMOVE)
            };
            if to == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the scenario has mapped these addresses, and nothing refers to this memory.
            unmap(unsafe { Memory::at(to.expose_provenance(), 2 * SCENARIO_LEN) }?);
            map_at(memory, libc::MAP_FIXED_NOREPLACE)
        })
    },
    Scenario {
        changed: none,
        replaces: false,
        ..scenario("mremap_away_and_back", |memory| {
            let away = map(SCENARIO_LEN)?;
            mremap(memory, away)?;
            mremap(away, memory)
        })
    },
    scenario("madvise_dontneed_locked", |memory| {
        supported(advise(memory, 24))
    }),
    Scenario {
        replaces: false,
        ..scenario("madvise_free", |memory| advise(memory, libc::MADV_FREE))
    },
    Scenario {
        replaces: false,
        ..scenario("madvise_pageout", |memory| {
            supported(advise(memory, libc::MADV_PAGEOUT))
        })
    },
    Scenario {
        replaces: false,
        ..scenario("madvise_cold", |memory| {
            supported(advise(memory, libc::MADV_COLD))
        })
    },
    Scenario {
        replaces: false,
        ..scenario("mprotect_there_and_back", |memory| {
            protect(memory, libc::PROT_NONE)?;
            protect(memory, libc::PROT_READ | libc::PROT_WRITE)
        })
    },
    Scenario {
        changed: middle,
        ..scenario("guard_pages_there_and_back", |memory| {
            let part = memory.part(middle(memory));
            supported(advise(part, MADV_GUARD_INSTALL))?;
            advise(part, MADV_GUARD_REMOVE)
        })
    },
    Scenario {
        changed: middle,
        written: Written::BeforeTheFirst,
        ..scenario("guard_pages_there_and_back_not_written", |memory| {
            let part = memory.part(middle(memory));
            supported(advise(part, MADV_GUARD_INSTALL))?;
            advise(part, MADV_GUARD_REMOVE)
        })
    },
    Scenario {
        written: Written::BeforeTheFirst,
        ..scenario("madvise_dontneed_not_written", |memory| {
            advise(memory, libc::MADV_DONTNEED)
        })
    },
];
