//! [`Source`]: the state that the monitor and its reader share: the open userfaultfd, the log and
//! the eventfds.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicI32;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::event_log::Log;
use super::open::Opened;
use super::raw;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) uffd: OwnedFd,
    /// True if the userfaultfd also receives faults on missing pages of armed mappings.
    asks_for_pages: bool,
    /// The size of a page.
    pub(super) page: usize,
    /// The reader's log of events.
    pub(super) log: Log,
    /// An eventfd that polls readable while there may be something to drain.
    pub(super) ready: EventFd,
    /// An eventfd that stops the reader when it is signalled.
    pub(super) stop: EventFd,
    /// The id of the reader's thread, and 0 before the thread has stored it.
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

    /// Returns true if the userfaultfd also receives faults on missing pages of armed mappings.
    /// Such a missing page was removed.
    pub(super) fn asks_for_pages(&self) -> bool {
        self.asks_for_pages
    }

    /// Arms the mappings in a range.
    pub(super) fn arm(&self, start: usize, end: usize) -> io::Result<()> {
        let mut mode = raw::MODE_WP;
        if self.asks_for_pages {
            mode |= raw::MODE_MISSING;
            populate(start, end);
        }
        let mut register = raw::Register {
            range: range(start, end),
            mode,
            ioctls: 0,
        };
        // SAFETY: the structure may be read and written. The call protects no page. No other code
        // can protect a page, because the file descriptor is private.
        unsafe { raw::register(self.uffd.as_raw_fd(), &raw mut register) }?;
        Ok(())
    }

    /// Returns the page that a fault is about.
    pub(super) fn page_of(&self, message: &raw::Message) -> usize {
        message.words[1] as usize & !(self.page - 1)
    }

    /// Disarms the mappings in a range. If the kernel fails to disarm some of them, it still sends
    /// their events. Those events concern no watch.
    pub(super) fn disarm(&self, start: usize, end: usize) {
        let mut range = range(start, end);
        // SAFETY: the structure may be read.
        let _ = unsafe { raw::unregister(self.uffd.as_raw_fd(), &raw mut range) };
    }
}

/// Populates the pages in one call, because the registration needs all of them. Without this, each
/// missing page would cause a fault. If the kernel cannot populate them, the registration will
/// fail, so the result is ignored.
fn populate(start: usize, end: usize) {
    let at = std::ptr::without_provenance_mut(start);
    // SAFETY: the call replaces only pages that a write would replace.
    let _ = unsafe { libc::madvise(at, end - start, libc::MADV_POPULATE_WRITE) };
}

/// Returns a range in the form of the kernel's interface.
pub(super) fn range(start: usize, end: usize) -> raw::Range {
    raw::Range {
        start: start as u64,
        len: (end - start) as u64,
    }
}
