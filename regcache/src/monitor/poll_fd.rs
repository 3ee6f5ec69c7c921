//! A file descriptor for users of the library, which polls readable when a monitor has reports. It
//! cannot be read, so no user can take reports away from the cache.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::sys::descriptor::Private;

/// Returns an epoll instance that polls readable when any of the `descriptors` polls readable. Its
/// events hold the index of the descriptor.
pub(super) fn when_readable(descriptors: &[&dyn AsFd]) -> io::Result<Private<OwnedFd>> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, descriptor) in (0..).zip(descriptors) {
        epoll.add(
            descriptor.as_fd(),
            EpollEvent::new(EpollFlags::EPOLLIN, index),
        )?;
    }
    Private::new(epoll.0)
}
