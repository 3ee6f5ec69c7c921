//! Lookups that are hits.

use std::sync::Arc;

use regcache_bench_harness::{Pinned, Random, Sample, Variant, cpu_count, timed, timed_by_two};
use regcache_bench_lookup::figure::Threshold;
use regcache_bench_lookup::{Addresses, Peer, Regcache, Subject, loops, peer};

use crate::Result;
use crate::report::{Report, compare};

/// The default limit of entries, and the next power of two, for 100 000 entries.
const ROOM: usize = 1 << 16;
const MORE_ROOM: usize = 1 << 17;

/// Both caches, with the same ranges registered.
pub(crate) struct Pair {
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) regcache: Regcache,
    pub(crate) peer: Option<Peer>,
}

impl Pair {
    pub(crate) fn new(entries: usize, len: usize, room: usize) -> Result<Self> {
        let addresses = Arc::new(Addresses::new(entries, len)?);
        let regcache = Regcache::new(&addresses, room)?;
        loops::fill(&regcache, &addresses);
        let peer = peer(room)?;
        if let Some(peer) = &peer {
            loops::fill(peer, &addresses);
        }
        Ok(Self {
            addresses,
            regcache,
            peer,
        })
    }
}

/// The limit of a cache for this many entries.
pub(crate) fn room(entries: usize) -> usize {
    if entries <= ROOM { ROOM } else { MORE_ROOM }
}

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
    report.compare_rebuilt(
        &format!("hit/same/{entries}"),
        threshold,
        entries,
        |effort| {
            let pair = Pair::new(entries, 4096, room(entries))?;
            Ok(compare(
                effort,
                &mut same(&pair.regcache, &pair.addresses),
                dynamic(&mut pair.peer.as_ref().map(|peer| same(peer, &pair.addresses))),
                None,
            ))
        },
    )?;
    let threshold = match entries {
        1 => return Ok(()),
        10_000 => Threshold::OfUcx(0.5),
        100_000 => Threshold::OfUcx(0.7),
        _ => Threshold::None,
    };
    report.compare_rebuilt(
        &format!("hit/random/{entries}"),
        threshold,
        entries,
        |effort| {
            let pair = Pair::new(entries, 4096, room(entries))?;
            Ok(compare(
                effort,
                &mut random(&pair.regcache, &pair.addresses),
                dynamic(&mut pair.peer.as_ref().map(|peer| random(peer, &pair.addresses))),
                None,
            ))
        },
    )
}

/// Looks up single pages of registrations of 16 pages.
fn within(report: &mut Report) -> Result<()> {
    let entries = 10_000;
    let _here = Pinned::to(0);
    let name = format!("hit/within/{entries}");
    report.compare_rebuilt(&name, Threshold::None, entries, |effort| {
        let pair = Pair::new(entries, 16 * 4096, room(entries))?;
        Ok(compare(
            effort,
            &mut inside(&pair.regcache, &pair.addresses),
            dynamic(&mut pair.peer.as_ref().map(|peer| inside(peer, &pair.addresses))),
            None,
        ))
    })
}

fn two_threads_on_few(report: &mut Report) -> Result<()> {
    let pair = Pair::new(2, 4096, ROOM)?;
    let mine = |which: usize| pair.addresses.entry(which);
    let both = |_: usize| pair.addresses.entry(0);
    report.compare(
        "hit/2threads/same",
        Threshold::OfUcx(0.5),
        &mut by_two(&pair.regcache, &pair.addresses, both),
        dynamic(
            &mut pair
                .peer
                .as_ref()
                .map(|peer| by_two(peer, &pair.addresses, both)),
        ),
        Some(&mut by_one(&pair.regcache, &pair.addresses)),
    );
    report.compare(
        "hit/2threads/different",
        Threshold::OfOneThread(1.25),
        &mut by_two(&pair.regcache, &pair.addresses, mine),
        dynamic(
            &mut pair
                .peer
                .as_ref()
                .map(|peer| by_two(peer, &pair.addresses, mine)),
        ),
        Some(&mut by_one(&pair.regcache, &pair.addresses)),
    );
    Ok(())
}

fn two_threads_on_many(report: &mut Report) -> Result<()> {
    for entries in [10_000, 100_000] {
        let name = format!("hit/2threads/random/{entries}");
        report.compare_rebuilt(&name, Threshold::None, entries, |effort| {
            let pair = Pair::new(entries, 4096, room(entries))?;
            let ours = (&pair.regcache, &*pair.addresses);
            Ok(compare(
                effort,
                &mut random_by_two(ours.0, ours.1),
                dynamic(&mut pair.peer.as_ref().map(|peer| random_by_two(peer, ours.1))),
                Some(&mut random_by_one(ours.0, ours.1)),
            ))
        })?;
    }
    Ok(())
}

fn same(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Sample {
    let (start, len) = (addresses.entry(addresses.count() / 2), addresses.len());
    move |operations| timed(operations, || loops::same(subject, start, len, operations))
}

fn random(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Sample {
    let mut order = Random::new(1);
    move |operations| {
        timed(operations, || {
            loops::random(subject, addresses, &mut order, operations);
        })
    }
}

fn inside(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Sample {
    let mut order = Random::new(1);
    loops::within(subject, addresses, &mut order, 32 * addresses.count());
    move |operations| {
        timed(operations, || {
            loops::within(subject, addresses, &mut order, operations);
        })
    }
}

/// Each thread looks up the range at its own `start`.
fn by_two(
    subject: &impl Subject,
    addresses: &Addresses,
    start: impl Fn(usize) -> usize + Sync,
) -> impl FnMut(usize) -> Sample {
    let len = addresses.len();
    move |operations| {
        timed_by_two(operations, |which| {
            loops::same(subject, start(which), len, operations);
        })
    }
}

/// Runs the same loop in one thread, on the first thread's CPU.
fn by_one(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Sample {
    let (start, len) = (addresses.entry(0), addresses.len());
    move |operations| {
        let _here = Pinned::to(0);
        timed(operations, || loops::same(subject, start, len, operations))
    }
}

fn random_by_two(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Sample {
    let mut seed = 0;
    move |operations| {
        seed += 2;
        timed_by_two(operations, |which| {
            let mut order = Random::new(seed + which as u64);
            loops::random(subject, addresses, &mut order, operations);
        })
    }
}

fn random_by_one(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Sample {
    let mut order = Random::new(1);
    move |operations| {
        let _here = Pinned::to(0);
        timed(operations, || {
            loops::random(subject, addresses, &mut order, operations);
        })
    }
}

/// The variant as a trait object, if there is one.
pub(crate) fn dynamic<'a, F: FnMut(usize) -> Sample>(
    variant: &'a mut Option<F>,
) -> Option<&'a mut Variant<'a>> {
    variant.as_mut().map(|run| run as &mut Variant<'_>)
}
