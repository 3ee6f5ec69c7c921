//! Scenarios with memory that is backed by a file or by a System V shared memory segment.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use regcache_repro::{Memory, SCENARIO_LEN, Scenario, Written, map, map_at, mmap, scenario, unmap};

use super::calls::{advise, middle};

const SHM_REMAP: i32 = 0o40000;

pub(super) const FILES: &[Scenario] = &[
    scenario("shmat_over_it_then_mmap", |memory| {
        attach(memory, SHM_REMAP)?;
        detach(memory)?;
        map_at(memory, libc::MAP_FIXED_NOREPLACE)
    }),
    Scenario {
        make: || {
            let memory = map(SCENARIO_LEN)?;
            attach(memory, SHM_REMAP)?;
            Ok(memory)
        },
        free: |memory| {
            let _ = detach(memory);
        },
        ..scenario("shmdt_then_shmat_of_another", |memory| {
            detach(memory)?;
            attach(memory, 0)
        })
    },
    Scenario {
        make: || map_file(libc::MAP_SHARED),
        free: free_file,
        ..scenario("ftruncate_of_a_memfd", truncate_and_extend)
    },
    Scenario {
        make: || map_file(libc::MAP_PRIVATE),
        free: free_file,
        ..scenario("ftruncate_under_a_private_mapping", truncate_and_extend)
    },
    Scenario {
        make: || map_file(libc::MAP_SHARED),
        changed: middle,
        free: free_file,
        ..scenario("fallocate_hole_in_a_memfd", |memory| {
            let part = middle(memory);
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let (at, len) = (part.start as libc::off_t, part.len() as libc::off_t);
            // SAFETY: the file descriptor is that of `map_file`, and is open.
            Errno::result(unsafe { libc::fallocate(FILE.load(Ordering::Relaxed), mode, at, len) })?;
            Ok(())
        })
    },
    Scenario {
        make: || {
            mmap(
                None,
                SCENARIO_LEN,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
            )
        },
        ..scenario("madvise_remove_of_shared_memory", |memory| {
            advise(memory, libc::MADV_REMOVE)
        })
    },
    Scenario {
        make: || map_file(libc::MAP_PRIVATE),
        free: free_file,
        ..scenario("dontneed_of_a_private_mapping", |memory| {
            advise(memory, libc::MADV_DONTNEED)
        })
    },
    Scenario {
        make: || map_file(libc::MAP_PRIVATE),
        changed: middle,
        free: free_file,
        written: Written::ByTheChange,
        // Either registering or the first write copies the shared pages (copy-on-write). If
        // registering has copied them, the write replaces no page.
        replaces: false,
        ..scenario("first_write_to_a_private_mapping", |memory| {
            // SAFETY: the memory is mapped, and this is the only reference to it.
            let bytes = unsafe { memory.bytes() };
            bytes[middle(memory)].fill(2);
            Ok(())
        })
    },
];

/// The file descriptor of the current scenario. One variable suffices, because only one scenario
/// runs at a time.
static FILE: AtomicI32 = AtomicI32::new(-1);

/// Attaches a new shared memory segment at the memory's addresses. The kernel destroys the segment
/// when the scenario detaches the segment.
fn attach(memory: Memory, flags: i32) -> io::Result<()> {
    // SAFETY: the memory is the scenario's own, and no reference to it exists.
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
    // SAFETY: `attach` attached the segment at this address, and no reference to the memory exists.
    Errno::result(unsafe { libc::shmdt(memory.as_ptr().cast()) })?;
    Ok(())
}

pub(super) fn map_file(how: i32) -> io::Result<Memory> {
    // SAFETY: the name is a string literal that ends with a null byte.
    let fd =
        Errno::result(unsafe { libc::memfd_create(c"regcache-test".as_ptr(), libc::MFD_CLOEXEC) })?;
    FILE.store(fd, Ordering::Relaxed);
    // SAFETY: the file descriptor was made above, and is open.
    Errno::result(unsafe { libc::ftruncate(fd, SCENARIO_LEN as libc::off_t) })?;
    mmap(None, SCENARIO_LEN, how, fd)
}

pub(super) fn free_file(memory: Memory) {
    unmap(memory);
    // SAFETY: the file descriptor is that of `map_file`, and is not used after this call.
    unsafe { libc::close(FILE.swap(-1, Ordering::Relaxed)) };
}

/// Truncates the file to length 0, and extends the file again. The function uses only the file
/// descriptor. So a process that has not mapped the file can call it too.
pub(super) fn truncate_and_extend(_: Memory) -> io::Result<()> {
    let fd = FILE.load(Ordering::Relaxed);
    for len in [0, SCENARIO_LEN] {
        // SAFETY: the file descriptor is that of `map_file`, and is open.
        Errno::result(unsafe { libc::ftruncate(fd, len as libc::off_t) })?;
    }
    Ok(())
}
