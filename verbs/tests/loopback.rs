//! Checks the promises of the registrar and of the loopback connection, on a real device.
//!
//! Any device with an ACTIVE port is sufficient. As root, make a software device with `modprobe
//! rdma_rxe && ip link set lo up && rdma link add rxe0 type rxe netdev lo`. Then run `cargo test -p
//! regcache-verbs --features rdma-device`.

#![expect(clippy::unwrap_used, reason = "how a test fails")]

use std::ffi::CStr;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use regcache::{Registrar as _, VaRange};
use regcache_verbs::{
    Access, Context, Cq, End, Error, Loopback, Mr, MrRegistrar, Operation, Pd, Qp, RemoteMemory,
    Route, Sge, WcStatus, device_names,
};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// The sizes of the transfers: around the path MTU (1024 or 4096), the page size, and the largest
/// message of rxe (8 MiB).
const SIZES: [usize; 13] = [
    1,
    2,
    63,
    1023,
    1025,
    PAGE - 1,
    PAGE,
    PAGE + 1,
    64 * 1024 + 1,
    MIB,
    8 * MIB,
    8 * MIB + 1,
    16 * MIB,
];

const ALL: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_WRITE)
    .union(Access::REMOTE_READ);

/// A mapping of anonymous pages, which is unmapped on drop.
struct Pages {
    start: *mut u8,
    len: usize,
}

impl Pages {
    fn map(len: usize) -> Self {
        Self::map_at(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, 0)
    }

    fn map_at(at: *mut u8, len: usize, protection: i32, flags: i32) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        // SAFETY: the call replaces no mapping, because MAP_FIXED is not set. MAP_FIXED_NOREPLACE
        // fails instead of replacing.
        let start = unsafe { libc::mmap(at.cast(), len, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self {
            start: start.cast(),
            len,
        }
    }

    /// Maps a page at an address that the kernel does not return to other threads, not even between
    /// munmap and mmap. The kernel places new mappings next to existing ones, and this address is
    /// far below them.
    fn map_apart() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0x6000_0000_0000);
        let at = NEXT.fetch_add(16 * PAGE, Ordering::Relaxed);
        let at = ptr::without_provenance_mut(at);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Self::map_at(at, PAGE, protection, libc::MAP_FIXED_NOREPLACE)
    }

    /// Unmaps the pages and maps other pages at the same address. The kernel could choose this
    /// address itself.
    fn unmapped_and_mapped_again(self) -> Self {
        let (start, len) = (self.start, self.len);
        drop(self);
        let again = Self::map_at(
            start,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_FIXED_NOREPLACE,
        );
        assert_eq!(again.start, start);
        again
    }

    fn filled(self, byte: u8) -> Self {
        let mut pages = self;
        pages.bytes_mut().fill(byte);
        pages
    }

    fn range(&self) -> VaRange {
        VaRange::new(self.start, self.len).unwrap()
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `self` owns the mapping, which is readable if a test calls this function.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `self` owns the mapping, and stays mutably borrowed while the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `self` owns the mapping, and borrows of its bytes are over.
        let unmapped = unsafe { libc::munmap(self.start.cast(), self.len) };
        assert_eq!(unmapped, 0);
    }
}

fn domain() -> Arc<Pd> {
    Pd::alloc(&Context::open_first().unwrap()).unwrap()
}

fn register(pd: &Arc<Pd>, pages: &Pages, access: Access) -> Mr {
    MrRegistrar::new(pd)
        .register(pages.range(), access)
        .unwrap()
}

/// Fills `bytes` with a pattern that is different for each packet, page and seed.
fn pattern(bytes: &mut [u8], seed: u32) {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        *byte = state as u8;
    }
}

/// Transfers with registrations that the tests made without a cache.
trait Raw {
    fn raw_send(&mut self, from: &[u8], fm: &Mr, to: &mut [u8], tm: &Mr) -> Result<(), Error>;
    fn raw_write(&mut self, from: &[u8], fm: &Mr, to: &mut [u8], tm: &Mr) -> Result<(), Error>;
    fn raw_read(&mut self, from: &[u8], fm: &Mr, to: &mut [u8], tm: &Mr) -> Result<(), Error>;
}

