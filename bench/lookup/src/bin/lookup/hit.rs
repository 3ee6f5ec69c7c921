//! Measures hits.

use regcache_bench_harness::{Pinned, cpu_count, measure as measure_rounds};
use regcache_bench_lookup::figure::Threshold;

use crate::Result;
use crate::pair::{Loop, Pair, room};
use crate::report::Report;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    if !report.wants("hit") {
        return Ok(());
    }
    for entries in [1, 100, 10_000, 100_000] {
        one_thread(report, entries)?;
    }
    within(report)?;
    if cpu_count() < 2 {
        eprintln!("lookup: this machine has one CPU, so two threads are not measured");
        return Ok(());
    }
    two_threads_on_few(report)?;
    two_threads_on_many(report)
}

fn one_thread(report: &mut Report, entries: usize) -> Result<()> {
    let _here = Pinned::to(0);
    let threshold = if entries == 1 {
        Threshold::OfUcx(0.35)
    } else {
        Threshold::None
    };
    let name = format!("hit/same/{entries}");
    rebuilt(report, &name, threshold, entries, 4096, Loop::Same, None)?;
    let threshold = match entries {
        1 => return Ok(()),
        10_000 => Threshold::OfUcx(0.5),
        100_000 => Threshold::OfUcx(0.7),
        _ => Threshold::None,
    };
    let name = format!("hit/random/{entries}");
    rebuilt(report, &name, threshold, entries, 4096, Loop::Random, None)
}

/// Measures lookups of one page each. Each registration covers 16 pages.
fn within(report: &mut Report) -> Result<()> {
    let entries = 10_000;
    let _here = Pinned::to(0);
    let name = format!("hit/within/{entries}");
    let len = 16 * 4096;
    rebuilt(
        report,
        &name,
        Threshold::None,
        entries,
        len,
        Loop::Within,
        None,
    )
}

fn two_threads_on_few(report: &mut Report) -> Result<()> {
    let pair = Pair::new(2, 4096, room(2))?;
    for (name, threshold, measured) in [
        ("same", Threshold::OfUcx(0.5), Loop::SameByTwo),
        ("different", Threshold::OfOneThread(1.25), Loop::OwnByTwo),
    ] {
        let mut variants = pair.variants(measured, Some(Loop::SamePinned));
        report.compare(&format!("hit/2threads/{name}"), threshold, &mut variants);
    }
    Ok(())
}

fn two_threads_on_many(report: &mut Report) -> Result<()> {
    for entries in [10_000, 100_000] {
        let name = format!("hit/2threads/random/{entries}");
        let one_thread = Some(Loop::RandomPinned);
        let measured = Loop::RandomByTwo;
        rebuilt(
            report,
            &name,
            Threshold::None,
            entries,
            4096,
            measured,
            one_thread,
        )?;
    }
    Ok(())
}

/// Measures a loop on several pairs of caches, which are built one after the other. Each cache has
/// `entries` ranges of `len` bytes.
fn rebuilt(
    report: &mut Report,
    name: &str,
    threshold: Threshold,
    entries: usize,
    len: usize,
    measured: Loop,
    one_thread: Option<Loop>,
) -> Result<()> {
    report.compare_rebuilt(name, threshold, entries, |effort| {
        let pair = Pair::new(entries, len, room(entries))?;
        Ok(measure_rounds(
            effort,
            &mut pair.variants(measured, one_thread),
        ))
    })
}
