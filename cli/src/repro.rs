//! `regcache repro`: reproduces the bug on this machine, and shows that the cache prevents it.

use std::fs;
use std::process::Command;

use regcache::monitor::auto;
use regcache_repro::{NeverReports, Uring, demonstrate};

use crate::{Failure, installed};

/// The name of the program that shows the bug with an RDMA device. That program needs libibverbs.
/// It is separate, because this tool must also run on a machine without libibverbs.
const RDMA: &str = "reuse";

/// The exit status if this machine has neither io_uring nor an RDMA device.
pub(crate) const NOT_HERE: u8 = 77;

pub(crate) fn run(rounds: u32) -> Result<u8, Failure> {
    let mut worked = Vec::new();
    match Uring::new(NeverReports) {
        Ok(_) => {
            let shown = demonstrate(auto(), rounds);
            worked.push(shown.map_err(|error| {
                Failure::new(
                    1,
                    format!("io_uring: {error}; `regcache doctor` checks the limits"),
                )
            })?);
        }
        Err(error) => println!("no io_uring here: {error}"),
    }
    let devices = fs::read_dir("/sys/class/infiniband").map(Iterator::count);
    if devices.unwrap_or(0) == 0 {
        println!("no RDMA device here");
    } else {
        worked.push(by_rdma(rounds)?);
    }
    Ok(match worked.as_slice() {
        [] => NOT_HERE,
        all => u8::from(!all.iter().all(|it| *it)),
    })
}

fn by_rdma(rounds: u32) -> Result<bool, Failure> {
    let program = installed::find(&["libexec/regcache"], RDMA).map_err(|places| {
        let places: Vec<_> = places.iter().map(|it| it.display().to_string()).collect();
        let places = places.join(" or ");
        Failure::new(
            1,
            format!(
                "the program that shows the bug with an RDMA device is not at {places}: install \
                 this tool again"
            ),
        )
    })?;
    let mut reuse = Command::new(&program);
    reuse.args(["--monitor", "auto", "--rounds", &rounds.to_string()]);
    match reuse.status() {
        Ok(status) => Ok(status.success()),
        Err(error) => Err(Failure::new(1, format!("{}: {error}", program.display()))),
    }
}