impl Raw for Loopback {
    fn raw_send(&mut self, from: &[u8], fm: &Mr, to: &mut [u8], tm: &Mr) -> Result<(), Error> {
        // SAFETY: the tests unmap memory and map it again, but they do not move a mapping to
        // another address.
        unsafe { self.send_registered(from, fm, to, tm) }
    }

    fn raw_write(&mut self, from: &[u8], fm: &Mr, to: &mut [u8], tm: &Mr) -> Result<(), Error> {
        // SAFETY: the tests unmap memory and map it again, but they do not move a mapping to
        // another address.
        unsafe { self.rdma_write_registered(from, fm, to, tm) }
    }

    fn raw_read(&mut self, from: &[u8], fm: &Mr, to: &mut [u8], tm: &Mr) -> Result<(), Error> {
        // SAFETY: the tests unmap memory and map it again, but they do not move a mapping to
        // another address.
        unsafe { self.rdma_read_registered(from, fm, to, tm) }
    }
}

type Transfer = fn(&mut Loopback, &[u8], &Mr, &mut [u8], &Mr) -> Result<(), Error>;

/// Transfers every size, at unaligned addresses. The bytes before and after the destination must
/// not change.
fn moves_the_bytes_at_every_size(transfer: Transfer, source: Access, destination: Access) {
    let pd = domain();
    let mut loopback = Loopback::connect(&pd).unwrap();
    let room = SIZES[SIZES.len() - 1] + PAGE;
    let (mut from, mut to) = (Pages::map(room), Pages::map(room));
    let from_mr = register(&pd, &from, source);
    let to_mr = register(&pd, &to, destination);
    for (index, size) in SIZES.into_iter().enumerate() {
        let (offset, at) = (index * 7 % 64 + 1, index * 11 % 64 + 1);
        pattern(
            &mut from.bytes_mut()[offset..offset + size],
            index as u32 + 1,
        );
        to.bytes_mut().fill(0xee);
        let started = Instant::now();
        transfer(
            &mut loopback,
            &from.bytes()[offset..offset + size],
            &from_mr,
            &mut to.bytes_mut()[at..at + size],
            &to_mr,
        )
        .unwrap_or_else(|error| panic!("{size} bytes: {error}"));
        println!("{size} bytes: {:?}", started.elapsed());
        assert!(
            to.bytes()[at..at + size] == from.bytes()[offset..offset + size],
            "{size} bytes"
        );
        assert!(
            to.bytes()[..at].iter().all(|&byte| byte == 0xee),
            "before {size} bytes"
        );
        assert!(
            to.bytes()[at + size..].iter().all(|&byte| byte == 0xee),
            "after {size} bytes"
        );
    }
}

#[test]
fn send_moves_the_bytes_at_every_size() {
    moves_the_bytes_at_every_size(Loopback::raw_send, Access::empty(), Access::LOCAL_WRITE);
}

#[test]
fn rdma_write_lands_at_the_destination_at_every_size() {
    moves_the_bytes_at_every_size(Loopback::raw_write, Access::empty(), Access::REMOTE_WRITE);
}

#[test]
fn rdma_read_brings_the_source_at_every_size() {
    moves_the_bytes_at_every_size(Loopback::raw_read, Access::REMOTE_READ, Access::LOCAL_WRITE);
}

/// Shows, without a cache, the bug that the cache prevents.
#[test]
fn a_registration_reads_the_old_page_after_munmap_and_mmap() {
    let transfers: [Transfer; 3] = [Loopback::raw_send, Loopback::raw_write, Loopback::raw_read];
    for transfer in transfers {
        let pd = domain();
        let mut loopback = Loopback::connect(&pd).unwrap();
        let mut to = Pages::map(PAGE);
        let to_mr = register(&pd, &to, ALL);
        let old = Pages::map_apart().filled(b'A');
        let stale = register(&pd, &old, ALL);

        let new = old.unmapped_and_mapped_again().filled(b'B');
        transfer(&mut loopback, new.bytes(), &stale, to.bytes_mut(), &to_mr).unwrap();
        assert!(
            to.bytes().iter().all(|&byte| byte == b'A'),
            "the device read {}",
            to.bytes()[0]
        );

        // A new registration of the same addresses reads the new page, while the stale one still
        // exists.
        let fresh = register(&pd, &new, ALL);
        transfer(&mut loopback, new.bytes(), &fresh, to.bytes_mut(), &to_mr).unwrap();
        assert!(
            to.bytes().iter().all(|&byte| byte == b'B'),
            "the device read {}",
            to.bytes()[0]
        );
        stale.deregister().unwrap();
    }
}

