//! `transfer measure`: measures the cells of the plan, or the cells that the options select.

use std::cell::Cell;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;
use regcache::monitor::{Auto, Monitor, Ummunotify, auto};
use regcache_bench_transfer::peer::{self, Peer};
use regcache_bench_transfer::plan::{Planned, SIZES, add_drivers_hit, add_on_demand, plan};
use regcache_bench_transfer::results::{Clock, Machine, Run};
use regcache_bench_transfer::rounds::{Effort, measure_cell};
use regcache_bench_transfer::threshold::judge;
use regcache_bench_transfer::{
    Error, Op, Provider, Strategy, Uring, Verbs, Workload, bytes, registration_cost, table, variant,
};

/// The device to measure.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// Use this RDMA device instead of the first one
    #[arg(long, conflicts_with = "uring")]
    pub(crate) device: Option<String>,
    /// Use fixed buffers of io_uring and a file in memory instead of an RDMA device
    #[arg(long)]
    pub(crate) uring: bool,
}

/// The device and the workloads to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Target,
    #[command(flatten)]
    work: Work,
}

/// The workloads to measure.
#[derive(clap::Args)]
pub(crate) struct Work {
    /// Measure fewer workloads, each for a shorter time
    #[arg(long)]
    quick: bool,
    /// Measure each workload for this many seconds
    #[arg(long)]
    seconds: Option<f64>,
    /// Measure only this operation (may be repeated)
    #[arg(long, value_enum)]
    op: Vec<Op>,
    /// Measure only transfers of this many bytes (may be repeated)
    #[arg(long)]
    size: Vec<usize>,
    /// Use this many buffers in random order
    #[arg(long, default_value_t = 1)]
    set: usize,
    /// Keep this many transfers in flight
    #[arg(long, default_value_t = 1)]
    depth: usize,
    /// Use this many threads, each with a connection of its own
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Unmap the buffer and map it again before this percentage of the transfers, and check every
    /// payload
    #[arg(long, value_name = "PERCENT")]
    unmaps: Option<f64>,
    /// Measure only this strategy (may be repeated); the first strategy is the base of the ratios
    #[arg(long, value_enum)]
    strategy: Vec<Strategy>,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure libfabric as well, on the device whose interface has this address
    #[arg(long, value_name = "ADDRESS")]
    peers: Option<IpAddr>,
    /// Choose the unit of time
    #[arg(long, value_enum, default_value_t)]
    clock: Clock,
}

impl Work {
    /// Returns true if an option selects workloads in place of the standard plan.
    fn is_own(&self) -> bool {
        let Self {
            op,
            size,
            set,
            depth,
            threads,
            unmaps,
            strategy,
            quick: _,
            seconds: _,
            json: _,
            peers: _,
            clock: _,
        } = self;
        !op.is_empty()
            || !size.is_empty()
            || !strategy.is_empty()
            || unmaps.is_some()
            || [*set, *depth, *threads] != [1; 3]
    }

    fn planned(&self, kind: &str, ops: &[Op], can_check: bool) -> Vec<Planned> {
        if !self.is_own() {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let is_uring = kind == "io_uring";
            let mut planned = plan(ops, if is_uring { 1 } else { threads }, self.quick);
            if is_uring {
                add_drivers_hit(&mut planned);
            }
            planned.retain(|planned| can_check || !planned.workload.checked);
            return planned;
        }
        let ops = if self.op.is_empty() { ops } else { &self.op };
        let sizes = if self.size.is_empty() {
            &SIZES[..]
        } else {
            &self.size
        };
        let mut all = Vec::new();
        for &op in ops {
            for &size in sizes {
                let mut workload = Workload::plain(op, size)
                    .set(self.set)
                    .depth(self.depth)
                    .threads(self.threads);
                if let Some(percent) = self.unmaps {
                    workload = workload.unmap_every((100.0 / percent).round().max(1.0) as u64);
                }
                let mut planned = Planned::new(workload);
                if !self.strategy.is_empty() {
                    let entries = self.strategy.iter();
                    planned.entries = entries.map(|&it| (it, workload.unmap_every)).collect();
                }
                all.push(planned);
            }
        }
        all
    }

