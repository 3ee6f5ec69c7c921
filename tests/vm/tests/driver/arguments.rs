//! What the calls refuse, and that nothing comes of it.

use std::ptr;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use regcache::monitor::abi::Register;
use regcache_tests_vm::{DriverFile, PAGE, Pages};

use crate::watched;

#[test]
fn opening_for_writing_is_refused() {
    for access in [OFlag::O_WRONLY, OFlag::O_RDWR] {
        let opened = nix::fcntl::open("/dev/ummunotify", access, nix::sys::stat::Mode::empty());
        assert_eq!(opened.err(), Some(Errno::EINVAL));
    }
}

#[test]
fn no_feature_is_granted_whatever_is_asked() {
    for asked in [0, 1, 0xDEAD_BEEF, u32::MAX] {
        let mut mask = asked;
        DriverFile::open().unwrap().exchange(&mut mask).unwrap();
        assert_eq!(mask, 0);
    }
}

#[test]
fn features_are_exchanged_first_or_not_at_all() {
    let memory = Pages::new(1).unwrap();
    let uses: [&dyn Fn(&DriverFile); 5] = [
        &|device| device.exchange(&mut 0).unwrap(),
        &|device| device.watch(memory.page(0), PAGE, 1).unwrap(),
        &|device| assert_eq!(device.unwatch(1), Err(Errno::EINVAL)),
        &|device| assert_eq!(device.read(1), Err(Errno::EAGAIN)),
        &|device| drop(device.counter().unwrap()),
    ];
    for used in uses {
        let device = DriverFile::open().unwrap();
        used(&device);
        let mut mask = 5;
        assert_eq!(device.exchange(&mut mask), Err(Errno::EINVAL));
        assert_eq!(mask, 5, "refused and written all the same");
    }
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let device = DriverFile::open().unwrap();
    let memory = Pages::new(1).unwrap();
    let start = memory.page(0).addr() as u64;
    for (start, end) in [
        (start, start),
        (start + 1, start),
        (0, 0),
        (start, u64::MAX),
        (u64::MAX - 1, u64::MAX),
        (u64::MAX, start),
        (0xFFFF_8000_0000_0000, 0xFFFF_8000_0000_1000),
        (0x1000, 1 << 56),
        (1 << 56, (1 << 56) + 1),
    ] {
        let region = Register {
            start,
            end,
            user_cookie: 1,
            flags: 0,
            reserved: 0,
        };
        assert_eq!(
            device.register(&region),
            Err(Errno::EINVAL),
            "{start:#x}..{end:#x}"
        );
    }
    assert_eq!(device.unwatch(1), Err(Errno::EINVAL), "none is there");
}

#[test]
fn any_range_below_the_end_of_user_space_can_be_watched() {
    let device = DriverFile::open().unwrap();
    for (cookie, (start, end)) in [(0, 1), (0, 0x7FFF_FFFF_F000), (0x1001, 0x1002)]
        .iter()
        .enumerate()
    {
        let user_cookie = cookie as u64;
        let region = Register {
            start: *start,
            end: *end,
            user_cookie,
            ..Register::default()
        };
        device.register(&region).unwrap();
    }
}

#[test]
fn unknown_flags_are_refused_and_the_reserved_word_is_ignored() {
    let device = DriverFile::open().unwrap();
    let region = Register {
        start: 4096,
        end: 8192,
        user_cookie: 1,
        flags: 0,
        reserved: 0,
    };
    // Bit 0 asks for changes of protection.
    for bit in 1..32 {
        let flagged = Register {
            flags: 1 << bit,
            ..region
        };
        assert_eq!(device.register(&flagged), Err(Errno::EINVAL), "bit {bit}");
    }
    device
        .register(&Register {
            reserved: u32::MAX,
            ..region
        })
        .unwrap();
}

#[test]
fn a_live_cookie_is_refused_and_a_free_one_is_not() {
    let (device, memory) = watched(2);
    assert_eq!(device.watch(memory.page(1), PAGE, 0), Err(Errno::EINVAL));
    device.unwatch(0).unwrap();
    assert_eq!(
        device.unwatch(0),
        Err(Errno::EINVAL),
        "unregistered already"
    );
    device.watch(memory.page(1), PAGE, 0).unwrap();
    memory.unmap(0, 1).unwrap();
    assert_eq!(
        device.read(1),
        Err(Errno::EAGAIN),
        "page 0 is no longer watched"
    );
    for cookie in [u64::MAX, 1 << 63, 0xFFFF_FFFF] {
        device.watch(memory.page(1), PAGE, cookie).unwrap();
        device.unwatch(cookie).unwrap();
    }
}

#[test]
fn bad_pointers_are_efault() {
    let device = DriverFile::open().unwrap();
    for (request, pointer) in [
        (nix::request_code_readwrite!(b'U', 1, 4), 0),
        (nix::request_code_write!(b'U', 2, 32), 0),
        (nix::request_code_write!(b'U', 2, 32), usize::MAX),
        (nix::request_code_write!(b'U', 3, 8), 0),
    ] {
        let pointer = ptr::without_provenance_mut::<u8>(pointer);
        // SAFETY: the driver is what checks the pointer.
        let result = unsafe { libc::ioctl(device.raw(), request, pointer) };
        assert_eq!(Errno::result(result), Err(Errno::EFAULT));
    }
}

#[test]
fn unknown_calls_are_enotty() {
    let device = DriverFile::open().unwrap();
    for request in [
        nix::request_code_readwrite!(b'U', 0, 4),
        nix::request_code_readwrite!(b'U', 4, 8),
        nix::request_code_write!(b'U', 2, 24),
        nix::request_code_none!(b'V', 1),
    ] {
        // SAFETY: an unknown request uses no argument.
        let result = unsafe { libc::ioctl(device.raw(), request, ptr::null_mut::<u8>()) };
        assert_eq!(Errno::result(result), Err(Errno::ENOTTY), "{request:#x}");
    }
}

#[test]
fn a_read_smaller_than_an_event_is_refused() {
    let (device, memory) = watched(1);
    memory.unmap(0, 1).unwrap();
    let mut buffer = [0_u8; 31];
    for len in [0, 1, 31] {
        // SAFETY: the buffer is as long as that.
        let n = unsafe { libc::read(device.raw(), buffer.as_mut_ptr().cast(), len) };
        assert_eq!(Errno::result(n), Err(Errno::EINVAL));
    }
    assert_eq!(device.drain().unwrap(), (vec![0], 1), "nothing was lost");
}

#[test]
fn the_file_has_no_position() {
    let device = DriverFile::open().unwrap();
    // SAFETY: no memory is involved.
    let sought = unsafe { libc::lseek(device.raw(), 0, libc::SEEK_CUR) };
    assert_eq!(Errno::result(sought), Err(Errno::ESPIPE));
}
