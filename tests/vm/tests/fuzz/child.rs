//! Forked children of the fuzzer. The driver must refuse every call of a child. A child also shares
//! pages with this process. So the first write to such a page copies the page.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use regcache_tests_vm::Child;
use ummunotify_sys::{Register, Register2};

use crate::model::{BASE, PAGE, PAGES};
use crate::sys::{self, Counter};

/// The command that makes the child drop its copy of the arena.
const DROP: u8 = b'd';
/// The command that makes the child try every call on the file descriptor that comes with the
/// command.
const TRY: u8 = b't';

/// A child process of the fuzzer. Dropping the value ends the child.
#[derive(Debug)]
pub(crate) struct Forked {
    // The field `socket` must be dropped before the field `_child`. The child exits when the socket
    // is closed, and dropping `_child` waits for the child.
    socket: OwnedFd,
    _child: Child,
}

/// Tries every call on the file. Returns true if the driver refuses all calls, as it must for a
/// process that is not the owner.
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
        && sys::register2(fd, Register2::default(), size_of::<Register2>(), None).err() == eperm
        && sys::unregister(fd, 0).err() == eperm
        && Counter::map(fd).err() == eperm
        && poll(&mut polled, PollTimeout::ZERO).is_ok()
        && polled[0].revents() == Some(PollFlags::POLLERR)
}

/// Sends a byte, and also the file descriptor if `fd` is not `None`.
pub(crate) fn send(socket: &OwnedFd, byte: u8, fd: Option<&OwnedFd>) -> nix::Result<()> {
    let fds = fd.map(|fd| [fd.as_raw_fd()]);
    let rights = fds.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
    let rights = rights.as_ref().map_or(&[][..], |rights| &rights[..]);
    let parts = [IoSlice::new(std::slice::from_ref(&byte))];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &parts, rights, flags, None).map(drop)
}

/// Receives a byte, and a file descriptor if one was sent with it. Returns `None` at the end of the
/// stream.
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
        // SAFETY: the file descriptor was received above, and nothing else owns it.
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
    /// Forks a child that tries every call on these files.
    pub(crate) fn new<'a>(
        files: impl Iterator<Item = &'a OwnedFd>,
        buffer: u64,
    ) -> io::Result<Self> {
        let (ours, theirs) = pair()?;
        let ours_in_child = ours.as_raw_fd();
        let child = Child::fork(|| {
            // SAFETY: the child closes its copy of the socket, and never uses that copy. The child
            // must close it, because an open copy would keep the child alive after this process has
            // exited.
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

    /// Waits for the child's answer. Returns true if the child executed its last command, and if
    /// the driver refused all calls that the child tried.
    pub(crate) fn was_refused(&self) -> bool {
        matches!(receive(&self.socket), Ok(Some((1, _))))
    }

    /// Makes the child drop its copy of the arena. Returns true if that succeeds.
    pub(crate) fn drop_pages(&self) -> bool {
        send(&self.socket, DROP, None).is_ok() && self.was_refused()
    }

    /// Makes the child try every call on this file. Returns true if the driver refuses all of them.
    pub(crate) fn tries(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        send(&self.socket, TRY, Some(&fd.try_clone_to_owned()?))?;
        Ok(self.was_refused())
    }
}

/// Runs the child's loop: sends the result of the last command, receives the next command and
/// executes it.
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
