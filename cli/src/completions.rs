//! Generates the completions of shells from the definition of the command line.
//!
//! `REGCACHE_WRITE_COMPLETIONS=1 cargo test -p regcache-cli completions` writes new files.

use std::path::Path;
use std::{env, fs};

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::Cli;

/// The shells, and the names of the files that they look for.
const FILES: [(Shell, &str); 3] = [
    (Shell::Bash, "regcache.bash"),
    (Shell::Zsh, "_regcache"),
    (Shell::Fish, "regcache.fish"),
];

#[test]
fn the_completions_are_what_the_command_line_defines() {
    for (shell, name) in FILES {
        let mut text = Vec::new();
        generate(shell, &mut Cli::command(), "regcache", &mut text);
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("completions")
            .join(name);
        if env::var_os("REGCACHE_WRITE_COMPLETIONS").is_some() {
            fs::write(&file, &text).unwrap();
        }
        assert!(
            fs::read(&file).unwrap() == text,
            "{name} is out of date: REGCACHE_WRITE_COMPLETIONS=1 cargo test -p regcache-cli completions"
        );
    }
}
