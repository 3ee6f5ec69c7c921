//! Runs a command in a virtual machine: a Debian kernel with the driver loaded and rxe0 up, on this machine's own root
//! file system or, for a kernel of another release, on one of that release, read-only but for the target directory.
//!
//! virtme-ng makes the machine; nothing else passes through it. The command's output comes through two virtio ports
//! whose host ends are FIFOs, byte for byte, and everything else through files of a run directory
//! (`target/xtask/runs/*`), which the guest can write; `guest.sh` tells which. So neither a terminal nor its absence
//! makes a difference.
//!
//! The machine cannot outlive us, however we die: each process between us and QEMU, and QEMU itself, asks the kernel
//! to be killed when its parent goes.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::stat::Mode;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::kernel::{self, Kernel, Series};
use crate::project::Project;
use crate::setup;

/// The machine, and how long it may take.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Machine {
    /// The kernel to boot
    #[arg(long, value_name = "SERIES", value_enum, default_value_t = Self::default().kernel)]
    pub(crate) kernel: Series,
    /// Memory of the guest, as QEMU takes it
    #[arg(long, default_value_t = Self::default().memory)]
    pub(crate) memory: String,
    /// CPUs of the guest
    #[arg(long, default_value_t = Self::default().cpus)]
    pub(crate) cpus: u16,
    /// Seconds that the command may run
    #[arg(long, value_name = "SECONDS", default_value_t = Self::default().timeout)]
    pub(crate) timeout: u64,
    /// Seconds that the guest may take until the command starts
    #[arg(long, value_name = "SECONDS", default_value_t = Self::default().boot_timeout)]
    pub(crate) boot_timeout: u64,
    /// Neither build nor load the driver, and no RDMA device either: a bare kernel
    #[arg(long)]
    pub(crate) no_driver: bool,
    /// Make the guest's time stamp counter tick once an instruction: emulation, one CPU
    #[arg(long)]
    pub(crate) icount: bool,
}

impl Default for Machine {
    /// What the command line's defaults are.
    fn default() -> Self {
        Self {
            kernel: Series::default(),
            memory: "2G".to_owned(),
            cpus: 2,
            timeout: 1800,
            boot_timeout: 180,
            no_driver: false,
            icount: false,
        }
    }
}

/// What to run, and where its output goes.
pub(crate) struct Job<'a> {
    /// The program and its arguments.
    pub(crate) command: &'a [OsString],
    /// Takes stdout, and stderr too if that has no place of its own; then the two are in the order they were written.
    pub(crate) stdout: Box<dyn Write + Send>,
    /// Takes stderr.
    pub(crate) stderr: Option<Box<dyn Write + Send>>,
}

/// How many run directories are kept, for a look at what happened.
const RUNS_KEPT: usize = 8;

/// Variables that the guest gets from us, beside all that begin with one of `PASSED_PREFIXES`.
const PASSED: &[&str] = &[
    "RUST_BACKTRACE",
    "RUST_LOG",
    "RUST_TEST_THREADS",
    "LANG",
    "TERM",
    "CI",
];
const PASSED_PREFIXES: &[&str] = &["PROPTEST_", "REGCACHE_"];

/// What the kernel prints when something is wrong with it. A soft lockup is among them ("watchdog: BUG: …").
const COMPLAINTS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Oops",
    "general protection",
    "Kernel panic",
    "KASAN",
    "KCSAN",
    "UBSAN",
    "INFO: possible",
    "blocked for more than",
    "refcount_t",
    "detected stall",
    "scheduling while atomic",
    "sleeping function called",
];

/// An oops ends the machine instead of leaving it half dead (virtme-ng has QEMU exit where it would reboot), no message
/// is lost, and a CPU that the host gave no time for half a minute is not taken for a stuck one.
const KERNEL_OPTIONS: &[&str] = &[
    "oops=panic",
    "panic=-1",
    "loglevel=6",
    "log_buf_len=4M",
    "watchdog_thresh=60",
    "rcupdate.rcu_cpu_stall_timeout=120",
];

/// Two nodes, between which pages can move; scans for it only where a test wants them.
const NUMA_OPTIONS: &[&str] = &["numa=fake=2", "numa_balancing=disable"];

