//! `regcache repro --watch`: shows the counts of a naive cache and of regcache while both work.
//!
//! On a terminal, each table replaces the table before. Otherwise the tables follow one another,
//! separated by empty lines.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use regcache::monitor::auto;
use regcache_repro::{Frame, NeverReports, Uring, watch};

use crate::Failure;
use crate::repro::NOT_HERE;

/// The time between two tables.
const INTERVAL: Duration = Duration::from_millis(200);

pub(crate) fn run(seconds: u64) -> Result<u8, Failure> {
    if let Err(error) = Uring::new(NeverReports) {
        println!("no io_uring here: {error}");
        return Ok(NOT_HERE);
    }
    let mut out = io::stdout();
    let replaces = out.is_terminal();
    let mut lines = 0;
    let show = |frame: &Frame| {
        let table = table(frame);
        if replaces && lines > 0 {
            // This sequence moves the cursor to the first line of the last table.
            write!(out, "\x1b[{lines}A")?;
        }
        lines = table.lines().count();
        out.write_all(table.as_bytes())?;
        if !replaces {
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(())
    };
    let worked = watch(auto(), Duration::from_secs(seconds), INTERVAL, show)
        .map_err(|error| Failure::new(1, format!("io_uring: {error}")))?;
    Ok(u8::from(!worked))
}

fn table(frame: &Frame) -> String {
    let (naive, regcache) = (&frame.naive, &frame.regcache);
    let row =
        |name: &str, naive: u64, regcache: u64| format!("{name:<24}{naive:>14}{regcache:>14}\n");
    [
        format!(
            "{:<24}{:>14}{:>14}\n",
            format!("{}, {}", frame.device, frame.monitor),
            "naive cache",
            "regcache"
        ),
        row("pages used and unmapped", frame.rounds, frame.rounds),
        row("lookups", naive.lookups, regcache.lookups),
        row("hits", naive.hits, regcache.hits),
        row("invalidations", naive.invalidations, regcache.invalidations),
        row("stale transfers", naive.stale, regcache.stale),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use regcache_repro::Counts;

    use super::*;

    #[test]
    fn the_table_has_a_column_for_each_cache_and_lines_of_one_width() {
        let counts = |stale| Counts {
            lookups: 40,
            hits: 30,
            invalidations: 9,
            stale,
        };
        let frame = Frame {
            device: "io_uring",
            monitor: "userfaultfd",
            rounds: 10,
            naive: counts(36),
            regcache: counts(0),
        };
        let table = table(&frame);
        assert!(table.lines().all(|line| line.len() == 52), "{table}");
        let last: Vec<_> = table.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["stale", "transfers", "36", "0"]);
    }
}
