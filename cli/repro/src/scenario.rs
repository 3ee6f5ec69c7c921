//! Defines [`Scenario`], one way in which the memory behind an address changes.
//!
//! A scenario makes memory. When the caller requests the change, the scenario may put other pages
//! behind some or all of the memory's addresses. After the change, the memory is readable and
//! writable at the same addresses.

use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;

use crate::PAGE;
use crate::memory::{Memory, map, same_address, unmap};

/// The length in bytes of the memory of most scenarios. The memory is small, so that a driver that
/// overlooks small invalidations fails the scenarios.
pub const SCENARIO_LEN: usize = 8 * PAGE;

/// The largest number of attempts at one scenario. An attempt fails if the kernel gives the
/// addresses of the memory to another thread.
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
    /// The times at which the program that runs the scenario writes the memory.
    pub written: Written,
    /// True if the change always puts other pages behind the addresses. False if the pages stay, or
    /// if the kernel or malloc decides whether the pages stay.
    pub replaces: bool,
}

/// The times at which the program that runs the scenario writes the memory. A write populates every
/// page that is not populated yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The program writes the memory before each transfer.
    BeforeEach,
    /// The program writes the memory before the first transfer, and does not write it after the
    /// change.
    BeforeTheFirst,
    /// The program does not write the memory itself. The function that changes the memory may write
    /// it.
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

/// The shortest scenario that shows the reuse bug. The memory is unmapped, and the kernel returns
/// the same address for the next `mmap`.
pub const MUNMAP_THEN_MMAP: &Scenario = &scenario("munmap_then_mmap", |memory| {
    unmap(memory);
    map_again(memory)
});

/// Maps memory without a requested address, as most programs do.
///
/// # Errors
///
/// Returns the error of `mmap`, or `AddrNotAvailable` if the kernel chose another address than the
/// address of `memory`.
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
    /// Returns the kernel's error, or `Unsupported` if this kernel does not support the scenario.
    pub fn prepare(&self) -> io::Result<Prepared> {
        Ok(Prepared {
            scenario: *self,
            memory: (self.make)()?,
        })
    }

    /// Makes memory, lets `first` use the memory, and then changes the memory.
    ///
    /// If the kernel gives the address to another thread during the change, the function starts
    /// again. For example, malloc maps a heap when a thread allocates for the first time, and this
    /// heap may get the address.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error, or the error of `first`.
    ///
    /// # Safety
    ///
    /// `first` must leave no reference to the memory.
    pub unsafe fn changed_after<E: From<io::Error>>(
        &self,
        mut first: impl FnMut(&Prepared) -> Result<(), E>,
    ) -> Result<Prepared, E> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let prepared = self.prepare()?;
            first(&prepared)?;
            // SAFETY: the caller promises that `first` leaves no reference to the memory.
            let Err(error) = (unsafe { prepared.change() }) else {
                return Ok(prepared);
            };
            // Another thread may own the memory at this address now. So the memory must not be
            // freed here.
            mem::forget(prepared);
            // With these two errors, another thread may own the address. The kernel chose a
            // different address, or refused to replace an existing mapping.
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
    /// Returns two values. The first is true if the program writes the memory before the first
    /// transfer. The second is true if the program writes the memory after the change.
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

    /// Changes the memory: may put other pages behind the part [`changed`](Self::changed).
    ///
    /// # Errors
    ///
    /// Returns the kernel's error, or `AddrNotAvailable` if the kernel chose another address than
    /// the address of the memory.
    ///
    /// # Safety
    ///
    /// No reference to the memory may exist.
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
