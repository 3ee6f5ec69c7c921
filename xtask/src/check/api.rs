//! Checks that the list of the public items of each published crate is up to date.
//!
//! The lists are in `docs/api`. A change of a list shows in a review that a change of the code
//! changes the interface. rustdoc describes the items as JSON. This output is unstable, so the
//! stable compiler is asked to accept unstable options.
//!
//! `REGCACHE_WRITE_API=1 cargo xtask check` writes the lists.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Violation;
use crate::cmd;
use crate::error::{AtPath, Error};
use crate::project::{Project, array, cargo, text};
use crate::publish::CRATES;

/// Compares the list of each crate with the crate.
pub(crate) fn check(project: &Project) -> Result<Vec<Violation>, Error> {
    let mut found = Vec::new();
    for name in CRATES {
        let is = list(&describe(project, name)?);
        let file = PathBuf::from(format!("docs/api/{name}.txt"));
        let path = project.root.join(&file);
        if env::var_os("REGCACHE_WRITE_API").is_some() {
            fs::create_dir_all(project.root.join("docs/api")).at(&path)?;
            fs::write(&path, &is).at(&path)?;
        }
        let listed = fs::read_to_string(&path).unwrap_or_default();
        found.extend(differences(&file, &listed, &is));
    }
    Ok(found)
}

/// Returns a violation for each item that only one of the two lists has.
fn differences(file: &Path, listed: &str, is: &str) -> Vec<Violation> {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (listed.lines().collect(), is.lines().collect());
    let violation = |item: &str, what: &str| Violation {
        file: file.to_path_buf(),
        line: 1 + listed.lines().position(|line| line == item).unwrap_or(0),
        message: format!(
            "{item:?} {what}: if the change is meant, run REGCACHE_WRITE_API=1 cargo xtask check, and describe it in CHANGELOG.md"
        ),
    };
    let gone = old.difference(&new);
    let gone = gone.map(|item| violation(item, "is no longer public"));
    let added = new.difference(&old);
    gone.chain(added.map(|item| violation(item, "is public and not in the list")))
        .collect()
}

/// Returns rustdoc's description of a crate with all features.
fn describe(project: &Project, name: &str) -> Result<Value, Error> {
    let target = project.own_dir().join("api-target");
    let mut rustdoc = cargo();
    rustdoc.current_dir(&project.root);
    rustdoc.args([
        "rustdoc",
        "--quiet",
        "--all-features",
        "--lib",
        "--package",
        name,
    ]);
    rustdoc.arg("--target-dir").arg(&target);
    rustdoc.args(["--", "-Zunstable-options", "--output-format", "json"]);
    rustdoc.env("RUSTC_BOOTSTRAP", "1");
    cmd::run(&mut rustdoc)?;
    let path = target
        .join("doc")
        .join(format!("{}.json", name.replace('-', "_")));
    let text = fs::read_to_string(&path).at(&path)?;
    serde_json::from_str(&text).map_err(|error| Error::Unexpected {
        command: cmd::line(&rustdoc),
        what: error.to_string(),
    })
}

