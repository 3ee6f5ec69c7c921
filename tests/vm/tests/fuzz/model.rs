//! The reference model of the fuzzer. It predicts the invalidations of each operation on memory,
//! and the reports that a file of the driver must deliver.
//!
//! [`Watch`] models a file of the driver according to the driver's documentation. If the
//! invalidations are known, the predicted reports are exact.
//!
//! [`Arena`] predicts the invalidations. For some operations, the kernel is free to decide the
//! number of invalidations. So the model predicts bounds for this number, and reads the number from
//! the generation counter of a file afterwards. The uncertain decisions are:
//!
//! - whether two adjacent mappings are merged;
//! - how often a move invalidates the old place;
//! - whether a page that an exited child has shared is copied once more.

use std::collections::VecDeque;
use std::fmt;

use ummunotify_sys::{self as abi, Event};

use crate::op::{Access, Run};

pub(crate) const PAGE: u64 = 4096;
/// The number of pages of the arena.
pub(crate) const PAGES: usize = 24;
/// The first address of the arena. It is far from the addresses that the kernel chooses.
pub(crate) const BASE: u64 = 0x5000_0000_0000;

/// The bytes from `start` up to, but not including, `end`. A span is never empty.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl Span {
    fn of_pages(first: usize, end: usize) -> Self {
        Self {
            start: BASE + first as u64 * PAGE,
            end: BASE + end as u64 * PAGE,
        }
    }

    fn meet(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }
}

impl From<Run> for Span {
    fn from(run: Run) -> Self {
        Self::of_pages(run.first, run.first + run.pages)
    }
}

/// The invalidations of one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Invalidation {
    /// There are between `least` and `most` invalidations of the same span.
    Times { span: Span, least: u64, most: u64 },
    /// There is one invalidation for each mapping in a run of pages.
    PerMapping(Mappings),
}

impl Invalidation {
    fn once(span: Span) -> Self {
        Self::Times {
            span,
            least: 1,
            most: 1,
        }
    }
}

/// A run of pages, and the boundaries between the mappings in the run. In `certain` and `possible`,
/// bit i stands for the boundary between pages i - 1 and i.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mappings {
    run: Run,
    mapped: u32,
    /// The boundaries that certainly exist.
    certain: u32,
    /// The boundaries that may exist. They include the certain boundaries.
    possible: u32,
}

impl Mappings {
    /// Returns the spans of the mappings. The function assumes that exactly these boundaries exist.
    fn between(self, boundaries: u32) -> impl Iterator<Item = Span> {
        let end = self.run.first + self.run.pages;
        let mut page = self.run.first;
        std::iter::from_fn(move || {
            while page < end && self.mapped >> page & 1 == 0 {
                page += 1;
            }
            let first = page;
            while page < end
                && self.mapped >> page & 1 == 1
                && (page == first || boundaries >> page & 1 == 0)
            {
                page += 1;
            }
            (first < page).then(|| Span::of_pages(first, page))
        })
    }
}

/// The state of one page of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// No page is present.
    Absent,
    /// The zero page is present, because the page was read before it was written.
    Zero,
    /// A page of this process is present. The live children in `sharers` share this page. `left` is
    /// true if a child that has exited shared the page.
    Own { sharers: u8, left: bool },
}

/// The model of the memory that the steps change.
#[derive(Debug)]
pub(crate) struct Arena {
    access: [Option<Access>; PAGES],
    page: [Page; PAGES],
    /// Bit i is set if pages i - 1 and i certainly belong to one mapping.
    joined: u32,
}

/// Returns a mask of the bits from `first` up to, but not including, `end`.
fn bits(first: usize, end: usize) -> u32 {
    ((1 << end) - 1) & !((1 << first) - 1)
}

impl Arena {
    /// Makes an arena in which nothing is mapped.
    pub(crate) fn new() -> Self {
        Self {
            access: [None; PAGES],
            page: [Page::Absent; PAGES],
            joined: 0,
        }
    }

    pub(crate) fn access(&self, page: usize) -> Option<Access> {
        self.access.get(page).copied().flatten()
    }

    fn any_mapped(&self, run: Run) -> bool {
        self.access[run.first..run.first + run.pages]
            .iter()
            .any(Option::is_some)
    }

    /// Returns true if each byte of the span is mapped and may be accessed.
    pub(crate) fn is_backed(&self, span: Span) -> bool {
        let page = |address: u64| ((address - BASE) / PAGE) as usize;
        (page(span.start)..=page(span.end - 1))
            .all(|page| !matches!(self.access(page), None | Some(Access::Nothing)))
    }

