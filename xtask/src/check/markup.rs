//! Cuts texts into paragraphs of prose, for rules about words and sentences.
//!
//! Markdown, reStructuredText and comments are so similar that one function cuts all of them. Code
//! is not prose, so fenced and indented blocks of code are dropped. The characters of code spans
//! are replaced.

use super::comments;
use super::pieces::Language;
use super::tree::{Source, has_extension};

/// The kind of a paragraph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// A paragraph of sentences.
    Prose,
    /// A title, or a cell of a table. Such a text is seldom a sentence.
    Label,
    /// A string literal, which is a message or a part of a message.
    Text,
}

/// A paragraph: words that belong together.
#[derive(Debug)]
pub(crate) struct Paragraph {
    pub(crate) kind: Kind,
    /// The words of the paragraph, joined into one line. Each character of a code span is replaced
    /// by a backtick.
    pub(crate) text: String,
    /// The offset in `text` at which each source line begins, and the number of the source line.
    lines: Vec<(usize, usize)>,
}

impl Paragraph {
    /// Returns the number of the source line that contains this offset of the text.
    pub(crate) fn line_of(&self, offset: usize) -> usize {
        let after = self.lines.partition_point(|&(start, _)| start <= offset);
        self.lines[after.saturating_sub(1)].1
    }
}

/// The extensions of the files that hold prose.
pub(crate) const EXTENSIONS: &[&str] = &["c", "h", "md", "rs", "rst", "1", "3", "4", "5", "7", "8"];

/// Returns the prose of a file with one of `EXTENSIONS`.
pub(crate) fn of(source: &Source) -> Vec<Paragraph> {
    let numbered = || {
        let lines = source.text.lines().enumerate();
        lines.map(|(index, line)| (index + 1, line.to_owned()))
    };
    if ["md", "rst"]
        .iter()
        .any(|it| has_extension(&source.path, it))
    {
        return paragraphs(numbered(), Kind::Prose);
    }
    if let Some(language) = Language::of(&source.path) {
        return comments::blocks(&source.text, language)
            .into_iter()
            .flat_map(|block| {
                let kind = if block.is_text {
                    Kind::Text
                } else {
                    Kind::Prose
                };
                paragraphs(block.lines.into_iter(), kind)
            })
            .collect();
    }
    paragraphs(
        numbered().map(|(line, text)| (line, from_roff(&text))),
        Kind::Prose,
    )
}

/// Cuts lines into paragraphs. The kind of headings and cells is `Label`, and the kind of all other
/// paragraphs is `kind`.
fn paragraphs(lines: impl Iterator<Item = (usize, String)>, kind: Kind) -> Vec<Paragraph> {
    let mut cutter = Cutter {
        kind,
        done: Vec::new(),
        text: String::new(),
        lines: Vec::new(),
        fence: None,
        is_after_blank: true,
    };
    for (line, text) in lines {
        cutter.take(line, &text);
    }
    cutter.flush(kind);
    cutter.done
}

struct Cutter {
    kind: Kind,
    done: Vec<Paragraph>,
    text: String,
    lines: Vec<(usize, usize)>,
    /// The mark that ends the current block of code.
    fence: Option<&'static str>,
    is_after_blank: bool,
}

impl Cutter {
    fn take(&mut self, line: usize, text: &str) {
        let trimmed = text.trim();
        if let Some(fence) = self.fence {
            if trimmed.starts_with(fence) {
                self.fence = None;
            }
            return;
        }
        if let Some(fence) = ["```", "~~~"]
            .into_iter()
            .find(|it| trimmed.starts_with(it))
        {
            self.flush(self.kind);
            self.fence = Some(fence);
            return;
        }
        let is_code = self.is_after_blank && (text.starts_with("    ") || text.starts_with('\t'));
        let is_rule = trimmed.chars().all(|c| "=-~^*_+".contains(c));
        let is_hidden = [".. ", "<!--"].iter().any(|it| trimmed.starts_with(it));
        if trimmed.is_empty() || is_rule || is_hidden {
            self.flush(self.kind);
            self.is_after_blank = true;
            return;
        }
        if is_code {
            return;
        }
        self.is_after_blank = false;
        let title = trimmed.trim_start_matches('#');
        if title.len() < trimmed.len() && title.starts_with(' ') {
            self.flush(self.kind);
            self.add(line, title);
            self.flush(Kind::Label);
            return;
        }
        if trimmed.starts_with('|') {
            self.flush(self.kind);
            for cell in trimmed.split('|') {
                self.add(line, cell);
                self.flush(Kind::Label);
            }
            return;
        }
        match after_marker(trimmed) {
            Some(rest) => {
                self.flush(self.kind);
                self.add(line, rest);
            }
            None => self.add(line, trimmed),
        }
    }

    fn add(&mut self, line: usize, text: &str) {
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.lines.push((self.text.len(), line));
        self.text.push_str(text);
    }

    fn flush(&mut self, kind: Kind) {
        let text = std::mem::take(&mut self.text);
        let lines = std::mem::take(&mut self.lines);
        if !lines.is_empty() {
            self.done.push(Paragraph {
                kind,
                text: without_code(&text),
                lines,
            });
        }
    }
}

