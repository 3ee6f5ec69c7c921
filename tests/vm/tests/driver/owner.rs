//! Tests the owner of a file. The owner is the address space that opened the file. The file watches
//! the memory of its owner, and refuses the calls of every other process.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use regcache_tests_vm::{Child, DriverFile, PAGE, Pages};

use crate::{invalidated_once, last, watched};

/// Makes every call on the file. Returns true if the driver refuses all calls, as it must in a
/// process that is not the owner.
fn is_refused(device: &DriverFile) -> bool {
    let eperm = Err(Errno::EPERM);
    let mut mask = 0;
    let map = device.counter();
    // SAFETY: the call accesses no memory.
    let fasync = unsafe {
        libc::fcntl(
            device.raw(),
            libc::F_SETFL,
            libc::O_ASYNC | libc::O_NONBLOCK,
        )
    };
    device.read(1).err() == Some(Errno::EPERM)
        && device.exchange(&mut mask) == eperm
        && device.watch(std::ptr::without_provenance(PAGE), PAGE, 99) == eperm
        && device.watch_with(0, std::ptr::without_provenance(PAGE), PAGE, 99) == eperm
        && device.unwatch(0) == eperm
        && map.is_err_and(|e| e.raw_os_error() == Some(libc::EPERM))
        && fasync == -1
        && device.poll(0) == Ok(PollFlags::POLLERR)
}

#[test]
fn a_forked_child_is_refused_and_the_owner_loses_nothing() {
    let (device, memory) = watched(2);
    memory.unmap(0, 1).unwrap();
    let child = Child::fork(|| is_refused(&device)).unwrap();
    assert!(child.succeeded().unwrap());
    assert_eq!(
        device.read(4).unwrap(),
        [invalidated_once(0, memory.page(0), PAGE), last(1)]
    );
    memory.unmap(1, 1).unwrap();
    assert_eq!(
        device.drain().unwrap(),
        (vec![1], 2),
        "the ranges must still be watched"
    );
}

/// The driver attaches to the address space only when the first range is watched. But the driver
/// must know the owner of the file from the start.
#[test]
fn a_file_that_was_never_used_is_its_openers_all_the_same() {
    let (device, memory) = (DriverFile::open().unwrap(), Pages::new(1).unwrap());
    let child = Child::fork(|| is_refused(&device)).unwrap();
    assert!(child.succeeded().unwrap());
    let counter = device.counter().unwrap();
    device.watch(memory.page(0), PAGE, 1).unwrap();
    let child = Child::fork(|| memory.unmap(0, 1).is_ok()).unwrap();
    assert!(child.succeeded().unwrap());
    assert_eq!(counter.get(), 0);
    memory.unmap(0, 1).unwrap();
    assert_eq!((device.drain(), counter.get()), (Ok((vec![1], 1)), 1));
}

#[test]
fn a_file_whose_opener_is_gone_serves_nobody() {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    let opener = Child::fork(|| {
        pass(&theirs, &DriverFile::open().unwrap(), &[1]);
        true
    })
    .unwrap();
    let device = DriverFile::from(std::fs::File::from(receive(&ours, &mut [0])));
    assert!(opener.succeeded().unwrap());
    assert!(is_refused(&device));
}

#[test]
fn what_a_child_does_to_its_own_memory_is_not_reported() {
    let (device, memory) = watched(1);
    let child = Child::fork(|| memory.unmap(0, 1).is_ok()).unwrap();
    assert!(child.succeeded().unwrap());
    assert_eq!(device.read(1), Err(Errno::EAGAIN));
}

#[test]
fn a_program_started_with_the_descriptor_is_refused() {
    let (device, memory) = watched(1);
    memory.unmap(0, 1).unwrap();
    let stdin = Stdio::from(device.as_fd().try_clone_to_owned().unwrap());
    let cat = Command::new("cat").stdin(stdin).output().unwrap();
    assert!(!cat.status.success());
    let said = String::from_utf8(cat.stderr).unwrap();
    assert!(said.contains("Operation not permitted"), "{said}");
    assert_eq!(device.drain().unwrap(), (vec![0], 1));
}

/// Sends the file descriptor of the device together with these bytes.
fn pass(socket: &OwnedFd, device: &DriverFile, bytes: &[u8]) {
    let fds = [device.raw()];
    let message = [ControlMessage::ScmRights(&fds)];
    let parts = [IoSlice::new(bytes)];
    let fd = socket.as_raw_fd();
    sendmsg::<()>(fd, &parts, &message, MsgFlags::empty(), None).unwrap();
}

