//! Checks the licences, versions and origins of all dependencies, with cargo-deny and `deny.toml`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::Violation;
use crate::cmd;
use crate::error::{AtPath, Error};
use crate::project::{Project, cargo};

/// The version of cargo-deny that is installed if it is missing.
const VERSION: &str = "0.20.2";

/// The names of the checks that need no database. The check of advisories is omitted, because it
/// needs a database that cargo-deny fetches with git.
const LISTS: &[&str] = &["licenses", "bans", "sources"];

/// Runs cargo-deny. Installs cargo-deny first if it is missing.
pub(crate) fn check(project: &Project) -> Result<Vec<Violation>, Error> {
    install()?;
    let mut command = deny();
    command.args(["--format", "json", "--locked", "check"]);
    command.args(LISTS).current_dir(&project.root);
    let output = cmd::output(&mut command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let lock = project.root.join("Cargo.lock");
    let lock = fs::read_to_string(&lock).at(&lock)?;
    let found: Vec<_> = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(|message| diagnostic(&message, &lock))
        .collect();
    if found.is_empty() && !output.status.success() {
        return Err(Error::Command {
            command: cmd::line(&command),
            why: format!("{}\n{}", output.status, said.trim_end()),
        });
    }
    Ok(found)
}

fn deny() -> Command {
    let mut command = cargo();
    command.arg("deny");
    command
}

fn install() -> Result<(), Error> {
    if cmd::read(deny().arg("--version")).is_ok() {
        return Ok(());
    }
    eprintln!("xtask: installing cargo-deny {VERSION} with cargo install: a few minutes, once");
    let mut command = cargo();
    // A debug build takes less time than an optimized build, and cargo-deny's speed does not matter
    // here.
    command.args(["install", "--locked", "--debug", "--quiet"]);
    cmd::run(command.arg(format!("cargo-deny@{VERSION}")))
}

/// Returns the violation that a message of cargo-deny reports. The place of the violation is the
/// package's line in Cargo.lock.
fn diagnostic(message: &Value, lock: &str) -> Option<Violation> {
    let fields = &message["fields"];
    if message["type"] != "diagnostic" || fields["severity"] != "error" {
        return None;
    }
    let package = &fields["graphs"][0]["Krate"];
    let place = package["name"].as_str().zip(package["version"].as_str());
    let line = place.and_then(|(name, version)| line_in_lock(lock, name, version));
    let (file, line) = match line {
        Some(line) => ("Cargo.lock", line),
        None => ("deny.toml", 1),
    };
    let package = place.map(|(name, version)| format!("{name} {version}: "));
    Some(Violation {
        file: PathBuf::from(Path::new(file)),
        line,
        message: format!(
            "{}{} ({}): use another package or version, or argue an exception in deny.toml",
            package.unwrap_or_default(),
            fields["message"].as_str().unwrap_or("rejected"),
            fields["code"].as_str().unwrap_or("no code"),
        ),
    })
}

fn line_in_lock(lock: &str, name: &str, version: &str) -> Option<usize> {
    let wanted = format!("name = \"{name}\"\nversion = \"{version}\"\n");
    let at = lock.find(&wanted)?;
    Some(1 + lock[..at].matches('\n').count())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_a_violation_at_the_package_and_a_warning_is_none() {
        let lock = "version = 4\n\n[[package]]\nname = \"x\"\nversion = \"1.0.0\"\n";
        let message = |severity: &str, name: &str| {
            json!({
                "type": "diagnostic",
                "fields": {
                    "severity": severity,
                    "code": "rejected",
                    "message": "failed to satisfy license requirements",
                    "graphs": [{"Krate": {"name": name, "version": "1.0.0"}}],
                },
            })
        };
        let found = diagnostic(&message("error", "x"), lock).unwrap();
        assert_eq!(
            found.to_string(),
            "Cargo.lock:4: x 1.0.0: failed to satisfy license requirements (rejected): use another \
             package or version, or argue an exception in deny.toml"
        );
        assert_eq!(diagnostic(&message("error", "y"), lock).unwrap().line, 1);
        assert_eq!(diagnostic(&message("warning", "x"), lock), None);
    }
}
