//! Defines [`Files`], which reads the files that describe the kernel and the installation. Their
//! root is `/`, or a directory that a test has made.

use std::fs;
use std::path::PathBuf;

#[derive(Debug)]
pub(crate) struct Files {
    root: PathBuf,
    release: String,
}

impl Files {
    pub(crate) fn of_this_machine() -> Self {
        let uname = nix::sys::utsname::uname();
        let release = uname.map(|it| it.release().to_string_lossy().into_owned());
        Self {
            root: PathBuf::from("/"),
            release: release.unwrap_or_default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn below(root: &std::path::Path, release: &str) -> Self {
        Self {
            root: root.to_owned(),
            release: release.to_owned(),
        }
    }

    /// Returns the release of the kernel, for example `6.1.0`.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// Returns the path of a file below the root. `path` is the absolute path of the file on a real
    /// machine.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.at(path).exists()
    }

    /// Reads a file, and trims its text. Returns `None` if the file cannot be read.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.at(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Returns the sorted names of the entries of a directory.
    pub(crate) fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(dir)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Returns true if the kernel can load modules.
    pub(crate) fn loads_modules(&self) -> bool {
        self.exists("/proc/modules")
    }

    /// Returns true if modprobe would find this module for this kernel.
    pub(crate) fn has_module(&self, name: &str) -> bool {
        let modules = self.at(&format!("/lib/modules/{}", self.release));
        // The file `modules.dep` lists the modules that modprobe can find.
        let listed = fs::read_to_string(modules.join("modules.dep")).unwrap_or_default();
        let file = format!("/{name}.ko");
        listed.lines().any(|line| {
            let path = line.split(':').next().unwrap_or_default();
            format!("/{path}").contains(&file)
        })
    }

    /// Returns true if this tool was installed as a Debian package.
    pub(crate) fn has_package(&self) -> bool {
        self.exists("/usr/share/doc/regcache/README.Debian")
    }

    /// Returns true if the headers of this kernel are installed. A module cannot be built without
    /// them.
    pub(crate) fn has_headers(&self) -> bool {
        let build = format!("/lib/modules/{}/build", self.release);
        self.exists(&format!("{build}/Makefile"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Makes a directory with these files, which stands for a machine. Returns the directory, and
    /// [`Files`] whose root is this directory.
    pub(crate) fn machine(name: &str, files: &[(&str, &str)]) -> (PathBuf, Files) {
        let root = std::env::temp_dir().join(format!("doctor-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let files = Files::below(&root, "6.1.0");
        (root, files)
    }

    #[test]
    fn a_module_is_one_that_modprobe_would_find() {
        let listed = "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko.xz: kernel/a.ko\nupdates/dkms/ummunotify.ko:\n";
        let (root, files) = machine("modules", &[("/lib/modules/6.1.0/modules.dep", listed)]);
        assert!(files.has_module("rdma_rxe") && files.has_module("ummunotify"));
        assert!(!files.has_module("a") && !files.has_module("munotify"));
        fs::remove_dir_all(root).unwrap();
    }
}