#[test]
fn a_registration_writes_the_old_page_after_munmap_and_mmap() {
    let transfers: [Transfer; 3] = [Loopback::raw_send, Loopback::raw_write, Loopback::raw_read];
    for transfer in transfers {
        let pd = domain();
        let mut loopback = Loopback::connect(&pd).unwrap();
        let from = Pages::map(PAGE).filled(b'A');
        let from_mr = register(&pd, &from, ALL);
        let old = Pages::map_apart().filled(b'B');
        let stale = register(&pd, &old, ALL);

        let mut new = old.unmapped_and_mapped_again().filled(b'C');
        transfer(
            &mut loopback,
            from.bytes(),
            &from_mr,
            new.bytes_mut(),
            &stale,
        )
        .unwrap();
        assert!(new.bytes().iter().all(|&byte| byte == b'C'));
    }
}

#[test]
fn a_slice_outside_the_registration_is_refused() {
    let pd = domain();
    let mut loopback = Loopback::connect(&pd).unwrap();
    let mut pages = Pages::map(4 * PAGE).filled(1);
    let mut to = Pages::map(4 * PAGE).filled(2);
    let to_mr = register(&pd, &to, ALL);
    let middle = VaRange::new(pages.bytes()[PAGE..].as_ptr(), 2 * PAGE).unwrap();
    let mr = Mr::register(&pd, middle, ALL).unwrap();

    let outside = [
        0..PAGE,
        PAGE - 1..2 * PAGE,
        2 * PAGE..3 * PAGE + 1,
        3 * PAGE..4 * PAGE,
    ];
    for slice in outside {
        let len = slice.len();
        let source = &pages.bytes()[slice.clone()];
        let refused = loopback.raw_write(source, &mr, &mut to.bytes_mut()[..len], &to_mr);
        let Err(Error::OutsideRegistration {
            end: End::Source,
            start,
            len: reported,
            registered,
        }) = refused
        else {
            panic!("{slice:?} as the source: {refused:?}");
        };
        assert_eq!(
            (start, reported, registered),
            (source.as_ptr().addr(), len, middle)
        );

        let destination = &mut pages.bytes_mut()[slice.clone()];
        let refused = loopback.raw_send(&to.bytes()[..len], &to_mr, destination, &mr);
        assert!(
            matches!(
                refused,
                Err(Error::OutsideRegistration {
                    end: End::Destination,
                    ..
                })
            ),
            "{slice:?} as the destination: {refused:?}"
        );
    }
    assert!(to.bytes().iter().all(|&byte| byte == 2));
    assert!(pages.bytes().iter().all(|&byte| byte == 1));

    // Slices that begin with the first byte or end with the last byte of the registration are
    // within the registration.
    for slice in [PAGE..PAGE + 1, 3 * PAGE - 1..3 * PAGE, PAGE..3 * PAGE] {
        let len = slice.len();
        loopback
            .raw_send(
                &pages.bytes()[slice],
                &mr,
                &mut to.bytes_mut()[..len],
                &to_mr,
            )
            .unwrap();
    }
}

#[test]
fn slices_of_unequal_length_are_refused_and_empty_ones_do_nothing() {
    let pd = domain();
    let mut loopback = Loopback::connect(&pd).unwrap();
    let from = Pages::map(PAGE);
    let mut to = Pages::map(PAGE);
    let (from_mr, to_mr) = (register(&pd, &from, ALL), register(&pd, &to, ALL));
    let refused = loopback.raw_send(
        &from.bytes()[..5],
        &from_mr,
        &mut to.bytes_mut()[..6],
        &to_mr,
    );
    assert!(matches!(
        refused,
        Err(Error::LengthMismatch {
            source_len: 5,
            destination_len: 6
        })
    ));
    loopback.raw_send(&[], &from_mr, &mut [], &to_mr).unwrap();
}

