//! Measures hits through the C library.

use regcache_bench_harness::{Pinned, cpu_count};
use regcache_bench_lookup::figure::Threshold;

use crate::Result;
use crate::pair::{Loop, Pair, room};
use crate::report::Report;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    if !report.wants("c/hit") {
        return Ok(());
    }
    // The loop `SamePinned` uses an entry that no loop of two threads uses.
    let Some(pair) = Pair::from_c(3, room(3))? else {
        eprintln!("lookup: target/release/capi has no C library, so it is not measured");
        return Ok(());
    };
    {
        let _here = Pinned::to(0);
        let mut variants = pair.variants(Loop::Same, None);
        report.compare("c/hit/same/1", Threshold::None, &mut variants);
    }
    if cpu_count() < 2 {
        return Ok(());
    }
    for (name, threshold, measured) in [
        // This comes first, because the other loop spreads an entry.
        ("different", Threshold::OfOneThread(1.25), Loop::OwnByTwo),
        ("same", Threshold::None, Loop::SameByTwo),
    ] {
        let mut variants = pair.variants(measured, Some(Loop::SamePinned));
        report.compare(&format!("c/hit/2threads/{name}"), threshold, &mut variants);
    }
    Ok(())
}