    fn effort(&self) -> Effort {
        // Instruction counts hardly vary, so a short time suffices. A long time is expensive,
        // because an emulated second takes half a minute.
        let (seconds, sample, rounds) = match (self.clock, self.quick) {
            (Clock::Wall, false) => (8.0, 20, 15),
            (Clock::Wall, true) => (2.0, 20, 5),
            (Clock::Instructions, false) => (1.0, 5, 15),
            (Clock::Instructions, true) => (0.5, 2, 15),
        };
        Effort {
            cell: Duration::from_secs_f64(self.seconds.unwrap_or(seconds)),
            rounds,
            sample: Duration::from_millis(sample),
        }
    }
}

/// Measures the device that the options select.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Error> {
    raise_limits();
    if options.place.uring {
        let device = Device {
            kind: "io_uring",
            name: "io_uring",
            ops: &[Op::Write, Op::Read],
            can_check: true,
        };
        return with_best_monitor(&options.work, &device, Uring::open);
    }
    let verbs = Verbs::open(options.place.device.as_deref())?;
    let name = verbs.pd().context().device().to_owned();
    let device = Device {
        can_check: true,
        ..Device::verbs(&name)
    };
    with_best_monitor(&options.work, &device, || Verbs::open(Some(&name)))
}

/// The properties of a device that affect the plan.
pub(crate) struct Device<'a> {
    kind: &'static str,
    name: &'a str,
    ops: &'static [Op],
    /// True if the other end of each transfer is in this process. This process can then check the
    /// bytes at the other end.
    can_check: bool,
}

impl<'a> Device<'a> {
    /// Describes a verbs device whose transfers go to another host.
    pub(crate) fn verbs(name: &'a str) -> Self {
        Self {
            kind: if name.starts_with("rxe") {
                "rxe"
            } else {
                "rdma"
            },
            name,
            ops: &Op::ALL,
            can_check: false,
        }
    }
}

