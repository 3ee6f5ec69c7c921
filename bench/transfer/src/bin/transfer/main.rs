//! What a transfer costs by each way of registering its buffer: measures, reports, compares, projects.

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
    /// Let the strategies transfer by rounds, and print a line a figure and a table
    Measure(measure::Options),
    /// Measure what registering costs on this machine's adapter, and what that would eat of faster links
    Cost(cost::Options),
    /// What many ranks on one node come to
    Scaling(regcache_bench_transfer::scaling::Rank),
    /// Be the process of a libfabric peer: does as many transfers as each line says
    #[cfg(feature = "libfabric")]
    #[command(hide = true)]
    Fabric {
        address: std::net::IpAddr,
        #[arg(value_enum)]
        op: regcache_bench_transfer::Op,
        size: usize,
    },
    /// Be the other end for clients on other hosts
    Server(hosts::Server),
    /// Measure against a server, or have it check what is moved to it
    Client(hosts::Client),
    /// Make a report of files that `measure --json` has written
    Report(read::Report),
    /// Hold the second of two such files against the first
    Compare(read::Compare),
}

fn main() -> ExitCode {
    let done: Result<ExitCode, Error> = match Cli::parse().command {
        Command::Measure(options) => measure::run(&options),
        Command::Cost(options) => cost::run(&options),
        Command::Scaling(rank) => scaling::run(rank),
        #[cfg(feature = "libfabric")]
        Command::Fabric { address, op, size } => {
            regcache_bench_transfer::peer::libfabric::serve(address, op, size)
                .map(|()| ExitCode::SUCCESS)
        }
        Command::Server(options) => hosts::server(&options),
        Command::Client(options) => hosts::client(&options),
        Command::Report(files) => read::report(&files),
        Command::Compare(files) => read::compare(&files),
    };
    done.unwrap_or_else(|error| {
        eprint!("bench: {error}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            eprint!(": {cause}");
            source = cause.source();
        }
        eprintln!();
        ExitCode::FAILURE
    })
}
