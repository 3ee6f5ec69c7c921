//! Runs programs and waits until they end. If a program fails, the error contains the command line.

use std::process::{Command, ExitStatus, Output, Stdio};

use crate::error::Error;

/// Runs the command and shows its output. Returns an error unless the command succeeds.
pub(crate) fn run(command: &mut Command) -> Result<(), Error> {
    let status = status(command)?;
    if status.success() {
        return Ok(());
    }
    Err(failed(command, status, ""))
}

/// Runs the command, shows its output, and returns its exit status.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus, Error> {
    let ended = command.stdin(Stdio::null()).status();
    ended.map_err(|source| not_started(command, &source))
}

/// Runs the command and returns its output and status, even if it failed.
pub(crate) fn output(command: &mut Command) -> Result<Output, Error> {
    let ended = command.stdin(Stdio::null()).output();
    ended.map_err(|source| not_started(command, &source))
}

/// Runs the command and returns its stdout. If the command fails, the error contains its stderr.
pub(crate) fn read(command: &mut Command) -> Result<String, Error> {
    let output = output(command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(command, output.status, &said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs the command, shows its stderr, and returns its stdout.
pub(crate) fn read_showing_stderr(command: &mut Command) -> Result<String, Error> {
    read(command.stderr(Stdio::inherit()))
}

/// Removes environment variables that would change a kernel's build. Cargo sets some of these
/// variables. If make runs xtask, make also sets some of them.
pub(crate) fn without_make_settings(command: &mut Command) {
    for name in [
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "ARCH",
        "CROSS_COMPILE",
        "KBUILD_OUTPUT",
        "M",
    ] {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C");
}

/// Returns the command line as a text that a user can type.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words
        .map(|word| shell_quote(&word.to_string_lossy()))
        .collect();
    words.join(" ")
}

/// Returns the word, quoted for a POSIX shell if necessary.
pub(crate) fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+./:=,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn failed(command: &Command, status: ExitStatus, said: &str) -> Error {
    let why = match said.trim_end() {
        "" => status.to_string(),
        said => format!("{status}\n{said}"),
    };
    Error::Command {
        command: line(command),
        why,
    }
}

fn not_started(command: &Command, source: &std::io::Error) -> Error {
    Error::Command {
        command: line(command),
        why: format!("could not be started: {source}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_reaches_the_program_as_it_was() {
        for word in [
            "",
            "plain",
            "two words",
            "it's",
            "a\nb",
            "$HOME `id` \"x\" \\",
        ] {
            let script = format!("printf %s {}", shell_quote(word));
            let printed = read(Command::new("sh").args(["-c", &script])).unwrap();
            assert_eq!(printed, word);
        }
    }

    #[test]
    fn a_failure_names_the_command_line_and_what_it_said() {
        let error =
            read(Command::new("sh").args(["-c", "echo no such luck >&2; exit 3"])).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("sh -c 'echo no such luck >&2; exit 3'"),
            "{message}"
        );
        assert!(
            message.contains("exit status: 3\nno such luck"),
            "{message}"
        );
    }
}
