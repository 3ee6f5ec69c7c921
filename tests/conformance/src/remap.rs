//! The ways in which memory changes under an address.
//!
//! Each [`Way`] makes some memory and then, when told, puts other pages behind a part of its
//! addresses, or behind all of them. After that the memory is readable and writable again at the
//! same addresses, and the changed part reads as zeros.

use std::io;
use std::mem;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use nix::errno::Errno;

use crate::PAGE;

/// Small, so that a driver that overlooks small invalidations is caught.
pub(crate) const LEN: usize = 8 * PAGE;

/// How often another thread may be given the address.
const MAX_ATTEMPTS: u32 = 8;

/// Memory that is about to change, or has.
///
/// Not unmapped when dropped: what is mapped there by then differs from way to way.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
}

/// One way to change memory.
#[derive(Clone, Copy)]
pub struct Way {
    /// What it does, as a test's name.
    pub name: &'static str,
    pub(crate) make: fn() -> io::Result<Memory>,
    pub(crate) change: fn(Memory) -> io::Result<()>,
    /// The part that changes, as offsets.
    pub(crate) changed: fn(Memory) -> Range<usize>,
    pub(crate) free: fn(Memory),
    /// When the memory is written, for the device to read that.
    pub(crate) written: Written,
    /// Whether other pages are there afterwards, whatever the kernel decides.
    pub(crate) replaces: bool,
}

/// When a program writes the memory: a page that is not there yet comes by that, at the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Before each transfer.
    BeforeEach,
    /// Before the first, and not after the change.
    BeforeTheFirst,
    /// By the change itself, if at all.
    ByTheChange,
}

/// Private anonymous memory, all of which is replaced.
pub(crate) const fn way(name: &'static str, change: fn(Memory) -> io::Result<()>) -> Way {
    Way {
        name,
        make: map,
        change,
        changed: all,
        free: unmap,
        written: Written::BeforeEach,
        replaces: true,
    }
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Memory {
    /// What is mapped at an address whose provenance is exposed.
    pub(crate) fn at(start: usize, len: usize) -> io::Result<Self> {
        let start = NonNull::new(ptr::with_exposed_provenance_mut(start)).ok_or(Errno::EINVAL)?;
        Ok(Self { start, len })
    }

    /// Address of the first byte.
    #[must_use]
    pub fn as_ptr(self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(self) -> usize {
        self.len
    }

    /// The bytes.
    ///
    /// # Safety
    ///
    /// The memory is mapped, and nobody else has a reference to it, for as long as the result lives.
    #[must_use]
    pub unsafe fn bytes<'a>(self) -> &'a mut [u8] {
        // SAFETY: mapped readable and writable by the `Way`, and exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn part(self, part: Range<usize>) -> Self {
        // SAFETY: the callers name parts of the memory.
        let start = unsafe { self.start.add(part.start) };
        Self {
            start,
            len: part.len(),
        }
    }
}

/// Memory that is freed in the way it was made.
#[derive(Debug)]
pub struct Made {
    way: Way,
    memory: Memory,
}

impl Way {
    /// Whether the device reads old pages if the monitor does not notice: false where it is for the kernel,
    /// or malloc, to decide whether there are others.
    #[must_use]
    pub fn replaces(&self) -> bool {
        self.replaces
    }

    /// Makes memory to be changed this way.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn make(&self) -> io::Result<Made> {
        Ok(Made {
            way: *self,
            memory: (self.make)()?,
        })
    }

    /// Makes memory, has `first` use it, and changes it. All over again if another thread was given the
    /// address meanwhile, as malloc is when one first allocates.
    ///
    /// # Errors
    ///
    /// What the kernel says, or `first` does.
    ///
    /// # Safety
    ///
    /// `first` leaves no reference to the memory.
    pub unsafe fn changed_after<E: From<io::Error>>(
        &self,
        mut first: impl FnMut(&Made) -> Result<(), E>,
    ) -> Result<Made, E> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let made = self.make()?;
            first(&made)?;
            // SAFETY: passed on.
            let Err(error) = (unsafe { made.change() }) else {
                return Ok(made);
            };
            // What is there now may be another thread's.
            mem::forget(made);
            if error.kind() != io::ErrorKind::AddrNotAvailable || attempts == MAX_ATTEMPTS {
                return Err(error.into());
            }
        }
    }
}

