//! Checks the manual pages. troff must print no warning. The pages of the shim and the driver must
//! name all variables and constants that their source defines.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAGES: [&str; 4] = [
    "cli/man/regcache.1",
    "verbs/capi/regcache.3",
    "kernel/Documentation/ummunotify.4",
    "verbs/preload/regcache-preload.7",
];

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(at(path)).unwrap()
}

/// Returns the words of a text that begin with `start` and are longer than `start`.
fn words(text: &str, start: &str) -> BTreeSet<String> {
    text.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'))
        .filter(|word| word.starts_with(start) && word.len() > start.len())
        .map(str::to_owned)
        .collect()
}

#[test]
fn troff_finds_no_mistake() {
    for page in PAGES {
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(at(page));
        let output = groff.output().unwrap();
        assert!(output.status.success(), "{page}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{page}");
    }
}

#[test]
fn every_variable_of_the_shim_is_in_its_page_and_no_other() {
    let source = words(&read("verbs/preload/src/settings.rs"), "REGCACHE_");
    let mut page = words(&read("verbs/preload/regcache-preload.7"), "REGCACHE_");
    // The synopsis uses this name as a placeholder for any variable, so the name is removed.
    page.remove("REGCACHE_NAME");
    assert_eq!(page, source);
    assert!(source.len() >= 6, "{source:?}");
}

#[test]
fn every_name_of_the_drivers_interface_is_in_its_page() {
    let header = read("kernel/include/uapi/linux/ummunotify.h");
    let page = read("kernel/Documentation/ummunotify.4");
    let starts = [
        "UMMUNOTIFY_REGISTER_",
        "UMMUNOTIFY_UNREGISTER_",
        "UMMUNOTIFY_EVENT_",
    ];
    for start in starts {
        let (defined, named) = (words(&header, start), words(&page, start));
        let missing: Vec<_> = defined.difference(&named).collect();
        assert!(missing.is_empty(), "ummunotify.4 lacks {missing:?}");
    }
}
