//! Tests the end of the watched memory, for example by the exit of the owner. A child of the owner
//! observes the generation counter. The child inherits the mapping of the counter, so the mapping
//! outlives the owner's memory.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe, read, write};
use regcache_tests_vm::{Child, Counter, DriverFile};

use crate::alone;
use crate::changes::pidfd;
use crate::machine::{Group, wait_until};
use crate::memory::{Kind, LEN, Memory};

/// Runs an owner process. The owner watches memory, forks a child, and then calls `end` and exits.
/// The child calls `heir` with the counter and with the owner's process identifier. Returns the
/// result of `heir`.
fn heir_of(
    ranges: u64,
    end: impl FnOnce(&DriverFile),
    heir: impl FnOnce(&Counter, Pid) -> bool,
) -> bool {
    let (answer, tell) = pipe().unwrap();
    let (ready, tell_ready) = pipe().unwrap();
    let owner = Child::fork(|| {
        let memory = Memory::new(Kind::Anonymous);
        // The file is opened without O_CLOEXEC. So the file stays open if `end` executes another
        // program.
        let device = DriverFile::open_with(OFlag::O_NONBLOCK).unwrap();
        for cookie in 0..ranges {
            device.watch(memory.page(0), LEN, cookie).unwrap();
        }
        let counter = device.counter().unwrap();
        let child = Child::fork(|| {
            let (at_first, owner) = (counter.get(), Pid::parent());
            let told = write(&tell_ready, &[1]) == Ok(1);
            let yes = at_first == 0 && told && heir(&counter, owner);
            write(&tell, &[u8::from(yes)]) == Ok(1)
        });
        // The child must outlive this process. Dropping the value would kill the child.
        std::mem::forget(child.unwrap());
        assert_eq!(read(&ready, &mut [0]), Ok(1));
        end(&device);
        std::mem::forget((memory, device, counter));
        true
    })
    .unwrap();
    drop(tell);
    let mut byte = [0];
    let answered = read(&answer, &mut byte);
    drop(owner);
    assert_eq!(answered, Ok(1), "the child sent no answer");
    byte == [1]
}

/// Returns the state of a process, which is the third field of /proc/PID/stat.
fn state(process: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn is_over(process: Pid) -> bool {
    matches!(state(process), None | Some('Z'))
}

fn wait_for_the_end(process: Pid) {
    wait_until("the owner ends", || is_over(process));
}

#[test]
fn exit_counts_once() {
    let _alone = alone();
    assert!(heir_of(
        3,
        |_| {},
        |counter, owner| {
            wait_for_the_end(owner);
            counter.get() == 1
        }
    ));
}

#[test]
fn exit_does_not_count_where_nothing_is_watched() {
    let _alone = alone();
    let is_zero = |counter: &Counter, owner| {
        wait_for_the_end(owner);
        counter.get() == 0
    };
    assert!(heir_of(0, |_| {}, is_zero), "nothing was ever watched");
    // The first range makes the driver listen to the end of the address space.
    let unwatch = |device: &DriverFile| device.unwatch(0).unwrap();
    assert!(heir_of(1, unwatch, is_zero), "nothing is watched any more");
}

#[test]
fn a_kill_counts() {
    let _alone = alone();
    assert!(heir_of(
        1,
        |_| loop {
            thread::park();
        },
        |counter, owner| {
            kill(owner, Signal::SIGKILL).unwrap();
            wait_for_the_end(owner);
            counter.get() == 1
        }
    ));
}

#[test]
fn exec_counts_and_the_next_program_is_not_signalled() {
    let _alone = alone();
    assert!(heir_of(
        1,
        |device| {
            // The next program has no handler for SIGIO. If the driver sent this signal, the signal
            // would end the program.
            let this = Pid::this().as_raw();
            // SAFETY: the call accesses no memory.
            let owned = unsafe { libc::fcntl(device.raw(), libc::F_SETOWN, this) };
            assert_eq!(owned, 0);
            fcntl(device, FcntlArg::F_SETFL(OFlag::O_ASYNC)).unwrap();
            let error = Command::new("sleep").arg("1000").exec();
            panic!("{error}");
        },
        |counter, owner| {
            let is_sleep = || {
                let name = fs::read_to_string(format!("/proc/{owner}/comm"));
                name.is_ok_and(|it| it.trim() == "sleep") && state(owner) == Some('S')
            };
            wait_until("the owner sleeps", || is_sleep() || is_over(owner));
            let counted = counter.get();
            thread::sleep(Duration::from_millis(200));
            let lives = is_sleep();
            kill(owner, Signal::SIGKILL).unwrap();
            counted == 1 && counter.get() == 1 && lives
        }
    ));
}

#[test]
fn reaping_of_a_process_that_cannot_exit_counts() {
    let _alone = alone();
    let group = Group::freezer();
    assert!(heir_of(
        1,
        |_| loop {
            thread::park();
        },
        |counter, owner| {
            group.add(owner);
            group.set("freezer.state", "FROZEN");
            wait_until("the owner is frozen", || {
                group.get("freezer.state") == "FROZEN"
            });
            kill(owner, Signal::SIGKILL).unwrap();
            let fd = pidfd(owner).unwrap();
            // SAFETY: the call frees memory of the killed process, and none of this process.
            let reaped = unsafe { libc::syscall(libc::SYS_process_mrelease, fd.as_raw_fd(), 0) };
            let reaped = Errno::result(reaped) == Ok(0);
            let frozen = state(owner) != Some('Z') && group.get("freezer.state") == "FROZEN";
            let at_reaping = counter.get();
            group.set("freezer.state", "THAWED");
            wait_for_the_end(owner);
            reaped && frozen && at_reaping == 1 && counter.get() == 2
        }
    ));
}
