//! Makes root file systems of newer Debian releases. These roots contain kernels that this
//! machine's Debian release does not have.
//!
//! The tools in a kernel's headers need the libc of the kernel's release, so the driver is built in
//! such a root. The RDMA devices of a kernel need a verbs library that supports them, so the guest
//! that boots the kernel uses the same root.
//!
//! The roots are in the target directory, like all files that xtask makes. So `cargo clean` removes
//! the roots, and two checkouts do not share a root.
//!
//! One run of mmdebstrap makes a root. Its last step writes the recipe into the root. A root
//! without this recipe is incomplete or outdated, so it is made again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::lock;
use crate::project::Project;
use crate::setup;

/// The recipe for a root and the kernel in it.
pub(crate) struct Recipe {
    /// The name of the directory. It is the kernel's series if the root has a kernel.
    pub(crate) name: &'static str,
    /// The Debian releases that provide packages. A package comes from the first release, unless
    /// only a later release in the list has the package.
    pub(crate) suites: &'static [&'static str],
    /// The packages of the kernel, as arguments for apt-get.
    pub(crate) kernel: &'static [&'static str],
    /// The other packages in the root, in lists.
    pub(crate) programs: &'static [&'static [&'static str]],
}

impl Recipe {
    /// Returns the purpose of the root, for messages.
    fn title(&self) -> String {
        if self.kernel.is_empty() {
            format!("packages ({})", self.name)
        } else {
            format!("Linux {}", self.name)
        }
    }
}

const MIRROR: &str = "http://deb.debian.org/debian";

/// The packages in a root whose guest has an RDMA device. The building and installing of modules,
/// and the tests, need these packages and `setup::PROGRAMS`.
pub(crate) const GUEST: &[&str] = &[
    "dkms",
    "file",
    "gcc",
    "gcc-multilib",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "kmod",
    "libc6-dev",
    "make",
    "perl",
    "procps",
    "rdma-core",
    "rdmacm-utils",
    "udev",
];

/// The name of a guest, as an installed system has it in /etc/hosts. Without the name, `rdma_cm`
/// finds no address of the guest's own.
const HOSTS: &str = "127.0.0.1 localhost\n127.0.0.1 xtask\n";

/// The file that contains the recipe of a root. Only a complete root contains this file.
const MARK: &str = "etc/xtask-root";

/// Returns the root for the recipe. Makes the root if it is missing.
pub(crate) fn of(project: &Project, recipe: &Recipe) -> Result<PathBuf, Error> {
    let roots = project.own_dir().join("roots");
    let root = roots.join(recipe.name);
    let made_from = made_from(project, recipe);
    if is_made(&root, &made_from) {
        return Ok(root);
    }
    setup::packages(project, &["debian-archive-keyring", "mmdebstrap"])?;
    let mut remove = Command::new("rm");
    remove.args(["-rf", "--one-file-system"]).arg(&root);
    let mut make = mmdebstrap(project, recipe, &root, &made_from);
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::SetUp(format!(
            "{} needs a Debian root file system of its own, which only root can make. Run this, then try again:\n  \
             mkdir -p {} && sudo {} && sudo {}",
            recipe.title(),
            cmd::shell_quote(&roots.to_string_lossy()),
            cmd::line(&remove),
            cmd::line(&make),
        )));
    }
    let _lock = lock::take(&roots.join(format!("{}.lock", recipe.name)))?;
    if is_made(&root, &made_from) {
        return Ok(root);
    }
    eprintln!(
        "xtask: making a root file system for {} in {} (up to 1 GB, a minute or two)",
        recipe.title(),
        root.display()
    );
    fs::create_dir_all(&roots).at(&roots)?;
    cmd::run(&mut remove)?;
    cmd::run(&mut make)?;
    if is_made(&root, &made_from) {
        return Ok(root);
    }
    Err(Error::Unexpected {
        command: cmd::line(&make),
        what: format!("{} does not hold the recipe", root.join(MARK).display()),
    })
}

/// Returns a command that runs a program in the root, with `dir` mounted at /mnt. No other process
/// sees these mounts, and the mounts end with the command.
///
/// If the user is not root, the command runs in a user namespace.
pub(crate) fn enter(root: &Path, dir: &Path, program: &str) -> Command {
    enter_with(root, &[(dir, "/mnt")], program)
}

/// Does the same as [`enter`], but mounts each directory at the path in the root that is given
/// with it. The root must have these paths.
pub(crate) fn enter_with(root: &Path, mounts: &[(&Path, &str)], program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--map-root-user", "--pid", "--fork", "--kill-child"]);
    }
    let script = r#"root=$1 && shift && mount -t proc proc "$root/proc" &&
