//! Measures structures that find the entry of an address.
//!
//! Each lookup uses the result of the previous lookup, so two lookups cannot overlap in the CPU.
//! Two hits of the real cache do not overlap either, because each hit takes a reference with an
//! atomic instruction. So the measured figure is the latency of one lookup, and not the throughput
//! of several lookups.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::hint::black_box;

use intervaltree::IntervalTree;
use regcache_bench_harness::Random;

use crate::{Candidate, Run};

pub(crate) const CANDIDATES: &[Candidate] = &[
    ("none", |entries| looking(entries, |_| Nothing)),
    ("hash of the page, 4 ways, 32-bit tags", |entries| {
        looking(entries, Ways::new)
    }),
    ("hash of the page, linear probing", |entries| {
        looking(entries, Probing::new)
    }),
    (
        "hash of the page, linear probing, after a check of the thread's last entry",
        |entries| looking(entries, Memo::new),
    ),
    ("radix, 3 levels of 12 bits", |entries| {
        looking(entries, Radix::<3, 12>::new)
    }),
    ("radix, 4 levels of 9 bits", |entries| {
        looking(entries, Radix::<4, 9>::new)
    }),
    ("sorted array, binary search", |entries| {
        looking(entries, Sorted::new)
    }),
    ("`BTreeMap`", |entries| looking(entries, Tree::new)),
    ("`IntervalTree`", |entries| looking(entries, Intervals::new)),
];

const PAGE: usize = 1 << 12;
const STRIDE: usize = 4 * PAGE;
const BASE: usize = 0x7f12_3456_0000;

/// Returns the start of an entry's range. A range is one page long, and the next range starts four
/// pages later. The program `lookup` uses the same distances.
fn start(entry: usize) -> usize {
    BASE + entry * STRIDE
}

fn starts(entries: usize) -> impl ExactSizeIterator<Item = (usize, u32)> {
    (0..entries).map(|entry| (start(entry), entry as u32))
}

trait Index: Sync {
    /// Returns the number of the entry whose range contains the address. If there is no such entry,
    /// the result may be any number.
    fn find(&self, address: usize) -> u32;
}

struct Looking<I> {
    index: I,
    entries: usize,
}

fn looking<I: Index + 'static>(entries: usize, build: impl Fn(usize) -> I) -> Box<dyn Run> {
    let index = build(entries);
    let mut order = Random::new(2);
    for _ in 0..1000 {
        let entry = order.below(entries);
        let found = index.find(start(entry) + 64);
        assert!(entry == found as usize || found == NONE);
    }
    Box::new(Looking { index, entries })
}

impl<I: Index> Run for Looking<I> {
    fn run(&self, _: usize, operations: usize) {
        let mut order = Random::new(1);
        let nothing = black_box(0);
        let mut before = 0;
        for _ in 0..operations {
            let entry = order.below(self.entries);
            before = self.index.find(start(entry) + 64 + before) as usize & nothing;
        }
        black_box(before);
    }
}

/// The result of a search that finds no entry.
const NONE: u32 = u32::MAX;

struct Nothing;

impl Index for Nothing {
    #[inline(always)]
    fn find(&self, address: usize) -> u32 {
        black_box(address);
        NONE
    }
}

/// The multiplier of the hash function: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// The table of hints, as in `regcache/src/core/hints.rs`. A search finds no entry if the hint of a
/// newer entry has replaced the hint of the wanted entry.
struct Ways {
    sets: Box<[[u64; 4]]>,
    shift: u32,
}

impl Ways {
    fn new(entries: usize) -> Self {
        // The table is at least as large as the table of a cache with the default limit of 65 536
        // entries.
        let count = entries.max(1 << 16).next_power_of_two() / 2;
        let mut it = Self {
            sets: vec![[0; 4]; count].into(),
            shift: u64::BITS - count.trailing_zeros(),
        };
        for (start, entry) in starts(entries) {
            let (set, tag) = it.place(start);
            it.sets[set].rotate_right(1);
            it.sets[set][0] = tag | u64::from(entry + 1);
        }
        it
    }

    #[inline(always)]
    fn place(&self, address: usize) -> (usize, u64) {
        let hash = (address / PAGE) as u64;
        let hash = hash.wrapping_mul(SPREAD);
        ((hash >> self.shift) as usize, hash << 32)
    }
}

impl Index for Ways {
    #[inline(always)]
    fn find(&self, address: usize) -> u32 {
        let (set, tag) = self.place(address);
        for word in self.sets[set] {
            if word & !0xffff_ffff == tag && word as u32 != 0 {
                return word as u32 - 1;
            }
        }
        NONE
    }
}

/// A hash table with linear probing. Each bucket holds a page number and the number of the page's
/// entry. An empty bucket holds 0. At most half of the buckets are used.
struct Probing {
    buckets: Box<[(u64, u32)]>,
    shift: u32,
}

