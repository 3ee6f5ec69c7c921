//! librcpreload.so: the registration cache under unmodified programs.
//!
//! Preloaded (`LD_PRELOAD`), it interposes libibverbs's functions that register memory. A program
//! that registers and deregisters around each transfer then registers once. It goes on working when
//! its memory is unmapped and the address used again. docs/guide/preload.md is the user's guide.
//!
//! Registrations:
//!
//! - `interpose.rs` has the functions that programs call, and decides which calls are cached and
//!   which pass on to libibverbs.
//! - `process.rs` has all that belongs to one process. A forked child starts with none of it, by
//!   `fork.rs`.
//! - `domain.rs` has one protection domain, with its cache.
//! - `mrs.rs` has the `struct ibv_mr`s that programs get.
//!
//! Work that is outstanding, since a registration must not outlive `ibv_dereg_mr` while work uses
//! it:
//!
//! - `outstanding` is the accounting, with the argument that it is sound. It knows nothing of
//!   libibverbs.
//! - `create.rs` has the functions that open devices and create queues, `post.rs` and `poll.rs`
//!   those that post and poll.
//! - `objects.rs` has the shim's knowledge about devices and queues, `directory.rs` finds it by
//!   address.
//! - `provider.rs` knows which devices can be followed, `abi.rs` has libibverbs's structures.
//!
//! The rest:
//!
//! - `real.rs` finds libibverbs's functions. `dl.rs` makes programs that look for them by `dlsym`
//!   find the shim's. `elf.rs` finds libc's `dlsym`.
//! - `settings.rs` reads the environment, `counts.rs` counts, `summary.rs` writes the counts at
//!   exit, and `notice.rs` speaks to the user.
//!
//! # Rules
//!
//! libibverbs is not linked: the shim may be preloaded into any program, and does nothing in one
//! that uses no verbs. There is no constructor: the first call sets everything up, even one from
//! another library's constructor. Calls that pass on do so unchanged.

mod abi;
mod counts;
mod create;
mod directory;
mod dl;
mod domain;
mod elf;
mod fork;
mod interpose;
mod mrs;
mod notice;
mod objects;
mod outstanding;
mod poll;
mod post;
mod process;
mod provider;
mod real;
mod settings;
mod summary;
