//! Checks that the targets of links between documents exist, and that prose names no file that is
//! missing.
//!
//! The check of a link includes its anchor. The name of a file is checked only if it begins with a
//! top-level directory and has the extension of a source or document. A name such as `NAME.patch`,
//! whose stem is in capitals, stands for many files and is not checked. Addresses of other hosts
//! are not checked, because such a check needs a network.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use super::Violation;
use super::comments;
use super::pieces::Language;
use super::tree::{self, Source, has_extension};
use crate::error::Error;
use crate::project::Project;

/// The extensions of the files that are searched for links and names.
const READ: &[&str] = &["c", "h", "md", "rs", "rst", "1", "3", "4", "5", "7", "8"];

/// The extensions of names in prose that are checked.
const NAMED: &[&str] = &["c", "h", "md", "patch", "rs", "rst", "sh", "svg", "toml"];

/// Checks all documents and comments.
pub(crate) fn check(project: &Project) -> Result<Vec<Violation>, Error> {
    let sources = tree::read(project, READ)?;
    let site = Site::new(tree::paths(project)?, &sources);
    Ok(sources.iter().flat_map(|it| site.violations(it)).collect())
}

/// The files, directories and headings to which links can lead.
struct Site {
    files: BTreeSet<PathBuf>,
    /// The directories that contain files.
    dirs: BTreeSet<PathBuf>,
    /// The anchors of each Markdown document.
    anchors: BTreeMap<PathBuf, BTreeSet<String>>,
    /// The number of lines of each file that was read.
    lengths: BTreeMap<PathBuf, usize>,
}

impl Site {
    fn new(files: BTreeSet<PathBuf>, sources: &[Source]) -> Self {
        let ancestors = files.iter().flat_map(|it| it.ancestors().skip(1));
        let dirs = ancestors.map(Path::to_path_buf).collect();
        let documents = sources.iter().filter(|it| has_extension(&it.path, "md"));
        let lengths = sources.iter();
        Self {
            dirs,
            anchors: documents
                .map(|it| (it.path.clone(), anchors(&it.text)))
                .collect(),
            lengths: lengths
                .map(|it| (it.path.clone(), it.text.lines().count()))
                .collect(),
            files,
        }
    }

    fn violations(&self, source: &Source) -> Vec<Violation> {
        let violation = |line: usize, message: String| Violation {
            file: source.path.clone(),
            line,
            message,
        };
        let mut found = Vec::new();
        if has_extension(&source.path, "md") {
            for (line, target) in links(&source.text) {
                if let Err(why) = self.follow(&source.path, &target) {
                    found.push(violation(
                        line,
                        format!("the link to {target} is broken: {why}"),
                    ));
                }
            }
        }
        for (line, text) in prose(source) {
            for name in names(&text) {
                if self.is_missing(&source.path, &name) {
                    found.push(violation(
                        line,
                        format!("there is no file {name}: correct its name"),
                    ));
                }
            }
        }
        found
    }

    /// Checks the target of a link in this document. The error is the reason why the link is
    /// broken.
    fn follow(&self, document: &Path, target: &str) -> Result<(), String> {
        let (path, anchor) = match target.split_once('#') {
            Some((path, anchor)) => (path, Some(anchor)),
            None => (target, None),
        };
        let dir = document.parent().unwrap_or(Path::new(""));
        let path = if path.is_empty() {
            document.to_path_buf()
        } else {
            normal(&dir.join(path)).ok_or("it leaves the repository")?
        };
        if !self.exists(&path) {
            return Err(format!("there is no {}", path.display()));
        }
        let Some(anchor) = anchor else { return Ok(()) };
        if let Some(line) = anchor
            .strip_prefix('L')
            .and_then(|it| it.parse::<usize>().ok())
        {
            return match self.lengths.get(&path) {
                Some(&length) if line > length => Err(format!("it ends at line {length}")),
                _ => Ok(()),
            };
        }
        match self.anchors.get(&path) {
            Some(anchors) if anchors.contains(anchor) => Ok(()),
            Some(_) => Err(format!("{} has no such heading", path.display())),
            None => Err(format!("{} has no headings", path.display())),
        }
    }

