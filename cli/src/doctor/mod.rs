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

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// The checked item works.
    Good,
    /// The checked item works but could be better, or it does not work but the cache does not need
    /// it.
    Note,
    /// The checked item does not work.
    Missing,
}

/// The result of one check.
#[derive(Debug)]
pub(crate) struct Finding {
    level: Level,
    subject: String,
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
#[derive(Debug)]
struct Part {
    title: &'static str,
    findings: Vec<Finding>,
}

impl Part {
    fn new(title: &'static str, findings: Vec<Finding>) -> Self {
        Self { title, findings }
    }
}

/// Runs all checks. Prints the findings, or only their commands if `commands_only` is true. Returns
/// 0 if registrations are cached on this machine, and 1 otherwise.
pub(crate) fn run(commands_only: bool) -> u8 {
    let files = Files::of_this_machine();
    let monitor = monitors::best();
    let parts = [
        Part::new("Monitors", monitors::look(&files)),
        Part::new("RDMA", devices::look(&files)),
        Part::new("io_uring", devices::look_at_io_uring(&files)),
        Part::new("Limits", limits::look(&files, monitor)),
        Part::new("This installation", vec![shim()]),
    ];
    if commands_only {
        for command in parts
            .iter()
            .flat_map(|part| &part.findings)
            .flat_map(|it| &it.fix)
        {
            println!("{command}");
        }
    } else {
        println!("Linux {}, user {}", files.release(), nix::unistd::geteuid());
        for part in &parts {
            print_part(part);
        }
    }
    let rdma = devices::usable(&parts[1].findings);
    let uring = devices::usable(&parts[2].findings);
    let (verdict, status) = verdict(monitor, rdma, uring);
    if !commands_only {
        println!("\n{verdict}");
    }
    status
}

fn verdict(monitor: Option<&str>, rdma: bool, uring: bool) -> (String, u8) {
    let devices = match (rdma, uring) {
        (true, true) => "an RDMA device and io_uring",
        (true, false) => "an RDMA device",
        (false, true) => "io_uring",
        (false, false) => return ("There is no device to register memory with.".to_owned(), 1),
    };
    match monitor {
        Some(monitor) => (
            format!("Registrations are cached here, for {devices}, on {monitor}."),
            0,
        ),
        None => (
            format!(
                "Registrations for {devices} are not cached here: there is no monitor, so each \
                 lookup registers. That is slow, and never stale."
            ),
            1,
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

fn shim() -> Finding {
    match crate::run::shim(None) {
        Ok(shim) => Finding::good("preload shim", shim.display().to_string()),
        Err(_) => Finding::note(
            "preload shim",
            "not installed with this tool; `regcache run` needs it",
        )
        .fixed_by("cargo xtask install --prefix /usr/local"),
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
        assert_eq!(verdict(Some("ummunotify"), false, false).1, 1);
    }
}