/// How many lines are shown from the first complaint on, and how many complaints after those.
const COMPLAINT_LINES: usize = 20;

/// Installs what is missing, builds the driver, boots, runs the job, and returns the command's exit status.
pub(crate) fn run(project: &Project, machine: &Machine, job: Job<'_>) -> Result<u8, Error> {
    setup::packages(project, setup::VM)?;
    let kernel = kernel::find(project, machine.kernel)?;
    run_on(project, &kernel, machine, job)
}

/// The same on this very kernel and its root, whatever the machine's series has.
pub(crate) fn run_on(
    project: &Project,
    kernel: &Kernel,
    machine: &Machine,
    job: Job<'_>,
) -> Result<u8, Error> {
    let python = setup::virtme_python(project)?;
    let run = RunDir::create(project)?;
    if !machine.no_driver {
        kernel::build_driver(project, kernel, &run.path("ummunotify.ko"))?;
    }
    run.write("guest.sh", include_bytes!("guest.sh"))?;
    run.write("command.sh", &command_script(&project.root, job.command))?;
    // virtme-ng starts QEMU itself, so this is where it learns to die with virtme-ng.
    run.write(
        "qemu",
        b"#!/bin/sh\nexec setpriv --pdeathsig=KILL qemu-system-x86_64 \"$@\"\n",
    )?;
    fs::set_permissions(run.path("qemu"), fs::Permissions::from_mode(0o755)).at(run.path("qemu"))?;

    let mut copiers = vec![Copier::start(run.path("stdout"), job.stdout)?];
    if let Some(stderr) = job.stderr {
        copiers.push(Copier::start(run.path("stderr"), stderr)?);
    }
    let kvm = has_kvm() && !machine.icount;
    eprintln!(
        "xtask: booting Linux {} {}; console: {}",
        kernel.version,
        if kvm { "with KVM" } else { "under emulation" },
        run.path("console.log").display()
    );
    let started = Instant::now();
    let console = File::create(run.path("console.log")).at(run.path("console.log"))?;
    let mut virtme = virtme(&python, project, kernel, machine, &run, kvm, copiers.len())?;
    virtme
        .stdin(Stdio::null())
        .stderr(console.try_clone().at(run.path("console.log"))?)
        .stdout(console);
    let child = virtme.spawn().map_err(|source| Error::Command {
        command: cmd::line(&virtme),
        why: source.to_string(),
    })?;
    let ended = Guest { child }.wait(&run, machine, started);
    for copier in copiers {
        copier.finish();
    }
    verdict(&run, machine, ended?)
}

/// How the guest's life ended, as seen from outside.
enum Ended {
    /// It powered itself off, or virtme-ng could not start it.
    ByItself(ExitStatus),
    /// It was killed: the command had not started within `boot_timeout`.
    NotUp,
    /// It was killed: the command ran for longer than `timeout` and the guest did not stop it.
    Hung,
}

/// A running guest; dropping it kills it.
struct Guest {
    child: Child,
}

