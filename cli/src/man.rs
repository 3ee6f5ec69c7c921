//! Generates the manual page regcache(1) from the definition of the command line.
//!
//! `REGCACHE_WRITE_MAN=1 cargo test -p regcache-cli man` writes a new page.

use std::path::Path;
use std::{env, fs};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::Cli;

/// The sections of the page that are not generated from the command line.
const REST: &str = r#".SH ENVIRONMENT
.B regcache run
passes the environment to the program, with the variables of the shim.
.BR regcache\-preload (7)
lists these variables.
If
.B LD_PRELOAD
names other libraries, they are loaded after the shim.
.SH FILES
.TP
.IR PREFIX/lib/librcpreload.so ", or with Debian's package " /usr/lib/*/regcache/librcpreload.so
The shim that
.B regcache run
preloads.
.TP
.I PREFIX/libexec/regcache/reuse
The program that
.B regcache repro
runs if there is an RDMA device.
.SH EXAMPLES
As root, run all commands that fix problems. Only commands with make or cargo need the root of the repository:
.PP
.nf
.RS
regcache doctor \-\-commands | sh \-ex
.RE
.fi
.PP
Run a program with cached registrations, and print the counts of the cache at exit:
.PP
.nf
.RS
regcache run \-e REGCACHE_SUMMARY=1 \-\- ./program
.RE
.fi
.PP
Run an MPI program over UCX, with the cache below UCX in each process:
.PP
.nf
.RS
mpirun \-np 2 \-\-mca pml ucx regcache run \-\-stack ucx \-\- ./program
.RE
.fi
.SH SEE ALSO
.BR regcache (3),
.BR regcache\-preload (7),
.BR ummunotify (4)
"#;

/// Renders one section of the page, without its title. `clap_mangen` starts each section with the
/// same two lines, which define how troff prints an apostrophe. This function removes these two
/// lines, because [`page`] writes them once for the whole page.
fn section(render: impl Fn(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut text = Vec::new();
    render(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let skipped = [".SH", ".ie ", ".el "];
    let lines = text
        .lines()
        .filter(|line| !skipped.iter().any(|start| line.starts_with(start)));
    lines.map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Renders the synopsis, the description and the options of a command, each below its heading.
fn sections(command: &Command, headings: [&str; 3]) -> String {
    let man = Man::new(command.clone());
    let [synopsis, description, options] = headings;
    [
        synopsis.to_owned(),
        section(|to| man.render_synopsis_section(to)),
        description.to_owned(),
        section(|to| man.render_description_section(to)),
        options.to_owned(),
        section(|to| man.render_options_section(to)),
    ]
    .concat()
}

fn page() -> String {
    let mut cli = Cli::command()
        .disable_help_subcommand(true)
        .subcommand_value_name("COMMAND");
    cli.build();
    let head = concat!(
        ".\\\" SPDX-License-Identifier: MIT OR Apache-2.0\n",
        ".\\\" Generated from cli/src/main.rs by cli/src/man.rs. Do not edit.\n",
        ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n",
        ".TH REGCACHE 1 \"\" \"regcache ",
        env!("CARGO_PKG_VERSION"),
        "\" \"User Commands\"\n.SH NAME\n",
    );
    let name = section(|to| Man::new(cli.clone()).render_name_section(to));
    let headings = [".SH SYNOPSIS\n", ".SH DESCRIPTION\n", ".SH OPTIONS\n"];
    let mut text = format!("{head}{name}{}.SH COMMANDS\n", sections(&cli, headings));
    for command in cli.get_subcommands() {
        text += &format!(".SS regcache {}\n", command.get_name());
        text += &sections(command, ["", ".PP\n", ""]);
    }
    text + REST
}

#[test]
fn the_manual_page_is_what_the_command_line_defines() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/regcache.1");
    let page = page();
    if env::var_os("REGCACHE_WRITE_MAN").is_some() {
        fs::write(&file, &page).unwrap();
    }
    assert!(
        fs::read_to_string(&file).unwrap() == page,
        "regcache.1 is out of date: REGCACHE_WRITE_MAN=1 cargo test -p regcache-cli man"
    );
}
