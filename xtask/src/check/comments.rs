//! Divides the comments and string literals of a source into blocks of lines. The lines exclude
//! comment marks and quotes.

use super::pieces::{self, Kind, Language, Piece};

/// A comment or a string literal, as lines.
pub(crate) struct Block {
    /// True if the block is a string literal.
    pub(crate) is_text: bool,
    /// The number of each line, and the text of the line without comment marks and quotes.
    pub(crate) lines: Vec<(usize, String)>,
}

/// Returns the blocks of a source. Adjacent line comments form one block.
pub(crate) fn blocks(source: &str, language: Language) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut last: Option<(usize, char)> = None;
    for piece in pieces::split(source, language) {
        if piece.kind != Kind::LineComment {
            last = None;
            blocks.push(Block {
                is_text: piece.kind != Kind::BlockComment,
                lines: lines_of(&piece),
            });
            continue;
        }
        let mark = piece.text.chars().next().filter(|it| "/!".contains(*it));
        let mark = mark.unwrap_or(' ');
        let text = piece.text.trim_start_matches(['/', '!']);
        let line = (piece.line, unindented(text).to_owned());
        match blocks.last_mut() {
            Some(block) if piece.alone && last == Some((piece.line - 1, mark)) => {
                block.lines.push(line);
            }
            _ => blocks.push(Block {
                is_text: false,
                lines: vec![line],
            }),
        }
        last = piece.alone.then_some((piece.line, mark));
    }
    blocks
}

fn lines_of(piece: &Piece<'_>) -> Vec<(usize, String)> {
    let numbered = piece.text.split('\n').enumerate();
    let numbered = numbered.map(|(index, line)| (piece.line + index, line));
    match piece.kind {
        Kind::Text => numbered.flat_map(unescaped).collect(),
        Kind::RawText => numbered
            .map(|(line, text)| (line, text.to_owned()))
            .collect(),
        Kind::LineComment | Kind::BlockComment => numbered
            .map(|(line, text)| {
                let text = text.trim_start().trim_start_matches('*');
                (line, unindented(text).to_owned())
            })
            .collect(),
    }
}

/// Splits a line of a string literal at each escaped line break.
fn unescaped((line, text): (usize, &str)) -> Vec<(usize, String)> {
    let text = text.trim_start().replace("\\\"", "\"");
    let parts = text.split("\\n");
    parts
        .map(|part| (line, part.trim_end_matches('\\').to_owned()))
        .collect()
}

/// Returns the text without the blank that separates the text from its comment mark.
fn unindented(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}