impl Probing {
    fn new(entries: usize) -> Self {
        let count = 2 * entries.max(1 << 16).next_power_of_two();
        let mut it = Self {
            buckets: vec![(0, 0); count].into(),
            shift: u64::BITS - count.trailing_zeros(),
        };
        for (start, entry) in starts(entries) {
            let mut i = it.place(start);
            while it.buckets[i].0 != 0 {
                i = (i + 1) % count;
            }
            it.buckets[i] = ((start / PAGE) as u64, entry);
        }
        it
    }

    #[inline(always)]
    fn place(&self, address: usize) -> usize {
        (((address / PAGE) as u64).wrapping_mul(SPREAD) >> self.shift) as usize
    }
}

impl Index for Probing {
    #[inline(always)]
    fn find(&self, address: usize) -> u32 {
        let page = (address / PAGE) as u64;
        let mut i = self.place(address);
        loop {
            let (there, entry) = self.buckets[i];
            if there == page {
                return entry;
            }
            if there == 0 {
                return NONE;
            }
            i = (i + 1) & (self.buckets.len() - 1);
        }
    }
}

thread_local! {
    /// The page and the entry of this thread's last search.
    static LAST: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
}

struct Memo(Probing);

impl Memo {
    fn new(entries: usize) -> Self {
        LAST.set((0, 0));
        Self(Probing::new(entries))
    }
}

impl Index for Memo {
    #[inline(always)]
    fn find(&self, address: usize) -> u32 {
        let page = (address / PAGE) as u64;
        let (last, entry) = LAST.get();
        if last == page {
            return entry;
        }
        let entry = self.0.find(address);
        LAST.set((page, entry));
        entry
    }
}

/// A radix tree over the bits of the page number. A node holds the numbers of the nodes of the next
/// level. A node of the last level holds the numbers of entries, plus 1.
struct Radix<const LEVELS: u32, const BITS: u32> {
    nodes: Vec<Box<[u32]>>,
}

impl<const LEVELS: u32, const BITS: u32> Radix<LEVELS, BITS> {
    fn new(entries: usize) -> Self {
        let node = || vec![0; 1 << BITS].into_boxed_slice();
        let mut it = Self {
            nodes: vec![node()],
        };
        for (start, entry) in starts(entries) {
            let mut at = 0;
            for level in (1..LEVELS).rev() {
                let i = Self::digit(start, level);
                if it.nodes[at][i] == 0 {
                    it.nodes.push(node());
                    it.nodes[at][i] = it.nodes.len() as u32 - 1;
                }
                at = it.nodes[at][i] as usize;
            }
            it.nodes[at][Self::digit(start, 0)] = entry + 1;
        }
        it
    }

    #[inline(always)]
    fn digit(address: usize, level: u32) -> usize {
        (address / PAGE) >> (level * BITS) & ((1 << BITS) - 1)
    }
}

impl<const LEVELS: u32, const BITS: u32> Index for Radix<LEVELS, BITS> {
    #[inline(always)]
    fn find(&self, address: usize) -> u32 {
        let mut at = 0;
        for level in (1..LEVELS).rev() {
            at = self.nodes[at][Self::digit(address, level)] as usize;
            if at == 0 {
                return NONE;
            }
        }
        self.nodes[at][Self::digit(address, 0)].wrapping_sub(1)
    }
}

struct Sorted {
    starts: Box<[usize]>,
    rest: Box<[(usize, u32)]>,
}

impl Sorted {
    fn new(entries: usize) -> Self {
        Self {
            starts: starts(entries).map(|(start, _)| start).collect(),
            rest: starts(entries)
                .map(|(start, entry)| (start + PAGE, entry))
                .collect(),
        }
    }
}

impl Index for Sorted {
    #[inline(always)]
    fn find(&self, address: usize) -> u32 {
        let after = self.starts.partition_point(|&start| start <= address);
        match after.checked_sub(1).map(|i| self.rest[i]) {
            Some((end, entry)) if address < end => entry,
            _ => NONE,
        }
    }
}

struct Tree(BTreeMap<usize, (usize, u32)>);

impl Tree {
    fn new(entries: usize) -> Self {
        Self(
            starts(entries)
                .map(|(start, entry)| (start, (start + PAGE, entry)))
                .collect(),
        )
    }
}

impl Index for Tree {
    #[inline(always)]
    fn find(&self, address: usize) -> u32 {
        match self.0.range(..=address).next_back() {
            Some((_, &(end, entry))) if address < end => entry,
            _ => NONE,
        }
    }
}

struct Intervals(IntervalTree<usize, u32>);

impl Intervals {
    fn new(entries: usize) -> Self {
        Self(
            starts(entries)
                .map(|(start, entry)| (start..start + PAGE, entry))
                .collect(),
        )
    }
}

impl Index for Intervals {
    #[inline(always)]
    fn find(&self, address: usize) -> u32 {
        self.0
            .query_point(address)
            .next()
            .map_or(NONE, |found| found.value)
    }
}
