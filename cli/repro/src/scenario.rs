//! Defines [`Scenario`], one way in which the memory behind an address changes.
//!
//! A scenario makes memory. When the caller requests the change, the scenario puts other pages
//! behind a part of the memory's addresses, or behind all of them. After the change, the memory is
//! readable and writable at the same addresses.

use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;

use crate::PAGE;
use crate::memory::{Memory, map, same_address, unmap};

/// The length in bytes of the memory of most scenarios. The memory is small, so that the suite
/// catches a driver that overlooks small invalidations.
pub const SCENARIO_LEN: usize = 8 * PAGE;

/// The largest number of attempts at one scenario. An attempt fails if the kernel gives the
/// scenario's address to another thread.
const MAX_ATTEMPTS: u32 = 8;

/// One way in which memory changes.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// The name of the scenario, which describes the change.
    pub name: &'static str,
    /// Makes the memory of the scenario.
    pub make: fn() -> io::Result<Memory>,
    /// Changes the memory.
    pub change: fn(Memory) -> io::Result<()>,
    /// Returns the offsets of the part of the memory that changes.
    pub changed: fn(Memory) -> Range<usize>,
    /// Frees the memory.
    pub free: fn(Memory),
    /// The times at which a program writes the memory.
    pub written: Written,
    /// The value is true if the change always puts other pages behind the addresses. It is false if
    /// the pages stay, or if the kernel or malloc decides whether the pages stay.
    pub replaces: bool,
}

/// The times at which a program writes the memory. A write populates every page that is not
/// populated yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The program writes the memory before each transfer.
    BeforeEach,
    /// The program writes the memory before the first transfer, and does not write it after the
    /// change.
    BeforeTheFirst,
    /// The program itself does not write the memory. The change may write the memory.
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

/// The shortest scenario with the reuse bug. The memory is unmapped, and the kernel returns the
/// same address for the next `mmap`.
pub const MUNMAP_THEN_MMAP: &Scenario = &scenario("munmap_then_mmap", |memory| {
    unmap(memory);
    map_again(memory)
});

/// Maps memory without a requested address, as most programs do.
///
/// # Errors
///
/// The error of `mmap`. `AddrNotAvailable` if the kernel chose an address other than that of
/// `memory`.
pub fn map_again(memory: Memory) -> io::Result<()> {
    same_address(memory, map(memory.len())?)
}

/// A scenario together with its memory. Dropping the value frees the memory.
#[derive(Debug)]
pub struct Prepared {
    scenario: Scenario,
    memory: Memory,
}

impl Scenario {
    /// Makes the memory of the scenario.
    ///
    /// # Errors
    ///
    /// The kernel's error. `Unsupported` if this kernel does not support the scenario.
    pub fn prepare(&self) -> io::Result<Prepared> {
        Ok(Prepared {
            scenario: *self,
            memory: (self.make)()?,
        })
    }

    /// Makes memory, lets `first` use the memory, and then changes the memory.
    ///
    /// The function starts again if the kernel gives the address to another thread during the
    /// change. For example, the kernel may do so when malloc maps a heap for a thread that
    /// allocates for the first time.
    ///
    /// # Errors
    ///
    /// The kernel's error, or the error of `first`.
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
            // SAFETY: `first` has left no reference to the memory, by the caller's promise.
            let Err(error) = (unsafe { prepared.change() }) else {
                return Ok(prepared);
            };
            // Another thread may own the memory at this address now. So the scenario must not free
            // it.
            mem::forget(prepared);
            // These errors mean that another thread owns the address. The kernel chose a different
            // address, or refused to replace an existing mapping.
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
    /// Returns two values. The first is true if a program writes the memory before the first
    /// transfer. The second is true if a program writes the memory after the change.
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
    /// The kernel's error. `AddrNotAvailable` if the kernel chose an address other than that of the
    /// memory.
    ///
    /// # Safety
    ///
    /// No reference to the memory exists.
    pub unsafe fn change(&self) -> io::Result<()> {
        (self.scenario.change)(self.memory)
    }

    /// Returns the offsets of the part of the memory that changes.
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
