//! Vendors the crates that the packages are built from, and describes their copyright.
//!
//! `cargo vendor` vendors every crate in Cargo.lock. Most of these crates serve tests, benchmarks
//! and other platforms. cargo needs the manifest of each of them, but not the code. So the code of
//! the crates that the build does not use is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::project::{array, cargo, text};

/// The packages of the workspace whose products are in the Debian packages.
pub(crate) const PRODUCTS: &[&str] = &[
    "regcache-capi",
    "regcache-cli",
    "regcache-repro-rdma",
    "regcache-preload",
    "regcache-fi",
    "regcache-ucx",
];

/// The names of licences in a manifest, and their names in `debian/copyright`. That file has the
/// text of each of these licences.
const LICENCES: &[(&str, &str)] = &[
    (
        "Apache-2.0 WITH LLVM-exception",
        "Apache-2.0 with LLVM exception",
    ),
    ("Apache-2.0", "Apache-2.0"),
    ("BSD-3-Clause", "BSD-3-clause"),
    ("ISC", "ISC"),
    ("MIT", "Expat"),
    ("Unicode-3.0", "Unicode-3.0"),
    ("Unlicense", "Unlicense"),
];

/// The crates that `debian/patches` changes, and the changed files. cargo does not check these
/// files.
const PATCHED: &[(&str, &str)] = &[("bindgen-0.59.2", "src/clang.rs")];

/// Puts the crates into `vendor` in the tree. Returns the paragraphs about these crates for
/// `debian/copyright`.
pub(crate) fn vendor(tree: &Path) -> Result<String, Error> {
    let mut vendor = cargo();
    vendor.current_dir(tree);
    vendor.args([
        "vendor",
        "--locked",
        "--quiet",
        "--versioned-dirs",
        "vendor",
    ]);
    cmd::read(&mut vendor)?;
    let mut metadata = cargo();
    metadata.current_dir(tree);
    metadata.args([
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]);
    let printed = cmd::read(&mut metadata)?;
    let metadata: Value = serde_json::from_str(&printed).map_err(|error| Error::Unexpected {
        command: cmd::line(&metadata),
        what: error.to_string(),
    })?;
    let used = used(&metadata);
    let dir = tree.join("vendor");
    for entry in fs::read_dir(&dir).at(&dir)? {
        let path = entry.at(&dir)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if used.contains_key(&*name) {
            remove_binaries(&path)?;
            if let Some((_, patched)) = PATCHED.iter().find(|(dir, _)| *dir == name) {
                list_files(&path, |file| file != *patched)?;
            }
        } else {
            remove_code(&path)?;
        }
    }
    let mut text = String::new();
    for (name, package) in &used {
        text += &paragraph(name, package, &dir.join(name))?;
        text.push('\n');
    }
    text += "Files: vendor/*\nCopyright: the authors that the manifests name\nLicense: Expat or Apache-2.0\n\
             Comment:\n Only the manifests of these crates are in the source package. No program is built from\n them.\n";
    Ok(files_in_order(&text))
}

/// Moves the last paragraph to the front, because a later paragraph takes precedence.
fn files_in_order(text: &str) -> String {
    let mut paragraphs: Vec<_> = text.trim_end().split("\n\n").collect();
    paragraphs.rotate_right(1);
    paragraphs.join("\n\n") + "\n"
}

/// Returns the crates from which the products are built, by the names of their directories in
/// `vendor`. Dependencies of tests do not count.
fn used(metadata: &Value) -> BTreeMap<String, &Value> {
    let by_id = |list| -> BTreeMap<_, _> { array(list).map(|it| (text(&it["id"]), it)).collect() };
    let packages = by_id(&metadata["packages"]);
    let nodes = by_id(&metadata["resolve"]["nodes"]);
    let is_product = |it: &&Value| it["source"].is_null() && PRODUCTS.contains(&text(&it["name"]));
    let products = packages.values().copied().filter(is_product);
    let mut todo: Vec<_> = products.map(|it| text(&it["id"]).to_owned()).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let node = nodes.get(id.as_str()).copied().unwrap_or(&Value::Null);
        for dependency in array(&node["deps"]) {
            if array(&dependency["dep_kinds"]).any(|it| it["kind"] != "dev") {
                todo.push(text(&dependency["pkg"]).to_owned());
            }
        }
    }
    let found = seen.iter().filter_map(|id| packages.get(id.as_str()));
    let vendored = found.filter(|it| !it["source"].is_null());
    let name = |it: &Value| format!("{}-{}", text(&it["name"]), text(&it["version"]));
    vendored.map(|it| (name(it), *it)).collect()
}

