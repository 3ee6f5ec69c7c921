//! [`Faults`]: faults on missing pages of watched memory.
//!
//! A registered page is present as long as a device has it pinned. So a missing page was removed.
//! If no event reported the removal, the fault on the page is the first sign of the removal. This
//! sign is still in time. The reader supplies the new page only after it has entered the change in
//! the log.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::raw;
use super::source::{Source, range};

/// The maximum number of pages that are kept to be supplied later. A thread that waits for any
/// further page is woken, and faults again.
const MAX_LATER: usize = 32;

/// The pages that could not be supplied yet.
#[derive(Debug, Default)]
pub(super) struct Faults {
    later: [usize; MAX_LATER],
    len: usize,
}

impl Faults {
    /// Supplies a page of zeros at `page`, now or later, so that the threads that wait for it go
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

    /// Retries the pages that could not be supplied. Returns true if none is left.
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

/// Supplies a page of zeros. Returns false if a change is in flight, because the event of that
/// change has to be read first.
fn supply(source: &Source, page: usize) -> bool {
    let mut zeros = raw::ZeroPage {
        range: range(page, page + source.page),
        ..raw::ZeroPage::default()
    };
    // SAFETY: the structure may be read and written. The kernel supplies a page only if the page is
    // missing, and some thread waits for that page.
    match unsafe { raw::zero_page(source.uffd.as_raw_fd(), &raw mut zeros) } {
        Ok(_) => true,
        Err(Errno::EAGAIN) => false,
        // Either there is a page already, or the mapping is gone. Waiting threads have to try
        // again.
        Err(_) => {
            wake(source, page);
            true
        }
    }
}

fn wake(source: &Source, page: usize) {
    let mut range = range(page, page + source.page);
    // SAFETY: the structure may be read.
    let _ = unsafe { raw::wake(source.uffd.as_raw_fd(), &raw mut range) };
}
