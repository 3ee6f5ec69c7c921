//! [`Uring`]: a ring of io_uring with fixed buffers. The other end of each transfer is a file in
//! memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use io_uring::{IoUring, opcode, types};
use memmap2::MmapMut;
use nix::errno::Errno;
use regcache_uring::{FixedBuffer, UringRegistrar};

use crate::endpoint::{Endpoint, Keyed, Memory, Provider};
use crate::error::Trying;
use crate::{Error, Op};

/// The number of entries in the submission queue.
const ENTRIES: u32 = 256;

/// The number of slots in the table of fixed buffers.
const SLOTS: u32 = 16_384;

impl Keyed for FixedBuffer {
    fn key(&self) -> u32 {
        u32::from(self.index())
    }
}

/// A ring with a table of fixed buffers. The ring supports only one endpoint.
pub struct Uring {
    ring: Arc<Mutex<IoUring>>,
    registrar: UringRegistrar,
}

impl Uring {
    /// Makes a ring.
    ///
    /// # Errors
    ///
    /// Returns the kernel's errors, for example `EPERM` if `kernel.io_uring_disabled` forbids
    /// io_uring, or `ENOSYS` if a sandbox forbids it.
    pub fn open() -> Result<Self, Error> {
        let ring = IoUring::new(ENTRIES).trying("make a ring")?;
        let registrar = UringRegistrar::new(&ring, SLOTS).trying("register a table of buffers")?;
        Ok(Self {
            ring: Arc::new(Mutex::new(ring)),
            registrar,
        })
    }
}

impl Provider for Uring {
    type Registrar = UringRegistrar;

    fn registrar(&self) -> UringRegistrar {
        self.registrar.clone()
    }

    fn access(&self, _: Op) {}

    fn endpoint(&self, size: usize, depth: usize) -> Result<Box<dyn Endpoint>, Error> {
        if Arc::strong_count(&self.ring) > 1 {
            return Err(Error::Cannot(
                "io_uring is measured with one thread: use --threads 1".to_owned(),
            ));
        }
        if depth > ENTRIES as usize {
            return Err(Error::Cannot(format!(
                "depth {depth} is too large: the ring holds {ENTRIES} requests"
            )));
        }
        let stride = size.next_multiple_of(regcache_test_support::PAGE);
        // SAFETY: the name ends with a NUL byte.
        let fd = unsafe { libc::memfd_create(c"regcache-bench".as_ptr(), libc::MFD_CLOEXEC) };
        let fd = Errno::result(fd).trying("make a file in memory")?;
        // SAFETY: the descriptor was made above, and nothing else owns the descriptor.
        let file = unsafe { File::from_raw_fd(fd) };
        let len = stride * depth;
        file.set_len(len as u64)
            .trying("set the size of a file in memory")?;
        // SAFETY: nothing else uses the file, and the size of the file does not change.
        let mut bytes = unsafe { MmapMut::map_mut(&file) }.trying("map a file in memory")?;
        bytes.fill(0);
        Ok(Box::new(RingEndpoint {
            ring: Arc::clone(&self.ring),
            file,
            bytes,
            stride,
            size,
            outstanding: 0,
        }))
    }
}

struct RingEndpoint {
    ring: Arc<Mutex<IoUring>>,
    file: File,
    /// The mapping of the file.
    bytes: MmapMut,
    stride: usize,
    size: usize,
    outstanding: usize,
}

impl Endpoint for RingEndpoint {
    unsafe fn post(&mut self, place: usize, op: Op, memory: Memory) -> Result<(), Error> {
        let fd = types::Fd(self.file.as_raw_fd());
        let offset = (place * self.stride) as u64;
        let (len, index) = (memory.len as u32, memory.key as u16);
        let entry = match op {
            Op::Write => opcode::WriteFixed::new(fd, memory.at, len, index)
                .offset(offset)
                .build(),
            Op::Read => opcode::ReadFixed::new(fd, memory.at, len, index)
                .offset(offset)
                .build(),
            Op::Send => {
                return Err(Error::Cannot(
                    "io_uring has no send by fixed buffers: use --op write or --op read".to_owned(),
                ));
            }
        };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller promises that the buffer stays mapped and registered until the request
        // ends. The file outlives the request, because `drop` waits for the request.
        let pushed = unsafe { ring.submission().push(&entry.user_data(place as u64)) };
        pushed.map_err(|_| Error::Cannot("the submission queue is full".to_owned()))?;
        ring.submit().trying("submit to the ring")?;
        self.outstanding += 1;
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<usize>, Error> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(completion) = ring.completion().next() else {
            return Ok(None);
        };
        self.outstanding -= 1;
        match usize::try_from(completion.result()) {
            Ok(moved) if moved == self.size => Ok(Some(completion.user_data() as usize)),
            Ok(moved) => Err(Error::Transfer(format!("{moved} of {} bytes", self.size))),
            Err(_) => {
                let error = io::Error::from_raw_os_error(-completion.result());
                Err(Error::Transfer(error.to_string()))
            }
        }
    }

    fn peer(&mut self, place: usize) -> Result<&mut [u8], Error> {
        let start = place * self.stride;
        Ok(&mut self.bytes[start..start + self.size])
    }
}

impl Drop for RingEndpoint {
    fn drop(&mut self) {
        // The kernel may use the memory of a posted request until the request ends. So `drop` waits
        // for all posted requests, before the caller unmaps their memory.
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        while self.outstanding > 0 {
            self.outstanding -= ring.completion().count();
            if self.outstanding > 0 && ring.submit_and_wait(1).is_err() {
                std::thread::yield_now();
            }
        }
    }
}
