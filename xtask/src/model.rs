//! The exhaustive model of the protocol, `regcache/tests/exhaustive`: its report, and the faults it finds.

use crate::cmd;
use crate::error::Error;
use crate::project::cargo;

/// Runs it whole, optimised, and shows what it prints.
pub(crate) fn run() -> Result<u8, Error> {
    let mut command = cargo();
    command.args(["test", "--release", "--package", "regcache"]);
    command.args(["--test", "exhaustive", "--"]);
    command.args(["--include-ignored", "--nocapture", "--test-threads=1"]);
    cmd::run(&mut command).map(|()| 0)
}