    /// Returns true if the pages of the run certainly belong to one mapping.
    pub(crate) fn is_one_mapping(&self, run: Run) -> bool {
        let inner = bits(run.first + 1, run.first + run.pages);
        self.access[run.first].is_some() && self.joined & inner == inner
    }

    fn mappings(&self, run: Run) -> Mappings {
        let (mut mapped, mut certain) = (0, 0);
        for page in run.first..run.first + run.pages {
            if self.access[page].is_some() {
                mapped |= 1 << page;
            }
            if page > 0 && self.access[page - 1] != self.access[page] {
                certain |= 1 << page;
            }
        }
        Mappings {
            run,
            mapped,
            certain,
            possible: !self.joined,
        }
    }

    /// Removes the mappings and the pages of a run.
    fn clear(&mut self, run: Run) {
        let end = run.first + run.pages;
        self.access[run.first..end].fill(None);
        self.page[run.first..end].fill(Page::Absent);
        self.joined &= !bits(run.first, end + 1);
    }

    /// Models `munmap`. If anything is mapped in the run, the call makes one invalidation of the
    /// whole run. `mmap` and `mremap` onto a mapping also unmap the run first.
    pub(crate) fn unmap(&mut self, run: Run) -> Option<Invalidation> {
        let met = self
            .any_mapped(run)
            .then(|| Invalidation::once(Span::from(run)));
        self.clear(run);
        met
    }

    /// Models `mmap` with MAP_FIXED.
    pub(crate) fn map(&mut self, run: Run, access: Access) -> Option<Invalidation> {
        let met = self.unmap(run);
        let end = run.first + run.pages;
        self.access[run.first..end].fill(Some(access));
        self.joined |= bits(run.first + 1, end);
        met
    }

    /// Models a read access or a write access. The protection must allow the access.
    pub(crate) fn touch(&mut self, page: usize, write: bool) -> Option<Invalidation> {
        let span = Span::of_pages(page, page + 1);
        let own = Page::Own {
            sharers: 0,
            left: false,
        };
        match (self.page[page], write) {
            (Page::Absent, false) => {
                self.page[page] = Page::Zero;
                None
            }
            (_, false) => None,
            (was, true) => {
                self.page[page] = own;
                match was {
                    Page::Absent => None,
                    Page::Own {
                        sharers: 0,
                        left: false,
                    } => None,
                    // The kernel may still hold a reference to the page for a moment after the
                    // child's exit. In that case, the kernel copies the page again.
                    Page::Own {
                        sharers: 0,
                        left: true,
                    } => Some(Invalidation::Times {
                        span,
                        least: 0,
                        most: 1,
                    }),
                    Page::Zero | Page::Own { .. } => Some(Invalidation::once(span)),
                }
            }
        }
    }

    /// Returns true if the kernel is free to decide whether a write copies the page.
    pub(crate) fn may_be_copied(&self, page: usize) -> bool {
        let left = Page::Own {
            sharers: 0,
            left: true,
        };
        self.page.get(page) == Some(&left)
    }

    /// Models `madvise` with MADV_DONTNEED. If `keep` is true, the advice is MADV_FREE, and the
    /// pages stay. Returns the invalidation, and true if the run has no hole.
    pub(crate) fn advise(&mut self, run: Run, keep: bool) -> (Invalidation, bool) {
        let mappings = self.mappings(run);
        let end = run.first + run.pages;
        if !keep {
            self.page[run.first..end].fill(Page::Absent);
        }
        let all = bits(run.first, end);
        (
            Invalidation::PerMapping(mappings),
            mappings.mapped & all == all,
        )
    }

    /// Models `mprotect`. The call stops at the first hole. Returns true if the run has no hole.
    pub(crate) fn protect(&mut self, run: Run, access: Access) -> bool {
        let end = run.first + run.pages;
        let hole = (run.first..end).find(|&page| self.access[page].is_none());
        let end = hole.unwrap_or(end);
        let before = self.access;
        self.access[run.first..end].fill(Some(access));
        // The kernel cuts a mapping only at an edge at which the protection changes. It may merge
        // adjacent mappings with the same protection.
        for edge in [run.first, end] {
            let changed = |page: usize| before[page] != self.access[page];
            if edge < PAGES && (changed(edge) || edge > 0 && changed(edge - 1)) {
                self.joined &= !(1 << edge);
            }
        }
        hole.is_none()
    }