#[test]
fn a_registration_of_another_domain_is_refused() {
    let (pd, other) = (domain(), domain());
    let mut loopback = Loopback::connect(&pd).unwrap();
    let from = Pages::map(PAGE);
    let mut to = Pages::map(PAGE);
    let (from_mr, to_mr) = (register(&other, &from, ALL), register(&pd, &to, ALL));
    let refused = loopback.raw_send(from.bytes(), &from_mr, to.bytes_mut(), &to_mr);
    assert!(matches!(
        refused,
        Err(Error::OtherDomain { end: End::Source })
    ));
}

/// Checks that a transfer fails if its registrations do not allow it, and that the next transfer
/// succeeds.
fn is_refused_and_the_next_is_not(
    transfer: Transfer,
    source: Access,
    destination: Access,
    expected: &[(End, WcStatus)],
) {
    let pd = domain();
    let mut loopback = Loopback::connect(&pd).unwrap();
    let from = Pages::map(2 * PAGE).filled(b'A');
    let mut to = Pages::map(2 * PAGE).filled(b'B');
    let from_mr = register(&pd, &from, source);
    let to_mr = register(&pd, &to, destination);
    for round in 0..3 {
        let failed = transfer(
            &mut loopback,
            from.bytes(),
            &from_mr,
            to.bytes_mut(),
            &to_mr,
        );
        let Err(Error::Completion { end, status, .. }) = failed else {
            panic!("round {round}: {failed:?}");
        };
        println!("{end}: {status:?}");
        assert!(
            expected.contains(&(end, status)),
            "round {round}: at the {end}, {status:?}"
        );
        assert!(
            to.bytes().iter().all(|&byte| byte == b'B'),
            "round {round}: bytes were moved"
        );
    }

    let from_mr = register(&pd, &from, ALL);
    let to_mr = register(&pd, &to, ALL);
    transfer(
        &mut loopback,
        from.bytes(),
        &from_mr,
        to.bytes_mut(),
        &to_mr,
    )
    .unwrap();
    assert!(to.bytes().iter().all(|&byte| byte == b'A'));
}

#[test]
fn a_write_without_remote_write_fails_and_leaves_the_connection_usable() {
    is_refused_and_the_next_is_not(
        Loopback::raw_write,
        Access::empty(),
        Access::LOCAL_WRITE,
        &[(End::Source, WcStatus::REM_ACCESS_ERR)],
    );
}

#[test]
fn a_read_without_remote_read_fails_and_leaves_the_connection_usable() {
    is_refused_and_the_next_is_not(
        Loopback::raw_read,
        Access::REMOTE_WRITE,
        Access::LOCAL_WRITE,
        &[(End::Destination, WcStatus::REM_ACCESS_ERR)],
    );
}

#[test]
fn a_receive_without_local_write_fails_and_leaves_the_connection_usable() {
    is_refused_and_the_next_is_not(
        Loopback::raw_send,
        Access::empty(),
        Access::REMOTE_READ,
        &[
            (End::Destination, WcStatus::LOC_PROT_ERR),
            // rxe reports this status instead of LOC_PROT_ERR.
            (End::Destination, WcStatus::LOC_QP_OP_ERR),
            (End::Source, WcStatus::REM_OP_ERR),
        ],
    );
}

