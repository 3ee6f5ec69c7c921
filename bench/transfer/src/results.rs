//! [`Run`]: the results of one run, and their JSON file.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Workload};

/// The version of the file format.
const FORMAT: u32 = 2;

/// The results of one run on one device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    format: u32,
    /// The machine and the device.
    pub machine: Machine,
    /// The command line.
    pub command: String,
    /// The cost of registering, by size.
    pub costs: Vec<Cost>,
    /// The measured cells.
    pub cells: Vec<Cell>,
}

/// The machine, the device and the monitor of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The kind of device: `rxe`, `rdma` or `io_uring`. Each figure line begins with this word.
    pub kind: String,
    /// The name of the device.
    pub device: String,
    /// The name of the cache's monitor.
    pub monitor: String,
    /// The kernel's release.
    pub kernel: String,
    /// The model name of the CPU. It contains "QEMU" if the CPU is emulated.
    pub processor: String,
    /// The number of CPUs.
    pub processors: usize,
    /// The unit of the times: wall-clock time, or instructions of an emulated CPU.
    pub clock: Clock,
    /// The time that one clock reading takes, in nanoseconds.
    pub clock_ns: f64,
}

/// The unit of measured times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// Wall-clock time
    #[default]
    Wall,
    /// Instructions of an emulated CPU, one nanosecond each
    ///
    /// The wall-clock time of an emulated CPU depends on the other load of the machine.
    /// Instructions do not, but they exclude the cost of the CPU's caches and of memory.
    Instructions,
}

impl Machine {
    /// Describes this machine, with this device and monitor.
    #[must_use]
    pub fn here(kind: &str, device: &str, monitor: &str) -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let named = info.lines().find(|line| line.starts_with("model name"));
        let processor = named.and_then(|line| line.split_once(": "));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            kind: kind.to_owned(),
            device: device.to_owned(),
            monitor: monitor.to_owned(),
            kernel: kernel.trim().to_owned(),
            processor: processor.map_or("unknown", |(_, name)| name).to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            clock: Clock::default(),
            clock_ns: crate::timing::clock_ns(),
        }
    }

    /// Formats the description as one line.
    #[must_use]
    pub fn line(&self) -> String {
        let Self {
            device,
            monitor,
            kernel,
            processor,
            processors,
            clock,
            ..
        } = self;
        let clock = match clock {
            Clock::Wall => "",
            Clock::Instructions => ", times in instructions of one nanosecond each",
        };
        format!("{device}, {monitor}, Linux {kernel}, {processors} x {processor}{clock}")
    }
}

/// The costs of registering, of a hit and of copying, at one size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The size in bytes.
    pub size: usize,
    /// The nanoseconds of registering.
    pub register_ns: f64,
    /// The nanoseconds of deregistering.
    pub deregister_ns: f64,
    /// The nanoseconds of a hit, including the drop of its guard.
    pub hit_ns: f64,
    /// The nanoseconds of a hit in a cache with a monitor that never reports. It stands for a hit
    /// with the driver, which also loads the generation from a mapped page.
    pub word_hit_ns: f64,
    /// The nanoseconds of copying the bytes.
    pub copy_ns: f64,
}

impl Cost {
    /// Returns the sum of the times to register and to deregister, in nanoseconds.
    #[must_use]
    pub fn both_ns(&self) -> f64 {
        self.register_ns + self.deregister_ns
    }
}

/// A cell of the plan: the results of all variants of one workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// The workload.
    pub workload: Workload,
    /// The number of rounds.
    pub rounds: usize,
    /// The number of transfers that each thread does in a sample.
    pub transfers_per_sample: u64,
    /// One outcome for each variant. The first variant is the base of the ratios.
    pub outcomes: Vec<Outcome>,
}

impl Cell {
    /// Returns the outcome of the variant with this strategy and this interval between unmaps.
    #[must_use]
    pub fn outcome(&self, strategy: &str, unmap_every: u64) -> Option<&Outcome> {
        let mut all = self.outcomes.iter();
        all.find(|outcome| outcome.strategy == strategy && outcome.unmap_every == unmap_every)
    }

