//! Changes the driver's files into the files of the kernel's own tree.
//!
//! A file in the tree has no part that serves only other kernels or this repository: `compat.h`,
//! the version, and the names of tests in Rust. Each change expects its text exactly once. So a
//! change of the driver cannot make a transformation useless without an error.

use crate::error::Error;

/// A replacement of a text that a file contains exactly once.
pub(super) struct Edit {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
}

/// The changes of `ummunotify.c`.
pub(super) const DRIVER: &[Edit] = &[
    Edit {
        from: "\n#include \"compat.h\"\n",
        to: "",
    },
    Edit {
        from: "MODULE_VERSION(UMMUNOTIFY_VERSION);\n",
        to: "",
    },
];

/// The changes of the header.
pub(super) const HEADER: &[Edit] = &[Edit {
    from: " * 32-bit and 64-bit callers. Documentation/ummunotify.rst describes each call.\n",
    to: " * 32-bit and 64-bit callers. Documentation/userspace-api/ummunotify.rst\n * describes each call.\n",
}];

/// The changes of the documentation, in addition to those that [`document`] makes.
pub(super) const DOCUMENT: &[Edit] = &[
    Edit {
        from: "The tests named below are in ``tests/vm/tests/driver/`` and ``tests/vm/tests/mm/``, as\n\
               ``file::test``, and in ``tests/vm/tests/order.rs``.\n\n",
        to: "",
    },
    Edit {
        from: "counts why, and the test that shows it\n",
        to: "counts why\n",
    },
    Edit {
        from: "``changes::*``, and ``pinned::*`` for memory that is not pinned\n",
        to: "``changes::*``\n",
    },
];

/// The sections of the documentation that the kernel's tree does not get. They have figures of the
/// repository's own tests, and the history of the proposal.
pub(super) const SECTIONS_LEFT_OUT: &[&str] = &["Pinned pages", "Cost", "Questions asked in 2010"];

/// Applies the edits to the text of a file. Returns an error if the file does not contain the text
/// of an edit exactly once.
pub(super) fn edit(file: &str, text: &str, edits: &[Edit]) -> Result<String, Error> {
    let mut text = text.to_owned();
    for Edit { from, to } in edits {
        let count = text.matches(from).count();
        if count != 1 {
            return Err(Error::Driver(format!(
                "{file} contains {from:?} {count} times instead of once: correct the edit in xtask/src/intree/"
            )));
        }
        text = text.replace(from, to);
    }
    Ok(text)
}

/// Returns the documentation without the sections with these titles, and without the names of tests
/// in Rust (`file::test`). Returns an error if a section is missing or if a name is left.
pub(super) fn document(file: &str, text: &str, left_out: &[&str]) -> Result<String, Error> {
    let mut text = text.to_owned();
    for title in left_out {
        text = without_section(&text, title).ok_or_else(|| {
            Error::Driver(format!(
                "{file} has no section `{title}`: correct SECTIONS_LEFT_OUT in xtask/src/intree/transform.rs"
            ))
        })?;
    }
    let mut paragraphs: Vec<_> = text
        .split("\n\n")
        .filter(|paragraph| !paragraph.starts_with("Tests: "))
        .map(without_tests)
        .filter(|paragraph| !paragraph.trim().is_empty())
        .collect();
    if let Some(last) = paragraphs.last_mut() {
        *last = format!("{}\n", last.trim_end());
    }
    let text = paragraphs.join("\n\n");
    let left = text.lines().find(|line| {
        line.contains("``") && line.split("``").skip(1).step_by(2).any(is_test)
            || line.contains("cargo xtask")
    });
    match left {
        None => Ok(text),
        Some(line) => Err(Error::Driver(format!(
            "{file}: the transformation cannot remove the test's name from this line: {line:?}. Put the name in \
             parentheses, behind a full stop, or behind a colon"
        ))),
    }
}

/// Returns the text without the section, including its subsections. Returns `None` unless there is
/// one such section.
fn without_section(text: &str, title: &str) -> Option<String> {
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    let underline = |at: usize| {
        let heading = lines.get(at)?.trim_end();
        let line = lines.get(at + 1)?.trim_end();
        let mark = line.chars().next().filter(|mark| "=-".contains(*mark))?;
        let is_underline = line.chars().all(|it| it == mark)
            && line.len() >= heading.len()
            && !heading.trim().is_empty()
            && !heading.starts_with(['=', '-', ' '])
            && (at == 0 || lines[at - 1].trim().is_empty());
        is_underline.then_some(mark)
    };
    let mut starts = (0..lines.len()).filter(|&at| lines[at].trim_end() == title);
    let start = starts.find(|&at| underline(at).is_some())?;
    if starts.any(|at| underline(at).is_some()) {
        return None;
    }
    let level = underline(start)?;
    let end = (start + 1..lines.len())
        .find(|&at| underline(at).is_some_and(|mark| mark == '=' || mark == level))
        .unwrap_or(lines.len());
    Some([&lines[..start], &lines[end..]].concat().concat())
}

