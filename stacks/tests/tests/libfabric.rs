//! The monitor for libfabric in processes that fork, end early, load libfabric later, or lack the
//! driver. Each process must end, and may print at most one notice.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use regcache_stacks::libfabric::LIBFABRIC;
use regcache_stacks::plugins::Plugins;
use regcache_stacks::program;
use regcache_test_support::{SecondDevice, ld_preload};

/// The time limit of a program in seconds.
const LIMIT: &str = "120";

/// The libraries and the second device. The tests run one after the other, because they share the
/// device and the driver's file.
struct Machine {
    plugins: Plugins,
    /// It is `None` only while this value is dropped.
    _device: Option<Arc<SecondDevice>>,
    _alone: MutexGuard<'static, ()>,
}

/// The device that the tests share. A test that waits for its turn keeps the device, so it is added
/// once in most runs.
static SHARED: Mutex<Weak<SecondDevice>> = Mutex::new(Weak::new());

fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn device() -> Arc<SecondDevice> {
    let mut shared = lock(&SHARED);
    shared.upgrade().unwrap_or_else(|| {
        let device = Arc::new(SecondDevice::add());
        *shared = Arc::downgrade(&device);
        device
    })
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The device is removed under the lock, so that no other test adds it meanwhile.
        let _shared = lock(&SHARED);
        self._device = None;
    }
}

/// The output of a program.
struct Ran {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Machine {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let shared = Some(device());
        Self {
            _alone: lock(&ALONE),
            plugins: Plugins::link().unwrap(),
            _device: shared,
        }
    }

