//! The monitors: the driver, and userfaultfd.

use std::error::Error;

use regcache::monitor::{OpenError, Ummunotify, Userfaultfd, UserfaultfdError};

use super::{Files, Finding};

/// What a cache would be on.
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
            return Finding::good(
                subject,
                format!(
                    "/dev/ummunotify opens; version {}, {} ranges a user",
                    said("version"),
                    said("parameters/max_user_regions")
                ),
            );
        }
        Err(error) => error,
    };
    match error {
        OpenError::NoPermission { .. } => {
            Finding::missing(subject, "/dev/ummunotify may not be opened by this user")
                .mended_by("chmod a+r /dev/ummunotify")
        }
        OpenError::NoDriver { .. } => no_driver(files),
        // A node of a driver that is not loaded any more.
        OpenError::Open { ref source, .. }
            if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) =>
        {
            no_driver(files)
        }
        other => Finding::missing(subject, whole(&other)),
    }
}

fn no_driver(files: &Files) -> Finding {
    let missing = |says: &str| Finding::missing("ummunotify", says);
    if files.exists("/sys/module/ummunotify") {
        return missing(
            "the driver is loaded, but /dev/ummunotify is not here (in a container: pass it in, docker run --device=/dev/ummunotify:r)",
        )
        .mended_by(format!(
            "mknod -m 444 /dev/ummunotify c 10 {}",
            minor(files).as_deref().unwrap_or("MINOR")
        ));
    }
    if files.has_module("ummunotify") {
        return missing("the driver is installed and not loaded").mended_by("modprobe ummunotify");
    }
    if !files.loads_modules() {
        return missing(
            "this kernel loads no modules, so that the driver cannot be had: take one that does",
        );
    }
    let missing =
        missing("the driver is not installed (docs/guide/install.md; in the repository's root)");
    let missing = if files.has_headers() {
        missing
    } else {
        missing.mended_by(format!(
            "apt-get install --no-install-recommends gcc make kmod linux-headers-{}",
            files.release()
        ))
    };
    missing
        .mended_by("make -C kernel install")
        .mended_by("modprobe ummunotify")
}

/// The driver's minor number.
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
            "with the check at each lookup; for private anonymous memory, where there is no driver",
        ),
        Err(UserfaultfdError::NoCheck { .. }) => Finding::note(
            subject,
            "this kernel has no check (Linux 6.7 has): its events alone come too late. Not needed where the driver is",
        ),
        Err(UserfaultfdError::GuardPages { .. }) => Finding::note(
            subject,
            "this kernel has guard pages, and a user who may not serve the kernel's page faults does not see them. Not needed where the driver is",
        )
        .mended_by("sysctl vm.unprivileged_userfaultfd=1"),
        Err(UserfaultfdError::Refused { source }) => {
            let why = match source.raw_os_error() {
                Some(libc::ENOSYS) => "this kernel is built without it",
                Some(libc::EPERM) => {
                    "a sandbox forbids it (docker: --security-opt seccomp=FILE with userfaultfd allowed)"
                }
                _ => return Finding::note(subject, format!("refused: {source}")),
            };
            Finding::note(subject, format!("{why}. Not needed where the driver is"))
        }
        Err(other) => Finding::note(subject, whole(&other)),
    }
}

/// The error and what led to it.
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
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
    fn what_mends_a_missing_driver_is_what_is_missing_of_it() {
        let dep = ("/lib/modules/6.1.0/modules.dep", "updates/ummunotify.ko:");
        let modules = ("/proc/modules", "");
        let makefile = ("/lib/modules/6.1.0/build/Makefile", "");
        let loaded = ("/sys/module/ummunotify/version", "0.1.0");
        let misc = ("/proc/misc", " 58 rdma_cm\n125 ummunotify\n");
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
        let cases: [Case<'_>; 5] = [
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
            assert_eq!(found.mend, expected, "{name}");
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
