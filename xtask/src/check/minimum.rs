//! Checks that the published crates build with the oldest supported version of Rust.
//!
//! If the toolchain that runs this program has that version, clippy has already built the crates
//! with it. Otherwise rustup runs the oldest version.

use std::path::PathBuf;
use std::process::Command;

use super::Violation;
use crate::cmd;
use crate::error::Error;
use crate::project::Project;
use crate::publish::CRATES;

/// Builds the crates with the version that the manifest states.
pub(crate) fn check(project: &Project) -> Result<Vec<Violation>, Error> {
    let manifest = "Cargo.toml";
    let path = project.root.join(manifest);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let violation = |line: usize, message: String| Violation {
        file: PathBuf::from(manifest),
        line,
        message,
    };
    let Some((line, minimum)) = stated(&text) else {
        return Ok(vec![violation(1, "no rust-version: state one".to_owned())]);
    };
    let said = cmd::read(Command::new("rustc").arg("--version"))?;
    if is_version(&said, minimum) {
        return Ok(Vec::new());
    }
    let mut build = Command::new("rustup");
    build.current_dir(&project.root);
    build.args(["run", minimum, "cargo", "check", "--quiet", "--target-dir"]);
    build.arg(project.own_dir().join("minimum-target"));
    for name in CRATES {
        build.args(["--package", name]);
    }
    // rustup sets these variables for the toolchain that runs this program.
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        build.env_remove(name);
    }
    Ok(match cmd::read(&mut build) {
        Ok(_) => Vec::new(),
        Err(error) => vec![violation(
            line,
            format!(
                "the crates were not built with Rust {minimum}. If it is missing, run rustup toolchain install {minimum}: {error}"
            ),
        )],
    })
}

/// Returns the stated version and its line.
fn stated(manifest: &str) -> Option<(usize, &str)> {
    let mut lines = manifest.lines().enumerate();
    lines.find_map(|(index, line)| {
        let version = line.strip_prefix("rust-version = \"")?.strip_suffix('"')?;
        Some((index + 1, version))
    })
}

/// Returns whether `rustc --version` printed this version, with any patch level.
fn is_version(said: &str, version: &str) -> bool {
    let printed = said.split_whitespace().nth(1).unwrap_or_default();
    let rest = printed.strip_prefix(version);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_and_compared_without_its_patch_level() {
        assert_eq!(stated("[a]\nrust-version = \"1.95\"\n"), Some((2, "1.95")));
        assert_eq!(stated("rust-version.workspace = true\n"), None);
        assert!(is_version("rustc 1.95.0 (5980 2026-04-14)", "1.95"));
        assert!(!is_version("rustc 1.9.0 (5980 2026-04-14)", "1.95"));
        assert!(!is_version("rustc 1.950.0", "1.95"));
    }
}
