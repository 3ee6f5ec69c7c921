//! Measures hits.

use regcache_bench_harness::{Pinned, cpu_count, measure as measure_rounds};
use regcache_bench_lookup::Addresses;
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
    small(report, Loop::Random)?;
    windows(report)?;
    if cpu_count() < 2 {
        eprintln!("lookup: this machine has one CPU, so two threads are not measured");
        return Ok(());
    }
    two_threads_on_few(report)?;
    two_threads_on_many(report)?;
    small(report, Loop::RandomByTwo)
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

/// Measures lookups of small buffers that fill pages. The last number of a name is the number of
/// pages.
fn small(report: &mut Report, measured: Loop) -> Result<()> {
    let (suffix, _here) = match measured {
        Loop::RandomByTwo => ("/2threads", None),
        _ => ("", Some(Pinned::to(0))),
    };
    for bytes in [64, 256, 512] {
        for pages in [1, 64, 1024] {
            let buffers = pages * 4096 / bytes;
            let name = format!("hit/small/{bytes}/{pages}{suffix}");
            report.compare_rebuilt(&name, Threshold::OfUcx(1.0), buffers, |effort| {
                let addresses = Addresses::spaced(buffers, bytes, bytes)?;
                let pair = Pair::of(addresses, room(buffers))?;
                Ok(measure_rounds(effort, &mut pair.variants(measured, None)))
            })?;
        }
    }
    Ok(())
}

/// Measures lookups of ranges of 16 pages that start at every page of an arena.
fn windows(report: &mut Report) -> Result<()> {
    let _here = Pinned::to(0);
    let count = 10_000;
    report.compare_rebuilt("hit/window", Threshold::OfUcx(1.0), count, |effort| {
        let addresses = Addresses::spaced(count, 16 * 4096, 4096)?;
        let pair = Pair::of(addresses, room(count))?;
        Ok(measure_rounds(
            effort,
            &mut pair.variants(Loop::Random, None),
        ))
    })
}

fn two_threads_on_few(report: &mut Report) -> Result<()> {
    // The loop `SamePinned` uses an entry that no loop of two threads uses.
    let pair = Pair::new(3, 4096, room(3))?;
    for (name, threshold, measured) in [
        ("same", Threshold::OfOneThread(1.5), Loop::SameByTwo),
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
