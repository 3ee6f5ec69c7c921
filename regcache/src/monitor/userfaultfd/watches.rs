//! [`Watches`]: all watches of the monitor, and the removals that may still be in progress. The
//! pages of such a removal are under suspicion (see `dontneed.rs`).

use std::collections::HashMap;

use super::coverage::{Coverage, Pages};
use super::dontneed::Removal;
use crate::monitor::contract::Cookie;

/// The maximum number of removals under suspicion. If there are more, all of them are merged into
/// one, so that the list stays short.
const MAX_REMOVALS: usize = 64;

/// All watches of the monitor, and the removals that may still be in progress.
#[derive(Debug, Default)]
pub(super) struct Watches {
    pub(super) by_cookie: HashMap<u64, Watch>,
    pub(super) coverage: Coverage,
    pub(super) removals: Vec<Removal>,
    /// The watches that were invalidated and not reported yet. Some of these watches may have ended
    /// since.
    pub(super) invalidated: Vec<Cookie>,
}

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) pages: Pages,
    pub(super) invalidated: bool,
}

impl Watches {
    /// Marks every watch that covers at least one of the pages as invalidated.
    pub(super) fn mark(&mut self, pages: Pages) {
        for cookie in self.coverage.over(pages) {
            if let Some(watch) = self.by_cookie.get_mut(&cookie.0)
                && !watch.invalidated
            {
                watch.invalidated = true;
                self.invalidated.push(cookie);
            }
        }
    }

    /// Puts the pages of a removal under suspicion (see `dontneed.rs`).
    pub(super) fn suspect(&mut self, pages: Pages) {
        self.removals.push(Removal::new(pages));
        if self.removals.len() > MAX_REMOVALS {
            let all = self.removals.drain(..).map(|removal| removal.pages);
            let hull = all.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
            self.removals.extend(hull.map(Removal::new));
        }
    }
}
