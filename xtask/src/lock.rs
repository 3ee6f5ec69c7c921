//! Provides a lock for steps that two processes of xtask must not run at the same time, such as
//! set-up and the driver's build.

use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{AtPath, Error};

/// A lock that is held until this value is dropped. If the process dies, the kernel releases the
/// lock.
pub(crate) struct Lock {
    _file: Flock<File>,
}

/// Takes the lock on `path`. If another xtask holds the lock, prints a message and waits.
pub(crate) fn take(path: &Path) -> Result<Lock, Error> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).at(parent)?;
    }
    let file = File::create(path).at(path)?;
    let refused = |errno: Errno| std::io::Error::from(errno);
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => file,
        Err((file, Errno::EWOULDBLOCK)) => {
            eprintln!("xtask: waiting for another xtask ({})", path.display());
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| refused(errno))
                .at(path)?
        }
        Err((_, errno)) => return Err(refused(errno)).at(path),
    };
    Ok(Lock { _file: file })
}
