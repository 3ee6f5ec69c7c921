//! io_uring for [`regcache`]: fixed buffers as registrations.
//!
//! A fixed buffer of io_uring is a registration, as a memory region of an RDMA adapter is. The
//! pages of the buffer are pinned once, and requests name the buffer by its index. So `READ_FIXED`
//! and `WRITE_FIXED` need not pin pages in each request.
//!
//! For each transfer, a program has to find a fixed buffer that covers the memory. The memory may
//! have been unmapped, and other memory mapped at the address. In that case an older fixed buffer
//! still names the old pages. A cache returns a fixed buffer that names the current pages.
//!
//! - [`UringRegistrar`] is a [`regcache::Registrar`] that makes [`FixedBuffer`]s in the table of
//!   the program's own ring.
//! - [`FileIo`] has its own ring. Its functions borrow the memory of a transfer, and return after
//!   the transfer is complete. So `read` and `write` are safe functions.
//!
//! ```
//! use std::fs::File;
//! use std::os::fd::AsFd;
//! use regcache::Cache;
//! use regcache_uring::FileIo;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let io = FileIo::new()?;
//! let cache = Cache::builder(io.registrar().clone()).build()?;
//! let (reader, writer) = std::io::pipe()?;
//! let source = vec![7_u8; 4096];
//! let mut sink = vec![0_u8; 4096];
//! io.write(&cache, writer.as_fd(), &source, 0)?;
//! io.read(&cache, reader.as_fd(), &mut sink, 0)?;
//! assert_eq!(source, sink);
//! # Ok(())
//! # }
//! ```
//!
//! If the program has its own ring, each transfer starts with a lookup. The request names the fixed
//! buffer by its index. The guard must live until the completion:
//!
//! ```
//! use io_uring::{IoUring, opcode, types};
//! use regcache::Cache;
//! use regcache_uring::UringRegistrar;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut ring = IoUring::new(8)?;
//! let cache = Cache::builder(UringRegistrar::new(&ring, 1024)?).build()?;
//! let (_reader, writer) = std::io::pipe()?;
//! let bytes = vec![7_u8; 4096];
//!
//! let guard = cache.get(bytes.as_ptr(), bytes.len(), ())?;
//! let fd = types::Fd(std::os::fd::AsRawFd::as_raw_fd(&writer));
//! let index = guard.registration().index();
//! let request = opcode::WriteFixed::new(fd, bytes.as_ptr(), bytes.len() as u32, index).build();
//! // SAFETY: `submit_and_wait` waits for the request, and `bytes` lives longer.
//! unsafe { ring.submission().push(&request) }?;
//! ring.submit_and_wait(1)?;
//! drop(guard);
//! # assert_eq!(ring.completion().next().map(|it| it.result()), Some(4096));
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

mod file_io;
mod registrar;
mod table;

pub use file_io::{Error, FileIo};
pub use registrar::{FixedBuffer, UringRegistrar};

/// Asserts at compile time that any thread may use [`UringRegistrar`] and [`FileIo`].
const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<UringRegistrar>();
    any_thread::<FileIo>();
};
