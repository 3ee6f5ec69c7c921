//! Checks `regcache.h`. The header must be the one that `cbindgen` generates from the source. It
//! must compile as C99 and as C++17 without warnings. The header, the version script and the manual
//! page must name the same functions. The header must have the version of the package, and the
//! descriptions of statistics from the table in regcache/src/stats.rs.
//!
//! `REGCACHE_WRITE_HEADER=1` writes a new header.
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

/// A row of the table of statistics: the field, the Prometheus metric and the description.
type Row = (&'static str, &'static str, &'static str);

macro_rules! rows {
    ($({ $field:ident: $type:ty, $metric:literal, $description:literal })*) => {
        &[$((stringify!($field), $metric, $description),)*]
    };
}

const STATISTICS: &[Row] = regcache::for_each_statistic!(rows);

/// Writes the source of `struct regcache_stats` with the macro expanded, because `cbindgen` does
/// not expand macros.
fn source_of_stats() -> PathBuf {
    let field = |(field, _, description): &Row| format!("/// {description}\npub {field}: u64,\n");
    let fields: String = STATISTICS.iter().map(field).collect();
    let text = "/// The statistics of a cache: counts since it was created, and its contents now.";
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stats.rs");
    let source = format!("{text}\n#[repr(C)]\npub struct Stats {{\n{fields}}}\n");
    fs::write(&file, source).unwrap();
    file
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(here().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(here().join("src/types.rs"))
        .with_src(source_of_stats())
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

#[test]
fn the_header_has_the_version_of_the_package() {
    let header = read("regcache.h");
    for (part, is) in [
        ("MAJOR", env!("CARGO_PKG_VERSION_MAJOR")),
        ("MINOR", env!("CARGO_PKG_VERSION_MINOR")),
        ("PATCH", env!("CARGO_PKG_VERSION_PATCH")),
    ] {
        let line = format!("\n#define REGCACHE_VERSION_{part} {is}\n");
        assert!(header.contains(&line), "the header lacks {line}");
    }
}

#[test]
fn the_header_fits_100_columns() {
    let header = read("regcache.h");
    let long: Vec<_> = header.lines().filter(|line| width(line) > 100).collect();
    assert!(long.is_empty(), "{long:#?}");
}

/// Returns the width of a line in columns, with tab stops every 8 columns.
fn width(line: &str) -> usize {
    line.chars().fold(
        0,
        |at, char| if char == '\t' { at / 8 * 8 + 8 } else { at + 1 },
    )
}

#[test]
fn statistics_are_described_in_the_same_words_everywhere() {
    let header = read("regcache.h");
    let guide = read("../../docs/guide/operations.md");
    let metrics = regcache::Stats::default().prometheus("x").to_string();
    for (field, metric, description) in STATISTICS {
        let in_header = format!("* {description}\n         */\n        uint64_t {field};");
        assert!(header.contains(&in_header), "the header lacks {in_header}");
        let help = format!("# HELP regcache_{metric} {description}\n");
        assert!(metrics.contains(&help), "the metrics lack {help}");
        let row = format!("| `{field}` | {description} |");
        assert!(guide.contains(&row), "operations.md lacks {row}");
    }
}

/// Returns the names in the header's code that are followed by a parenthesis.
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
    assert_eq!(declared.len(), 22, "{declared:?}");
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
