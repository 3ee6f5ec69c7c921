//! [`Private`]: a file descriptor that other code may close behind the library's back. [`Signal`]:
//! a flag that a thread can wait for with `poll`.
//!
//! Daemons close all file descriptors at their start, for example with `closefrom`. The kernel then
//! gives the numbers to files of the program. If the library used its numbers as before, it would
//! take data away from the program, or write into its files. So the library checks first whether
//! the number still names its own file:
//!
//! - Each file of the library has an inode of its own, except for an epoll instance and the
//!   driver's device. The check compares the inode.
//! - The numbers that the library holds are in a table, with a token for each file. If the library
//!   gets a number that it believes to hold already, the earlier file was closed. The token of that
//!   file is then no longer in the table. So no cache takes another one's device for its own.
//! - An epoll instance is only polled. Before it is closed, the check compares the list of files
//!   that it watches.
//!
//! A program that closes the library's descriptors while a thread is between the check and the use
//! cannot be protected.

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use super::file_id::FileId;

/// The number of descriptors in the table. Few programs have a higher one. Such a one has no token.
const NUMBERS: usize = 4096;

/// The tokens of the files that the library holds, by descriptor.
static TOKENS: [AtomicU64; NUMBERS] = [const { AtomicU64::new(0) }; NUMBERS];

/// The last token that was given out.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A descriptor of the library; see the head of this file. The descriptor is closed on drop, unless
/// its number names another file by then.
#[derive(Debug)]
pub(crate) struct Private<T: AsFd> {
    it: ManuallyDrop<T>,
    token: u64,
    file: FileId,
    /// The files that an epoll instance watches, in the kernel's words.
    watches: Option<String>,
}

/// Returns the files that an epoll instance watches, in the kernel's words. Returns `None` for
/// another kind of file, or if the kernel does not tell.
fn watches(descriptor: BorrowedFd<'_>) -> Option<String> {
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
    let said = fs::read_to_string(path).ok()?;
    said.contains("tfd:").then_some(said)
}

fn token_of(descriptor: BorrowedFd<'_>) -> Option<&'static AtomicU64> {
    TOKENS.get(usize::try_from(descriptor.as_raw_fd()).ok()?)
}

impl<T: AsFd> Private<T> {
    pub(crate) fn new(it: T) -> io::Result<Self> {
        let token = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let (file, watches) = (FileId::of(it.as_fd().as_raw_fd())?, watches(it.as_fd()));
        if let Some(place) = token_of(it.as_fd()) {
            place.store(token, Ordering::Relaxed);
        }
        Ok(Self {
            it: ManuallyDrop::new(it),
            token,
            file,
            watches,
        })
    }

    /// Returns the file.
    ///
    /// # Errors
    ///
    /// `EBADF`, if the number of the descriptor does not name the file any more.
    pub(crate) fn get(&self) -> io::Result<&T> {
        match FileId::of(self.it.as_fd().as_raw_fd()) {
            Ok(file) if file == self.file => self.get_quickly(),
            _ => Err(Errno::EBADF.into()),
        }
    }

    /// Does the same as [`get`](Self::get), but finds only files that the library has opened since,
    /// and makes no system call. So the caller must do no harm to any other file.
    pub(crate) fn get_quickly(&self) -> io::Result<&T> {
        let token = token_of(self.it.as_fd()).map(|it| it.load(Ordering::Relaxed));
        if token.is_some_and(|token| token != self.token) {
            return Err(Errno::EBADF.into());
        }
        Ok(&self.it)
    }

    /// Returns the file without a check. The caller only polls it.
    pub(crate) fn unchecked(&self) -> BorrowedFd<'_> {
        self.it.as_fd()
    }
}

impl<T: AsFd> Drop for Private<T> {
    fn drop(&mut self) {
        let is_ours = self.get().is_ok()
            && (self.watches.is_none() || self.watches == watches(self.it.as_fd()));
        if is_ours {
            if let Some(place) = token_of(self.it.as_fd()) {
                // Once the number is free, another thread may get it and store its own token.
                let (token, relaxed) = (self.token, Ordering::Relaxed);
                let _ = place.compare_exchange(token, 0, relaxed, relaxed);
            }
            // SAFETY: the file is dropped once, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.it) };
        }
    }
}

/// A flag for threads that wait for it with `poll`: a pair of connected sockets. Unlike an eventfd,
/// each socket has an inode of its own. If the sockets are closed, a waiting thread usually wakes:
/// but `poll` then looks the numbers up again, and goes on waiting if they name other files by
/// then.
#[derive(Debug)]
pub(crate) struct Signal {
    reader: Private<UnixStream>,
    writer: Private<UnixStream>,
}