/// Checks that the device no longer writes after the transfer has returned an error.
///
/// rxe does most of the work in the call that posts the work request. So most of these transfers
/// time out between their two messages, and few time out within a message. In
/// `a_destroyed_queue_pair_lets_go_of_its_receive` a work request is certainly outstanding.
#[test]
fn a_transfer_given_up_writes_no_more_and_leaves_the_connection_usable() {
    const SIZE: usize = 16 * MIB;
    let pd = domain();
    let mut loopback = Loopback::connect(&pd).unwrap();
    let mut from = Pages::map(SIZE);
    pattern(from.bytes_mut(), 1);
    let mut to = Pages::map(SIZE);
    let (from_mr, to_mr) = (register(&pd, &from, ALL), register(&pd, &to, ALL));
    let transfers: [Transfer; 3] = [Loopback::raw_send, Loopback::raw_write, Loopback::raw_read];
    for transfer in transfers {
        for _ in 0..2 {
            to.bytes_mut().fill(0);
            loopback.set_timeout(Duration::ZERO);
            let failed = transfer(
                &mut loopback,
                from.bytes(),
                &from_mr,
                to.bytes_mut(),
                &to_mr,
            );
            assert!(
                matches!(failed, Err(Error::TimedOut { len: SIZE, .. })),
                "{failed:?}"
            );
            let written = to.bytes().iter().filter(|&&byte| byte != 0).count();
            println!("given up after about {written} of {SIZE} bytes");
            to.bytes_mut().fill(0);
            thread::sleep(Duration::from_millis(200));
            assert!(
                to.bytes().iter().all(|&byte| byte == 0),
                "the device went on writing"
            );
        }
        loopback.set_timeout(Duration::from_secs(30));
        transfer(
            &mut loopback,
            from.bytes(),
            &from_mr,
            to.bytes_mut(),
            &to_mr,
        )
        .unwrap();
        assert!(to.bytes() == from.bytes());
    }
}

#[test]
fn two_loopbacks_in_two_threads_do_not_mix_their_bytes() {
    let pd = domain();
    thread::scope(|scope| {
        for thread in 0..2u32 {
            let pd = &pd;
            scope.spawn(move || {
                let mut loopback = Loopback::connect(pd).unwrap();
                let mut from = Pages::map(16 * PAGE);
                let mut to = Pages::map(16 * PAGE);
                let (from_mr, to_mr) = (register(pd, &from, ALL), register(pd, &to, ALL));
                for round in 0..50u32 {
                    pattern(from.bytes_mut(), round * 2 + thread);
                    let len = 1 + (round as usize * 1237) % (16 * PAGE);
                    let transfer = [Loopback::raw_send, Loopback::raw_write, Loopback::raw_read]
                        [round as usize % 3];
                    let (source, destination) = (&from.bytes()[..len], &mut to.bytes_mut()[..len]);
                    transfer(&mut loopback, source, &from_mr, destination, &to_mr).unwrap();
                    assert!(source == destination, "thread {thread}, round {round}");
                }
            });
        }
    });
}

#[test]
fn a_registration_and_a_connection_outlive_what_they_were_made_from() {
    let context = Context::open_first().unwrap();
    let pd = Pd::alloc(&context).unwrap();
    let from = Pages::map(PAGE).filled(3);
    let mut to = Pages::map(PAGE);
    let registrar = MrRegistrar::new(&pd);
    let mut loopback = Loopback::connect(&pd).unwrap();
    let from_mr = registrar.register(from.range(), ALL).unwrap();
    let to_mr = registrar.register(to.range(), ALL).unwrap();
    drop((context, pd, registrar));
    loopback
        .raw_send(from.bytes(), &from_mr, to.bytes_mut(), &to_mr)
        .unwrap();
    assert!(to.bytes().iter().all(|&byte| byte == 3));
    drop(loopback);
    from_mr.deregister().unwrap();
    to_mr.deregister().unwrap();
}

#[test]
fn a_registration_says_what_it_was_made_for() {
    let pd = domain();
    let pages = Pages::map(3 * PAGE);
    let range = VaRange::new(pages.bytes()[5..].as_ptr(), 2 * PAGE).unwrap();
    let mr = Mr::register(&pd, range, Access::REMOTE_WRITE).unwrap();
    assert_eq!((mr.addr(), mr.length()), (range.start(), range.len()));
    assert_eq!((mr.range(), mr.access()), (range, Access::REMOTE_WRITE));
    let other = Mr::register(&pd, range, Access::REMOTE_WRITE).unwrap();
    assert_ne!(mr.rkey(), other.rkey());
    assert_ne!(mr.lkey(), other.lkey());
}

