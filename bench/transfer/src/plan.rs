//! Makes the plan: the cells that are measured if no option selects other cells. A cell is a
//! workload with the variants that do it.

use crate::{Op, Strategy, Workload};

/// The sizes of transfers, from 64 B to 16 MiB. Each size is 8 times the previous size.
pub const SIZES: [usize; 7] = [64, 512, 4 << 10, 32 << 10, 256 << 10, 2 << 20, 16 << 20];

/// A strategy and a number N. The buffer is unmapped before every Nth transfer. If N is 0, the
/// buffer is never unmapped.
pub type Entry = (Strategy, u64);

/// A cell of the plan.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The workload.
    pub workload: Workload,
    /// The strategies of the variants. The first variant is the base of the ratios.
    pub entries: Vec<Entry>,
}

impl Planned {
    /// Plans a workload with every strategy that supports it.
    ///
    /// If the workload unmaps buffers, the plan omits the strategies whose registrations would
    /// become stale. The base of the ratios is then regcache with a buffer that is never unmapped.
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

/// Adds a variant to each cell: a cache with a monitor that never reports. The generation of this
/// monitor is a constant. The generation of the driver is a word in memory, which does not change
/// while nothing is unmapped.
///
/// Without the driver, the monitor is userfaultfd, which each lookup calls. The added variant then
/// shows the approximate cost of a hit with the driver. Cells with unmaps do not get this variant,
/// because it would move stale bytes.
pub fn add_drivers_hit(planned: &mut [Planned]) {
    for planned in planned {
        if planned.workload.unmap_every == 0 {
            planned.entries.push((Strategy::Naive, 0));
        }
    }
}

/// Adds on-demand paging to the cells whose operation is in `offered`. `offered` has the operations
/// for which the device offers on-demand paging.
pub fn add_on_demand(planned: &mut [Planned], offered: &[Op]) {
    for Planned { workload, entries } in planned {
        if offered.contains(&workload.op) {
            entries.push((Strategy::Odp, workload.unmap_every));
        }
    }
}

/// Returns the cells for a device that supports `ops`, with up to `threads` threads.
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