/// Returns the text after the mark of a list item, of a quotation, or of a parameter in kernel-doc.
/// Returns `None` if the line has no such mark.
fn after_marker(line: &str) -> Option<&str> {
    for marker in ["- ", "* ", "+ ", "> "] {
        if let Some(rest) = line.strip_prefix(marker) {
            return Some(rest);
        }
    }
    if let Some(rest) = line.strip_prefix('@') {
        return rest.split_once(':').map(|(_, rest)| rest);
    }
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &line[digits..];
    if digits > 0 && (rest.starts_with(". ") || rest.starts_with(") ")) {
        return Some(&rest[2..]);
    }
    None
}

/// Replaces each character of each code span with a backtick. The length of the text stays the
/// same, so offsets stay valid.
fn without_code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('`') {
        let ticks = rest[open..].bytes().take_while(|&it| it == b'`').count();
        let mark = &rest[open..open + ticks];
        let inside = &rest[open + ticks..];
        let Some(length) = inside.find(mark) else {
            break;
        };
        let end = open + ticks + length + ticks;
        out.push_str(&rest[..open]);
        out.extend(std::iter::repeat_n('`', end - open));
        rest = &rest[end..];
    }
    out + rest
}

/// Returns a line of a manual page as the reader sees it. A macro that begins a paragraph becomes a
/// blank line.
fn from_roff(line: &str) -> String {
    let mut text = line.to_owned();
    for (escape, plain) in [(r"\-", "-"), (r"\&", ""), (r"\(aq", "'"), (r"\e", "\\")] {
        text = text.replace(escape, plain);
    }
    while let Some(at) = text.find(r"\f") {
        let end = (at + 3).min(text.len());
        if !text.is_char_boundary(end) {
            break;
        }
        text.replace_range(at..end, "");
    }
    let Some(request) = text.strip_prefix(['.', '\'']) else {
        return text;
    };
    let (name, arguments) = request.split_once(' ').unwrap_or((request, ""));
    let is_font = ["B", "I", "R", "BR", "BI", "IR", "IB", "RB", "RI"].contains(&name);
    if !is_font {
        return String::new();
    }
    // The rules need only the words of the arguments, so the quotes around groups of words are
    // removed.
    arguments.replace('"', "")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn cut(name: &str, text: &str) -> Vec<(Kind, usize, String)> {
        let source = Source {
            path: PathBuf::from(name),
            text: text.to_owned(),
        };
        let found = of(&source).into_iter();
        found.map(|it| (it.kind, it.line_of(0), it.text)).collect()
    }

    #[test]
    fn markdown_is_cut_at_blanks_items_titles_and_cells_and_code_is_left_out() {
        let text = "# A title\none\ntwo `x y`\n\n- an item\n  goes on\n- next\n\n    code\n\n```c\ncode\n```\n| a | b |\n";
        assert_eq!(
            cut("a.md", text),
            [
                (Kind::Label, 1, "A title".to_owned()),
                (Kind::Prose, 2, "one two `````".to_owned()),
                (Kind::Prose, 5, "an item goes on".to_owned()),
                (Kind::Prose, 7, "next".to_owned()),
                (Kind::Label, 14, "a".to_owned()),
                (Kind::Label, 14, "b".to_owned()),
            ]
        );
    }

    #[test]
    fn an_offset_leads_back_to_its_line() {
        let source = Source {
            path: PathBuf::from("a.md"),
            text: "\none\ntwo\nthree\n".to_owned(),
        };
        let found = of(&source);
        let text = &found[0].text;
        let line = |word: &str| found[0].line_of(text.find(word).unwrap());
        assert_eq!((line("one"), line("two"), line("three")), (2, 3, 4));
    }

    #[test]
    fn comments_and_strings_of_sources_are_cut() {
        let text = "//! Head\n//! goes on.\n\nfn f() {} // after\n/// `x`\nconst A: &str = \"some words\";\n";
        assert_eq!(
            cut("a.rs", text),
            [
                (Kind::Prose, 1, "Head goes on.".to_owned()),
                (Kind::Prose, 4, "after".to_owned()),
                (Kind::Prose, 5, "```".to_owned()),
                (Kind::Text, 6, "some words".to_owned()),
            ]
        );
        let text = "/**\n * f() - Does.\n * @a: an\n *   argument\n */\n";
        assert_eq!(
            cut("a.h", text),
            [
                (Kind::Prose, 2, "f() - Does.".to_owned()),
                (Kind::Prose, 3, "an argument".to_owned()),
            ]
        );
    }

    #[test]
    fn a_manual_page_is_read_as_its_reader_sees_it() {
        let text = ".TH X 3\n.SH NAME\nx \\- a \\fBbold\\fR word\n.B more\nwords\n.PP\nend\n";
        assert_eq!(
            cut("x.3", text),
            [
                (Kind::Prose, 3, "x - a bold word more words".to_owned()),
                (Kind::Prose, 7, "end".to_owned()),
            ]
        );
    }
}
