//! The report of one or more runs: Markdown with its plots beside it, and one HTML file with the plots in it.

use std::path::{Path, PathBuf};

use crate::results::{Run, write};
use crate::table::{self, Rows};
use crate::{Error, Strategy, bytes, plot, project, threshold};

/// A piece of a report.
enum Part {
    Heading(String),
    Text(String),
    Table(Rows),
    Lines(Vec<String>),
    /// File name, what it shows, the drawing.
    Plot(String, String, String),
}

/// Writes `report.md`, `report.html` and the plots into `dir`, and returns where they are, the page first. `command` is what
/// made the runs.
///
/// # Errors
///
/// The files'; [`Error::Plot`].
pub fn report(runs: &[Run], command: &str, dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = vec![dir.join("report.html"), dir.join("report.md")];
    let mut parts = Vec::new();
    for run in runs {
        parts.extend(of_run(run)?);
    }
    let mut markdown = format!("# What a transfer costs\n\nMade by `{command}`.\n");
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>regcache: what a transfer costs</title>\n\
         <style>{STYLE}</style>\n<h1>What a transfer costs</h1>\n<p>Made by <code>{}</code>.</p>\n",
        table::escape(command)
    );
    for part in parts {
        match part {
            Part::Heading(text) => {
                markdown += &format!("\n## {text}\n");
                html += &format!("<h2>{}</h2>\n", table::escape(&text));
            }
            Part::Text(text) => {
                markdown += &format!("\n{text}\n");
                html += &format!("<p>{}</p>\n", in_html(&text));
            }
            Part::Table(rows) if rows.len() > 1 => {
                markdown += &format!("\n{}", table::markdown(&rows));
                html += &table::html(&rows);
            }
            Part::Table(_) => {}
            Part::Lines(lines) => {
                markdown.push('\n');
                html += "<ul>\n";
                for line in lines {
                    markdown += &format!("- {line}\n");
                    html += &format!("<li>{}</li>\n", table::escape(&line));
                }
                html += "</ul>\n";
            }
            Part::Plot(name, what, svg) => {
                write(&dir.join(&name), &svg)?;
                files.push(dir.join(&name));
                markdown += &format!("\n![{what}]({name})\n");
                html += &format!("<figure>{svg}</figure>\n");
            }
        }
    }
    write(&files[1], &markdown)?;
    write(&files[0], &(html + "</html>\n"))?;
    Ok(files)
}

