//! The reference model: the reports of a file of the driver, and the invalidations of an operation
//! on memory.
//!
//! [`Watch`] is the driver's documentation in code. It is exact, given the invalidations.
//!
//! [`Arena`] predicts the invalidations. Some numbers are up to the kernel, and the model gives
//! bounds for them: whether two adjacent mappings are merged, how often a move invalidates the old
//! place, whether a page that a dead child had is copied once more. The counter then narrows the
//! bounds for all files.

use std::collections::VecDeque;
use std::fmt;

use regcache::monitor::abi::{self, Event};

use crate::op::{Access, Run};

pub(crate) const PAGE: u64 = 4096;
/// The pages of the arena.
pub(crate) const PAGES: usize = 24;
/// Its first address, far from the addresses that the kernel chooses.
pub(crate) const BASE: u64 = 0x5000_0000_0000;

/// The bytes from `start` up to `end`, which are never none.
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
    /// The same bytes, this many times.
    Times { span: Span, least: u64, most: u64 },
    /// One for each mapping in a run of pages.
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

/// Some pages, and the boundaries of their mappings. Bit i is the boundary between pages i - 1 and
/// i.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mappings {
    run: Run,
    mapped: u32,
    /// The certain boundaries.
    certain: u32,
    /// The possible boundaries.
    possible: u32,
}

impl Mappings {
    /// Returns the mappings between these boundaries.
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

/// The content of a page table entry of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// Nothing.
    Absent,
    /// The zero page, after a read.
    Zero,
    /// A page that the children in `sharers` have too. `left` if a child that is gone had it.
    Own { sharers: u8, left: bool },
}

/// The memory that the steps change.
#[derive(Debug)]
pub(crate) struct Arena {
    access: [Option<Access>; PAGES],
    page: [Page; PAGES],
    /// Bit i is set if pages i - 1 and i are in one mapping for certain.
    joined: u32,
}

/// The bits from `first` up to `end`.
fn bits(first: usize, end: usize) -> u32 {
    ((1 << end) - 1) & !((1 << first) - 1)
}

impl Arena {
    /// Makes an arena with nothing mapped.
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

    /// Returns true if each byte is mapped, and may be accessed.
    pub(crate) fn is_backed(&self, span: Span) -> bool {
        let page = |address: u64| ((address - BASE) / PAGE) as usize;
        (page(span.start)..=page(span.end - 1))
            .all(|page| !matches!(self.access(page), None | Some(Access::Nothing)))
    }

    /// Returns true if the pages are in one mapping for certain.
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

    /// Removes the pages of a run.
    fn clear(&mut self, run: Run) {
        let end = run.first + run.pages;
        self.access[run.first..end].fill(None);
        self.page[run.first..end].fill(Page::Absent);
        self.joined &= !bits(run.first, end + 1);
    }

    /// munmap, which is also the first half of mmap and mremap onto a mapping. It makes one
    /// invalidation of the whole run, if anything is mapped in it.
    pub(crate) fn unmap(&mut self, run: Run) -> Option<Invalidation> {
        let met = self
            .any_mapped(run)
            .then(|| Invalidation::once(Span::from(run)));
        self.clear(run);
        met
    }

    /// mmap with MAP_FIXED.
    pub(crate) fn map(&mut self, run: Run, access: Access) -> Option<Invalidation> {
        let met = self.unmap(run);
        let end = run.first + run.pages;
        self.access[run.first..end].fill(Some(access));
        self.joined |= bits(run.first + 1, end);
        met
    }

    /// A read or write access, which must be allowed.
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
                    // The kernel copies the page again if it is still referenced for a moment.
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

    /// Returns true if the kernel is free to copy the page when it is written.
    pub(crate) fn may_be_copied(&self, page: usize) -> bool {
        let left = Page::Own {
            sharers: 0,
            left: true,
        };
        self.page.get(page) == Some(&left)
    }

    /// madvise with MADV_DONTNEED, or with MADV_FREE, which keeps the pages. Returns true if it
    /// meets no hole.
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

