//! The description of a stack: its program, its monitors, and the ways in which memory changes.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::process::Command;

use regcache_test_support::SecondDevice;

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
    /// The same, and rxe0 is removed meanwhile. Open MPI looks at the domains of all devices, and
    /// `rdma_cm` has no address for rxe0.
    AddressedAlone,
    /// The devices of two network namespaces, which the launcher adds. Only newer kernels have such
    /// devices.
    Namespaces,
}

/// The devices of a stack. Dropping this value restores the devices of the virtual machine.
pub struct Devices {
    second: Option<SecondDevice>,
    is_alone: bool,
}

impl Device {
    /// Prepares the device. The caller must be root in a virtual machine.
    ///
    /// # Errors
    ///
    /// Returns an error if rxe0 cannot be removed.
    ///
    /// # Panics
    ///
    /// Panics if the second device cannot be added.
    pub fn prepare(self) -> io::Result<Devices> {
        let is_alone = self == Self::AddressedAlone;
        if is_alone {
            rdma_link(&["delete", LOOPBACK])?;
        }
        let is_addressed = matches!(self, Self::Addressed | Self::AddressedAlone);
        let second = is_addressed.then(SecondDevice::add);
        Ok(Devices { second, is_alone })
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        drop(self.second.take());
        if self.is_alone
            && let Err(error) = rdma_link(&["add", LOOPBACK, "type", "rxe", "netdev", "lo"])
        {
            eprintln!("stacks: {LOOPBACK} is lost: {error}");
        }
    }
}

/// The device of every virtual machine.
const LOOPBACK: &str = "rxe0";

fn rdma_link(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("rdma").arg("link").args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "rdma link {}: {}",
        arguments.join(" "),
        said.trim_end()
    )))
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
    /// Returns the monitor with this name.
    pub(crate) const fn new(
        name: &'static str,
        environment: fn(&Plugins) -> Environment,
        changes: &'static [Change],
    ) -> Self {
        Self {
            name,
            environment,
            changes,
        }
    }

    /// Returns whether the monitor is ours, so that no message may be wrong.
    pub fn is_door(&self) -> bool {
        self.name.starts_with("door:")
    }

    /// Returns whether the stack's own cache is on. Below the shim it is off.
    pub fn has_cache(&self) -> bool {
        self.name != "door:shim"
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
