//! Checks whether the dynamic linker can preload a library into a program.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Returns the path of the executable file that a shell would run for this name.
pub(crate) fn in_path(program: &OsStr) -> Option<PathBuf> {
    let as_path = Path::new(program);
    if as_path.components().count() > 1 {
        return as_path.is_file().then(|| as_path.to_owned());
    }
    let path = env::var_os("PATH")?;
    let mut places = env::split_paths(&path).map(|dir| dir.join(program));
    places.find(|place| fs::metadata(place).is_ok_and(|it| it.is_file() && it.mode() & 0o111 != 0))
}

/// Returns the reason why no library can be preloaded into `program`. Returns `None` if a library
/// can be preloaded.
pub(crate) fn out_of_reach(program: &Path) -> io::Result<Option<&'static str>> {
    if fs::metadata(program)?.mode() & 0o6000 != 0 {
        return Ok(Some(
            "it changes its user or group, and the dynamic linker preloads nothing into such a \
             program: run a copy without the setuid bit, as that user",
        ));
    }
    let mut file = File::open(program)?;
    let mut header = [0; 64];
    if file.read_exact(&mut header).is_err() || header[..4] != *b"\x7fELF" {
        // A file that is not in the ELF format is taken for a script. The shim is preloaded into
        // the interpreter of the script, and into the children of the interpreter.
        return Ok(None);
    }
    if header[4] != 2 {
        return Ok(Some(
            "it is a 32-bit program, and the shim is for 64-bit programs",
        ));
    }
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let offset = u64::from_le_bytes(header[32..40].try_into().unwrap_or_default());
    let (size, count) = (word(54), word(56));
    file.seek(SeekFrom::Start(offset))?;
    let mut table = vec![0; size * count];
    file.read_exact(&mut table)?;
    // A segment of the type PT_INTERP (3) names the dynamic linker. So a program with such a
    // segment is dynamically linked.
    let dynamic = size >= 4
        && table
            .chunks_exact(size)
            .any(|entry| entry[..4] == [3, 0, 0, 0]);
    Ok((!dynamic).then_some(
        "it is linked statically, so nothing can be preloaded into it: link it dynamically",
    ))
}
