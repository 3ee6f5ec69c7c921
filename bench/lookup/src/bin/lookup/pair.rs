//! [`Pair`]: regcache and UCX's cache with the same ranges, and the [`Loop`]s that measure both
//! caches.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use regcache_bench_harness::{Pinned, Random, Sample, Variant, timed, timed_by_two};
use regcache_bench_lookup::{Addresses, CLibrary, Peer, Regcache, Subject, Unwatched, loops, peer};

use crate::Result;

/// The limit of entries that a cache has by default.
const ROOM: usize = 1 << 16;

/// Returns a limit of entries that is large enough for `entries` entries.
pub(crate) fn room(entries: usize) -> usize {
    ROOM.max(entries.next_power_of_two())
}

/// regcache and UCX's cache. Both have registered the same ranges.
pub(crate) struct Pair<S> {
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) regcache: S,
    peer: Option<Peer>,
}

impl Pair<Regcache> {
    /// Builds both caches with `entries` ranges of `len` bytes and a limit of `room` entries.
    pub(crate) fn new(entries: usize, len: usize, room: usize) -> Result<Self> {
        Self::of(Addresses::new(entries, len)?, room)
    }

    /// Builds both caches with these ranges and a limit of `room` entries.
    pub(crate) fn of(addresses: Addresses, room: usize) -> Result<Self> {
        let addresses = Arc::new(addresses);
        let regcache = Regcache::new(&addresses, room)?;
        Self::filled(addresses, regcache, room)
    }
}

impl Pair<Unwatched> {
    /// Builds both caches with `entries` ranges and a limit of `room` entries. In this benchmark
    /// UCX's cache has no monitor. So regcache uses a monitor that watches nothing.
    pub(crate) fn unwatched(entries: usize, room: usize) -> Result<Self> {
        let addresses = Arc::new(Addresses::new(entries, 4096)?);
        let regcache = Unwatched::new(room)?;
        Self::filled(addresses, regcache, room)
    }
}

impl Pair<CLibrary> {
    /// Builds both caches with `entries` ranges of a page and a limit of `room` entries. regcache
    /// is called through its C library. Returns `None` if that library was not built.
    pub(crate) fn from_c(entries: usize, room: usize) -> Result<Option<Self>> {
        let Some(regcache) = CLibrary::new(room)? else {
            return Ok(None);
        };
        let addresses = Arc::new(Addresses::new(entries, 4096)?);
        Self::filled(addresses, regcache, room).map(Some)
    }
}

impl<S: Subject> Pair<S> {
    fn filled(addresses: Arc<Addresses>, regcache: S, room: usize) -> Result<Self> {
        let peer = peer(room)?;
        loops::fill(&regcache, &addresses);
        if let Some(peer) = &peer {
            loops::fill(peer, &addresses);
        }
        Ok(Self {
            addresses,
            regcache,
            peer,
        })
    }

    /// Returns a variant for each of the two caches. Each of these variants runs the loop
    /// `measured`. If `one_thread` is given, a further variant runs the loop `one_thread` on
    /// regcache.
    pub(crate) fn variants(
        &self,
        measured: Loop,
        one_thread: Option<Loop>,
    ) -> Vec<Box<Variant<'_>>> {
        let mut variants = vec![measured.variant(&self.regcache, &self.addresses)];
        let peer = self.peer.as_ref();
        variants.extend(peer.map(|peer| measured.variant(peer, &self.addresses)));
        variants.extend(one_thread.map(|it| it.variant(&self.regcache, &self.addresses)));
        variants
    }

    /// Checks that each cache has exactly one registration for each range.
    pub(crate) fn check_balance(&self) {
        let entries = self.addresses.count() as u64;
        assert_eq!(self.regcache.live(), entries);
        if let Some(peer) = &self.peer {
            assert_eq!(peer.live(), entries);
        }
    }
}