/// Checks that after `deregister` the keys no longer work, even if a peer still uses them.
#[test]
fn a_deregistered_key_reaches_no_memory() {
    let pd = domain();
    let context = pd.context();
    let route = Route::to_self(context, &context.active_port().unwrap()).unwrap();
    let from = Pages::map(PAGE).filled(b'A');
    let to = Pages::map(PAGE).filled(b'B');
    let from_mr = register(&pd, &from, ALL);
    let to_mr = register(&pd, &to, ALL);
    let sge = Sge {
        addr: from_mr.addr() as u64,
        length: PAGE as u32,
        lkey: from_mr.lkey(),
    };
    let remote = RemoteMemory {
        addr: to_mr.addr() as u64,
        rkey: to_mr.rkey(),
    };
    to_mr.deregister().unwrap();

    let cq = Cq::create(context, 16).unwrap();
    let one = Qp::create(&pd, &cq, &cq, 4).unwrap();
    let two = Qp::create(&pd, &cq, &cq, 4).unwrap();
    assert_ne!(one.number(), two.number());
    Qp::connect(&one, &two, &route).unwrap();
    // SAFETY: `from` and `to` stay mapped, and no code uses them until the completion has been
    // polled.
    unsafe { one.post_rdma_write(77, sge, remote) }.unwrap();
    let started = Instant::now();
    let completion = loop {
        if let Some(completion) = cq.poll().unwrap() {
            break completion;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "no completion");
        thread::yield_now();
    };
    assert_eq!(
        (completion.wr_id, completion.status),
        (77, WcStatus::REM_ACCESS_ERR)
    );
    assert!(to.bytes().iter().all(|&byte| byte == b'B'));
    one.destroy().unwrap();
    two.destroy().unwrap();
}

/// Checks the property that `Loopback` relies on after an error. A receive is outstanding until a
/// send arrives, so this test does not depend on timing.
#[test]
fn a_destroyed_queue_pair_lets_go_of_its_receive() {
    let pd = domain();
    let context = pd.context();
    let route = Route::to_self(context, &context.active_port().unwrap()).unwrap();
    let from = Pages::map(PAGE).filled(b'A');
    let to = Pages::map(PAGE).filled(b'B');
    let (from_mr, to_mr) = (register(&pd, &from, ALL), register(&pd, &to, ALL));
    let sge = |mr: &Mr| Sge {
        addr: mr.addr() as u64,
        length: PAGE as u32,
        lkey: mr.lkey(),
    };
    for destroyed in [true, false] {
        let cq = Cq::create(context, 16).unwrap();
        let one = Qp::create(&pd, &cq, &cq, 4).unwrap();
        let two = Qp::create(&pd, &cq, &cq, 4).unwrap();
        Qp::connect(&one, &two, &route).unwrap();
        // SAFETY: `to` is mapped until the end of the test, and is read only after the receive has
        // ended.
        unsafe { two.post_recv(2, sge(&to_mr)) }.unwrap();
        let two = if destroyed {
            two.destroy().map(|()| None).unwrap()
        } else {
            Some(two)
        };
        // SAFETY: `from` stays mapped, and no code writes to it until the end of the test.
        unsafe { one.post_send(1, sge(&from_mr)) }.unwrap();
        thread::sleep(Duration::from_millis(200));
        drop((one, two));
        let expected = if destroyed { b'B' } else { b'A' };
        assert!(
            to.bytes().iter().all(|&byte| byte == expected),
            "destroyed: {destroyed}"
        );
    }
}

#[test]
fn a_device_that_is_not_there_is_refused_with_a_list_of_those_that_are() {
    let names = device_names().unwrap();
    let refused = Context::open("nosuch0").unwrap_err();
    assert!(matches!(&refused, Error::NoSuchDevice { name, available }
        if name == "nosuch0" && *available == names));
    assert!(refused.to_string().contains(&names[0]), "{refused}");
    assert_eq!(Context::open(&names[0]).unwrap().device(), names[0]);
}

#[test]
fn a_port_that_is_not_there_is_refused() {
    let context = Context::open_first().unwrap();
    let ports = context.port_count().unwrap();
    for number in [0, ports + 1] {
        assert!(matches!(
            context.port(number),
            Err(Error::NoSuchPort { .. })
        ));
    }
    let port = context.active_port().unwrap();
    println!(
        "{port:?} {:?}",
        Route::to_self(&context, &port).unwrap().gid()
    );
    assert!([256, 512, 1024, 2048, 4096].contains(&port.mtu), "{port:?}");
}

