//! Tests the page that contains the generation counter.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::ptr;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use regcache_tests_vm::{DriverFile, PAGE};

use crate::watched;

fn map(
    device: &DriverFile,
    len: usize,
    protection: i32,
    flags: i32,
    offset: usize,
) -> io::Result<*mut u8> {
    let offset = offset as libc::off_t;
    // SAFETY: the kernel chooses the address, so the call replaces no mapping.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            protection,
            flags,
            device.raw(),
            offset,
        )
    };
    if start == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(start.cast())
    }
}

#[test]
fn the_counter_starts_at_zero_and_counts_invalidations() {
    let (device, memory) = watched(3);
    let counter = device.counter().unwrap();
    for i in 0..3 {
        assert_eq!(counter.get(), i as u64);
        memory.unmap(i, 1).unwrap();
    }
    assert_eq!(counter.get(), 3);
    assert_eq!(device.drain().unwrap().1, 3);
    assert_eq!(counter.get(), 3, "reading changes nothing");
    assert_eq!(
        device.counter().unwrap().get(),
        3,
        "a second mapping shows the same"
    );
}

#[test]
fn only_one_page_at_offset_0_can_be_mapped_and_only_for_reading() {
    let device = DriverFile::open().unwrap();
    let read = libc::PROT_READ;
    let errno = |result: io::Result<*mut u8>| result.unwrap_err().raw_os_error().unwrap();
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        assert_eq!(errno(map(&device, 2 * PAGE, read, flags, 0)), libc::EINVAL);
        assert_eq!(errno(map(&device, PAGE, read, flags, PAGE)), libc::EINVAL);
        assert_eq!(
            errno(map(&device, PAGE, read | libc::PROT_WRITE, flags, 0)),
            libc::EACCES
        );
        map(&device, PAGE, read, flags, 0).unwrap();
        map(&device, 1, read, flags, 0).unwrap();
    }
}

#[test]
fn the_page_cannot_be_made_writable_or_grow() {
    let device = DriverFile::open().unwrap();
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        let page = map(&device, PAGE, libc::PROT_READ, flags, 0)
            .unwrap()
            .cast();
        for protection in [libc::PROT_WRITE, libc::PROT_READ | libc::PROT_WRITE] {
            // SAFETY: the mapping belongs to this test, and no reference to it exists.
            let result = unsafe { libc::mprotect(page, PAGE, protection) };
            assert_eq!(Errno::result(result), Err(Errno::EACCES));
        }
        // SAFETY: the mapping belongs to this test, and no reference to it exists.
        let grown = unsafe { libc::mremap(page, PAGE, 2 * PAGE, libc::MREMAP_MAYMOVE) };
        assert_eq!(grown, libc::MAP_FAILED);
        assert_eq!(Errno::last(), Errno::EFAULT);
        // SAFETY: the mapping belongs to this test, and no reference to it exists. An old size of 0
        // requests a second mapping of a shared page.
        let doubled = unsafe { libc::mremap(page, 0, 2 * PAGE, libc::MREMAP_MAYMOVE) };
        assert_eq!(doubled, libc::MAP_FAILED);
    }
}

#[test]
fn the_page_cannot_be_written_through_proc_self_mem() {
    use std::os::unix::fs::FileExt;
    let (device, memory) = watched(1);
    let counter = device.counter().unwrap();
    let mem = std::fs::File::options()
        .write(true)
        .open("/proc/self/mem")
        .unwrap();
    let at = counter.as_ptr().addr() as u64;
    mem.write_at(&[0xFF; 8], at).unwrap_err();
    memory.unmap(0, 1).unwrap();
    assert_eq!(counter.get(), 1);
}

#[test]
fn the_page_outlives_the_descriptor() {
    let (device, memory) = watched(2);
    let counter = device.counter().unwrap();
    memory.unmap(0, 1).unwrap();
    drop(device);
    memory.unmap(1, 1).unwrap();
    assert_eq!(counter.get(), 2, "the mapping keeps the file open");
}

#[test]
fn the_page_comes_back_after_madvise_dontneed() {
    let (device, memory) = watched(1);
    let counter = device.counter().unwrap();
    memory.unmap(0, 1).unwrap();
    // SAFETY: this process only reads the page. The call drops the page, and the next access makes
    // the page present again at the same address.
    let dropped = unsafe {
        libc::madvise(
            counter.as_ptr().cast_mut().cast(),
            PAGE,
            libc::MADV_DONTNEED,
        )
    };
    assert_eq!(dropped, 0);
    assert_eq!(counter.get(), 1);
}

/// Opens the device through a device node outside /dev. If /dev is mounted with the option noexec,
/// the mount refuses an executable mapping, and the test proves nothing about the driver.
fn device_elsewhere() -> DriverFile {
    let dir = std::env::temp_dir().join(format!("ummunotify-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let (tmpfs, none) = (Some("tmpfs"), None::<&str>);
    mount(tmpfs, &dir, tmpfs, MsFlags::empty(), none).unwrap();
    let node = dir.join("ummunotify");
    let rdev = std::fs::metadata("/dev/ummunotify").unwrap().rdev();
    mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR, rdev).unwrap();
    let file = std::fs::File::open(&node);
    umount2(&dir, MntFlags::MNT_DETACH).unwrap();
    std::fs::remove_dir(&dir).unwrap();
    DriverFile::from(file.unwrap())
}

#[test]
fn the_page_cannot_be_executed_and_is_not_dumped() {
    let device = device_elsewhere();
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        let said = map(&device, PAGE, executable, flags, 0).unwrap_err();
        assert_eq!(said.raw_os_error(), Some(libc::EACCES));
        let page = map(&device, PAGE, libc::PROT_READ, flags, 0).unwrap();
        // SAFETY: the mapping belongs to this test, and nothing uses it.
        let made = unsafe { libc::mprotect(page.cast(), PAGE, executable) };
        assert_eq!(Errno::result(made), Err(Errno::EACCES));

        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", page.addr());
        let mut ours = maps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = ours.find_map(|line| line.strip_prefix("VmFlags:"));
        let flags: Vec<_> = flags.unwrap().split_whitespace().collect();
        assert!(
            flags.contains(&"dd"),
            "a core dump would contain the page: {flags:?}"
        );
    }
}
