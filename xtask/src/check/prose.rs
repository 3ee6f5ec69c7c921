//! Checks those rules of prose that a machine can check. CONTRIBUTING.md lists all rules of prose.

use super::Violation;
use super::markup::{self, Kind, Paragraph};
use super::tree::{self, Source};
use crate::error::Error;
use crate::project::Project;

/// Words that the project does not use, each with its remedy.
const IDIOMS: &[(&[&str], &str)] = &[
    (
        &["be", "had"],
        "write that something is available, or supported, or not",
    ),
    (
        &["by", "turns"],
        "write alternately, interleaved or one after the other",
    ),
    (&["anew"], "write again, or say what is made"),
    (&["lest"], "write so that, with the negation that is meant"),
    (&["whoever"], "name the thread, process or person"),
];

/// The words with which no sentence may begin, because they delay the topic of the sentence.
const SUBJECTS: &[&[&str]] = &[&["what"], &["who"], &["those", "who"]];

/// Checks comments, documents, manual pages and messages.
pub(crate) fn check(project: &Project) -> Result<Vec<Violation>, Error> {
    let sources = tree::read(project, markup::EXTENSIONS)?;
    Ok(sources.iter().flat_map(violations).collect())
}

fn violations(source: &Source) -> Vec<Violation> {
    let paragraphs = markup::of(source);
    let found = paragraphs.iter().flat_map(|paragraph| {
        let idioms = idioms(paragraph).into_iter();
        let all = idioms.chain(subjects(paragraph));
        all.map(|(offset, message)| (paragraph.line_of(offset), message))
    });
    found
        .map(|(line, message)| Violation {
            file: source.path.clone(),
            line,
            message,
        })
        .collect()
}

/// A word and the word's offset in its paragraph.
struct Word<'a> {
    text: &'a str,
    offset: usize,
}

fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut start = None;
    for (offset, c) in text.char_indices().chain([(text.len(), ' ')]) {
        match start {
            None if c.is_alphanumeric() => start = Some(offset),
            Some(begin) if !c.is_alphanumeric() && c != '_' && c != '\'' => {
                words.push(Word {
                    text: &text[begin..offset],
                    offset: begin,
                });
                start = None;
            }
            _ => {}
        }
    }
    words
}