impl Signal {
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        Ok(Self {
            reader: Private::new(reader)?,
            writer: Private::new(writer)?,
        })
    }

    /// Makes the flag poll readable. Does not block, allocate or raise `SIGPIPE`.
    pub(crate) fn raise(&self) {
        const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        if let Ok(writer) = self.writer.get() {
            let byte = [1_u8];
            // If the socket is full, the flag is raised already. So an error needs no handling.
            // SAFETY: the byte may be read.
            unsafe { libc::send(writer.as_raw_fd(), byte.as_ptr().cast(), 1, FLAGS) };
        }
    }

    /// Makes the flag poll not readable, until it is raised again.
    ///
    /// # Errors
    ///
    /// `EBADF`, if the sockets were closed.
    pub(crate) fn lower(&self) -> io::Result<()> {
        let reader = self.reader.get()?.as_raw_fd();
        let mut bytes = [0_u8; 64];
        loop {
            let (start, length) = (bytes.as_mut_ptr().cast(), bytes.len());
            // SAFETY: the buffer may be written.
            let got = unsafe { libc::recv(reader, start, length, libc::MSG_DONTWAIT) };
            match Errno::result(got) {
                Ok(got) if got.unsigned_abs() == length => {}
                Ok(_) | Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Makes the flag poll readable for ever, with `POLLHUP`. Returns false if other code has
    /// closed a socket. A thread may then wait for ever, even for files that exist no more.
    pub(crate) fn end(&self) -> bool {
        match self.writer.get() {
            Ok(writer) => writer.shutdown(Shutdown::Both).is_ok() && self.is_open(),
            Err(_) => false,
        }
    }

    /// Returns true if other code has closed neither socket.
    pub(crate) fn is_open(&self) -> bool {
        self.reader.get().is_ok() && self.writer.get().is_ok()
    }
}

impl AsFd for Signal {
    /// Returns the descriptor to poll.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.unchecked()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test")]

    use std::fs::File;
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_raised(signal: &Signal) -> bool {
        let mut fds = [PollFd::new(signal.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn a_signal_is_raised_until_it_is_lowered() {
        let signal = Signal::new().unwrap();
        assert!(!is_raised(&signal));
        for count in [1, 2, 64, 128, 100_000] {
            for _ in 0..count {
                signal.raise();
            }
            assert!(is_raised(&signal), "{count}");
            signal.lower().unwrap();
            assert!(!is_raised(&signal), "{count}");
        }
        assert!(signal.end());
        assert!(is_raised(&signal));
        signal.lower().unwrap();
        assert!(is_raised(&signal), "it ended");
    }

    /// Puts another file in the place of the descriptor, as a program does that closes all
    /// descriptors and opens its own.
    fn replace(descriptor: BorrowedFd<'_>, other: &impl AsFd) -> OwnedFd {
        let (number, other) = (descriptor.as_raw_fd(), other.as_fd().as_raw_fd());
        // SAFETY: the test accepts that the descriptor names another file from now on.
        assert_eq!(unsafe { libc::dup2(other, number) }, number);
        // SAFETY: the number is this function's own now.
        unsafe { OwnedFd::from_raw_fd(number) }
    }

    #[test]
    fn a_descriptor_that_names_another_file_is_neither_used_nor_closed() {
        let private = Private::new(File::open("/dev/null").unwrap()).unwrap();
        assert!(private.get().is_ok());
        let other = File::open("/dev/zero").unwrap();
        let replaced = replace(private.unchecked(), &other);
        let error = private.get().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        drop(private);
        assert!(FileId::of(replaced.as_raw_fd()).is_ok(), "still open");
    }

    #[test]
    fn a_signal_whose_sockets_were_closed_touches_no_other_file() {
        let signal = Signal::new().unwrap();
        let (theirs, peer) = UnixStream::pair().unwrap();
        let numbers = [signal.reader.unchecked(), signal.writer.unchecked()];
        let replaced = numbers.map(|it| replace(it, &theirs));
        signal.raise();
        assert!(!signal.end());
        assert!(signal.lower().is_err());
        assert!(!signal.is_open());
        drop(signal);
        drop(theirs);
        peer.set_nonblocking(true).unwrap();
        let nothing = io::Read::read(&mut &peer, &mut [0; 8]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        drop(replaced);
    }

    /// Two files of the library may be the same file to the kernel, as with the driver's device.
    #[test]
    fn a_number_that_the_library_gets_again_is_lost_to_its_earlier_owner() {
        let first = Private::new(File::open("/dev/null").unwrap()).unwrap();
        let number = first.unchecked().as_raw_fd();
        // SAFETY: the test accepts that the descriptor is closed.
        assert_eq!(unsafe { libc::close(number) }, 0);
        let again = loop {
            let again = File::open("/dev/null").unwrap().into_raw_fd();
            // SAFETY: the descriptor was just opened. Another test may have taken the number.
            let again = unsafe { File::from_raw_fd(again) };
            if again.as_raw_fd() == number {
                break Private::new(again).unwrap();
            }
        };
        assert!(first.get().is_err() && first.get_quickly().is_err());
        drop(first);
        assert!(again.get().is_ok());
    }
}
