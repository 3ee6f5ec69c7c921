//! Tests mechanisms of the kernel that move, merge, split or reclaim pages. The tests check the
//! effect of each mechanism on memory that a registration has pinned.
//!
//! Each test applies one mechanism to two pieces of memory of each kind. The driver watches both
//! pieces. One piece is also registered with an RDMA device, so its pages are pinned. The second
//! piece is the control: a change of the control proves that the mechanism was at work.
//!
//! Pinned pages always stay. But the kernel may report a change of pinned pages, depending on the
//! kernel's version. The table in `kernel/Documentation/ummunotify.rst` has the expected result of
//! each test.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use nix::errno::Errno;
use regcache::VaRange;
use regcache_test_support::Swap;
use regcache_tests_vm::{Child, DriverFile, PAGE};
use regcache_verbs::{Access, Context, Loopback, Mr, Pd};

use crate::alone;
use crate::machine::{self, Bound, Flag, Group, HugePages, Setting, kernel, vmstat, wait_until};
use crate::memory::{Kind, LEN, Memory, PAGES};

/// The effect of a mechanism on a piece of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// The memory still has the same pages, and nothing was reported.
    Kept,
    /// The memory still has the same pages, or has the same pages again after a touch. But a change
    /// was reported.
    Announced,
    /// The memory has other pages or no pages, and the change was reported.
    Changed,
}
use Fate::{Announced, Changed, Kept};
use Kind::{Anonymous, Hugetlb, Shmem, Thp};

/// The fates under a mechanism that unmaps a shared page before it checks whether the page is
/// pinned.
const SHARED_IS_ANNOUNCED: [(Kind, Fate, Fate); 3] = [
    (Anonymous, Kept, Changed),
    (Shmem, Announced, Changed),
    (Thp, Kept, Changed),
];

const PINNED: u64 = 1;
const CONTROL: u64 = 2;

/// Two watched pieces of memory of one kind. One piece is pinned, and the other piece is the
/// control.
struct Pair {
    pinned: Memory,
    control: Memory,
    pinned_frames: Vec<Option<u64>>,
    control_frames: Vec<Option<u64>>,
    device: DriverFile,
    mr: Mr,
}

impl Pair {
    fn of(kind: Kind, adapter: &Adapter) -> Self {
        Self::with(Memory::new(kind), Memory::new(kind), adapter)
    }

    fn with(pinned: Memory, control: Memory, adapter: &Adapter) -> Self {
        let device = DriverFile::open().unwrap();
        device.watch(pinned.page(0), LEN, PINNED).unwrap();
        device.watch(control.page(0), LEN, CONTROL).unwrap();
        let mr = adapter.register(pinned.page(0));
        assert_eq!(
            device.invalidated().unwrap(),
            [],
            "registering invalidated the pages, so they were not private before"
        );
        Self {
            pinned_frames: pinned.frames(),
            control_frames: control.frames(),
            pinned,
            control,
            device,
            mr,
        }
    }

    fn both(&self) -> [&Memory; 2] {
        [&self.pinned, &self.control]
    }

    fn control_has_moved(&self) -> bool {
        self.control.frames() != self.control_frames
    }

    /// Returns the kind, the fate of the pinned memory, and the fate of the control.
    fn fates(&self, adapter: &mut Adapter) -> (Kind, Fate, Fate) {
        let kind = self.pinned.kind;
        // The frames are read before the reports. So the reports must contain each change that the
        // frames show.
        let changed = [
            self.pinned.frames() != self.pinned_frames,
            self.control_has_moved(),
        ];
        let reported = self.device.invalidated().unwrap();
        let [pinned, control] = [PINNED, CONTROL].map(|cookie| reported.contains(&cookie));
        assert!(
            pinned || !changed[0],
            "{kind:?}: a change of the pinned memory was not reported"
        );
        assert!(
            control || !changed[1],
            "{kind:?}: a change of the control was not reported"
        );

        self.pinned.look();
        let stayed = self.pinned.frames() == self.pinned_frames;
        assert!(stayed, "{kind:?}: pinned pages were replaced");
        adapter.check_sees(&self.pinned, &self.mr);

        let fate = |reported, changed| match (reported, changed) {
            (false, _) => Kept,
            (true, false) => Announced,
            (true, true) => Changed,
        };
        (kind, fate(pinned, false), fate(control, changed[1]))
    }
}

/// An RDMA device, and a buffer into which the device copies registered memory.
struct Adapter {
    pd: Arc<Pd>,
    loopback: Loopback,
    copy: MmapMut,
    copy_mr: Mr,
}