/// Removes all files of a vendored crate but its manifest. An empty file takes the place of the
/// library, because cargo refuses a manifest without targets.
fn remove_code(dir: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(dir).at(dir)? {
        let path = entry.at(dir)?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path).at(&path)?;
        } else if path
            .file_name()
            .is_none_or(|name| name != "Cargo.toml" && name != ".cargo-checksum.json")
        {
            fs::remove_file(&path).at(&path)?;
        }
    }
    list_files(dir, |_| false)?;
    let src = dir.join("src");
    fs::create_dir(&src).at(&src)?;
    fs::write(src.join("lib.rs"), "").at(&src)
}

/// Removes the libraries for Windows, which some crates contain for their tests. A source package
/// should contain no binaries.
fn remove_binaries(dir: &Path) -> Result<(), Error> {
    let is_binary = |file: &str| file.ends_with(".dll");
    for file in list_files(dir, |file| !is_binary(file))? {
        let path = dir.join(file);
        fs::remove_file(&path).at(&path)?;
    }
    Ok(())
}

/// Keeps those files in the crate's list of checksums for which `keep` returns true. Returns the
/// other files. cargo checks only the files in the list.
fn list_files(dir: &Path, keep: impl Fn(&str) -> bool) -> Result<Vec<String>, Error> {
    let path = dir.join(".cargo-checksum.json");
    let listed = fs::read_to_string(&path).at(&path)?;
    let mut listed: Value = serde_json::from_str(&listed).map_err(|error| Error::Unexpected {
        command: "cargo vendor".to_owned(),
        what: format!("{}: {error}", path.display()),
    })?;
    let mut removed = Vec::new();
    if let Some(files) = listed["files"].as_object_mut() {
        files.retain(|file, _| {
            let keeps = keep(file);
            if !keeps {
                removed.push(file.clone());
            }
            keeps
        });
    }
    fs::write(&path, listed.to_string()).at(&path)?;
    Ok(removed)
}

/// Returns the paragraph about one crate.
fn paragraph(name: &str, package: &Value, dir: &Path) -> Result<String, Error> {
    let copyright = copyright(dir)?;
    let mut lines = copyright.into_iter();
    let first = lines.next().unwrap_or_else(|| {
        let authors: Vec<_> = array(&package["authors"]).map(text).collect();
        match authors.as_slice() {
            [] => format!("the contributors of {}", text(&package["name"])),
            some => some.join(", "),
        }
    });
    let mut paragraph = format!("Files: vendor/{name}/*\nCopyright: {first}\n");
    for line in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(paragraph, "           {line}");
    }
    let licence = match package["license"].as_str() {
        Some(licence) => licence.to_owned(),
        None => licence_of_file(package, dir)?,
    };
    let licence = in_debian(&licence).ok_or_else(|| {
        Error::SetUp(format!(
            "{name} has the licence {licence:?}, whose text is not in packaging/debian/copyright: add the text there, and the name in xtask/src/package/crates.rs"
        ))
    })?;
    let _ = writeln!(paragraph, "License: {licence}");
    Ok(paragraph)
}

/// Determines the licence of a crate whose manifest names only a file.
fn licence_of_file(package: &Value, dir: &Path) -> Result<String, Error> {
    let file = dir.join(text(&package["license_file"]));
    let said = fs::read_to_string(&file).at(&file)?;
    Ok(match said.lines().next().map(str::trim) {
        Some("MIT License") => "MIT".to_owned(),
        other => other.unwrap_or_default().to_owned(),
    })
}

