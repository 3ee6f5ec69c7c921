//! The kernel: pages that are mapped and unmapped, and the driver that watches them.

use crate::fault::Fault;
use crate::model::{Protocol, Say, Sight};
use crate::state::{At, Change, Stage, State, THREADS, Watch};

/// Returns bit `i` of a mask.
pub(crate) fn bit(i: impl Into<usize>) -> u8 {
    1 << i.into()
}

impl Protocol {
    /// Maps a page and touches it, so that a new physical page is present.
    pub(crate) fn map(&self, state: &mut State, page: u8, say: Say<'_>) {
        let page_state = &mut state.kernel.pages[usize::from(page)];
        page_state.mapped = true;
        page_state.version += 1;
        page_state.floor = page_state.version;
        let version = page_state.version;
        say(format_args!(
            "mmap returns page {page}, and the thread touches it: version {version}"
        ));
        if (0..THREADS).any(|t| {
            state
                .change(t)
                .is_some_and(|it| it.page == page && it.unmaps)
        }) {
            self.saw(Sight::HandedOver);
        }
    }

    /// Makes the next stage of a change by `thread`.
    pub(crate) fn change(&self, state: &mut State, thread: usize, change: Change, say: Say<'_>) {
        let Change { page, unmaps, .. } = change;
        let call = if unmaps { "munmap" } else { "discard" };
        let mut change = change;
        let after;
        match change.stage {
            Stage::Start if self.fault == Some(Fault::DeferredReport) && driver_is_busy(state) => {
                state.kernel.deferred[usize::from(page)] = true;
                say(format_args!(
                    "{call} of page {page}: the driver's lock is taken, so the report is left to the worker"
                ));
                after = Stage::Zap;
            }
            Stage::Start if self.fault != Some(Fault::LateReport) => {
                say(format_args!("{call} of page {page}: invalidate_start"));
                change.struck = self.record(state, page, say);
                after = Stage::Zap;
            }
            Stage::Start | Stage::Zap => {
                let gone = &mut state.kernel.pages[usize::from(page)];
                change.next = gone.version + 1;
                if unmaps {
                    gone.mapped = false;
                    say(format_args!(
                        "{call}: page {page} is gone, its address can be handed out again"
                    ));
                } else {
                    gone.version += 1;
                    let version = gone.version;
                    say(format_args!(
                        "{call}: page {page} is gone, version {version} is mapped"
                    ));
                }
                after = if self.fault == Some(Fault::LateReport) {
                    Stage::Report
                } else {
                    Stage::End
                };
            }
            Stage::Report => {
                say(format_args!(
                    "{call} of page {page}: the driver makes the report, too late"
                ));
                self.record(state, page, say);
                after = Stage::End;
            }
            Stage::End => {
                let page_state = &mut state.kernel.pages[usize::from(page)];
                page_state.floor = page_state.floor.max(change.next);
                say(format_args!(
                    "{call} of page {page}: invalidate_end, and returns"
                ));
                self.record_again(state, change, say);
                for other in &mut state.threads {
                    if let At::Register { awaited, .. } = &mut other.at {
                        *awaited &= !bit(thread);
                    }
                }
                state.threads[thread].at = At::Idle;
                return;
            }
        }
        change.stage = after;
        state.threads[thread].at = At::Change(change);
    }

    /// Marks the watches of a page as invalidated, and raises the generation if the page has a
    /// watch. Returns the marked watches, one bit each.
    fn record(&self, state: &mut State, page: u8, say: Say<'_>) -> u8 {
        let kernel = &mut state.kernel;
        let unread = kernel
            .watches
            .iter()
            .flatten()
            .any(|watch| watch.invalidated);
        let mut struck = 0;
        for (i, watch) in kernel.watches.iter_mut().enumerate() {
            if let Some(watch) = watch.as_mut().filter(|watch| watch.page == page) {
                struck |= bit(i);
                watch.invalidated |= !(unread && self.fault == Some(Fault::LostReport));
                say(format_args!("  the watch of slot {i} is invalidated"));
            }
        }
        if struck != 0 {
            kernel.generation += 1;
            say(format_args!("  generation {}", kernel.generation));
        }
        struck
    }

    /// At the end of an invalidation, repeats the early reports of the invalidation.
    fn record_again(&self, state: &mut State, change: Change, say: Say<'_>) {
        let kernel = &mut state.kernel;
        let mut raised = false;
        for (i, watch) in kernel.watches.iter_mut().enumerate() {
            if let Some(watch) = watch.as_mut().filter(|watch| !watch.invalidated)
                && change.reported & bit(i) != 0
            {
                watch.invalidated = true;
                raised = true;
                say(format_args!(
                    "  the watch of slot {i} is invalidated again: its report was early"
                ));
            }
        }
        if raised {
            kernel.generation += 1;
            say(format_args!("  generation {}", kernel.generation));
            self.saw(Sight::ReportedAgain);
        }
    }

    /// Makes the report that the driver has left to the worker.
    pub(crate) fn worker(&self, state: &mut State, page: u8, say: Say<'_>) {
        state.kernel.deferred[usize::from(page)] = false;
        say(format_args!("reports the change of page {page}"));
        self.record(state, page, say);
    }

    /// Watches a page for a slot. Returns the threads whose invalidations must end before the watch
    /// is in place, one bit each.
    pub(crate) fn watch(&self, state: &mut State, page: u8, slot: u8) -> u8 {
        state.kernel.watches[usize::from(slot)] = Some(Watch {
            page,
            invalidated: false,
        });
        if matches!(
            self.fault,
            Some(Fault::WatchDoesNotWait | Fault::LateReport | Fault::DeferredReport)
        ) {
            return 0;
        }
        let running = |&t: &usize| matches!(state.threads[t].at, At::Change(it) if it.page == page && it.stage != Stage::Start);
        (0..THREADS).filter(running).map(bit).sum()
    }

    pub(crate) fn unwatch(state: &mut State, slot: u8) {
        state.kernel.watches[usize::from(slot)] = None;
        for t in 0..THREADS {
            if let Some(change) = state.change(t) {
                change.struck &= !bit(slot);
                change.reported &= !bit(slot);
            }
        }
    }

    /// Reads one report, and returns the slot that the report names. Returns `None` if there is no
    /// report.
    pub(crate) fn read(state: &mut State) -> Option<u8> {
        let is_invalidated = |watch: &Option<Watch>| watch.is_some_and(|watch| watch.invalidated);
        let slot = state.kernel.watches.iter().position(is_invalidated)?;
        if let Some(watch) = &mut state.kernel.watches[slot] {
            watch.invalidated = false;
        }
        state.kernel.last_owed = true;
        for t in 0..THREADS {
            if let Some(change) = state.change(t) {
                change.reported |= change.struck & bit(slot);
            }
        }
        Some(slot as u8)
    }
}

/// Returns true if a thread is in a call of the driver. Such a thread may hold the driver's lock.
fn driver_is_busy(state: &State) -> bool {
    let in_driver =
        |at: &At| matches!(at, At::Watch { .. } | At::Unwatch { .. } | At::Drain { .. });
    state.threads.iter().any(|thread| in_driver(&thread.at))
}
