//! Runs a command in a virtual machine with the driver and an RDMA device, rxe0.
//!
//! The machine boots a Debian kernel or the debug kernel. The root file system of the guest is the
//! root of this machine, or a root with the kernel's own Debian release. The guest can write only
//! the target directory.
//!
//! virtme-ng only starts the machine, and transfers no data. The command's output passes unchanged
//! through two virtio ports, whose host ends are FIFOs. All other data is in the files of a run
//! directory (`target/xtask/runs/*`). `guest.sh` lists these files. So the output and the exit
//! status do not depend on a terminal.
//!
//! The machine cannot outlive this process, even if this process is killed. QEMU and each process
//! between this process and QEMU set a parent-death signal. So the kernel ends each of these
//! processes when its parent dies.

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

/// The machine, and its time limits.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Machine {
    /// Boot this kernel
    #[arg(long, value_name = "SERIES", value_enum, default_value_t = Self::default().kernel)]
    pub(crate) kernel: Series,
    /// Give the guest this much memory, in QEMU's notation
    #[arg(long, default_value_t = Self::default().memory)]
    pub(crate) memory: String,
    /// Give the guest this many CPUs
    #[arg(long, default_value_t = Self::default().cpus)]
    pub(crate) cpus: u16,
    /// Stop the command after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Self::default().timeout)]
    pub(crate) timeout: u64,
    /// Give up if the command has not started after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Self::default().boot_timeout)]
    pub(crate) boot_timeout: u64,
    /// Boot a bare kernel, without the driver and the RDMA device
    #[arg(long)]
    pub(crate) no_driver: bool,
    /// Count instructions with the time stamp counter; this needs emulation and limits the guest to
    /// one CPU
    #[arg(long)]
    pub(crate) icount: bool,
}

impl Default for Machine {
    /// Returns the defaults of the command line.
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

/// The command, and the receivers of its output.
pub(crate) struct Job<'a> {
    /// The program and its arguments.
    pub(crate) command: &'a [OsString],
    /// The receiver of stdout. If `stderr` is `None`, this receiver also gets stderr, in the order
    /// of writing.
    pub(crate) stdout: Box<dyn Write + Send>,
    /// The receiver of stderr, if stdout and stderr are separate.
    pub(crate) stderr: Option<Box<dyn Write + Send>>,
}

/// The number of run directories that are kept. Their files help to analyse a failure.
const RUNS_KEPT: usize = 8;

/// The environment variables that the guest receives. The guest also receives the variables whose
/// names begin with one of `PASSED_PREFIXES`.
const PASSED: &[&str] = &[
    "RUST_BACKTRACE",
    "RUST_LOG",
    "RUST_TEST_THREADS",
    "LANG",
    "TERM",
    "CI",
];
const PASSED_PREFIXES: &[&str] = &["PROPTEST_", "REGCACHE_"];

/// Parts of the messages that the kernel prints about a fault. The message about a soft lockup
/// contains "BUG:" ("watchdog: BUG: …").
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

/// The kernel options for all machines.
///
/// After an oops, the kernel panics, and QEMU exits instead of rebooting. The kernel's log is large
/// enough to keep every message.
///
/// The limits of the watchdogs are long. So the kernel does not report a CPU as stuck if the host
/// did not run this CPU for half a minute.
const KERNEL_OPTIONS: &[&str] = &[
    "oops=panic",
    "panic=-1",
    "loglevel=6",
    "log_buf_len=4M",
    "watchdog_thresh=60",
    "rcupdate.rcu_cpu_stall_timeout=120",
];

/// The kernel options for two NUMA nodes, so that pages can move between nodes. NUMA balancing is
/// off, and only the tests of NUMA balancing switch it on.
const NUMA_OPTIONS: &[&str] = &["numa=fake=2", "numa_balancing=disable"];

/// The number of lines of the kernel's log that are shown, starting at the first complaint. After
/// these lines, at most this number of later complaints is shown.
const COMPLAINT_LINES: usize = 20;

/// Installs missing packages, builds the driver, boots the machine and runs the job. Returns the
/// exit status of the command.
pub(crate) fn run(project: &Project, machine: &Machine, job: Job<'_>) -> Result<u8, Error> {
    setup::packages(project, setup::VM)?;
    let kernel = kernel::find(project, machine.kernel)?;
    run_on(project, &kernel, machine, job)
}

/// Does the same as [`run`], but with the given kernel and its root. The series in `machine` is
/// ignored.
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
    // virtme-ng starts QEMU itself. So virtme-ng gets this script in place of QEMU. The script
    // starts QEMU in such a way that the kernel kills QEMU when virtme-ng dies.
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

/// The way in which the guest ended.
enum Ended {
    /// The guest powered itself off, or virtme-ng could not start it.
    ByItself(ExitStatus),
    /// The guest was killed, because the command did not start within `boot_timeout`.
    NotUp,
    /// The guest was killed, because the command ran longer than `timeout` and the guest did not
    /// stop the command.
    Hung,
}

/// A running guest. Dropping this value kills the guest.
struct Guest {
    child: Child,
}