    /// Returns true if the name is the name of a file that should be in the repository, but is
    /// missing. A name may be relative to any directory above the file `from`.
    fn is_missing(&self, from: &Path, name: &str) -> bool {
        let path = Path::new(name);
        let first = path.components().next().map(Component::as_os_str);
        let is_ours = first.is_some_and(|it| self.dirs.contains(Path::new(it)));
        let is_named = NAMED.iter().any(|it| has_extension(path, it));
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let is_pattern = stem.chars().all(|c| c.is_ascii_uppercase());
        let mut homes = from.ancestors().skip(1);
        is_ours && is_named && !is_pattern && !homes.any(|home| self.exists(&home.join(path)))
    }

    fn exists(&self, path: &Path) -> bool {
        self.files.contains(path) || self.dirs.contains(path)
    }
}

/// Resolves `.` and `..` in the path. Returns `None` if the path leads out of the repository.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.into_iter().collect())
}

/// Returns the numbered lines of a document that are not in a block of code.
fn lines_of(document: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    document
        .lines()
        .enumerate()
        .filter_map(move |(index, line)| {
            let is_fence = line.trim_start().starts_with("```");
            is_code ^= is_fence;
            (!is_fence && !is_code).then_some((index + 1, line))
        })
}

/// Returns the relative links of a Markdown document, with the numbers of their lines.
fn links(document: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in lines_of(document) {
        let line = without_code_spans(line);
        let inline = between(&line, "](", ')');
        let quoted = ["src=\"", "href=\""].into_iter();
        let quoted = quoted.flat_map(|it| between(&line, it, '"'));
        let reference = line
            .split_once("]: ")
            .filter(|(label, _)| label.starts_with('[') && !label.contains(']'));
        let reference = reference.map(|(_, target)| target.to_owned());
        let targets = inline.into_iter().chain(quoted).chain(reference);
        for target in targets {
            // A title may follow the target.
            let target = target.split_whitespace().next().unwrap_or_default();
            let is_elsewhere = target.contains("://") || target.starts_with("mailto:");
            if !target.is_empty() && !is_elsewhere {
                found.push((number, target.to_owned()));
            }
        }
    }
    found
}

fn between(text: &str, begin: &str, end: char) -> Vec<String> {
    let parts = text.split(begin).skip(1);
    parts
        .filter_map(|part| part.split_once(end).map(|(inside, _)| inside.to_owned()))
        .collect()
}

fn without_code_spans(line: &str) -> String {
    let parts = line.split('`').step_by(2);
    parts.collect::<Vec<_>>().join("`")
}

/// Returns the anchors of a document: those that code hosts make from its headings, and those that
/// the document sets itself.
fn anchors(document: &str) -> BTreeSet<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut found = BTreeSet::new();
    for (_, line) in lines_of(document) {
        for mark in ["id=\"", "name=\""] {
            found.extend(between(line, mark, '"'));
        }
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let anchor = anchor(title.trim());
        let count = seen.entry(anchor.clone()).or_insert(0);
        found.insert(match *count {
            0 => anchor,
            again => format!("{anchor}-{again}"),
        });
        *count += 1;
    }
    found
}

fn anchor(title: &str) -> String {
    // If a title contains a link, only the link's text is part of the anchor.
    let mut text = String::new();
    let mut rest = title;
    while let Some((before, after)) = rest.split_once("](") {
        text += before;
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    text += rest;
    let kept = text.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ if c.is_alphanumeric() => Some(c),
        _ => None,
    });
    kept.collect::<String>().to_lowercase()
}

/// Returns the lines of a file that are searched for names of files.
fn prose(source: &Source) -> Vec<(usize, String)> {
    match Language::of(&source.path) {
        Some(language) => {
            let blocks = comments::blocks(&source.text, language).into_iter();
            blocks.flat_map(|block| block.lines).collect()
        }
        None => {
            let lines = source.text.lines().enumerate();
            lines
                .map(|(index, line)| (index + 1, line.to_owned()))
                .collect()
        }
    }
}

