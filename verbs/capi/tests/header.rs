//! `regcache.h` is what `cbindgen` makes of the source, compiles as C99 and as C++17 with every warning an error, and it, the
//! version script, and the manual page name the same functions.
//!
//! `REGCACHE_WRITE_HEADER=1` writes the header anew.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(here().join(name)).unwrap()
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(here().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(here().join("src/types.rs"))
        .with_src(here().join("src/api.rs"))
        .generate()
        .unwrap();
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_what_the_source_says() {
    let made = generated();
    if std::env::var_os("REGCACHE_WRITE_HEADER").is_some() {
        fs::write(here().join("regcache.h"), &made).unwrap();
    }
    assert!(
        read("regcache.h") == made,
        "regcache.h is out of date: REGCACHE_WRITE_HEADER=1 cargo test -p regcache-capi --test header"
    );
}

/// Words that are followed by a parenthesis in the code of the header.
fn functions_in(header: &str) -> BTreeSet<String> {
    let mut code = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        code += before;
        rest = after.split_once("*/").unwrap().1;
    }
    code += rest;
    names(&code.replace('(', "(\n"), |line| line.strip_suffix('('))
}

fn names(text: &str, of_line: impl Fn(&str) -> Option<&str>) -> BTreeSet<String> {
    let word = |line| of_line(line)?.rsplit([' ', '*', '\t']).next();
    let words = text.lines().filter_map(word);
    let ours = words.filter(|word| word.starts_with("regcache_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn header_version_script_and_manual_name_the_same_functions() {
    let declared = functions_in(&read("regcache.h"));
    assert_eq!(declared.len(), 13, "{declared:?}");
    let exported = names(&read("regcache.map"), |line| line.strip_suffix(';'));
    assert_eq!(declared, exported);
    let manual = read("regcache.3");
    for function in declared {
        assert!(manual.contains(&function), "regcache.3 lacks {function}");
    }
}

fn compiles(compiler: &str, standard: &str, file: &str, program: &str) {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = dir.join(file);
    fs::write(&source, program).unwrap();
    let ran = Command::new(compiler)
        .args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .args(["-Wshadow", "-Wconversion", "-fsyntax-only", "-I"])
        .arg(here())
        .arg(&source)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{compiler} {standard}: {said}");
}

const USE: &str = r#"
int use(struct ibv_pd *pd);
int use(struct ibv_pd *pd)
{
	struct regcache_attr attr;
	struct regcache *cache;
	struct regcache_mr mr;
	attr.size = sizeof attr;
	if (regcache_create(pd, &attr, &cache) < 0)
		return 1;
	return regcache_get(cache, &attr, sizeof attr, REGCACHE_LOCAL_WRITE, &mr) + regcache_put(mr.guard);
}
"#;

#[test]
fn the_header_compiles_alone_as_c99_and_as_cpp17() {
    let program = format!("#include <regcache.h>\n#include <regcache.h>\n{USE}");
    compiles("gcc", "-std=c99", "alone.c", &program);
    compiles("g++", "-std=c++17", "alone.cpp", &program);
}

#[test]
fn the_header_agrees_with_libibverbs() {
    let both = r#"
#include <infiniband/verbs.h>
#include <regcache.h>
int pd_of(struct ibv_qp *qp, struct regcache **cache);
int pd_of(struct ibv_qp *qp, struct regcache **cache)
{
	return regcache_create(qp->pd, NULL, cache);
}
"#;
    compiles("g++", "-std=c++17", "both.cpp", both);
    let flags = [
        "LOCAL_WRITE",
        "REMOTE_WRITE",
        "REMOTE_READ",
        "REMOTE_ATOMIC",
        "HUGETLB",
        "RELAXED_ORDERING",
    ];
    let same = flags.map(|flag| {
        format!("_Static_assert(REGCACHE_{flag} == IBV_ACCESS_{flag}, \"the same\");\n")
    });
    let program = format!("{both}{}", same.concat());
    compiles("gcc", "-std=c11", "both.c", &program);
}