/// Translates a licence expression. Returns `None` if it contains an unknown licence.
fn in_debian(expression: &str) -> Option<String> {
    // The conjunction binds weaker than the alternative in all expressions with parentheses.
    let expression = expression.replace('/', " OR ");
    let all = expression.split(" AND ").map(|part| {
        let part = part.trim_matches(['(', ')', ' ']);
        let any = part.split(" OR ").map(|name| {
            let name = name.trim();
            let found = LICENCES.iter().find(|(spdx, _)| *spdx == name)?;
            Some(found.1)
        });
        any.collect::<Option<Vec<_>>>()
            .map(|names| names.join(" or "))
    });
    let all: Vec<_> = all.collect::<Option<_>>()?;
    Some(all.join(", and "))
}

/// Returns the copyright notices in the crate's licence files.
fn copyright(dir: &Path) -> Result<Vec<String>, Error> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let path = entry.at(dir)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_licence = ["LICEN", "COPY", "NOTICE", "UNLICEN"]
            .iter()
            .any(|start| name.to_uppercase().starts_with(start));
        if is_licence && path.is_file() {
            let said = fs::read(&path).at(&path)?;
            found.extend(notices(&String::from_utf8_lossy(&said)));
        }
    }
    Ok(found.into_iter().collect())
}

/// Returns the owners and years in the notices of a licence file. The Apache License itself has
/// lines that begin with the word, and these lines are skipped.
fn notices(said: &str) -> Vec<String> {
    let is_year = |line: &str| line.starts_with(|c: char| c.is_ascii_digit());
    let lines = said.lines().filter_map(|line| {
        let line = line.trim().strip_prefix("Copyright")?;
        let marked = line.trim_start();
        let rest = ["(c)", "(C)", "©"]
            .iter()
            .find_map(|mark| marked.strip_prefix(mark));
        let owner = rest.unwrap_or(marked).trim();
        (rest.is_some() || is_year(owner)).then(|| owner.trim_end_matches('.').to_owned())
    });
    lines
        .filter(|it| !it.is_empty() && !it.starts_with("[yyyy]"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_licence_is_translated_and_an_unknown_one_refused() {
        let known = [
            ("MIT OR Apache-2.0", "Expat or Apache-2.0"),
            ("MIT/Apache-2.0", "Expat or Apache-2.0"),
            (
                "(MIT OR Apache-2.0) AND Unicode-3.0",
                "Expat or Apache-2.0, and Unicode-3.0",
            ),
            (
                "Apache-2.0 WITH LLVM-exception OR MIT",
                "Apache-2.0 with LLVM exception or Expat",
            ),
        ];
        for (spdx, debian) in known {
            assert_eq!(in_debian(spdx).as_deref(), Some(debian));
        }
        assert_eq!(in_debian("MIT OR GPL-3.0"), None);
    }

    #[test]
    fn a_notice_is_found_and_the_text_of_the_licence_is_not() {
        let said = "MIT License\n\nCopyright (c) 2019 A. Author.\nCopyright 2020 B\n   Copyright [yyyy] [name of copyright owner]\n\
                    copyright license to reproduce\nCopyrights are retained.\n";
        assert_eq!(notices(said), ["2019 A. Author", "2020 B"]);
    }

    #[test]
    fn a_dependency_of_the_build_is_used_and_one_of_the_tests_is_not() {
        let package = |name: &str, source: Value| json!({"id": name, "name": name, "version": "1.0.0", "source": source});
        let dependency =
            |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("regcache-cli", Value::Null),
                package("linked", json!("registry")),
                package("building", json!("registry")),
                package("testing", json!("registry")),
            ],
            "resolve": {"nodes": [
                {"id": "regcache-cli", "deps": [dependency("linked", Value::Null), dependency("testing", json!("dev"))]},
                {"id": "linked", "deps": [dependency("building", json!("build"))]},
            ]},
        });
        let used = used(&metadata);
        let names: Vec<_> = used.keys().map(String::as_str).collect();
        assert_eq!(names, ["building-1.0.0", "linked-1.0.0"]);
    }
}
