//! [`Source`]: the state that the monitor and its reader share: the open userfaultfd, the log and
//! the eventfds.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicI32;

use nix::errno::Errno;
use nix::sys::epoll::Epoll;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::coverage::Pages;
use super::event_log::Log;
use super::open::Opened;
use super::raw;
use crate::monitor::poll_fd::when_readable;
use crate::sys::memory;

/// The state that the monitor and its reader share.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) uffd: OwnedFd,
    /// True if the userfaultfd also reports faults on missing pages of armed mappings.
    asks_for_pages: bool,
    /// The size of a page.
    pub(super) page: usize,
    /// The reader's log of events.
    pub(super) log: Log,
    /// An eventfd that polls readable while the log may have entries to drain.
    ready: EventFd,
    /// An eventfd whose signal stops the reader.
    pub(super) stop: EventFd,
    /// The id of the reader's thread, or 0 before the thread has stored its id.
    pub(super) reader: AtomicI32,
}

impl Source {
    pub(super) fn new(opened: Opened, page: usize) -> io::Result<Self> {
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self {
            uffd: opened.uffd,
            asks_for_pages: opened.asks_for_pages,
            page,
            log: Log::new(),
            ready: event()?,
            stop: event()?,
            reader: AtomicI32::new(0),
        })
    }

    /// Returns true if the userfaultfd also reports faults on missing pages of armed mappings. Each
    /// such page was removed.
    pub(super) fn asks_for_pages(&self) -> bool {
        self.asks_for_pages
    }

    /// Announces changes that were entered in the log: makes the eventfd readable, and then raises
    /// the generation.
    ///
    /// This order keeps the eventfd from staying readable with nothing to drain. A drain loads the
    /// generation before it [clears](Self::clear_ready) the eventfd. So a drain that returns the
    /// raised generation has cleared the eventfd after this write.
    pub(super) fn announce(&self) {
        self.announce_with(|| {});
    }

    /// Does the same as [`announce`](Self::announce), and calls `between` between the two steps.
    fn announce_with(&self, between: impl FnOnce()) {
        // The write fails only if the eventfd is readable already. So an error needs no handling.
        let _ = self.ready.write(1);
        between();
        self.log.raise();
    }

    /// Clears the eventfd. Only a drain calls this, after it has loaded the generation and before
    /// it takes entries from the log. An entry that it does not take is announced afterwards.
    pub(super) fn clear_ready(&self) -> io::Result<()> {
        match self.ready.read() {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns an epoll instance that polls readable when the eventfd does. It cannot be read.
    pub(super) fn when_ready(&self) -> io::Result<Epoll> {
        when_readable(&[&self.ready])
    }

    /// Populates the pages of a range, if the userfaultfd would report a fault on each missing one.
    /// The registration of the range needs all of its pages.
    /// After an error, the registration fails in the same way and returns the error, or it causes
    /// the faults. So an error is ignored.
    pub(super) fn populate(&self, pages: Pages) {
        if self.asks_for_pages {
            memory::populate(pages);
        }
    }

    /// Arms the mappings in a range: registers them with the userfaultfd (see `mod.rs`).
    pub(super) fn arm(&self, start: usize, end: usize) -> io::Result<()> {
        let mut mode = raw::MODE_WP;
        if self.asks_for_pages {
            mode |= raw::MODE_MISSING;
        }
        let mut register = raw::Register {
            range: range(start, end),
            mode,
            ioctls: 0,
        };
        // SAFETY: the structure may be read and written. The call itself protects no page, so it
        // causes no write faults. No other code can protect a page, because the file descriptor is
        // private.
        unsafe { raw::register(self.uffd.as_raw_fd(), &raw mut register) }?;
        Ok(())
    }

    /// Returns the address of the page on which the fault occurred.
    pub(super) fn page_of(&self, message: &raw::Message) -> usize {
        message.words[1] as usize & !(self.page - 1)
    }

    /// Disarms the mappings in a range. If the kernel fails to disarm a mapping, it keeps sending
    /// events for that mapping. Such events do no harm, because they concern no watch.
    pub(super) fn disarm(&self, start: usize, end: usize) {
        let mut range = range(start, end);
        // SAFETY: the structure may be read.
        let _ = unsafe { raw::unregister(self.uffd.as_raw_fd(), &raw mut range) };
    }
}

/// Returns the range as a structure of the kernel's interface.
pub(super) fn range(start: usize, end: usize) -> raw::Range {
    raw::Range {
        start: start as u64,
        len: (end - start) as u64,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::super::open::Sight;
    use super::*;

    /// A lookup may drain at any moment of an announcement.
    #[test]
    fn nothing_is_ready_once_a_drain_has_returned_the_last_generation() {
        let Ok(opened) = Opened::with(Sight::Events) else {
            eprintln!("not tested here");
            return;
        };
        let source = Source::new(opened, 4096).unwrap();
        let ready = source.when_ready().unwrap();
        let is_ready = || {
            let mut fds = [PollFd::new(ready.0.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
        };
        let drain = || {
            let generation = source.log.generation();
            source.clear_ready().unwrap();
            generation
        };
        let mut drained = drain();
        source.announce_with(|| {
            if source.log.generation() != drained {
                drained = drain();
            }
        });
        assert!(is_ready(), "an announcement makes the eventfd readable");
        if source.log.generation() != drained {
            drained = drain();
        }
        assert_eq!(source.log.generation(), drained);
        assert!(!is_ready(), "nothing is left to drain");
    }
}