    /// Returns the number of free pages directly after the run, within the arena.
    pub(crate) fn free_after(&self, run: Run) -> usize {
        let end = run.first + run.pages;
        self.access[end..]
            .iter()
            .take_while(|access| access.is_none())
            .count()
    }

    /// Models an `mremap` call that grows a mapping in place. The new pages must be free.
    pub(crate) fn grow(&mut self, run: Run, new_pages: usize) {
        let (end, new_end) = (run.first + run.pages, run.first + new_pages);
        let access = self.access[end - 1];
        self.access[end..new_end].fill(access);
        self.joined |= bits(end, new_end);
    }

    /// Models an `mremap` call that moves a mapping, or a part of a mapping, to another place.
    pub(crate) fn move_to(
        &mut self,
        run: Run,
        to: usize,
        new_pages: usize,
        keep_old: bool,
    ) -> [Option<Invalidation>; 3] {
        let target = Run {
            first: to,
            pages: new_pages,
        };
        let kept = Run {
            first: run.first,
            pages: new_pages,
        };
        let onto = self.unmap(target);
        let tail = (run.pages > new_pages).then(|| Run {
            first: run.first + new_pages,
            pages: run.pages - new_pages,
        });
        let tail = tail.and_then(|tail| self.unmap(tail));
        let (from, into) = (
            kept.first..kept.first + new_pages,
            target.first..target.first + new_pages,
        );
        let access = self.access[kept.first];
        self.access[into.clone()].fill(access);
        self.page.copy_within(from.clone(), to);
        self.joined |= bits(target.first + 1, target.first + new_pages);
        if keep_old {
            self.page[from].fill(Page::Absent);
            self.joined &= !(1 << kept.first | 1 << (kept.first + new_pages));
        } else {
            self.clear(kept);
        }
        // The kernel moves the pages, and after that it removes the mapping. Either step may
        // invalidate the old place.
        let from = Invalidation::Times {
            span: Span::from(kept),
            least: 1,
            most: 2,
        };
        [onto, tail, Some(from)]
    }

    /// Adds a child that shares all pages of this process.
    pub(crate) fn fork(&mut self, child: usize) {
        for page in &mut self.page {
            if let Page::Own { sharers, .. } = page {
                *sharers |= 1 << child;
            }
        }
    }

    /// Removes a child. After that, the child shares no page.
    pub(crate) fn child_leaves(&mut self, child: usize) {
        for page in &mut self.page {
            if let Page::Own { sharers, left } = page
                && *sharers & 1 << child != 0
            {
                *sharers &= !(1 << child);
                *left = true;
            }
        }
    }
}

/// The invalidations of a range since the last report of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Not,
    Once(Span),
    /// The range was invalidated at least once. If it was invalidated only once, these bytes
    /// changed.
    OnceOrOften(Span),
    Often,
}

#[derive(Debug)]
struct Region {
    span: Span,
    cookie: u64,
    pending: Pending,
}

/// The model of an open file.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The ranges in the order of their starts. Ranges with the same start are in the order of
    /// their registration.
    regions: Vec<Region>,
    /// The ranges that wait to be reported, in the order of their first invalidations.
    queue: VecDeque<Queued>,
    /// The number of the latest recorded invalidation.
    turn: u64,
    last_owed: bool,
    pub(crate) counter: u64,
    /// True if a call has used the file, so that the driver no longer accepts EXCHANGE_FEATURES.
    pub(crate) used: bool,
    /// The reports that a read has taken from the queue and that the fuzzer has not checked yet.
    picked: Vec<(Queued, Pending)>,
}

/// A range that waits to be reported.
#[derive(Clone, Copy, Debug)]
struct Queued {
    cookie: u64,
    start: u64,
    /// The number of the invalidation that queued the range. Two ranges tie if they have the same
    /// start and the same `turn`. The driver may report tied ranges in any order.
    turn: u64,
}

impl Queued {
    fn ties(self, other: Self) -> bool {
        (self.start, self.turn) == (other.start, other.turn)
    }
}

