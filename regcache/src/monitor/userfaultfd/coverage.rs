//! [`Coverage`]: the watches of each page.
//!
//! A mapping is *armed* if it is registered with the monitor's userfaultfd (see `mod.rs`). The
//! kernel does not count the watches that need a mapping to be armed. So the coverage divides the
//! watched pages into runs of pages with the same watches. A run is armed when its first watch is
//! placed, disarmed when its last watch ends, and *never armed in between*. The check at each
//! lookup depends on this rule. If the mapping behind a watched page is replaced without an event,
//! the new mapping is not armed. The new mapping stays unarmed until the page has no watch any
//! more. So the check finds the replacement.
//!
//! Neighbouring runs with the same watches are joined. So there are fewer than twice as many runs
//! as watches.
//!
//! An *island* is a longest sequence of adjacent runs. The kernel joins the armed mappings of an
//! island where it can. So an island adds at most two mappings to those of the process: the kernel
//! splits the mappings at both of its ends.

use std::collections::BTreeMap;

use crate::monitor::contract::Cookie;

pub(super) use crate::sys::memory::Pages;

#[derive(Debug, PartialEq, Eq)]
struct Run {
    end: usize,
    /// The watches of the run, in ascending order of their cookies.
    watches: Vec<Cookie>,
}

/// The watches of each page, in runs of pages; see the head of this file.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    /// The runs, by their start addresses. No two runs overlap.
    runs: BTreeMap<usize, Run>,
    islands: usize,
}

impl Coverage {
    /// Adds a watch, and returns the pages that had no watch before.
    pub(super) fn add(&mut self, (start, end): Pages, watch: Cookie) -> Vec<Pages> {
        self.split(start);
        self.split(end);
        let mut fresh = Vec::new();
        let mut at = start;
        for (&first, run) in self.runs.range_mut(start..end) {
            if at < first {
                fresh.push((at, first));
            }
            if let Err(place) = run.watches.binary_search_by_key(&watch.0, |it| it.0) {
                run.watches.insert(place, watch);
            }
            at = run.end;
        }
        if at < end {
            fresh.push((at, end));
        }
        for &(start, end) in &fresh {
            self.islands = self.islands + 1 - self.neighbours(start, end);
            let watches = vec![watch];
            self.runs.insert(start, Run { end, watches });
        }
        self.join(start, end);
        fresh
    }

    /// Removes a watch, and returns the pages that have no watch any more.
    pub(super) fn remove(&mut self, (start, end): Pages, watch: Cookie) -> Vec<Pages> {
        self.split(start);
        self.split(end);
        let mut bare: Vec<Pages> = Vec::new();
        for (&first, run) in self.runs.range_mut(start..end) {
            run.watches.retain(|&other| other != watch);
            if run.watches.is_empty() {
                match bare.last_mut() {
                    Some(last) if last.1 == first => last.1 = run.end,
                    _ => bare.push((first, run.end)),
                }
            }
        }
        let gone: Vec<_> = self
            .runs
            .range(start..end)
            .map(|(&first, run)| (first, run.watches.is_empty()))
            .collect();
        for (first, _) in gone.into_iter().filter(|it| it.1) {
            self.runs.remove(&first);
        }
        for &(start, end) in &bare {
            self.islands = self.islands + self.neighbours(start, end) - 1;
        }
        self.join(start, end);
        bare
    }

    /// Returns the number of islands.
    pub(super) fn islands(&self) -> usize {
        self.islands
    }

    /// Returns the number of runs that end at `start` or start at `end`: 0, 1 or 2.
    fn neighbours(&self, start: usize, end: usize) -> usize {
        let before = self.runs.range(..start).next_back();
        usize::from(before.is_some_and(|(_, run)| run.end == start))
            + usize::from(self.runs.contains_key(&end))
    }

    /// Returns every watch that covers at least one of the pages. A watch may be returned several
    /// times.
    pub(super) fn over(&self, (start, end): Pages) -> impl Iterator<Item = Cookie> {
        let before = self.runs.range(..start).next_back();
        let before = before.filter(move |(_, run)| run.end > start);
        let runs = before
            .into_iter()
            .chain(self.runs.range(start..end.max(start)));
        runs.flat_map(|(_, run)| run.watches.iter().copied())
    }

