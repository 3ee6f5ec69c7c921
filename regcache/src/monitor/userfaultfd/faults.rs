//! [`Faults`]: faults on missing pages of watched memory.
//!
//! A registered page is present while a device has it pinned. So a missing page was removed. If no
//! event reported the removal, the fault on the page is the first sign of that removal. The fault
//! comes in time: no thread gets a new page before the reader has entered the change in the log.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::raw;
use super::source::{Source, range};

/// The maximum number of pages that the reader keeps to supply later. If there are more, the reader
/// wakes the threads that wait for them, and these threads fault again.
const MAX_LATER: usize = 32;

/// The pages that the reader could not supply yet, because a change was in flight.
#[derive(Debug, Default)]
pub(super) struct Faults {
    later: [usize; MAX_LATER],
    len: usize,
}

impl Faults {
    /// Supplies a page of zeros at `page`, now or later. The threads that wait for the page then go
    /// on.
    pub(super) fn serve(&mut self, source: &Source, page: usize) {
        if supply(source, page) {
            return;
        }
        match self.later.get_mut(self.len) {
            Some(free) => {
                *free = page;
                self.len += 1;
            }
            None => wake(source, page),
        }
    }

    /// Tries again to supply the pages that could not be supplied. Returns true if no such page is
    /// left.
    pub(super) fn serve_rest(&mut self, source: &Source) -> bool {
        let mut left = 0;
        for i in 0..self.len {
            let page = self.later[i];
            if !supply(source, page) {
                self.later[left] = page;
                left += 1;
            }
        }
        self.len = left;
        left == 0
    }
}

/// Supplies a page of zeros. Returns false if a change is in flight. The reader must read the event
/// of that change before it tries again.
fn supply(source: &Source, page: usize) -> bool {
    let mut zeros = raw::ZeroPage {
        range: range(page, page + source.page),
        ..raw::ZeroPage::default()
    };
    // SAFETY: the structure may be read and written. A thread waits for this page. The kernel
    // supplies a page only if the page is missing, so the call overwrites no data.
    match unsafe { raw::zero_page(source.uffd.unchecked().as_raw_fd(), &raw mut zeros) } {
        Ok(_) => true,
        Err(Errno::EAGAIN) => false,
        // Either the page is present already, or the mapping is gone. In both cases the waiting
        // threads must repeat their access.
        Err(_) => {
            wake(source, page);
            true
        }
    }
}

fn wake(source: &Source, page: usize) {
    let mut range = range(page, page + source.page);
    // SAFETY: the structure may be read.
    let _ = unsafe { raw::wake(source.uffd.unchecked().as_raw_fd(), &raw mut range) };
}
