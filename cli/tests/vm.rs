//! Checks the tool on a machine that has all parts. The test of doctor takes each part away. The
//! tool must report the missing part, and the commands that it prints must restore the part. `cargo
//! xtask test` installs the tool in the virtual machine and runs this suite.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{LazyLock, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The identifier of a user without any rights.
const NOBODY: &str = "65534";

/// Stands for the user nobody after a new login. A new login applies the limits in
/// `/etc/security/limits.d`.
const LOGIN: &str = "login";

/// Returns the path of the tool. The first call copies the tool to the machine's own file system,
/// because the shared file system is slow.
fn tool() -> PathBuf {
    static COPY: LazyLock<PathBuf> = LazyLock::new(|| {
        let prefix = env::var("REGCACHE_PREFIX").expect(
            "REGCACHE_PREFIX must say where the tool is installed, by cargo xtask install --dev --prefix DIR",
        );
        let copy = env::temp_dir().join(format!("regcache-{}", std::process::id()));
        let copy = copy.display();
        sh(&format!(
            "mkdir {copy}; cp -r {prefix}/bin {prefix}/libexec {copy}"
        ));
        PathBuf::from(copy.to_string())
    });
    COPY.join("bin/regcache")
}

fn said(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text)
}

fn sh(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}");
}

/// Runs doctor as this user. If `user` is [`LOGIN`], the user is nobody, and logs in first.
fn doctor(user: &str) -> (bool, String) {
    if user == LOGIN {
        let doctor = format!("{} doctor", tool().display());
        return said(Command::new("su").args(["-s", "/bin/sh", "-c", &doctor, "nobody"]));
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    said(command.arg(tool()).arg("doctor"))
}

/// Takes a part away with the script `taken`. doctor must report the missing part below `subject`,
/// and the commands that it prints must restore the part.
fn is_fixed(user: &str, taken: &str, subject: &str) {
    sh(taken);
    let (_, before) = doctor(user);
    let mut lines = before
        .lines()
        .skip_while(|line| !line.contains(&format!(" {subject}")) || line.starts_with("  ok "));
    let what = lines.next().unwrap_or_else(|| panic!("{taken}: {before}"));
    let commands: Vec<_> = lines
        .map_while(|line| line.trim_start().strip_prefix("# "))
        .collect();
    assert!(!commands.is_empty(), "{taken}: {before}");
    println!("# {taken}\n{what}\n{}", commands.join("\n"));
    sh(&commands.join("\n"));
    // doctor may not report success at once, because a port needs some time to become active.
    let patience = Instant::now() + Duration::from_secs(120);
    loop {
        let (cached, after) = doctor(user);
        let good = after
            .lines()
            .any(|line| line.starts_with("  ok ") && line.contains(&format!(" {subject}")));
        if good && cached {
            return;
        }
        assert!(Instant::now() < patience, "{taken}: {after}");
        sleep(Duration::from_millis(200));
    }
}

/// A lock that each test holds while it runs, because the tests add and remove devices.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn what_is_missing_is_told_and_comes_back_by_the_commands_told() {
    let _turn = TURN.lock();
    let (cached, all) = doctor("0");
    assert!(cached, "{all}");
    assert!(!all.contains("MISSING"), "{all}");
    let verdict = "Registrations are cached here, for an RDMA device and io_uring, on ummunotify.";
    assert!(all.contains(verdict), "{all}");

    is_fixed(NOBODY, "chmod 0400 /dev/ummunotify", "ummunotify:");
    is_fixed(NOBODY, "rm /dev/ummunotify", "ummunotify:");
    is_fixed(NOBODY, "chmod 0600 /dev/infiniband/uverbs0", "device rxe0:");
    is_fixed(NOBODY, "rm /dev/infiniband/uverbs0", "device rxe0:");
    is_fixed("0", "ip link set lo down", "device rxe0:");
    is_fixed("0", "rdma link delete rxe0", "device");
    if PathBuf::from("/proc/sys/kernel/io_uring_disabled").exists() {
        is_fixed("0", "sysctl -q kernel.io_uring_disabled=2", "io_uring:");
    }
    // The script mounts an empty file system over this directory. The printed commands make a file
    // there, which disappears with the mount. The limits in the file apply from the next login on.
    let dir = "/etc/security/limits.d";
    is_fixed(
        LOGIN,
        &format!("mount -t tmpfs none {dir}"),
        "pinned memory:",
    );
    sh(&format!("umount {dir}"));
    // If userfaultfd works on this kernel, two more parts can be missing. A sysctl can forbid
    // userfaultfd to users. And if userfaultfd is the monitor, the limit on mappings matters.
    let (_, alone) = doctor(NOBODY);
    if alone.contains("sysctl vm.unprivileged_userfaultfd=1") {
        let nobody = "sysctl -q vm.unprivileged_userfaultfd=0";
        is_fixed(NOBODY, nobody, "userfaultfd:");
        let few = "chmod 0400 /dev/ummunotify; sysctl -q vm.max_map_count=65530";
        is_fixed(NOBODY, few, "mappings:");
        sh("chmod a+r /dev/ummunotify; sysctl -q vm.max_map_count=65530");
        sh(nobody);
    }
    // Other suites need the RDMA device in its original state, with the GID of the address
    // 127.0.0.1.
    let gid = "0000:0000:0000:0000:0000:ffff:7f00:0001";
    let gids = "/sys/class/infiniband/rxe0/ports/1/gids/1";
    sh(&format!(
        "udevadm settle --timeout=60; timeout 120 sh -c 'until grep -qs {gid} {gids}; do sleep 0.1; done'"
    ));
}

#[test]
fn the_bug_is_shown_by_both_devices_on_the_driver() {
    let _turn = TURN.lock();
    let (shown, text) = said(Command::new(tool()).args(["repro", "--rounds", "20"]));
    assert!(shown, "{text}");
    for device in ["io_uring", "rxe0"] {
        let line = format!(
            "reuse: device={device} monitor=ummunotify naive_stale=20/20 regcache_stale=0/20"
        );
        assert!(text.contains(&line), "{text}");
    }
}
