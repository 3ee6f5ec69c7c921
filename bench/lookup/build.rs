//! Compiles the stand-in for the driver. If the feature `ucx` is on, also compiles `ucx/shim.c`
//! against UCX's installed header and links libucs.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let driver = "../../tests/support/c/fake-driver.c";
    println!("cargo::rerun-if-changed={driver}");
    cc::Build::new()
        .file(driver)
        .flag("-std=gnu11")
        .extra_warnings(true)
        .try_compile("regcache_bench_driver")?;
    #[cfg(feature = "ucx")]
    shim()?;
    Ok(())
}

#[cfg(feature = "ucx")]
fn shim() -> Result<(), Box<dyn std::error::Error>> {
    let shim = "ucx/shim.c";
    println!("cargo::rerun-if-changed={shim}");
    let ucs = pkg_config::Config::new()
        .cargo_metadata(false)
        .probe("ucx-ucs")
        .map_err(|error| {
            format!("UCX's development files are needed (Debian: libucx-dev): {error}")
        })?;
    cc::Build::new()
        .file(shim)
        .includes(&ucs.include_paths)
        .flag("-std=gnu11")
        // The build must fail if the functions of the installed UCX have other signatures.
        .flag("-Werror=incompatible-pointer-types")
        .extra_warnings(true)
        .try_compile("regcache_bench_ucx")?;
    // The linker resolves symbols from left to right. So libucs must follow the object of
    // `ucx/shim.c`, which calls libucs.
    for path in &ucs.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    for library in &ucs.libs {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    Ok(())
}
