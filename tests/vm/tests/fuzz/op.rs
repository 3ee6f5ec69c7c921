//! The steps of the fuzzer, and the strategy that draws steps at random with certain frequencies.
//!
//! The module does not use proptest's unions, because they are slow. Under emulation, drawing a
//! step from nested unions takes a hundred times as long as executing the step.

use proptest::prelude::Rng;
use proptest::strategy::{NewTree, Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::model::{BASE, PAGE, PAGES, Span};

/// The largest number of open files.
pub(crate) const FILES: usize = 3;
/// The largest number of live children.
pub(crate) const CHILDREN: usize = 2;

/// A run of consecutive pages of the arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) first: usize,
    pub(crate) pages: usize,
}

/// The protection of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Nothing,
    Read,
    Write,
}

/// Bad arguments of REGISTER_REGION. The driver must refuse them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BadRange {
    /// The end is below the start.
    Backwards,
    /// The end is beyond the address space.
    TooHigh,
    /// The range is in the kernel's half of the address space.
    Kernels,
    /// The range ends at the last address.
    Endless,
    /// The structure cannot be read.
    Pointer,
}

/// Bad arguments of REGISTER_REGION2. The driver must refuse them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BadRegister2 {
    /// A flag that the driver does not know is set. The number is the position of its bit.
    Flag(u8),
    /// The structure is shorter than the first version of the structure. The number is its length.
    Short(u8),
    /// The structure is longer than the version that the driver knows. One byte after that version
    /// is not 0. The number is the offset of this byte from the end of that version.
    Tail(u8),
    /// The structure is longer than a page.
    Huge,
    /// The end is below the start.
    Backwards,
    /// The structure cannot be read.
    Pointer,
}

/// A bad mapping of the counter page. The driver must refuse it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BadMapping {
    TwoPages,
    SecondPage,
    SharedWritable,
    PrivateWritable,
}

/// One step of the fuzzer. A step does nothing if its file, child or mapping does not exist.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Opens a file, and calls EXCHANGE_FEATURES `exchanges` times.
    Open {
        file: usize,
        exchanges: u8,
    },
    Close {
        file: usize,
    },
    Exchange {
        file: usize,
        mask: u32,
    },
    /// Calls REGISTER_REGION with random bits in `flags` and `reserved`.
    Register {
        file: usize,
        span: Span,
        cookie: u64,
        junk: u64,
        /// If true, the end that the call passes equals the start. In that case the driver watches
        /// only the first byte.
        empty: bool,
    },
    /// Calls REGISTER_REGION2 with a structure and `longer` additional zero bytes.
    Register2 {
        file: usize,
        span: Span,
        cookie: u64,
        must_be_backed: bool,
        longer: u8,
    },
    Register2Bad {
        file: usize,
        bad: BadRegister2,
        cookie: u64,
    },
    RegisterBad {
        file: usize,
        bad: BadRange,
        cookie: u64,
    },
    Unregister {
        file: usize,
        cookie: u64,
    },
    /// Calls UNREGISTER_REGION with a pointer to memory that cannot be read.
    UnregisterNowhere {
        file: usize,
    },
    /// Calls an unknown ioctl.
    Unknown {
        file: usize,
        number: u8,
    },
    /// Reads `bytes` bytes into a buffer of which only `room` bytes are writable.
    Read {
        file: usize,
        bytes: usize,
        room: usize,
    },
    /// Reads into the arena itself. The buffer begins `before_end` events before the end of the
    /// page `page`.
    ReadIntoArena {
        file: usize,
        page: usize,
        events: usize,
        before_end: usize,
    },
    /// Reads events until LAST arrives.
    Drain {
        file: usize,
    },
    /// Sets or clears O_NONBLOCK.
    Blocking {
        file: usize,
        on: bool,
    },
    /// Duplicates the file descriptor. Later calls use all descriptors of the file in turn.
    Dup {
        file: usize,
    },
    /// Duplicates the file descriptor by sending it through a socket.
    PassToSelf {
        file: usize,
    },
    CloseDup {
        file: usize,
    },
    /// Maps the counter once more.
    MapCounter {
        file: usize,
    },
    UnmapCounter {
        file: usize,
    },
    MapCounterBadly {
        file: usize,
        bad: BadMapping,
    },
    /// Calls `mprotect` to make the counter page writable, and `mremap` to make it larger. The
    /// kernel must refuse both calls.
    AbuseCounter {
        file: usize,
    },
    /// Forks a child that tries every call on every file. If `keep` is true, the child then lives
    /// on with its copy of the arena.
    Fork {
        child: usize,
        keep: bool,
    },
    /// Makes the child drop its copy of the arena.
    ChildDrops {
        child: usize,
    },
    /// Sends a file descriptor to the child. The child tries every call on this file descriptor.
    PassToChild {
        child: usize,
        file: usize,
    },
    ChildExits {
        child: usize,
    },
    /// Reads or writes a byte of a page.
    Touch {
        page: usize,
        write: bool,
    },
    Map {
        run: Run,
        access: Access,
    },
    Unmap {
        run: Run,
    },
    /// Calls `munmap` in a child that shares this process's memory.
    UnmapByVforked {
        run: Run,
    },
    DontNeed {
        run: Run,
    },
    Free {
        run: Run,
    },
    Protect {
        run: Run,
        access: Access,
    },
    /// Calls `mremap` so that the mapping keeps its address.
    Resize {
        run: Run,
        new_pages: usize,
    },
    /// Calls `mremap` to move the mapping to another address. The number of pages does not grow.
    Move {
        run: Run,
        to: usize,
        new_pages: usize,
        keep_old: bool,
    },
}

