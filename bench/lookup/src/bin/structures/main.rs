//! Measures two parts of a hit, each with several data structures: the reference and the index.
//! Prints the tables of `docs/design/hit-path.md`.
//!
//! The times come from interleaved rounds, and exclude the time of the loop. callgrind counts the
//! instructions of the command `structures count GROUP NAME ENTRIES OPERATIONS`.

mod index;
mod membarrier;
mod reference;

use std::env;
use std::time::Duration;

use clap::{Parser, Subcommand};
use regcache_bench_harness::{
    Effort, Pinned, Rounds, Sample, Variant, measure, timed, timed_by_two,
};
use regcache_bench_lookup::callgrind;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Measure the data structures that a hit could be made of
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Do this many operations, for callgrind
    #[command(hide = true)]
    Count {
        group: Group,
        name: String,
        entries: usize,
        operations: usize,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Group {
    Reference,
    Index,
}

/// A structure to measure. `run` does `operations` operations. `which` is the number of the calling
/// thread, 0 or 1.
trait Run: Sync {
    fn run(&self, which: usize, operations: usize);
}

/// The name of a structure, and the function that builds the structure for a given number of
/// entries. The first candidate of each list is an empty loop, which uses no structure.
type Candidate = (&'static str, fn(usize) -> Box<dyn Run>);

/// The effort for structures that fit into the CPU's first-level cache.
const SMALL: Effort = Effort {
    rounds: 301,
    sample: Duration::from_millis(1),
};

/// The effort for structures that are too large for the CPU's first-level cache. The structures
/// evict each other from the CPU's caches. So a sample is long enough that the time to load its
/// structure again hardly affects the result.
const LARGE: Effort = Effort {
    rounds: 61,
    sample: Duration::from_millis(20),
};

fn main() -> Result<()> {
    if let Some(Command::Count {
        group,
        name,
        entries,
        operations,
    }) = Cli::parse().command
    {
        let candidates = match group {
            Group::Reference => reference::CANDIDATES,
            Group::Index => index::CANDIDATES,
        };
        let (_, build) = candidates
            .iter()
            .find(|candidate| candidate.0 == name)
            .ok_or("no structure has this name")?;
        build(entries).run(0, operations);
        return Ok(());
    }
    references()?;
    membarrier::report()?;
    indices()
}

fn references() -> Result<()> {
    println!(
        "| a reference taken and given back | ns | instructions | ns, two threads, same entry |"
    );
    println!("|---|---|---|---|");
    let built: Vec<_> = reference::CANDIDATES
        .iter()
        .map(|(_, build)| build(1))
        .collect();
    let one = {
        let _here = Pinned::to(0);
        interleaved(SMALL, &built, |run, operations| {
            timed(operations, || run.run(0, operations))
        })
    };
    let two = interleaved(SMALL, &built, |run, operations| {
        timed_by_two(operations, |which| run.run(which, operations))
    });
    for (i, (name, _)) in reference::CANDIDATES.iter().enumerate().skip(1) {
        println!(
            "| {name} | {:.1} | {} | {:.1} |",
            one.ns(i) - one.ns(0),
            instructions("reference", name, reference::CANDIDATES[0].0, 1)?,
            two.ns(i) - two.ns(0),
        );
    }
    println!();
    Ok(())
}

fn indices() -> Result<()> {
    const ENTRIES: [usize; 4] = [1, 100, 10_000, 100_000];
    println!("| address to entry, ns (instructions) | 1 | 100 | 10 000 | 100 000 |");
    println!("|---|---|---|---|---|");
    let mut rows: Vec<String> = Vec::new();
    for (name, _) in index::CANDIDATES {
        rows.push(format!("| {name} "));
    }
    let _here = Pinned::to(0);
    for entries in ENTRIES {
        let built: Vec<_> = index::CANDIDATES
            .iter()
            .map(|(_, build)| build(entries))
            .collect();
        let rounds = interleaved(
            if entries < 10_000 { SMALL } else { LARGE },
            &built,
            |run, operations| timed(operations, || run.run(0, operations)),
        );
        for (i, (name, _)) in index::CANDIDATES.iter().enumerate().skip(1) {
            let count = instructions("index", name, index::CANDIDATES[0].0, entries)?;
            rows[i] += &format!("| {:.1} ({count}) ", rounds.ns(i) - rounds.ns(0));
        }
    }
    for row in &rows[1..] {
        println!("{row}|");
    }
    Ok(())
}

fn interleaved(
    effort: Effort,
    built: &[Box<dyn Run>],
    sample: impl Fn(&dyn Run, usize) -> Sample,
) -> Rounds {
    let sample = &sample;
    let variants = built.iter().map(|run| {
        let variant: Box<Variant<'_>> = Box::new(move |operations| sample(&**run, operations));
        variant
    });
    measure(effort, &mut variants.collect::<Vec<_>>())
}

/// Returns the number of instructions of one operation, less the number of the empty loop. Returns
/// `-` if valgrind is not installed.
fn instructions(group: &str, name: &str, nothing: &str, entries: usize) -> Result<String> {
    if !callgrind::is_installed() {
        return Ok("-".to_owned());
    }
    let program = env::current_exe()?;
    let entries = entries.to_string();
    let of = |name: &str| callgrind::per_operation(&program, &["count", group, name, &entries]);
    Ok(format!("{:.0}", of(name)? - of(nothing)?))
}
