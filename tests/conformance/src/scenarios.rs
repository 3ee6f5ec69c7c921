//! More ways in which memory changes, and some in which it does not: what a monitor is tried with beyond
//! [`WAYS`].
//!
//! The memory is readable and writable again afterwards, at the same addresses, but unlike after one of
//! `WAYS` it need not read as zeros. Those that take a newer kernel, or something set up, fail with
//! `Unsupported`.

use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;

use crate::huge::HUGE_WAYS;
use crate::others::BY_OTHERS;
use crate::remap::{
    LEN, Memory, WAYS, Way, Written, advise, map, map_at, middle, mmap, mremap, unmap, way,
};

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;
const SHM_REMAP: i32 = 0o40000;

/// All of them.
pub fn scenarios() -> impl Iterator<Item = &'static Way> {
    WAYS.iter()
        .chain(MORE_WAYS)
        .chain(HUGE_WAYS)
        .chain(BY_OTHERS)
}

const MORE_WAYS: &[Way] = &[
    way("mremap_onto", |memory| mremap(map()?, memory)),
    way("mremap_dontunmap", |memory| {
        let to = map()?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        moved(memory, memory.len(), flags, to.as_ptr())?;
        unmap(to);
        Ok(())
    }),
    Way {
        changed: |memory| memory.len() / 2..memory.len(),
        ..way("mremap_shrink_then_grow", |memory| {
            let half = memory.part(0..memory.len() / 2);
            moved(memory, half.len(), 0, ptr::null_mut())?;
            moved(half, memory.len(), 0, ptr::null_mut())
        })
    },
    Way {
        make: || {
            let both = mmap_private(2 * LEN)?;
            unmap(both.part(LEN..2 * LEN));
            Ok(both.part(0..LEN))
        },
        changed: none,
        replaces: false,
        ..way("mremap_grow_in_place", |memory| {
            moved(memory, 2 * LEN, 0, ptr::null_mut())?;
            moved(
                Memory::at(memory.as_ptr().addr(), 2 * LEN)?,
                LEN,
                0,
                ptr::null_mut(),
            )
        })
    },
    Way {
        // The other half is in the way.
        make: || Ok(mmap_private(2 * LEN)?.part(0..LEN)),
        free: |memory| {
            if let Ok(both) = Memory::at(memory.as_ptr().addr(), 2 * LEN) {
                unmap(both);
            }
        },
        ..way("mremap_grow_elsewhere_then_mmap", |memory| {
            let start = memory.as_ptr().cast();
            // SAFETY: the memory is the way's own.
            let to = unsafe { libc::mremap(start, LEN, 2 * LEN, libc::MREMAP_MAYMOVE) };
            if to == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            unmap(Memory::at(to.expose_provenance(), 2 * LEN)?);
            map_at(memory, libc::MAP_FIXED_NOREPLACE)
        })
    },
    Way {
        changed: none,
        replaces: false,
        ..way("mremap_away_and_back", |memory| {
            let away = map()?;
            mremap(memory, away)?;
            mremap(away, memory)
        })
    },
    way("madvise_dontneed_locked", |memory| {
        supported(advise(memory, 24))
    }),
    Way {
        replaces: false,
        ..way("madvise_free", |memory| advise(memory, libc::MADV_FREE))
    },
    Way {
        replaces: false,
        ..way("madvise_pageout", |memory| {
            supported(advise(memory, libc::MADV_PAGEOUT))
        })
    },
    Way {
        replaces: false,
        ..way("madvise_cold", |memory| {
            supported(advise(memory, libc::MADV_COLD))
        })
    },
    Way {
        replaces: false,
        ..way("mprotect_there_and_back", |memory| {
            protect(memory, libc::PROT_NONE)?;
            protect(memory, libc::PROT_READ | libc::PROT_WRITE)
        })
    },
    Way {
        changed: middle,
        ..way("guard_pages_there_and_back", |memory| {
            let part = memory.part(middle(memory));
            supported(advise(part, MADV_GUARD_INSTALL))?;
            advise(part, MADV_GUARD_REMOVE)
        })
    },
    Way {
        changed: middle,
        written: Written::BeforeTheFirst,
        ..way("guard_pages_there_and_back_not_written", |memory| {
            let part = memory.part(middle(memory));
            supported(advise(part, MADV_GUARD_INSTALL))?;
            advise(part, MADV_GUARD_REMOVE)
        })
    },
    Way {
        written: Written::BeforeTheFirst,
        ..way("madvise_dontneed_not_written", |memory| {
            advise(memory, libc::MADV_DONTNEED)
        })
    },
    way("shmat_over_it_then_mmap", |memory| {
        attach(memory, SHM_REMAP)?;
        detach(memory)?;
        map_at(memory, libc::MAP_FIXED_NOREPLACE)
    }),
    Way {
        make: || {
            let memory = map()?;
            attach(memory, SHM_REMAP)?;
            Ok(memory)
        },
        free: |memory| {
            let _ = detach(memory);
        },
        ..way("shmdt_then_shmat_of_another", |memory| {
            detach(memory)?;
            attach(memory, 0)
        })
    },
    Way {
        make: || map_file(libc::MAP_SHARED),
        free: free_file,
        ..way("ftruncate_of_a_memfd", truncate_and_extend)
    },
    Way {
        make: || map_file(libc::MAP_PRIVATE),
        free: free_file,
        ..way("ftruncate_under_a_private_mapping", truncate_and_extend)
    },
    Way {
        make: || map_file(libc::MAP_SHARED),
        changed: middle,
        free: free_file,
        ..way("fallocate_hole_in_a_memfd", |memory| {
            let part = middle(memory);
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let (at, len) = (part.start as libc::off_t, part.len() as libc::off_t);
            // SAFETY: the descriptor of `map_file`.
            Errno::result(unsafe { libc::fallocate(FILE.load(Ordering::Relaxed), mode, at, len) })?;
            Ok(())
        })
    },
    Way {
        make: || {
            mmap(
                ptr::null_mut(),
                LEN,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
            )
        },
        ..way("madvise_remove_of_shared_memory", |memory| {
            advise(memory, libc::MADV_REMOVE)
        })
    },
    Way {
        make: || map_file(libc::MAP_PRIVATE),
        free: free_file,
        ..way("dontneed_of_a_private_mapping", |memory| {
            advise(memory, libc::MADV_DONTNEED)
        })
    },
    Way {
        make: || map_file(libc::MAP_PRIVATE),
        changed: middle,
        free: free_file,
        written: Written::ByTheChange,
        // A registration has pages of its own made, or the first write.
        replaces: false,
        ..way("first_write_to_a_private_mapping", |memory| {
            // SAFETY: mapped, and the only reference.
            let bytes = unsafe { memory.bytes() };
            bytes[middle(memory)].fill(2);
            Ok(())
        })
    },
];