/// Returns the words of a line that look like paths of files. Targets of links are excluded.
fn names(line: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-./+".contains(c);
    let is_plain = |c: char| is_part(c) || "`'\"()[],;:!?".contains(c);
    let words = line.split_whitespace();
    let words = words.flat_map(|word| word.split("](").take(1));
    words
        .filter(|word| word.contains('/') && word.chars().all(is_plain))
        .filter_map(|word| {
            let name = word.split(|c| !is_part(c)).find(|it| it.contains('/'))?;
            Some(name.trim_end_matches('.').to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sources: &[(&str, &str)]) -> Vec<String> {
        let source = |(path, text): &(&str, &str)| Source {
            path: PathBuf::from(path),
            text: (*text).to_owned(),
        };
        let sources: Vec<_> = sources.iter().map(source).collect();
        let files = sources.iter().map(|it| it.path.clone()).collect();
        let site = Site::new(files, &sources);
        let violations = sources.iter().flat_map(|it| site.violations(it));
        violations.map(|it| it.to_string()).collect()
    }

    #[test]
    fn links_that_lead_somewhere_are_left_alone() {
        let all = found(&[
            (
                "README.md",
                "[a](book/a.md) [b](book/a.md#two-words) [c](#top) [d](book) [e](https://x.org/no)\n\
                 [f]: book/a.md \"title\"\n<img src=\"book/x.svg\">\n`[g](no.md)`\n# Top\n",
            ),
            (
                "book/a.md",
                "## Two `words`!\n[up](../README.md) [line](../lib.rs#L2)\n",
            ),
            ("book/x.svg", ""),
            ("lib.rs", "//! See `book/a.md`.\n//!\n"),
        ]);
        assert_eq!(all, Vec::<String>::new());
    }

    #[test]
    fn a_broken_link_is_found_by_file_anchor_and_line() {
        let all = found(&[
            (
                "README.md",
                "[a](book/none.md)\n[b](book/a.md#none)\n[c](#none)\n[d](../out.md)\n\
                 [e](lib.rs#L9)\n[f](book/a.md#twice-2)\n[g]: none.md\n",
            ),
            ("book/a.md", "# Twice\n# Twice\n"),
            ("lib.rs", "//! one\n"),
        ]);
        assert_eq!(
            all,
            [
                "README.md:1: the link to book/none.md is broken: there is no book/none.md",
                "README.md:2: the link to book/a.md#none is broken: book/a.md has no such heading",
                "README.md:3: the link to #none is broken: README.md has no such heading",
                "README.md:4: the link to ../out.md is broken: it leaves the repository",
                "README.md:5: the link to lib.rs#L9 is broken: it ends at line 1",
                "README.md:6: the link to book/a.md#twice-2 is broken: book/a.md has no such heading",
                "README.md:7: the link to none.md is broken: there is no none.md",
            ]
        );
    }

    #[test]
    fn a_file_named_in_prose_must_be_there() {
        let all = found(&[
            (
                "book/a.md",
                "As `core/src/none.rs:3` (core/src/none.c). `core/src/N.rs`\n",
            ),
            (
                "core/src/lib.rs",
                "//! src/lib.rs, core/src/lib.rs, other/none.rs\n/// core/none.md\n",
            ),
            ("core/book/b.rst", "See core/book/none.rst.\n"),
            ("core/a.3", "core/*.c and core/src/*/x.rs\n"),
        ]);
        assert_eq!(
            all,
            [
                "book/a.md:1: there is no file core/src/none.rs: correct its name",
                "book/a.md:1: there is no file core/src/none.c: correct its name",
                "core/src/lib.rs:2: there is no file core/none.md: correct its name",
                "core/book/b.rst:1: there is no file core/book/none.rst: correct its name",
            ]
        );
    }
}