/// Returns the sorted list of the public items, one a line.
fn list(description: &Value) -> String {
    let mut lines = BTreeSet::new();
    let lister = Lister { description };
    if let Some(root) = lister.item(&description["root"]) {
        lister.module(root, text(&root["name"]), &mut lines);
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

struct Lister<'a> {
    description: &'a Value,
}

impl<'a> Lister<'a> {
    fn item(&self, id: &Value) -> Option<&'a Value> {
        let item = &self.description["index"][id.to_string().trim_matches('"')];
        (!item.is_null()).then_some(item)
    }

    fn items(&self, ids: &'a Value) -> impl Iterator<Item = &'a Value> {
        array(ids).filter_map(|id| self.item(id))
    }

    fn module(&self, module: &'a Value, path: &str, lines: &mut BTreeSet<String>) {
        let public = self.items(&module["inner"]["module"]["items"]);
        for item in public.filter(|it| it["visibility"] == "public") {
            let reexport = &item["inner"]["use"];
            if reexport.is_null() {
                self.add(item, path, text(&item["name"]), lines);
            } else if let Some(target) = self.item(&reexport["id"]) {
                self.add(target, path, text(&reexport["name"]), lines);
            } else {
                lines.insert(format!("use {path}::{}", text(&reexport["name"])));
            }
        }
    }

    /// Adds an item, and the public items in it.
    fn add(&self, item: &'a Value, path: &str, name: &str, lines: &mut BTreeSet<String>) {
        let Some((kind, inner)) = item["inner"].as_object().and_then(|it| it.iter().next()) else {
            return;
        };
        let path = format!("{path}::{name}");
        if kind == "module" {
            lines.insert(format!("module {path}"));
            return self.module(item, &path, lines);
        }
        lines.insert(match kind.as_str() {
            "function" => format!("function {path}({})", parameters(inner)),
            kind => format!("{kind} {path}"),
        });
        let fields = &inner["kind"]["plain"]["fields"];
        for field in self.items(fields).filter(|it| it["visibility"] == "public") {
            lines.insert(format!("field {path}::{}", text(&field["name"])));
        }
        for member in self
            .items(&inner["variants"])
            .chain(self.items(&inner["items"]))
        {
            self.add(member, &path, text(&member["name"]), lines);
        }
        for implementation in self.items(&inner["impls"]) {
            self.implementation(&implementation["inner"]["impl"], &path, lines);
        }
    }

    /// Adds the methods of a type, or the name of a trait that the type implements. Implementations
    /// that the compiler or another crate provides are skipped.
    fn implementation(&self, inner: &'a Value, path: &str, lines: &mut BTreeSet<String>) {
        if inner["is_synthetic"] == true || !inner["blanket_impl"].is_null() {
            return;
        }
        if !inner["trait"].is_null() {
            lines.insert(format!("impl {} for {path}", text(&inner["trait"]["path"])));
            return;
        }
        let public = self.items(&inner["items"]);
        for item in public.filter(|it| it["visibility"] == "public") {
            self.add(item, path, text(&item["name"]), lines);
        }
    }
}

/// Returns the names of a function's parameters.
fn parameters(function: &Value) -> String {
    let inputs = array(&function["sig"]["inputs"]);
    let names: Vec<_> = inputs.map(|input| text(&input[0])).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn public_items_are_listed_by_their_paths_and_private_ones_are_not() {
        let description = json!({
            "root": 0,
            "index": {
                "0": {"name": "a", "inner": {"module": {"items": [1, 2, 7]}}},
                "1": {"name": "S", "visibility": "public", "inner": {"struct": {
                    "kind": {"plain": {"fields": [3, 4]}}, "impls": [5],
                }}},
                "2": {"name": "hidden", "visibility": "default", "inner": {"function": {}}},
                "3": {"name": "x", "visibility": "public", "inner": {"struct_field": {}}},
                "4": {"name": "y", "visibility": "default", "inner": {"struct_field": {}}},
                "5": {"inner": {"impl": {"trait": null, "items": [6]}}},
                "6": {"name": "get", "visibility": "public", "inner": {"function": {
                    "sig": {"inputs": [["self", {}], ["len", {}]]},
                }}},
                "7": {"visibility": "public", "inner": {"use": {"name": "Other", "id": 99}}},
            },
        });
        assert_eq!(
            list(&description),
            "field a::S::x\nfunction a::S::get(self, len)\nstruct a::S\nuse a::Other\n"
        );
    }

    #[test]
    fn an_item_that_went_and_one_that_came_are_violations() {
        let found = differences(
            Path::new("x.txt"),
            "struct a::A\nstruct a::B\n",
            "struct a::A\nstruct a::C\n",
        );
        let lines: Vec<_> = found.iter().map(|it| it.line).collect();
        assert_eq!(lines, [2, 1]);
        assert!(
            found[0]
                .message
                .starts_with("\"struct a::B\" is no longer public")
        );
    }
}
