//! Checks the monitors: the driver, and userfaultfd.

use regcache::error::chain;
use regcache::monitor::{OpenError, Ummunotify, Userfaultfd, UserfaultfdError};

use super::{Files, Finding};

/// Returns the name of the monitor that a cache on this machine uses by default: the driver, or
/// else userfaultfd.
pub(crate) fn best() -> Option<&'static str> {
    if Ummunotify::open().is_ok() {
        return Some("ummunotify");
    }
    Userfaultfd::open().is_ok().then_some("userfaultfd")
}

pub(crate) fn look(files: &Files) -> Vec<Finding> {
    let driver = Ummunotify::open().map(drop);
    let fallback = Userfaultfd::open().map(drop);
    vec![driver_of(files, driver), fallback_of(fallback)]
}

fn driver_of(files: &Files, opened: Result<(), OpenError>) -> Finding {
    let subject = "ummunotify";
    let error = match opened {
        Ok(()) => {
            let said = |name: &str| {
                let path = format!("/sys/module/ummunotify/{name}");
                files.read(&path).unwrap_or_else(|| "unknown".to_owned())
            };
            let (version, tool) = (said("version"), env!("CARGO_PKG_VERSION"));
            let differs = if version == tool {
                String::new()
            } else {
                format!(" (the tool has version {tool}, and works with this driver)")
            };
            return Finding::good(
                subject,
                format!(
                    "/dev/ummunotify opens; version {version}{differs}, up to {} ranges per user",
                    said("parameters/max_user_regions")
                ),
            );
        }
        Err(error) => error,
    };
    match error {
        OpenError::NoPermission { .. } => {
            Finding::missing(subject, "this user may not open /dev/ummunotify")
                .fixed_by("chmod a+r /dev/ummunotify")
        }
        OpenError::NoDriver { .. } => no_driver(files),
        // With these errors the device file exists, but the driver is no longer loaded.
        OpenError::Open { ref source, .. }
            if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) =>
        {
            no_driver(files)
        }
        other => Finding::missing(subject, chain(&other).to_string()),
    }
}

fn no_driver(files: &Files) -> Finding {
    let missing = |says: &str| Finding::missing("ummunotify", says);
    if files.exists("/sys/module/ummunotify") {
        return missing(
            "the driver is loaded, but /dev/ummunotify does not exist (in a container, pass the file in: \
             docker run --device=/dev/ummunotify:r)",
        )
        .fixed_by(format!(
            "mknod -m 444 /dev/ummunotify c 10 {}",
            minor(files).as_deref().unwrap_or("MINOR")
        ));
    }
    if files.has_module("ummunotify") {
        return missing("the driver is installed, but not loaded").fixed_by("modprobe ummunotify");
    }
    if !files.loads_modules() {
        return missing(
            "this kernel loads no modules, so the driver is not available: boot one that does",
        );
    }
    if files.has_package() {
        return missing("the driver is not installed")
            .fixed_by(format!(
                "apt-get install ummunotify-dkms linux-headers-{}",
                files.release()
            ))
            .fixed_by("modprobe ummunotify");
    }
    let missing = missing(
        "the driver is not installed. In the root of the repository (docs/guide/install.md):",
    );
    let missing = if files.has_headers() {
        missing
    } else {
        missing.fixed_by(format!(
            "apt-get install --no-install-recommends gcc make kmod linux-headers-{}",
            files.release()
        ))
    };
    missing
        .fixed_by("make -C kernel install")
        .fixed_by("modprobe ummunotify")
}

/// Reads the minor number of the driver's device.
fn minor(files: &Files) -> Option<String> {
    let misc = files.read("/proc/misc")?;
    let mut words = misc.lines().map(str::split_whitespace);
    words.find_map(|mut line| {
        let minor = line.next()?;
        (line.next()? == "ummunotify").then(|| minor.to_owned())
    })
}

