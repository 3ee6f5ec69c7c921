//! Runs programs in situations in which users of other registration caches were surprised, with the
//! shim and without. The outcomes must be the same. docs/design/situations.md lists the sources.
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use preload::{Ran, bounded, program, run, under_shim};
use regcache_test_support::Swap;

/// Returns what the program printed, without its measurements.
fn outcome(ran: &Ran) -> Vec<&str> {
    let lines = ran.stdout.lines();
    lines.filter(|it| !it.starts_with("measured")).collect()
}

/// Returns the number that the program has measured.
fn measured(ran: &Ran, what: &str) -> f64 {
    let start = format!("measured: {what} ");
    let line = ran.stdout.lines().find_map(|it| it.strip_prefix(&start));
    let number = line.and_then(|it| it.split_whitespace().next());
    number
        .unwrap_or_else(|| panic!("{}", ran.stdout))
        .parse()
        .unwrap()
}

/// Runs a situation without the shim and with it, after `prepare` has added to each command. The
/// outcomes must be the same.
fn same(arguments: &[&str], prepare: impl Fn(&mut Command)) -> [Ran; 2] {
    let mut commands = [
        bounded(program("situations")),
        under_shim(program("situations")),
    ];
    let ran = commands.each_mut().map(|command| {
        prepare(command.args(arguments));
        run(command).ok()
    });
    assert_eq!(outcome(&ran[0]), outcome(&ran[1]), "{}", ran[1].stderr);
    ran
}

#[test]
fn children_can_read_memory_that_libibverbs_hides_while_it_is_registered() {
    for (argument, variable) in [("1", "0"), ("0", "1"), ("0", "0")] {
        let [without, with] = same(&["hidden", argument], |command| {
            if variable == "1" {
                command.env("RDMAV_FORK_SAFE", "1");
            }
        });
        // Since rdma-core 51 nothing is hidden on kernels that copy pinned pages for a child.
        let is_hidden = without.stdout.contains("child: signal 11");
        assert!(!is_hidden || (argument, variable) != ("0", "0"));
        let said = with
            .stderr
            .contains("hides registered memory from children");
        assert_eq!(said, is_hidden, "{}", with.stderr);
        assert_eq!(with.summary().number("off") > 0, is_hidden);
    }
}

#[test]
fn a_fork_copies_nothing_that_the_program_has_deregistered() {
    let [without, with] = same(&["forks", "128"], |_| ());
    let [without, with] = [&without, &with].map(|it| measured(it, "copied"));
    // The parent's other thread may write to some pages after the fork. These then count as the
    // child's own.
    assert!(
        with <= without + 256.0,
        "{with} kB, and {without} without the shim"
    );
}

/// Huge pages of the kernel's pool, while this value lives.
struct HugePages(String);

impl HugePages {
    const NUMBER: &str = "/proc/sys/vm/nr_hugepages";

    fn reserve(count: u32) -> Self {
        let before = fs::read_to_string(Self::NUMBER).unwrap();
        fs::write(Self::NUMBER, count.to_string()).unwrap();
        let now = fs::read_to_string(Self::NUMBER).unwrap();
        assert_eq!(now.trim(), count.to_string(), "no memory for huge pages");
        Self(before)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(Self::NUMBER, &self.0);
    }
}

#[test]
fn huge_pages_are_back_in_their_pool_after_munmap_and_do_not_make_a_fork_fail() {
    let _pages = HugePages::reserve(8);
    let [_, with] = same(&["pool"], |_| ());
    assert_eq!(with.summary().number("kept"), 0, "{:?}", with.summaries);
    same(&["huge-forks"], |_| ());
}

#[test]
fn memory_that_has_lost_its_protection_is_refused() {
    let [without, with] = same(&["protect"], |_| ());
    assert!(without.stdout.contains("Bad address"), "{}", without.stdout);
    assert!(with.summary().number("kept") > 0, "{:?}", with.summaries);
}

#[test]
fn threads_that_are_cancelled_leave_nothing_locked() {
    same(&["cancel", "60"], |_| ());
}

#[test]
fn signals_interrupt_no_call_and_may_fork() {
    same(&["interrupts"], |_| ());
    same(&["fork-in-handler"], |_| ());
}

#[test]
fn notices_go_to_the_stderr_of_the_start_or_nowhere() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reused");
    let path = file.to_str().unwrap();
    for (name, value) in [("REGCACHE_SUMMARY", "1"), ("REGCACHE_MONITOR", "nonsense")] {
        let mut command = under_shim(program("situations"));
        command.args(["reused", path]).env(name, value);
        let ran = command.output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "record 1\nrecord 2\n");
    }
    fs::remove_file(file).unwrap();
}

#[test]
fn after_all_descriptors_are_closed_nobody_reads_or_writes_the_programs_own() {
    for looks_up in ["0", "1"] {
        let mut command = under_shim(program("situations"));
        let ran = run(command.args(["closed", looks_up])).ok();
        assert!(ran.stdout.contains("lost: 0"), "{}", ran.stdout);
    }
}

#[test]
fn a_daemon_closes_all_descriptors_and_has_a_cache_of_its_own() {
    let [_, with] = same(&["daemon"], |_| ());
    let mut hits: Vec<_> = with.summaries.iter().map(|it| it.number("hits")).collect();
    hits.sort_unstable();
    assert_eq!(hits, [0, 9], "{:?}", with.summaries);
}

#[test]
fn memory_that_comes_and_goes_is_sent_right_and_does_not_pile_up() {
    for name in ["again", "small", "lengths", "read-only", "leak"] {
        same(&[name], |_| ());
    }
    let [_, with] = same(&["order"], |_| ());
    assert_eq!(with.summary().number("made"), 4, "{:?}", with.summaries);
}

/// A cgroup for one command.
struct Cgroup(PathBuf);

impl Cgroup {
    fn with(limits: &[(&str, &str)]) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        // The error is that the controller is enabled, or a limit's file would be missing below.
        let _ = fs::write(root.join("cgroup.subtree_control"), "+memory +rdma");
        let group = Self(root.join(format!("situations-{}-{}", std::process::id(), limits[0].0)));
        fs::create_dir(&group.0).unwrap();
        for (file, limit) in limits {
            fs::write(group.0.join(file), limit).unwrap();
        }
        group
    }

    /// Makes the command move to this cgroup before it begins.
    fn run(&self, command: &mut Command) {
        let inner = command.get_program().to_owned();
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let mut moved = Command::new("sh");
        let script = "echo $$ >\"$0/cgroup.procs\" && exec \"$@\"";
        moved
            .args(["-c", script])
            .arg(&self.0)
            .arg(inner)
            .args(arguments);
        *command = moved;
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel's record of a limit must go before the cgroup does.
        let _ = fs::write(
            self.0.join("rdma.max"),
            "rxe0 hca_handle=max hca_object=max",
        );
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_limit_on_the_devices_objects_does_not_refuse_the_programs_own() {
    let group = Cgroup::with(&[("rdma.max", "rxe0 hca_object=40")]);
    let [_, with] = same(&["queues", "200"], |command| group.run(command));
    assert!(with.summary().number("evicted") > 0, "{:?}", with.summaries);
}

#[test]
fn a_limit_on_memory_does_not_kill_the_program() {
    let _swap = Swap::on();
    let group = Cgroup::with(&[("memory.max", "64M")]);
    same(&["walk", "150"], |command| group.run(command));
}
