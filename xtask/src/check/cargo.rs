//! Runs the compiler's own tools: rustfmt, clippy and rustdoc.
//!
//! With `-D warnings`, cargo would stop at the first package with a warning. So clippy and rustdoc
//! run without this option. A step fails if there is a warning, because each warning is reported as
//! a violation.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::Violation;
use crate::cmd;
use crate::error::Error;
use crate::project::{Project, cargo};

/// Checks whether rustfmt would change anything.
pub(crate) fn format(project: &Project) -> Result<Vec<Violation>, Error> {
    has_component(project, "fmt", "rustfmt")?;
    let mut command = cargo();
    command.args(["fmt", "--all", "--", "--check"]);
    command.current_dir(&project.root);
    let output = cmd::output(&mut command)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let found = differences(&said, &project.root);
    if found.is_empty() && !output.status.success() {
        return Err(failed(&command, &String::from_utf8_lossy(&output.stderr)));
    }
    Ok(found)
}

/// Returns a violation for each place in rustfmt's output.
fn differences(said: &str, root: &Path) -> Vec<Violation> {
    let places = said
        .lines()
        .filter_map(|line| line.strip_prefix("Diff in "));
    places
        .filter_map(|place| {
            let (file, line) = place.trim_end_matches(':').rsplit_once(':')?;
            Some(Violation {
                file: relative(Path::new(file), root),
                line: line.parse().ok()?,
                message: "not formatted: run cargo fmt".to_owned(),
            })
        })
        .collect()
}

/// Runs clippy on every target of a plain build.
pub(crate) fn clippy(project: &Project) -> Result<Vec<Violation>, Error> {
    run_clippy(project, &[])
}

/// Runs clippy again with all features. These features also enable the test suites for the virtual
/// machine, and the benchmarks of other libraries.
pub(crate) fn clippy_with_all_features(project: &Project) -> Result<Vec<Violation>, Error> {
    run_clippy(project, &["--all-features"])
}

fn run_clippy(project: &Project, arguments: &[&str]) -> Result<Vec<Violation>, Error> {
    has_component(project, "clippy", "clippy")?;
    let mut command = cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--keep-going"]);
    command.args(arguments);
    warnings(project, &mut command)
}

/// Runs rustdoc on every package, without dependencies.
pub(crate) fn document(project: &Project) -> Result<Vec<Violation>, Error> {
    let mut command = cargo();
    command.args(["doc", "--workspace", "--no-deps", "--keep-going"]);
    warnings(project, &mut command)
}

/// Runs cargo, shows each diagnostic, and returns a violation for each diagnostic.
fn warnings(project: &Project, command: &mut Command) -> Result<Vec<Violation>, Error> {
    command.arg("--message-format=json-diagnostic-rendered-ansi");
    command.current_dir(&project.root);
    eprintln!("xtask: {}", cmd::line(command));
    let output = cmd::output(command)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut found = Vec::new();
    for message in said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        if let Some(violation) = diagnostic(&message, &project.root) {
            eprint!("{}", message["message"]["rendered"].as_str().unwrap_or(""));
            found.push(violation);
        }
    }
    if found.is_empty() && !output.status.success() {
        return Err(failed(command, &String::from_utf8_lossy(&output.stderr)));
    }
    Ok(found)
}

/// Returns the violation that a message of cargo describes. Returns `None` for a summary, because a
/// summary names no place in a file.
fn diagnostic(message: &Value, root: &Path) -> Option<Violation> {
    if message["reason"] != "compiler-message" {
        return None;
    }
    let message = &message["message"];
    let spans = message["spans"].as_array()?;
    let span = spans.iter().find(|it| it["is_primary"] == true)?;
    let code = message["code"]["code"].as_str();
    let code = code.map(|it| format!(" ({it})")).unwrap_or_default();
    Some(Violation {
        file: relative(Path::new(span["file_name"].as_str()?), root),
        line: usize::try_from(span["line_start"].as_u64()?).ok()?,
        message: format!("{}{code}", message["message"].as_str()?),
    })
}

fn relative(path: &Path, root: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_path_buf()
}

fn has_component(project: &Project, subcommand: &str, component: &str) -> Result<(), Error> {
    let mut command = cargo();
    command.args([subcommand, "--version"]);
    if cmd::read(command.current_dir(&project.root)).is_ok() {
        return Ok(());
    }
    Err(Error::SetUp(format!(
        "this toolchain has no {component}. Run this, then try again:\n  rustup component add {component}"
    )))
}

fn failed(command: &Command, said: &str) -> Error {
    Error::Command {
        command: cmd::line(command),
        why: format!("failed\n{}", said.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rustfmts_places_are_read() {
        let said = "Diff in /project/a/src/lib.rs:12:\n-x\n+y\nDiff in /project/b.rs:3:\n";
        let found = differences(said, Path::new("/project"));
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "a/src/lib.rs:12: not formatted: run cargo fmt",
                "b.rs:3: not formatted: run cargo fmt",
            ]
        );
    }

    #[test]
    fn a_warning_is_a_violation_and_a_summary_is_none() {
        let span = json!({"is_primary": true, "file_name": "a.rs", "line_start": 7});
        let warning = json!({
            "reason": "compiler-message",
            "message": {"message": "unused", "code": {"code": "unused_x"}, "spans": [span]},
        });
        let found = diagnostic(&warning, Path::new("/")).unwrap();
        assert_eq!(found.to_string(), "a.rs:7: unused (unused_x)");
        let summary = json!({
            "reason": "compiler-message",
            "message": {"message": "2 warnings emitted", "code": null, "spans": []},
        });
        assert_eq!(diagnostic(&summary, Path::new("/")), None);
        assert_eq!(
            diagnostic(&json!({"reason": "build-finished"}), Path::new("/")),
            None
        );
    }
}