/// Receives a file descriptor and bytes. Panics if no file descriptor arrives. A panic makes the
/// child fail.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> OwnedFd {
    let mut buffer = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(bytes)];
    let fd = socket.as_raw_fd();
    let message = recvmsg::<()>(fd, &mut parts, Some(&mut buffer), MsgFlags::empty()).unwrap();
    let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
        panic!("no file descriptor arrived");
    };
    // SAFETY: the file descriptor was received above, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fds[0]) }
}

#[test]
fn a_receiver_of_the_descriptor_is_refused_and_may_close_it() {
    let (device, memory) = watched(1);
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).unwrap();
    // The child uses only the file descriptor that it receives through the socket.
    let child = Child::fork(|| {
        let passed = receive(&theirs, &mut [0]);
        let mut event = [0; 32];
        nix::unistd::read(&passed, &mut event) == Err(Errno::EPERM)
    })
    .unwrap();
    pass(&ours, &device, &[1]);
    assert!(child.succeeded().unwrap());
    memory.unmap(0, 1).unwrap();
    assert_eq!(device.drain().unwrap(), (vec![0], 1));
}

#[test]
fn closing_it_last_unmaps_nothing_in_the_receiver() {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).unwrap();
    // The child maps an ordinary page at the address at which the sender has mapped the counter.
    let child = Child::fork(|| {
        let mut place = [0; 8];
        let passed = receive(&theirs, &mut place);
        let place = std::ptr::with_exposed_provenance_mut::<u8>(usize::from_ne_bytes(place));
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: with MAP_FIXED_NOREPLACE, the call replaces no mapping.
        let mapped = unsafe { libc::mmap(place.cast(), PAGE, protection, how, -1, 0) };
        if mapped != place.cast() {
            return false;
        }
        // SAFETY: the page was mapped above.
        unsafe { place.write_volatile(7) };
        let mut byte = [0];
        let alone = nix::unistd::write(&theirs, &[1]) == Ok(1)
            && nix::unistd::read(&theirs, &mut byte) == Ok(1);
        drop(passed);
        // SAFETY: the page was mapped above. If the driver has unmapped the page, the access kills
        // the child, and the test fails.
        alone && unsafe { place.read_volatile() } == 7
    })
    .unwrap();
    let (device, _memory) = watched(1);
    let counter = device.counter().unwrap();
    let place = counter.as_ptr().addr().to_ne_bytes();
    pass(&ours, &device, &place);
    let mut byte = [0];
    assert_eq!(nix::unistd::read(&ours, &mut byte), Ok(1));
    drop((counter, device));
    nix::unistd::write(&ours, &[1]).unwrap();
    assert!(child.succeeded().unwrap());
}

#[test]
fn a_child_that_shares_the_memory_is_welcome() {
    let (device, memory) = watched(1);
    memory.unmap(0, 1).unwrap();
    let read = |device: usize| {
        // SAFETY: the address is that of the file below, and the file outlives the child.
        let device = unsafe { &*std::ptr::with_exposed_provenance::<DriverFile>(device) };
        let mut mask = 0;
        device.poll(0) == Ok(PollFlags::POLLIN) && device.exchange(&mut mask) == Err(Errno::EINVAL)
    };
    assert!(Child::sharing_memory(read, (&raw const device).expose_provenance()).unwrap());
}

#[test]
fn a_child_may_open_a_file_of_its_own() {
    let child = Child::fork(|| {
        let (device, memory) = watched(1);
        memory.unmap(0, 1).unwrap();
        device.drain() == Ok((vec![0], 1))
    });
    assert!(child.unwrap().succeeded().unwrap());
}

#[test]
fn anybody_may_open_it() {
    let child = Child::fork(|| {
        let nobody = 65534;
        // SAFETY: the calls access no memory, and the child has only one thread.
        let dropped = unsafe { libc::setgid(nobody) == 0 && libc::setuid(nobody) == 0 };
        let (device, memory) = watched(1);
        memory.unmap(0, 1).unwrap();
        dropped && device.drain() == Ok((vec![0], 1))
    });
    assert!(child.unwrap().succeeded().unwrap());
}

#[test]
fn a_blocking_read_by_a_child_is_refused_and_does_not_block() {
    let device = DriverFile::open_with(OFlag::O_CLOEXEC).unwrap();
    let child = Child::fork(|| device.read(1) == Err(Errno::EPERM)).unwrap();
    assert!(child.succeeded().unwrap());
}
