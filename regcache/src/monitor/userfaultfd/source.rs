//! [`Source`]: the state that the monitor and its reader share: the open userfaultfd, the log and
//! the eventfds.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicI32;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::event_log::Log;
use super::open::Opened;
use super::raw;

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
    pub(super) ready: EventFd,
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

    /// Arms the mappings in a range: registers them with the userfaultfd (see `mod.rs`).
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

/// Populates the pages in one call. The registration needs all of them, and would otherwise cause a
/// fault on each missing page. If the kernel cannot populate the pages, the registration fails and
/// returns the error. So the result of this call is ignored.
fn populate(start: usize, end: usize) {
    let at = std::ptr::without_provenance_mut(start);
    // SAFETY: the call has the effect of writing each page's present content to it. So no reader of
    // the memory sees a change.
    let _ = unsafe { libc::madvise(at, end - start, libc::MADV_POPULATE_WRITE) };
}

/// Returns the range as a structure of the kernel's interface.
pub(super) fn range(start: usize, end: usize) -> raw::Range {
    raw::Range {
        start: start as u64,
        len: (end - start) as u64,
    }
}
