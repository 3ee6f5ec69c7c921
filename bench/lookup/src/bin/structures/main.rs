//! What the parts of a hit cost, by the structure they are made of: prints the tables of
//! `docs/design/hit-path.md`.
//!
//! Times are by turns, as in `compare`, and less what the loop takes; instructions are callgrind's,
//! of this program run as `structures count GROUP NAME ENTRIES OPERATIONS`.

mod index;
mod membarrier;
mod reference;

use std::env;
use std::time::Duration;

use clap::{Parser, Subcommand};
use regcache_bench::block::{
    Block, Contestant, Effort, Pinned, Turns, take_turns, timed, timed_by_two,
};
use regcache_bench::callgrind;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Measures the structures that a hit could be made of
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Do so many operations, for callgrind
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

/// Runs so many operations, in the first or the second thread.
trait Run: Sync {
    fn run(&self, which: usize, operations: usize);
}

/// A structure by name, and how it is set up for so many entries. The first one of a list is none:
/// the loop itself.
type Candidate = (&'static str, fn(usize) -> Box<dyn Run>);

/// For structures that stay in the processor's nearest cache.
const SMALL: Effort = Effort {
    turns: 301,
    block: Duration::from_millis(1),
};

/// For those that have to come back into it, or into the next one, after the others ran.
const LARGE: Effort = Effort {
    turns: 61,
    block: Duration::from_millis(20),
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
            .ok_or("no such structure")?;
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
        by_turns(SMALL, &built, |run, operations| {
            timed(operations, || run.run(0, operations))
        })
    };
    let two = by_turns(SMALL, &built, |run, operations| {
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
        let turns = by_turns(
            if entries < 10_000 { SMALL } else { LARGE },
            &built,
            |run, operations| timed(operations, || run.run(0, operations)),
        );
        for (i, (name, _)) in index::CANDIDATES.iter().enumerate().skip(1) {
            let count = instructions("index", name, index::CANDIDATES[0].0, entries)?;
            rows[i] += &format!("| {:.1} ({count}) ", turns.ns(i) - turns.ns(0));
        }
    }
    for row in &rows[1..] {
        println!("{row}|");
    }
    Ok(())
}

fn by_turns(
    effort: Effort,
    built: &[Box<dyn Run>],
    block: impl Fn(&dyn Run, usize) -> Block,
) -> Turns {
    let block = &block;
    let mut contestants: Vec<_> = built
        .iter()
        .map(|run| move |operations| block(&**run, operations))
        .collect();
    let mut contestants: Vec<&mut Contestant<'_>> = contestants
        .iter_mut()
        .map(|contestant| contestant as &mut Contestant<'_>)
        .collect();
    take_turns(effort, &mut contestants)
}

/// Instructions an operation, less the loop's; `-` without valgrind.
fn instructions(group: &str, name: &str, nothing: &str, entries: usize) -> Result<String> {
    if !callgrind::is_there() {
        return Ok("-".to_owned());
    }
    let program = env::current_exe()?;
    let entries = entries.to_string();
    let of = |name: &str| callgrind::per_operation(&program, &["count", group, name, &entries]);
    Ok(format!("{:.0}", of(name)? - of(nothing)?))
}
