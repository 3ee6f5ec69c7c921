//! Runs one cell and reads its result.

use std::env;
use std::fs;
use std::io;
use std::process::{Command, Stdio};

use crate::plugins::Plugins;
use crate::program;
use crate::stack::{Change, Monitor, Stack};

/// The time limit of a cell: this many seconds, and one more for each ten messages. The machine is
/// emulated.
const LIMIT: u64 = 60;
const MESSAGES_PER_SECOND: u64 = 10;

/// The exit status of `timeout` for a program that it stopped.
const STOPPED: [i32; 2] = [124, 137];

/// The result of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The number of messages with a wrong byte.
    pub wrong: u64,
    /// The number of messages that were checked.
    pub messages: u64,
    /// The number of registrations that a cache served without the device.
    pub kept: u64,
}

/// The reason why a cell has no result.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The program could not be started.
    #[error("the program could not be started: {0}")]
    Start(#[from] io::Error),
    /// The program ran longer than its time limit.
    #[error("the program did not end within {0} s")]
    TooLong(u64),
    /// The program failed, or printed no result.
    #[error("the program ended with {status} and printed:\n{printed}")]
    Program {
        /// The exit status of the program.
        status: String,
        /// The output of the program.
        printed: String,
    },
}

/// Runs the program of the stack while memory changes in this way, with the monitor below the
/// stack's cache.
///
/// # Errors
///
/// Returns an error if the program fails, runs longer than its time limit, or prints no result.
pub fn run(
    stack: &Stack,
    monitor: &Monitor,
    change: Change,
    messages: u64,
    plugins: &Plugins,
) -> Result<Counts, CellError> {
    let limit = LIMIT + messages / MESSAGES_PER_SECOND;
    let mut command = Command::new("timeout");
    command.args(["-k", "10", &limit.to_string()]).arg("env");
    // The libraries are preloaded into the stack's program, and not into `timeout`.
    let environment = (monitor.environment)(plugins);
    for (name, value) in &environment {
        let mut setting = std::ffi::OsString::from(format!("{name}="));
        setting.push(value);
        command.arg(setting);
    }
    command.args(stack.launcher);
    command.arg(program(stack.program));
    command.args([change.to_string(), messages.to_string()]);
    command.envs(stack.environment.iter().copied());
    let summary = env::temp_dir().join(format!("stacks.{}.summary", std::process::id()));
    command.env("REGCACHE_SUMMARY", &summary);
    let output = command.stdin(Stdio::null()).output()?;
    let summaries = fs::read_to_string(&summary).unwrap_or_default();
    // Only the shim writes a summary.
    let _ = fs::remove_file(&summary);
    let stdout = String::from_utf8_lossy(&output.stdout);
    match (output.status.success(), counts(&stdout)) {
        (true, Some(counts)) => Ok(Counts {
            kept: counts.kept.max(hits(&summaries)),
            ..counts
        }),
        _ if output.status.code().is_some_and(|it| STOPPED.contains(&it)) => {
            Err(CellError::TooLong(limit))
        }
        _ => Err(CellError::Program {
            status: output.status.to_string(),
            printed: format!("{stdout}{}", String::from_utf8_lossy(&output.stderr)),
        }),
    }
}

/// Reads the line `wrong=W/M kept=K` in the output of a program.
fn counts(printed: &str) -> Option<Counts> {
    let line = printed.lines().find(|line| line.starts_with("wrong="))?;
    let (wrong, rest) = line.strip_prefix("wrong=")?.split_once('/')?;
    let (messages, kept) = rest.split_once(" kept=")?;
    Some(Counts {
        wrong: wrong.parse().ok()?,
        messages: messages.parse().ok()?,
        kept: kept.parse().ok()?,
    })
}

/// Returns the sum of the hits in the shim's summaries.
fn hits(summaries: &str) -> u64 {
    let words = summaries.split_whitespace();
    words
        .filter_map(|word| word.strip_prefix("hits=")?.parse::<u64>().ok())
        .sum()
}

/// Returns the version of the installed Debian package, without its Debian revision.
///
/// # Errors
///
/// Returns an error if `dpkg-query` fails, for example because the package is not installed.
pub fn version(package: &str) -> io::Result<String> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", package])
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!(
            "the version of {package} is unknown: {}",
            said.trim_end()
        )));
    }
    let version = String::from_utf8_lossy(&output.stdout);
    let upstream = version.split(['-', '+']).next().unwrap_or_default();
    Ok(upstream.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_the_line_that_begins_with_wrong() {
        let expected = Counts {
            wrong: 3,
            messages: 100,
            kept: 7,
        };
        assert_eq!(counts("hello\nwrong=3/100 kept=7\n"), Some(expected));
        assert_eq!(counts("wrong=3\n"), None);
        assert_eq!(counts(""), None);
        assert_eq!(hits("a hits=3 b\nhits=4\n"), 7);
    }
}
