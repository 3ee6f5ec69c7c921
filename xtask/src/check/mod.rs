//! The gate: checks every rule that a machine can check, and reports all violations at once.
//!
//! A step checks the whole workspace and returns its violations. A step that cannot run returns an
//! error, so the step does not pass.

mod api;
mod cargo;
mod comments;
mod deny;
pub(crate) mod driver;
mod links;
mod markup;
mod minimum;
mod pieces;
mod prose;
mod tree;
mod width;

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use crate::bench;
use crate::error::Error;
use crate::project::Project;
use crate::setup;
use crate::stacks;

/// A place that breaks a rule, and the remedy.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// The file, relative to the repository's root.
    pub(crate) file: PathBuf,
    /// The line, counted from 1.
    pub(crate) line: usize,
    /// The rule that is broken, and the remedy.
    pub(crate) message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            message,
        } = self;
        write!(f, "{}:{line}: {message}", file.display())
    }
}

/// A check of one rule, or by one tool.
pub(crate) struct Step {
    /// The name that reports use.
    pub(crate) name: &'static str,
    run: fn(&Project) -> Result<Vec<Violation>, Error>,
}

/// The steps that need neither a kernel's headers nor its source.
const SOURCE: &[Step] = &[
    Step {
        name: "check: comment width",
        run: width::check,
    },
    Step {
        name: "check: prose",
        run: prose::check,
    },
    Step {
        name: "check: links",
        run: links::check,
    },
    Step {
        name: "check: rustfmt",
        run: cargo::format,
    },
    Step {
        name: "check: cargo deny",
        run: deny::check,
    },
    Step {
        name: "check: clippy",
        run: cargo::clippy,
    },
    Step {
        name: "check: clippy, all features",
        run: cargo::clippy_with_all_features,
    },
    Step {
        name: "check: rustdoc",
        run: cargo::document,
    },
    Step {
        name: "check: minimum Rust",
        run: minimum::check,
    },
    Step {
        name: "check: public items",
        run: api::check,
    },
];

/// The steps that need a kernel's headers and source.
const DRIVER: &[Step] = &[
    Step {
        name: "check: sparse",
        run: driver::sparse,
    },
    Step {
        name: "check: checkpatch",
        run: driver::checkpatch,
    },
];

/// The options that select the steps to run.
#[derive(clap::Args)]
pub(crate) struct Scope {
    /// Skip sparse and checkpatch, which need the kernel's headers and source
    #[arg(long)]
    pub(crate) host_only: bool,
}

impl Scope {
    /// Returns the steps in the order in which they run. The fastest steps come first.
    pub(crate) fn steps(&self) -> impl Iterator<Item = &'static Step> {
        let driver = if self.host_only { &[] } else { DRIVER };
        SOURCE.iter().chain(driver)
    }

    /// Returns the Debian packages that the steps need.
    pub(crate) fn packages(&self) -> Vec<&'static str> {
        // With all features, the benchmarks link the libraries that they compare with regcache.
        let mut needed = [
            setup::BUILD,
            bench::PACKAGES,
            bench::PEERS,
            stacks::PACKAGES,
        ]
        .concat();
        if !self.host_only {
            needed.extend([setup::VM, driver::PACKAGES].concat());
        }
        needed
    }
}

impl Step {
    /// Runs the step and prints each violation. If there are violations, returns an error with the
    /// number of violations.
    pub(crate) fn run(&self, project: &Project) -> Result<(), Error> {
        eprintln!("xtask: {}", self.name);
        let mut violations = (self.run)(project)?;
        violations.sort();
        violations.dedup();
        for violation in &violations {
            println!("{violation}");
        }
        match violations.len() {
            0 => Ok(()),
            1 => Err(Error::Check("1 violation".to_owned())),
            many => Err(Error::Check(format!("{many} violations"))),
        }
    }
}

/// Runs all steps, prints a table, and returns 1 if any step failed.
pub(crate) fn run(project: &Project, scope: &Scope) -> Result<u8, Error> {
    setup::packages(project, &scope.packages())?;
    let mut rows = Vec::new();
    for step in scope.steps() {
        let started = Instant::now();
        let verdict = match step.run(project) {
            Ok(()) => "ok".to_owned(),
            Err(Error::Check(count)) => count,
            Err(error) => {
                eprintln!("xtask: {error}");
                "failed: see above".to_owned()
            }
        };
        rows.push((step.name, verdict, started.elapsed().as_secs()));
    }
    println!();
    for (name, verdict, seconds) in &rows {
        println!("{name:28} {seconds:4} s  {verdict}");
    }
    Ok(u8::from(rows.iter().any(|(_, verdict, _)| verdict != "ok")))
}
