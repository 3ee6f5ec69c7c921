//! Lookups of what is there.

use std::sync::Arc;

use regcache_bench::block::{Block, Contestant, Pinned, processor_count, timed, timed_by_two};
use regcache_bench::figure::Limit;
use regcache_bench::{Addresses, Random, Regcache, Rival, Subject, loops, rival};

use crate::Result;
use crate::report::{Report, contest};

/// The default limit of entries, and for 100 000 of them the next power of two.
const ROOM: usize = 1 << 16;
const MORE_ROOM: usize = 1 << 17;

/// Both caches with the same ranges registered.
pub(crate) struct Pair {
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) regcache: Regcache,
    pub(crate) rival: Option<Rival>,
}

impl Pair {
    pub(crate) fn new(entries: usize, len: usize, room: usize) -> Result<Self> {
        let addresses = Arc::new(Addresses::new(entries, len)?);
        let regcache = Regcache::new(&addresses, room)?;
        loops::fill(&regcache, &addresses);
        let rival = rival(room)?;
        if let Some(rival) = &rival {
            loops::fill(rival, &addresses);
        }
        Ok(Self {
            addresses,
            regcache,
            rival,
        })
    }
}

/// Room for so many.
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
    if processor_count() < 2 {
        eprintln!("one processor: nothing is measured with two threads");
        return Ok(());
    }
    two_threads_on_few(report)?;
    two_threads_on_many(report)
}

fn one_thread(report: &mut Report, entries: usize) -> Result<()> {
    let _here = Pinned::to(0);
    let limit = if entries == 1 {
        Limit::OfUcx(0.35)
    } else {
        Limit::None
    };
    report.contests(&format!("hit/same/{entries}"), limit, entries, |effort| {
        let pair = Pair::new(entries, 4096, room(entries))?;
        Ok(contest(
            effort,
            &mut same(&pair.regcache, &pair.addresses),
            dynamic(
                &mut pair
                    .rival
                    .as_ref()
                    .map(|rival| same(rival, &pair.addresses)),
            ),
            None,
        ))
    })?;
    let limit = match entries {
        1 => return Ok(()),
        10_000 => Limit::OfUcx(0.5),
        100_000 => Limit::OfUcx(0.7),
        _ => Limit::None,
    };
    report.contests(&format!("hit/random/{entries}"), limit, entries, |effort| {
        let pair = Pair::new(entries, 4096, room(entries))?;
        Ok(contest(
            effort,
            &mut random(&pair.regcache, &pair.addresses),
            dynamic(
                &mut pair
                    .rival
                    .as_ref()
                    .map(|rival| random(rival, &pair.addresses)),
            ),
            None,
        ))
    })
}

/// Pages of registrations of 16 pages.
fn within(report: &mut Report) -> Result<()> {
    let entries = 10_000;
    let _here = Pinned::to(0);
    let name = format!("hit/within/{entries}");
    report.contests(&name, Limit::None, entries, |effort| {
        let pair = Pair::new(entries, 16 * 4096, room(entries))?;
        Ok(contest(
            effort,
            &mut inside(&pair.regcache, &pair.addresses),
            dynamic(
                &mut pair
                    .rival
                    .as_ref()
                    .map(|rival| inside(rival, &pair.addresses)),
            ),
            None,
        ))
    })
}

fn two_threads_on_few(report: &mut Report) -> Result<()> {
    let pair = Pair::new(2, 4096, ROOM)?;
    let mine = |which: usize| pair.addresses.entry(which);
    let both = |_: usize| pair.addresses.entry(0);
    report.contest(
        "hit/2threads/same",
        Limit::OfUcx(0.5),
        &mut by_two(&pair.regcache, &pair.addresses, both),
        dynamic(
            &mut pair
                .rival
                .as_ref()
                .map(|rival| by_two(rival, &pair.addresses, both)),
        ),
        Some(&mut by_one(&pair.regcache, &pair.addresses)),
    );
    report.contest(
        "hit/2threads/different",
        Limit::OfOneThread(1.25),
        &mut by_two(&pair.regcache, &pair.addresses, mine),
        dynamic(
            &mut pair
                .rival
                .as_ref()
                .map(|rival| by_two(rival, &pair.addresses, mine)),
        ),
        Some(&mut by_one(&pair.regcache, &pair.addresses)),
    );
    Ok(())
}

fn two_threads_on_many(report: &mut Report) -> Result<()> {
    for entries in [10_000, 100_000] {
        let name = format!("hit/2threads/random/{entries}");
        report.contests(&name, Limit::None, entries, |effort| {
            let pair = Pair::new(entries, 4096, room(entries))?;
            let ours = (&pair.regcache, &*pair.addresses);
            Ok(contest(
                effort,
                &mut random_by_two(ours.0, ours.1),
                dynamic(
                    &mut pair
                        .rival
                        .as_ref()
                        .map(|rival| random_by_two(rival, ours.1)),
                ),
                Some(&mut random_by_one(ours.0, ours.1)),
            ))
        })?;
    }
    Ok(())
}

fn same(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Block {
    let (start, len) = (addresses.entry(addresses.count() / 2), addresses.len());
    move |operations| timed(operations, || loops::same(subject, start, len, operations))
}

fn random(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Block {
    let mut order = Random::new(1);
    move |operations| {
        timed(operations, || {
            loops::random(subject, addresses, &mut order, operations);
        })
    }
}

fn inside(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Block {
    let mut order = Random::new(1);
    loops::within(subject, addresses, &mut order, 32 * addresses.count());
    move |operations| {
        timed(operations, || {
            loops::within(subject, addresses, &mut order, operations);
        })
    }
}

/// Each thread looks up what `start` says for it.
fn by_two(
    subject: &impl Subject,
    addresses: &Addresses,
    start: impl Fn(usize) -> usize + Sync,
) -> impl FnMut(usize) -> Block {
    let len = addresses.len();
    move |operations| {
        timed_by_two(operations, |which| {
            loops::same(subject, start(which), len, operations);
        })
    }
}

/// The same loop, on the first thread's processor.
fn by_one(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Block {
    let (start, len) = (addresses.entry(0), addresses.len());
    move |operations| {
        let _here = Pinned::to(0);
        timed(operations, || loops::same(subject, start, len, operations))
    }
}

fn random_by_two(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Block {
    let mut seed = 0;
    move |operations| {
        seed += 2;
        timed_by_two(operations, |which| {
            let mut order = Random::new(seed + which as u64);
            loops::random(subject, addresses, &mut order, operations);
        })
    }
}

fn random_by_one(subject: &impl Subject, addresses: &Addresses) -> impl FnMut(usize) -> Block {
    let mut order = Random::new(1);
    move |operations| {
        let _here = Pinned::to(0);
        timed(operations, || {
            loops::random(subject, addresses, &mut order, operations);
        })
    }
}

/// A contestant, if there is one.
pub(crate) fn dynamic<'a, F: FnMut(usize) -> Block>(
    contestant: &'a mut Option<F>,
) -> Option<&'a mut Contestant<'a>> {
    contestant.as_mut().map(|run| run as &mut Contestant<'_>)
}
