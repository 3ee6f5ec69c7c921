//! Makes the table that shows which monitor detects which scenario. The documentation contains this
//! table.
//!
//! This command builds the programs that run the scenarios. It runs these programs on this machine
//! and in virtual machines. Then it joins the tables of the programs into one table, and writes
//! this table into the documentation.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::process::Command;

use crate::cmd;
use crate::error::{AtPath, Error};
use crate::kernel::Series;
use crate::project::{Project, cargo};
use crate::setup;
use crate::tee::{self, Tee};
use crate::vm;

/// The document that contains the table. The table is between the lines `BEGIN` and `END`.
const DOCUMENT: &str = "docs/design/why-a-driver.md";
const BEGIN: &str = "<!-- cargo xtask test --matrix: from here -->\n";
const END: &str = "<!-- cargo xtask test --matrix: to here -->\n";

/// The first characters of a program's table.
const HEAD: &str = "| scenario |";

/// The compiler's target for a program that is linked statically. Such a program does not use this
/// machine's libc.
const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";

/// The scenarios whose result can depend on libc. Only these scenarios run again in a program with
/// a statically linked libc.
const STATIC_SCENARIOS: &str = "munmap_then_mmap raw_munmap_then_mmap madvise_dontneed map_fixed_over fork_then_write \
                                munmap_in_another_thread_then_mmap thread_ends_and_another_has_its_stack";

/// The command lines of the programs with other allocators. The environment variables make the
/// allocators return freed memory to the kernel immediately.
const ALLOCATORS: [&str; 2] = [
    "_RJEM_MALLOC_CONF=dirty_decay_ms:0,muzzy_decay_ms:0 target/release/matrix-jemalloc --label 'jemalloc: '",
    "MIMALLOC_PURGE_DELAY=0 target/release/matrix-mimalloc --label 'mimalloc: '",
];

/// Runs the matrix on this machine and in the virtual machines. Returns 1 if a cell is wrong.
pub(crate) fn run(project: &Project) -> Result<u8, Error> {
    setup::packages(project, &[setup::VM, setup::BUILD].concat())?;
    build(project)?;
    let mut table = Table::default();
    let mut failed = false;

    let of_musl =
        format!("target/{STATIC_TARGET}/release/matrix --label 'static musl: ' {STATIC_SCENARIOS}");
    let mut here = vec!["target/release/matrix".to_owned(), of_musl];
    here.extend(ALLOCATORS.map(str::to_owned));
    let mut command = Command::new("sh");
    command
        .args(["-c", &script(&here)])
        .current_dir(&project.root);
    let (status, text) = tee::run(&mut command, "")?;
    failed |= !status.success();
    table.add(
        &text,
        &release(&cmd::read(Command::new("uname").arg("-r"))?),
    );

    let mut on_the_driver = vec!["target/release/matrix-rxe".to_owned()];
    let mut on_a_new_kernel = on_the_driver.clone();
    for command in ["target/release/matrix"].into_iter().chain(ALLOCATORS) {
        let driver = format!("{command} --column ummunotify");
        on_a_new_kernel.push(format!("{driver} --column userfaultfd"));
        on_the_driver.push(driver);
    }
    for (kernel, name, commands) in [
        (Series::Installed, "6.1", on_the_driver),
        (Series::TrixieBackports, "7.3", on_a_new_kernel),
    ] {
        let (ok, text) = in_vm(project, kernel, &script(&commands))?;
        failed |= !ok;
        table.add(&text, name);
    }

    print!("\n{}", table.text());
    table.write(project)?;
    Ok(u8::from(failed))
}

fn build(project: &Project) -> Result<(), Error> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "regcache-conformance"]);
    build.args(["--package", "regcache-tests-vm", "--bin", "matrix"]);
    for program in ["matrix-rxe", "matrix-jemalloc", "matrix-mimalloc"] {
        build.args(["--bin", program]);
    }
    cmd::run(&mut build)?;
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", STATIC_TARGET]);
    cmd::run(rustup.current_dir(&project.root))?;
    let mut build = cargo();
    build.args(["build", "--release", "--package", "regcache-conformance"]);
    build.args(["--bin", "matrix", "--target", STATIC_TARGET]);
    cmd::run(&mut build)
}

/// Returns a script that runs all commands. The script fails if one of the commands fails.
fn script(commands: &[String]) -> String {
    let mut script = "failed=0\n".to_owned();
    for command in commands {
        script += &format!("{command} || failed=1\n");
    }
    script + "exit $failed\n"
}