impl Made {
    /// Whether the memory is to be written before the first transfer, and before that after the change.
    pub(crate) fn written(&self) -> (bool, bool) {
        match self.way.written {
            Written::BeforeEach => (true, true),
            Written::BeforeTheFirst => (true, false),
            Written::ByTheChange => (false, false),
        }
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Puts other pages behind [`changed`](Self::changed).
    ///
    /// # Errors
    ///
    /// What the kernel says; `AddrNotAvailable` if it has not given the same address again.
    ///
    /// # Safety
    ///
    /// There is no reference to the memory.
    pub unsafe fn change(&self) -> io::Result<()> {
        (self.way.change)(self.memory)
    }

    /// Offsets of the part that changes.
    #[must_use]
    pub fn changed(&self) -> Range<usize> {
        (self.way.changed)(self.memory)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        (self.way.free)(self.memory);
    }
}

/// All of them.
pub const WAYS: &[Way] = &[
    way("munmap_then_mmap", |memory| {
        unmap(memory);
        map_again(memory)
    }),
    way("raw_munmap_then_mmap", |memory| {
        // SAFETY: the memory is the way's own, and there is no reference to it.
        let done = unsafe { libc::syscall(libc::SYS_munmap, memory.as_ptr(), memory.len) };
        Errno::result(done)?;
        map_again(memory)
    }),
    way("munmap_in_another_thread_then_mmap", |memory| {
        let (address, len) = (memory.as_ptr().expose_provenance(), memory.len);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let start = ptr::with_exposed_provenance_mut(address);
                // SAFETY: as above.
                Errno::result(unsafe { libc::munmap(start, len) })
            });
        });
        // The thread's stack may have been given the address, or be unmapped beside it.
        map_at(memory, libc::MAP_FIXED_NOREPLACE)
    }),
    Way {
        changed: middle,
        ..way("munmap_of_the_middle_then_mmap", |memory| {
            let middle = memory.part(middle(memory));
            unmap(middle);
            map_at(middle, libc::MAP_FIXED_NOREPLACE)
        })
    },
    way("map_fixed_over", |memory| map_at(memory, libc::MAP_FIXED)),
    way("mremap_away_and_another_back", |memory| {
        // All three before the first move, or one would be given the other's address.
        let (away, another) = (map()?, map()?);
        mremap(memory, away)?;
        mremap(another, memory)?;
        unmap(away);
        Ok(())
    }),
    way("madvise_dontneed", |memory| {
        advise(memory, libc::MADV_DONTNEED)
    }),
    Way {
        changed: middle,
        ..way("madvise_dontneed_of_the_middle", |memory| {
            advise(memory.part(middle(memory)), libc::MADV_DONTNEED)
        })
    },
    Way {
        make: grow_heap,
        free: |memory| {
            // A heap that something has grown above stays.
            let _ = shrink_heap(memory);
        },
        ..way("brk_shrink_then_grow", |memory| {
            shrink_heap(memory)?;
            let again = grow_heap()?;
            same_address(memory, again)
        })
    },
    Way {
        make: || {
            tame_malloc();
            malloc()
        },
        free,
        // malloc may keep the memory.
        replaces: false,
        ..way("free_then_malloc", |memory| {
            free(memory);
            same_address(memory, malloc()?)
        })
    },
    Way {
        make: map_memfd,
        changed: middle,
        ..way("hole_punched_in_a_memfd", |memory| {
            advise(memory.part(middle(memory)), libc::MADV_REMOVE)
        })
    },
];

pub(crate) fn all(memory: Memory) -> Range<usize> {
    0..memory.len
}

/// Whole pages off both ends.
pub(crate) fn middle(memory: Memory) -> Range<usize> {
    2 * PAGE..memory.len - 3 * PAGE
}

pub(crate) fn mmap(start: *mut u8, len: usize, flags: i32, fd: i32) -> io::Result<Memory> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: maps over memory of a way's own, or where the kernel likes.
    let start = unsafe { libc::mmap(start.cast(), len, protection, flags, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast())
        .map(|start| Memory { start, len })
        .ok_or(Errno::EINVAL.into())
}

