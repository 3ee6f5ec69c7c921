//! A scenario for programs that replace the global allocator.

use std::alloc::{Layout, alloc, dealloc};
use std::io;

use regcache_repro::{Memory, PAGE, Scenario, same_address, scenario};

/// The number of bytes that the scenario allocates. A block of this size is large: an allocator
/// that returns any memory to the kernel returns such a block.
const LEN: usize = 1 << 20;

/// A scenario that frees a block of the program's global allocator, and allocates a block of the
/// same size again.
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
    Err(_) => panic!("the alignment is not a power of two"),
};

/// Allocates a block, and returns the block without its first page. The allocator may write into
/// the first page when the block is freed. So the scenario does not use the first page.
fn allocate() -> io::Result<Memory> {
    // SAFETY: the size of the layout is not 0.
    let start = unsafe { alloc(LAYOUT) };
    // SAFETY: the block was allocated above, and nothing else refers to it.
    unsafe { Memory::at(start.expose_provenance() + PAGE, LEN - PAGE) }
}

fn free(memory: Memory) {
    // SAFETY: `allocate` allocated the block with this layout, and no reference to it exists.
    unsafe { dealloc(memory.as_ptr().sub(PAGE), LAYOUT) };
}
