//! [`Faults`]: pages that are missing where memory is watched, and that somebody has touched.
//!
//! Registered pages are present for as long as a device has them pinned. If one is missing it was taken
//! away, and if that sent no event, this is the first to be heard of it: still in time, because the page
//! that takes its place is the one that is given here, after the change was entered.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::raw;
use super::reader::{Source, range};

/// Pages that are told apart while the kernel is busy; those that touch more than these ask again.
const MAX_LATER: usize = 32;

/// Those that could not be given yet.
#[derive(Debug, Default)]
pub(super) struct Faults {
    later: [usize; MAX_LATER],
    len: usize,
}

impl Faults {
    /// Gives the page at `page`, of zeros, to those who wait for it; or keeps it in mind.
    pub(super) fn serve(&mut self, source: &Source, page: usize) {
        if give(source, page) {
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

    /// Tries once more what could not be given. True if there is nothing left.
    pub(super) fn serve_rest(&mut self, source: &Source) -> bool {
        let mut left = 0;
        for i in 0..self.len {
            let page = self.later[i];
            if !give(source, page) {
                self.later[left] = page;
                left += 1;
            }
        }
        self.len = left;
        left == 0
    }
}

/// False if the kernel is in the middle of a change, whose event has to be read first.
fn give(source: &Source, page: usize) -> bool {
    let mut zeros = raw::ZeroPage {
        range: range(page, page + source.page),
        ..raw::ZeroPage::default()
    };
    // SAFETY: the structure may be read and written. A page is given where there is none, and somebody
    // waits for one.
    match unsafe { raw::zero_page(source.uffd.as_raw_fd(), &raw mut zeros) } {
        Ok(_) => true,
        Err(Errno::EAGAIN) => false,
        // There is one already, or no mapping any more: whoever waits is to look again.
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
