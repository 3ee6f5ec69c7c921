//! `bench report` and `bench compare`: of files that were measured before.

use std::path::PathBuf;
use std::process::ExitCode;

use regcache_transfer::results::Run;
use regcache_transfer::{Error, compare, report, table};

/// What to make a report of.
#[derive(clap::Args)]
pub(crate) struct Report {
    /// Files that `measure --json` has written
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where the report goes: report.md, report.html, and plots
    #[arg(long, value_name = "DIR", default_value = ".")]
    into: PathBuf,
    /// What the report says that it was made by
    #[arg(long, default_value = "bench report")]
    command: String,
}

/// What to compare.
#[derive(clap::Args)]
pub(crate) struct Compare {
    /// The earlier run
    before: PathBuf,
    /// The later one
    after: PathBuf,
}

pub(crate) fn report(files: &Report) -> Result<ExitCode, Error> {
    let runs = files.runs.iter().map(|path| Run::load(path));
    let runs: Vec<_> = runs.collect::<Result<_, _>>()?;
    report::report(&runs, &files.command, &files.into)?;
    println!("{}", files.into.join("report.html").display());
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn compare(files: &Compare) -> Result<ExitCode, Error> {
    let (before, after) = (Run::load(&files.before)?, Run::load(&files.after)?);
    println!(
        "before: {}\nafter:  {}\n",
        before.machine.line(),
        after.machine.line()
    );
    print!("{}", table::text(&compare::rows(&before, &after)));
    Ok(ExitCode::SUCCESS)
}
