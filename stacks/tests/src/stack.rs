//! The description of a stack: its program, its monitors, and the ways in which memory changes.

use std::ffi::OsString;
use std::fmt;

use crate::plugins::Plugins;

/// A way in which the memory of a message changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Change {
    /// The buffer is unmapped with `munmap(3)` and mapped again.
    Munmap,
    /// The buffer is unmapped by a raw system call and mapped again.
    Raw,
    /// One thread unmaps the buffer by a raw system call, and another thread maps the same address.
    Threads,
    /// Another process truncates the file that is mapped, and extends it again.
    Truncate,
    /// The memory changes between the stack's registration and the subscription to its monitor.
    Window,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Munmap => "munmap",
            Self::Raw => "raw",
            Self::Threads => "threads",
            Self::Truncate => "truncate",
            Self::Window => "window",
        })
    }
}

/// The RDMA device over which a stack runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The device of every virtual machine, rxe0 on lo.
    Loopback,
    /// A second device, rxe1, with an address to which `rdma_cm` connects.
    Addressed,
}

/// Environment variables and their values.
pub type Environment = Vec<(&'static str, OsString)>;

/// A monitor below the registration cache of a stack.
pub struct Monitor {
    /// The name, which begins with `own:` or `door:`.
    pub name: &'static str,
    /// Returns the environment variables that select the monitor.
    pub environment: fn(&Plugins) -> Environment,
    /// The changes for which the monitor is run.
    pub changes: &'static [Change],
}

impl Monitor {
    /// Returns whether the monitor is ours, so that no message may be wrong.
    pub fn is_door(&self) -> bool {
        self.name.starts_with("door:")
    }
}

/// A stack, with the program that uses it.
pub struct Stack {
    /// The stack's name in results.
    pub name: &'static str,
    /// The Debian package whose version is in results.
    pub package: &'static str,
    /// The words before the program, such as those of `mpirun`.
    pub launcher: &'static [&'static str],
    /// The program's name in `c/`.
    pub program: &'static str,
    /// The name of the program in `c/` that measures the cost of the cache, if there is one.
    pub cost: Option<&'static str>,
    /// The environment variables for each monitor.
    pub environment: &'static [(&'static str, &'static str)],
    /// The device over which the program sends.
    pub device: Device,
    /// The monitors, each of which is a row of results.
    pub monitors: &'static [Monitor],
}
