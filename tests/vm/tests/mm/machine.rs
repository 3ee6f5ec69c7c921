//! Access to the machine's settings, event counts, swap and control groups. A value that has
//! changed a setting restores the setting when the value is dropped.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;

/// Returns the first two numbers of the kernel's version.
pub(crate) fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// A setting that a test has changed, with its value before the change.
#[derive(Debug)]
pub(crate) struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    pub(crate) fn set(path: impl Into<PathBuf>, value: &str) -> Self {
        let path = path.into();
        let all = read(&path);
        // Some files list all possible values. In "always [madvise] never", the brackets mark the
        // current value.
        let chosen = all.split_once('[').and_then(|(_, it)| it.split_once(']'));
        let before = chosen.map_or(all.as_str(), |(chosen, _)| chosen).to_owned();
        write(&path, value);
        Self { path, before }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.before);
    }
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let text = fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().to_owned()
}

pub(crate) fn write(path: impl AsRef<Path>, value: &str) {
    let path = path.as_ref();
    let written = fs::write(path, value);
    written.unwrap_or_else(|error| panic!("{value} to {}: {error}", path.display()));
}

/// Reads the number of this name from a file whose lines have the form "name number".
pub(crate) fn count(path: impl AsRef<Path>, name: &str) -> u64 {
    let path = path.as_ref();
    let text = read(path);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix([' ', ':']));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number
        .unwrap_or_else(|| panic!("no {name} in {}", path.display()))
        .parse()
        .unwrap()
}

/// Reads a file that contains one number.
pub(crate) fn count_in(path: impl AsRef<Path>) -> u64 {
    read(path).parse().unwrap()
}

/// Returns the number of times that the event `name` has happened since the machine started.
pub(crate) fn vmstat(name: &str) -> u64 {
    count("/proc/vmstat", name)
}

/// Waits until the condition holds. Panics if the condition does not hold within five minutes.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within five minutes: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the mount point of a file system of this type. Mounts the file system first if
/// necessary.
pub(crate) fn mounted(kind: &str, options: &str) -> PathBuf {
    let has_options = |have: &str| options.is_empty() || have.split(',').any(|it| it == options);
    for line in read("/proc/self/mounts").lines() {
        let mut words = line.split(' ').skip(1);
        let (path, found, have) = (words.next(), words.next(), words.next());
        if found == Some(kind) && have.is_some_and(has_options) {
            return PathBuf::from(path.unwrap());
        }
    }
    let dir = std::env::temp_dir().join(format!("{kind}-{options}"));
    fs::create_dir_all(&dir).unwrap();
    let options = Some(options).filter(|it| !it.is_empty());
    nix::mount::mount(
        Some("none"),
        &dir,
        Some(kind),
        nix::mount::MsFlags::empty(),
        options,
    )
    .unwrap_or_else(|errno| panic!("mount of {kind}: {errno}"));
    dir
}

/// Returns the directory with the settings of NUMA balancing.
pub(crate) fn numa_balancing() -> PathBuf {
    mounted("debugfs", "").join("sched/numa_balancing")
}

/// Repeats `done` until it returns true, for at most two seconds. Does not report a failure.
fn try_for_a_while(mut done: impl FnMut() -> bool) {
    for _ in 0..100 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A control group that children of the test can enter.
#[derive(Debug)]
pub(crate) struct Group(PathBuf);

impl Group {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = mounted("cgroup2", "");
        write(root.join("cgroup.subtree_control"), "+memory");
        let name = format!("regcache-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self::make(root.join(name))
    }

    /// Makes a group of the freezer controller in the cgroup v1 hierarchy.
    pub(crate) fn freezer() -> Self {
        Self::make(mounted("cgroup", "freezer").join("regcache"))
    }

    fn make(dir: PathBuf) -> Self {
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn set(&self, name: &str, value: &str) {
        write(self.file(name), value);
    }

    /// Sets a value. Returns an error if the kernel refuses the value.
    pub(crate) fn ask(&self, name: &str, value: &str) -> std::io::Result<()> {
        fs::write(self.file(name), value)
    }

    pub(crate) fn get(&self, name: &str) -> String {
        read(self.file(name))
    }

    /// Moves a process into this group.
    pub(crate) fn add(&self, process: Pid) {
        self.set("cgroup.procs", &process.to_string());
    }

    /// Moves the calling process into this group.
    pub(crate) fn enter(&self) {
        self.add(Pid::this());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The group may be busy, because a process may still be exiting after the test has waited
        // for it.
        try_for_a_while(|| fs::remove_dir(&self.0).is_ok());
    }
}

/// The flags of a page in /proc/kpageflags. The value of a flag is its bit number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flag {
    Hugetlb = 17,
    Ksm = 21,
    Thp = 22,
}

/// Returns true if the page in this frame has the flag.
pub(crate) fn is(frame: u64, flag: Flag) -> bool {
    let [flags] = entries(Path::new("/proc/kpageflags"), frame);
    flags >> flag as u32 & 1 != 0
}

/// Reads `N` 64-bit words of a file, starting with word number `first`.
pub(crate) fn entries<const N: usize>(path: &Path, first: u64) -> [u64; N] {
    let mut bytes = vec![0; N * 8];
    let file = File::open(path).unwrap();
    file.read_exact_at(&mut bytes, first * 8).unwrap();
    let mut words = bytes.chunks_exact(8);
    std::array::from_fn(|_| u64::from_ne_bytes(words.next().unwrap().try_into().unwrap()))
}

/// Returns the NUMA node of the CPU on which this thread runs.
pub(crate) fn node_here() -> usize {
    let mut node = 0_u32;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the call writes only to `node`.
    let got = unsafe { libc::syscall(libc::SYS_getcpu, none, &raw mut node, none) };
    assert_eq!(got, 0);
    node as usize
}

/// Returns the NUMA node on which this thread does not run. The machine has two NUMA nodes.
pub(crate) fn other_node() -> usize {
    assert_eq!(read("/sys/devices/system/node/online"), "0-1");
    1 - node_here()
}

/// A memory policy of this thread. While the value lives, the kernel takes new pages of this thread
/// from one NUMA node.
#[derive(Debug)]
pub(crate) struct Bound(());

impl Bound {
    pub(crate) fn to(node: usize) -> Self {
        set_policy(libc::MPOL_BIND, 1 << node);
        Self(())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        set_policy(libc::MPOL_DEFAULT, 0);
    }
}

fn set_policy(mode: i32, nodes: u64) {
    let (mask, bits) = if nodes == 0 {
        (std::ptr::null(), 0)
    } else {
        (&raw const nodes, 64)
    };
    // SAFETY: the call reads only the word.
    let set = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) };
    Errno::result(set).unwrap();
}

/// A reservation of huge pages on each NUMA node. Dropping the value ends the reservation.
#[derive(Debug)]
pub(crate) struct HugePages(#[expect(dead_code, reason = "puts them back")] Vec<Setting>);

impl HugePages {
    pub(crate) fn on_each_node(pages: u32) -> Self {
        let pages = pages.to_string();
        let set = |node| {
            let dir = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
            let path = format!("{dir}/nr_hugepages");
            let setting = Setting::set(&path, &pages);
            assert_eq!(read(&path), pages, "huge pages of node {node}");
            setting
        };
        Self((0..2).map(set).collect())
    }
}