pub(crate) fn map() -> io::Result<Memory> {
    mmap(
        ptr::null_mut(),
        LEN,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        -1,
    )
}

pub(crate) fn map_at(memory: Memory, how: i32) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | how;
    same_address(memory, mmap(memory.as_ptr(), memory.len, flags, -1)?)
}

/// Without asking for an address, and given the same one: what a program would do.
fn map_again(memory: Memory) -> io::Result<()> {
    same_address(memory, map()?)
}

fn map_memfd() -> io::Result<Memory> {
    // SAFETY: a string literal with its end.
    let fd = Errno::result(unsafe { libc::memfd_create(c"regcache-test".as_ptr(), 0) })?;
    // SAFETY: the descriptor made above.
    let sized = Errno::result(unsafe { libc::ftruncate(fd, LEN as libc::off_t) });
    let memory = sized
        .map_err(io::Error::from)
        .and_then(|_| mmap(ptr::null_mut(), LEN, libc::MAP_SHARED, fd));
    // SAFETY: the descriptor made above, not used after.
    unsafe { libc::close(fd) };
    memory
}

pub(crate) fn unmap(memory: Memory) {
    // SAFETY: the memory is the way's own, and there is no reference to it.
    let result = unsafe { libc::munmap(memory.as_ptr().cast(), memory.len) };
    debug_assert_eq!(result, 0);
}

pub(crate) fn mremap(from: Memory, to: Memory) -> io::Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both are the way's own, and there is no reference to them.
    let moved = unsafe { libc::mremap(from.as_ptr().cast(), from.len, to.len, flags, to.as_ptr()) };
    if moved == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

pub(crate) fn advise(memory: Memory, advice: i32) -> io::Result<()> {
    // SAFETY: the memory is the way's own, and there is no reference to it.
    Errno::result(unsafe { libc::madvise(memory.as_ptr().cast(), memory.len, advice) })?;
    Ok(())
}

pub(crate) fn same_address(wanted: Memory, given: Memory) -> io::Result<()> {
    if given.start == wanted.start {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        format!(
            "wanted {:p} again and was given {:p}",
            wanted.start, given.start
        ),
    ))
}

fn sbrk(by: isize) -> io::Result<usize> {
    // SAFETY: `grow_heap` and `shrink_heap` move the break over memory of their own only.
    let before = unsafe { libc::sbrk(by) };
    if before.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    Ok(before.expose_provenance())
}

/// At the end of the heap, whole pages. malloc copes with that, as long as nobody grows the heap
/// between growing and shrinking; `tame_malloc` gives it enough to do without.
fn grow_heap() -> io::Result<Memory> {
    tame_malloc();
    let end = sbrk(0)?;
    let start = end.next_multiple_of(PAGE);
    sbrk((start - end + LEN) as isize)?;
    let start = NonNull::new(ptr::with_exposed_provenance_mut(start)).ok_or(Errno::EINVAL)?;
    Ok(Memory { start, len: LEN })
}

fn shrink_heap(memory: Memory) -> io::Result<()> {
    let end = sbrk(0)?;
    if end != memory.as_ptr().addr() + memory.len {
        return Err(io::Error::other(
            "something else has moved the end of the heap",
        ));
    }
    sbrk(-(memory.len as isize))?;
    Ok(())
}

/// More than malloc's mmap threshold, and than its heap has free, so that it comes and goes by mmap
/// and munmap.
const MALLOC_LEN: usize = 1 << 20;

fn malloc() -> io::Result<Memory> {
    // SAFETY: malloc has no preconditions.
    let start = unsafe { libc::malloc(MALLOC_LEN) };
    let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::ENOMEM)?;
    let memory = Memory {
        start,
        len: MALLOC_LEN,
    };
    Ok(memory)
}

fn free(memory: Memory) {
    // SAFETY: from `malloc`, and there is no reference to it.
    unsafe { libc::free(memory.as_ptr().cast()) }
}

/// Keeps malloc's thresholds where they are, and leaves it spare heap.
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