/// Measures with the driver if it can be opened, and otherwise with the best other monitor.
///
/// With the driver, the type of the monitor is `Ummunotify` and not `Auto`. So the measured hits
/// have the cost of hits in a program that chooses `Ummunotify` itself.
pub(crate) fn with_best_monitor<F: Provider>(
    work: &Work,
    device: &Device<'_>,
    open: impl Fn() -> Result<F, Error>,
) -> Result<ExitCode, Error> {
    let run = match Ummunotify::open() {
        Ok(monitor) => {
            let machine = Machine::here(device.kind, device.name, monitor.name());
            measure(work, device, machine, &open, ummunotify)
        }
        Err(why) => {
            let monitor = auto();
            eprintln!("transfer: {why}; the cache uses {}", monitor.name());
            let machine = Machine::here(device.kind, device.name, monitor.name());
            measure(work, device, machine, &open, || Ok::<Auto, _>(auto()))
        }
    }?;
    if let Some(path) = &work.json {
        run.save(path)?;
    }
    for rows in [
        table::costs(&run),
        table::unmaps(&run),
        table::transfers(&run),
    ] {
        if rows.len() > 1 {
            print!("\n{}", table::text(&rows));
        }
    }
    println!("\n{}", run.machine.line());
    for verdict in judge(&run) {
        println!("{verdict}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn ummunotify() -> Result<Ummunotify, Error> {
    Ummunotify::open().map_err(|why| Error::Cannot(why.to_string()))
}

fn measure<F: Provider, M: Monitor>(
    work: &Work,
    device: &Device<'_>,
    mut machine: Machine,
    open: &impl Fn() -> Result<F, Error>,
    monitor: impl Fn() -> Result<M, Error>,
) -> Result<Run, Error> {
    machine.clock = work.clock;
    let mut run = Run::new(machine);
    let effort = work.effort();
    if !work.is_own() {
        let each = effort.cell / 8;
        run.costs = registration_cost::measure(&open()?, monitor()?, &SIZES, each)?;
    }
    let mut planned = work.planned(device.kind, device.ops, device.can_check);
    let offered = on_demand(device, &open()?)?;
    if work.strategy.is_empty() {
        add_on_demand(&mut planned, &offered);
    }
    for Planned { workload, entries } in &mut planned {
        entries
            .retain(|&(strategy, _)| strategy != Strategy::Odp || offered.contains(&workload.op));
    }
    planned.retain(|planned| !planned.entries.is_empty());
    let progress = Progress::new(planned.len());
    for Planned { workload, entries } in planned {
        progress.next(workload);
        let mut variants = Vec::new();
        for (strategy, unmap_every) in entries {
            let workload = Workload {
                unmap_every,
                ..workload
            };
            variants.push(variant(&open()?, &monitor, strategy, workload)?);
        }
        if let Some(address) = work.peers
            && workload.is_plain()
        {
            let program = std::env::current_exe();
            let program = program.map_err(|why| Error::Cannot(why.to_string()))?;
            for monitor in peer::Monitor::ALL {
                variants.push(Box::new(Peer::start(&program, address, monitor, workload)?));
            }
        }
        let cell = measure_cell(workload, effort, &mut variants, &mut |done| {
            progress.within(done);
        })?;
        progress.suspend(|| print!("{}", table::lines(&run.machine.kind, &cell)));
        run.cells.push(cell);
    }
    progress.bar.finish_and_clear();
    Ok(run)
}

/// Returns the operations for which the device offers on-demand paging. Prints a note that names
/// the other operations.
fn on_demand<F: Provider>(device: &Device<'_>, provider: &F) -> Result<Vec<Op>, Error> {
    let mut offered = Vec::new();
    for &op in device.ops {
        if provider.offers_on_demand(op)? {
            offered.push(op);
        }
    }
    let missing = device.ops.iter().filter(|op| !offered.contains(op));
    let missing: Vec<_> = missing.map(ToString::to_string).collect();
    if !missing.is_empty() {
        eprintln!(
            "transfer: {} offers no on-demand paging for {}, so the strategy odp is not measured",
            device.name,
            missing.join(", ")
        );
    }
    Ok(offered)
}

/// Shows the progress of the measurement: a bar on a terminal, or else a line for each workload.
struct Progress {
    bar: ProgressBar,
    cells: usize,
    begun: Cell<usize>,
}

impl Progress {
    fn new(cells: usize) -> Self {
        let bar = ProgressBar::new(cells as u64 * 100);
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {eta_precise}  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            bar,
            cells,
            begun: Cell::new(0),
        }
    }

    fn next(&self, workload: Workload) {
        self.begun.set(self.begun.get() + 1);
        let what = format!("{} of {}", workload.name(), bytes(workload.size));
        if self.bar.is_hidden() {
            eprintln!("transfer: {} of {}: {what}", self.begun.get(), self.cells);
        }
        self.bar.set_message(what);
    }

    fn within(&self, done: f64) {
        let before = (self.begun.get() - 1) as f64;
        self.bar.set_position(((before + done) * 100.0) as u64);
    }

    fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }
}

/// Raises the limit on locked memory as far as this user may raise it. The device cannot pin more
/// memory than this limit allows.
pub(crate) fn raise_limits() {
    let limit = if geteuid().is_root() {
        Ok((RLIM_INFINITY, RLIM_INFINITY))
    } else {
        getrlimit(Resource::RLIMIT_MEMLOCK).map(|(_, hard)| (hard, hard))
    };
    let raised = limit.and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard));
    if let Err(why) = raised {
        eprintln!("transfer: RLIMIT_MEMLOCK cannot be raised and keeps its value: {why}");
    }
}