impl Adapter {
    fn open() -> Self {
        let pd = Pd::alloc(&Context::open_first().unwrap()).unwrap();
        let copy = MmapMut::map_anon(LEN).unwrap();
        let access = Access::REMOTE_WRITE;
        let copy_mr = Mr::register(&pd, range(copy.as_ptr()), access).unwrap();
        Self {
            loopback: Loopback::connect(&pd).unwrap(),
            pd,
            copy,
            copy_mr,
        }
    }

    fn register(&self, start: *const u8) -> Mr {
        let access = Access::LOCAL_WRITE | Access::REMOTE_READ;
        Mr::register(&self.pd, range(start), access).unwrap()
    }

    /// Writes bytes to the memory by the CPU, and checks that the device reads these bytes.
    fn check_sees(&mut self, memory: &Memory, mr: &Mr) {
        memory.fill(0xD5);
        // SAFETY: no thread of this test writes to the memory while the reference lives.
        let source = unsafe { memory.bytes() };
        self.copy.fill(0);
        let (copy, copy_mr) = (&mut self.copy, &self.copy_mr);
        // SAFETY: the pinned pages are mapped at the addresses at which they were registered, and
        // nowhere else in this process.
        unsafe {
            self.loopback
                .rdma_write_registered(source, mr, copy, copy_mr)
        }
        .unwrap();
        let seen = copy.iter().step_by(PAGE).filter(|&&byte| byte == 0xD5);
        assert_eq!(
            seen.count(),
            PAGES,
            "{:?}: the device sees other pages",
            memory.kind
        );
    }
}

fn range(start: *const u8) -> VaRange {
    VaRange::new(start, LEN).unwrap()
}

/// Returns both pieces of memory of each of these pairs.
fn memories(pairs: &[Pair]) -> impl Iterator<Item = &Memory> {
    pairs.iter().flat_map(Pair::both)
}

/// Calls `madvise` for all memory of these pairs.
fn advise(pairs: &[Pair], advice: i32) {
    memories(pairs).for_each(|memory| memory.advise(advice).unwrap());
}

/// Makes one pair of each of these kinds, and applies the mechanism to all pairs at once. Returns
/// the fates of all pairs.
fn fates<const N: usize>(
    kinds: [Kind; N],
    mechanism: impl FnOnce(&[Pair]),
) -> [(Kind, Fate, Fate); N] {
    let mut adapter = Adapter::open();
    let pairs = kinds.map(|kind| Pair::of(kind, &adapter));
    mechanism(&pairs);
    pairs.map(|pair| pair.fates(&mut adapter))
}

#[test]
fn numa_balancing_leaves_pinned_pages_and_announces_some() {
    let _alone = alone();
    let scans = machine::numa_balancing();
    let _settings = [
        ("scan_delay_ms", "0"),
        ("scan_period_min_ms", "10"),
        ("scan_period_max_ms", "10"),
    ]
    .map(|(name, value)| Setting::set(scans.join(name), value));
    let _pages = HugePages::on_each_node(4);
    let far = Bound::to(machine::other_node());
    // The fates of shared memory depend on the kernel's version. Only the kernels 6.1, 6.12 and 7.3
    // were examined, so the exact versions at which the fates changed are not known.
    let shared = match kernel() {
        version if version < (6, 12) => (Shmem, Kept, Kept),
        version if version < (7, 3) => (Shmem, Announced, Changed),
        _ => (Shmem, Kept, Changed),
    };
    let announced = if kernel() < (7, 3) { Announced } else { Kept };
    let expected = [
        (Anonymous, Kept, Changed),
        shared,
        (Thp, announced, Changed),
        (Hugetlb, Kept, Kept),
        (Shmem, announced, Changed),
    ];
    let followers = expected.iter().filter(|it| it.2 == Changed).count();
    let kinds = expected.map(|(kind, ..)| kind);
    let found = fates(kinds, |pairs| {
        drop(far);
        // Some kernels do not balance shared memory between NUMA nodes by default. The memory
        // policy of the last pair requests that the kernel balance this memory.
        for memory in pairs[4].both() {
            memory.balance();
        }
        let _on = Setting::set("/proc/sys/kernel/numa_balancing", "1");
        let (updates, faults) = (vmstat("numa_pte_updates"), vmstat("numa_hint_faults"));
        let moves = || pairs.iter().filter(|pair| pair.control_has_moved()).count();
        // The kernel sets the period of a thread's NUMA scans only when the thread starts. So a new
        // thread uses the memory.
        thread::scope(|scope| {
            scope.spawn(|| {
                let use_all = |for_ms| {
                    let started = Instant::now();
                    while started.elapsed() < Duration::from_millis(for_ms) {
                        memories(pairs).for_each(Memory::look);
                    }
                };
                wait_until("the controls have followed the thread", || {
                    use_all(200);
                    moves() == followers
                });
                // The kernel scans the pinned pages more than once in this additional second.
                use_all(1000);
            });
        });
        assert!(vmstat("numa_pte_updates") > updates + 3 * PAGES as u64);
        assert!(vmstat("numa_hint_faults") > faults);
    });
    assert_eq!(found, expected);
}

