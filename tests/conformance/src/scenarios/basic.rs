//! The basic scenarios: private anonymous memory, the heap, malloc, and a hole in a file.
//!
//! After each of these scenarios, the changed part reads as zeros. The suite of RDMA transfers in
//! the virtual machine relies on these zeros.

use std::io;
use std::ptr;
use std::sync::OnceLock;

use nix::errno::Errno;
use regcache_repro::{
    MUNMAP_THEN_MMAP, Memory, PAGE, SCENARIO_LEN, Scenario, map, map_again, map_at, mmap,
    same_address, scenario, unmap,
};

use super::calls::{advise, middle, mremap};

/// The scenarios after which the changed part reads as zeros.
pub const BASIC: &[Scenario] = &[
    *MUNMAP_THEN_MMAP,
    scenario("raw_munmap_then_mmap", |memory| {
        // SAFETY: the memory is the scenario's own, and no reference to it exists.
        let done = unsafe { libc::syscall(libc::SYS_munmap, memory.as_ptr(), memory.len()) };
        Errno::result(done)?;
        map_again(memory)
    }),
    scenario("munmap_in_another_thread_then_mmap", |memory| {
        let (address, len) = (memory.as_ptr().expose_provenance(), memory.len());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let start = ptr::with_exposed_provenance_mut(address);
                // SAFETY: the memory is the scenario's own, and no reference to it exists.
                Errno::result(unsafe { libc::munmap(start, len) })
            });
        });
        // The stack of the ended thread changed the layout of the address space. So plain `mmap`
        // may return another address. This call requests the old address instead.
        map_at(memory, libc::MAP_FIXED_NOREPLACE)
    }),
    Scenario {
        changed: middle,
        ..scenario("munmap_of_the_middle_then_mmap", |memory| {
            let middle = memory.part(middle(memory));
            unmap(middle);
            map_at(middle, libc::MAP_FIXED_NOREPLACE)
        })
    },
    scenario("map_fixed_over", |memory| map_at(memory, libc::MAP_FIXED)),
    scenario("mremap_away_and_another_back", |memory| {
        // All three mappings are made before the first move. Otherwise the kernel could place a
        // later mapping at the address of a moved mapping.
        let (away, another) = (map(SCENARIO_LEN)?, map(SCENARIO_LEN)?);
        mremap(memory, away)?;
        mremap(another, memory)?;
        unmap(away);
        Ok(())
    }),
    scenario("madvise_dontneed", |memory| {
        advise(memory, libc::MADV_DONTNEED)
    }),
    Scenario {
        changed: middle,
        ..scenario("madvise_dontneed_of_the_middle", |memory| {
            advise(memory.part(middle(memory)), libc::MADV_DONTNEED)
        })
    },
    Scenario {
        make: grow_heap,
        free: |memory| {
            // If other code has grown the heap in the meantime, the heap cannot be shrunk. The
            // scenario ignores this error.
            let _ = shrink_heap(memory);
        },
        ..scenario("brk_shrink_then_grow", |memory| {
            shrink_heap(memory)?;
            let again = grow_heap()?;
            same_address(memory, again)
        })
    },
    Scenario {
        make: || {
            tame_malloc();
            malloc()
        },
        free,
        // The pages may stay, because malloc may keep freed memory instead of unmapping it.
        replaces: false,
        ..scenario("free_then_malloc", |memory| {
            free(memory);
            same_address(memory, malloc()?)
        })
    },
    Scenario {
        make: map_memfd,
        changed: middle,
        ..scenario("hole_punched_in_a_memfd", |memory| {
            advise(memory.part(middle(memory)), libc::MADV_REMOVE)
        })
    },
];

fn map_memfd() -> io::Result<Memory> {
    // SAFETY: the name is a string literal that ends with a null byte.
    let fd = Errno::result(unsafe { libc::memfd_create(c"regcache-test".as_ptr(), 0) })?;
    // SAFETY: the file descriptor was made above, and is open.
    let sized = Errno::result(unsafe { libc::ftruncate(fd, SCENARIO_LEN as libc::off_t) });
    let memory = sized
        .map_err(io::Error::from)
        .and_then(|_| mmap(None, SCENARIO_LEN, libc::MAP_SHARED, fd));
    // SAFETY: the file descriptor was made above, and is not used after this call.
    unsafe { libc::close(fd) };
    memory
}

fn sbrk(by: isize) -> io::Result<usize> {
    // SAFETY: only `grow_heap` and `shrink_heap` call this function. These functions move the end
    // of the heap only over memory of the scenario.
    let before = unsafe { libc::sbrk(by) };
    if before.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    Ok(before.expose_provenance())
}

/// Grows the heap by whole pages. malloc must not grow the heap until the scenario has shrunk the
/// heap again. So this function first calls `tame_malloc`, which provides malloc with enough free
/// memory.
fn grow_heap() -> io::Result<Memory> {
    tame_malloc();
    let end = sbrk(0)?;
    let start = end.next_multiple_of(PAGE);
    sbrk((start - end + SCENARIO_LEN) as isize)?;
    // SAFETY: the memory was made above for this scenario, and nothing refers to it.
    unsafe { Memory::at(start, SCENARIO_LEN) }
}

fn shrink_heap(memory: Memory) -> io::Result<()> {
    let end = sbrk(0)?;
    if end != memory.as_ptr().addr() + memory.len() {
        return Err(io::Error::other(
            "something else has moved the end of the heap",
        ));
    }
    sbrk(-(memory.len() as isize))?;
    Ok(())
}

/// The number of bytes that the scenario allocates by malloc. The number exceeds malloc's mmap
/// threshold, and also the free part of malloc's heap. So malloc makes a separate mapping for these
/// bytes, and unmaps the mapping when the bytes are freed.
const MALLOC_LEN: usize = 1 << 20;

fn malloc() -> io::Result<Memory> {
    // SAFETY: malloc has no preconditions.
    let start = unsafe { libc::malloc(MALLOC_LEN) };
    if start.is_null() {
        return Err(Errno::ENOMEM.into());
    }
    // SAFETY: the memory was made above for this scenario, and nothing refers to it.
    unsafe { Memory::at(start.expose_provenance(), MALLOC_LEN) }
}

fn free(memory: Memory) {
    // SAFETY: `malloc` returned the memory, and no reference to it exists.
    unsafe { libc::free(memory.as_ptr().cast()) }
}

/// Sets malloc's thresholds to fixed values, and provides malloc with free memory on the heap.
fn tame_malloc() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        #[cfg(target_env = "gnu")]
        for (parameter, value) in [
            (libc::M_MMAP_THRESHOLD, 128 << 10),
            (libc::M_TRIM_THRESHOLD, 256 << 20),
            (libc::M_TOP_PAD, 128 << 10),
        ] {
            // SAFETY: mallopt has no preconditions.
            unsafe { libc::mallopt(parameter, value) };
        }
        let spare: Vec<_> = (0..64).map(|_| Vec::<u8>::with_capacity(4096)).collect();
        drop(spare);
    });
}
