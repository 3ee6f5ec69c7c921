//! io_uring for [`regcache`]: fixed buffers as registrations.
//!
//! A fixed buffer is to io_uring what a memory region is to an RDMA adapter. Its pages are pinned
//! once, and requests name it by its index. If the memory is unmapped and the kernel gives out the
//! address again, the buffer still names the old pages. `READ_FIXED` and `WRITE_FIXED` save the
//! pinning in each request, but the program has to know its fixed buffers. A cache keeps track of
//! them.
//!
//! - [`UringRegistrar`] is a [`regcache::Registrar`] that makes [`FixedBuffer`]s in the table of
//!   your ring.
//! - [`FileIo`] has a ring of its own. Its transfers block, borrow the memory they touch, and are
//!   safe to call.
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
//! With your own ring, a transfer takes a lookup, a request with the index of the buffer, and a
//! guard that lives until the completion:
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
//! // SAFETY: `bytes` outlives the request, which is waited for.
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

/// Any thread may use both types.
const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<UringRegistrar>();
    any_thread::<FileIo>();
};
