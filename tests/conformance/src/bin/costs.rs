//! Measures the costs of all monitors of this machine in one run.

use clap::Parser;
use regcache::monitor::{Ummunotify, Userfaultfd};
use regcache_repro::{Costed, NeverReports, Result, Uring, monitor_costs};

/// Print the cost of a hit, a miss, a registration and munmap with each monitor of this machine
///
/// Each figure is followed by its ratio to the figure of a naive cache.
#[derive(Parser)]
struct Options {
    /// Take this many samples of each cost
    #[arg(long, default_value_t = 2000)]
    times: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut columns: Vec<(&str, Box<dyn Costed>)> =
        vec![("nothing checked", Box::new(Uring::new(NeverReports)?))];
    match Userfaultfd::open() {
        Ok(strict) => {
            // SAFETY: only this thread looks memory up, so no lookup can come between an unmap and
            // its event.
            let racy = unsafe { Userfaultfd::open_racy() }?;
            columns.push(("userfaultfd, events alone", Box::new(Uring::new(racy)?)));
            columns.push(("userfaultfd", Box::new(Uring::new(strict)?)));
        }
        Err(error) => eprintln!("costs: {error}"),
    }
    match Ummunotify::open() {
        Ok(driver) => columns.push(("ummunotify", Box::new(Uring::new(driver)?))),
        Err(error) => eprintln!("costs: {error}"),
    }
    let columns: Vec<_> = columns
        .iter()
        .map(|(name, cache)| (*name, cache.as_ref()))
        .collect();
    monitor_costs(&columns, options.times)
}
