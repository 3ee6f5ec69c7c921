//! `transfer cost`: measures the cost of registering on this machine, and projects it to faster
//! links.

use std::process::ExitCode;
use std::time::Duration;

use regcache::monitor::auto;
use regcache_bench_transfer::plan::SIZES;
use regcache_bench_transfer::project::{LATENCY_NS, fills, shares};
use regcache_bench_transfer::results::{Machine, Run};
use regcache_bench_transfer::{Error, Uring, Verbs, registration_cost, table};

use crate::measure::{Target, raise_limits};

/// The device to measure, and the latency of the projected transfers.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Target,
    /// Assume that a transfer takes this many nanoseconds in addition to the time for its bytes and
    /// its registration
    #[arg(long, value_name = "NS", default_value_t = LATENCY_NS)]
    latency: f64,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode, Error> {
    raise_limits();
    let each = Duration::from_secs(1);
    let monitor = auto();
    let name = regcache::Monitor::name(&monitor);
    let (kind, device, costs) = if options.place.uring {
        let costs = registration_cost::measure(&Uring::open()?, monitor, &SIZES, each)?;
        ("io_uring", "io_uring".to_owned(), costs)
    } else {
        let verbs = Verbs::open(options.place.device.as_deref())?;
        let device = verbs.pd().context().device().to_owned();
        (
            "rdma",
            device,
            registration_cost::measure(&verbs, monitor, &SIZES, each)?,
        )
    };
    let mut run = Run::new(Machine::here(kind, &device, name));
    run.costs = costs;
    println!("{}\n", run.machine.line());
    print!("{}", table::text(&table::costs(&run)));
    println!(
        "\nShare of a transfer's time that registering and deregistering take, R / (R + L + 8 s / B) with L = {} ns \
         (in brackets, that of a hit):\n",
        options.latency
    );
    print!("{}", table::text(&shares(&run, options.latency)));
    println!(
        "\nShare of the link's rate that one CPU reaches if it registers each buffer, with any number of transfers in \
         flight, min(1, (8 s / B) / R):\n"
    );
    print!("{}", table::text(&fills(&run)));
    Ok(ExitCode::SUCCESS)
}