while [ "$1" != chroot ]; do mount --bind "$1" "$root$2" && shift 2 || exit; done &&
shift && exec chroot "$root" "$@""#;
    command.args(["sh", "-c", script, "sh"]).arg(root);
    for (dir, place) in mounts {
        command.arg(dir).arg(place);
    }
    command.args(["chroot", program]);
    // On Debian, the PATH of users does not contain the directory of chroot. The program in the
    // root also needs a PATH that suits the root. So PATH is set.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Returns whether the root is complete and was made from this recipe.
fn is_made(root: &Path, made_from: &str) -> bool {
    fs::read_to_string(root.join(MARK)).is_ok_and(|mark| mark == made_from)
}

fn made_from(project: &Project, recipe: &Recipe) -> String {
    let words = [recipe.suites, recipe.kernel, &recipe.programs.concat()].concat();
    format!(
        "{}\n{}\n{}\n{}",
        words.join(" "),
        project.root.display(),
        project.target.display(),
        hosts(recipe)
    )
}

/// Returns the content of /etc/hosts. Roots for packages keep the one of their release.
fn hosts(recipe: &Recipe) -> &'static str {
    if recipe.kernel.is_empty() { "" } else { HOSTS }
}

fn mmdebstrap(project: &Project, recipe: &Recipe, root: &Path, made_from: &str) -> Command {
    // The guest mounts the repository and the target directory at these paths. A guest cannot make
    // directories in its root, so the directories are made now.
    let finish = format!(
        r#"mkdir -p "$1"{} "$1"{} && printf %s {} >>"$1/etc/hosts" && printf %s {} >"$1/{MARK}""#,
        cmd::shell_quote(&project.root.to_string_lossy()),
        cmd::shell_quote(&project.target.to_string_lossy()),
        cmd::shell_quote(hosts(recipe)),
        cmd::shell_quote(made_from),
    );
    let release = recipe.suites[0];
    // Without INITRD=No, the kernel's package would make an initramfs. Making an initramfs is slow,
    // and no guest uses one.
    // On a busy machine mmdebstrap may fail to unmount /proc of the root. Its mounts end with a
    // mount namespace of its own.
    let mut make = Command::new("unshare");
    make.args(["--mount", "env", "INITRD=No"]);
    make.args(["mmdebstrap", "--variant=minbase"]);
    make.arg(format!("--aptopt=APT::Default-Release \"{release}\"",));
    make.arg(format!(
        "--include={}",
        [&recipe.programs.concat(), recipe.kernel]
            .concat()
            .join(",")
    ));
    make.arg(format!("--customize-hook={finish}"));
    make.arg(release).arg(root);
    make.args(
        recipe
            .suites
            .iter()
            .map(|suite| format!("deb {MIRROR} {suite} main")),
    );
    make
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test runs only the last step of mmdebstrap, in an empty directory.
    #[test]
    fn only_a_complete_root_of_this_recipe_is_taken_for_made() {
        let project = Project::find().unwrap();
        let root = std::env::temp_dir().join(format!("xtask-root-{}", std::process::id()));
        fs::create_dir_all(root.join("etc")).unwrap();
        let recipe = |kernel| Recipe {
            name: "none",
            suites: &["trixie"],
            kernel,
            programs: &[],
        };
        let made_from = |kernel| super::made_from(&project, &recipe(kernel));
        assert!(!is_made(&root, &made_from(&["linux-image-a"])));

        let make = mmdebstrap(
            &project,
            &recipe(&["linux-image-a"]),
            &root,
            &made_from(&["linux-image-a"]),
        );
        let mut arguments = make.get_args().map(|argument| argument.to_string_lossy());
        let hook = arguments.find_map(|it| it.strip_prefix("--customize-hook=").map(String::from));
        cmd::run(
            Command::new("sh")
                .args(["-c", &hook.unwrap(), "exec"])
                .arg(&root),
        )
        .unwrap();
        assert!(is_made(&root, &made_from(&["linux-image-a"])));
        assert!(!is_made(&root, &made_from(&["linux-image-b"])));
        let inside = root.join(project.target.strip_prefix("/").unwrap());
        assert!(inside.is_dir());
        let hosts = fs::read_to_string(root.join("etc/hosts")).unwrap();
        assert!(hosts.contains("127.0.0.1 xtask"));
        fs::remove_dir_all(root).unwrap();
    }
}
