#!/usr/bin/env bash
# rdma-sys 0.3.0 cannot be built where libclang is version 16 or later, as on Debian 13.
#
# The crate makes its bindings during the build, with bindgen 0.59.2. Since clang 16, a type without
# a name is spelled by its place in the source. That bindgen makes an identifier of the spelling, and
# fails. verbs.h has many such unions, so nothing of the crate can be used. 0.3.0 is the newest
# release, and its version requirement allows no bindgen later than 0.59. A reader of the manifest
# expects that any libclang will do.
#
# Seen: Debian 12's headers (libibverbs-dev, librdmacm-dev) with the wheels of libclang 15.0.6.1 and
# 18.1.1. With the first the program is built, with the second the build script ends with an error
# that says "is not a valid Ident".
#
# The script fails if either of them ends in another way. It needs Debian 12 and a Rust toolchain.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "bindings"
version = "0.1.0"
edition = "2021"

[dependencies]
rdma-sys = "=0.3.0"

[workspace]
TOML
echo 'fn main() { println!("{}", std::mem::size_of::<rdma_sys::ibv_qp>()); }' >src/main.rs

# The wheels have no headers of the compiler, so GCC's are used with both.
headers=$(dirname "$(gcc -print-file-name=include/stddef.h)")

# Builds the program with this version of libclang. Prints the end of the output.
build() {
	python3 -m pip download --quiet --no-deps --dest "wheel-$1" "libclang==$1"
	python3 -m zipfile -e wheel-"$1"/*.whl "wheel-$1"
	LIBCLANG_PATH=$(dirname "$(find "$PWD/wheel-$1" -name 'libclang*.so')") BINDGEN_EXTRA_CLANG_ARGS="-I$headers" \
		RUST_BACKTRACE=0 cargo build --quiet --target-dir "target-$1" 2>&1
}

status=0
output=$(build 15.0.6.1) || status=$?
echo "libclang 15.0.6.1: status $status"
[ $status -eq 0 ] || { echo "$output"; exit 1; }

status=0
output=$(build 18.1.1) || status=$?
echo "libclang 18.1.1: status $status: $(grep -o 'is not a valid Ident' <<<"$output" | head -1)"
[ $status -ne 0 ] && grep -q 'is not a valid Ident' <<<"$output"