#[test]
fn clearing_soft_dirty_bits_leaves_pinned_pages() {
    let _alone = alone();
    let _pages = HugePages::on_each_node(4);
    let found = fates(Kind::ALL, |pairs| {
        assert_eq!(pairs[0].control.soft_dirty(), PAGES);
        machine::write("/proc/self/clear_refs", "4");
        assert_eq!(pairs[0].control.soft_dirty(), 0);
        memories(pairs).for_each(|it| it.fill(2));
        assert_eq!(pairs[0].control.soft_dirty(), PAGES);
    });
    assert_eq!(found, Kind::ALL.map(|kind| (kind, Kept, Kept)));
}

const THP: &str = "/sys/kernel/mm/transparent_hugepage";

#[test]
fn a_collapse_leaves_pinned_pages() {
    let _alone = alone();
    let _shmem = Setting::set(Path::new(THP).join("shmem_enabled"), "advise");
    let found = fates([Anonymous, Shmem], |pairs| {
        for pair in pairs {
            for memory in pair.both() {
                memory.advise(libc::MADV_HUGEPAGE).unwrap();
            }
            assert_eq!(pair.control.advise(libc::MADV_COLLAPSE), Ok(()));
            assert_ne!(pair.pinned.advise(libc::MADV_COLLAPSE), Ok(()));
        }
    });
    assert_eq!(found, [(Anonymous, Kept, Changed), (Shmem, Kept, Changed)]);
}

#[test]
fn khugepaged_leaves_pinned_pages() {
    let _alone = alone();
    let khugepaged = Path::new(THP).join("khugepaged");
    let _settings = [
        (Path::new(THP).join("shmem_enabled"), "advise"),
        (khugepaged.join("scan_sleep_millisecs"), "10"),
        (khugepaged.join("pages_to_scan"), "100000"),
    ]
    .map(|(path, value)| Setting::set(path, value));
    let scans = || -> u64 {
        machine::read(khugepaged.join("full_scans"))
            .parse()
            .unwrap()
    };
    let found = fates([Anonymous, Shmem], |pairs| {
        advise(pairs, libc::MADV_HUGEPAGE);
        wait_until("khugepaged has collapsed the controls", || {
            // The kernel maps a collapsed page of a file only when a thread touches the page.
            pairs.iter().for_each(|pair| pair.control.look());
            pairs.iter().all(Pair::control_has_moved)
        });
        let seen = scans();
        wait_until("khugepaged has seen the pinned pages twice", || {
            scans() >= seen + 3
        });
    });
    assert_eq!(found, [(Anonymous, Kept, Changed), (Shmem, Kept, Changed)]);
}

#[test]
fn ksm_announces_pinned_pages_that_it_then_does_not_merge() {
    let _alone = alone();
    let ksm = Path::new("/sys/kernel/mm/ksm");
    let _settings = [
        ("sleep_millisecs", "1"),
        ("pages_to_scan", "10000"),
        ("merge_across_nodes", "1"),
        ("max_page_sharing", "100000"),
    ]
    .map(|(name, value)| Setting::set(ksm.join(name), value));
    let found = fates([Anonymous, Thp], |pairs| {
        pairs
            .iter()
            .flat_map(Pair::both)
            .for_each(|it| it.fill(0xC3));
        let merge = |memory: &Memory| memory.advise(libc::MADV_MERGEABLE).unwrap();
        pairs.iter().for_each(|pair| merge(&pair.control));
        let _on = Setting::set(ksm.join("run"), "1");
        let merged = |pair: &Pair| {
            let frames = pair.control.frames();
            let is_ksm = |frame: &Option<u64>| frame.is_some_and(|it| machine::is(it, Flag::Ksm));
            frames.iter().all(is_ksm)
        };
        wait_until("ksmd has merged the controls", || pairs.iter().all(merged));
        // The first of several equal pages must be mergeable. So the pinned pages become mergeable
        // last.
        pairs.iter().for_each(|pair| merge(&pair.pinned));
        let scans = || -> u64 { machine::read(ksm.join("full_scans")).parse().unwrap() };
        let seen = scans();
        wait_until("ksmd has seen the pinned pages twice", || {
            scans() >= seen + 3
        });
    });
    assert_eq!(
        found,
        [(Anonymous, Announced, Changed), (Thp, Kept, Changed)]
    );
}

