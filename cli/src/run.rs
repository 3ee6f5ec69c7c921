//! `regcache run`: runs a program under the preload shim.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use crate::stack::Stack;
use crate::{Failure, elf, installed};

pub(crate) const SHIM: &str = "librcpreload.so";

/// The directories of the shim below the prefix. A Debian package puts it into the second one.
const DIRECTORIES: &[&str] = &["lib", "lib/x86_64-linux-gnu/regcache"];

/// The exit statuses if the program cannot be run, and if it is not found. A shell uses the same
/// exit statuses.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Parses `REGCACHE_NAME=VALUE`, and returns the name and the value.
pub(crate) fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if name.starts_with("REGCACHE_") => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("a setting of the shim has the form REGCACHE_NAME=VALUE".to_owned()),
    }
}

/// Returns the path of the shim: `named`, or the shim that is installed with this tool if `named`
/// is `None`. If there is no such file, the error has the places that were searched.
pub(crate) fn shim(named: Option<&Path>) -> Result<PathBuf, Vec<PathBuf>> {
    match named {
        Some(shim) => shim.canonicalize().map_err(|_| vec![shim.to_owned()]),
        None => installed::find(DIRECTORIES, SHIM),
    }
}

/// Replaces this process by the program, with the shim preloaded, and below this stack if there is
/// one. The settings have precedence over those of the stack. The function returns only if it
/// fails.
pub(crate) fn run(
    stack: Option<Stack>,
    named: Option<&Path>,
    settings: &[(String, String)],
    command: &[OsString],
) -> Result<u8, Failure> {
    let shim = shim(named).map_err(|places| {
        let places: Vec<_> = places.iter().map(|it| it.display().to_string()).collect();
        let places = places.join(" or ");
        Failure::new(
            CANNOT_RUN,
            format!(
                "there is no shim at {places}: install it (the package regcache, or `cargo xtask \
                 install --prefix DIR`), or name one with --shim"
            ),
        )
    })?;
    let Some((name, arguments)) = command.split_first() else {
        return Err(Failure::new(NOT_FOUND, "no program to run"));
    };
    let shown = name.to_string_lossy();
    let program = elf::in_path(name).ok_or_else(|| no_program(name))?;
    let cannot = |why: String| {
        Failure::new(
            CANNOT_RUN,
            format!("cannot run {shown} under the shim: {why}"),
        )
    };
    match elf::out_of_reach(&program) {
        Ok(None) => {}
        Ok(Some(why)) => return Err(cannot(why.to_owned())),
        // A user may have the right to run a program without the right to read it. So the tool
        // prints only a warning.
        Err(error) => {
            eprintln!(
                "regcache: cannot read {shown} to check whether the shim works in it: {error}"
            );
        }
    }
    let mut preload = shim.into_os_string();
    if preload.to_string_lossy().contains([' ', ':']) {
        return Err(cannot(format!(
            "LD_PRELOAD allows no space and no colon in a path, so copy the shim elsewhere: {}",
            preload.to_string_lossy()
        )));
    }
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let error = Command::new(&program)
        .arg0(name)
        .args(arguments)
        .env("LD_PRELOAD", preload)
        .envs(stack.into_iter().flat_map(Stack::settings).copied())
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .exec();
    Err(cannot(error.to_string()))
}

/// Says why there is no program of this name. A shell uses the same two statuses.
fn no_program(name: &OsStr) -> Failure {
    let shown = name.to_string_lossy();
    if !shown.contains('/') {
        let hint = match shown.starts_with('-') {
            true => "; options of regcache run stand before the --",
            false => "",
        };
        let message = format!("there is no program {shown:?} in the directories of PATH{hint}");
        return Failure::new(NOT_FOUND, message);
    }
    match fs::metadata(name) {
        Ok(_) => Failure::new(CANNOT_RUN, format!("cannot run {shown}: it is not a file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Failure::new(NOT_FOUND, format!("there is no program {shown}"))
        }
        Err(error) => Failure::new(CANNOT_RUN, format!("cannot run {shown}: {error}")),
    }
}
