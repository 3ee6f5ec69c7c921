//! [`Scenario`]: one way in which memory changes under an address.
//!
//! A scenario makes memory and, when told, puts other pages behind a part of its addresses or
//! behind all of them. The memory is readable and writable again afterwards, at the same addresses.

use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;

use crate::PAGE;
use crate::memory::{Memory, map, same_address, unmap};

/// Bytes of the memory that most scenarios change: few, so that the suite catches a driver that
/// overlooks small invalidations.
pub const SCENARIO_LEN: usize = 8 * PAGE;

/// How often a scenario starts again because another thread was given its address.
const MAX_ATTEMPTS: u32 = 8;

/// One way to change memory.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// The name, which describes the change as a test's name does.
    pub name: &'static str,
    /// Makes the memory.
    pub make: fn() -> io::Result<Memory>,
    /// Changes it.
    pub change: fn(Memory) -> io::Result<()>,
    /// Returns the offsets of the part that changes.
    pub changed: fn(Memory) -> Range<usize>,
    /// Frees it.
    pub free: fn(Memory),
    /// When the memory is written.
    pub written: Written,
    /// Whether other pages are there after the change. It is false where the kernel or malloc
    /// decides.
    pub replaces: bool,
}

/// When a program writes the memory. A page that is not there yet appears by that write at the
/// latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Before each transfer.
    BeforeEach,
    /// Before the first transfer, and not after the change.
    BeforeTheFirst,
    /// By the change itself, if at all.
    ByTheChange,
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Makes a scenario that replaces all pages of some private anonymous memory.
#[must_use]
pub const fn scenario(name: &'static str, change: fn(Memory) -> io::Result<()>) -> Scenario {
    Scenario {
        name,
        make: || map(SCENARIO_LEN),
        change,
        changed: |memory| 0..memory.len(),
        free: unmap,
        written: Written::BeforeEach,
        replaces: true,
    }
}

/// The bug in its shortest form: the memory is unmapped, and the kernel gives out the address
/// again.
pub const MUNMAP_THEN_MMAP: &Scenario = &scenario("munmap_then_mmap", |memory| {
    unmap(memory);
    map_again(memory)
});

/// Maps memory without asking for an address, as a program does.
///
/// # Errors
///
/// The error of `mmap`; `AddrNotAvailable` if the kernel has not given out the same address.
pub fn map_again(memory: Memory) -> io::Result<()> {
    same_address(memory, map(memory.len())?)
}

/// The memory of a scenario, which frees it when dropped.
#[derive(Debug)]
pub struct Prepared {
    scenario: Scenario,
    memory: Memory,
}

impl Scenario {
    /// Makes the memory that is to change.
    ///
    /// # Errors
    ///
    /// The kernel's error; `Unsupported` if this kernel does not know the scenario.
    pub fn prepare(&self) -> io::Result<Prepared> {
        Ok(Prepared {
            scenario: *self,
            memory: (self.make)()?,
        })
    }

    /// Makes memory, lets `first` use it, and changes it. It starts again if another thread was
    /// given the address in between, as malloc is when a thread first allocates.
    ///
    /// # Errors
    ///
    /// The kernel's error, or that of `first`.
    ///
    /// # Safety
    ///
    /// `first` leaves no reference to the memory.
    pub unsafe fn changed_after<E: From<io::Error>>(
        &self,
        mut first: impl FnMut(&Prepared) -> Result<(), E>,
    ) -> Result<Prepared, E> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let prepared = self.prepare()?;
            first(&prepared)?;
            // SAFETY: passed on.
            let Err(error) = (unsafe { prepared.change() }) else {
                return Ok(prepared);
            };
            // The memory at this address may be another thread's now.
            mem::forget(prepared);
            // The kernel chose another address, or refused to replace the other thread's mapping.
            let taken = matches!(
                error.kind(),
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::AlreadyExists
            );
            if !taken || attempts == MAX_ATTEMPTS {
                return Err(error.into());
            }
        }
    }
}

impl Prepared {
    /// Returns whether to write the memory before the first transfer, and after the change.
    #[must_use]
    pub fn written(&self) -> (bool, bool) {
        match self.scenario.written {
            Written::BeforeEach => (true, true),
            Written::BeforeTheFirst => (true, false),
            Written::ByTheChange => (false, false),
        }
    }

    /// Returns the memory.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Puts other pages behind [`changed`](Self::changed).
    ///
    /// # Errors
    ///
    /// The kernel's error; `AddrNotAvailable` if it has not given out the same address again.
    ///
    /// # Safety
    ///
    /// There is no reference to the memory.
    pub unsafe fn change(&self) -> io::Result<()> {
        (self.scenario.change)(self.memory)
    }

    /// Returns the offsets of the part that changes.
    #[must_use]
    pub fn changed(&self) -> Range<usize> {
        (self.scenario.changed)(self.memory)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        (self.scenario.free)(self.memory);
    }
}
