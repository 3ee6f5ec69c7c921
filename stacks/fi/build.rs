//! Links libregcache-fi.so with symbol versions, for which rustc has no option.

use std::env;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    // The compiler looks for a linker in this directory first, so it finds this `ld.bfd` before the
    // system's.
    let linker = here.join("../../verbs/preload");
    let exports = here.join("exports.map");
    let arguments = [
        format!("-B{}", linker.display()),
        "-fuse-ld=bfd".to_owned(),
        format!("-Wl,--version-script={}", exports.display()),
        // libfabric unloads its providers when it ends, but domains and the thread may live on.
        "-Wl,-z,nodelete".to_owned(),
    ];
    for argument in arguments {
        println!("cargo::rustc-cdylib-link-arg={argument}");
    }
    for input in ["build.rs", "exports.map", "../../verbs/preload/ld.bfd"] {
        println!("cargo::rerun-if-changed={input}");
    }
    Ok(())
}
