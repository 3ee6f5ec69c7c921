//! The program `transfer`: measures the cost of a transfer with each strategy. A strategy is a way
//! in which the buffer of a transfer is registered.
//!
//! This file has the subcommands. The options of each subcommand are in the file of its name:
//! `measure.rs`, `cost.rs`, `hosts.rs` (`server` and `client`), and `read.rs` (`report` and
//! `compare`). `scaling` has its options in `src/scaling.rs` of the library (`Rank`).

mod cost;
mod hosts;
mod measure;
mod read;
mod scaling;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use regcache_bench_transfer::Error;

#[derive(Parser)]
#[command(about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the cost of transfers with each strategy, and print figures and a table
    ///
    /// The strategies run in interleaved rounds. Each figure is printed on a line of its own, which
    /// scripts can read. The table at the end shows the ratios to pre-registered memory.
    Measure(measure::Options),
    /// Measure the cost of registering on this machine's adapter, and project it to faster links
    Cost(cost::Options),
    /// Print the memory, events and CPUs that 1 to 1 000 ranks on one node need
    Scaling(regcache_bench_transfer::scaling::Rank),
    /// Do transfers with libfabric; each line of stdin holds the number of transfers to do next
    #[cfg(feature = "libfabric")]
    #[command(hide = true)]
    Libfabric {
        address: std::net::IpAddr,
        #[arg(value_enum)]
        op: regcache_bench_transfer::Op,
        size: usize,
    },
    /// Serve clients on other hosts as the other end of their transfers
    Server(hosts::Server),
    /// Measure transfers to a server, or test for stale bytes (--move)
    Client(hosts::Client),
    /// Make a report from result files
    Report(read::Report),
    /// Compare two result files
    Compare(read::Compare),
}

fn main() -> ExitCode {
    let done: Result<ExitCode, Error> = match Cli::parse().command {
        Command::Measure(options) => measure::run(&options),
        Command::Cost(options) => cost::run(&options),
        Command::Scaling(rank) => scaling::run(rank),
        #[cfg(feature = "libfabric")]
        Command::Libfabric { address, op, size } => {
            regcache_bench_transfer::peer::libfabric::serve(address, op, size)
                .map(|()| ExitCode::SUCCESS)
        }
        Command::Server(options) => hosts::server(&options),
        Command::Client(options) => hosts::client(&options),
        Command::Report(files) => read::report(&files),
        Command::Compare(files) => read::compare(&files),
    };
    done.unwrap_or_else(|error| {
        eprintln!("transfer: {}", regcache::error::chain(&error));
        ExitCode::FAILURE
    })
}