/// Returns whether a literal is the name of a test: `file::test`, or `file::*` for all tests of the
/// file.
fn is_test(literal: &str) -> bool {
    let is_name = |it: &str| {
        !it.is_empty()
            && it
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    literal
        .split_once("::")
        .is_some_and(|(file, test)| is_name(file) && (test == "*" || is_name(test)))
}

/// Returns the paragraph without its lists of tests. A list is in parentheses, follows a full stop,
/// or follows another mark, which becomes a full stop.
fn without_tests(paragraph: &str) -> String {
    let mut kept = String::new();
    let mut rest = paragraph;
    while let Some(at) = rest.find("``") {
        let Some(length) = tests_at(&rest[at..]) else {
            // The literal is not a test's name.
            let end = rest[at + 2..]
                .find("``")
                .map_or(rest.len(), |it| at + it + 4);
            kept.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        };
        kept.push_str(&rest[..at]);
        rest = &rest[at + length..];
        let before = kept.trim_end().trim_end_matches("Tests:").trim_end().len();
        kept.truncate(before);
        if kept.is_empty() {
            rest = rest.strip_prefix('.').unwrap_or(rest);
        } else if kept.ends_with('(') && rest.starts_with(')') {
            kept.truncate(kept.trim_end_matches('(').trim_end().len());
            rest = &rest[1..];
        } else if kept.ends_with('.') {
            rest = rest.strip_prefix('.').unwrap_or(rest);
        } else {
            kept.truncate(kept.trim_end_matches([':', ';', ',']).len());
            if !rest.starts_with('.') {
                kept.push('.');
            }
        }
    }
    kept.push_str(rest);
    kept
}

/// Returns the length of the list of tests at the start of the text.
fn tests_at(text: &str) -> Option<usize> {
    let mut length = 0;
    loop {
        let here = &text[length..];
        let between = if length == 0 { 0 } else { separator(here)? };
        let literal = here.get(between..)?.strip_prefix("``");
        let name = literal.and_then(|it| Some(&it[..it.find("``")?]));
        match name.filter(|name| is_test(name)) {
            Some(name) => length += between + name.len() + 4,
            None if length == 0 => return None,
            None => return Some(length),
        }
        if separator(&text[length..]).is_none() {
            return Some(length);
        }
    }
}

/// Returns the length of a comma or semicolon and the space after it.
fn separator(text: &str) -> Option<usize> {
    let rest = text.strip_prefix([',', ';'])?;
    let space = rest.len() - rest.trim_start().len();
    (space > 0).then_some(1 + space)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_is_made_where_its_text_is() {
        let edits = [Edit {
            from: "#include \"compat.h\"\n",
            to: "",
        }];
        let got = edit("x.c", "a\n#include \"compat.h\"\nb\n", &edits).unwrap();
        assert_eq!(got, "a\nb\n");
    }

    #[test]
    fn an_edit_whose_text_is_missing_or_ambiguous_is_an_error() {
        let edits = [Edit { from: "b", to: "" }];
        for (text, count) in [("ac", "0 times"), ("abcb", "2 times")] {
            let error = edit("x.c", text, &edits).unwrap_err().to_string();
            assert!(error.contains("x.c") && error.contains(count), "{error}");
        }
    }

    #[test]
    fn names_of_tests_are_removed_with_what_leads_to_them() {
        for (before, after) in [
            ("It waits. ``a::b``\n", "It waits.\n"),
            (
                "It waits.\n  ``a::b``,\n  ``a::c_1``. Then it ends.",
                "It waits. Then it ends.",
            ),
            ("It waits: ``a::b``.", "It waits."),
            (
                "It waits,\n``a::b``, ``c::*``. It ends",
                "It waits. It ends",
            ),
            ("It is lost\n(``a::b``).", "It is lost."),
            ("``a::b``,\n``a::c``.", ""),
            ("Five lines. Tests: ``fdinfo::*``", "Five lines."),
            (
                "The ``a`` and ``struct b`` stay.",
                "The ``a`` and ``struct b`` stay.",
            ),
        ] {
            assert_eq!(without_tests(before), after);
        }
    }

    #[test]
    fn a_section_is_left_out_with_its_subsections() {
        let text = "Title\n=====\n\nA\n=\n\na\n\nA 1\n---\n\nb\n\nB\n=\n\nc\n";
        assert_eq!(
            document("x.rst", text, &["A"]).unwrap(),
            "Title\n=====\n\nB\n=\n\nc\n"
        );
        assert_eq!(
            document("x.rst", text, &["A 1"]).unwrap(),
            "Title\n=====\n\nA\n=\n\na\n\nB\n=\n\nc\n"
        );
        let error = document("x.rst", text, &["C"]).unwrap_err().to_string();
        assert!(error.contains("no section `C`"), "{error}");
    }

    #[test]
    fn a_name_that_cannot_be_removed_is_an_error() {
        let text = "A\n=\n\nRun ``cargo xtask cost``.\n";
        let error = document("x.rst", text, &[]).unwrap_err().to_string();
        assert!(error.contains("cargo xtask cost"), "{error}");
    }
}
