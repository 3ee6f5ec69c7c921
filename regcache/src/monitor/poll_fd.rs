//! A file descriptor that safe code may have. It polls readable when other file descriptors do, and
//! reading from it consumes no reports.

use std::io;
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

/// Returns an epoll instance that polls readable when any of the `descriptors` does.
pub(super) fn when_readable(descriptors: &[&dyn AsFd]) -> io::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for descriptor in descriptors {
        epoll.add(descriptor.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    Ok(epoll)
}