#[test]
fn unmapped_memory_cannot_be_registered() {
    let pd = domain();
    let pages = Pages::map_apart();
    let range = pages.range();
    drop(pages);
    for access in [Access::empty(), ALL] {
        let refused = Mr::register(&pd, range, access).unwrap_err();
        assert_eq!(
            refused.raw_os_error(),
            Some(libc::EFAULT),
            "{access:?}: {refused}"
        );
    }
}

#[test]
fn read_only_memory_can_be_registered_for_reading_only() {
    let pd = domain();
    let pages = Pages::map_at(ptr::null_mut(), PAGE, libc::PROT_READ, 0);
    for access in [Access::LOCAL_WRITE, Access::REMOTE_WRITE, ALL] {
        let refused = Mr::register(&pd, pages.range(), access).unwrap_err();
        assert_eq!(
            refused.raw_os_error(),
            Some(libc::EFAULT),
            "{access:?}: {refused}"
        );
    }
    Mr::register(&pd, pages.range(), Access::REMOTE_READ).unwrap();
}

#[test]
fn access_flags_that_a_cache_must_not_use_are_refused() {
    let pd = domain();
    let pages = Pages::map(PAGE);
    for bit in [4, 5, 6] {
        let foreign = Access::from_bits_retain(1 << bit);
        let refused = Mr::register(&pd, pages.range(), foreign).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{refused}");
    }
}

#[test]
fn flags_that_are_no_permissions_are_accepted() {
    let pd = domain();
    let pages = Pages::map(PAGE);
    Mr::register(&pd, pages.range(), ALL | Access::RELAXED_ORDERING).unwrap();
}

/// Checks that a child which drops its inherited objects does not deregister its parent's memory.
#[test]
fn a_forked_child_deregisters_nothing_of_its_parents() {
    let pd = domain();
    let mut loopback = Loopback::connect(&pd).unwrap();
    let from = Pages::map(PAGE).filled(b'A');
    let mut to = Pages::map(PAGE).filled(b'B');
    let (from_mr, to_mr) = (register(&pd, &from, ALL), register(&pd, &to, ALL));
    // SAFETY: before it calls `_exit`, the child takes no lock except malloc's, which is free in a
    // child after fork.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let refused = loopback.raw_send(from.bytes(), &from_mr, to.bytes_mut(), &to_mr);
        let refused = matches!(refused, Err(Error::ForkedChild { .. }));
        let kept = from_mr.deregister().is_err();
        drop((loopback, to_mr, pd));
        // SAFETY: the child ends without running the exit code of the test harness.
        unsafe { libc::_exit(if refused && kept { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: the call waits for the child that was just made, and `status` lives through the call.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));

    loopback
        .raw_send(from.bytes(), &from_mr, to.bytes_mut(), &to_mr)
        .unwrap();
    assert!(to.bytes().iter().all(|&byte| byte == b'A'));
    from_mr.deregister().unwrap();
    to_mr.deregister().unwrap();
}

/// Runs the ignored test `name` of this program in a separate process.
fn in_a_process_of_its_own(name: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", name])
        .output()
        .unwrap()
}

fn assert_passed(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Changes the user and the group to nobody, which drops the capabilities of root.
fn become_nobody() {
    // SAFETY: the call only changes credentials. (libc changes them for all threads.)
    let group = unsafe { libc::setgid(65534) };
    // SAFETY: the call only changes credentials.
    let user = unsafe { libc::setuid(65534) };
    assert_eq!((group, user), (0, 0), "these tests run as root");
}

#[test]
fn memory_over_the_limit_cannot_be_registered() {
    assert_passed(&in_a_process_of_its_own("as_nobody_with_64_kib_to_lock"));
}

#[test]
#[ignore = "changes its process; run by memory_over_the_limit_cannot_be_registered"]
fn as_nobody_with_64_kib_to_lock() {
    let pd = domain();
    let limit = libc::rlimit {
        rlim_cur: 64 * 1024,
        rlim_max: 64 * 1024,
    };
    // SAFETY: `limit` lives through the call.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    assert_eq!(set, 0);
    become_nobody();
    let (little, much) = (Pages::map(8 * PAGE), Pages::map(32 * PAGE));
    let mr = register(&pd, &little, ALL);
    let refused = Mr::register(&pd, much.range(), ALL).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOMEM), "{refused}");
    mr.deregister().unwrap();
}

