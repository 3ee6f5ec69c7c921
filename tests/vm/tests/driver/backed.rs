//! Tests the flag that requires a range to be backed. A range is backed if it is mapped memory
//! whose changes the kernel reports to the driver.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::unistd::ftruncate;
use regcache_tests_vm::{DriverFile, PAGE, Pages};
use ummunotify_sys::MUST_BE_BACKED;

const UNBACKED: nix::Result<()> = Err(Errno::ENXIO);

fn watch(device: &DriverFile, start: *const u8, pages: usize) -> nix::Result<()> {
    device.watch_with(MUST_BE_BACKED, start, pages * PAGE, 1)
}

/// Watches the pages, ends the watch, and returns the result of the watch.
fn tried(device: &DriverFile, start: *const u8, pages: usize) -> nix::Result<()> {
    let said = watch(device, start, pages);
    let known = device.unwatch(1);
    assert_eq!(
        known.is_ok(),
        said.is_ok(),
        "a watch exists if and only if it was granted"
    );
    said
}

/// Maps a page of the firmware. The kernel has no page structure for this page, as for the memory
/// of a device that a driver has mapped.
fn firmware() -> *const u8 {
    const ROM: i64 = 0xF_0000;
    let memory = File::open("/dev/mem").unwrap();
    let len = NonZeroUsize::new(PAGE).unwrap();
    let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
    // SAFETY: the kernel chooses the address, so the call replaces no mapping.
    let at = unsafe { mmap(None, len, read, shared, memory, ROM) };
    at.unwrap().as_ptr().cast()
}

#[test]
fn memory_is_backed_and_its_changes_are_reported() {
    let (device, memory) = (DriverFile::open().unwrap(), Pages::new(4).unwrap());
    // The first two pages are never touched. The last two pages are read-only. So the kernel keeps
    // the last two pages in a separate mapping.
    memory.advise(0, 4, libc::MADV_DONTNEED).unwrap();
    memory.protect(2, 2, libc::PROT_READ).unwrap();
    for (first, pages) in [(0, 2), (2, 2), (1, 2), (0, 4)] {
        assert_eq!(tried(&device, memory.page(first), pages), Ok(()));
    }
    watch(&device, memory.page(0), 4).unwrap();
    memory.unmap(3, 1).unwrap();
    assert_eq!(device.drain(), Ok((vec![1], 1)));
}

#[test]
fn a_files_pages_are_backed() {
    let file = memfd_create(c"backed", MFdFlags::empty()).unwrap();
    ftruncate(&file, PAGE as i64).unwrap();
    let device = DriverFile::open().unwrap();
    for flags in [MapFlags::MAP_SHARED, MapFlags::MAP_PRIVATE] {
        let len = NonZeroUsize::new(PAGE).unwrap();
        // SAFETY: the kernel chooses the address, so the call replaces no mapping.
        let at = unsafe { mmap(None, len, ProtFlags::PROT_READ, flags, file.as_fd(), 0) };
        assert_eq!(tried(&device, at.unwrap().as_ptr().cast(), 1), Ok(()));
    }
}

#[test]
fn where_nothing_is_mapped_nothing_is_backed() {
    let (device, memory) = (DriverFile::open().unwrap(), Pages::new(5).unwrap());
    memory.unmap(1, 1).unwrap();
    memory.unmap(4, 1).unwrap();
    // In order, the ranges cover a hole, end in the hole, start in it, reach across it, and reach
    // beyond the last mapping.
    for (first, pages) in [(1, 1), (0, 2), (1, 2), (0, 4), (2, 3)] {
        assert_eq!(tried(&device, memory.page(first), pages), UNBACKED);
    }
    assert_eq!(tried(&device, memory.page(2), 2), Ok(()));
    let nowhere = std::ptr::without_provenance(0x2000_0000_0000);
    assert_eq!(tried(&device, nowhere, 1), UNBACKED);
}

#[test]
fn what_may_not_be_accessed_is_not_backed() {
    let (device, memory) = (DriverFile::open().unwrap(), Pages::new(3).unwrap());
    memory.protect(1, 1, libc::PROT_NONE).unwrap();
    for (first, pages) in [(1, 1), (0, 2), (1, 2), (0, 3)] {
        assert_eq!(tried(&device, memory.page(first), pages), UNBACKED);
    }
    for first in [0, 2] {
        assert_eq!(tried(&device, memory.page(first), 1), Ok(()));
    }
}

#[test]
fn what_a_driver_maps_is_not_backed() {
    let device = DriverFile::open().unwrap();
    assert_eq!(tried(&device, firmware(), 1), UNBACKED);
}

#[test]
fn all_of_these_can_be_watched_without_the_flag() {
    let (device, memory) = (DriverFile::open().unwrap(), Pages::new(2).unwrap());
    memory.protect(0, 1, libc::PROT_NONE).unwrap();
    memory.unmap(1, 1).unwrap();
    let places = [memory.page(0).cast_const(), memory.page(1), firmware()];
    for (cookie, at) in places.into_iter().enumerate() {
        device.watch_with(0, at, PAGE, cookie as u64).unwrap();
    }
}

#[test]
fn a_refused_range_is_not_reported() {
    let (device, memory) = (DriverFile::open().unwrap(), Pages::new(2).unwrap());
    let counter = device.counter().unwrap();
    memory.protect(1, 1, libc::PROT_NONE).unwrap();
    assert_eq!(watch(&device, memory.page(0), 2), UNBACKED);
    memory.unmap(0, 2).unwrap();
    assert_eq!((counter.get(), device.drain()), (0, Err(Errno::EAGAIN)));
}
