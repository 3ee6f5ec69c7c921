//! Instructions of a hit, counted by callgrind: two runs of the program `lookups` that differ in the
//! number of lookups, less the same for a loop without a cache.

use std::env;
use std::path::Path;
use std::process::Command;

use regcache_bench::figure::{Figure, Limit};

use crate::Result;
use crate::report::Report;

const FEW: u64 = 20_000;
const MANY: u64 = 120_000;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    if !report.wants("instructions") {
        return Ok(());
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("no valgrind: instructions are not counted");
        return Ok(());
    }
    let program = env::current_exe()?.with_file_name("lookups");
    for (entries, limit) in [
        (1, Limit::Value(60.0)),
        (100, Limit::None),
        (10_000, Limit::None),
        (100_000, Limit::Value(110.0)),
    ] {
        let loops = per_lookup(&program, "nothing", entries)?;
        let regcache = per_lookup(&program, "regcache", entries)? - loops;
        let mut figure = Figure::new(
            format!("instructions/hit/{entries}"),
            regcache,
            "instructions",
        );
        if cfg!(feature = "ucx") {
            let ucx = per_lookup(&program, "ucx", entries)? - loops;
            figure.ucx = Some(ucx);
            figure.ratio_ucx = Some(regcache / ucx);
        }
        report.add(figure.limit(limit));
    }
    Ok(())
}

fn per_lookup(program: &Path, cache: &str, entries: u64) -> Result<f64> {
    let few = count(program, cache, entries, FEW)?;
    let many = count(program, cache, entries, MANY)?;
    Ok((many - few) as f64 / (MANY - FEW) as f64)
}

fn count(program: &Path, cache: &str, entries: u64, lookups: u64) -> Result<i64> {
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([cache, &entries.to_string(), &lookups.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    match collected {
        Some(count) if ran.status.success() => Ok(count),
        _ => Err(format!(
            "valgrind {} {cache}: {}\n{said}",
            program.display(),
            ran.status
        )
        .into()),
    }
}
