//! What a lookup costs, beside UCX's registration cache: builds the program `compare` with UCX and runs it.

use std::process::Command;

use crate::cmd;
use crate::error::Error;
use crate::project::{Project, cargo};
use crate::setup;

/// What UCX's cache is linked from, and what counts instructions.
const PACKAGES: &[&str] = &["gcc", "libc6-dev", "libucx-dev", "pkg-config", "valgrind"];

/// How much to measure.
#[derive(clap::Args)]
pub(crate) struct Amount {
    /// A tenth of the measurements: a minute or two
    #[arg(long)]
    quick: bool,
    /// Only the figures whose names begin so, as hit/2threads
    #[arg(value_name = "FIGURE")]
    only: Option<String>,
}

/// Measures; the program prints the table.
pub(crate) fn run(project: &Project, amount: &Amount) -> Result<u8, Error> {
    setup::packages(project, PACKAGES)?;
    let mut build = cargo();
    build.args(["build", "--release", "--package", "regcache-bench"]);
    build.args(["--features", "ucx", "--bins"]);
    cmd::run(&mut build)?;
    let mut compare = Command::new(project.target.join("release/compare"));
    if amount.quick {
        compare.arg("--quick");
    }
    compare.args(&amount.only);
    cmd::run(&mut compare).map(|()| 0)
}
