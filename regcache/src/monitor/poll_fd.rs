//! A file descriptor that safe code may have: it polls readable when others are, and reading from
//! it takes nothing away.

use std::io;
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

/// Returns an epoll instance that is readable when any of the `descriptors` is.
pub(super) fn when_readable(descriptors: &[&dyn AsFd]) -> io::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for descriptor in descriptors {
        epoll.add(descriptor.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    Ok(epoll)
}
