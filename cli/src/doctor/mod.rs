//! `regcache doctor`: checks whether this machine can cache registrations.
//!
//! Each module checks one area and returns [`Finding`]s. If a finding is a problem that commands
//! can fix, it contains these commands. The commands are for root on Debian, and can be run
//! unchanged. Commands that start with make or cargo work only in the root of the repository.

mod devices;
mod files;
mod libibverbs;
mod limits;
mod monitors;

use files::Files;
use serde::Serialize;

use crate::Failure;

/// The exit status if registrations are cached.
const CACHED: u8 = 0;
/// The exit status if there is a device, but no monitor.
const NO_MONITOR: u8 = 1;
/// The exit status if there is no device. A wrong command line has the status 2.
const NO_DEVICE: u8 = 3;

/// The number of the form of the report for scripts. A field that is added does not change it.
const SCHEMA: u32 = 1;

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A report for people.
    Text,
    /// Only the commands that fix problems.
    Commands,
    /// A report for scripts.
    Json,
}

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// The checked item works.
    #[serde(rename = "ok")]
    Good,
    /// The checked item works but could be better, or it does not work but the cache does not need
    /// it.
    Note,
    /// The checked item does not work.
    Missing,
}

/// The result of one check.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    level: Level,
    subject: String,
    #[serde(rename = "message")]
    says: String,
    /// The commands that fix the problem, in the order in which they must be run.
    fix: Vec<String>,
}

impl Finding {
    fn good(subject: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(Level::Good, subject, says)
    }

    fn note(subject: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(Level::Note, subject, says)
    }

    fn missing(subject: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(Level::Missing, subject, says)
    }

    fn new(level: Level, subject: impl Into<String>, says: impl Into<String>) -> Self {
        Self {
            level,
            subject: subject.into(),
            says: says.into(),
            fix: Vec::new(),
        }
    }

    /// Appends a command to the commands that fix the problem.
    fn fixed_by(mut self, command: impl Into<String>) -> Self {
        self.fix.push(command.into());
        self
    }
}

/// A part of the report: the title of an area, and the findings in this area.
#[derive(Debug, Serialize)]
struct Part {
    #[serde(rename = "area")]
    title: &'static str,
    findings: Vec<Finding>,
}

impl Part {
    fn new(title: &'static str, findings: Vec<Finding>) -> Self {
        Self { title, findings }
    }
}

/// The whole report, in the form for scripts.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    version: &'static str,
    kernel: &'a str,
    uid: u32,
    monitor: Option<&'static str>,
    rdma: bool,
    io_uring: bool,
    status: u8,
    verdict: &'a str,
    parts: &'a [Part],
}

/// Runs all checks, and prints the findings in this form. Returns the exit status.
pub(crate) fn run(form: Form) -> Result<u8, Failure> {
    let files = Files::of_this_machine();
    let monitor = monitors::best();
    let parts = [
        Part::new("Monitors", monitors::look(&files)),
        Part::new("RDMA", devices::look(&files)),
        Part::new("io_uring", devices::look_at_io_uring(&files)),
        Part::new("Limits", limits::look(&files, monitor)),
        Part::new("This installation", vec![shim(&files)]),
    ];
    let rdma = devices::usable(&parts[1].findings);
    let io_uring = devices::usable(&parts[2].findings);
    let (verdict, status) = verdict(monitor, rdma, io_uring);
    match form {
        Form::Commands => {
            let findings = parts.iter().flat_map(|part| &part.findings);
            for command in findings.flat_map(|it| &it.fix) {
                println!("{command}");
            }
        }
        Form::Text => {
            println!("Linux {}, user {}", files.release(), nix::unistd::geteuid());
            for part in &parts {
                print_part(part);
            }
            println!("\n{verdict}");
        }
        Form::Json => {
            let report = Report {
                schema: SCHEMA,
                version: env!("CARGO_PKG_VERSION"),
                kernel: files.release(),
                uid: nix::unistd::geteuid().as_raw(),
                monitor,
                rdma,
                io_uring,
                status,
                verdict: &verdict,
                parts: &parts,
            };
            let text = serde_json::to_string_pretty(&report)
                .map_err(|error| Failure::new(4, format!("cannot write the report: {error}")))?;
            println!("{text}");
        }
    }
    Ok(status)
}

fn verdict(monitor: Option<&str>, rdma: bool, uring: bool) -> (String, u8) {
    let devices = match (rdma, uring) {
        (true, true) => "an RDMA device and io_uring",
        (true, false) => "an RDMA device",
        (false, true) => "io_uring",
        (false, false) => {
            let verdict = "There is no device to register memory with.";
            return (verdict.to_owned(), NO_DEVICE);
        }
    };
    match monitor {
        Some(monitor) => (
            format!("Registrations are cached here, for {devices}, on {monitor}."),
            CACHED,
        ),
        None => (
            format!(
                "Registrations for {devices} are not cached here: there is no monitor, so each \
                 lookup registers. That is slow, and never stale."
            ),
            NO_MONITOR,
        ),
    }
}

fn print_part(part: &Part) {
    println!("\n{}", part.title);
    for finding in &part.findings {
        let level = match finding.level {
            Level::Good => "ok",
            Level::Note => "note",
            Level::Missing => "MISSING",
        };
        println!("  {level:<7}  {}: {}", finding.subject, finding.says);
        for command in &finding.fix {
            println!("{:11}# {command}", "");
        }
    }
}

fn shim(files: &Files) -> Finding {
    match crate::run::shim(None) {
        Ok(shim) => Finding::good("preload shim", shim.display().to_string()),
        Err(_) => Finding::note(
            "preload shim",
            "not installed with this tool; `regcache run` needs it",
        )
        .fixed_by(if files.has_package() {
            "apt-get install --reinstall regcache"
        } else {
            "cargo xtask install --prefix /usr/local"
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_of_a_device_and_a_monitor() {
        assert_eq!(verdict(Some("ummunotify"), true, true).1, 0);
        assert_eq!(verdict(Some("userfaultfd"), false, true).1, 0);
        assert_eq!(verdict(None, true, true).1, 1);
        assert_eq!(verdict(Some("ummunotify"), false, false).1, 3);
    }
}