    /// mprotect, which stops at the first hole. Returns true if there is none.
    pub(crate) fn protect(&mut self, run: Run, access: Access) -> bool {
        let end = run.first + run.pages;
        let hole = (run.first..end).find(|&page| self.access[page].is_none());
        let end = hole.unwrap_or(end);
        let before = self.access;
        self.access[run.first..end].fill(Some(access));
        // A mapping is cut only where its protection changes. Two equal mappings may be merged.
        for edge in [run.first, end] {
            let changed = |page: usize| before[page] != self.access[page];
            if edge < PAGES && (changed(edge) || edge > 0 && changed(edge - 1)) {
                self.joined &= !(1 << edge);
            }
        }
        hole.is_none()
    }

    /// Returns how many free pages follow, up to the end of the arena.
    pub(crate) fn free_after(&self, run: Run) -> usize {
        let end = run.first + run.pages;
        self.access[end..]
            .iter()
            .take_while(|access| access.is_none())
            .count()
    }

    /// mremap to more pages in place; the new ones are free.
    pub(crate) fn grow(&mut self, run: Run, new_pages: usize) {
        let (end, new_end) = (run.first + run.pages, run.first + new_pages);
        let access = self.access[end - 1];
        self.access[end..new_end].fill(access);
        self.joined |= bits(end, new_end);
    }

    /// mremap of one mapping, or a part, to another place.
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
        // First the pages are moved, then the mapping is removed.
        let from = Invalidation::Times {
            span: Span::from(kept),
            least: 1,
            most: 2,
        };
        [onto, tail, Some(from)]
    }

    /// Adds a child, which shares all pages.
    pub(crate) fn fork(&mut self, child: usize) {
        for page in &mut self.page {
            if let Page::Own { sharers, .. } = page {
                *sharers |= 1 << child;
            }
        }
    }

    /// Removes a child.
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

/// How often a range was invalidated since its last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Not,
    Once(Span),
    /// Once at these bytes, or more often.
    OnceOrOften(Span),
    Often,
}

#[derive(Debug)]
struct Region {
    span: Span,
    cookie: u64,
    pending: Pending,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The regions by start, and in the order of registration for the same start.
    regions: Vec<Region>,
    /// The ranges to report, in the order of their first invalidations.
    queue: VecDeque<Queued>,
    /// The number of the latest invalidation that was marked.
    turn: u64,
    last_owed: bool,
    pub(crate) counter: u64,
    /// EXCHANGE_FEATURES is no longer possible.
    pub(crate) used: bool,
    /// The reports that were taken off the queue and are on their way to a buffer.
    picked: Vec<(Queued, Pending)>,
}

/// A range that waits to be reported.
#[derive(Clone, Copy, Debug)]
struct Queued {
    cookie: u64,
    start: u64,
    /// The invalidation that queued the range. Ranges with one start that it queued tie: their
    /// reports may come in any order.
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
    /// The number of events.
    pub(crate) events: usize,
    /// The last of them is LAST, with this counter.
    last: Option<u64>,
    /// The state before the read.
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

    /// Returns false if the cookie is in use.
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

    /// Returns false if there is no such cookie.
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

    /// Returns the least and the most by which these invalidations raise the counter.
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

    /// Returns the cookies of the ranges that these invalidations meet for certain.
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

    /// Records invalidations in their order, after which the counter had risen by this amount. At
    /// most one of them has an uncertain number. Returns that number, if anything is watched there.
    pub(crate) fn invalidate(
        &mut self,
        made: &[Invalidation],
        raised: u64,
    ) -> Result<Option<u64>, String> {
        let (least_raised, most_raised) = self.raised_by(made);
        if !(least_raised..=most_raised).contains(&raised) {
            return Err(format!(
                "the counter rose by {raised}, not {least_raised} to {most_raised}, for {made:?}"
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
                        // A single invalidation covered all of `first`.
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

    /// Returns the events that a read with room for this many must deliver.
    pub(crate) fn due(&self, max: usize) -> Delivery {
        let reports = self.queue.len().min(max);
        let last = reports < max && (reports > 0 || self.last_owed);
        Delivery {
            events: reports + usize::from(last),
            last: last.then_some(self.counter),
            last_was_owed: self.last_owed,
        }
    }

    /// Takes this many of them off the queue.
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

    /// Puts the range with this cookie in place `i` of the picked reports, if the two tie.
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

    /// Checks the events that have arrived.
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

    /// Puts the events back, since the buffer could not be written.
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