fn are(words: &[Word<'_>], wanted: &[&str]) -> bool {
    let mut pairs = words.iter().zip(wanted);
    words.len() >= wanted.len() && pairs.all(|(word, it)| word.text.eq_ignore_ascii_case(it))
}

fn idioms(paragraph: &Paragraph) -> Vec<(usize, String)> {
    let words = words(&paragraph.text);
    // A string literal of one word is usually a name, so it is not checked.
    if paragraph.kind == Kind::Text && words.len() < 2 {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (index, word) in words.iter().enumerate() {
        for (idiom, remedy) in IDIOMS {
            if are(&words[index..], idiom) {
                let message = format!("\"{}\" is not plain: {remedy}", idiom.join(" "));
                found.push((word.offset, message));
            }
        }
    }
    found
}

fn subjects(paragraph: &Paragraph) -> Vec<(usize, String)> {
    // A title or a cell of a table is not a sentence, so the rule about subjects does not apply.
    if paragraph.kind == Kind::Label {
        return Vec::new();
    }
    let text = &paragraph.text;
    let words = words(text);
    let mut found = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let rest = &words[index..];
        let Some(subject) = SUBJECTS.iter().find(|it| are(rest, it)) else {
            continue;
        };
        if rest.len() == subject.len() || !begins_a_sentence(paragraph, word) {
            continue;
        }
        if is_question(&text[word.offset..]) {
            continue;
        }
        let message = format!(
            "a sentence begins with \"{}\": begin with the thing that it is about",
            subject.join(" ")
        );
        found.push((word.offset, message));
    }
    found
}

/// Returns whether a sentence starts at the word. The first word of a paragraph of prose always
/// starts a sentence, even in lower case. Any other word must have a capital letter and follow the
/// end of a sentence.
fn begins_a_sentence(paragraph: &Paragraph, word: &Word<'_>) -> bool {
    let before = paragraph.text[..word.offset].trim_end_matches(['*', '_', '"', '(', '[', '\'']);
    if before.trim_end().is_empty() && paragraph.kind == Kind::Prose {
        return true;
    }
    let is_end = |c: char| ".?!:".contains(c);
    let ended = before
        .trim_end()
        .trim_end_matches(['"', ')', '*', '_', '\'']);
    let has_capital = word.text.starts_with(char::is_uppercase);
    has_capital && (ended.is_empty() || before.ends_with(' ') && ended.ends_with(is_end))
}

fn is_question(sentence: &str) -> bool {
    let mut chars = sentence.chars().peekable();
    while let Some(c) = chars.next() {
        let ends = chars.peek().is_none_or(|next| !next.is_alphanumeric());
        if ends && c == '?' {
            return true;
        }
        if ends && ".!".contains(c) {
            return false;
        }
    }
    false
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

    /// Returns each idiom in a sentence. The sentences are composed here, so that this file
    /// contains no idiom itself.
    fn planted() -> Vec<String> {
        let sentence = |(words, _): &(&[&str], &str)| format!("It is to {} here.", words.join(" "));
        IDIOMS.iter().map(sentence).collect()
    }

    #[test]
    fn each_idiom_is_found_in_each_kind_of_file() {
        for idiom in planted() {
            assert_eq!(lines("a.md", &format!("One.\n{idiom}\n")), [2]);
            assert_eq!(lines("a.rs", &format!("fn f() {{}}\n/// {idiom}\n")), [2]);
            assert_eq!(lines("a.rs", &format!("f(\"{idiom}\")\n")), [1]);
            assert_eq!(lines("a.c", &format!("int a;\n/*\n * {idiom}\n */\n")), [3]);
            assert_eq!(lines("a.h", &format!("// {idiom}\n")), [1]);
            assert_eq!(lines("a.3", &format!(".SH NAME\n{idiom}\n")), [2]);
        }
    }

    #[test]
    fn an_idiom_is_found_across_lines_and_in_any_case() {
        let text = format!("It is to {}\n{} now.\n", "Be", "Had");
        assert_eq!(lines("a.md", &text), [1]);
    }

    #[test]
    fn neither_code_nor_part_of_a_word_is_an_idiom() {
        for idiom in planted() {
            assert_eq!(lines("a.md", &format!("Not `{idiom}`.\n")), NONE);
        }
        assert_eq!(lines("a.md", "A celestial libtest was renewed."), NONE);
    }

    #[test]
    fn a_sentence_with_a_free_relative_as_subject_is_found() {
        let found = |text: &str| lines("a.md", text).len();
        for subject in ["What", "Who", "Those who", "**What", "\"Who"] {
            assert_eq!(found(&format!("{subject} comes goes.")), 1);
            assert_eq!(found(&format!("First. {subject} comes goes.")), 1);
            assert_eq!(found(&format!("- {subject} comes\n  goes.")), 1);
            assert_eq!(found(&format!("Note: {subject} comes goes.")), 1);
        }
        assert_eq!(lines("a.rs", "// what comes goes\n"), [1]);
        assert_eq!(lines("a.rs", "f(\"What comes goes.\")\n"), [1]);
    }

    #[test]
    fn questions_titles_and_objects_are_no_such_sentences() {
        let found = |text: &str| lines("a.md", text).len();
        assert_eq!(found("What is it?"), 0);
        assert_eq!(found("What is 1.5?\nIt is."), 0);
        assert_eq!(found("# What it is"), 0);
        assert_eq!(found("| What | Who |"), 0);
        assert_eq!(found("It says what it is, i.e. who it is."), 0);
        assert_eq!(found("Whatever it is, it goes."), 0);
        assert_eq!(lines("a.rs", "f(\"what is left\")\n"), NONE);
    }
}
