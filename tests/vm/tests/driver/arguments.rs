//! Tests that the calls refuse bad arguments, and that a refused call has no effect.

use std::ptr;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use regcache_tests_vm::{DriverFile, PAGE, Pages, Random};
use ummunotify_sys::{MUST_BE_BACKED, PROTECTION, Register, Register2};

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
        assert_eq!(mask, 5, "the driver refused the call, but wrote the mask");
    }
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let device = DriverFile::open().unwrap();
    let memory = Pages::new(1).unwrap();
    let start = memory.page(0).addr() as u64;
    for (start, end) in [
        (start + 1, start),
        (start, u64::MAX),
        (u64::MAX - 1, u64::MAX),
        (u64::MAX, start),
        (0xFFFF_8000_0000_0000, 0xFFFF_8000_0000_1000),
        (0x1000, 1 << 56),
        (1 << 56, (1 << 56) + 1),
        (1 << 56, 1 << 56),
        (u64::MAX, u64::MAX),
    ] {
        let region = Register {
            start,
            end,
            user_cookie: 1,
            ..Register::default()
        };
        let region2 = Register2 {
            start,
            end,
            user_cookie: 1,
            ..Register2::default()
        };
        let said = [device.register(&region), device.register2(&region2)];
        assert_eq!(said, [Err(Errno::EINVAL); 2], "{start:#x}..{end:#x}");
    }
    assert_eq!(
        device.unwatch(1),
        Err(Errno::EINVAL),
        "the refused range is watched"
    );
}

