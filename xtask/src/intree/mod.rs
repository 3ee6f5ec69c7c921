//! Builds and tests the driver as a patch series for the kernel's own tree.
//!
//! `series` makes the patches from `kernel/` and applies them to Debian's source of Linux 7.3.
//! `build` compiles the result, and `boot` runs the series' kselftest. The programs that build run
//! in a root of the kernel's Debian release, because the source needs newer tools than this machine
//! may have. All files are in the target directory.

mod boot;
mod build;
mod series;
mod style;
mod tap;
mod transform;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::kernel::{self, Kernel};
use crate::lock;
use crate::project::Project;
use crate::rootfs::{self, Recipe};
use crate::setup;
use crate::source;

use boot::Guest;
use build::{Driver, Pages};

/// The package of the kernel's source.
const SOURCE: &str = "linux-source-7.3";

/// The recipe for the root. It has the source of Linux 7.3, the tools that build it, and Debian's
/// own kernel of this version.
const ROOT: Recipe = Recipe {
    name: "7.3-source",
    suites: &["trixie", "trixie-backports"],
    kernel: kernel::BACKPORT,
    programs: &[&[
        "bc",
        "bison",
        "busybox-static",
        "cpio",
        "flex",
        "gcc",
        "gcc-aarch64-linux-gnu",
        "kmod",
        "libc6-dev",
        "libelf-dev",
        SOURCE,
        "make",
        "perl",
        "python3-docutils",
        "sparse",
        "xz-utils",
    ]],
};

/// The packages of this machine that the command needs.
const PACKAGES: &[&str] = &["git", "qemu-system-x86", "xz-utils"];

/// The place in which the series is built.
struct Place<'a> {
    project: &'a Project,
    /// The root with the tools.
    root: PathBuf,
    /// Debian's own kernel in the root.
    debian: Kernel,
    /// The directory with the tree, the builds and the logs. In the root it is `/mnt`.
    dir: PathBuf,
}

impl Place<'_> {
    /// Returns the path of the source tree.
    fn tree(&self) -> PathBuf {
        self.dir.join("linux")
    }

    /// Returns a command that runs a program in the root.
    fn enter(&self, program: &str) -> Command {
        let mut command = rootfs::enter(&self.root, &self.dir, program);
        cmd::without_make_settings(&mut command);
        command
    }

    /// Returns a command that runs make in the root, with a low priority.
    fn make(&self) -> Command {
        let mut make = self.enter("nice");
        make.args(["-n", "10", "make"]);
        make
    }
}

