//! Defines [`Uring`], a [`Device`] that reads memory through fixed buffers of io_uring.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use regcache::monitor::Monitor;
use regcache::{Cache, Guard};
use regcache_uring::{FileIo, UringRegistrar};

use crate::device::{Device, Result};

/// The capacity of the pipe in bytes. One transfer can move at most this many bytes.
const CAPACITY: usize = 1 << 20;

/// A ring, a cache of the ring's fixed buffers, and a pipe. The ring writes the bytes of a buffer
/// into the pipe, and the CPU reads these bytes from the pipe.
#[derive(Debug)]
pub struct Uring<M: Monitor> {
    io: FileIo,
    cache: Cache<UringRegistrar, M>,
    reader: PipeReader,
    writer: PipeWriter,
}

impl<M: Monitor> Uring<M> {
    /// Makes a ring, and a cache on `monitor`.
    ///
    /// # Errors
    ///
    /// Returns the errors of the kernel.
    pub fn new(monitor: M) -> io::Result<Self> {
        let io = FileIo::new()?;
        let cache = Cache::builder(io.registrar().clone())
            .monitor(monitor)
            // The kernel could map the stack of a reaper thread at addresses that a scenario has
            // just unmapped. So the cache has no reaper.
            .background_reaper(false)
            .build()?;
        let (reader, writer) = io::pipe()?;
        // SAFETY: the file descriptor belongs to the pipe, which is open.
        let sized = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, CAPACITY) };
        Errno::result(sized)?;
        Ok(Self {
            io,
            cache,
            reader,
            writer,
        })
    }

    /// Returns the cache.
    #[must_use]
    pub fn cache(&self) -> &Cache<UringRegistrar, M> {
        &self.cache
    }

    /// Lets the device read `bytes` through the registration of `guard`. The length of `bytes` must
    /// be at most 1 MiB. Only one thread may call this function at a time, because all callers
    /// share the pipe.
    ///
    /// # Errors
    ///
    /// Returns the errors of the device.
    pub fn read_by(&self, bytes: &[u8], guard: &Guard<UringRegistrar, M>) -> Result<Vec<u8>> {
        // SAFETY: the registration may be stale, because the scenarios test for stale
        // registrations. A stale registration does no harm here, because the device only reads the
        // old pages.
        let moved = unsafe {
            self.io
                .write_registered(self.writer.as_fd(), bytes, guard.registration(), 0)
        }?;
        let mut arrived = vec![0; moved];
        (&self.reader).read_exact(&mut arrived)?;
        if moved != bytes.len() {
            return Err(format!("{moved} bytes of {} arrived", bytes.len()).into());
        }
        Ok(arrived)
    }
}

impl<M: Monitor> Device for Uring<M> {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn monitor_name(&self) -> &'static str {
        self.cache.monitor_name()
    }

    fn read_out(&self, bytes: &[u8]) -> Result<(Vec<u8>, bool)> {
        let guard = self.cache.get(bytes.as_ptr(), bytes.len(), ())?;
        let arrived = self.read_by(bytes, &guard)?;
        Ok((arrived, guard.is_cached()))
    }

    fn flush(&self) -> Result<()> {
        self.cache.flush()?;
        Ok(())
    }
}
