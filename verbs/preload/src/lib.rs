//! librcpreload.so: the registration cache under programs that are not changed.
//!
//! Preloaded (`LD_PRELOAD`), it stands before libibverbs's functions that register memory. A
//! program that registers and deregisters around each transfer then registers once, and goes on
//! working when its memory is unmapped and the address used again. docs/guide/preload.md is for
//! those who use it.
//!
//! - `interpose.rs` has the functions that programs call, and decides what is cached and what is
//!   passed on to libibverbs.
//! - `process.rs`: all that belongs to one process. A forked child starts with none of it.
//! - `domain.rs`: one protection domain, with its cache.
//! - `mrs.rs`: the `struct ibv_mr`s that programs are given.
//! - `real.rs` finds libibverbs's functions, `dl.rs` makes programs that look for them by `dlsym`
//!   find ours, `elf.rs` finds libc's `dlsym`.
//! - `settings.rs` reads the environment, `counts.rs` counts, `summary.rs` writes the counts at
//!   exit, and `notice.rs` speaks to the user.
//!
//! # What is never done
//!
//! libibverbs is not linked: the shim may be preloaded into any program, and what is no verbs
//! program gets nothing but a library that does nothing. No constructor: whoever calls first, from
//! a constructor of its own maybe, has everything set up. Nothing is kept that the program could
//! tell: what is passed on is passed on as it came.

mod abi;
mod counts;
mod create;
mod directory;
mod dl;
mod domain;
mod elf;
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
