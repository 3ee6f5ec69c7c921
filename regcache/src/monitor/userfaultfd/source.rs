//! [`Source`]: the state that the monitor and its reader share: the open userfaultfd, the log and
//! the signals.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicI32;

use super::coverage::Pages;
use super::event_log::Log;
use super::open::Opened;
use super::raw;
use crate::monitor::poll_fd::when_readable;
use crate::sys::descriptor::{Private, Signal};
use crate::sys::memory;

/// The index of the signal that stops the reader, in [`Source::events`].
pub(super) const STOP: u64 = 1;

/// The state that the monitor and its reader share.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) uffd: Private<OwnedFd>,
    /// True if the userfaultfd also reports faults on missing pages of armed mappings.
    asks_for_pages: bool,
    /// The size of a page.
    pub(super) page: usize,
    /// The reader's log of events.
    pub(super) log: Log,
    /// A signal that is raised while the log may have entries to drain.
    ready: Signal,
    /// A signal that stops the reader.
    pub(super) stop: Signal,
    /// An epoll instance that polls readable if the userfaultfd has events, or with the index
    /// [`STOP`] if the reader has to stop. The reader waits in it, and not in `poll`. A thread in
    /// `poll` would keep the userfaultfd open after the program has closed its descriptor, and
    /// threads that unmap memory would wait for ever.
    pub(super) events: Private<OwnedFd>,
    /// The id of the reader's thread, or 0 before the thread has stored its id.
    pub(super) reader: AtomicI32,
}

impl Source {
    pub(super) fn new(opened: Opened, page: usize) -> io::Result<Self> {
        let (uffd, stop) = (Private::new(opened.uffd)?, Signal::new()?);
        Ok(Self {
            events: when_readable(&[&uffd.unchecked(), &stop])?,
            uffd,
            asks_for_pages: opened.asks_for_pages,
            page,
            log: Log::new(),
            ready: Signal::new()?,
            stop,
            reader: AtomicI32::new(0),
        })
    }

    /// Returns true if the userfaultfd also reports faults on missing pages of armed mappings. Each
    /// such page was removed.
    pub(super) fn asks_for_pages(&self) -> bool {
        self.asks_for_pages
    }

    /// Announces changes that were entered in the log: raises the signal, and then the generation.
    ///
    /// This order keeps the signal from staying raised with nothing to drain. A drain loads the
    /// generation before it [lowers](Self::clear_ready) the signal. So a drain that returns the
    /// raised generation has lowered the signal after this step.
    pub(super) fn announce(&self) {
        self.announce_with(|| {});
    }

    /// Does the same as [`announce`](Self::announce), and calls `between` between the two steps.
    fn announce_with(&self, between: impl FnOnce()) {
        self.ready.raise();
        between();
        self.log.raise();
    }

    /// Lowers the signal. Only a drain calls this, after it has loaded the generation and before
    /// it takes entries from the log. An entry that it does not take is announced afterwards.
    pub(super) fn clear_ready(&self) -> io::Result<()> {
        self.ready.lower()
    }

    /// Returns an epoll instance that polls readable when the signal is raised. It cannot be read.
    pub(super) fn when_ready(&self) -> io::Result<Private<OwnedFd>> {
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
        unsafe { raw::register(self.uffd.unchecked().as_raw_fd(), &raw mut register) }?;
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
        let _ = unsafe { raw::unregister(self.uffd.unchecked().as_raw_fd(), &raw mut range) };
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
            let mut fds = [PollFd::new(ready.unchecked(), PollFlags::POLLIN)];
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
        assert!(is_ready(), "an announcement raises the signal");
        if source.log.generation() != drained {
            drained = drain();
        }
        assert_eq!(source.log.generation(), drained);
        assert!(!is_ready(), "nothing is left to drain");
    }
}
