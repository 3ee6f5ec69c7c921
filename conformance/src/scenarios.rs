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

use crate::remap::{LEN, Memory, WAYS, Way, advise, all, map, map_at, middle, mmap, mremap, unmap};

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;
const SHM_REMAP: i32 = 0o40000;

/// All of them.
pub fn scenarios() -> impl Iterator<Item = &'static Way> {
    WAYS.iter().chain(MORE_WAYS)
}

/// Those that are only here.
pub const MORE_WAYS: &[Way] = &[
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
        changed: none,
        ..way("mremap_grow_and_move_there_and_back", |memory| {
            let away = map()?;
            mremap(memory, away)?;
            mremap(away, memory)
        })
    },
    way("madvise_dontneed_locked", |memory| {
        supported(advise(memory, 24))
    }),
    way("madvise_free", |memory| advise(memory, libc::MADV_FREE)),
    way("madvise_pageout", |memory| {
        supported(advise(memory, libc::MADV_PAGEOUT))
    }),
    way("madvise_cold", |memory| {
        supported(advise(memory, libc::MADV_COLD))
    }),
    way("process_madvise_dontneed", |memory| {
        // SAFETY: a descriptor of this process.
        let this = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
        let this = Errno::result(this)?;
        let vector = libc::iovec {
            iov_base: memory.as_ptr().cast(),
            iov_len: memory.len(),
        };
        let call = libc::SYS_process_madvise;
        // SAFETY: the memory is the way's own, and there is no reference to it.
        let done =
            unsafe { libc::syscall(call, this, &raw const vector, 1, libc::MADV_DONTNEED, 0) };
        let done = Errno::result(done).map(drop).map_err(io::Error::from);
        // SAFETY: the descriptor made above.
        unsafe { libc::close(this as i32) };
        supported(done)
    }),
    way("mprotect_there_and_back", |memory| {
        protect(memory, libc::PROT_NONE)?;
        protect(memory, libc::PROT_READ | libc::PROT_WRITE)
    }),
    Way {
        changed: middle,
        ..way("guard_pages_there_and_back", |memory| {
            let part = memory.part(middle(memory));
            supported(advise(part, MADV_GUARD_INSTALL))?;
            advise(part, MADV_GUARD_REMOVE)
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
        changed: none,
        free: |memory| {
            unmap(memory);
            // SAFETY: the child made by this way, which waits to be killed.
            unsafe {
                let child = CHILD.load(Ordering::Relaxed);
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, ptr::null_mut(), 0);
            }
        },
        ..way("fork_then_write", |_| {
            // SAFETY: the child calls nothing but the kernel.
            let child = Errno::result(unsafe { libc::fork() })?;
            if child == 0 {
                loop {
                    // SAFETY: waits to be killed.
                    unsafe { libc::pause() };
                }
            }
            CHILD.store(child, Ordering::Relaxed);
            Ok(())
        })
    },
    way("munmap_by_a_child_that_shares_the_memory", |memory| {
        extern "C" fn run(memory: *mut libc::c_void) -> i32 {
            // SAFETY: the memory is the way's own, and there is no reference to it. No more than a call of
            // the kernel's, by number: the child has this thread's errno.
            let done = unsafe { libc::syscall(libc::SYS_munmap, memory, LEN) };
            i32::from(done != 0)
        }
        let mut stack = vec![0_u128; 4096];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = stack.as_mut_ptr_range().end.cast();
        // SAFETY: the stack outlives the child, as CLONE_VFORK suspends this thread until it has gone.
        let child = unsafe { libc::clone(run, top, flags, memory.as_ptr().cast()) };
        Errno::result(child)?;
        // SAFETY: the child made above.
        unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
        map_at(memory, libc::MAP_FIXED_NOREPLACE)
    }),
];

/// The file of the scenario that is being played: there is one at a time.
static FILE: AtomicI32 = AtomicI32::new(-1);

/// The child, likewise.
static CHILD: AtomicI32 = AtomicI32::new(0);

const fn way(name: &'static str, change: fn(Memory) -> io::Result<()>) -> Way {
    Way {
        name,
        make: map,
        change,
        changed: all,
        free: unmap,
    }
}

fn none(_: Memory) -> Range<usize> {
    0..0
}

/// `Unsupported` where the kernel does not know what was asked for.
fn supported(done: io::Result<()>) -> io::Result<()> {
    done.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::EPERM | libc::ENOSYS) => io::ErrorKind::Unsupported.into(),
        _ => error,
    })
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

fn map_file(how: i32) -> io::Result<Memory> {
    // SAFETY: a string literal with its end.
    let fd =
        Errno::result(unsafe { libc::memfd_create(c"regcache-test".as_ptr(), libc::MFD_CLOEXEC) })?;
    FILE.store(fd, Ordering::Relaxed);
    // SAFETY: the descriptor made above.
    Errno::result(unsafe { libc::ftruncate(fd, LEN as libc::off_t) })?;
    mmap(ptr::null_mut(), LEN, how, fd)
}

fn free_file(memory: Memory) {
    unmap(memory);
    // SAFETY: the descriptor of `map_file`, which nobody uses any more.
    unsafe { libc::close(FILE.swap(-1, Ordering::Relaxed)) };
}

/// By the descriptor: the mapping's process need not be the one.
fn truncate_and_extend(_: Memory) -> io::Result<()> {
    let fd = FILE.load(Ordering::Relaxed);
    for len in [0, LEN] {
        // SAFETY: the descriptor of `map_file`.
        Errno::result(unsafe { libc::ftruncate(fd, len as libc::off_t) })?;
    }
    Ok(())
}
