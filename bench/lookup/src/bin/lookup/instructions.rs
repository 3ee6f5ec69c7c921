//! Counts the instructions of a hit. The count is the number of instructions of the program
//! `count-lookups` with a cache, less the number without a cache.

use std::env;
use std::path::Path;

use regcache_bench_lookup::figure::{Figure, Threshold};
use regcache_bench_lookup::{CLibrary, callgrind};

use crate::Result;
use crate::report::Report;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    if !report.wants("instructions") {
        return Ok(());
    }
    if !callgrind::is_installed() {
        eprintln!("lookup: valgrind is not installed, so instructions are not counted");
        return Ok(());
    }
    let program = env::current_exe()?.with_file_name("count-lookups");
    for (entries, threshold) in [
        (1, Threshold::Value(50.0)),
        (100, Threshold::None),
        (10_000, Threshold::None),
        (100_000, Threshold::Value(72.0)),
    ] {
        let name = format!("instructions/hit/{entries}");
        if !report.wants(&name) {
            continue;
        }
        let of = |cache: &str| callgrind::per_operation(&program, &[cache, &entries.to_string()]);
        let loops = of("nothing")?;
        let regcache = of("regcache")? - loops;
        let mut figure = Figure::new(name, regcache, "instructions");
        if cfg!(feature = "ucx") {
            let ucx = of("ucx")? - loops;
            figure.ucx = Some(ucx);
            figure.ratio_ucx = Some(regcache / ucx);
        }
        report.add(figure.threshold(threshold));
    }
    from_c(report, &program)
}

/// Counts the instructions of `regcache_get` and `regcache_put`, without those of the caller.
fn from_c(report: &mut Report, program: &Path) -> Result<()> {
    let name = "instructions/c/hit";
    if !report.wants(name) || !CLibrary::is_built()? {
        return Ok(());
    }
    let functions = ["regcache_get", "regcache_put"];
    let count = callgrind::per_operation_within(program, &["c", "1"], &functions)?;
    let figure = Figure::new(name, count, "instructions");
    report.add(figure.threshold(Threshold::Value(110.0)));
    Ok(())
}