/// The file of the scenario that is being played: there is one at a time.
static FILE: AtomicI32 = AtomicI32::new(-1);

pub(crate) fn none(_: Memory) -> Range<usize> {
    0..0
}

/// `Unsupported` where the kernel does not know what was asked for.
pub(crate) fn supported(done: io::Result<()>) -> io::Result<()> {
    done.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::EPERM | libc::ENOSYS) => io::ErrorKind::Unsupported.into(),
        _ => error,
    })
}

fn mmap_private(len: usize) -> io::Result<Memory> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    mmap(ptr::null_mut(), len, flags, -1)
}

fn moved(memory: Memory, len: usize, flags: i32, to: *mut u8) -> io::Result<()> {
    let start = memory.as_ptr();
    // SAFETY: the memory is the way's own, and so is what is at `to`.
    let moved = unsafe { libc::mremap(start.cast(), memory.len(), len, flags, to) };
    if moved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn protect(memory: Memory, protection: i32) -> io::Result<()> {
    // SAFETY: the memory is the way's own, and there is no reference to it.
    Errno::result(unsafe { libc::mprotect(memory.as_ptr().cast(), memory.len(), protection) })?;
    Ok(())
}

/// A new segment, which ends with its attachment.
fn attach(memory: Memory, flags: i32) -> io::Result<()> {
    // SAFETY: the memory is the way's own, and there is no reference to it.
    unsafe {
        let id = Errno::result(libc::shmget(
            libc::IPC_PRIVATE,
            memory.len(),
            libc::IPC_CREAT | 0o600,
        ))?;
        let at = libc::shmat(id, memory.as_ptr().cast(), flags);
        let attached = if at.cast() == memory.as_ptr() {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        };
        libc::shmctl(id, libc::IPC_RMID, ptr::null_mut());
        attached
    }
}

fn detach(memory: Memory) -> io::Result<()> {
    // SAFETY: attached by `attach`, and there is no reference to it.
    Errno::result(unsafe { libc::shmdt(memory.as_ptr().cast()) })?;
    Ok(())
}

pub(crate) fn map_file(how: i32) -> io::Result<Memory> {
    // SAFETY: a string literal with its end.
    let fd =
        Errno::result(unsafe { libc::memfd_create(c"regcache-test".as_ptr(), libc::MFD_CLOEXEC) })?;
    FILE.store(fd, Ordering::Relaxed);
    // SAFETY: the descriptor made above.
    Errno::result(unsafe { libc::ftruncate(fd, LEN as libc::off_t) })?;
    mmap(ptr::null_mut(), LEN, how, fd)
}

pub(crate) fn free_file(memory: Memory) {
    unmap(memory);
    // SAFETY: the descriptor of `map_file`, which nobody uses any more.
    unsafe { libc::close(FILE.swap(-1, Ordering::Relaxed)) };
}

/// By the descriptor: the mapping's process need not be the one.
pub(crate) fn truncate_and_extend(_: Memory) -> io::Result<()> {
    let fd = FILE.load(Ordering::Relaxed);
    for len in [0, LEN] {
        // SAFETY: the descriptor of `map_file`.
        Errno::result(unsafe { libc::ftruncate(fd, len as libc::off_t) })?;
    }
    Ok(())
}