/// The events that a read must deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The number of events, including LAST.
    pub(crate) events: usize,
    /// The counter in LAST, or `None` if the read has no room for LAST.
    last: Option<u64>,
    /// True if the file already owed a LAST before the read.
    last_was_owed: bool,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            regions: Vec::with_capacity(32),
            queue: VecDeque::with_capacity(32),
            turn: 0,
            last_owed: false,
            counter: 0,
            used: false,
            picked: Vec::with_capacity(64),
        }
    }

    pub(crate) fn is_readable(&self) -> bool {
        !self.queue.is_empty() || self.last_owed
    }

    /// Adds a watch. Returns false if the cookie is already in use.
    pub(crate) fn register(&mut self, span: Span, cookie: u64) -> bool {
        if self.regions.iter().any(|region| region.cookie == cookie) {
            return false;
        }
        let after = self
            .regions
            .partition_point(|region| region.span.start <= span.start);
        let pending = Pending::Not;
        self.regions.insert(
            after,
            Region {
                span,
                cookie,
                pending,
            },
        );
        true
    }

    /// Removes the watch with this cookie. Returns false if the cookie is not in use.
    pub(crate) fn unregister(&mut self, cookie: u64) -> bool {
        let known = self.regions.len();
        self.regions.retain(|region| region.cookie != cookie);
        self.queue.retain(|queued| queued.cookie != cookie);
        self.regions.len() < known
    }

    fn watches(&self, span: Span) -> bool {
        self.regions
            .iter()
            .any(|region| region.span.meet(span).is_some())
    }

    /// Returns the smallest and the largest amount by which these invalidations may raise the
    /// counter.
    pub(crate) fn raised_by(&self, made: &[Invalidation]) -> (u64, u64) {
        let (mut least, mut most) = (0, 0);
        for invalidation in made {
            match *invalidation {
                Invalidation::Times {
                    span,
                    least: less,
                    most: more,
                } if self.watches(span) => {
                    least += less;
                    most += more;
                }
                Invalidation::Times { .. } => {}
                Invalidation::PerMapping(all) => {
                    let mappings_met = |boundaries| {
                        let met = all.between(boundaries).filter(|&span| self.watches(span));
                        met.count() as u64
                    };
                    least += mappings_met(all.certain);
                    most += mappings_met(all.possible);
                }
            }
        }
        (least, most)
    }

    /// Returns the cookies of the ranges that these invalidations certainly meet.
    pub(crate) fn met_by(&self, made: &[Invalidation]) -> Vec<u64> {
        let pending = |region: &&Region| {
            made.iter().any(|invalidation| match *invalidation {
                Invalidation::Times { span, least, .. } => {
                    least > 0 && region.span.meet(span).is_some()
                }
                Invalidation::PerMapping(all) => {
                    let mut spans = all.between(all.certain);
                    spans.any(|span| region.span.meet(span).is_some())
                }
            })
        };
        let met = self.regions.iter().filter(pending);
        met.map(|region| region.cookie).collect()
    }

    pub(crate) fn cookies(&self) -> impl ExactSizeIterator<Item = u64> {
        self.regions.iter().map(|region| region.cookie)
    }

    /// Records these invalidations in their order. `raised` is the amount by which the
    /// invalidations raised the real counter. At most one element of `made` stands for an uncertain
    /// number of invalidations. If the file watches memory that this element meets, the function
    /// computes the number from `raised` and returns it.
    pub(crate) fn invalidate(
        &mut self,
        made: &[Invalidation],
        raised: u64,
    ) -> Result<Option<u64>, String> {
        let (least_raised, most_raised) = self.raised_by(made);
        if !(least_raised..=most_raised).contains(&raised) {
            return Err(format!(
                "the counter rose by {raised}, not by {least_raised} to {most_raised}, after {made:?}"
            ));
        }
        self.counter += raised;
        let mut more = raised - least_raised;
        let mut found = None;
        for invalidation in made {
            match *invalidation {
                Invalidation::Times { span, least, most } if self.watches(span) => {
                    let times = least + more.min(most - least);
                    if least < most {
                        more -= times - least;
                        found = Some(times);
                    }
                    for _ in 0..times {
                        self.mark(|region| region.meet(span).map(Pending::Once));
                    }
                }
                Invalidation::Times { .. } => {}
                Invalidation::PerMapping(all) => self.mark(|region| {
                    let mut certain = all
                        .between(all.certain)
                        .filter_map(|span| region.meet(span));
                    let first = certain.next()?;
                    let possible = all
                        .between(all.possible)
                        .filter(|&span| region.meet(span).is_some());
                    if certain.next().is_some() {
                        Some(Pending::Often)
                    } else if possible.count() == 1 {
                        Some(Pending::Once(first))
                    } else {
                        // If the range was invalidated only once, no boundary between two mappings
                        // lies in it. Then the invalidation covered all of `first`.
                        Some(Pending::OnceOrOften(first))
                    }
                }),
            }
        }
        Ok(found)
    }

    fn mark(&mut self, pending: impl Fn(Span) -> Option<Pending>) {
        self.turn += 1;
        for region in &mut self.regions {
            let Some(pending) = pending(region.span) else {
                continue;
            };
            if region.pending == Pending::Not {
                region.pending = pending;
                self.queue.push_back(Queued {
                    cookie: region.cookie,
                    start: region.span.start,
                    turn: self.turn,
                });
            } else {
                region.pending = Pending::Often;
            }
        }
    }

    fn region(&mut self, cookie: u64) -> Option<&mut Region> {
        self.regions
            .iter_mut()
            .find(|region| region.cookie == cookie)
    }

    /// Returns the events that a read with room for `max` events must deliver.
    pub(crate) fn due(&self, max: usize) -> Delivery {
        let reports = self.queue.len().min(max);
        let last = reports < max && (reports > 0 || self.last_owed);
        Delivery {
            events: reports + usize::from(last),
            last: last.then_some(self.counter),
            last_was_owed: self.last_owed,
        }
    }

    /// Moves the ranges that the first `events` of the due events report from the queue to
    /// `picked`.
    pub(crate) fn pick_up(&mut self, due: Delivery, events: usize) {
        let reports = events - usize::from(due.last.is_some() && events == due.events);
        self.picked.clear();
        for _ in 0..reports {
            let Some(queued) = self.queue.pop_front() else {
                break;
            };
            if let Some(region) = self.region(queued.cookie) {
                let pending = std::mem::replace(&mut region.pending, Pending::Not);
                self.picked.push((queued, pending));
            }
        }
        if events > reports {
            self.last_owed = false;
        } else if reports > 0 {
            self.last_owed = true;
        }
    }

    /// Puts the range with this cookie at place `i` of the picked reports. Changes nothing if the
    /// range does not tie with the range that was expected at this place.
    fn pick_instead(&mut self, i: usize, cookie: u64) {
        let (expected, pending) = self.picked[i];
        let fits = |it: &Queued| it.cookie == cookie && it.ties(expected);
        if let Some(other) = (i..self.picked.len()).find(|&j| fits(&self.picked[j].0)) {
            self.picked.swap(i, other);
        } else if let Some(other) = self.queue.iter().position(fits) {
            let came = std::mem::replace(&mut self.queue[other], expected);
            if let Some(region) = self.region(expected.cookie) {
                region.pending = pending;
            }
            if let Some(region) = self.region(cookie) {
                let pending = std::mem::replace(&mut region.pending, Pending::Not);
                self.picked[i] = (came, pending);
            }
        }
    }

    /// Checks the events that a read has delivered against the picked reports.
    pub(crate) fn arrived(&mut self, due: Delivery, events: &[Event]) -> Result<(), String> {
        for (i, &event) in events.iter().enumerate() {
            if i < self.picked.len() {
                self.pick_instead(i, event.user_cookie_counter);
            }
            let Some(&(Queued { cookie, .. }, pending)) = self.picked.get(i) else {
                let last = Event {
                    kind: abi::LAST,
                    flags: 0,
                    hint_start: 0,
                    hint_end: 0,
                    user_cookie_counter: due.last.unwrap_or(u64::MAX),
                };
                if event == last {
                    continue;
                }
                return Err(format!("event {i} is {event:x?}, not {last:x?}"));
            };
            let Some(region) = self.region(cookie) else {
                return Err(format!("event {i} is {event:x?}, of no range"));
            };
            let report = |flags, span: Span| Event {
                kind: abi::INVAL,
                flags,
                hint_start: span.start,
                hint_end: span.end,
                user_cookie_counter: cookie,
            };
            let often = report(0, region.span);
            let right = match pending {
                Pending::Not => false,
                Pending::Once(span) => event == report(abi::HINT, span),
                Pending::OnceOrOften(span) => event == often || event == report(abi::HINT, span),
                Pending::Often => event == often,
            };
            if !right {
                return Err(format!(
                    "event {i} is {event:x?}, of cookie {cookie:#x} watching {:?} and pending {pending:?}",
                    region.span
                ));
            }
        }
        Ok(())
    }

    /// Puts the picked reports back into the queue, because the driver could not write to the
    /// buffer.
    pub(crate) fn put_back(&mut self, due: Delivery) {
        while let Some((queued, pending)) = self.picked.pop() {
            let Some(region) = self.region(queued.cookie) else {
                continue;
            };
            if region.pending == Pending::Not {
                region.pending = pending;
                self.queue.push_front(queued);
            } else {
                region.pending = Pending::Often;
            }
        }
        self.last_owed = due.last_was_owed;
    }
}