#[test]
fn any_range_below_the_end_of_user_space_can_be_watched() {
    let device = DriverFile::open().unwrap();
    for (cookie, (start, end)) in [(0, 0), (0, 1), (0, 0x7FFF_FFFF_F000), (0x1001, 0x1002)]
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

/// Calls REGISTER_REGION as programs of 2010 do. Such a program fills in only the fields that it
/// knows, so the other fields contain arbitrary bytes of the program's stack. The program ignores
/// the result of the call.
#[test]
fn whatever_flags_and_reserved_hold_a_range_is_watched_and_nothing_is_switched_on() {
    const CALLS: u64 = 10_000;
    let mut junk = Random::new(0x5EED);
    let device = DriverFile::open().unwrap();
    let counter = device.counter().unwrap();
    let memory = Pages::new(2).unwrap();
    let unbacked = memory.page(1).addr() as u64;
    memory.unmap(1, 1).unwrap();
    for cookie in 0..CALLS {
        // The first 64 calls set one bit each. The other calls set random bits.
        let (flags, reserved) = match cookie {
            0..32 => (1 << cookie, 0),
            32..64 => (0, 1 << (cookie - 32)),
            _ => (junk.below(1 << 32) as u32, junk.below(1 << 32) as u32),
        };
        let start = if cookie % 2 == 0 {
            memory.page(0).addr() as u64
        } else {
            unbacked
        };
        let region = Register {
            start,
            end: start + PAGE as u64,
            user_cookie: cookie,
            flags,
            reserved,
        };
        let _ = device.register(&region);
    }
    memory.protect(0, 1, libc::PROT_READ).unwrap();
    assert_eq!(counter.get(), 0, "changes of protection are not counted");
    memory.map_over(0, 1).unwrap();
    let (cookies, _) = device.drain().unwrap();
    // The ranges with odd cookies are not mapped. So none of their pages changes, and the driver
    // reports none of these ranges.
    assert!(cookies.into_iter().eq((0..CALLS).step_by(2)));
    for cookie in 0..CALLS {
        device.unwatch(cookie).unwrap();
    }
}

#[test]
fn a_range_without_length_is_the_byte_at_its_start() {
    let device = DriverFile::open().unwrap();
    let memory = Pages::new(3).unwrap();
    let start = memory.page(1).addr() as u64;
    let end = start + PAGE as u64;
    for (user_cookie, at) in [start - 1, start, end - 1, end].into_iter().enumerate() {
        let region = Register {
            start: at,
            end: at,
            user_cookie: user_cookie as u64,
            ..Register::default()
        };
        device.register(&region).unwrap();
    }
    memory.unmap(1, 1).unwrap();
    let events = device.read(4).unwrap();
    let reported: Vec<_> = events
        .iter()
        .map(|it| (it.user_cookie_counter, it.hint_start, it.hint_end))
        .collect();
    assert_eq!(reported[..2], [(1, start, start + 1), (2, end - 1, end)]);
    assert_eq!(events.len(), 3, "the two events and LAST must arrive");
}

#[test]
fn the_extended_call_takes_the_flags_that_it_knows_and_no_others() {
    let device = DriverFile::open().unwrap();
    let memory = Pages::new(1).unwrap();
    for flags in 0..=PROTECTION | MUST_BE_BACKED {
        device.watch_with(flags, memory.page(0), PAGE, 1).unwrap();
        device.unwatch(1).unwrap();
    }
    for bit in 2..32 {
        let said = device.watch_with(1 << bit, memory.page(0), PAGE, 1);
        assert_eq!(said, Err(Errno::EINVAL), "bit {bit}");
        assert_eq!(device.unwatch(1), Err(Errno::EINVAL));
    }
}

/// The structure of REGISTER_REGION2 at the start of a longer structure, as a later version of the
/// ABI may define it.
#[repr(C)]
struct Longer(Register2, [u8; 8192]);

#[test]
fn the_extended_structure_may_be_longer_than_known_where_it_is_zero() {
    let device = DriverFile::open().unwrap();
    let start = Pages::new(1).unwrap().page(0).addr() as u64;
    let mut longer = Longer(
        Register2 {
            start,
            end: start + PAGE as u64,
            user_cookie: 1,
            ..Register2::default()
        },
        [0; 8192],
    );
    let register = |longer: &Longer| {
        let request = nix::request_code_none!(b'U', 4);
        // SAFETY: the driver reads at most one page, and the structure is longer than one page.
        let said = unsafe { libc::ioctl(device.raw(), request, &raw const *longer) };
        Errno::result(said).map(drop)
    };
    let known = size_of::<Register2>() as u32;
    for size in (0..known).chain([u32::MAX]) {
        longer.0.size = size;
        let expected = if size < known {
            Errno::EINVAL
        } else {
            Errno::E2BIG
        };
        assert_eq!(register(&longer), Err(expected), "{size}");
    }
    for size in [known, known + 1, known + 8, 4096] {
        longer.0.size = size;
        register(&longer).unwrap();
        device.unwatch(1).unwrap();
        if size == known {
            continue;
        }
        let last = (size - known - 1) as usize;
        longer.1[last] = 1;
        assert_eq!(register(&longer), Err(Errno::E2BIG), "{size}");
        longer.1[last] = 0;
        // The driver must accept a byte other than 0 after the stated size, because the driver must
        // not read this byte.
        longer.1[last + 1] = 1;
        register(&longer).unwrap();
        longer.1[last + 1] = 0;
        device.unwatch(1).unwrap();
    }
    longer.0.size = 4097;
    assert_eq!(register(&longer), Err(Errno::E2BIG));
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
        (nix::request_code_none!(b'U', 4), 0),
        (nix::request_code_none!(b'U', 4), usize::MAX),
    ] {
        let pointer = ptr::without_provenance_mut::<u8>(pointer);
        // SAFETY: the driver checks the pointer, and returns an error if it cannot read the memory.
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
        // SAFETY: the driver does not use the argument of an unknown request.
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
        // SAFETY: the buffer has at least `len` bytes.
        let n = unsafe { libc::read(device.raw(), buffer.as_mut_ptr().cast(), len) };
        assert_eq!(Errno::result(n), Err(Errno::EINVAL));
    }
    assert_eq!(
        device.drain().unwrap(),
        (vec![0], 1),
        "the event must not be lost"
    );
}

#[test]
fn the_file_has_no_position() {
    let device = DriverFile::open().unwrap();
    // SAFETY: the call accesses no memory.
    let sought = unsafe { libc::lseek(device.raw(), 0, libc::SEEK_CUR) };
    assert_eq!(Errno::result(sought), Err(Errno::ESPIPE));
}
