//! Each way in which memory changes, with each monitor: what the device read afterwards.

use std::process::ExitCode;

use regcache::monitor::{Monitor, Nothing, Ummunotify, Userfaultfd};
use regcache_conformance::remap::Way;
use regcache_conformance::{NeverReports, Outcome, Result, Uring, reuse, scenarios};

/// A monitor, what it is called, and whether it has to be right.
struct Column {
    name: &'static str,
    is_sound: bool,
    play: fn(&Way) -> Result<Outcome>,
}

fn play<M: Monitor>(monitor: M, way: &Way) -> Result<Outcome> {
    reuse(&Uring::new(monitor)?, way)
}

const COLUMNS: &[Column] = &[
    Column {
        name: "naive",
        is_sound: false,
        play: |way| play(NeverReports, way),
    },
    Column {
        name: "nothing",
        is_sound: true,
        play: |way| play(Nothing, way),
    },
    Column {
        name: "userfaultfd, events alone",
        is_sound: false,
        // SAFETY: the device only reads, from pages that are mapped nowhere.
        play: |way| play(unsafe { Userfaultfd::open_racy() }?, way),
    },
    Column {
        name: "userfaultfd",
        is_sound: true,
        play: |way| play(Userfaultfd::open()?, way),
    },
    Column {
        name: "ummunotify",
        is_sound: true,
        play: |way| play(Ummunotify::open()?, way),
    },
];

/// The one thing that userfaultfd is known not to see: `regcache/src/monitor/userfaultfd/mod.rs`, M1.
fn is_known(column: &Column, way: &Way) -> bool {
    column.name == "userfaultfd" && way.name == "guard_pages_there_and_back"
}

fn main() -> ExitCode {
    let has_driver = Ummunotify::open().is_ok();
    let columns: Vec<_> = COLUMNS
        .iter()
        .filter(|column| has_driver || column.name != "ummunotify")
        .collect();
    let names: Vec<_> = columns.iter().map(|column| column.name).collect();
    println!("| io_uring | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(columns.len()));
    let mut failed = false;
    for way in scenarios() {
        let mut cells = Vec::new();
        for column in &columns {
            cells.push(match (column.play)(way) {
                Ok(Outcome::Fresh) => "ok".to_owned(),
                Ok(Outcome::Uncached) => "uncached".to_owned(),
                Ok(Outcome::Stale) if is_known(column, way) => "STALE (known)".to_owned(),
                Ok(Outcome::Stale) => {
                    failed |= column.is_sound;
                    "STALE".to_owned()
                }
                Err(error) if error.to_string() == "unsupported" => "-".to_owned(),
                Err(error) => {
                    failed = true;
                    format!("failed: {error}")
                }
            });
        }
        println!("| {} | {} |", way.name, cells.join(" | "));
    }
    ExitCode::from(u8::from(failed))
}
