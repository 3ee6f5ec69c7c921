//! Tests fixed buffers with the cache: reused addresses, the limits of the table, and the bytes
//! that the kernel moves.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use io_uring::IoUring;
use memmap2::MmapMut;
use regcache::monitor::{Monitor, Userfaultfd};
use regcache::{Cache, RegisterError, Registrar, VaRange};
use regcache_test_support::{NeverReports, PAGE, map_fixed, unmap};
use regcache_uring::{Error, FileIo, UringRegistrar};

/// A lock that a test holds while it runs, so that only one test at a time maps memory at the fixed
/// address.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Maps a page at a fixed address, which the kernel never chooses itself. So no other code gets
/// this address from `mmap`. ThreadSanitizer allows mappings at this address.
fn map() -> *mut u8 {
    map_fixed(0x5900_0000_0000, PAGE, libc::MAP_FIXED_NOREPLACE).unwrap()
}

/// Writes a page of 1s to a pipe. Then maps a page of 2s at the same address, and writes it to the
/// pipe. Returns the first byte that arrives in the second transfer.
fn reuse<M: Monitor>(monitor: M) -> u8 {
    let io = FileIo::new().unwrap();
    let cache = Cache::builder(io.registrar().clone())
        .monitor(monitor)
        .build()
        .unwrap();
    let (reader, writer) = io::pipe().unwrap();
    let mut sink = vec![0; PAGE];
    let mut arrived = |page: *mut u8, byte| {
        // SAFETY: the page is mapped, and this is the only reference to it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(page, PAGE) };
        bytes.fill(byte);
        assert_eq!(io.write(&cache, writer.as_fd(), bytes, 0).unwrap(), PAGE);
        assert_eq!(io.read(&cache, reader.as_fd(), &mut sink, 0).unwrap(), PAGE);
        assert!(sink.iter().all(|&byte| byte == sink[0]));
        sink[0]
    };
    let old = map();
    assert_eq!(arrived(old, 1), 1);
    unmap(old, PAGE).unwrap();
    let new = map();
    let second = arrived(new, 2);
    unmap(new, PAGE).unwrap();
    second
}

#[test]
fn a_naive_cache_writes_the_old_page_and_regcache_the_new_one() {
    let _alone = alone();
    assert_eq!(reuse(NeverReports), 1);
    match Userfaultfd::open() {
        Ok(monitor) => assert_eq!(reuse(monitor), 2),
        Err(error) => eprintln!("not tested here: {error}"),
    }
}

#[test]
fn when_the_table_is_full_idle_buffers_make_room() {
    let _alone = alone();
    let ring = IoUring::new(2).unwrap();
    let cache = Cache::builder(UringRegistrar::new(&ring, 2).unwrap())
        .monitor(NeverReports)
        .build()
        .unwrap();
    let memory = MmapMut::map_anon(8 * PAGE).unwrap();
    let get = |i: usize| cache.get(memory[i * PAGE..].as_ptr(), PAGE, ());
    let mut held = Vec::new();
    for i in 0..8 {
        let guard = get(i).unwrap();
        assert!(guard.registration().index() < 2);
        if i == 0 {
            held.push(guard);
        }
    }
    held.push(get(7).unwrap());
    let indices: Vec<_> = held.iter().map(|it| it.registration().index()).collect();
    assert_ne!(indices[0], indices[1]);
    assert!(get(5).is_err(), "both slots are in use");
    held.clear();
    assert!(get(5).is_ok());
}

#[test]
fn a_cleared_slot_is_empty_and_comes_back() {
    let io = FileIo::new().unwrap();
    let registrar = io.registrar();
    let memory = MmapMut::map_anon(2 * PAGE).unwrap();
    let range = |i: usize| VaRange::new(memory[i * PAGE..].as_ptr(), PAGE).unwrap();
    let first = registrar.register(range(0), ()).unwrap();
    let index = first.index();
    registrar.deregister(first).unwrap();
    let second = registrar.register(range(1), ()).unwrap();
    assert_eq!(second.index(), index);
    let (_reader, writer) = io::pipe().unwrap();
    // SAFETY: the memory is mapped.
    let written = unsafe { io.write_registered(writer.as_fd(), &memory[..PAGE], &second, 0) };
    assert!(matches!(written, Err(Error::WrongBuffer { .. })));
    let other = FileIo::new().unwrap();
    // SAFETY: the memory is mapped.
    let written = unsafe { other.write_registered(writer.as_fd(), &memory[PAGE..], &second, 0) };
    assert!(
        matches!(written, Err(Error::WrongBuffer { .. })),
        "the buffer belongs to another ring"
    );
    registrar.deregister(second).unwrap();
}

#[test]
fn what_the_kernel_cannot_register_is_an_error_that_says_why() {
    let io = FileIo::new().unwrap();
    let cache = Cache::builder(io.registrar().clone())
        .monitor(NeverReports)
        .build()
        .unwrap();
    let large = cache.get(ptr::without_provenance(1 << 40), (1 << 30) + 1, ());
    let why = format!("{:?}", large.unwrap_err());
    assert!(why.contains("1 GiB"), "{why}");
    let hole = cache
        .get(ptr::without_provenance(PAGE), PAGE, ())
        .unwrap_err();
    assert!(
        matches!(
            hole,
            regcache::Error::Register(RegisterError::NotMapped { .. })
        ),
        "{hole}"
    );
    let ring = IoUring::new(2).unwrap();
    for slots in [0, (1 << 14) + 1] {
        let error = UringRegistrar::new(&ring, slots).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    let _first = UringRegistrar::new(&ring, 1).unwrap();
    let second = UringRegistrar::new(&ring, 1).unwrap_err();
    assert_eq!(second.raw_os_error(), Some(libc::EBUSY));
}

#[test]
fn files_are_read_and_written_at_offsets() {
    let io = FileIo::new().unwrap();
    let cache = Cache::builder(io.registrar().clone()).build().unwrap();
    // SAFETY: the argument is a terminated string.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: the file descriptor was made above, and has no other owner.
    let file = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    let source: Vec<u8> = (0..3 * PAGE).map(|i| (i % 251) as u8).collect();
    let mut sink = vec![0; PAGE];
    assert_eq!(
        io.write(&cache, file.as_fd(), &source, 0).unwrap(),
        3 * PAGE
    );
    assert_eq!(io.read(&cache, file.as_fd(), &mut sink, 5).unwrap(), PAGE);
    assert_eq!(sink, source[5..5 + PAGE]);
    let end = 3 * PAGE as u64 - 7;
    assert_eq!(io.read(&cache, file.as_fd(), &mut sink, end).unwrap(), 7);
    assert_eq!(io.read(&cache, file.as_fd(), &mut [], 0).unwrap(), 0);
}