fn in_vm(project: &Project, kernel: Series, script: &str) -> Result<(bool, String), Error> {
    let machine = vm::Machine {
        kernel,
        ..vm::Machine::default()
    };
    let (stdout, kept) = Tee::new("");
    let command = ["sh", "-c", script].map(OsString::from);
    let job = vm::Job {
        command: &command,
        stdout: Box::new(stdout),
        stderr: Some(Box::new(std::io::stderr())),
    };
    let status = vm::run(project, &machine, job)?;
    Ok((status == 0, kept.text()))
}

/// Returns the first two numbers of a kernel's release: `6.1` for `6.1.0-56-amd64`.
fn release(uname: &str) -> String {
    let mut parts = uname.trim().split('.');
    let (major, minor) = (parts.next().unwrap_or("?"), parts.next().unwrap_or("?"));
    format!("{major}.{minor}")
}

/// The tables of several programs, joined into one table.
#[derive(Debug, Default)]
struct Table {
    columns: Vec<String>,
    rows: Vec<String>,
    cells: HashMap<(String, String), String>,
}

impl Table {
    /// Adds the tables that programs have printed on this kernel.
    fn add(&mut self, text: &str, kernel: &str) {
        let mut columns: Vec<String> = Vec::new();
        for line in text.lines() {
            let cells: Vec<_> = line
                .trim_matches(|c| c == '|' || c == ' ')
                .split(" | ")
                .collect();
            if line.starts_with(HEAD) {
                let named = cells[1..].iter().map(|name| format!("{name}, {kernel}"));
                columns = named.collect();
                for column in &columns {
                    if !self.columns.contains(column) {
                        self.columns.push(column.clone());
                    }
                }
            } else if line.starts_with("| ") && cells.len() == columns.len() + 1 {
                let row = cells[0].to_owned();
                if !self.rows.contains(&row) {
                    self.rows.push(row.clone());
                }
                for (column, cell) in columns.iter().zip(&cells[1..]) {
                    let key = (row.clone(), column.clone());
                    self.cells.insert(key, (*cell).to_owned());
                }
            }
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{HEAD} {} |\n", self.columns.join(" | "));
        text += &format!("|---|{}\n", "---|".repeat(self.columns.len()));
        for row in &self.rows {
            let cell = |column: &String| {
                let cell = self.cells.get(&(row.clone(), column.clone()));
                cell.map_or("", String::as_str)
            };
            let cells: Vec<_> = self.columns.iter().map(cell).collect();
            text += &format!("| {row} | {} |\n", cells.join(" | "));
        }
        text
    }

    fn write(&self, project: &Project) -> Result<(), Error> {
        let path = project.root.join(DOCUMENT);
        let document = fs::read_to_string(&path).at(&path)?;
        let document = replace(&document, &self.text()).ok_or_else(|| {
            Error::SetUp(format!(
                "{DOCUMENT} has no place for the table: add these two lines to it\n{BEGIN}{END}"
            ))
        })?;
        fs::write(&path, document).at(&path)
    }
}

/// Returns the document with `table` in place of its present table. Returns `None` if the document
/// has no table.
fn replace(document: &str, table: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_several_kernels_become_one() {
        let mut table = Table::default();
        table.add(
            "noise\n| scenario | d, a | d, b |\n|---|---|---|\n| x | ok | STALE |\n",
            "6.1",
        );
        table.add(
            "| scenario | d, a |\n|---|---|\n| x | - |\n| l: y | ok |\n",
            "6.12",
        );
        let expected = "| scenario | d, a, 6.1 | d, b, 6.1 | d, a, 6.12 |\n|---|---|---|---|\n\
                        | x | ok | STALE | - |\n| l: y |  |  | ok |\n";
        assert_eq!(table.text(), expected);
        let document = format!("before\n{BEGIN}old\n{END}after\n");
        let written = replace(&document, &table.text()).unwrap();
        assert_eq!(
            written,
            format!("before\n{BEGIN}\n{expected}\n{END}after\n")
        );
        assert_eq!(replace(&written, &table.text()), Some(written));
        assert_eq!(replace("nothing", ""), None);
    }

    #[test]
    fn a_release_is_its_first_two_numbers() {
        assert_eq!(release("6.18.44-x\n"), "6.18");
    }
}