    fn run(&self, settings: &[(&str, OsString)], command: &[OsString]) -> Ran {
        let mut run = Command::new("timeout");
        run.args(["-k", "10", LIMIT, "env"]);
        for (name, value) in settings {
            let mut setting = OsString::from(format!("{name}="));
            setting.push(value);
            run.arg(setting);
        }
        run.args(command)
            .envs(LIBFABRIC.environment.iter().copied());
        let output = run.stdin(Stdio::null()).output().unwrap();
        let ran = Ran {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        println!(
            "{settings:?} {command:?}: {}{}{}",
            output.status, ran.stdout, ran.stderr
        );
        ran
    }

    /// The settings of each way to load the library: as a provider, and preloaded too.
    fn ways(&self) -> [Vec<(&'static str, OsString)>; 2] {
        let provider = ("FI_PROVIDER_PATH", OsString::from(self.plugins.providers()));
        let ways = [vec![], vec![self.plugins.fi()]];
        ways.map(|libraries| vec![provider.clone(), ("LD_PRELOAD", ld_preload(&libraries))])
    }
}

impl Ran {
    fn notices(&self) -> Vec<&str> {
        let lines = self.stderr.lines();
        lines.filter(|line| line.starts_with("regcache:")).collect()
    }

    /// Returns the number of wrong messages, if the program has ended well.
    fn wrong(&self) -> u64 {
        assert!(self.success, "{}", self.stderr);
        let line = self.stdout.lines().find(|it| it.starts_with("wrong="));
        let number = line.and_then(|it| it.strip_prefix("wrong=")?.split('/').next());
        number.unwrap().parse().unwrap()
    }
}

fn words(program: PathBuf, arguments: &[&str]) -> Vec<OsString> {
    let first = std::iter::once(program.into_os_string());
    first.chain(arguments.iter().map(OsString::from)).collect()
}

/// Runs the modes of `libfabric-life` both ways. No process prints a notice.
fn lives(modes: &[&str]) {
    let machine = Machine::new();
    for way in machine.ways() {
        for mode in modes {
            let ran = machine.run(&way, &words(program("libfabric-life"), &[mode]));
            assert!(ran.success && ran.stdout == "ok\n", "{mode} {}", ran.stderr);
            assert!(ran.notices().is_empty());
        }
    }
}

/// Traps 5 and 6: a child neither uses the cache nor hangs, and an open domain at the end is no
/// fault.
#[test]
fn processes_end_in_every_way() {
    lives(&["fork", "open"]);
}

/// Trap 2 on a real device.
#[test]
fn two_domains_never_share_a_stale_registration() {
    lives(&["domains"]);
}

#[test]
fn threads_that_churn_and_fork_end() {
    lives(&["churn"]);
}

/// Open MPI imports a monitor of its own after `fi_getinfo`.
#[test]
fn a_second_import_is_refused_and_changes_nothing() {
    lives(&["import"]);
}

/// The control of the test above: without the library, the same import is accepted.
#[test]
fn an_import_without_the_library_is_accepted() {
    let machine = Machine::new();
    let ran = machine.run(&[], &words(program("libfabric-life"), &["bind"]));
    assert!(ran.success && ran.stdout == "ok\n", "{}", ran.stderr);
}

#[test]
fn a_copy_of_the_library_says_that_it_is_the_second() {
    let machine = Machine::new();
    let directory = env::temp_dir().join(format!("two-providers.{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    for name in ["liba-fi.so", "libb-fi.so"] {
        fs::copy(machine.plugins.fi(), directory.join(name)).unwrap();
    }
    let settings = [("FI_PROVIDER_PATH", directory.clone().into_os_string())];
    let ran = machine.run(&settings, &words(program("libfabric"), &["raw", "10"]));
    fs::remove_dir_all(directory).unwrap();
    assert_eq!(ran.wrong(), 0);
    let notices = ran.notices();
    assert!(
        notices.len() == 1 && notices[0].contains("another memory monitor"),
        "{notices:?}"
    );
}

#[test]
fn libfabric_that_is_loaded_locally_gets_the_monitor() {
    let machine = Machine::new();
    let library = program("liblibfabric.so").display().to_string();
    for way in machine.ways() {
        for change in ["raw", "window"] {
            let command = words(program("dlopened"), &[&library, change, "10"]);
            let ran = machine.run(&way, &command);
            assert_eq!(ran.wrong(), 0, "{change}");
            assert!(ran.notices().is_empty());
        }
    }
}

/// If the user asks for a monitor of libfabric, the user gets it, and no notice.
#[test]
fn another_choice_of_the_user_is_respected() {
    let machine = Machine::new();
    let [_, preloaded] = machine.ways();
    let command = words(program("libfabric"), &["raw", "10"]);
    for (choice, is_wrong) in [("memhooks", true), ("ummunotify", false)] {
        let mut settings = preloaded.clone();
        settings.push(("FI_MR_CACHE_MONITOR", choice.into()));
        let ran = machine.run(&settings, &command);
        assert_eq!(ran.wrong() > 0, is_wrong, "{choice}");
        assert!(ran.notices().is_empty());
    }
}

/// A file that has another name while this value lives.
struct Renamed(&'static str, &'static str);

impl Renamed {
    fn new(from: &'static str, to: &'static str) -> Self {
        fs::rename(from, to).unwrap();
        Self(from, to)
    }
}

impl Drop for Renamed {
    fn drop(&mut self) {
        let _ = fs::rename(self.1, self.0);
    }
}

const DEVICE: &str = "/dev/ummunotify";

/// Runs the program where the driver cannot be used. libfabric keeps its own monitor, and the user
/// gets one notice that contains this text.
fn without_the_driver(machine: &Machine, expected: &str) {
    let [_, preloaded] = machine.ways();
    let ran = machine.run(&preloaded, &words(program("libfabric"), &["munmap", "10"]));
    assert_eq!(ran.wrong(), 0);
    let notices = ran.notices();
    assert!(
        notices.len() == 1 && notices[0].contains(expected),
        "{notices:?}"
    );
    assert!(notices[0].contains("libfabric keeps its own memory monitor"));
}

#[test]
fn a_machine_without_the_driver_gets_one_notice() {
    let machine = Machine::new();
    let _away = Renamed::new(DEVICE, "/dev/ummunotify.away");
    without_the_driver(&machine, "modprobe ummunotify");
}

#[test]
fn a_file_that_is_not_the_driver_gets_one_notice() {
    let machine = Machine::new();
    let _away = Renamed::new(DEVICE, "/dev/ummunotify.away");
    std::os::unix::fs::symlink("/dev/null", DEVICE).unwrap();
    without_the_driver(&machine, "is not the ummunotify driver's device");
    fs::remove_file(DEVICE).unwrap();
}

/// A user without permission gets a notice. The user has no RDMA device either, so the program only
/// asks libfabric for its providers.
#[test]
fn a_user_without_permission_gets_one_notice() {
    use std::os::unix::fs::PermissionsExt;
    let machine = Machine::new();
    let mode = fs::metadata(DEVICE).unwrap().permissions();
    fs::set_permissions(DEVICE, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command: Vec<OsString> = ["setpriv", "--reuid=65534", "--clear-groups"]
        .map(OsString::from)
        .into();
    command.extend(words(program("libfabric"), &["raw", "10"]));
    // The nobody user must reach the libraries, so they are copied.
    let directory = Path::new("/tmp/for-nobody");
    fs::create_dir_all(directory).unwrap();
    fs::copy(machine.plugins.fi(), directory.join("libregcache-fi.so")).unwrap();
    let settings = [("FI_PROVIDER_PATH", OsString::from(directory))];
    let ran = machine.run(&settings, &command);
    fs::set_permissions(DEVICE, mode).unwrap();
    let notices = ran.notices();
    assert!(
        notices.len() == 1 && notices[0].contains("no permission"),
        "{notices:?}"
    );
}
