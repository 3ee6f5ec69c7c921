//! The matrix of outcomes. Each row is a scenario, and each column is a monitor on a device. Each
//! cell shows whether the device read the new pages after the scenario.

use std::error::Error as StdError;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use regcache::monitor::{Monitor, NoMonitor, Ummunotify, Userfaultfd};
use regcache_repro::{Device, NeverReports, Outcome, Result, Scenario, Uring, reuse};

/// The outcomes that the cells of a column must have.
#[derive(Debug, Clone, Copy)]
pub enum Verdict {
    /// No cell is stale.
    Sound,
    /// Each scenario for which this function returns true must be stale. Such a monitor is a
    /// negative control: it proves that the suite detects stale bytes.
    StaleWhere(fn(&Scenario) -> bool),
}

type Play = Box<dyn Fn(&Scenario) -> Result<Outcome>>;

/// A column of the matrix: a monitor on a device.
pub struct Column {
    /// The name of the column.
    pub name: String,
    /// The outcomes that the column must have.
    pub verdict: Verdict,
    play: Play,
}

impl std::fmt::Debug for Column {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Column {
    /// Makes a column. Each scenario runs on a new device, which the function `device` makes.
    pub fn new<D: Device>(
        name: &str,
        verdict: Verdict,
        device: impl Fn() -> Result<D> + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            verdict,
            play: Box::new(move |scenario| reuse(&device()?, scenario)),
        }
    }

    /// Makes a column that runs each scenario on io_uring with a new monitor.
    pub fn of_uring<M: Monitor>(
        monitor_name: &str,
        verdict: Verdict,
        monitor: impl Fn() -> Result<M> + 'static,
    ) -> Self {
        let name = format!("io_uring, {monitor_name}");
        Self::new(&name, verdict, move || Ok(Uring::new(monitor()?)?))
    }
}

/// Returns true if userfaultfd delivers no event for this scenario.
fn is_silent(scenario: &Scenario) -> bool {
    scenario.name.starts_with("guard_pages") || scenario.name == "shmat_over_it_then_mmap"
}

/// Returns the columns of io_uring that this machine can run. For each column that this machine
/// cannot run, the function prints the reason.
#[must_use]
pub fn uring_columns() -> Vec<Column> {
    let mut columns = vec![
        Column::of_uring(
            "naive",
            Verdict::StaleWhere(|scenario| scenario.replaces),
            || Ok(NeverReports),
        ),
        Column::of_uring("nothing", Verdict::Sound, || Ok(NoMonitor)),
    ];
    // SAFETY: this monitor is unsound, so a registration can be stale. That does no harm, because
    // the device only reads, and a stale registration reaches only pages that are mapped nowhere.
    let racy = || unsafe { Userfaultfd::open_racy() };
    match Userfaultfd::open() {
        Ok(_) => {
            let verdict = Verdict::StaleWhere(is_silent);
            let name = "userfaultfd, events alone";
            columns.push(Column::of_uring(name, verdict, move || Ok(racy()?)));
            let strict = || Ok(Userfaultfd::open()?);
            columns.push(Column::of_uring("userfaultfd", Verdict::Sound, strict));
        }
        Err(error) => eprintln!("matrix: {error}"),
    }
    match Ummunotify::open() {
        Ok(_) => {
            let driver = || Ok(Ummunotify::open()?);
            columns.push(Column::of_uring("ummunotify", Verdict::Sound, driver));
        }
        Err(error) => eprintln!("matrix: {error}"),
    }
    columns
}

/// Runs the scenarios in the columns, and prints a table. `label` precedes the name of each
/// scenario. Returns a description of each cell that contradicts the verdict of its column.
#[must_use]
pub fn matrix<'s>(
    columns: &[Column],
    scenarios: impl IntoIterator<Item = &'s Scenario>,
    label: &str,
) -> Vec<String> {
    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
    println!("| scenario | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(columns.len()));
    let mut wrong = Vec::new();
    for scenario in scenarios {
        let mut cells = Vec::new();
        for column in columns {
            let outcome = (column.play)(scenario);
            let cell = match &outcome {
                Ok(Outcome::Fresh) => "ok".to_owned(),
                Ok(Outcome::Uncached) => "uncached".to_owned(),
                Ok(Outcome::Stale) => "STALE".to_owned(),
                Err(error) if is_unsupported(error.as_ref()) => "-".to_owned(),
                Err(error) => format!("failed: {error}"),
            };
            if !is_as_it_has_to_be(column.verdict, scenario, &outcome) {
                wrong.push(format!("{}, {}: {cell}", scenario.name, column.name));
            }
            cells.push(cell);
        }
        println!("| {label}{} | {} |", scenario.name, cells.join(" | "));
    }
    wrong
}

fn is_as_it_has_to_be(verdict: Verdict, scenario: &Scenario, outcome: &Result<Outcome>) -> bool {
    match (verdict, outcome) {
        (Verdict::Sound, Ok(outcome)) => *outcome != Outcome::Stale,
        (Verdict::StaleWhere(must), Ok(outcome)) => *outcome == Outcome::Stale || !must(scenario),
        (_, Err(error)) => is_unsupported(error.as_ref()),
    }
}

/// Returns true if the error means that the scenario cannot run. In that case the kernel does not
/// support the scenario, or the device cannot register the memory of the scenario.
fn is_unsupported(error: &(dyn StdError + 'static)) -> bool {
    let mut causes = regcache::error::chain(error);
    causes.any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| {
            error.kind() == io::ErrorKind::Unsupported
                || error.raw_os_error() == Some(libc::EOPNOTSUPP)
        })
    })
}

/// Run the scenarios with each monitor, and print a table of the outcomes
///
/// Exits with 1 if the device read stale bytes with a sound monitor. Also exits with 1 if the
/// device read no stale bytes in a scenario that a negative control must miss.
#[derive(Parser)]
struct Options {
    /// Print this before the name of each scenario
    #[arg(long, default_value = "")]
    label: String,
    /// Run only the columns whose names end with this text
    #[arg(long)]
    column: Vec<String>,
    /// Run only the scenarios with these names
    only: Vec<String>,
}

/// Runs the scenarios in the columns, and prints the matrix. A program that runs a matrix calls
/// this function from `main`. The function also parses the arguments of the program.
pub fn matrix_program<'s>(
    mut columns: Vec<Column>,
    scenarios: impl IntoIterator<Item = &'s Scenario>,
) -> ExitCode {
    let options = Options::parse();
    let is_wanted = |scenario: &&Scenario| {
        options.only.is_empty() || options.only.iter().any(|name| name == scenario.name)
    };
    let scenarios = scenarios.into_iter().filter(is_wanted);
    let is_asked_for = |column: &Column| options.column.iter().any(|it| column.name.ends_with(it));
    if !options.column.is_empty() {
        columns.retain(is_asked_for);
    }
    if columns.is_empty() {
        eprintln!(
            "matrix: this machine has no column that ends with one of {:?}",
            options.column
        );
        return ExitCode::FAILURE;
    }
    let wrong = matrix(&columns, scenarios, &options.label);
    for cell in &wrong {
        eprintln!("matrix: wrong outcome: {cell}");
    }
    ExitCode::from(u8::from(!wrong.is_empty()))
}
