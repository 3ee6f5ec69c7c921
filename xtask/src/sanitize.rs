//! The tests of this machine under a sanitizer of the compiler.
//!
//! Sanitizers are unstable options of rustc; a stable one accepts them when told so, and ships the runtimes. The
//! standard library stays as it was built, without instrumentation, which AddressSanitizer does not mind.
//! ThreadSanitizer does not see the order that std's compiled code makes: `tsan.supp` has what follows from that.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use crate::cmd;
use crate::error::Error;
use crate::project::{Project, cargo};
use crate::setup;

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub(crate) enum Sanitizer {
    /// Memory errors and leaks
    Address,
    /// Data races
    Thread,
}

impl Sanitizer {
    const fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }
}

/// Runs the tests under this sanitizer, or under each.
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
        println!(
            "sanitize: {}: {}",
            sanitizer.name(),
            if passed { "clean" } else { "not clean" }
        );
        failed |= u8::from(!passed);
    }
    Ok(failed)
}

fn under(project: &Project, sanitizer: Sanitizer) -> Result<Command, Error> {
    let name = sanitizer.name();
    let mut command = cargo();
    // Not xtask: it is neither part of what is shipped nor has it threads or unsafe code.
    command.args(["test", "--workspace", "--exclude", "xtask"]);
    command.args(["--lib", "--bins", "--tests", "--no-fail-fast"]);
    // With a target, build scripts and procedural macros are built without the flags.
    command.args(["--target", &host()?, "--target-dir"]);
    command.arg(project.target.join(format!("sanitize-{name}")));
    let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
    flags.push(format!(
        " -Zsanitizer={name} -Cunsafe-allow-abi-mismatch=sanitizer --cfg sanitizer=\"{name}\""
    ));
    command.env("RUSTFLAGS", flags);
    command.env("RUSTC_BOOTSTRAP", "1");
    command.env("ASAN_OPTIONS", "detect_leaks=1");
    let mut options = OsString::from("halt_on_error=0:die_after_fork=0:suppressions=");
    options.push(project.root.join("xtask/src/tsan.supp"));
    command.env("TSAN_OPTIONS", options);
    Ok(command)
}

/// The compiler's own target.
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
