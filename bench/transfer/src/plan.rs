//! What is measured if nothing else is asked for.

use crate::{Op, Strategy, Workload};

/// From 64 B to 16 MiB, by factors of 8.
pub const SIZES: [usize; 7] = [64, 512, 4 << 10, 32 << 10, 256 << 10, 2 << 20, 16 << 20];

/// A strategy, and before which of its transfers the buffer is unmapped.
pub type Entry = (Strategy, u64);

/// A cell of the plan.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The work.
    pub workload: Workload,
    /// Who does it; the first is who the others are compared with.
    pub entries: Vec<Entry>,
}

impl Planned {
    /// By every strategy that can do it. Where buffers are unmapped, that leaves out those whose registrations would be
    /// stale, and the cache is compared with itself without unmapping.
    #[must_use]
    pub fn new(workload: Workload) -> Self {
        let every = workload.unmap_every;
        let entries = match every {
            0 => Strategy::ALL.map(|strategy| (strategy, 0)).to_vec(),
            _ => vec![
                (Strategy::Regcache, 0),
                (Strategy::Regcache, every),
                (Strategy::PerTransfer, every),
                (Strategy::Copy, every),
            ],
        };
        Self { workload, entries }
    }
}

/// Where the cache has to ask its monitor at each lookup: adds the cache with a monitor that is a word in memory and never
/// changes, as the driver's is while nothing is unmapped. Only for work that unmaps nothing.
pub fn add_drivers_hit(planned: &mut [Planned]) {
    for planned in planned {
        if planned.workload.unmap_every == 0 {
            planned.entries.push((Strategy::Naive, 0));
        }
    }
}

/// Adds registrations that pin nothing, for the transfers for which the device offers them.
pub fn add_on_demand(planned: &mut [Planned], offered: &[Op]) {
    for Planned { workload, entries } in planned {
        if offered.contains(&workload.op) {
            entries.push((Strategy::Odp, workload.unmap_every));
        }
    }
}

/// The cells for a device that can do `ops`, with up to `threads` threads.
#[must_use]
pub fn plan(ops: &[Op], threads: usize, quick: bool) -> Vec<Planned> {
    let mut all = Vec::new();
    for &op in ops {
        all.extend(SIZES.map(|size| Workload::plain(op, size)));
    }
    let [small, page, large] =
        [64, 4 << 10, 256 << 10].map(|size| Workload::plain(Op::Write, size));
    all.extend([page.set(100), page.unmap_every(100)]);
    if !quick {
        all.extend([page.set(10_000), large.set(100)]);
        all.extend([small.depth(16), page.depth(16), large.depth(16)]);
        if threads > 1 {
            all.extend([page.threads(2), large.threads(2)]);
        }
        all.extend([small.unmap_every(100), large.unmap_every(100)]);
        all.extend([page.unmap_every(10), page.unmap_every(1)]);
        for &op in ops.iter().filter(|&&op| op != Op::Write) {
            all.push(Workload::plain(op, page.size).unmap_every(100));
        }
    }
    all.into_iter().map(Planned::new).collect()
}
