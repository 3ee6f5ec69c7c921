//! Checks the width of comments, because rustfmt wraps code but not comments.

use std::path::Path;

use super::Violation;
use super::pieces::{self, Kind, Language};
use super::tree::{self, Source};
use crate::error::Error;
use crate::project::Project;

/// The largest number of columns in a line with a comment. It equals `max_width` in `rustfmt.toml`
/// and the kernel's limit.
const LIMIT: usize = 100;

/// The number of columns between tab stops, as in the kernel.
const TAB: usize = 8;

/// Checks all sources in Rust and C. Returns a violation for each comment line that exceeds the
/// limit.
pub(crate) fn check(project: &Project) -> Result<Vec<Violation>, Error> {
    let sources = tree::read(project, &["rs", "c", "h"])?;
    Ok(sources.iter().flat_map(violations).collect())
}

fn violations(source: &Source) -> Vec<Violation> {
    let Some(language) = Language::of(&source.path) else {
        return Vec::new();
    };
    let lines: Vec<_> = source.text.lines().collect();
    let mut found = Vec::new();
    for piece in pieces::split(&source.text, language) {
        if !matches!(piece.kind, Kind::LineComment | Kind::BlockComment) {
            continue;
        }
        for (index, comment) in piece.text.split('\n').enumerate() {
            let line = piece.line + index;
            let width = lines.get(line - 1).map_or(0, |it| width(it));
            if width > LIMIT && !is_unbreakable(comment) {
                found.push(violation(&source.path, line, width));
            }
        }
    }
    found
}

fn violation(path: &Path, line: usize, width: usize) -> Violation {
    Violation {
        file: path.to_path_buf(),
        line,
        message: format!("comment of {width} columns: wrap it at {LIMIT}"),
    }
}

/// Returns whether the comment consists only of an address. Such a line may exceed the limit,
/// because a line break would make the address invalid.
fn is_unbreakable(comment: &str) -> bool {
    let text = comment
        .trim_start_matches(['/', '!', '*', ' ', '\t'])
        .trim_end();
    let address = match text.split_once("]: ") {
        Some((label, address)) if label.starts_with('[') => address,
        _ => text,
    };
    address.contains("://") && !address.contains(char::is_whitespace)
}

fn width(line: &str) -> usize {
    line.chars().fold(0, |column, c| match c {
        '\t' => (column / TAB + 1) * TAB,
        _ => column + 1,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const NONE: [usize; 0] = [];

    fn lines(name: &str, text: &str) -> Vec<usize> {
        let source = Source {
            path: PathBuf::from(name),
            text: text.to_owned(),
        };
        violations(&source).iter().map(|it| it.line).collect()
    }

    #[test]
    fn each_comment_over_the_limit_is_found_and_nothing_else() {
        let fits = format!("// {}\n", "x".repeat(97));
        let wide = format!("// {}\n", "x".repeat(98));
        let text = format!("let a = \"{}\";\n", "x".repeat(120));
        let after = format!("let b = 1; // {}\n", "x".repeat(90));
        let source = format!("{fits}{wide}{text}{after}/* a\n{}b */\n", " ".repeat(110));
        assert_eq!(lines("a.rs", &source), [2, 4, 6]);
    }

    #[test]
    fn a_tab_reaches_to_the_next_stop() {
        let fits = format!("\t/* {} */\n", "x".repeat(86));
        let wide = format!("\t/* {} */\n", "x".repeat(87));
        assert_eq!(lines("a.c", &(fits + &wide)), [2]);
    }

    #[test]
    fn an_address_alone_may_be_longer() {
        let address = format!("https://example.org/{}", "x".repeat(100));
        assert_eq!(lines("a.rs", &format!("// {address}\n")), NONE);
        assert_eq!(lines("a.rs", &format!("//! [x]: {address}\n")), NONE);
        assert_eq!(lines("a.rs", &format!("// see {address}\n")), [1]);
    }
}
