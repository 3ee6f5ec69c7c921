//! A file descriptor for users of the library, which polls readable when a monitor has reports. It
//! cannot be read, so no user can take reports away from the cache.

use std::io;
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

/// Returns an epoll instance that polls readable when any of the `descriptors` polls readable.
pub(super) fn when_readable(descriptors: &[&dyn AsFd]) -> io::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for descriptor in descriptors {
        epoll.add(descriptor.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    Ok(epoll)
}
