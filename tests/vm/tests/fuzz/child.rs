//! Forked children, which must be refused whatever they try, and which share pages with us.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use regcache::monitor::abi::Register;
use regcache_tests_vm::Child;

use crate::model::{BASE, PAGE, PAGES};
use crate::sys::{self, Counter};

/// What a child is told to do.
const DROP: u8 = b'd';
const TRY: u8 = b't';

/// A live child.
#[derive(Debug)]
pub(crate) struct Forked {
    // Closed before the child is waited for, which makes it exit.
    socket: OwnedFd,
    _child: Child,
}

/// True if a process that is not the owner is refused in all it can do with the file.
pub(crate) fn is_refused(fd: &OwnedFd, buffer: u64) -> bool {
    let eperm = Some(Errno::EPERM);
    let region = Register {
        start: BASE,
        end: BASE + PAGE,
        user_cookie: 77,
        ..Register::default()
    };
    let mut mask = 0;
    let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    sys::read(fd, buffer, 64).err() == eperm
        && sys::exchange(fd, &mut mask).err() == eperm
        && sys::register(fd, &region).err() == eperm
        && sys::unregister(fd, 0).err() == eperm
        && Counter::map(fd).err() == eperm
        && poll(&mut polled, PollTimeout::ZERO).is_ok()
        && polled[0].revents() == Some(PollFlags::POLLERR)
}

/// Sends a byte, with a descriptor if there is one.
pub(crate) fn send(socket: &OwnedFd, byte: u8, fd: Option<&OwnedFd>) -> nix::Result<()> {
    let fds = fd.map(|fd| [fd.as_raw_fd()]);
    let rights = fds.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
    let rights = rights.as_ref().map_or(&[][..], |rights| &rights[..]);
    let parts = [IoSlice::new(std::slice::from_ref(&byte))];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &parts, rights, flags, None).map(drop)
}

/// Receives a byte, and a descriptor if there is one. None if there will be nothing more.
pub(crate) fn receive(socket: &OwnedFd) -> nix::Result<Option<(u8, Option<OwnedFd>)>> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let fd = socket.as_raw_fd();
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), flags)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    let passed = match message.cmsgs()?.next() {
        // SAFETY: just received, and nobody else's.
        Some(ControlMessageOwned::ScmRights(fds)) => Some(unsafe { OwnedFd::from_raw_fd(fds[0]) }),
        _ => None,
    };
    Ok(Some((byte[0], passed)))
}

pub(crate) fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
}

impl Forked {
    /// Forks a child that tries all on these files.
    pub(crate) fn new<'a>(
        files: impl Iterator<Item = &'a OwnedFd>,
        buffer: u64,
    ) -> io::Result<Self> {
        let (ours, theirs) = pair()?;
        let ours_in_child = ours.as_raw_fd();
        let child = Child::fork(|| {
            // SAFETY: the child's copy, which it has no other use for; or our leaving would not be
            // its end.
            unsafe { libc::close(ours_in_child) };
            let mut refused = true;
            for fd in files {
                refused &= is_refused(fd, buffer);
            }
            serve(&theirs, refused, buffer)
        })?;
        let this = Self {
            socket: ours,
            _child: child,
        };
        Ok(this)
    }

    /// Whether all that the child tried last was refused.
    pub(crate) fn was_refused(&self) -> bool {
        matches!(receive(&self.socket), Ok(Some((1, _))))
    }

    /// Has the child drop its copy of the arena.
    pub(crate) fn drop_pages(&self) -> bool {
        send(&self.socket, DROP, None).is_ok() && self.was_refused()
    }

    /// Has the child try all on this file.
    pub(crate) fn tries(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        send(&self.socket, TRY, Some(&fd.try_clone_to_owned()?))?;
        Ok(self.was_refused())
    }
}

/// The child's life after its first tries.
fn serve(socket: &OwnedFd, mut right: bool, buffer: u64) -> bool {
    loop {
        if send(socket, u8::from(right), None).is_err() {
            return false;
        }
        right = match receive(socket) {
            Ok(None) => return true,
            Ok(Some((DROP, None))) => {
                let all = PAGES as u64 * PAGE;
                sys::unmap(BASE, all).is_ok()
            }
            Ok(Some((TRY, Some(fd)))) => is_refused(&fd, buffer),
            _ => return false,
        };
    }
}
