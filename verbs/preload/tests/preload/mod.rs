//! Runs programs under the shim, and reads what the shim prints.
#![allow(dead_code, unused_imports, reason = "each suite uses a part")]

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The time limit of a program in seconds. It is long, because some machines are emulated and busy.
const LIMIT: &str = "600";

/// The sanitizer with which the tests and the shim are built. The programs in C are built with it,
/// too.
pub(crate) const SANITIZER: Option<&str> = if cfg!(sanitizer = "address") {
    Some("address")
} else if cfg!(sanitizer = "thread") {
    Some("thread")
} else {
    None
};

/// Returns the path of the shim, which cargo has built next to the tests.
pub(crate) fn shim() -> PathBuf {
    if let Some(other) = env::var_os("REGCACHE_TEST_SHIM") {
        return other.into();
    }
    let here = env::current_exe().unwrap();
    let shim = here.with_file_name("librcpreload.so");
    assert!(shim.exists(), "{} is not there", shim.display());
    shim
}

/// Returns the path of a program that build.rs has compiled.
pub(crate) fn program(name: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("PROGRAMS")).join(name)
}

/// Returns a command that runs under the shim, with a time limit.
pub(crate) fn under_shim(program: impl AsRef<OsStr>) -> Command {
    preloading(&[shim()], program)
}

/// Returns a command that runs with these libraries preloaded, with a time limit.
pub(crate) fn preloading(libraries: &[PathBuf], program: impl AsRef<OsStr>) -> Command {
    let mut command = bounded("env");
    let list: Vec<_> = libraries
        .iter()
        .map(|it| it.display().to_string())
        .collect();
    command
        .arg(format!("LD_PRELOAD={}", list.join(":")))
        .arg(program);
    command
}

/// Returns a command with a time limit.
pub(crate) fn bounded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "10", LIMIT]).arg(program);
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"REGCACHE_") {
            command.env_remove(name);
        }
    }
    command
}

/// The output of a program, and the shim's summaries.
pub(crate) struct Ran {
    pub(crate) output: Output,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The summary of each process that registered memory.
    pub(crate) summaries: Vec<Summary>,
}

/// The line that the shim prints at exit.
#[derive(Debug)]
pub(crate) struct Summary(BTreeMap<String, String>);

impl Summary {
    pub(crate) fn of(line: &str) -> Self {
        let words = line.split([' ', '(', ')']);
        let pairs = words.filter_map(|word| word.split_once('='));
        Self(
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap()
    }
}

/// Fails unless the counts of the summaries together say what became of each registration that was
/// asked for.
pub(crate) fn assert_adds_up(summaries: &[Summary]) {
    let sum = |name: &str| summaries.iter().map(|it| it.number(name)).sum::<u64>();
    let answered = ["cached", "passed_on", "refused"].map(sum);
    assert_eq!(sum("asked"), answered.iter().sum(), "{summaries:?}");
}

/// Runs the command to its end.
pub(crate) fn run(command: &mut Command) -> Ran {
    run_telling(command, |_| ())
}

/// Runs the command to its end, and calls `begun` with the process after the start.
pub(crate) fn run_telling(command: &mut Command, begun: impl FnOnce(&mut Child)) -> Ran {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let summary = format!("summary.{}.{number}", std::process::id());
    let summary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(summary);
    let mut child = command
        .env("REGCACHE_SUMMARY", &summary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    begun(&mut child);
    let output = child.wait_with_output().unwrap();
    let lines = fs::read_to_string(&summary).unwrap_or_default();
    let _ = fs::remove_file(&summary);
    Ran {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        output,
        summaries: lines.lines().map(Summary::of).collect(),
    }
}

impl Ran {
    /// Fails unless the program succeeded.
    pub(crate) fn ok(self) -> Self {
        assert!(
            self.output.status.success(),
            "{}\n{}{}",
            self.output.status,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Returns the only summary. Fails if there are more, or none.
    pub(crate) fn summary(&self) -> &Summary {
        let [summary] = &self.summaries[..] else {
            panic!("{:?}\n{}", self.summaries, self.stderr);
        };
        summary
    }
}

/// Compiles the fake device as the library of that driver, and a program of tests/c that uses the
/// device. The program is also linked with an empty library whose name is `needs`.
pub(crate) fn on_fake_device(
    program: &str,
    driver: &str,
    suite: &str,
    needs: Option<&str>,
) -> PathBuf {
    let code = format!("{program}.c");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{suite}-{driver}"));
    fs::create_dir_all(&directory).unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c");
    let source = |name: &str| sources.join(name).display().to_string();
    let to = |path: &Path| format!("-o{}", path.display());
    let gcc = |arguments: &[String]| {
        let mut gcc = Command::new("gcc");
        gcc.args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
        gcc.args(SANITIZER.map(|name| format!("-fsanitize={name}")));
        let built = gcc.args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{stderr}");
    };
    let library = |file: &str, more: &[String]| {
        let path = directory.join(file);
        let name = format!("-Wl,-soname,{file}");
        let shared = ["-shared", "-fPIC", &name].map(str::to_owned);
        gcc(&[&shared[..], &[to(&path)], more].concat());
        path.display().to_string()
    };
    let map = format!("-Wl,--version-script={}", source("fake-device.map"));
    let fake = [map, source("fake-device.c")];
    let fake = library(&format!("lib{driver}-fake.so"), &fake);
    let program = directory.join(program);
    let path = format!("-Wl,-rpath,{}", directory.display());
    let mut arguments = vec![to(&program), source(&code), fake, path, "-ldl".to_owned()];
    if let Some(file) = needs {
        let nothing = ["-xc", "/dev/null"].map(str::to_owned);
        arguments.extend(["-Wl,--no-as-needed".to_owned(), library(file, &nothing)]);
    }
    gcc(&arguments);
    program
}
