//! Runs the stacks that use RDMA over memory that changes, and counts the messages whose bytes were
//! wrong.
//!
//! A *cell* is one stack with one monitor below its registration cache, while memory changes in one
//! way. The cell runs a program of `c/`, which sends messages through the stack and compares every
//! byte. A monitor named `own:` is one of the stack's own. A monitor named `door:` is ours, and no
//! message of a door may be wrong.
//!
//! A program is called as `PROGRAM CHANGE MESSAGES`. It prints one line `wrong=W/M kept=K`. `M` is
//! the number of messages that were checked, and `W` the number of wrong ones. `K` is the number of
//! registrations that the stack's cache, or the shim, served without the device. A cell that kept
//! nothing says nothing about a cache.

use std::path::{Path, PathBuf};

pub mod cell;
pub mod libfabric;
mod openmpi;
pub mod plugins;
mod stack;
mod ucx;

pub use stack::{Change, Device, Devices, Environment, Monitor, Stack};

/// Returns the path of a program or library that `build.rs` has compiled from `c/`.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("PROGRAMS")).join(name)
}

/// The stacks that are run, in this order.
pub const STACKS: &[&Stack] = &[
    &libfabric::LIBFABRIC,
    &ucx::UCX,
    &ucx::MANY,
    &openmpi::OVER_UCX,
    &openmpi::OVER_UCX_4,
    &openmpi::OVER_UCX_HOSTS,
    &openmpi::OVER_LIBFABRIC,
    &openmpi::OVER_LIBFABRIC_4,
    &openmpi::OVER_LIBFABRIC_HOSTS,
];

/// The stacks that the suite of the virtual machine runs.
pub const SHORT: &[&Stack] = &[&libfabric::LIBFABRIC, &ucx::UCX];

/// The stacks whose programs use several threads. The suite runs them under sanitizers.
pub const OF_THREADS: &[&Stack] = &[&ucx::MANY];