    /// Returns the workload of the variant that has this outcome. It is the workload of the cell,
    /// but with the variant's own interval between unmaps.
    #[must_use]
    pub fn workload_of(&self, outcome: &Outcome) -> Workload {
        Workload {
            unmap_every: outcome.unmap_every,
            ..self.workload
        }
    }
}

/// The results of one variant. Each time is in microseconds for one transfer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The name of the strategy.
    pub strategy: String,
    /// The interval N between unmaps: the buffer was unmapped before every Nth transfer. If N is 0,
    /// no buffer was unmapped.
    pub unmap_every: u64,
    /// The number of transfers that all threads did.
    pub transfers: u64,
    /// The elapsed time divided by the number of transfers of all threads, as the median over the
    /// rounds. It is the inverse of `rate`.
    pub us: f64,
    /// The number of transfers in a second.
    pub rate: f64,
    /// The number of bytes in a second.
    pub bandwidth: f64,
    /// The latency of a transfer: the percentiles 50, 90, 99 and 99.9, and the maximum.
    pub latency_us: [f64; 5],
    /// The median overhead. The overhead is the time that the strategy takes before and after a
    /// transfer.
    pub prepare_us: f64,
    /// The mean overhead.
    pub prepare_mean_us: f64,
    /// The mean CPU time that the strategy takes for a transfer.
    pub cpu_us: f64,
    /// The mean number of registrations and deregistrations for each transfer. Each of them is a
    /// system call.
    pub registration_calls: f64,
    /// The mean number of calls to the monitor for each transfer. With ummunotify, each call is a
    /// system call.
    pub monitor_calls: f64,
    /// The largest number of bytes that registrations of buffers pinned at one moment.
    pub pinned: u64,
    /// The number of times that a buffer was unmapped and mapped again.
    pub remaps: u64,
    /// If true, the payloads were checked.
    pub checked: bool,
    /// The number of bytes that differed from the payload.
    pub stale_bytes: u64,
    /// The ratio of this variant's time to the time of the first variant in the same round, as the
    /// median over the rounds.
    pub ratio: f64,
    /// The lower and the upper bound of `ratio`, with 95 % confidence.
    pub ratio_between: [f64; 2],
}

impl Run {
    /// Makes a run without results, with the command line of this process.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        // The report quotes the command line. The path of the result file is omitted, because it
        // does not affect the results.
        let words = std::env::args().skip(1);
        let mut words: Vec<_> = words.filter(|word| !word.starts_with("--json=")).collect();
        if let Some(i) = words.iter().position(|word| word == "--json") {
            words.drain(i..words.len().min(i + 2));
        }
        Self {
            format: FORMAT,
            machine,
            command: words.join(" "),
            costs: Vec::new(),
            cells: Vec::new(),
        }
    }

    /// Writes the run to a file.
    ///
    /// # Errors
    ///
    /// Returns the errors of the file.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        write(path, &text)
    }

    /// Reads a run from a file.
    ///
    /// # Errors
    ///
    /// Returns the errors of the file. Returns [`Error::Json`] if the file holds no run, and
    /// [`Error::Cannot`] if the file has another format.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
        let run: Self = serde_json::from_str(&text).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        if run.format != FORMAT {
            let why = format!(
                "{} has format {}, and this program reads format {FORMAT}: measure again",
                path.display(),
                run.format
            );
            return Err(Error::Cannot(why));
        }
        Ok(run)
    }

    /// Returns the cell of this workload.
    #[must_use]
    pub fn cell(&self, workload: Workload) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.workload == workload)
    }
}

/// Writes a file, and creates its directory if it is missing.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    let written = match path.parent() {
        Some(parent) => fs::create_dir_all(parent),
        None => Ok(()),
    };
    written
        .and_then(|()| fs::write(path, text))
        .map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })
}