/// A random number generator by the splitmix64 algorithm.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Draws a number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Draws true with a probability of `n` per cent.
    pub(crate) fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    /// Draws one of these values. A value is drawn with a probability in proportion to its weight,
    /// which precedes the value.
    fn pick<T: Copy>(&mut self, from: &[(usize, T)]) -> T {
        let mut at = self.below(from.iter().map(|(weight, _)| weight).sum());
        for &(weight, value) in from {
            if at < weight {
                return value;
            }
            at -= weight;
        }
        from[0].1
    }

    fn file(&mut self) -> usize {
        self.pick(&[(6, 0), (3, 1), (1, 2)])
    }

    fn page(&mut self) -> usize {
        self.below(PAGES)
    }

    fn run(&mut self) -> Run {
        let (first, pages) = (self.page(), 1 + self.below(6));
        Run {
            first,
            pages: pages.min(PAGES - first),
        }
    }

    fn access(&mut self) -> Access {
        self.pick(&[(6, Access::Write), (1, Access::Read), (1, Access::Nothing)])
    }

    /// Draws a cookie from a small set, so that cookies collide.
    fn cookie(&mut self) -> u64 {
        let common = self.below(24) as u64;
        self.pick(&[(20, common), (1, u64::MAX), (1, 1 << 63)])
    }

    /// Draws a range. Most ranges consist of whole pages.
    fn span(&mut self) -> Span {
        let edges = [(6, 0), (1, 1), (1, PAGE - 1)];
        let start = BASE + self.page() as u64 * PAGE + self.pick(&edges);
        let bytes = (1 + self.below(6) as u64) * PAGE - self.pick(&edges);
        Span {
            start,
            end: start + bytes,
        }
    }

    fn bad_range(&mut self) -> BadRange {
        self.pick(&[
            (1, BadRange::Backwards),
            (1, BadRange::TooHigh),
            (1, BadRange::Kernels),
            (1, BadRange::Endless),
            (1, BadRange::Pointer),
        ])
    }

    fn bad_register2(&mut self) -> BadRegister2 {
        let flag = BadRegister2::Flag(2 + self.below(30) as u8);
        let (short, tail) = (self.below(32) as u8, self.below(256) as u8);
        self.pick(&[
            (1, flag),
            (1, BadRegister2::Short(short)),
            (1, BadRegister2::Tail(tail)),
            (1, BadRegister2::Huge),
            (1, BadRegister2::Backwards),
            (1, BadRegister2::Pointer),
        ])
    }

    fn bad_mapping(&mut self) -> BadMapping {
        self.pick(&[
            (1, BadMapping::TwoPages),
            (1, BadMapping::SecondPage),
            (1, BadMapping::SharedWritable),
            (1, BadMapping::PrivateWritable),
        ])
    }

    fn on_memory(&mut self) -> Op {
        let run = self.run();
        match self.below(93) {
            0..30 => Op::Touch {
                page: run.first,
                write: self.percent(80),
            },
            30..46 => Op::Map {
                run,
                access: self.access(),
            },
            46..56 => Op::Unmap { run },
            56..66 => Op::DontNeed { run },
            66..71 => Op::Free { run },
            71..81 => Op::Protect {
                run,
                access: self.access(),
            },
            81..85 => Op::Resize {
                run,
                new_pages: 1 + self.below(7),
            },
            _ => Op::Move {
                run,
                to: self.page(),
                new_pages: 1 + self.below(6),
                keep_old: self.percent(50),
            },
        }
    }

    /// Draws a step on some of these pages. The calling thread must own the pages.
    pub(crate) fn on_pages(&mut self, run: Run) -> Op {
        match self.below(100) {
            0..40 => Op::Touch {
                page: run.first,
                write: self.percent(80),
            },
            40..65 => Op::Map {
                run,
                access: self.access(),
            },
            65..80 => Op::Unmap { run },
            80..95 => Op::DontNeed { run },
            _ => Op::Protect {
                run,
                access: self.access(),
            },
        }
    }

    fn on_ranges(&mut self) -> Op {
        let (file, cookie) = (self.file(), self.cookie());
        match self.below(91) {
            0..30 => Op::Register {
                file,
                span: self.span(),
                cookie,
                junk: self.bits(),
                empty: self.percent(10),
            },
            30..56 => Op::Register2 {
                file,
                span: self.span(),
                cookie,
                must_be_backed: self.percent(50),
                longer: self.pick(&[(3, 0), (1, 8), (1, 255)]),
            },
            56..60 => Op::Register2Bad {
                file,
                bad: self.bad_register2(),
                cookie,
            },
            60..80 => Op::Unregister { file, cookie },
            80..88 => Op::RegisterBad {
                file,
                bad: self.bad_range(),
                cookie,
            },
            88 => Op::UnregisterNowhere { file },
            89 => Op::Unknown {
                file,
                number: self.bits() as u8,
            },
            _ => Op::Exchange {
                file,
                mask: self.bits() as u32,
            },
        }
    }

    fn on_events(&mut self) -> Op {
        let file = self.file();
        match self.below(16) {
            0..10 => {
                let (few, any) = (self.below(6) * 32, self.below(1200));
                let (whole, ragged) = (self.below(30) * 32, self.below(600));
                Op::Read {
                    file,
                    bytes: self.pick(&[(4, few), (3, any)]),
                    room: self.pick(&[(5, PAGE as usize), (2, whole), (1, ragged)]),
                }
            }
            10..14 => Op::ReadIntoArena {
                file,
                page: self.page(),
                events: 1 + self.below(4),
                before_end: self.below(5),
            },
            _ => Op::Drain { file },
        }
    }

    fn on_descriptors(&mut self) -> Op {
        let file = self.file();
        match self.below(25) {
            0..4 => Op::Open {
                file: self.below(FILES),
                exchanges: self.below(3) as u8,
            },
            4 => Op::Close { file },
            5..9 => Op::Blocking {
                file,
                on: self.percent(50),
            },
            9..11 => Op::Dup { file },
            11 => Op::PassToSelf { file },
            12..15 => Op::CloseDup { file },
            15..19 => Op::MapCounter { file },
            19..22 => Op::UnmapCounter { file },
            22..24 => Op::MapCounterBadly {
                file,
                bad: self.bad_mapping(),
            },
            _ => Op::AbuseCounter { file },
        }
    }

    /// Draws a step on processes. Such a step is slow, so the fuzzer draws it rarely.
    fn on_processes(&mut self) -> Op {
        let child = self.below(CHILDREN);
        match self.below(10) {
            0..4 => Op::Fork {
                child,
                keep: self.percent(80),
            },
            4..6 => Op::ChildExits { child },
            6 => Op::ChildDrops { child },
            7..9 => Op::PassToChild {
                child,
                file: self.file(),
            },
            _ => Op::UnmapByVforked { run: self.run() },
        }
    }

    /// Draws any step.
    fn op(&mut self) -> Op {
        match self.below(1000) {
            0..500 => self.on_memory(),
            500..750 => self.on_ranges(),
            750..945 => self.on_events(),
            945..995 => self.on_descriptors(),
            _ => self.on_processes(),
        }
    }
}

