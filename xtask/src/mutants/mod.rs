//! Breaks one claim of the driver or of the shim after the other on purpose, and checks that tests
//! fail. A mutant is a driver or a shim with one broken claim.
//!
//! Each `tests/mutants/NAME.patch` changes either `kernel/` or the sources of the shim. The header
//! of a patch has three parts:
//!
//! - one or more sentences that describe the broken claim;
//! - a line `Suite:` with the test target;
//! - a line `Fails:` for each test that must fail.
//!
//! `here.rs` does the same with libraries whose tests run on this machine.
//!
//! The mutants are built on this machine. A virtual machine uses one mutant after the other in
//! place of the driver or the shim. If a mutant crashes the virtual machine, the mutant counts as
//! noticed. Another virtual machine then tests the remaining mutants.

mod here;
mod mutant;
mod vm;
mod workspace;

use crate::error::Error;
use crate::project::Project;
use crate::setup;
use mutant::{Mutant, Verdict, read_all};
use workspace::Workspace;

/// Builds and tests the mutants whose names contain one of `wanted`. An empty `wanted` selects all
/// mutants. Returns 1 if a mutant survives, which means that one of its tests passed.
pub(crate) fn run(project: &Project, wanted: &[String]) -> Result<u8, Error> {
    let read = |dir: &str| -> Result<Vec<Mutant>, Error> {
        let mut mutants = read_all(&project.root.join(dir))?;
        mutants.retain(|it| wanted.is_empty() || wanted.iter().any(|w| it.name.contains(w)));
        Ok(mutants)
    };
    setup::packages(project, setup::BUILD)?;
    let (tested_here, tested_in_vm) = (read(here::PATCHES)?, read("tests/mutants")?);
    let workspace = Workspace::copy(project)?;
    let mut verdicts = here::run(&workspace, &tested_here)?;
    if !tested_in_vm.is_empty() {
        verdicts.extend(vm::run(project, &workspace, &tested_in_vm)?);
    }
    Ok(report(&verdicts))
}

fn report(verdicts: &[Verdict]) -> u8 {
    println!("\n| mutant | noticed by |\n|---|---|");
    let mut survivors = 0;
    for (name, verdict) in verdicts {
        match verdict {
            Ok(by) => println!("| {name} | {by} |"),
            Err(why) => {
                println!("| {name} | **{why}** |");
                survivors += 1;
            }
        }
    }
    println!("\n{} mutants, {survivors} survived", verdicts.len());
    u8::from(survivors > 0)
}
