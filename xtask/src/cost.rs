//! Counts the instructions that the driver costs. The program `driver-cost` counts these
//! instructions in a virtual machine whose clock counts instructions.

use std::ffi::OsString;
use std::io;

use crate::demo;
use crate::error::Error;
use crate::kernel::Series;
use crate::project::Project;
use crate::setup;
use crate::vm;

/// Runs `driver-cost` in a virtual machine with this kernel. The program prints the table.
pub(crate) fn run(project: &Project, kernel: Series) -> Result<u8, Error> {
    setup::packages(project, &[setup::VM, setup::BUILD].concat())?;
    let program = demo::build(project, "regcache-tests-vm", "driver-cost")?;
    let machine = vm::Machine {
        kernel,
        icount: true,
        boot_timeout: 600,
        ..vm::Machine::default()
    };
    let job = vm::Job {
        command: &[OsString::from(program)],
        stdout: Box::new(io::stdout()),
        stderr: None,
    };
    vm::run(project, &machine, job)
}
