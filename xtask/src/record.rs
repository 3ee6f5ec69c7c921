//! Records `regcache repro --watch` as an animated picture in SVG, for the README.
//!
//! The tool prints one table after the other. Each table becomes a frame of the picture. A program
//! that shows no animation shows the last frame.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cmd;
use crate::demo;
use crate::error::{AtPath, Error};
use crate::project::Project;

/// The picture, in the repository.
const PICTURE: &str = "docs/results/repro.svg";

/// The command line that the picture shows.
const SHOWN: &str = "$ regcache repro --watch";

/// The number of seconds that the tool runs.
const SECONDS: &str = "6";

/// The time for which a frame is shown, and for which the last frame is shown, in milliseconds.
const FRAME_MS: usize = 200;
const LAST_MS: usize = 4000;

/// The size of a character, and the distance of the text from the border, in pixels.
const WIDTH: usize = 9;
const HEIGHT: usize = 22;
const BORDER: usize = 18;

/// The widths of the table's columns, in characters.
const COLUMNS: [usize; 3] = [24, 14, 14];

/// The colours of the two numbers in the row of stale transfers.
const STALE: [&str; 2] = ["#ff7b72", "#7ee787"];

/// Runs the tool, and writes the picture.
pub(crate) fn run(project: &Project) -> Result<u8, Error> {
    let tool = demo::build(project, "regcache-cli", "regcache")?;
    let mut watch = Command::new(tool);
    let said = cmd::read(watch.args(["repro", "--watch", SECONDS]))?;
    let picture = picture(&said).ok_or_else(|| Error::Unexpected {
        command: cmd::line(&watch),
        what: "no table in three columns".to_owned(),
    })?;
    let path = project.root.join(PICTURE);
    fs::write(&path, picture).at(&path)?;
    eprintln!("xtask: wrote {}", Path::new(PICTURE).display());
    Ok(0)
}

/// Returns the picture of these tables, or `None` if there is no table or a line does not have the
/// width of the columns.
fn picture(said: &str) -> Option<String> {
    let frames: Vec<_> = said.trim_end().split("\n\n").collect();
    let columns: usize = COLUMNS.iter().sum();
    let lines = frames.first()?.lines().count();
    let is_table = |frame: &str| {
        frame.lines().count() == lines && frame.lines().all(|line| line.chars().count() == columns)
    };
    if !frames.iter().all(|frame| is_table(frame)) {
        return None;
    }
    let (width, height) = (
        columns * WIDTH + 2 * BORDER,
        (lines + 1) * HEIGHT + 2 * BORDER,
    );
    let last = frames.len() - 1;
    let total = last * FRAME_MS + LAST_MS;
    let percent = |ms: usize| ms * 10_000 / total;
    let part = |ms| format!("{}.{:02}%", percent(ms) / 100, percent(ms) % 100);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="{SHOWN}">
<style>
text {{ font: 15px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #e6edf3; white-space: pre }}
.f {{ opacity: 0; animation: f {total}ms step-end infinite }}
.l {{ opacity: 1; animation: l {total}ms step-end infinite }}
@keyframes f {{ 0% {{ opacity: 1 }} {} {{ opacity: 0 }} 100% {{ opacity: 0 }} }}
@keyframes l {{ 0% {{ opacity: 0 }} {} {{ opacity: 1 }} 100% {{ opacity: 1 }} }}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>
<text x="{BORDER}" y="{}">{SHOWN}</text>
"##,
        part(FRAME_MS),
        part(last * FRAME_MS),
        BORDER + HEIGHT - 6,
    );
    for (index, frame) in frames.iter().enumerate() {
        let opening = if index == last {
            r#"<g class="l">"#.to_owned()
        } else {
            format!(
                r#"<g class="f" style="animation-delay: {}ms">"#,
                index * FRAME_MS
            )
        };
        // Writing to a string cannot fail.
        let _ = writeln!(svg, "{opening}");
        for (row, line) in frame.lines().enumerate() {
            let y = BORDER + (row + 2) * HEIGHT - 6;
            write_row(&mut svg, line, y);
        }
        svg += "</g>\n";
    }
    svg += "</svg>\n";
    Some(svg)
}

/// Writes a line of the table. Each word or number gets its own place, so the columns stay
/// aligned whatever font the reader's program uses.
fn write_row(svg: &mut String, line: &str, y: usize) {
    let characters: Vec<_> = line.chars().collect();
    let mut start = 0;
    for (column, len) in COLUMNS.into_iter().enumerate() {
        let cell: String = characters[start..start + len].iter().collect();
        start += len;
        let stale = line.starts_with("stale") && column > 0;
        let colour = if stale {
            format!(r#" style="fill: {}; font-weight: bold""#, STALE[column - 1])
        } else {
            String::new()
        };
        let (x, anchor) = if column == 0 {
            (BORDER, "start")
        } else {
            (BORDER + start * WIDTH, "end")
        };
        let _ = writeln!(
            svg,
            r#"<text x="{x}" y="{y}" text-anchor="{anchor}"{colour}>{}</text>"#,
            cell.trim()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_is_a_frame_and_the_last_one_stays() {
        let row = |name: &str, numbers: [u32; 2]| {
            format!("{name:<24}{:>14}{:>14}\n", numbers[0], numbers[1])
        };
        let table = |n| row("lookups", [n, n]) + &row("stale transfers", [n, 0]);
        let said = format!("{}\n{}\n{}\n", table(1), table(2), table(3));
        let svg = picture(&said).unwrap();
        assert_eq!(svg.matches("<g class=\"f\"").count(), 2);
        assert_eq!(svg.matches("<g class=\"l\"").count(), 1);
        assert!(svg.contains(&format!("fill: {}; font-weight: bold\">3<", STALE[0])));
        assert!(svg.contains(&format!("fill: {}; font-weight: bold\">0<", STALE[1])));
        assert_eq!(picture("no io_uring here: ENOSYS\n"), None);
    }
}