fn fallback_of(opened: Result<(), UserfaultfdError>) -> Finding {
    let subject = "userfaultfd";
    match opened {
        Ok(()) => Finding::good(
            subject,
            "works, with a check at each lookup; caches private anonymous memory if there is no driver",
        ),
        Err(UserfaultfdError::NoCheck { .. }) => Finding::note(
            subject,
            "this kernel cannot check memory at each lookup (Linux 6.7 can), and events alone come \
             too late. Not needed with the driver",
        ),
        Err(UserfaultfdError::GuardPages { .. }) => Finding::note(
            subject,
            "this kernel has guard pages, which this user cannot detect without permission to handle \
             kernel page faults. Not needed with the driver",
        )
        .fixed_by("sysctl vm.unprivileged_userfaultfd=1"),
        Err(UserfaultfdError::Refused { source }) => {
            let why = match source.raw_os_error() {
                Some(libc::ENOSYS) => "this kernel is built without it",
                Some(libc::EPERM) => {
                    "a sandbox forbids it (docker: --security-opt seccomp=FILE, with a file that \
                     allows userfaultfd)"
                }
                _ => return Finding::note(subject, format!("refused: {source}")),
            };
            Finding::note(subject, format!("{why}. Not needed with the driver"))
        }
        Err(other) => Finding::note(subject, chain(&other).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::path::PathBuf;

    use super::super::Level;
    use super::super::files::tests::machine;
    use super::*;

    fn not_there() -> Result<(), OpenError> {
        let path = PathBuf::from("/dev/ummunotify");
        Err(OpenError::NoDriver { path })
    }

    #[test]
    fn the_commands_for_a_missing_driver_are_those_that_are_needed() {
        let dep = ("/lib/modules/6.1.0/modules.dep", "updates/ummunotify.ko:");
        let modules = ("/proc/modules", "");
        let makefile = ("/lib/modules/6.1.0/build/Makefile", "");
        let loaded = ("/sys/module/ummunotify/version", "0.1.0");
        let misc = ("/proc/misc", " 58 rdma_cm\n125 ummunotify\n");
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
        let package = ("/usr/share/doc/regcache/README.Debian", "");
        let cases: [Case<'_>; 6] = [
            (
                "package",
                &[modules, package],
                &[
                    "apt-get install ummunotify-dkms linux-headers-6.1.0",
                    "modprobe ummunotify",
                ],
            ),
            (
                "loaded",
                &[loaded, misc, dep],
                &["mknod -m 444 /dev/ummunotify c 10 125"],
            ),
            ("installed", &[dep, modules], &["modprobe ummunotify"]),
            ("bare", &[misc], &[]),
            (
                "headers",
                &[modules, makefile],
                &["make -C kernel install", "modprobe ummunotify"],
            ),
            (
                "nothing",
                &[modules],
                &[
                    "apt-get install --no-install-recommends gcc make kmod linux-headers-6.1.0",
                    "make -C kernel install",
                    "modprobe ummunotify",
                ],
            ),
        ];
        for (name, has, expected) in cases {
            let (root, files) = machine(&format!("driver-{name}"), has);
            let found = driver_of(&files, not_there());
            assert_eq!(found.level, Level::Missing, "{name}");
            assert_eq!(found.fix, expected, "{name}");
            fs::remove_dir_all(root).unwrap();
        }
    }

    #[test]
    fn a_driver_of_another_version_works_and_the_report_says_so() {
        for (version, says) in [
            (env!("CARGO_PKG_VERSION"), false),
            ("0.0.9", true),
            ("99.0.0", true),
        ] {
            let loaded = [("/sys/module/ummunotify/version", version)];
            let (root, files) = machine(&format!("version-{version}"), &loaded);
            let found = driver_of(&files, Ok(()));
            assert_eq!(found.level, Level::Good);
            assert_eq!(found.says.contains("works with this driver"), says);
            fs::remove_dir_all(root).unwrap();
        }
    }

    #[test]
    fn userfaultfd_is_never_more_than_a_note() {
        let source = io::Error::from_raw_os_error(libc::EPERM);
        let found = fallback_of(Err(UserfaultfdError::Refused { source }));
        assert_eq!(found.level, Level::Note);
        assert!(found.says.contains("sandbox"), "{}", found.says);
    }
}
