//! A scenario for programs with their own allocator.

use std::alloc::{Layout, alloc, dealloc};
use std::io;

use regcache_repro::{Memory, PAGE, Scenario, same_address, scenario};

/// Large enough that an allocator gives it back to the kernel if it gives anything back.
const LEN: usize = 1 << 20;

/// Frees memory of the program's global allocator, and allocates it again.
pub const DEALLOC_THEN_ALLOC: &Scenario = &Scenario {
    make: allocate,
    free,
    ..scenario("dealloc_then_alloc", |memory| {
        free(memory);
        same_address(memory, allocate()?)
    })
};

const LAYOUT: Layout = match Layout::from_size_align(LEN, PAGE) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};

/// Allocates memory without its first page, into which an allocator writes when it is freed.
fn allocate() -> io::Result<Memory> {
    // SAFETY: of some size.
    let start = unsafe { alloc(LAYOUT) };
    // SAFETY: allocated above, and nobody else has it.
    unsafe { Memory::at(start.expose_provenance() + PAGE, LEN - PAGE) }
}

fn free(memory: Memory) {
    // SAFETY: allocated so, and there is no reference to it.
    unsafe { dealloc(memory.as_ptr().sub(PAGE), LAYOUT) };
}
