//! Defines [`Memory`], which provides each kind of memory that the kernel treats differently.

use std::io;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use regcache_tests_vm::PAGE;

use crate::machine::{self, Flag};

/// The kind of pages behind the addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Private anonymous memory in pages of 4 KiB.
    Anonymous,
    /// A shared mapping of a memfd, in pages of 4 KiB.
    Shmem,
    /// Private anonymous memory in a transparent huge page.
    Thp,
    /// Private memory in a page of hugetlbfs.
    Hugetlb,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Anonymous, Self::Shmem, Self::Thp, Self::Hugetlb];
}

/// The length of every [`Memory`] in bytes. The address of a [`Memory`] is a multiple of this
/// length.
pub(crate) const LEN: usize = 2 << 20;

/// The number of 4 KiB pages in a [`Memory`].
pub(crate) const PAGES: usize = LEN / PAGE;

/// A piece of memory of one kind. Dropping the value unmaps the memory.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) kind: Kind,
    start: *mut u8,
}

impl Memory {
    /// Maps the memory and populates no page.
    pub(crate) fn map(kind: Kind) -> Self {
        /// The address of the next memory. This address is far from other mappings. A gap follows
        /// each memory, so that the kernel does not merge the mappings of two memories.
        static NEXT: AtomicUsize = AtomicUsize::new(0x5000_0000_0000);
        let at = NEXT.fetch_add(2 * LEN, Ordering::Relaxed);
        let (flags, fd) = match kind {
            Kind::Anonymous | Kind::Thp => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            Kind::Shmem => (libc::MAP_SHARED, memfd()),
            Kind::Hugetlb => {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
                (flags, -1)
            }
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags | libc::MAP_FIXED_NOREPLACE;
        let at = ptr::with_exposed_provenance_mut(at);
        // SAFETY: with MAP_FIXED_NOREPLACE, the call replaces no mapping.
        let start = unsafe { libc::mmap(at, LEN, protection, flags, fd, 0) };
        let error = io::Error::last_os_error();
        assert_ne!(start, libc::MAP_FAILED, "{kind:?}: {error}");
        if fd >= 0 {
            // SAFETY: `memfd` returned the file descriptor, and nothing uses it after this call.
            unsafe { libc::close(fd) };
        }
        let memory = Self {
            kind,
            start: start.cast(),
        };
        match kind {
            Kind::Anonymous => memory.advise(libc::MADV_NOHUGEPAGE).unwrap(),
            Kind::Thp => memory.advise(libc::MADV_HUGEPAGE).unwrap(),
            Kind::Shmem | Kind::Hugetlb => {}
        }
        memory
    }

    /// Maps the memory and writes to each page.
    pub(crate) fn new(kind: Kind) -> Self {
        let memory = Self::map(kind);
        memory.fill(1);
        memory.check();
        memory
    }

    /// Checks that the pages behind the addresses are of the memory's kind.
    pub(crate) fn check(&self) {
        let frame = self.frames()[0].unwrap();
        let is = |flag| machine::is(frame, flag);
        assert_eq!(is(Flag::Thp), self.kind == Kind::Thp, "{:?}", self.kind);
        assert_eq!(is(Flag::Hugetlb), self.kind == Kind::Hugetlb);
    }

    /// Returns the address of page `i`.
    pub(crate) fn page(&self, i: usize) -> *mut u8 {
        assert!(i < PAGES);
        self.start.wrapping_add(i * PAGE)
    }

    /// Writes to page `i`.
    pub(crate) fn write(&self, i: usize, byte: u8) {
        // SAFETY: the page is mapped. During the write, only the kernel and the device may read the
        // page.
        unsafe { self.page(i).write_volatile(byte) }
    }

    /// Writes to each page.
    pub(crate) fn fill(&self, byte: u8) {
        for i in 0..PAGES {
            self.write(i, byte);
        }
    }

    /// Reads each page.
    pub(crate) fn look(&self) {
        for i in 0..PAGES {
            // SAFETY: the page is mapped.
            unsafe { self.page(i).read_volatile() };
        }
    }

    /// Borrows the bytes.
    ///
    /// # Safety
    ///
    /// Nothing may write to the memory while the result lives.
    pub(crate) unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is mapped, and the caller promises that nothing writes to it.
        unsafe { std::slice::from_raw_parts(self.start, LEN) }
    }

