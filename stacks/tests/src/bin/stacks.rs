//! `stacks`: runs the cells of the stacks that are installed here, or measures their caches, and
//! prints a line for each.

use std::process::ExitCode;

use clap::Parser;
use regcache_stacks::cell::{CellError, Cost};
use regcache_stacks::plugins::Plugins;
use regcache_stacks::{Change, Monitor, STACKS, Stack, cell};

/// Run the stacks over memory that changes, and count wrong messages.
///
/// The program must run as root in a virtual machine with the driver and rxe0.
#[derive(Parser)]
struct Arguments {
    /// Send this many messages in each cell
    #[arg(long, default_value_t = 1000)]
    messages: u64,
    /// Use only these changes
    #[arg(long, value_enum, value_delimiter = ',')]
    change: Vec<Change>,
    /// Use only the monitors whose names contain this text
    #[arg(long, default_value = "")]
    monitor: String,
    /// Measure the cost of each cache instead
    #[arg(long)]
    cost: bool,
    /// Use only the stacks with one of these names, or whose names contain one of these words
    stacks: Vec<String>,
}

/// Returns whether the word means the stack. The name of a stack means only that stack.
fn means(word: &str, stack: &Stack) -> bool {
    stack.name == word
        || (stack.name.contains(word) && STACKS.iter().all(|other| other.name != word))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let plugins = match Plugins::link() {
        Ok(plugins) => plugins,
        Err(error) => {
            eprintln!("stacks: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut failed = false;
    for stack in STACKS {
        let is_meant = arguments.stacks.iter().any(|word| means(word, stack));
        if arguments.stacks.is_empty() || is_meant {
            failed |= !run(stack, &arguments, &plugins);
        }
    }
    ExitCode::from(u8::from(failed))
}

/// Runs the cells of one stack. Returns false if a cell failed, or if a door had a wrong message.
fn run(stack: &Stack, arguments: &Arguments, plugins: &Plugins) -> bool {
    let version = match cell::version(stack.package) {
        Ok(version) => version,
        Err(error) => {
            eprintln!("stacks: {}: {error}", stack.name);
            return false;
        }
    };
    let _devices = match stack.device.prepare() {
        Ok(devices) => devices,
        Err(error) => {
            eprintln!("stacks: {}: {error}", stack.name);
            return false;
        }
    };
    let mut good = true;
    for monitor in stack.monitors {
        if !monitor.name.contains(&arguments.monitor) {
            continue;
        }
        if arguments.cost {
            good &= !monitor.has_cache() || measure(stack, &version, monitor, plugins);
            continue;
        }
        for &change in monitor.changes {
            if arguments.change.is_empty() || arguments.change.contains(&change) {
                good &= run_cell(stack, &version, monitor, change, arguments, plugins);
            }
        }
    }
    good
}

fn run_cell(
    stack: &Stack,
    version: &str,
    monitor: &Monitor,
    change: Change,
    arguments: &Arguments,
    plugins: &Plugins,
) -> bool {
    let name = format!(
        "stack: {}-{version} monitor={} change={change}",
        stack.name, monitor.name
    );
    match cell::run(stack, monitor, change, arguments.messages, plugins) {
        Ok(counts) => {
            println!(
                "{name} wrong={}/{} kept={}",
                counts.wrong, counts.messages, counts.kept
            );
            counts.messages > 0 && !(monitor.is_door() && (counts.wrong > 0 || counts.kept == 0))
        }
        // Some monitors of the stacks block a program whose memory has changed.
        Err(CellError::TooLong { limit, .. }) if !monitor.is_door() => {
            println!("{name} did not end within {limit} s");
            true
        }
        Err(CellError::Unsupported(why)) => {
            println!("{name} cannot run: {why}");
            true
        }
        Err(error) => {
            println!("{name} failed");
            eprintln!("stacks: {name}: {error}");
            false
        }
    }
}

/// Measures the cache of the stack on this monitor. Returns false if that fails.
fn measure(stack: &Stack, version: &str, monitor: &Monitor, plugins: &Plugins) -> bool {
    let name = format!("cost: {}-{version} monitor={}", stack.name, monitor.name);
    match cell::cost(stack, monitor, plugins) {
        Ok(None) => true,
        Ok(Some(Cost { hit, change })) => {
            println!("{name} hit={hit} change={change}");
            true
        }
        Err(error) => {
            println!("{name} failed");
            eprintln!("stacks: {name}: {error}");
            false
        }
    }
}
