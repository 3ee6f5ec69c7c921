//! A library that contains only memory and no code. The scenario `dlclose_then_mmap` loads and
//! unloads the library.

use std::cell::UnsafeCell;

/// Whole pages of zeros. The scenario writes them.
#[repr(align(4096))]
#[derive(Debug)]
pub struct Memory(pub UnsafeCell<[u8; 64 << 10]>);

// SAFETY: this library never accesses the memory. Only the scenario does.
unsafe impl Sync for Memory {}

/// The memory that the scenario writes and registers.
#[unsafe(no_mangle)]
pub static REGCACHE_DLCLOSE_FIXTURE: Memory = Memory(UnsafeCell::new([0; 64 << 10]));
