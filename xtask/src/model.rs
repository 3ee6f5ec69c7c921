//! Runs the exhaustive model of the protocol, which is in `regcache/tests/exhaustive`.

use crate::cmd;
use crate::error::Error;
use crate::project::cargo;

/// Runs all tests of the model, with optimization, and shows their output.
pub(crate) fn run() -> Result<u8, Error> {
    let mut command = cargo();
    command.args(["test", "--release", "--package", "regcache"]);
    command.args(["--test", "exhaustive", "--"]);
    command.args(["--include-ignored", "--nocapture", "--test-threads=1"]);
    cmd::run(&mut command).map(|()| 0)
}
