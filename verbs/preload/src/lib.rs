//! librcpreload.so: the registration cache under unmodified programs.
//!
//! Preloaded (`LD_PRELOAD`), the shim interposes libibverbs's functions that register memory. A
//! program that registers and deregisters around each transfer then registers once. The program
//! still works when it unmaps memory and uses the address again. docs/guide/preload.md is the
//! user's guide.
//!
//! Registrations:
//!
//! - `interpose.rs` defines the functions that programs call. It decides which calls are cached and
//!   which calls are passed on to libibverbs.
//! - `at_once.rs` serves the most common calls in few instructions.
//! - `process.rs` holds the state that belongs to one process. A forked child starts without that
//!   state (see `fork.rs`).
//! - `local.rs` holds the state that belongs to one thread of the process.
//! - `domain.rs` describes one protection domain and its cache.
//! - `huge.rs` recognises huge pages of hugetlbfs, whose registrations are not kept.
//! - `mrs.rs` makes the `struct ibv_mr`s that programs get.
//!
//! Outstanding work. A registration must not outlive `ibv_dereg_mr` while outstanding work uses the
//! registration:
//!
//! - `outstanding` accounts for outstanding work, and argues that the accounting is sound. This
//!   module does not depend on libibverbs.
//! - `create.rs` has the functions that open devices and create queues. `post.rs` has the functions
//!   that post work, and `poll.rs` those that poll for completions.
//! - `software.rs` has what posts to devices in software need in addition.
//! - `objects.rs` records the open devices and the queues. `directory.rs` finds a record by the
//!   object's address, and `nearest.rs` finds most queues in fewer instructions. `slots.rs` has
//!   what the functions that post and poll need to know of their device.
//! - `provider.rs` decides which devices the shim can follow. `abi.rs` declares libibverbs's
//!   structures.
//!
//! The rest:
//!
//! - `real.rs` finds libibverbs's functions. `dl.rs` interposes `dlsym`, so that programs that look
//!   a function up by name get the shim's. `elf.rs` finds libc's `dlsym`.
//! - `settings.rs` reads the environment. `counts.rs` holds the counters, and `summary.rs` writes
//!   the reports. `on_signal.rs` has one written at a signal. `notice.rs` writes messages for the
//!   user.
//!
//! # To interpose another function
//!
//! 1. `real.rs`: declare the function's type and its `Function`, and add a line to `typed!`.
//! 2. Define the function, as `#[unsafe(no_mangle)] extern "C"`: in `interpose.rs` if it concerns
//!    registrations, or in `create.rs` if it concerns devices or queues.
//! 3. `dl.rs`: add the function to `ours`, for programs that look it up with `dlsym`.
//! 4. `exports.map`: export the function under the version that libibverbs gives it.
//! 5. `tests/exports.rs`: add the name and version to the expected list.
//! 6. `tests/c/lookup.c`: add the name and version to the table `ours`.
//!
//! The header's inline functions, such as `ibv_post_send`, are not exported by libibverbs. They
//! call the context's function pointers, which `create.rs` replaces when a device is opened.
//!
//! # Rules
//!
//! The shim is not linked with libibverbs: it may be preloaded into any program, and does nothing
//! in a program that uses no verbs. The shim's constructor only remembers which file is stderr. The
//! first call sets the shim up, even a call from another library's constructor. The shim does not
//! change a call that it passes on to libibverbs.

mod abi;
mod at_once;
mod counts;
mod create;
mod directory;
mod dl;
mod domain;
mod elf;
mod fork;
mod huge;
mod interpose;
mod local;
mod mrs;
mod nearest;
mod notice;
mod objects;
mod on_signal;
mod outstanding;
mod poll;
mod post;
mod process;
mod provider;
mod real;
mod settings;
mod slots;
mod software;
mod summary;
