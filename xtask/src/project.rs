//! Finds the workspace with `cargo metadata`: its root, its target directory, and the targets of
//! its packages.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::cmd;
use crate::error::Error;

/// The workspace that contains this xtask.
pub(crate) struct Project {
    /// The root of the repository.
    pub(crate) root: PathBuf,
    /// The target directory of cargo. `CARGO_TARGET_DIR` can set another directory than `target`.
    pub(crate) target: PathBuf,
    metadata: Value,
}

/// A target of a package that is built only with some features.
pub(crate) struct GatedTarget {
    /// The name of the package.
    pub(crate) package: String,
    /// The name of the target.
    pub(crate) name: String,
    /// The path of the target's source file. The path identifies the target, because two targets
    /// may have the same name.
    pub(crate) source: PathBuf,
    /// The directory of the package's manifest.
    pub(crate) package_root: PathBuf,
    /// The features that the target requires.
    pub(crate) features: Vec<String>,
}

impl Project {
    /// Returns the workspace that contains the current directory, as `cargo metadata` describes it.
    pub(crate) fn find() -> Result<Self, Error> {
        let mut command = cargo();
        command.args(["metadata", "--no-deps", "--format-version=1"]);
        let printed = cmd::read(&mut command)?;
        let unexpected = |what: &str| Error::Unexpected {
            command: cmd::line(&command),
            what: what.to_owned(),
        };
        let metadata: Value =
            serde_json::from_str(&printed).map_err(|e| unexpected(&e.to_string()))?;
        let path = |key: &str| {
            metadata[key]
                .as_str()
                .map(PathBuf::from)
                .ok_or_else(|| unexpected(key))
        };
        Ok(Self {
            root: path("workspace_root")?,
            target: path("target_directory")?,
            metadata,
        })
    }

    /// Returns the path of the directory for xtask's own files. This directory is in the target
    /// directory.
    pub(crate) fn own_dir(&self) -> PathBuf {
        self.target.join("xtask")
    }

    /// Returns the test targets of the workspace that have `required-features`.
    pub(crate) fn gated_tests(&self) -> Vec<GatedTarget> {
        let mut found = Vec::new();
        for package in self.packages() {
            let manifest = Path::new(text(&package["manifest_path"]));
            for target in array(&package["targets"]) {
                let features: Vec<_> = array(&target["required-features"])
                    .map(|f| text(f).to_owned())
                    .collect();
                if features.is_empty() || !array(&target["kind"]).any(|k| k == "test") {
                    continue;
                }
                found.push(GatedTarget {
                    package: text(&package["name"]).to_owned(),
                    name: text(&target["name"]).to_owned(),
                    source: PathBuf::from(text(&target["src_path"])),
                    package_root: manifest.parent().unwrap_or(&self.root).to_path_buf(),
                    features,
                });
            }
        }
        found
    }

    /// Returns the version of a package, or `None` if the workspace has no such package.
    pub(crate) fn version_of(&self, package: &str) -> Option<&str> {
        let mut packages = self.packages();
        let found = packages.find(|it| it["name"] == package)?;
        Some(text(&found["version"]))
    }

    fn packages(&self) -> impl Iterator<Item = &Value> {
        array(&self.metadata["packages"])
    }
}

/// Returns a command that runs the cargo that started this xtask.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// Returns the elements of a JSON array. If the value is not an array, returns no elements.
pub(crate) fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Returns the text of a JSON string. If the value is no string, returns an empty text.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
