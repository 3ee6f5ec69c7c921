#!/usr/bin/env bash
# rdma-mummy-sys 0.2.6, and sideway on it, takes the place of libibverbs in the whole program.
#
# The crate builds a static library of wrappers, which load the real library when the program runs.
# The static library is called libibverbs.a, and its directory is on the linker's path before the
# system's. So another crate that links libibverbs, such as rdma-sys, gets the wrappers too. They have
# only the functions of verbs.h. Functions that libibverbs exports beside these, such as
# ibv_dontfork_range of infiniband/driver.h, are then undefined. A reader of the crate's description
# expects that it adds bindings and leaves the library of other crates alone.
#
# Seen: with libibverbs-dev of Debian 12, a program that calls ibv_dontfork_range is linked. The same
# program that also depends on rdma-mummy-sys is not: the symbol is undefined.
#
# The script fails if either of them ends in another way. It needs Debian 12, cmake and a Rust
# toolchain.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

mkdir src
cat >src/main.rs <<'RUST'
use std::ffi::{c_int, c_void};

#[link(name = "ibverbs")]
unsafe extern "C" {
    fn ibv_dontfork_range(base: *mut c_void, size: usize) -> c_int;
}

fn main() {
    // Without fork support the function does nothing.
    println!("{}", unsafe { ibv_dontfork_range(std::ptr::null_mut(), 0) });
    #[cfg(feature = "beside")]
    println!("{:?}", rdma_mummy_sys::ibv_get_device_list as *const c_void);
}
RUST
cat >Cargo.toml <<'TOML'
[package]
name = "linked"
version = "0.1.0"
edition = "2024"

[features]
beside = ["dep:rdma-mummy-sys"]

[dependencies]
rdma-mummy-sys = { version = "=0.2.6", optional = true }

[workspace]
TOML

status=0
output=$(cargo build --quiet 2>&1) || status=$?
echo "alone: status $status"
[ $status -eq 0 ] || { echo "$output"; exit 1; }

status=0
output=$(cargo build --quiet --features beside 2>&1) || status=$?
echo "beside rdma-mummy-sys: status $status: $(grep -o 'undefined.*ibv_dontfork_range' <<<"$output" | head -1)"
[ $status -ne 0 ] && grep -q 'undefined.*ibv_dontfork_range' <<<"$output"
