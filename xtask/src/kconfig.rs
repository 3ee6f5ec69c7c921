//! Configures a kernel from a list of settings.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cmd;
use crate::error::{AtPath, Error};

/// Configures a kernel with only these settings and the settings on which these depend.
///
/// `make` runs make in the kernel's source, `wanted` is the file with the settings, and `got` is
/// the configuration that make writes. `seen` is the path of `wanted` for make, which may run in
/// another root. Returns an error if a setting does not take effect.
pub(crate) fn configure(
    mut make: Command,
    wanted: &Path,
    seen: &Path,
    got: &Path,
) -> Result<(), Error> {
    make.arg(format!("KCONFIG_ALLCONFIG={}", seen.display()))
        .arg("allnoconfig");
    cmd::read(&mut make)?;
    let settings = fs::read_to_string(wanted).at(wanted)?;
    let text = fs::read_to_string(got).at(got)?;
    let refused = not_taken(&settings, &text);
    if refused.is_empty() {
        return Ok(());
    }
    Err(Error::Unexpected {
        command: cmd::line(&make),
        what: format!(
            "{} of {} did not take effect: add the settings that it depends on",
            refused.join(", "),
            wanted.display()
        ),
    })
}

/// Returns the wanted settings that the configuration does not contain.
fn not_taken<'a>(wanted: &'a str, got: &str) -> Vec<&'a str> {
    let got: Vec<_> = got.lines().collect();
    let settings = wanted.lines().filter(|line| line.starts_with("CONFIG_"));
    settings.filter(|line| !got.contains(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_kconfig_dropped_is_noticed() {
        let wanted = "# for faults\nCONFIG_A=y\nCONFIG_B=m\n\nCONFIG_C=4\n";
        let got = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=40\n";
        assert_eq!(not_taken(wanted, got), ["CONFIG_B=m", "CONFIG_C=4"]);
    }
}