    /// Returns the runs of all pages that have a watch.
    pub(super) fn all(&self) -> impl Iterator<Item = Pages> {
        self.runs.iter().map(|(&start, run)| (start, run.end))
    }

    /// Splits the run that contains the pages on both sides of `at`, if there is such a run.
    fn split(&mut self, at: usize) {
        let Some((_, run)) = self.runs.range_mut(..at).next_back() else {
            return;
        };
        if run.end > at {
            let watches = run.watches.clone();
            let end = std::mem::replace(&mut run.end, at);
            self.runs.insert(at, Run { end, watches });
        }
    }

    /// Joins neighbouring runs with the same watches, from the run before `start` to the run at
    /// `end`.
    fn join(&mut self, start: usize, end: usize) {
        let before = self.runs.range(..start).next_back();
        let mut at = before.map_or(start, |(&first, _)| first);
        while at < end {
            let Some((&first, run)) = self.runs.range(at..end).next() else {
                return;
            };
            let next = run.end;
            match self.runs.get(&next) {
                Some(other) if other.watches == run.watches => {
                    let end = other.end;
                    self.runs.remove(&next);
                    if let Some(run) = self.runs.get_mut(&first) {
                        run.end = end;
                    }
                    at = first;
                }
                _ => at = next,
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const A: Cookie = Cookie(1);
    const B: Cookie = Cookie(2);

    #[test]
    fn only_pages_without_a_watch_are_armed_and_only_those_left_without_are_disarmed() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.add((2, 6), A), [(2, 6)]);
        assert_eq!(coverage.add((0, 8), B), [(0, 2), (6, 8)]);
        assert_eq!(coverage.remove((2, 6), A), []);
        assert_eq!(
            coverage.runs.len(),
            1,
            "neighbours with the same watches are one"
        );
        assert_eq!(coverage.add((4, 10), A), [(8, 10)]);
        assert_eq!(coverage.remove((0, 8), B), [(0, 4)]);
        assert_eq!(coverage.remove((4, 10), A), [(4, 10)]);
        assert!(coverage.runs.is_empty());
    }

    proptest! {
        #[test]
        fn as_if_each_page_had_a_set_of_watches(
            steps in prop::collection::vec((0..20_usize, 1..8_usize, any::<bool>()), 1..40)
        ) {
            let mut coverage = Coverage::default();
            let mut pages: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); 32];
            let mut live: Vec<(Pages, Cookie)> = Vec::new();
            let flat = |runs: Vec<Pages>| -> Vec<usize> {
                runs.into_iter().flat_map(|(start, end)| start..end).collect()
            };
            for (serial, (start, len, add)) in steps.into_iter().enumerate() {
                if add || live.is_empty() {
                    let (watch, range) = (Cookie(serial as u64), (start, start + len));
                    let bare: Vec<_> = (start..start + len).filter(|&i| pages[i].is_empty()).collect();
                    prop_assert_eq!(flat(coverage.add(range, watch)), bare);
                    pages[start..start + len].iter_mut().for_each(|it| { it.insert(watch.0); });
                    live.push((range, watch));
                } else {
                    let (range, watch) = live.swap_remove(start % live.len());
                    pages[range.0..range.1].iter_mut().for_each(|it| { it.remove(&watch.0); });
                    let bare: Vec<_> = (range.0..range.1).filter(|&i| pages[i].is_empty()).collect();
                    prop_assert_eq!(flat(coverage.remove(range, watch)), bare);
                }
                prop_assert!(coverage.runs.len() < 2 * live.len().max(1));
                let starts = |i: &usize| !pages[*i].is_empty() && (*i == 0 || pages[i - 1].is_empty());
                prop_assert_eq!(coverage.islands(), (0..pages.len()).filter(starts).count());
                for (i, page) in pages.iter().enumerate() {
                    let over: BTreeSet<_> = coverage.over((i, i + 1)).map(|it| it.0).collect();
                    prop_assert_eq!(&over, page);
                }
            }
        }
    }
}
