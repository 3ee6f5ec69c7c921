//! Runs one cell, or the program that measures a cache, and reads the result.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::process::{Command, Output, Stdio};

use crate::plugins::Plugins;
use crate::program;
use crate::stack::{Change, Monitor, Stack};

/// The time limit of a cell: this many seconds, and one more for each ten messages. The machine is
/// emulated.
const LIMIT: u64 = 120;
const MESSAGES_PER_SECOND: u64 = 10;

/// The exit status of `timeout` for a program that it stopped.
const STOPPED: [i32; 2] = [124, 137];

/// The exit status of a launcher that cannot run on this kernel.
const UNSUPPORTED: i32 = 77;

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

/// The cost of a cache, in nanoseconds of the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The time of a registration that the cache serves, with its deregistration.
    pub hit: u64,
    /// The time of `munmap` for a range that is cached.
    pub change: u64,
}

/// The reason why a cell has no result.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The program could not be started.
    #[error("the program could not be started: {0}")]
    Start(#[from] io::Error),
    /// The program ran longer than its time limit.
    #[error("the program did not end within {limit} s and printed:\n{printed}")]
    TooLong {
        /// The time limit, in seconds.
        limit: u64,
        /// The output of the program.
        printed: String,
    },
    /// The kernel lacks a feature that the launcher needs.
    #[error("this kernel cannot run the program: {0}")]
    Unsupported(String),
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
    let arguments = [change.to_string(), messages.to_string()];
    let summary = env::temp_dir().join(format!("stacks.{}.summary", std::process::id()));
    let mut command = command(stack, monitor, stack.program, limit, plugins);
    command.args(arguments).env("REGCACHE_SUMMARY", &summary);
    let output = command.output()?;
    let summaries = fs::read_to_string(&summary).unwrap_or_default();
    // Only the shim writes a summary.
    let _ = fs::remove_file(&summary);
    match counts(&String::from_utf8_lossy(&output.stdout)) {
        Some(counts) if output.status.success() => Ok(Counts {
            kept: counts.kept.max(hits(&summaries)),
            ..counts
        }),
        _ => Err(failure(&output, limit)),
    }
}

/// Measures the cost of the stack's cache on this monitor, if the stack has a program for it.
///
/// # Errors
///
/// Returns the same errors as [`run`].
pub fn cost(
    stack: &Stack,
    monitor: &Monitor,
    plugins: &Plugins,
) -> Result<Option<Cost>, CellError> {
    let Some(program) = stack.cost else {
        return Ok(None);
    };
    let output = command(stack, monitor, program, LIMIT, plugins).output()?;
    match costs(&String::from_utf8_lossy(&output.stdout)) {
        Some(costs) if output.status.success() => Ok(Some(costs)),
        _ => Err(failure(&output, LIMIT)),
    }
}

/// Returns the command that runs a program of the stack with this monitor.
fn command(stack: &Stack, monitor: &Monitor, name: &str, limit: u64, plugins: &Plugins) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "10", &limit.to_string()]).arg("env");
    // The libraries are preloaded into the stack's program, and not into `timeout`.
    for (variable, value) in (monitor.environment)(plugins) {
        let mut setting = OsString::from(format!("{variable}="));
        setting.push(value);
        command.arg(setting);
    }
    command.args(stack.launcher).arg(program(name));
    command.envs(stack.environment.iter().copied());
    command.stdin(Stdio::null());
    command
}

/// Returns the error of a program that printed no result.
fn failure(output: &Output, limit: u64) -> CellError {
    let printed = [&output.stdout[..], &output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    if output.status.code().is_some_and(|it| STOPPED.contains(&it)) {
        return CellError::TooLong { limit, printed };
    }
    if output.status.code() == Some(UNSUPPORTED) {
        return CellError::Unsupported(printed.trim_end().to_owned());
    }
    CellError::Program {
        status: output.status.to_string(),
        printed,
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

/// Reads the line `hit=H change=C` in the output of a program.
fn costs(printed: &str) -> Option<Cost> {
    let line = printed.lines().find(|line| line.starts_with("hit="))?;
    let (hit, change) = line.strip_prefix("hit=")?.split_once(" change=")?;
    Some(Cost {
        hit: hit.parse().ok()?,
        change: change.parse().ok()?,
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
        let cost = costs("hit=5 change=6\n");
        assert_eq!(cost, Some(Cost { hit: 5, change: 6 }));
        assert_eq!(hits("a hits=3 b\nhits=4\n"), 7);
    }
}
