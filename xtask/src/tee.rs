//! Shows a program's output while the program runs, and keeps a copy of the output. The copy is
//! searched for results later.

use std::io::{self, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cmd;
use crate::error::{AtPath, Error};

/// A writer that passes each line to this process's stdout, and keeps all lines.
pub(crate) struct Tee {
    kept: Kept,
    line: Vec<u8>,
    withheld: &'static str,
}

/// The bytes that were written to a `Tee`.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    /// Returns the text that was written so far.
    pub(crate) fn text(&self) -> String {
        // The bytes are valid even if a thread panicked while it appended bytes. So a poisoned lock
        // is ignored.
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Tee {
    /// Makes a `Tee`. Lines that begin with `withheld` are kept but not shown. If `withheld` is
    /// empty, every line is shown.
    pub(crate) fn new(withheld: &'static str) -> (Self, Kept) {
        let kept = Kept::default();
        let tee = Self {
            kept: kept.clone(),
            line: Vec::new(),
            withheld,
        };
        (tee, kept)
    }

    fn end_line(&mut self) -> io::Result<()> {
        let shown = self.withheld.is_empty() || !self.line.starts_with(self.withheld.as_bytes());
        let line = std::mem::take(&mut self.line);
        if shown {
            io::stdout().write_all(&line)
        } else {
            Ok(())
        }
    }
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.kept
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.end_line()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // An incomplete line is shown at once, if it cannot become a withheld line. For example,
        // the name of a test is shown before the test's verdict.
        let withheld = self.withheld.as_bytes();
        if withheld.is_empty()
            || !withheld.starts_with(&self.line) && !self.line.starts_with(withheld)
        {
            self.end_line()?;
        }
        io::stdout().flush()
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        // Writing fails if stdout is closed. This error is ignored, because nobody would see a
        // message about it.
        let _ = self.end_line();
        let _ = io::stdout().flush();
    }
}

/// Runs the command on this machine, and passes its stdout and stderr through one `Tee`. Returns
/// the exit status and the output.
pub(crate) fn run(
    command: &mut Command,
    withheld: &'static str,
) -> Result<(ExitStatus, String), Error> {
    let line = cmd::line(command);
    let (mut reader, writer) = io::pipe().at("pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().at("pipe")?)
        .stderr(writer);
    let mut child = command.spawn().map_err(|source| Error::Command {
        command: line,
        why: format!("could not be started: {source}"),
    })?;
    // The command holds copies of the pipe's write end. While these copies are open, the reader
    // does not reach the end of the pipe. So the copies are closed here.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (mut tee, kept) = Tee::new(withheld);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = reader.read(&mut buffer).at("pipe")?;
        if n == 0 {
            break;
        }
        tee.write_all(&buffer[..n])
            .and_then(|()| tee.flush())
            .at("stdout")?;
    }
    drop(tee);
    let status = child.wait().at("wait")?;
    Ok((status, kept.text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_are_kept_to_the_last_byte_and_the_status_returned() {
        let script = "echo kept: a; echo kept: b >&2; printf 'kept: c'; exit 3";
        let (status, text) = run(Command::new("sh").args(["-c", script]), "kept:").unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(text, "kept: a\nkept: b\nkept: c");
    }
}