/// Makes pairs whose pages are scattered among a ballast that takes half of the free memory. The
/// freed ballast leaves holes between the pages of the pairs. So compaction moves these pages to
/// close the holes.
fn strewn(kinds: [Kind; 2], adapter: &Adapter) -> [Pair; 2] {
    let each = machine::count("/proc/meminfo", "MemFree") as usize / 2 * 1024 / PAGES;
    let mut ballast = MmapMut::map_anon(each * PAGES).unwrap();
    // The ballast consists of small pages. Freed huge pages would make compaction unnecessary.
    ballast.advise(memmap2::Advice::NoHugePage).unwrap();
    let memory = kinds.map(|kind| [Memory::map(kind), Memory::map(kind)]);
    for (i, chunk) in ballast.chunks_exact_mut(each).enumerate() {
        chunk.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        memory.iter().flatten().for_each(|it| it.write(i, 1));
    }
    memory.map(|[pinned, control]| Pair::with(pinned, control, adapter))
}

#[test]
fn compaction_tries_to_move_shared_pages_though_they_are_pinned() {
    let _alone = alone();
    let mut adapter = Adapter::open();
    let _pages = HugePages::on_each_node(4);
    let pairs = strewn([Anonymous, Shmem], &adapter);
    let whole = [Thp, Hugetlb].map(|kind| Pair::of(kind, &adapter));
    let scanned = vmstat("compact_migrate_scanned");
    machine::write("/proc/sys/vm/compact_memory", "1");
    assert!(vmstat("compact_migrate_scanned") > scanned);
    let found = pairs.map(|pair| pair.fates(&mut adapter));
    assert_eq!(
        found,
        [(Anonymous, Kept, Changed), (Shmem, Announced, Changed)]
    );
    let found = whole.map(|pair| pair.fates(&mut adapter));
    assert_eq!(found, [(Thp, Kept, Kept), (Hugetlb, Kept, Kept)]);
}

#[test]
fn move_pages_announces_pinned_pages_that_it_then_does_not_move() {
    let _alone = alone();
    let _pages = HugePages::on_each_node(6);
    let (here, there) = (machine::node_here(), machine::other_node());
    let near = Bound::to(here);
    let found = fates(Kind::ALL, |pairs| {
        drop(near);
        for pair in pairs {
            assert!(pair.control.move_to(there) > 0);
            assert_eq!(pair.pinned.move_to(there), 0);
        }
    });
    assert_eq!(found, Kind::ALL.map(|kind| (kind, Announced, Changed)));
}

#[test]
fn migrate_pages_announces_pinned_pages_that_it_then_does_not_move() {
    let _alone = alone();
    let _pages = HugePages::on_each_node(6);
    let (here, there) = (machine::node_here(), machine::other_node());
    let near = Bound::to(here);
    let found = fates(Kind::ALL, |pairs| {
        drop(near);
        let (from, to) = (1_u64 << here, 1_u64 << there);
        // SAFETY: the call reads only the two words.
        let left = unsafe {
            libc::syscall(
                libc::SYS_migrate_pages,
                0,
                64,
                &raw const from,
                &raw const to,
            )
        };
        assert!(Errno::result(left).unwrap() > 0, "all pages were moved");
        assert!(pairs.iter().all(Pair::control_has_moved));
    });
    assert_eq!(found, Kind::ALL.map(|kind| (kind, Announced, Changed)));
}

#[test]
fn paging_out_unmaps_shared_pages_though_they_are_pinned() {
    let _alone = alone();
    let _swap = Swap::on();
    let found = fates([Anonymous, Shmem, Thp], |pairs| {
        advise(pairs, libc::MADV_PAGEOUT);
    });
    assert_eq!(found, SHARED_IS_ANNOUNCED);
}

