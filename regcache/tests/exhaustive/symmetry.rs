//! The reduction by symmetry. If two states differ only in the names of threads, pages or versions,
//! the checker explores only one of the two.
//!
//! Threads that began with the same number of operations are interchangeable. All pages are
//! interchangeable too. The index of a registration in `pins` has no effect. The model compares
//! versions only with other versions, and generations only with other generations. So in each state
//! the oldest version and the oldest generation can be renumbered to 0. Slots are not
//! interchangeable, because the model always chooses the first suitable slot.

use stateright::Representative;

use crate::kernel::bit;
use crate::state::{At, Goal, Guard, PAGES, Phase, State, THREADS};

/// The orders of threads that the reduction tries. If a scenario has fewer threads, the reduction
/// tries only the first orders. Those orders leave the unused threads in place.
const THREAD_ORDERS: [[usize; THREADS]; 6] = [
    [0, 1, 2],
    [1, 0, 2],
    [0, 2, 1],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];
const PAGE_ORDERS: [[usize; PAGES]; 2] = [[0, 1], [1, 0]];

impl Representative for State {
    fn representative(&self) -> Self {
        let (threads, pages) = (usize::from(self.in_use.0), usize::from(self.in_use.1));
        let mut least: Option<Self> = None;
        for threads in &THREAD_ORDERS[..[1, 1, 2, 6][threads]] {
            for pages in &PAGE_ORDERS[..pages] {
                let mut candidate = self.renamed(threads, pages);
                candidate.number_pins();
                candidate.number_generations();
                candidate.number_versions();
                if least.as_ref().is_none_or(|least| candidate < *least) {
                    least = Some(candidate);
                }
            }
        }
        least.unwrap_or_else(|| self.clone())
    }
}

impl State {
    /// Renames thread `i` to `threads[i]`, and page `i` to `pages[i]`.
    fn renamed(&self, threads: &[usize; THREADS], pages: &[usize; PAGES]) -> Self {
        let mut new = self.clone();
        let page = |old: &mut u8| *old = pages[usize::from(*old)] as u8;
        for (i, &to) in pages.iter().enumerate() {
            new.kernel.pages[to] = self.kernel.pages[i].clone();
            new.kernel.deferred[to] = self.kernel.deferred[i];
        }
        new.kernel
            .watches
            .iter_mut()
            .flatten()
            .for_each(|watch| page(&mut watch.page));
        new.pins
            .iter_mut()
            .flatten()
            .for_each(|pin| page(&mut pin.page));
        for slot in &mut new.cache.slots {
            if slot.phase != Phase::Vacant {
                page(&mut slot.page);
            }
            if let Some((its, _)) = &mut slot.content {
                page(its);
            }
        }
        if let Some(owner) = &mut new.cache.lock {
            *owner = threads[usize::from(*owner)] as u8;
        }
        for (i, &to) in threads.iter().enumerate() {
            let mut thread = self.threads[i].clone();
            if let Some(lookup) = &mut thread.lookup {
                page(&mut lookup.page);
            }
            match &mut thread.at {
                At::Change(change) => page(&mut change.page),
                At::Register { awaited, .. } => {
                    let old = *awaited;
                    *awaited = (0..THREADS)
                        .filter(|&t| old & bit(t) != 0)
                        .map(|t| bit(threads[t]))
                        .sum();
                }
                _ => {}
            }
            new.threads[to] = thread;
        }
        new
    }

    /// Renumbers the pins in the order in which slots and threads refer to them.
    fn number_pins(&mut self) {
        let mut old = std::mem::take(&mut self.pins);
        let mut next = 0;
        let pins = &mut self.pins;
        let mut number = |pin: &mut u8| {
            let was = old[usize::from(*pin)].take();
            // A reference to a pin that is gone is a violation. Such a reference is not renumbered,
            // so that the checker finds it.
            if was.is_some() {
                pins[usize::from(next)] = was;
                *pin = next;
                next += 1;
            }
        };
        for slot in &mut self.cache.slots {
            if let Some((_, pin)) = &mut slot.content {
                number(pin);
            }
        }
        for thread in &mut self.threads {
            if let Some(Guard::Own(pin)) = &mut thread.guard {
                number(pin);
            }
            match &mut thread.at {
                At::Watch { pin: Some(pin), .. }
                | At::Deregister { pin, .. }
                | At::Admit { pin, .. }
                | At::ChooseVictim { pin, .. }
                | At::Evict { pin, .. }
                | At::Enter(Goal::Publish { pin, .. })
                | At::Current(Goal::Publish { pin, .. })
                | At::Drain {
                    goal: Goal::Publish { pin, .. },
                    ..
                }
                | At::Drained {
                    goal: Goal::Publish { pin, .. },
                    ..
                }
                | At::Mark {
                    goal: Goal::Publish { pin, .. },
                    ..
                }
                | At::Marked(Goal::Publish { pin, .. })
                | At::Kill {
                    goal: Goal::Publish { pin, .. },
                    ..
                }
                | At::ClearMark {
                    goal: Goal::Publish { pin, .. },
                    ..
                } => number(pin),
                _ => {}
            }
        }
        // No slot and no thread refers to the remaining pins, so these are leaks. The leaked pins
        // are kept, so that the checker finds them.
        let kept = usize::from(next);
        for (place, leaked) in self.pins[kept..].iter_mut().zip(old.iter().flatten()) {
            *place = Some(*leaked);
        }
    }

    /// Renumbers the generations so that the oldest generation in the state is 0.
    fn number_generations(&mut self) {
        let oldest = self.generations().map(|it| *it).min().unwrap_or(0);
        self.generations().for_each(|it| *it -= oldest);
    }

    fn generations(&mut self) -> impl Iterator<Item = &mut u8> {
        let remembered = self
            .threads
            .iter_mut()
            .filter_map(|thread| match &mut thread.at {
                At::Compare { generation }
                | At::CompareMarks { generation }
                | At::Drained { generation, .. } => Some(generation),
                At::Drain { before, .. } => Some(before),
                _ => None,
            });
        let cache = &mut self.cache;
        [
            &mut self.kernel.generation,
            &mut cache.drained,
            &mut cache.marked,
        ]
        .into_iter()
        .chain(remembered)
    }

    /// Renumbers the versions of each page so that the oldest version of the page in the state is
    /// 0.
    fn number_versions(&mut self) {
        for page in 0..PAGES as u8 {
            let mut oldest = u8::MAX;
            self.versions(page, |it| oldest = oldest.min(*it));
            self.versions(page, |it| *it -= oldest);
        }
    }

    fn versions(&mut self, page: u8, mut each: impl FnMut(&mut u8)) {
        let it = &mut self.kernel.pages[usize::from(page)];
        each(&mut it.version);
        each(&mut it.floor);
        for pin in self.pins.iter_mut().flatten() {
            if pin.page == page {
                each(&mut pin.version);
            }
        }
        for thread in &mut self.threads {
            if let Some(lookup) = &mut thread.lookup
                && lookup.page == page
            {
                each(&mut lookup.floor);
            }
            if let At::Change(change) = &mut thread.at
                && change.page == page
                && change.next > 0
            {
                each(&mut change.next);
            }
        }
    }
}