impl Guest {
    fn wait(mut self, run: &RunDir, machine: &Machine, started: Instant) -> Result<Ended, Error> {
        // At the time limit, the guest itself stops the command, because only the guest can log the
        // blocked tasks. If the guest does not stop the command within the grace period, the guest
        // hangs.
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
        // The kernel kills QEMU when virtme-ng dies. `kill` and `wait` fail only if virtme-ng is
        // already dead, so their errors are ignored.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Determines the result from the files that the guest and its kernel left in the run directory.
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
            "the guest's kernel complained:\n{complaints}\nall messages of the kernel are in {dir} (dmesg.log, console.log)"
        )));
    }
    let leaks = leaks(&run.read("leaks.log"));
    if !leaks.is_empty() {
        return Err(Error::Vm(format!(
            "the driver leaked memory:\n{leaks}\nthe full list of kmemleak is in {dir}/leaks.log"
        )));
    }
    let console_tail = || tail(&console, 25);
    if let Ended::NotUp = ended {
        return Err(Error::Vm(format!(
            "the guest did not come up within {} s and was killed. Its console ended with:\n{}\n{}\nIf this machine is \
             only slow, allow more time with --boot-timeout. All logs are in {dir}",
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
            "{overran}. The tasks that were blocked in the kernel are at the end of {dir}/dmesg.log"
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

/// Returns the command that boots the guest.
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
        // virtme-ng mounts read-only directories last. So the mount of the repository would hide a
        // target directory inside the repository. To prevent this, the target directory is mounted
        // at /mnt, and is bound to its own path afterwards.
        command.arg(format!("--rodir={root}={root}"));
        command.arg(format!("--rwdir=/mnt={target}"));
        format!("mount --bind /mnt {} && {script}", cmd::shell_quote(target))
    };
    command.arg("--overlay-rwdir=/tmp");
    if !kvm {
        command.arg("--disable-kvm");
        // Newer kernels patch much code while they boot, and place breakpoints in code while they
        // patch it. An emulated CPU can still execute a breakpoint that another CPU has already
        // removed. So the guest boots with one CPU, and guest.sh brings up the other CPUs later.
        command.args(["-a", "maxcpus=1"]);
    }
    // Some kernels cannot handle a NUMA node without a CPU, so a machine with one CPU has one node.
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
    // virtme-ng calls its own scripts by name, so the directory of these scripts must be in PATH.
    // virtme-ng also calls modprobe and depmod. On Debian, only root's PATH contains their
    // directories, so these directories are added.
    let mut path = python.parent().unwrap_or(python).as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path.push(":/usr/sbin:/sbin");
    command.env("PATH", path);
    command.env("TMPDIR", &run.dir);
    // The guest's processes have a separate process group, so Ctrl-C reaches only this process.
    // When this process dies, the guest's processes end too.
    command.process_group(0);
    Ok(command)
}

/// Returns the path as a text. Returns an error if virtme-ng or QEMU would not accept the path.
fn text(path: &Path) -> Result<&str, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+ /.-".contains(c);
    path.to_str().filter(|text| text.chars().all(plain)).ok_or_else(|| {
        Error::Vm(format!(
            "{}: virtme-ng accepts only letters, digits, spaces and _+.- in a path. Set CARGO_TARGET_DIR to such a path",
            path.display()
        ))
    })
}

/// Returns the script that executes the command in the repository's root.
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

/// Quotes the word for a POSIX shell and appends it to the script. The word may contain any bytes.
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

/// Returns whether KVM works. Some hosts have /dev/kvm, but a guest hangs on them. So the function
/// also requires that KVM's module for this CPU is loaded.
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

/// Returns the lines of the kernel's log that report a fault. Also returns the lines after the
/// first fault, because they are usually its stack trace.
pub(crate) fn complaints(messages: &str) -> String {
    // virtme-ng's init also writes warnings into the kernel's log. These warnings are not faults of
    // the kernel.
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

/// Returns kmemleak's reports of objects that the driver allocated. Returns at most the first three
/// reports.
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

pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().map(str::trim_end).collect();
    let last: Vec<_> = all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect();
    last.join("\n")
}

/// The directory through which the host and the guest exchange files.
struct RunDir {
    dir: PathBuf,
}

impl RunDir {
    /// Makes a new run directory. Also removes the oldest run directories, if the processes of
    /// xtask that made them have ended.
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
                // Another process of xtask may have removed this directory, so an error is ignored.
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

    /// Returns the file's text, or an empty text if the file is missing.
    fn read(&self, name: &str) -> String {
        let content = fs::read(self.path(name)).unwrap_or_default();
        String::from_utf8_lossy(&content).into_owned()
    }
}

/// A thread that copies QEMU's output from a FIFO to the receiver of the output.
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
                    // If the receiver is closed, the remaining output is discarded, so that the
                    // guest does not block.
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

    /// Waits until all output has been copied. QEMU must have ended before this call.
    fn finish(self) {
        // If QEMU never opened the FIFO, the thread still waits for a writer. This open call
        // provides a writer. The call never blocks, because it opens both directions.
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
