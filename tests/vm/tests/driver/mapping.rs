//! Tests which changes count as invalidations. A change of the pages behind the addresses counts,
//! whether this process, another process or the kernel makes it. Nothing else counts.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::thread;

use nix::errno::Errno;
use regcache_tests_vm::{Child, DriverFile, PAGE, Pages};

use crate::watched_as_one;

/// Returns true if the range with cookie 7 was invalidated.
fn is_invalidated(device: &DriverFile) -> bool {
    match device.drain() {
        Ok((cookies, _)) => {
            assert_eq!(cookies, [7]);
            true
        }
        Err(errno) => {
            assert_eq!(errno, Errno::EAGAIN);
            false
        }
    }
}

#[test]
fn madvise_that_drops_pages_counts() {
    for advice in [libc::MADV_DONTNEED, libc::MADV_FREE] {
        let (device, memory) = watched_as_one(4);
        memory.advise(1, 2, advice).unwrap();
        assert!(is_invalidated(&device), "advice {advice}");
    }
}

#[test]
fn a_mapping_over_the_range_counts() {
    let (device, memory) = watched_as_one(4);
    memory.map_over(1, 1).unwrap();
    assert!(is_invalidated(&device));
}

fn mremap(
    from: *mut u8,
    len: usize,
    new_len: usize,
    flags: i32,
    to: *mut u8,
) -> io::Result<*mut u8> {
    // SAFETY: the memory belongs to the test, and no reference to it exists.
    let moved = unsafe { libc::mremap(from.cast(), len, new_len, flags, to) };
    if moved == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(moved.cast())
    }
}

#[test]
fn mremap_counts_at_both_ends_when_it_moves() {
    let fixed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    for flags in [fixed, fixed | libc::MREMAP_DONTUNMAP] {
        let (device, memory) = watched_as_one(4);
        let (other_device, other) = watched_as_one(4);
        mremap(
            memory.page(0),
            memory.len(),
            memory.len(),
            flags,
            other.page(0),
        )
        .unwrap();
        assert!(is_invalidated(&device), "the move away was not reported");
        assert!(
            is_invalidated(&other_device),
            "the move onto the range was not reported"
        );
    }
}

#[test]
fn shrinking_counts_and_growing_in_place_does_not() {
    let (device, memory) = watched_as_one(4);
    mremap(memory.page(0), 4 * PAGE, 2 * PAGE, 0, ptr::null_mut()).unwrap();
    assert!(is_invalidated(&device));
    mremap(memory.page(0), 2 * PAGE, 4 * PAGE, 0, ptr::null_mut()).unwrap();
    assert!(!is_invalidated(&device));
}

/// Makes a memfd with this number of pages.
fn memfd(pages: usize) -> File {
    // SAFETY: the name ends with a null byte.
    let fd = Errno::result(unsafe { libc::memfd_create(c"driver-test".as_ptr(), 0) }).unwrap();
    // SAFETY: the file descriptor was made above, and nothing else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len((pages * PAGE) as u64).unwrap();
    file
}