/// A strategy that draws sequences of `steps` steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequences {
    pub(crate) steps: usize,
}

impl Strategy for Sequences {
    type Tree = Sequence;
    type Value = Vec<Op>;

    fn new_tree(&self, runner: &mut TestRunner) -> NewTree<Self> {
        let mut dice = Dice::new(runner.rng().next_u64());
        let ops: Vec<_> = (0..self.steps).map(|_| dice.op()).collect();
        Ok(Sequence {
            chunk: ops.len().div_ceil(2),
            ops,
            at: 0,
            shortened: false,
            before: None,
        })
    }
}

/// A failing sequence that is being shortened. The fuzzer first tries to remove halves of the
/// sequence, then quarters, and in the end single steps.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    ops: Vec<Op>,
    /// The number of steps that the next attempt removes.
    chunk: usize,
    /// The index of the first step that the next attempt removes.
    at: usize,
    /// True if an attempt with the current `chunk` has removed steps that the failure does not
    /// need.
    shortened: bool,
    /// The steps before the latest attempt.
    before: Option<Vec<Op>>,
}

impl Sequence {
    fn next(&mut self) -> bool {
        if self.at >= self.ops.len() {
            if self.chunk == 1 && !self.shortened {
                return false;
            }
            self.chunk = (self.chunk / 2).max(1);
            self.at = 0;
            self.shortened = false;
        }
        if self.ops.is_empty() {
            return false;
        }
        self.before = Some(self.ops.clone());
        let end = (self.at + self.chunk).min(self.ops.len());
        self.ops.drain(self.at..end);
        true
    }
}

impl ValueTree for Sequence {
    type Value = Vec<Op>;

    fn current(&self) -> Vec<Op> {
        self.ops.clone()
    }

    /// Removes more steps, because the sequence still fails without the steps removed last.
    fn simplify(&mut self) -> bool {
        self.shortened |= self.before.take().is_some();
        self.next()
    }

    /// Puts the steps back that were removed last, because the sequence passes without them.
    /// Removes other steps instead.
    fn complicate(&mut self) -> bool {
        let Some(before) = self.before.take() else {
            return false;
        };
        self.ops = before;
        self.at += self.chunk;
        self.next()
    }
}
