//! Compares two runs.

use crate::bytes;
use crate::results::{Cell, Outcome, Run};
use crate::table::{Rows, number};

/// Returns a table of the variants that both runs measured. The table shows the times and overheads
/// of both runs, and the ratios of the later run to the earlier run.
#[must_use]
pub fn rows(earlier: &Run, later: &Run) -> Rows {
    let head = [
        "transfer",
        "size",
        "strategy",
        "us before",
        "us after",
        "ratio",
        "overhead before",
        "overhead after",
        "ratio",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for cell in &earlier.cells {
        let Some(other) = later.cell(cell.workload) else {
            continue;
        };
        let both = |outcome: &Outcome| {
            other
                .outcome(&outcome.strategy, outcome.unmap_every)
                .cloned()
        };
        let pairs = cell
            .outcomes
            .iter()
            .filter_map(|before| Some((before, both(before)?)));
        rows.extend(pairs.map(|(before, after)| row(cell, before, &after)));
    }
    rows
}

fn row(cell: &Cell, before: &Outcome, after: &Outcome) -> Vec<String> {
    vec![
        cell.workload_of(before).name(),
        bytes(cell.workload.size),
        before.strategy.clone(),
        number(before.us),
        number(after.us),
        format!("{:.3}", after.us / before.us),
        number(before.prepare_us),
        number(after.prepare_us),
        format!("{:.3}", after.prepare_us / before.prepare_us),
    ]
}
