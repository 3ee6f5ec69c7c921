//! The library that the scenario `dlclose_then_mmap` loads and unloads. It consists of memory.

use std::cell::UnsafeCell;

/// Whole pages of zeros, which the scenario writes.
#[repr(align(4096))]
#[derive(Debug)]
pub struct Memory(pub UnsafeCell<[u8; 64 << 10]>);

// SAFETY: this library does not touch it.
unsafe impl Sync for Memory {}

/// The memory that the scenario writes and registers.
#[unsafe(no_mangle)]
pub static REGCACHE_DLCLOSE_FIXTURE: Memory = Memory(UnsafeCell::new([0; 64 << 10]));
