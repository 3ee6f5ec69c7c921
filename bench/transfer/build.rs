//! Compiles `libfabric/link.c`, which calls libfabric, if the feature `libfabric` is on.

fn main() {
    println!("cargo::rerun-if-changed=libfabric/link.c");
    #[cfg(feature = "libfabric")]
    libfabric();
}

#[cfg(feature = "libfabric")]
fn libfabric() {
    let library = pkg_config::Config::new()
        .atleast_version("1.14")
        .probe("libfabric")
        .expect("the feature `libfabric` needs libfabric and its headers (Debian: libfabric-dev)");
    cc::Build::new()
        .file("libfabric/link.c")
        .includes(library.include_paths)
        .warnings(true)
        .compile("link");
}