#[test]
fn a_device_that_this_user_may_not_open_says_so() {
    assert_passed(&in_a_process_of_its_own(
        "as_nobody_opening_a_device_of_roots",
    ));
}

#[test]
#[ignore = "changes its process; run by a_device_that_this_user_may_not_open_says_so"]
fn as_nobody_opening_a_device_of_roots() {
    // On many systems every user may open the device. So this process gets a separate
    // /dev/infiniband, in which each device is a file that only root may open. SAFETY: the call
    // moves this process to a new mount namespace, and accesses no memory.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(unshared, 0, "{}", io::Error::last_os_error());
    let nodes: Vec<_> = std::fs::read_dir("/dev/infiniband")
        .unwrap()
        .map(|node| node.unwrap().path())
        .filter(|node| !node.is_dir())
        .collect();
    mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE);
    mount(c"none", c"/dev/infiniband", 0);
    for node in nodes {
        let file = std::fs::File::create(node).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .unwrap();
    }
    become_nobody();
    let error = Context::open_first().unwrap_err();
    let Error::OpenDevice { source, .. } = &error else {
        panic!("{error}")
    };
    println!("{error}: {source}");
    assert_eq!(source.raw_os_error(), Some(libc::EACCES));
    assert!(
        error
            .to_string()
            .contains("may not open /dev/infiniband/uverbs"),
        "{error}"
    );
}

fn mount(from: &CStr, at: &CStr, flags: libc::c_ulong) {
    // SAFETY: all strings live through the call, and no memory is changed.
    let mounted = unsafe {
        libc::mount(
            from.as_ptr(),
            at.as_ptr(),
            c"tmpfs".as_ptr(),
            flags,
            ptr::null(),
        )
    };
    assert_eq!(mounted, 0, "{at:?}: {}", io::Error::last_os_error());
}

/// Checks that a failed transfer destroys the connection's two queue pairs, and the next transfer
/// makes two others. The device may still use memory through a queue pair that is not destroyed.
/// The other tests would not notice such a queue pair, because rxe seldom has outstanding work
/// after a failure.
#[test]
fn a_failed_transfer_leaves_no_queue_pair_behind() {
    let pd = domain();
    let mut loopback = Loopback::connect(&pd).unwrap();
    assert_eq!(queue_pairs_of_this_thread(), 2);
    let from = Pages::map(PAGE);
    let mut to = Pages::map(PAGE);
    let from_mr = register(&pd, &from, ALL);
    let to_mr = register(&pd, &to, Access::empty());
    loopback
        .raw_write(from.bytes(), &from_mr, to.bytes_mut(), &to_mr)
        .unwrap_err();
    assert_eq!(queue_pairs_of_this_thread(), 0);
    drop(to_mr);
    let to_mr = register(&pd, &to, ALL);
    loopback
        .raw_write(from.bytes(), &from_mr, to.bytes_mut(), &to_mr)
        .unwrap();
    assert_eq!(queue_pairs_of_this_thread(), 2);
    drop(loopback);
    assert_eq!(queue_pairs_of_this_thread(), 0);
}

/// Counts the queue pairs that this thread has made, in the kernel's list. This function reads the
/// list with the program `rdma` of iproute2, which is also needed to make software devices.
fn queue_pairs_of_this_thread() -> usize {
    let output = Command::new("rdma")
        .args(["resource", "show", "qp"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // SAFETY: the call has no arguments and returns a number.
    let thread = unsafe { libc::gettid() };
    let thread = format!(" pid {thread} ");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.contains(&thread))
        .count()
}

#[test]
fn an_error_of_the_device_names_the_operation_and_what_to_look_at() {
    let error = Error::Completion {
        operation: Operation::RdmaWrite,
        end: End::Source,
        status: WcStatus::REM_ACCESS_ERR,
        vendor_err: 0x88,
    };
    assert!(
        error.to_string().starts_with(
            "RDMA write failed at its source: remote access error (vendor error 0x88): does each"
        ),
        "{error}"
    );
}