/// A measured loop. It runs in one thread, unless its description says that two threads run it.
#[derive(Clone, Copy)]
pub(crate) enum Loop {
    /// Looks up the range in the middle again and again.
    Same,
    /// Looks up random ranges.
    Random,
    /// Looks up random pages within the ranges.
    Within,
    /// Looks up the last range in one thread, which is pinned to the first CPU. `SameByTwo` and
    /// `OwnByTwo` are compared with this loop.
    SamePinned,
    /// Looks up random ranges in one thread, which is pinned to the first CPU. `RandomByTwo` is
    /// compared with this loop.
    RandomPinned,
    /// Looks up the first range in two threads.
    SameByTwo,
    /// Looks up two ranges in two threads. Each thread always looks up its own range.
    OwnByTwo,
    /// Looks up random ranges in two threads.
    RandomByTwo,
    /// Looks up ranges that have no entry.
    Miss,
    /// Invalidates ranges.
    Invalidate,
    /// Looks up ranges that have no entry. The cache is at its limit of entries, so each lookup
    /// evicts an entry.
    Evict,
}

impl Loop {
    fn variant<'a>(self, subject: &'a impl Subject, addresses: &'a Addresses) -> Box<Variant<'a>> {
        let len = addresses.len();
        let mut order = Random::new(1);
        match self {
            Self::Same => {
                let start = addresses.entry(addresses.count() / 2);
                Box::new(move |n| timed(n, || loops::same(subject, start, len, n)))
            }
            Self::SamePinned => {
                let start = addresses.entry(addresses.count() - 1);
                Box::new(move |n| {
                    let _here = Pinned::to(0);
                    timed(n, || loops::same(subject, start, len, n))
                })
            }
            Self::Random => {
                Box::new(move |n| timed(n, || loops::random(subject, addresses, &mut order, n)))
            }
            Self::RandomPinned => Box::new(move |n| {
                let _here = Pinned::to(0);
                timed(n, || loops::random(subject, addresses, &mut order, n))
            }),
            Self::Within => {
                loops::within(subject, addresses, &mut order, 32 * addresses.count());
                Box::new(move |n| timed(n, || loops::within(subject, addresses, &mut order, n)))
            }
            Self::SameByTwo => {
                let start = addresses.entry(0);
                Box::new(move |n| timed_by_two(n, |_| loops::same(subject, start, len, n)))
            }
            Self::OwnByTwo => Box::new(move |n| {
                timed_by_two(n, |which| {
                    loops::same(subject, addresses.entry(which), len, n);
                })
            }),
            Self::RandomByTwo => {
                let mut seed = 0;
                Box::new(move |n| {
                    seed += 2;
                    timed_by_two(n, |which| {
                        let mut order = Random::new(seed + which as u64);
                        loops::random(subject, addresses, &mut order, n);
                    })
                })
            }
            Self::Miss => times_itself(move |range| loops::miss(subject, addresses, range)),
            Self::Invalidate => {
                times_itself(move |range| loops::invalidate(subject, addresses, range))
            }
            Self::Evict => evictions(subject, addresses),
        }
    }
}

/// Makes a variant of the loop `run`, which measures its own time.
fn times_itself<'a>(run: impl Fn(Range<usize>) -> Duration + 'a) -> Box<Variant<'a>> {
    let mut from = 0;
    Box::new(move |operations| {
        let mut time = Duration::ZERO;
        let Sample { undisturbed, .. } = timed(operations, || time = run(from..from + operations));
        from += operations;
        Sample {
            ns: time.as_nanos() as f64 / operations as f64,
            undisturbed,
        }
    })
}

fn evictions<'a>(subject: &'a impl Subject, addresses: &'a Addresses) -> Box<Variant<'a>> {
    // In the first pass over the ranges, a lookup may hit an entry that `fill` has made. So the
    // first pass is not measured.
    let mut from = 2 * addresses.count();
    loops::evict(subject, addresses, 0, from);
    Box::new(move |operations| {
        let before = subject.counts().0;
        let sample = timed(operations, || {
            loops::evict(subject, addresses, from, operations);
        });
        from += operations;
        assert_eq!(
            subject.counts().0 - before,
            operations as u64,
            "not all lookups were misses"
        );
        sample
    })
}