/// A step. Its function returns a remark for the table.
struct Step {
    name: &'static str,
    run: fn(&Place<'_>) -> Result<String, Error>,
}

/// The steps in the order in which they run. The other steps use the tree that the first step
/// makes.
const STEPS: &[Step] = &[
    Step {
        name: "intree: series",
        run: |place| {
            let patches = series::apply(place.project, &place.dir, &place.tree())?;
            Ok(format!("{patches} patches"))
        },
    },
    Step {
        name: "intree: checkpatch --strict",
        run: |place| Ok(format!("{} argued remarks", style::check(place)?)),
    },
    Step {
        name: "intree: documentation",
        run: |place| check_document(place).map(|()| String::new()),
    },
    Step {
        name: "intree: W=1, sparse, module",
        run: |place| build::strictly(place, Driver::Module).map(|()| String::new()),
    },
    Step {
        name: "intree: W=1, sparse, built in",
        run: |place| build::strictly(place, Driver::BuiltIn).map(|()| String::new()),
    },
    Step {
        name: "intree: arm64, 4 KiB pages",
        run: |place| build::for_arm64(place, Pages::Of4Kib).map(|()| String::new()),
    },
    Step {
        name: "intree: arm64, 64 KiB pages",
        run: |place| build::for_arm64(place, Pages::Of64Kib).map(|()| String::new()),
    },
    Step {
        name: "intree: kselftest, built in",
        run: |place| {
            let (image, module) = build::small_kernel(place, Driver::BuiltIn)?;
            test(place, "built-in", image, module)
        },
    },
    Step {
        name: "intree: kselftest, module",
        run: |place| {
            let (image, module) = build::small_kernel(place, Driver::Module)?;
            test(place, "module", image, module)
        },
    },
    Step {
        name: "intree: kselftest, Debian 7.3",
        run: |place| {
            let module = build::for_debian(place)?;
            test(place, "debian", place.debian.image.clone(), Some(module))
        },
    },
];

/// Runs the steps whose names contain one of the words, or all if there are no words. Prints a
/// table, and returns 1 if any step failed.
pub(crate) fn run(project: &Project, words: &[String]) -> Result<u8, Error> {
    let steps = chosen(words)?;
    setup::packages(project, PACKAGES)?;
    let dir = project.own_dir().join("intree");
    let _lock = lock::take(&dir.join("lock"))?;
    let debian = kernel::find_in_root(project, &ROOT)?;
    let place = Place {
        project,
        root: debian.root.clone(),
        debian,
        dir,
    };
    unpack(&place)?;
    let mut rows = Vec::new();
    for step in steps {
        eprintln!("xtask: {}", step.name);
        let started = Instant::now();
        let ended = (step.run)(&place);
        let seconds = started.elapsed().as_secs();
        let (verdict, note) = match ended {
            Ok(note) => ("ok", note),
            Err(error) => {
                eprintln!("xtask: {error}");
                ("failed", "see above".to_owned())
            }
        };
        rows.push((step.name, verdict, note, seconds));
        // Without the series, the tree is not the one to test.
        if verdict == "failed" && rows.len() == 1 {
            break;
        }
    }
    println!();
    for (name, verdict, note, seconds) in &rows {
        let comma = if note.is_empty() { "" } else { ", " };
        println!("{name:32} {seconds:4} s  {verdict}{comma}{note}");
    }
    if rows
        .first()
        .is_some_and(|(_, verdict, ..)| *verdict == "ok")
    {
        println!("patches: {}", place.dir.join("series").display());
    }
    Ok(u8::from(
        rows.iter().any(|(_, verdict, ..)| *verdict != "ok"),
    ))
}

/// Returns the steps whose names contain one of the words, and the first step. Returns all steps if
/// there are no words, and an error if a word selects no step.
fn chosen(words: &[String]) -> Result<Vec<&'static Step>, Error> {
    let has = |step: &Step, word: &String| step.name.contains(word.as_str());
    if let Some(word) = words
        .iter()
        .find(|word| !STEPS.iter().any(|step| has(step, word)))
    {
        let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        return Err(Error::SetUp(format!(
            "no step's name contains `{word}`. The steps are:\n  {}",
            names.join("\n  ")
        )));
    }
    let steps = STEPS.iter().enumerate();
    let steps = steps.filter(|(at, step)| {
        *at == 0 || words.is_empty() || words.iter().any(|word| has(step, word))
    });
    Ok(steps.map(|(_, step)| step).collect())
}

/// Unpacks the kernel's source. The builds of another version are removed.
fn unpack(place: &Place<'_>) -> Result<(), Error> {
    let package = source::Package {
        name: SOURCE,
        root: &place.root,
    };
    if package.is_unpacked(&place.dir)? {
        return Ok(());
    }
    for stale in ["original", "x86", "arm64-4k", "arm64-64k", "debian"] {
        let stale = place.dir.join(stale);
        if stale.exists() {
            fs::remove_dir_all(&stale).at(&stale)?;
        }
    }
    package.unpack(&place.dir, &["*"]).map(drop)
}

/// Reads the documentation as Sphinx would, without the rest of the tree. Each remark is an error.
fn check_document(place: &Place<'_>) -> Result<(), Error> {
    let mut docutils = place.enter("python3");
    docutils.args(["-m", "docutils", "--report=1", "--halt=2", "--writer=null"]);
    docutils.arg(format!("/mnt/linux/{}", series::DOCUMENT));
    cmd::read(&mut docutils).map(drop)
}

/// Runs the kselftest in a guest.
fn test(
    place: &Place<'_>,
    name: &'static str,
    image: PathBuf,
    module: Option<PathBuf>,
) -> Result<String, Error> {
    let selftest = build::selftest(place)?;
    let guest = Guest {
        name,
        image,
        module,
        selftest,
    };
    let [as_root, as_user] = boot::run(place, &guest)?;
    Ok(format!(
        "{as_root} tests passed as root, {as_user} as another user"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_select_steps_and_the_series_is_always_made() {
        let names = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            let steps = chosen(&words)?;
            Ok::<_, Error>(steps.iter().map(|step| step.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap().len(), STEPS.len());
        assert_eq!(
            names(&["arm64"]).unwrap(),
            [
                "intree: series",
                "intree: arm64, 4 KiB pages",
                "intree: arm64, 64 KiB pages"
            ]
        );
        let error = names(&["sparc"]).unwrap_err().to_string();
        assert!(error.contains("`sparc`") && error.contains("intree: series"));
    }
}
