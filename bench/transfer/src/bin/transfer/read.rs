//! `transfer report` and `transfer compare`, which read result files.

use std::path::PathBuf;
use std::process::ExitCode;

use regcache_bench_transfer::results::Run;
use regcache_bench_transfer::threshold::judge;
use regcache_bench_transfer::{Error, compare, report, table};

/// The result files, and the directory into which the report is written.
#[derive(clap::Args)]
pub(crate) struct Report {
    /// Report these files, which `transfer measure --json` has written
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Write report.md, report.html and the plots into this directory
    #[arg(long, value_name = "DIR", default_value = ".")]
    into: PathBuf,
    /// Name this command in the report as the command that made the results
    #[arg(long, default_value = "transfer report")]
    command: String,
}

/// The two result files.
#[derive(clap::Args)]
pub(crate) struct Compare {
    /// Read the earlier run from this file
    before: PathBuf,
    /// Read the later run from this file
    after: PathBuf,
}

/// Writes the report and prints its table. Exits with an error if a threshold is missed.
pub(crate) fn report(files: &Report) -> Result<ExitCode, Error> {
    let runs = files.runs.iter().map(|path| Run::load(path));
    let runs: Vec<_> = runs.collect::<Result<_, _>>()?;
    let written = report::report(&runs, &files.command, &files.into)?;
    print!("{}", table::text(&table::transfers(&runs[0])));
    println!();
    for file in written {
        println!("{}", file.display());
    }
    let verdicts: Vec<_> = runs.iter().flat_map(judge).collect();
    let missed: Vec<_> = verdicts.iter().filter(|verdict| !verdict.met).collect();
    println!(
        "\n{} thresholds met, {} missed",
        verdicts.len() - missed.len(),
        missed.len()
    );
    for verdict in &missed {
        println!("{verdict}");
    }
    Ok(if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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