    pub(crate) fn advise(&self, advice: i32) -> nix::Result<()> {
        self.advise_part(0, PAGES, advice)
    }

    pub(crate) fn advise_part(&self, first: usize, pages: usize, advice: i32) -> nix::Result<()> {
        // SAFETY: no reference to the memory exists.
        let result = unsafe { libc::madvise(self.page(first).cast(), pages * PAGE, advice) };
        Errno::result(result).map(drop)
    }

    pub(crate) fn protect(&self, first: usize, pages: usize, protection: i32) {
        // SAFETY: no reference to the memory exists.
        let result = unsafe { libc::mprotect(self.page(first).cast(), pages * PAGE, protection) };
        Errno::result(result).unwrap();
    }

    fn pagemap(&self) -> [u64; PAGES] {
        let first = (self.start.addr() / PAGE) as u64;
        machine::entries(Path::new("/proc/self/pagemap"), first)
    }

    /// Returns the frame number of each page, or `None` for a page that is not present.
    pub(crate) fn frames(&self) -> Vec<Option<u64>> {
        let frame = |entry: u64| {
            let (is_present, frame) = (entry >> 63 != 0, entry & ((1 << 55) - 1));
            assert!(
                !is_present || frame != 0,
                "only root can read frame numbers"
            );
            is_present.then_some(frame)
        };
        self.pagemap().into_iter().map(frame).collect()
    }

    /// Returns the number of pages whose soft-dirty bit is set.
    pub(crate) fn soft_dirty(&self) -> usize {
        let is_dirty = |entry: &u64| entry >> 55 & 1 != 0;
        self.pagemap()
            .iter()
            .filter(|entry| is_dirty(entry))
            .count()
    }

    /// Returns the number with this name from the memory's entry in /proc/self/smaps.
    pub(crate) fn smaps(&self, name: &str) -> usize {
        let smaps = machine::read("/proc/self/smaps");
        let this = format!("{:x}-", self.start.addr());
        let lines = smaps.lines().skip_while(|line| !line.starts_with(&this));
        let mut numbers = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = numbers.next().unwrap().split_whitespace().next();
        number.unwrap().parse().unwrap()
    }

    /// Lets NUMA balancing choose a node for each page.
    pub(crate) fn balance(&self) {
        let (mode, nodes) = (libc::MPOL_BIND | MPOL_F_NUMA_BALANCING, 0b11_u64);
        // SAFETY: the call reads one word, and changes no memory.
        let bound = unsafe {
            let start = self.page(0);
            libc::syscall(libc::SYS_mbind, start, LEN, mode, &raw const nodes, 64, 0)
        };
        Errno::result(bound).unwrap();
    }

    /// Requests that the kernel move each page to the node. Returns the number of pages that are on
    /// the node after the call.
    pub(crate) fn move_to(&self, node: usize) -> usize {
        let pages: Vec<_> = (0..PAGES).map(|i| self.page(i)).collect();
        let nodes = [node as i32; PAGES];
        let mut status = [0_i32; PAGES];
        // SAFETY: each array has `PAGES` elements.
        let moved = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                0,
                PAGES,
                pages.as_ptr(),
                nodes.as_ptr(),
                status.as_mut_ptr(),
                MPOL_MF_MOVE,
            )
        };
        Errno::result(moved).unwrap();
        status.iter().filter(|&&it| it == node as i32).count()
    }
}

/// The flag of linux/mempolicy.h that allows NUMA balancing to move the pages.
const MPOL_F_NUMA_BALANCING: i32 = 1 << 13;

/// The flag of linux/mempolicy.h that moves only pages that no other process has mapped.
const MPOL_MF_MOVE: i32 = 1 << 1;

// SAFETY: the value holds only an address. Each access through the address is an unsafe operation
// with its own proof.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: no reference to the memory exists.
        unsafe { libc::munmap(self.start.cast(), LEN) };
    }
}

fn memfd() -> i32 {
    // SAFETY: the name ends with a null byte.
    let fd = Errno::result(unsafe { libc::memfd_create(c"mm-test".as_ptr(), 0) }).unwrap();
    // SAFETY: the file descriptor was made above, and is open.
    Errno::result(unsafe { libc::ftruncate(fd, LEN as libc::off_t) }).unwrap();
    fd
}
