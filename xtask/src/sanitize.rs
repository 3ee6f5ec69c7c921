//! Runs tests under a sanitizer of the compiler: this machine's tests, or the suites of libfabric
//! and UCX in the virtual machine.
//!
//! AddressSanitizer works with a standard library that was built without it. A stable compiler
//! contains the runtime of AddressSanitizer. So a stable compiler suffices. The variable
//! `RUSTC_BOOTSTRAP` makes the compiler accept the unstable option `-Zsanitizer`.
//!
//! ThreadSanitizer must see the order that std's locks and channels establish. Otherwise it reports
//! races in correct code. So std is also built with ThreadSanitizer. This build needs a nightly
//! toolchain and std's source.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;

use crate::cmd;
use crate::error::Error;
use crate::project::{Project, cargo};
use crate::setup;
use crate::stacks;
use crate::test;

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub(crate) enum Sanitizer {
    /// Find memory errors and leaks
    Address,
    /// Find data races
    Thread,
}

impl Sanitizer {
    const fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }

    /// Returns the command that runs this subcommand of a cargo whose compiler has the sanitizer.
    fn cargo(self, subcommand: &str) -> Result<Command, Error> {
        match self {
            Self::Address => {
                let mut command = cargo();
                command.env("RUSTC_BOOTSTRAP", "1").arg(subcommand);
                Ok(command)
            }
            Self::Thread => {
                has_std_source()?;
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", subcommand, "-Zbuild-std"]);
                // Cargo has set these variables to the toolchain that runs xtask. They are removed,
                // because the command must use nightly.
                for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
                    command.env_remove(name);
                }
                Ok(command)
            }
        }
    }
}

/// The tests to run, and the sanitizers.
#[derive(clap::Args)]
pub(crate) struct Choice {
    /// Run only this sanitizer
    #[arg(value_enum)]
    sanitizer: Option<Sanitizer>,
    /// Run the suites of libfabric and UCX in the virtual machine instead
    ///
    /// The monitors and the shim are built with the sanitizer, and the stacks are Debian's own.
    #[arg(long)]
    stacks: bool,
}

/// Runs the tests under the given sanitizer, or under each sanitizer if none is given.
pub(crate) fn run(project: &Project, choice: &Choice) -> Result<u8, Error> {
    setup::packages(project, setup::BUILD)?;
    if choice.stacks {
        setup::packages(project, &[setup::VM, stacks::PACKAGES].concat())?;
    }
    let mut failed = 0;
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        if choice.sanitizer.is_some_and(|only| only != sanitizer) {
            continue;
        }
        let passed = if choice.stacks {
            below_stacks(project, sanitizer)?
        } else {
            // A test of this package runs one of its examples.
            let mut examples = under(project, sanitizer, "build")?;
            cmd::run(examples.args(["--package", "regcache-uring", "--examples"]))?;
            let mut command = under(project, sanitizer, "test")?;
            // xtask is excluded, because it is not shipped and has no unsafe code.
            command.args(["--workspace", "--exclude", "xtask"]);
            command.args(["--lib", "--bins", "--tests", "--no-fail-fast"]);
            eprintln!("xtask: {}", cmd::line(&command));
            cmd::status(&mut command)?.success()
        };
        let verdict = if passed { "clean" } else { "NOT clean" };
        println!("sanitize: {}: {verdict}", sanitizer.name());
        failed |= u8::from(!passed);
    }
    Ok(failed)
}

/// The suites of the stacks that load our libraries.
const SUITES: [&str; 3] = ["ucx", "libfabric", "stacks"];

/// The arguments of these suites: the tests that use several threads have this word in their names.
/// Other tests copy a library without its runtime, or map chosen addresses.
const ARGUMENTS: &str = "threads --include-ignored";

/// The packages of the libraries that the suites of the stacks load.
const LIBRARIES: [&str; 3] = ["regcache-fi", "regcache-ucx", "regcache-preload"];

