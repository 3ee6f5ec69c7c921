//! [`Notices`]: writes messages for the user to the file that a descriptor named at the start.
//!
//! A daemon closes its standard descriptors, and a file of its own may then get the number 2. So a
//! message is written only while the number still names the same file. Otherwise it is lost.

use std::os::fd::RawFd;
use std::sync::OnceLock;

use super::cancel::Uncancelled;
use super::file_id::FileId;

/// A descriptor for messages, and the file that it named at the start.
#[derive(Debug)]
pub struct Notices {
    descriptor: RawFd,
    /// `None` if the descriptor was closed.
    file: OnceLock<Option<FileId>>,
}

impl Notices {
    /// Returns a value that writes nothing before [`begin`](Self::begin).
    pub const fn to(descriptor: RawFd) -> Self {
        Self {
            descriptor,
            file: OnceLock::new(),
        }
    }

    /// Remembers which file the descriptor names now. Only the first call has an effect.
    pub fn begin(&self) {
        self.file.get_or_init(|| FileId::of(self.descriptor).ok());
    }

    /// Writes a line with one call of `write`, so that the lines of several processes do not mix.
    pub fn write(&self, line: &str) {
        let _uncancelled = Uncancelled::begin();
        let known = self.file.get().copied().flatten();
        if known.is_none() || FileId::of(self.descriptor).ok() != known {
            return;
        }
        let line = format!("{line}\n");
        // SAFETY: the bytes may be read. If the write fails, the line is lost.
        unsafe { libc::write(self.descriptor, line.as_ptr().cast(), line.len()) };
    }
}

/// Defines a function `notice`. It writes a line with this prefix to the stderr that the process
/// had when the library was loaded.
#[doc(hidden)]
#[macro_export]
macro_rules! notices_to_stderr {
    ($prefix:literal) => {
        static STDERR: $crate::internal::Notices =
            $crate::internal::Notices::to(libc::STDERR_FILENO);

        extern "C" fn at_load() {
            STDERR.begin();
        }

        #[used]
        // SAFETY: the section holds addresses of functions without parameters, and the loader calls
        // each once.
        #[unsafe(link_section = ".init_array")]
        static AT_LOAD: extern "C" fn() = at_load;

        /// Writes one line.
        pub(crate) fn notice(text: std::fmt::Arguments<'_>) {
            STDERR.write(&format!(concat!($prefix, "{}"), text));
        }
    };
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Returns everything that was written to the other end, which is closed.
    fn read(mut end: UnixStream) -> String {
        let mut text = String::new();
        end.read_to_string(&mut text)
            .expect("the other end is closed");
        text
    }

    #[test]
    fn a_message_goes_to_the_file_of_the_start_or_nowhere() {
        let (first, at_first) = UnixStream::pair().unwrap();
        let (second, at_second) = UnixStream::pair().unwrap();
        let notices = Notices::to(first.as_raw_fd());
        notices.write("too early");
        notices.begin();
        notices.write("one");
        // The program's own file gets the number. That closes the file of the start.
        // SAFETY: both descriptors belong to this test.
        unsafe { libc::dup2(second.as_raw_fd(), first.as_raw_fd()) };
        notices.write("two");
        notices.begin();
        notices.write("three");
        drop((first, second));
        assert_eq!(read(at_first), "one\n");
        assert_eq!(read(at_second), "");
    }

    #[test]
    fn without_a_file_at_the_start_nothing_is_written() {
        let notices = Notices::to(-1);
        notices.begin();
        notices.write("lost");
    }
}