/// Makes a shared mapping of the file over the memory, and writes to each page.
fn map_shared(file: &File, memory: &Pages) {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: the call replaces only memory that belongs to the test, and no reference to it
    // exists.
    let start = unsafe {
        libc::mmap(
            memory.page(0).cast(),
            memory.len(),
            protection,
            flags,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    memory.touch();
}

fn punch(file: &File, first: usize, pages: usize) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = ((first * PAGE) as libc::off_t, (pages * PAGE) as libc::off_t);
    // SAFETY: the call changes only the file, and no reference to the file's bytes exists.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) == 0 }
}

#[test]
fn a_file_that_is_truncated_or_punched_counts_also_by_another_process() {
    let file = memfd(4);
    let memory = Pages::new(4).unwrap();
    map_shared(&file, &memory);
    let device = DriverFile::open().unwrap();
    device.watch(memory.page(0), memory.len(), 7).unwrap();

    assert!(punch(&file, 1, 1));
    assert!(is_invalidated(&device));
    assert!(
        Child::fork(|| punch(&file, 2, 1))
            .unwrap()
            .succeeded()
            .unwrap()
    );
    assert!(
        is_invalidated(&device),
        "a hole punched by a child was not reported"
    );
    assert!(
        Child::fork(|| file.set_len(PAGE as u64).is_ok())
            .unwrap()
            .succeeded()
            .unwrap()
    );
    assert!(
        is_invalidated(&device),
        "the truncation by a child was not reported"
    );
    memory.advise(0, 1, libc::MADV_REMOVE).unwrap();
    assert!(is_invalidated(&device));
}

/// Forks, and writes to two pages. The first write copies a page. Returns true if the second write,
/// to a page with only one owner, is not reported.
fn is_written_in_place_after_fork() -> bool {
    let (device, memory) = watched_as_one(4);
    // The child shares the pages with this process until the child exits.
    let (wait, go) = nix::unistd::pipe().unwrap();
    let child = Child::fork(|| {
        let mut byte = [0];
        nix::unistd::read(&wait, &mut byte) == Ok(1)
    })
    .unwrap();
    assert!(
        !is_invalidated(&device),
        "a fork leaves the parent's pages, but was reported"
    );
    memory.write(1, 2);
    assert!(
        is_invalidated(&device),
        "the write copied a page, but was not reported"
    );
    nix::unistd::write(&go, &[1]).unwrap();
    assert!(child.succeeded().unwrap());
    memory.write(2, 2);
    !is_invalidated(&device)
}

/// The last owner of a page writes in place, unless a CPU still has the page in a list of pages
/// that it has just added. So the test makes several attempts.
#[test]
fn a_write_after_fork_counts_where_it_copies() {
    let in_place = (0..20).any(|_| is_written_in_place_after_fork());
    assert!(in_place, "each write by the last owner was reported");
}

#[test]
fn a_page_written_by_the_tracer_counts_where_it_copies() {
    use std::os::unix::fs::FileExt;
    let (device, memory) = watched_as_one(2);
    memory.protect(0, 2, libc::PROT_READ).unwrap();
    let mem = File::options().write(true).open("/proc/self/mem").unwrap();
    let page = memory.page(1).addr() as u64;
    // The page is shared with the child. Since Linux 6.12, only a tracer may write to memory that
    // the owner may not write. So the child becomes a tracer.
    let child = Child::fork(|| {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: the call changes no memory, and its effect ends with the child.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, libc::getppid(), none, none) };
        seized == 0 && mem.write_at(&[3], page).is_ok()
    })
    .unwrap();
    assert!(child.succeeded().unwrap());
    assert!(is_invalidated(&device));
}

#[test]
fn changes_of_protection_do_not_count() {
    let (device, memory) = watched_as_one(4);
    for protection in [
        libc::PROT_READ,
        libc::PROT_NONE,
        libc::PROT_READ | libc::PROT_WRITE,
    ] {
        memory.protect(0, 4, protection).unwrap();
    }
    memory.touch();
    assert!(!is_invalidated(&device));
}

#[test]
fn advice_that_keeps_the_pages_does_not_count() {
    let (device, memory) = watched_as_one(4);
    for advice in [
        libc::MADV_WILLNEED,
        libc::MADV_RANDOM,
        libc::MADV_DONTFORK,
        libc::MADV_NOHUGEPAGE,
    ] {
        memory.advise(0, 4, advice).unwrap();
    }
    // SAFETY: the memory belongs to the test.
    let locked = unsafe { libc::mlock(memory.page(0).cast(), memory.len()) };
    assert_eq!(locked, 0);
    // SAFETY: the memory belongs to the test.
    let unlocked = unsafe { libc::munlock(memory.page(0).cast(), memory.len()) };
    assert_eq!(unlocked, 0);
    assert!(!is_invalidated(&device));
}

#[test]
fn clearing_soft_dirty_bits_does_not_count() {
    let (device, memory) = watched_as_one(4);
    std::fs::write("/proc/self/clear_refs", "4").unwrap();
    memory.touch();
    assert!(!is_invalidated(&device));
}

#[test]
fn a_first_touch_does_not_count() {
    let (device, memory) = watched_as_one(4);
    memory.unmap(0, 4).unwrap();
    memory.map_over(0, 4).unwrap();
    assert!(is_invalidated(&device));
    memory.touch();
    assert!(!is_invalidated(&device), "there was no page to replace");
}

#[test]
fn munmap_by_another_thread_counts() {
    let (device, memory) = watched_as_one(4);
    thread::scope(|scope| scope.spawn(|| memory.unmap(1, 1)).join())
        .unwrap()
        .unwrap();
    assert!(is_invalidated(&device));
}

#[test]
fn munmap_by_a_vfork_child_is_seen() {
    let (device, memory) = watched_as_one(4);
    let unmap = |address: usize| {
        let start = ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: the page belongs to the test. The child makes the system call directly, because
        // the child shares the memory of its parent.
        unsafe { libc::syscall(libc::SYS_munmap, start, PAGE) == 0 }
    };
    assert!(Child::sharing_memory(unmap, memory.page(2).expose_provenance()).unwrap());
    assert!(is_invalidated(&device));
}
