//! `bench report` and `bench compare`: of files that were measured before.

use std::path::PathBuf;
use std::process::ExitCode;

use regcache_bench_transfer::results::Run;
use regcache_bench_transfer::threshold::judge;
use regcache_bench_transfer::{Error, compare, report, table};

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

/// Ends with the table, and fails if a promise was not kept.
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
        "\n{} promises kept, {} missed",
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
