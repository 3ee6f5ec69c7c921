//! Runs this machine's tests under a sanitizer of the compiler.
//!
//! AddressSanitizer works with a standard library that was built without it. A stable compiler
//! contains the runtime of AddressSanitizer. So a stable compiler suffices. The variable
//! `RUSTC_BOOTSTRAP` makes the compiler accept the unstable option `-Zsanitizer`.
//!
//! ThreadSanitizer must see the order that std's locks and channels establish. Otherwise it reports
//! races in correct code. So std is also built with ThreadSanitizer. This build needs a nightly
//! toolchain and std's source.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use crate::cmd;
use crate::error::Error;
use crate::project::{Project, cargo};
use crate::setup;

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

    fn cargo(self) -> Result<Command, Error> {
        match self {
            Self::Address => {
                let mut command = cargo();
                command.env("RUSTC_BOOTSTRAP", "1").arg("test");
                Ok(command)
            }
            Self::Thread => {
                has_std_source()?;
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", "test", "-Zbuild-std"]);
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

/// Runs the tests under the given sanitizer, or under each sanitizer if none is given.
pub(crate) fn run(project: &Project, only: Option<Sanitizer>) -> Result<u8, Error> {
    setup::packages(project, setup::BUILD)?;
    let mut failed = 0;
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        if only.is_some_and(|only| only != sanitizer) {
            continue;
        }
        let mut command = under(project, sanitizer)?;
        eprintln!("xtask: {}", cmd::line(&command));
        let passed = cmd::status(&mut command)?.success();
        let verdict = if passed { "clean" } else { "NOT clean" };
        println!("sanitize: {}: {verdict}", sanitizer.name());
        failed |= u8::from(!passed);
    }
    Ok(failed)
}

fn under(project: &Project, sanitizer: Sanitizer) -> Result<Command, Error> {
    let name = sanitizer.name();
    let mut command = sanitizer.cargo()?;
    // xtask is excluded, because it is not shipped and has no unsafe code.
    command.args(["--workspace", "--exclude", "xtask"]);
    command.args(["--lib", "--bins", "--tests", "--no-fail-fast"]);
    // With `--target`, cargo does not apply the sanitizer's flags to build scripts and procedural
    // macros.
    command.args(["--target", &host()?, "--target-dir"]);
    command.arg(project.target.join(format!("sanitize-{name}")));
    let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
    flags.push(format!(" -Zsanitizer={name} --cfg sanitizer=\"{name}\""));
    command.env("RUSTFLAGS", flags);
    for (variable, ours) in [
        ("ASAN_OPTIONS", "detect_leaks=1"),
        // The children that a test forks must be able to start threads. A test must continue after
        // a race, so that it reports all races.
        ("TSAN_OPTIONS", "die_after_fork=0:halt_on_error=0"),
    ] {
        let mut options = OsString::from(ours);
        if let Some(theirs) = env::var_os(variable) {
            options.push(":");
            options.push(theirs);
        }
        command.env(variable, options);
    }
    Ok(command)
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
