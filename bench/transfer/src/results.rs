//! What is kept of a run, as JSON: [`Run`].

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Workload};

/// Of the format of the file; another number is another format.
const FORMAT: u32 = 2;

/// One run of the program on one device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    format: u32,
    /// On what.
    pub machine: Machine,
    /// The command line.
    pub command: String,
    /// What registering costs, size by size.
    pub costs: Vec<Cost>,
    /// What was measured.
    pub cells: Vec<Cell>,
}

/// On what was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// First word of the lines: what kind of device.
    pub kind: String,
    /// The device's name.
    pub device: String,
    /// What tells the cache of changes.
    pub monitor: String,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name. QEMU's says so, where it is emulated.
    pub processor: String,
    /// How many there are.
    pub processors: usize,
    /// What a second is: of the clock on the wall, or so many instructions of an emulated processor.
    pub clock: Clock,
    /// What a reading of the clock takes, in nanoseconds.
    pub clock_ns: f64,
}

/// What time is measured in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// As everybody does.
    #[default]
    Wall,
    /// In instructions, each a nanosecond: an emulated processor's time on a clock says more about who else is on the
    /// machine. What caches and memory would add is not in it.
    Instructions,
}

impl Machine {
    /// This machine with this device and monitor.
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

    /// In one line.
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

/// What registering and its alternatives cost at one size, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes.
    pub size: usize,
    /// Registering.
    pub register_ns: f64,
    /// Deregistering.
    pub deregister_ns: f64,
    /// A lookup that is a hit, and the drop of its guard.
    pub hit_ns: f64,
    /// The same with a monitor whose generation is a word in memory, as the driver's.
    pub word_hit_ns: f64,
    /// Copying as many bytes.
    pub copy_ns: f64,
}

impl Cost {
    /// Registering and deregistering.
    #[must_use]
    pub fn both_ns(&self) -> f64 {
        self.register_ns + self.deregister_ns
    }
}

/// One kind of work, and what came of each variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// The work.
    pub workload: Workload,
    /// Turns that each variant had, and transfers in each.
    pub rounds: usize,
    /// Transfers of each thread in a round.
    pub transfers_per_sample: u64,
    /// By variant; the first is the one that the others are compared with.
    pub outcomes: Vec<Outcome>,
}

impl Cell {
    /// The outcome of this strategy, under this share of unmaps.
    #[must_use]
    pub fn outcome(&self, strategy: &str, unmap_every: u64) -> Option<&Outcome> {
        let mut all = self.outcomes.iter();
        all.find(|outcome| outcome.strategy == strategy && outcome.unmap_every == unmap_every)
    }

    /// The workload as this variant did it.
    #[must_use]
    pub fn workload_of(&self, outcome: &Outcome) -> Workload {
        Workload {
            unmap_every: outcome.unmap_every,
            ..self.workload
        }
    }
}

/// What came of a variant. Times are in microseconds, a transfer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Its strategy.
    pub strategy: String,
    /// Before every so manieth transfer its buffer was unmapped.
    pub unmap_every: u64,
    /// Transfers counted, of all threads.
    pub transfers: u64,
    /// Median time of a transfer, of all threads together, over the rounds: the rate is its inverse.
    pub us: f64,
    /// Transfers a second.
    pub rate: f64,
    /// Bytes a second.
    pub bandwidth: f64,
    /// Latency: the percentiles 50, 90, 99, 99.9, and the longest.
    pub latency_us: [f64; 5],
    /// Time in the strategy: median.
    pub prepare_us: f64,
    /// Time in the strategy: mean.
    pub prepare_mean_us: f64,
    /// Processor time in the strategy: mean.
    pub cpu_us: f64,
    /// Calls of register and deregister, each a system call.
    pub registration_calls: f64,
    /// Calls of the monitor, each a system call with ummunotify.
    pub monitor_calls: f64,
    /// Bytes pinned by registrations of the buffers at most.
    pub pinned: u64,
    /// Buffers unmapped and mapped again.
    pub remaps: u64,
    /// Whether payloads were checked.
    pub checked: bool,
    /// Bytes that were not what was sent.
    pub stale_bytes: u64,
    /// Time of a transfer divided by that of the first variant in the same round: the median over the rounds.
    pub ratio: f64,
    /// Between which that median is, with 95 % confidence.
    pub ratio_between: [f64; 2],
}

impl Run {
    /// An empty one, of this process.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        // Where the result goes is of no interest to who reads it.
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

    /// Writes it to a file.
    ///
    /// # Errors
    ///
    /// The file's.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        write(path, &text)
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// The file's; [`Error::Json`], [`Error::Cannot`] for another format.
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
            let why = format!("{}: format {}, not {FORMAT}", path.display(), run.format);
            return Err(Error::Cannot(why));
        }
        Ok(run)
    }

    /// The cell of this workload.
    #[must_use]
    pub fn cell(&self, workload: Workload) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.workload == workload)
    }
}

/// Writes a file, and its directory.
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