#[test]
fn reclaim_under_a_limit_unmaps_shared_pages_though_they_are_pinned() {
    let _alone = alone();
    let _swap = Swap::on();
    let group = Group::new();
    // A child makes the memory, so that the kernel charges the memory to the group.
    let child = Child::fork(|| {
        group.enter();
        let found = fates([Anonymous, Shmem, Thp], |pairs| {
            let bytes = |name| group.get(name).parse::<usize>().unwrap();
            let limit = bytes("memory.current") - 2 * LEN;
            group.set("memory.max", &limit.to_string());
            assert!(bytes("memory.current") <= limit);
            // The loop ends when reclaim has examined all memory of the group.
            while group.ask("memory.reclaim", "1M").is_ok() {}
            assert!(pairs.iter().all(Pair::control_has_moved));
            group.set("memory.max", "max");
        });
        assert_eq!(found, SHARED_IS_ANNOUNCED);
        true
    });
    assert!(child.unwrap().succeeded().unwrap());
}

#[test]
fn fork_and_the_parents_writes_leave_pinned_pages_of_4_kib() {
    let _alone = alone();
    let _pages = HugePages::on_each_node(6);
    let found = fates(Kind::ALL, |pairs| {
        // Without this advice, khugepaged would collapse the split pages again. khugepaged would
        // use the page that the child frees.
        for memory in memories(pairs) {
            if memory.kind == Thp {
                memory.advise(libc::MADV_NOHUGEPAGE).unwrap();
            }
        }
        let (wait, go) = nix::unistd::pipe().unwrap();
        let child = Child::fork(|| nix::unistd::read(&wait, &mut [0]) == Ok(1)).unwrap();
        memories(pairs).for_each(|it| it.fill(2));
        nix::unistd::write(&go, &[1]).unwrap();
        assert!(child.succeeded().unwrap());
    });
    assert_eq!(
        found,
        [
            (Anonymous, Kept, Changed),
            (Shmem, Kept, Kept),
            (Thp, Announced, Changed),
            (Hugetlb, Announced, Changed),
        ]
    );
}

#[test]
fn mlock_and_munlock_leave_pinned_pages() {
    let _alone = alone();
    let _pages = HugePages::on_each_node(4);
    let found = fates(Kind::ALL, |pairs| {
        for memory in memories(pairs) {
            let start = memory.page(0).cast();
            // SAFETY: the call changes no bytes of the memory.
            assert_eq!(unsafe { libc::mlock(start, LEN) }, 0);
            let locked = memory.smaps("Locked") > 0;
            assert_eq!(
                locked,
                memory.kind != Hugetlb,
                "only hugetlbfs pages do not count as locked"
            );
            // SAFETY: the call changes no bytes of the memory.
            assert_eq!(unsafe { libc::munlock(start, LEN) }, 0);
        }
    });
    assert_eq!(found, Kind::ALL.map(|kind| (kind, Kept, Kept)));
}

#[test]
fn mprotect_and_back_leaves_pinned_pages() {
    let _alone = alone();
    let _pages = HugePages::on_each_node(4);
    let found = fates(Kind::ALL, |pairs| {
        for memory in memories(pairs) {
            for protection in [
                libc::PROT_READ,
                libc::PROT_NONE,
                libc::PROT_READ | libc::PROT_WRITE,
            ] {
                memory.protect(0, PAGES, protection);
            }
        }
    });
    assert_eq!(found, Kind::ALL.map(|kind| (kind, Kept, Kept)));
}

#[test]
fn dividing_a_mapping_announces_the_2_mib_around_the_cut() {
    let _alone = alone();
    let found = fates([Anonymous, Shmem, Thp], |pairs| {
        for memory in memories(pairs) {
            // Without this advice, khugepaged would collapse the split pages again.
            memory.advise(libc::MADV_NOHUGEPAGE).unwrap();
            memory.protect(1, 2, libc::PROT_READ);
            memory.protect(1, 2, libc::PROT_READ | libc::PROT_WRITE);
        }
    });
    assert_eq!(
        found,
        [
            (Anonymous, Announced, Announced),
            (Shmem, Announced, Announced),
            (Thp, Announced, Announced),
        ]
    );
}

#[test]
fn advice_that_pages_are_cold_leaves_them() {
    let _alone = alone();
    let found = fates([Anonymous, Shmem, Thp], |pairs| {
        for memory in memories(pairs) {
            assert!(memory.smaps("Referenced") > 0);
            memory.advise(libc::MADV_COLD).unwrap();
            assert_eq!(memory.smaps("Referenced"), 0, "{:?}", memory.kind);
        }
    });
    assert_eq!(
        found,
        [Anonymous, Shmem, Thp].map(|kind| (kind, Kept, Kept))
    );
}