impl Guest {
    fn wait(mut self, run: &RunDir, machine: &Machine, started: Instant) -> Result<Ended, Error> {
        // The guest stops the command itself, which leaves a better trace; if it has not, it hangs.
        let grace = Duration::from_secs(30);
        let mut up_since = None;
        loop {
            if let Some(status) = self.child.try_wait().at("virtme-ng")? {
                return Ok(Ended::ByItself(status));
            }
            if up_since.is_none() && run.path("up").exists() {
                up_since = Some(Instant::now());
            }
            match up_since {
                None if started.elapsed() > Duration::from_secs(machine.boot_timeout) => {
                    return Ok(Ended::NotUp);
                }
                Some(since) if since.elapsed() > Duration::from_secs(machine.timeout) + grace => {
                    return Ok(Ended::Hung);
                }
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // QEMU is killed by the kernel as its parent dies. Both fail only if it is dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came of it, from what the guest and its kernel left in the run directory.
fn verdict(run: &RunDir, machine: &Machine, ended: Ended) -> Result<u8, Error> {
    let dir = run.dir.display();
    let console = run.read("console.log");
    let messages = match run.read("dmesg.log") {
        messages if messages.is_empty() => console.clone(),
        messages => messages,
    };
    let complaints = complaints(&messages);
    if !complaints.is_empty() {
        return Err(Error::Vm(format!(
            "the guest's kernel complained:\n{complaints}\nall its messages are in {dir} (dmesg.log, console.log)"
        )));
    }
    let leaks = leaks(&run.read("leaks.log"));
    if !leaks.is_empty() {
        return Err(Error::Vm(format!(
            "the driver leaked memory:\n{leaks}\nall that kmemleak found is in {dir}/leaks.log"
        )));
    }
    let console_tail = || tail(&console, 25);
    if let Ended::NotUp = ended {
        return Err(Error::Vm(format!(
            "the guest did not come up within {} s and was killed. Its console ended with:\n{}\n{}\nif the machine is \
             only slow, allow more with --boot-timeout; all logs are in {dir}",
            machine.boot_timeout,
            console_tail(),
            tail(&run.read("setup.log"), 10),
        )));
    }
    let failed = run.read("failed");
    if !failed.is_empty() {
        return Err(Error::Vm(format!(
            "{}:\n{}\nthe kernel's messages are in {dir}/dmesg.log",
            failed.trim_end(),
            tail(&run.read("setup.log"), 25),
        )));
    }
    let overran = format!(
        "the command was still running after {} s (--timeout) and was stopped",
        machine.timeout
    );
    if let Ended::Hung = ended {
        return Err(Error::TimedOut(format!(
            "{overran}; the guest had stopped answering and was killed. Its console ended with:\n{}",
            console_tail()
        )));
    }
    if let Ok(status) = run.read("status").trim().parse::<u8>() {
        if run.read("overran").is_empty() {
            return Ok(status);
        }
        return Err(Error::TimedOut(format!(
            "{overran}. What was blocked in the kernel then is at the end of {dir}/dmesg.log"
        )));
    }
    let when = match ended {
        Ended::ByItself(status) if !run.path("up").exists() => {
            format!("the guest did not come up ({status})")
        }
        _ => "the guest died while the command ran".to_owned(),
    };
    Err(Error::Vm(format!(
        "{when}. Its console ended with:\n{}\nall logs are in {dir}",
        console_tail()
    )))
}

/// The command that boots the guest.
fn virtme(
    python: &Path,
    project: &Project,
    kernel: &Kernel,
    machine: &Machine,
    run: &RunDir,
    kvm: bool,
    ports: usize,
) -> Result<Command, Error> {
    let target = text(&project.target)?;
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=TERM").arg(python);
    command.args([
        "-m",
        "virtme.commands.run",
        "--name",
        "xtask",
        "--mods=auto",
        "--force-9p",
    ]);
    command.arg("--kimg").arg(&kernel.image);
    command.arg("--qemu-bin").arg(run.path("qemu"));
    let cpus = if machine.icount { 1 } else { machine.cpus };
    command.args(["--memory", &machine.memory, "--cpus", &cpus.to_string()]);
    if machine.icount {
        command.args(["-q=-icount", "-q=shift=0"]);
    }
    let script = format!(
        "exec sh {} {}",
        cmd::shell_quote(text(&run.path("guest.sh"))?),
        machine.timeout
    );
    let script = if kernel.is_at_home() {
        command.arg(format!("--rwdir={target}"));
        script
    } else {
        let root = text(&project.root)?;
        command.arg("--root").arg(&kernel.root);
        // virtme-ng mounts what is read-only last, which would hide a target directory inside the repository.
        command.arg(format!("--rodir={root}={root}"));
        command.arg(format!("--rwdir=/mnt={target}"));
        format!("mount --bind /mnt {} && {script}", cmd::shell_quote(target))
    };
    command.arg("--overlay-rwdir=/tmp");
    if !kvm {
        command.arg("--disable-kvm");
        // Where one emulated CPU runs code that the kernel is patching on another, it can meet a breakpoint that is no
        // longer there, and newer kernels patch much while they boot. guest.sh brings up the others.
        command.args(["-a", "maxcpus=1"]);
    }
    // A node without a CPU is nothing that every kernel expects.
    let numa = if cpus > 1 { NUMA_OPTIONS } else { &[] };
    for option in KERNEL_OPTIONS.iter().chain(numa) {
        command.args(["-a", option]);
    }
    command.arg("--show-boot-console");
    command.args(["--script-sh", &script]);
    command.args(["-q=-device", "-q=virtio-serial-pci,id=xtask"]);
    for name in ["stdout", "stderr"].iter().take(ports) {
        let fifo = run.path(name);
        command
            .arg("-q=-chardev")
            .arg(format!("-q=file,id=xtask-{name},path={}", text(&fifo)?));
        command.arg("-q=-device");
        command.arg(format!(
            "-q=virtserialport,bus=xtask.0,name=xtask.{name},chardev=xtask-{name}"
        ));
    }
    command.current_dir(&project.root);
    for name in ["PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"] {
        command.env_remove(name);
    }
    // virtme-ng calls scripts of its own by name, and Debian gives only root the directories with modprobe and depmod.
    let mut path = python.parent().unwrap_or(python).as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path.push(":/usr/sbin:/sbin");
    command.env("PATH", path);
    command.env("TMPDIR", &run.dir);
    // Ctrl-C is for us; the guest's processes go when we do.
    command.process_group(0);
    Ok(command)
}

/// A path as virtme-ng and QEMU can take it.
fn text(path: &Path) -> Result<&str, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+ /.-".contains(c);
    path.to_str().filter(|text| text.chars().all(plain)).ok_or_else(|| {
        Error::Vm(format!(
            "{}: virtme-ng takes only letters, digits, spaces and _+.- in a path; set CARGO_TARGET_DIR to such a one",
            path.display()
        ))
    })
}

/// The script that becomes the command, in the repository's root.
fn command_script(root: &Path, command: &[OsString]) -> Vec<u8> {
    let mut script = Vec::new();
    for (name, value) in env::vars_os() {
        let Some(known) = name.to_str() else { continue };
        if PASSED.contains(&known)
            || PASSED_PREFIXES
                .iter()
                .any(|prefix| known.starts_with(prefix))
        {
            script.extend_from_slice(format!("export {known}=").as_bytes());
            quote(&value, &mut script);
            script.push(b'\n');
        }
    }
    script.extend_from_slice(b"export TMPDIR=/tmp\ncd ");
    quote(root.as_os_str(), &mut script);
    script.extend_from_slice(b" || exit 125\nexec");
    for word in command {
        script.push(b' ');
        quote(word, &mut script);
    }
    script.push(b'\n');
    script
}

/// Appends the word, quoted for a POSIX shell, whatever bytes it is made of.
fn quote(word: &OsStr, script: &mut Vec<u8>) {
    script.push(b'\'');
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => script.extend_from_slice(br"'\''"),
            other => script.push(other),
        }
    }
    script.push(b'\'');
}

/// KVM works where its module for this CPU is; some hosts have a /dev/kvm on which a guest hangs.
pub(crate) fn has_kvm() -> bool {
    let module = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|name| Path::new("/sys/module").join(name).exists());
    module
        && OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

/// The lines of the kernel's log that tell of a fault, the first with what follows it: most often a trace.
fn complaints(messages: &str) -> String {
    // virtme-ng's init writes its own warnings into the kernel's log.
    let complains = |line: &str| {
        COMPLAINTS.iter().any(|complaint| line.contains(complaint))
            && !line.contains("virtme-ng-init:")
    };
    let lines: Vec<_> = messages.lines().map(str::trim_end).collect();
    let Some(first) = lines.iter().position(|line| complains(line)) else {
        return String::new();
    };
    let (trace, rest) = lines[first..].split_at((lines.len() - first).min(COMPLAINT_LINES));
    let rest = rest
        .iter()
        .filter(|line| complains(line))
        .take(COMPLAINT_LINES);
    trace
        .iter()
        .chain(rest)
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Those of the objects kmemleak lists that the driver allocated; the first few.
fn leaks(listed: &str) -> String {
    let mut objects: Vec<Vec<&str>> = Vec::new();
    for line in listed.lines() {
        if line.starts_with("unreferenced object") {
            objects.push(Vec::new());
        }
        if let Some(object) = objects.last_mut() {
            object.push(line);
        }
    }
    objects.retain(|object| object.iter().any(|line| line.contains("[ummunotify]")));
    objects.truncate(3);
    let lines = objects.concat().into_iter().map(|line| format!("  {line}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().map(str::trim_end).collect();
    let last: Vec<_> = all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect();
    last.join("\n")
}

/// The directory in which host and guest leave each other files.
struct RunDir {
    dir: PathBuf,
}

impl RunDir {
    /// Makes a new one and removes the oldest of those whose xtask is gone.
    fn create(project: &Project) -> Result<Self, Error> {
        let runs = project.own_dir().join("runs");
        fs::create_dir_all(&runs).at(&runs)?;
        let mut old: Vec<_> = fs::read_dir(&runs)
            .at(&runs)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        old.sort();
        old.truncate(old.len().saturating_sub(RUNS_KEPT - 1));
        for dir in old {
            let pid = dir.extension().unwrap_or_default();
            if !Path::new("/proc").join(pid).exists() {
                // Another xtask may be at the same thing.
                let _ = fs::remove_dir_all(&dir);
            }
        }
        let since_epoch = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let dir = runs.join(format!(
            "{}.{}",
            since_epoch.as_millis(),
            std::process::id()
        ));
        fs::create_dir(&dir).at(&dir)?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        fs::write(self.path(name), content).at(self.path(name))
    }

    /// The file's text; none if it is not there.
    fn read(&self, name: &str) -> String {
        let content = fs::read(self.path(name)).unwrap_or_default();
        String::from_utf8_lossy(&content).into_owned()
    }
}

/// Copies what QEMU writes into a FIFO to where it belongs, as it comes.
struct Copier {
    fifo: PathBuf,
    thread: JoinHandle<()>,
}

impl Copier {
    fn start(fifo: PathBuf, mut to: Box<dyn Write + Send>) -> Result<Self, Error> {
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(io::Error::from)
            .at(&fifo)?;
        let from = fifo.clone();
        let thread = thread::spawn(move || {
            let Ok(mut from) = File::open(from) else {
                return;
            };
            let mut buffer = vec![0; 1 << 16];
            let mut wanted = true;
            loop {
                match from.read(&mut buffer) {
                    Ok(0) => return,
                    // Nobody may be listening any more; the guest must not block on that.
                    Ok(n) if wanted => {
                        wanted = to.write_all(&buffer[..n]).and_then(|()| to.flush()).is_ok();
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Self { fifo, thread })
    }

    /// Waits until everything written has been copied. QEMU must be gone.
    fn finish(self) {
        // If QEMU never came to open the FIFO, the thread still waits for a writer; opening for both never blocks.
        drop(OpenOptions::new().read(true).write(true).open(&self.fifo));
        let _ = self.thread.join();
        let _ = fs::remove_file(&self.fifo);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_script_hands_over_any_bytes() {
        let word = OsStr::from_bytes(b"it's \xff\n\"$x`");
        let words = ["printf", "%s"]
            .map(OsString::from)
            .into_iter()
            .chain([word.to_owned()]);
        let script = command_script(Path::new("/"), &words.collect::<Vec<_>>());
        let output =
            cmd::output(Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script))).unwrap();
        assert_eq!(output.stdout, word.as_bytes());
    }

    #[test]
    fn a_warning_in_the_kernels_log_is_a_complaint() {
        let log = "[1.0] lo: up\n[2.0] WARNING: CPU: 0 PID: 1 at x.c:3\n[2.1] RIP: f+0x1\n";
        assert_eq!(
            complaints(log),
            "  [2.0] WARNING: CPU: 0 PID: 1 at x.c:3\n  [2.1] RIP: f+0x1"
        );
        assert_eq!(
            complaints("[0.1] ummunotify: loading out-of-tree module taints kernel.\n"),
            ""
        );
    }

    #[test]
    fn a_leak_is_the_drivers_if_it_allocated_it() {
        let object = |function: &str| {
            format!("unreferenced object 0xffff (size 64):\n  backtrace:\n    {function}\n")
        };
        let others = object("[<0>] rxe_create_cq+0x1/0x2 [rdma_rxe]");
        let ours = object("[<0>] ummunotify_open+0x1/0x2 [ummunotify]");
        assert_eq!(leaks(&others), "");
        let found = leaks(&(others + &ours));
        assert!(
            found.contains("ummunotify_open") && !found.contains("rxe"),
            "{found}"
        );
    }
}
