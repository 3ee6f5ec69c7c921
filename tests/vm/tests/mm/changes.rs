//! Tests changes that the owner of the watched memory does not make. Another process, another task
//! that needs memory, or a kernel thread makes these changes.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr;

use memmap2::MmapMut;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe, read, write};
use regcache_test_support::Swap;
use regcache_tests_vm::{Child, DriverFile, PAGE, Pages};

use crate::alone;
use crate::machine::{Group, HugePages, Setting, kernel, wait_until};
use crate::memory::{Kind, LEN, Memory};

const COOKIE: u64 = 7;

fn watch(memory: &Memory) -> DriverFile {
    let device = DriverFile::open().unwrap();
    device.watch(memory.page(0), LEN, COOKIE).unwrap();
    device
}

/// Opens a pidfd of a process.
pub(crate) fn pidfd(process: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: the call accesses no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) };
    // SAFETY: the file descriptor was made above, and nothing else owns it.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Calls `process_madvise` for 2 MiB of a process's memory.
fn advise(process: Pid, start: usize, advice: i32) -> nix::Result<()> {
    let process = pidfd(process)?;
    let part = libc::iovec {
        iov_base: ptr::without_provenance_mut(start),
        iov_len: LEN,
    };
    // SAFETY: no reference to the memory exists.
    let advised = unsafe {
        let (fd, part) = (process.as_raw_fd(), &raw const part);
        libc::syscall(libc::SYS_process_madvise, fd, part, 1, advice, 0)
    };
    Errno::result(advised).map(|bytes| assert_eq!(bytes as usize, LEN))
}

/// A process that watches its own memory while other parties change this memory.
struct Owner {
    process: Child,
    start: usize,
    go: OwnedFd,
}

impl Owner {
    /// Starts the process. The process makes the memory, watches it, and waits for the change.
    /// After the change, the process calls `is_right` with three arguments: the memory, whether the
    /// change was reported, and the frames before the change.
    fn of(
        memory: impl FnOnce() -> Memory,
        is_right: impl FnOnce(&Memory, bool, &[Option<u64>]) -> bool,
    ) -> Self {
        let (ready, tell) = pipe().unwrap();
        let (wait, go) = pipe().unwrap();
        let process = Child::fork(|| {
            let memory = memory();
            let before = memory.frames();
            let device = watch(&memory);
            write(&tell, &memory.page(0).addr().to_ne_bytes()).unwrap();
            assert_eq!(read(&wait, &mut [0]), Ok(1));
            is_right(&memory, device.invalidated().unwrap() == [COOKIE], &before)
        })
        .unwrap();
        let mut start = [0; size_of::<usize>()];
        assert_eq!(read(&ready, &mut start), Ok(start.len()));
        Self {
            process,
            start: usize::from_ne_bytes(start),
            go,
        }
    }

    fn advise(&self, advice: i32) -> nix::Result<()> {
        advise(self.process.id(), self.start, advice)
    }

    fn was_right(self) -> bool {
        write(&self.go, &[1]).unwrap();
        self.process.succeeded().unwrap()
    }
}

#[test]
fn memory_that_another_process_pages_out_counts() {
    let _alone = alone();
    let _swap = Swap::on();
    for kind in [Kind::Anonymous, Kind::Shmem, Kind::Thp] {
        let owner = Owner::of(
            || Memory::new(kind),
            |memory, reported, _| reported && memory.frames().contains(&None),
        );
        assert_eq!(owner.advise(libc::MADV_PAGEOUT), Ok(()));
        assert!(owner.was_right(), "{kind:?}");
    }
}

#[test]
fn memory_that_another_process_collapses_counts() {
    let _alone = alone();
    let owner = Owner::of(
        || {
            let memory = Memory::new(Kind::Anonymous);
            memory.advise(libc::MADV_HUGEPAGE).unwrap();
            memory
        },
        |memory, reported, before| reported && memory.frames() != before,
    );
    assert_eq!(owner.advise(libc::MADV_COLLAPSE), Ok(()));
    assert!(owner.was_right());
}

#[test]
fn memory_that_another_process_calls_cold_does_not_count() {
    let _alone = alone();
    let owner = Owner::of(
        || {
            let memory = Memory::new(Kind::Anonymous);
            assert!(memory.smaps("Referenced") > 0);
            memory
        },
        |memory, reported, _| !reported && memory.smaps("Referenced") == 0,
    );
    assert_eq!(owner.advise(libc::MADV_COLD), Ok(()));
    assert!(owner.was_right());
}

#[test]
fn process_madvise_drops_pages_of_the_caller_only_and_that_counts() {
    let _alone = alone();
    for advice in [libc::MADV_DONTNEED, libc::MADV_FREE] {
        let owner = Owner::of(
            || Memory::new(Kind::Anonymous),
            |memory, reported, before| !reported && memory.frames() == before,
        );
        assert_eq!(owner.advise(advice), Err(Errno::EINVAL));
        assert!(owner.was_right());

        let memory = Memory::new(Kind::Anonymous);
        let device = watch(&memory);
        let start = memory.page(0).addr();
        let of_its_own = advise(Pid::this(), start, advice);
        // Linux 6.13 and later let a process apply any advice to its own memory by
        // `process_madvise`. Older kernels refuse this advice.
        if kernel() < (6, 13) {
            assert_eq!(of_its_own, Err(Errno::EINVAL));
            assert_eq!(device.invalidated().unwrap(), []);
        } else {
            assert_eq!(of_its_own, Ok(()));
            assert_eq!(device.invalidated().unwrap(), [COOKIE]);
        }
    }
}