/// A text whose pieces between backticks are code.
fn in_html(text: &str) -> String {
    let pieces = table::escape(text);
    let pieces = pieces.split('`').enumerate();
    let pieces = pieces.map(|(number, piece)| match number % 2 {
        1 => format!("<code>{piece}</code>"),
        _ => piece.to_owned(),
    });
    pieces.collect()
}

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse;font-size:13px;margin:1em 0}th,td{border:1px solid #ccc;padding:3px 8px;text-align:left}\
    th{background:#f3f3f3}td{white-space:nowrap}.n{text-align:right;font-variant-numeric:tabular-nums}figure{margin:1em 0}\
    svg{max-width:100%;height:auto}code{background:#f3f3f3;padding:1px 4px}";

fn of_run(run: &Run) -> Result<Vec<Part>, Error> {
    if run.machine.kind == "io_uring" {
        return of_uring(run);
    }
    let kind = &run.machine.kind;
    let mut parts = heading(run);
    parts.push(Part::Text(
        "Microseconds of a transfer with memory registered once, and the others' times as parts of it, with the interval \
         in which the cache's is with 95 % confidence. Registering is the time in the strategy, before and after the \
         transfer: two readings of the clock are in it."
            .to_owned(),
    ));
    parts.push(Part::Table(table::transfers(run)));
    let plotted = run.cells.iter().filter(|cell| cell.workload.is_plain());
    if plotted.count() > 1 {
        let strategies = [
            (Strategy::PerTransfer, "register each time"),
            (Strategy::Copy, "copy"),
            (Strategy::Regcache, "regcache"),
            (Strategy::PreRegistered, "registered once: only the clock"),
        ];
        let title = "Before and after each RDMA write";
        parts.push(Part::Plot(
            format!("{kind}-registering.svg"),
            "Time in registration for each transfer, by size and strategy".to_owned(),
            plot::registering(run, title, &strategies)?,
        ));
        let title = "A transfer by the cache, and with memory registered once";
        parts.push(Part::Plot(
            format!("{kind}-of-once.svg"),
            "The cache's time as a part of registered-once's, by size".to_owned(),
            plot::of_once(run, title)?,
        ));
    }
    parts.push(Part::Text(crossover(run)));
    let peers = table::peers(run);
    if !peers.is_empty() {
        parts.push(Part::Text(
            "Others that do the same work, by rounds with the above: odp is a registration that pins nothing, from which the \
             device pages in what it finds; libfabric-* the registration cache of its verbs provider by that monitor, or none. \
             Times of a transfer as parts of registered-once's."
                .to_owned(),
        ));
        parts.push(Part::Table(peers));
    }
    parts.push(Part::Text(
        "With buffers unmapped and mapped again at the same address before a part of the transfers, each payload checked \
         byte by byte:"
            .to_owned(),
    ));
    parts.push(Part::Table(table::unmaps(run)));
    parts.push(Part::Text("What was promised:".to_owned()));
    let verdicts = threshold::judge(run);
    parts.push(Part::Lines(
        verdicts.iter().map(ToString::to_string).collect(),
    ));
    parts.extend(projected(run)?);
    Ok(parts)
}

fn of_uring(run: &Run) -> Result<Vec<Part>, Error> {
    let mut parts = heading(run);
    parts.push(Part::Text(format!(
        "On the machine itself, not emulated: writes and reads of a file in memory by fixed buffers, whose pages are pinned \
         as an adapter's are, and nothing else done. The cache's monitor is {}, which has to be asked at each lookup; \
         beside it stands what the same cache takes with the driver, whose generation is a word in memory (a monitor that \
         reports nothing: for work that unmaps nothing the same).",
        run.machine.monitor
    )));
    let strategies = [
        (Strategy::PerTransfer, "register each time"),
        (Strategy::Copy, "copy"),
        (Strategy::Regcache, "regcache, by userfaultfd"),
        (Strategy::Naive, "regcache, as with the driver"),
        (Strategy::PreRegistered, "registered once: only the clock"),
    ];
    parts.push(Part::Table(table::transfers(run)));
    parts.push(Part::Plot(
        "io_uring-registering.svg".to_owned(),
        "Time in registration for each transfer, by size and strategy".to_owned(),
        plot::registering(
            run,
            "Before and after each write by a fixed buffer",
            &strategies,
        )?,
    ));
    parts.push(Part::Text(crossover(run)));
    parts.push(Part::Table(table::unmaps(run)));
    parts.extend(projected(run)?);
    Ok(parts)
}

fn heading(run: &Run) -> Vec<Part> {
    vec![
        Part::Heading(format!("{}: {}", run.machine.kind, run.machine.line())),
        Part::Text(format!(
            "`bench {}`. A reading of the clock takes {:.0} ns here.",
            run.command, run.machine.clock_ns
        )),
    ]
}

fn projected(run: &Run) -> Result<Vec<Part>, Error> {
    if run.costs.is_empty() {
        return Ok(Vec::new());
    }
    let kind = &run.machine.kind;
    Ok(vec![
        Part::Text("What registering costs, with no transfer beside it (medians):".to_owned()),
        Part::Table(table::costs(run)),
        Part::Text(format!(
            "Projected to links that are faster than this one: the share of a transfer's time that registering and \
             deregistering take, R / (R + L + 8 s / B), with R from the table above, s bytes, B the link's rate and L = {} ns \
             for all the rest; in brackets, of a hit with the driver.",
            project::LATENCY_NS
        )),
        Part::Table(project::shares(run, project::LATENCY_NS)),
        Part::Plot(
            format!("{kind}-links.svg"),
            "Share of a transfer's time that registration takes, by size and link".to_owned(),
            plot::links(run, "What registering each time takes of a transfer (projected)")?,
        ),
        Part::Text(
            "How much of the link one processor can fill that registers each buffer, however many are under way: \
             min(1, (8 s / B) / R)."
                .to_owned(),
        ),
        Part::Table(project::fills(run)),
    ])
}

/// Up to which size copying is cheaper than registering each time, and than the cache.
fn crossover(run: &Run) -> String {
    let plain = run.cells.iter().filter(|cell| cell.workload.is_plain());
    let mut writes: Vec<_> = plain
        .filter(|cell| cell.workload.op == crate::Op::Write)
        .collect();
    writes.sort_by_key(|cell| cell.workload.size);
    let cheaper_than = |strategy: Strategy| {
        let cheaper = writes.iter().filter(|cell| {
            let prepare =
                |strategy: Strategy| cell.outcome(strategy.name(), 0).map(|it| it.prepare_us);
            prepare(Strategy::Copy) < prepare(strategy)
        });
        cheaper.map(|cell| cell.workload.size).max()
    };
    let upto = |strategy| match cheaper_than(strategy) {
        Some(size) => format!("up to {} of the sizes measured", bytes(size)),
        None => "at no size measured".to_owned(),
    };
    format!(
        "Copying through memory that is registered for good is cheaper than registering each time {}, and cheaper than the \
         cache {}.",
        upto(Strategy::PerTransfer),
        upto(Strategy::Regcache)
    )
}
