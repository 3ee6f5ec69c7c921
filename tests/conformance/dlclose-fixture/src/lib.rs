//! A library that is loaded and unloaded again by the scenario `dlclose_then_mmap`: it has nothing but memory.

use std::cell::UnsafeCell;

/// Whole pages, of zeros until somebody writes them.
#[repr(align(4096))]
#[derive(Debug)]
pub struct Memory(pub UnsafeCell<[u8; 64 << 10]>);

// SAFETY: nobody here touches it.
unsafe impl Sync for Memory {}

/// What is written, and registered.
#[unsafe(no_mangle)]
pub static REGCACHE_DLCLOSE_FIXTURE: Memory = Memory(UnsafeCell::new([0; 64 << 10]));