#[test]
fn a_word_poked_by_a_debugger_counts_where_it_copies() {
    let _alone = alone();
    let pages = Pages::new(2).unwrap();
    pages.protect(0, 2, libc::PROT_READ).unwrap();
    // While the child lives, it shares its pages with this process. So a write to a page copies the
    // page.
    let child = Child::fork(|| {
        let device = DriverFile::open().unwrap();
        device.watch(pages.page(0), pages.len(), COOKIE).unwrap();
        ptrace::traceme().unwrap();
        raise(Signal::SIGSTOP).unwrap();
        device.invalidated().unwrap() == [COOKIE]
    })
    .unwrap();
    let traced = child.id();
    let stopped = WaitStatus::Stopped(traced, Signal::SIGSTOP);
    assert_eq!(waitpid(traced, None), Ok(stopped));
    ptrace::write(traced, pages.page(1).cast(), 3).unwrap();
    assert_eq!(ptrace::read(traced, pages.page(1).cast()), Ok(3));
    ptrace::cont(traced, None).unwrap();
    assert!(child.succeeded().unwrap());
}

#[test]
fn memory_reclaimed_because_another_process_needs_some_counts() {
    let _alone = alone();
    let _swap = Swap::on();
    let group = Group::new();
    group.set("memory.max", "24M");
    let owner = Owner::of(
        || {
            group.enter();
            Memory::new(Kind::Anonymous)
        },
        |memory, reported, _| reported && memory.frames().contains(&None),
    );
    let greedy = Child::fork(|| {
        group.enter();
        let mut memory = MmapMut::map_anon(40 << 20).unwrap();
        memory.advise(memmap2::Advice::NoHugePage).unwrap();
        memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        true
    });
    assert!(greedy.unwrap().succeeded().unwrap());
    assert!(owner.was_right());
}

#[test]
fn khugepaged_counts() {
    let _alone = alone();
    let khugepaged = Path::new("/sys/kernel/mm/transparent_hugepage/khugepaged");
    let _eager = Setting::set(khugepaged.join("scan_sleep_millisecs"), "10");
    let memory = Memory::new(Kind::Anonymous);
    let before = memory.frames();
    let device = watch(&memory);
    memory.advise(libc::MADV_HUGEPAGE).unwrap();
    wait_until("khugepaged has collapsed the memory", || {
        memory.frames() != before
    });
    assert_eq!(device.invalidated().unwrap(), [COOKIE]);
}

#[test]
fn detaching_shared_memory_counts() {
    let _alone = alone();
    // SAFETY: the call makes a new segment, and accesses no memory.
    let id = Errno::result(unsafe { libc::shmget(libc::IPC_PRIVATE, LEN, 0o600) }).unwrap();
    // SAFETY: the kernel chooses the address, so the call replaces no mapping.
    let start = unsafe { libc::shmat(id, ptr::null(), 0) };
    // SAFETY: the call accesses no memory. The kernel keeps the segment until it is detached.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()) }).unwrap();
    assert_ne!(start.addr(), usize::MAX);
    // SAFETY: the segment was attached at this address above.
    unsafe { start.cast::<u8>().write_volatile(1) };
    let device = DriverFile::open().unwrap();
    device.watch(start.cast(), LEN, COOKIE).unwrap();
    // SAFETY: no reference to the memory exists.
    Errno::result(unsafe { libc::shmdt(start) }).unwrap();
    assert_eq!(device.invalidated().unwrap(), [COOKIE]);
}

#[test]
fn huge_pages_that_are_dropped_or_unmapped_count() {
    let _alone = alone();
    let _pages = HugePages::on_each_node(4);
    let memory = Memory::new(Kind::Hugetlb);
    let device = watch(&memory);
    memory.advise(libc::MADV_DONTNEED).unwrap();
    assert_eq!(device.invalidated().unwrap(), [COOKIE]);
    memory.write(0, 1);
    assert_eq!(
        device.invalidated().unwrap(),
        [],
        "there was no page to replace"
    );
    drop(memory);
    assert_eq!(device.invalidated().unwrap(), [COOKIE]);
}

#[test]
fn a_file_of_huge_pages_that_another_process_cuts_counts() {
    let _alone = alone();
    let _pages = HugePages::on_each_node(4);
    // SAFETY: the name ends with a null byte.
    let fd = unsafe { libc::memfd_create(c"mm-test".as_ptr(), libc::MFD_HUGETLB) };
    // SAFETY: the file descriptor was made above, and nothing else owns it.
    let file = unsafe { File::from_raw_fd(Errno::result(fd).unwrap()) };
    file.set_len(2 * LEN as u64).unwrap();
    // SAFETY: no reference to the mapped bytes outlives a change of the file.
    let mut memory = unsafe { MmapMut::map_mut(&file) }.unwrap();
    let device = DriverFile::open().unwrap();
    device.watch(memory.as_ptr(), 2 * LEN, COOKIE).unwrap();
    let by_a_child = |cut: &dyn Fn() -> bool| Child::fork(cut).unwrap().succeeded().unwrap();

    memory[LEN] = 1;
    assert_eq!(device.invalidated().unwrap(), []);
    assert!(by_a_child(&|| {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let len = LEN as libc::off_t;
        // SAFETY: the call changes only the file, and no reference to the file's bytes exists.
        unsafe { libc::fallocate(file.as_raw_fd(), mode, len, len) == 0 }
    }));
    assert_eq!(
        device.invalidated().unwrap(),
        [COOKIE],
        "a punched hole was not reported"
    );

    memory[LEN] = 1;
    assert!(by_a_child(&|| file.set_len(LEN as u64).is_ok()));
    assert_eq!(
        device.invalidated().unwrap(),
        [COOKIE],
        "the truncation was not reported"
    );
}
