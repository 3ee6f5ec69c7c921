//! Builds the Debian packages from `packaging/debian`, and tests them.
//!
//! - `source.rs` exports the source: the tree of the commit, the crates and the packaging files.
//! - `crates.rs` vendors the crates, and writes their part of the file `debian/copyright`.
//! - `build.rs` builds the packages in a root file system of a Debian release.
//! - `trial.rs` installs, upgrades and removes the packages, and uses them.
//!
//! All files are in `target/xtask/package`. The packages are in the directory of their release.

mod build;
mod crates;
mod source;
mod trial;

use std::path::PathBuf;
use std::time::Instant;

use crate::error::Error;
use crate::kernel::Series;
use crate::project::Project;
use crate::rootfs::{self, Recipe};
use crate::setup;

/// The packages of the programs that this machine needs to export the source.
pub(crate) const PACKAGES: &[&str] = &["git", "gzip", "tar"];

/// The Debian releases for which packages are built.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(crate) enum Release {
    /// Build for Debian 12
    #[value(name = "12")]
    Bookworm,
    /// Build for Debian 13
    #[value(name = "13")]
    Trixie,
}

impl Release {
    const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    fn number(self) -> &'static str {
        match self {
            Self::Bookworm => "12",
            Self::Trixie => "13",
        }
    }

    fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// Returns the series of the release's kernel.
    fn series(self) -> Series {
        match self {
            Self::Bookworm => Series::Installed,
            Self::Trixie => Series::Trixie,
        }
    }

    /// Returns the root in which packages are built.
    fn build_root(self, project: &Project) -> Result<PathBuf, Error> {
        self.root(project, ["build-12", "build-13"], &[build::PACKAGES])
    }

    /// Returns the root in which packages are installed. It has no packages but those that each
    /// Debian system has.
    fn bare_root(self, project: &Project) -> Result<PathBuf, Error> {
        self.root(project, ["bare-12", "bare-13"], &[&["apt"]])
    }

    /// Returns a root of this release with these programs. `names` has a name for each release.
    fn root(
        self,
        project: &Project,
        names: [&'static str; 2],
        programs: &'static [&'static [&'static str]],
    ) -> Result<PathBuf, Error> {
        let (name, suites): (_, &[_]) = match self {
            Self::Bookworm => (names[0], &["bookworm"]),
            Self::Trixie => (names[1], &["trixie"]),
        };
        rootfs::of(
            project,
            &Recipe {
                name,
                suites,
                kernel: &[],
                programs,
            },
        )
    }
}

/// The releases, and the extent of the tests.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build only for this Debian release
    #[arg(long, value_enum)]
    release: Option<Release>,
    /// Build once and without the source package, instead of twice to compare the results
    #[arg(long)]
    once: bool,
    /// Use the packages that were built before
    #[arg(long, conflicts_with = "once", requires = "test")]
    built: bool,
    /// Install, use, upgrade and remove the packages afterwards
    ///
    /// The packages are installed in root file systems that contain nothing else. The driver's
    /// package is installed in a copy of the root of a virtual machine, which then loads the
    /// driver.
    #[arg(long)]
    test: bool,
    /// Run only the parts of the test whose names contain one of these words
    #[arg(value_name = "PART", requires = "test")]
    parts: Vec<String>,
}

/// Builds the packages, and tests them if the options ask for it.
pub(crate) fn run(project: &Project, options: &Options) -> Result<u8, Error> {
    check_root()?;
    setup::packages(project, &[setup::VM, PACKAGES].concat())?;
    let releases = Release::ALL.into_iter();
    let releases: Vec<_> = releases
        .filter(|it| options.release.is_none_or(|one| one == *it))
        .collect();
    if !options.built {
        let source = source::export(project, None)?;
        for release in &releases {
            build::packages(project, &source, *release, options.once)?;
        }
    }
    if options.test {
        for release in releases {
            trial::run(project, release, &options.parts, options.built)?;
        }
    }
    Ok(0)
}

/// Builds the packages for Debian 12, and installs and removes them in a bare root. The caller must
/// be root.
pub(crate) fn gate(project: &Project) -> Result<(), Error> {
    let release = Release::Bookworm;
    let source = source::export(project, None)?;
    build::packages(project, &source, release, true)?;
    trial::install(project, release)
}

fn check_root() -> Result<(), Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::SetUp(
        "only root can build the packages in clean root file systems: run this command as root"
            .to_owned(),
    ))
}

/// Prints a step's name, runs the step, and prints the step's time.
fn step<T>(name: &str, job: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    eprintln!("xtask: package: {name}");
    let started = Instant::now();
    let done = job()?;
    eprintln!(
        "xtask: package: {name}: ok ({} s)",
        started.elapsed().as_secs()
    );
    Ok(done)
}