/// Builds our libraries with the sanitizer, and runs the suites of the stacks with these libraries
/// in the virtual machine. The suites, their programs and the stacks are built without it.
fn below_stacks(project: &Project, sanitizer: Sanitizer) -> Result<bool, Error> {
    let mut command = under(project, sanitizer, "build")?;
    command.args(LIBRARIES.map(|package| format!("--package={package}")));
    cmd::run(&mut command)?;
    let libraries = target(project, sanitizer).join(host()?).join("debug");
    let name = OsString::from(sanitizer.name());
    let mut variables: Vec<(&str, &OsStr)> = vec![
        ("REGCACHE_TEST_SANITIZER", &name),
        ("REGCACHE_TEST_LIBRARIES", libraries.as_os_str()),
    ];
    let options = options(ADDRESS_IN_STACKS, THREAD_IN_STACKS);
    variables.extend(SETTINGS.map(|(name, value)| (name, OsStr::new(value))));
    variables.extend(
        options
            .iter()
            .map(|(name, value)| (*name, value.as_os_str())),
    );
    Ok(test::run_of_stacks(project, &SUITES, ARGUMENTS, &variables)? == 0)
}

/// Returns the command that runs the subcommand of cargo with the sanitizer.
fn under(project: &Project, sanitizer: Sanitizer, subcommand: &str) -> Result<Command, Error> {
    let name = sanitizer.name();
    let mut command = sanitizer.cargo(subcommand)?;
    // With `--target`, cargo does not apply the sanitizer's flags to build scripts and procedural
    // macros.
    command.args(["--target", &host()?, "--target-dir"]);
    command.arg(target(project, sanitizer));
    let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
    flags.push(format!(" -Zsanitizer={name} --cfg sanitizer=\"{name}\""));
    command.env("RUSTFLAGS", flags);
    command.envs(options(ADDRESS_IN_OURS, THREAD));
    Ok(command)
}

/// Returns the directory in which cargo builds with the sanitizer.
fn target(project: &Project, sanitizer: Sanitizer) -> PathBuf {
    project
        .target
        .join(format!("sanitize-{}", sanitizer.name()))
}

/// The options of AddressSanitizer in programs that are built with it.
const ADDRESS_IN_OURS: &str = "detect_leaks=1";

/// The options of AddressSanitizer in programs of the stacks. The search for leaks ends with an
/// error of its own in some processes that use UCX. In a forked child it reports the memory of the
/// parent's threads.
const ADDRESS_IN_STACKS: &str = "detect_leaks=0";

/// The options of ThreadSanitizer. The children that a test forks must be able to start threads. A
/// test must continue after a race, so that it reports all races.
const THREAD: &str = "die_after_fork=0:halt_on_error=0";

/// The same in programs of the stacks. ThreadSanitizer does not see their raw system calls, so it
/// would report their use of memory that was unmapped and mapped again.
const THREAD_IN_STACKS: &str = "die_after_fork=0:halt_on_error=0:ignore_noninstrumented_modules=1";

/// Settings of the stacks for their programs. UCX patches madvise. ThreadSanitizer crashes when a
/// thread that ends calls the patch, because the thread's state in the runtime is gone by then.
const SETTINGS: [(&str, &str); 1] = [("UCX_MEM_MMAP_HOOK_MODE", "none")];

/// Returns the variables with the options of the sanitizers: ours, and then those of the user.
fn options(address: &'static str, thread: &'static str) -> [(&'static str, OsString); 2] {
    [("ASAN_OPTIONS", address), ("TSAN_OPTIONS", thread)].map(|(variable, ours)| {
        let mut options = OsString::from(ours);
        if let Some(theirs) = env::var_os(variable) {
            options.push(":");
            options.push(theirs);
        }
        (variable, options)
    })
}

/// Returns the target triple of the host, for which the compiler itself was built.
fn host() -> Result<String, Error> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let mut command = Command::new(rustc);
    let said = cmd::read(command.arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Error::Unexpected {
        command: cmd::line(&command),
        what: "no host".to_owned(),
    })
}

fn has_std_source() -> Result<(), Error> {
    let mut command = Command::new("rustup");
    command.args(["component", "list", "--toolchain", "nightly", "--installed"]);
    if cmd::read(&mut command).is_ok_and(|said| said.lines().any(|line| line == "rust-src")) {
        return Ok(());
    }
    Err(Error::SetUp(
        "ThreadSanitizer needs std's source for a nightly compiler. Run this, then try again:\n  \
         rustup toolchain install nightly --profile minimal --component rust-src"
            .to_owned(),
    ))
}
