//! Instructions of a hit: of the program `lookups`, less the same for a loop without a cache.

use std::env;

use regcache_bench::callgrind;
use regcache_bench::figure::{Figure, Limit};

use crate::Result;
use crate::report::Report;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    if !report.wants("instructions") {
        return Ok(());
    }
    if !callgrind::is_there() {
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
        report.add(figure.limit(limit));
    }
    Ok(())
}
