//! Splits Rust and C sources into comments, string literals and code.
//!
//! The two languages differ in three ways that matter here. Rust has raw strings, Rust's block
//! comments nest, and its lifetimes look like the start of a character literal.

use std::path::Path;

/// The kind of a piece.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// A comment that runs to the end of its line.
    LineComment,
    /// A comment between `/*` and `*/`.
    BlockComment,
    /// A string literal with escapes.
    Text,
    /// A string literal without escapes.
    RawText,
}

/// A comment or a string literal.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece<'a> {
    pub(crate) kind: Kind,
    /// The line in which the piece begins, counted from 1.
    pub(crate) line: usize,
    /// True if only white space precedes the piece in its line.
    pub(crate) alone: bool,
    /// The content without its delimiters. For a line comment, this is everything after `//`.
    pub(crate) text: &'a str,
}

/// The language of a source.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Language {
    Rust,
    C,
}

impl Language {
    /// Returns the language of a file, by the file's extension.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "rs" => Some(Self::Rust),
            "c" | "h" => Some(Self::C),
            _ => None,
        }
    }
}

/// Returns the comments and string literals of a source, in their order.
pub(crate) fn split(source: &str, language: Language) -> Vec<Piece<'_>> {
    let mut scanner = Scanner {
        source,
        at: 0,
        line: 1,
        line_start: 0,
        pieces: Vec::new(),
    };
    while scanner.at < source.len() {
        scanner.step(language);
    }
    scanner.pieces
}

struct Scanner<'a> {
    source: &'a str,
    at: usize,
    /// The number of the line that contains `at`.
    line: usize,
    line_start: usize,
    pieces: Vec<Piece<'a>>,
}

impl<'a> Scanner<'a> {
    fn step(&mut self, language: Language) {
        let rest = &self.source[self.at..];
        if let Some(after) = rest.strip_prefix("//") {
            let end = after.find('\n').unwrap_or(after.len());
            self.push(Kind::LineComment, 2, end, 0);
        } else if let Some(after) = rest.strip_prefix("/*") {
            let end = block_end(after, language == Language::Rust);
            let closing = if end < after.len() { 2 } else { 0 };
            self.push(Kind::BlockComment, 2, end, closing);
        } else if rest.starts_with('"') {
            self.literal();
        } else if let (Language::Rust, Some(opening)) = (language, raw_opening(rest)) {
            if self.follows_a_word() {
                self.advance(1);
                return;
            }
            let hashes = "#".repeat(opening.hashes);
            let closing = format!("\"{hashes}");
            let body = &rest[opening.length..];
            let end = body.find(&closing).unwrap_or(body.len());
            let closing = closing.len().min(body.len() - end);
            self.push(Kind::RawText, opening.length, end, closing);
        } else if rest.starts_with('\'') {
            self.advance(character_length(rest));
        } else {
            self.advance(rest.chars().next().map_or(1, char::len_utf8));
        }
    }

    fn literal(&mut self) {
        let body = &self.source[self.at + 1..];
        let mut escaped = false;
        let mut end = body.len();
        for (index, byte) in body.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    end = index;
                    break;
                }
                _ => {}
            }
        }
        self.push(Kind::Text, 1, end, usize::from(end < body.len()));
    }

    /// Returns whether the previous character belongs to a name. After such a character, an `r` or
    /// `b` is part of the name, and not the prefix of a string.
    fn follows_a_word(&self) -> bool {
        let before = self.source[..self.at].chars().next_back();
        before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    }

    fn push(&mut self, kind: Kind, opening: usize, length: usize, closing: usize) {
        let start = self.at + opening;
        let before = &self.source[self.line_start..self.at];
        self.pieces.push(Piece {
            kind,
            line: self.line,
            alone: before.trim().is_empty(),
            text: &self.source[start..start + length],
        });
        self.advance(opening + length + closing);
    }

    fn advance(&mut self, length: usize) {
        let passed = &self.source[self.at..self.at + length];
        if let Some(last) = passed.rfind('\n') {
            self.line += passed.matches('\n').count();
            self.line_start = self.at + last + 1;
        }
        self.at += length;
    }
}

/// Returns the length of a block comment's content. `body` begins after the opening `/*`.
fn block_end(body: &str, nests: bool) -> usize {
    let bytes = body.as_bytes();
    let (mut at, mut depth) = (0, 1);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            if depth == 0 {
                return at;
            }
            at += 2;
        } else if nests && bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// The opening of a raw string literal: the length of the opening, and the number of its hashes.
struct RawOpening {
    length: usize,
    hashes: usize,
}

fn raw_opening(rest: &str) -> Option<RawOpening> {
    let prefix = ["r", "br", "cr"].into_iter().find(|it| {
        rest.strip_prefix(it)
            .is_some_and(|after| after.starts_with(['"', '#']))
    })?;
    let after = &rest[prefix.len()..];
    let hashes = after.bytes().take_while(|&byte| byte == b'#').count();
    after[hashes..].starts_with('"').then_some(RawOpening {
        length: prefix.len() + hashes + 1,
        hashes,
    })
}

/// Returns the length of a character literal, or 1 for the quote of a lifetime.
fn character_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            // The character after the backslash may be a quote that does not close the literal. So
            // the search starts after this character.
            let closing = rest.char_indices().skip(3).find(|&(_, c)| c == '\'');
            closing.map_or(1, |(index, _)| index + 1)
        }
        Some(_) => match chars.next() {
            Some((index, '\'')) => index + 1,
            _ => 1,
        },
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str, language: Language) -> Vec<(Kind, usize, String)> {
        let pieces = split(source, language).into_iter();
        pieces
            .map(|it| (it.kind, it.line, it.text.to_owned()))
            .collect()
    }

    #[test]
    fn comments_and_strings_are_told_from_code_and_from_each_other() {
        let source = "let a = \"// no \\\" comment\"; // one\n/* two /* nested */ end */ 'x' '\"' '\\''\n\
                      fn f<'a>(b: &'a str) { r#\"raw \" // text\"#; br\"x\" }\n/// three\n";
        assert_eq!(
            texts(source, Language::Rust),
            [
                (Kind::Text, 1, "// no \\\" comment".to_owned()),
                (Kind::LineComment, 1, " one".to_owned()),
                (Kind::BlockComment, 2, " two /* nested */ end ".to_owned()),
                (Kind::RawText, 3, "raw \" // text".to_owned()),
                (Kind::RawText, 3, "x".to_owned()),
                (Kind::LineComment, 4, "/ three".to_owned()),
            ]
        );
    }

    #[test]
    fn a_comment_in_c_does_not_nest() {
        let source = "/* a /* b */ int r; char c = '\"'; /* c\n * d */";
        assert_eq!(
            texts(source, Language::C),
            [
                (Kind::BlockComment, 1, " a /* b ".to_owned()),
                (Kind::BlockComment, 1, " c\n * d ".to_owned()),
            ]
        );
    }

    #[test]
    fn a_source_that_breaks_off_is_read_to_its_end() {
        for source in ["/* a", "\"a", "r#\"a", "'", "'\\", "// a", "/*", "r#\"a\""] {
            split(source, Language::Rust);
        }
    }
}
