//! Runs the tests of pyverbs, the Python interface of rdma-core, with the shim and without. Each
//! test must have the same outcome. Debian's package python3-pyverbs has the tests.
//!
//! The tests deregister memory with work outstanding, in any order, and reset and destroy queues
//! that have work. With `REGCACHE_PROGRAMS=all` all modules run, otherwise a part that ends soon.
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use preload::{Summary, assert_adds_up, bounded, run, under_shim};
use regcache_test_support::SecondDevice;

const TESTS: &str = "/usr/share/doc/rdma-core/tests";

/// Debian's Python, for which the package is made.
const PYTHON: &str = "/usr/bin/python3";

/// The modules that run without `REGCACHE_PROGRAMS=all`.
const SOON: &[&str] = &["test_mr", "test_pd"];

/// Modules whose tests are for devices that SoftRoCE is not.
const OTHER_DEVICES: &[&str] = &["test_mlx5", "test_efa", "test_cuda"];

/// The number of attempts at a module. Some tests of pyverbs depend on time, and some use random
/// ports, so the same test may fail once and pass later without the shim, too.
const ATTEMPTS: u32 = 3;

/// Copies the tests, without those for other devices. Returns the directory and the modules.
fn unpack() -> (PathBuf, Vec<String>) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pyverbs");
    let tests = directory.join("tests");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&tests).unwrap();
    let mut modules = Vec::new();
    for entry in fs::read_dir(TESTS).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        if OTHER_DEVICES.iter().any(|start| file.starts_with(start)) {
            continue;
        }
        let name = file.trim_end_matches(".gz");
        let unpacked = Command::new("zcat").arg("-f").arg(&path).output().unwrap();
        assert!(unpacked.status.success(), "{file}");
        fs::write(tests.join(name), unpacked.stdout).unwrap();
        if let Some(module) = name.strip_suffix(".py")
            && module.starts_with("test_")
        {
            modules.push(module.to_owned());
        }
    }
    modules.sort();
    (directory, modules)
}

/// The key of the way in which a module ended that was killed.
const END: &str = "the end";

type Outcomes = BTreeMap<String, String>;

/// The setting with which a module runs. `None` is without the shim.
type How = Option<&'static str>;

/// Runs a module, and returns the outcomes of its tests and the summaries of its processes.
fn outcomes(directory: &Path, module: &str, how: How) -> (Outcomes, Vec<Summary>) {
    let mut command = match how {
        None => bounded(PYTHON),
        Some(_) => under_shim(PYTHON),
    };
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/outcomes.py"))
        .arg(directory)
        .args([SecondDevice::NAME, module]);
    if let Some(remote) = how {
        command.env("REGCACHE_REMOTE", remote);
    }
    let ran = run(&mut command);
    let lines = ran.stdout.lines();
    let ended = lines.filter_map(|line| line.strip_prefix("outcome "));
    let mut outcomes: Outcomes = ended
        .filter_map(|line| line.split_once(' '))
        .map(|(test, outcome)| (test.to_owned(), outcome.to_owned()))
        .collect();
    // A module that is killed has printed no end.
    if !ran.stdout.lines().any(|line| line == "outcome end") {
        let said = format!("{} {}", ran.output.status, ran.stderr);
        outcomes.insert(END.to_owned(), said);
    }
    (outcomes, ran.summaries)
}

/// Returns the tests whose outcomes differ.
fn different(without: &Outcomes, with: &Outcomes) -> Vec<String> {
    let names = without.keys().chain(with.keys());
    let differs = names.filter(|name| without.get(*name) != with.get(*name));
    differs
        .map(|name| format!("{name}: {:?}, {:?}", without.get(name), with.get(name)))
        .collect()
}

#[test]
fn each_test_of_pyverbs_has_the_same_outcome() {
    let _second = SecondDevice::add();
    let (directory, mut modules) = unpack();
    if std::env::var("REGCACHE_PROGRAMS").is_ok_and(|value| value == "all") {
        assert!(modules.len() > SOON.len(), "{modules:?}");
    } else {
        modules.retain(|module| SOON.contains(&module.as_str()));
        assert_eq!(modules.len(), SOON.len());
    }
    let (mut bad, mut passed_in_all) = (Vec::new(), 0);
    for module in &modules {
        for how in ["revoke", "keep"] {
            let mut differences = Vec::new();
            for _ in 0..ATTEMPTS {
                let (without, _) = outcomes(&directory, module, None);
                let (with, summaries) = outcomes(&directory, module, Some(how));
                let sum = |name| summaries.iter().map(|it| it.number(name)).sum::<u64>();
                let passed = with.values().filter(|it| *it == "ok").count();
                passed_in_all += passed;
                assert!(!without.contains_key(END), "{module}: {without:?}");
                println!(
                    "| `{module}` | {how} | {} | {passed} | {} | {} |",
                    with.len(),
                    sum("asked"),
                    sum("made"),
                );
                assert_adds_up(&summaries);
                differences = different(&without, &with);
                if differences.is_empty() {
                    break;
                }
                println!("{module}, {how}: {differences:#?}");
            }
            bad.extend(differences);
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
    // Each module has tests that SoftRoCE passes.
    assert!(passed_in_all >= 2 * modules.len(), "{passed_in_all}");
}
