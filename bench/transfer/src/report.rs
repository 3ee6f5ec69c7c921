//! Writes a report of one or more runs, in Markdown and in HTML. The Markdown file links to the
//! plots, and the HTML file contains the plots.

use std::path::{Path, PathBuf};

use crate::results::{Run, write};
use crate::table::{self, Rows};
use crate::{Error, Strategy, bytes, plot, project, threshold};

/// A part of a report.
enum Part {
    Heading(String),
    Text(String),
    Table(Rows),
    Lines(Vec<String>),
    /// A plot: its file name, its caption and its SVG text.
    Plot(String, String, String),
}

/// Writes `report.md`, `report.html` and the plots into `dir`. Returns the paths of these files,
/// and `report.html` comes first. The report names `command` as the command that made the results.
///
/// # Errors
///
/// Returns the errors of the files. Returns [`Error::Plot`] if a plot cannot be drawn.
pub fn report(runs: &[Run], command: &str, dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = vec![dir.join("report.html"), dir.join("report.md")];
    let mut parts = Vec::new();
    for run in runs {
        parts.extend(of_run(run)?);
    }
    let mut markdown = format!("# The cost of a transfer\n\nMade by `{command}`.\n");
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>regcache: the cost of a transfer</title>\n\
         <style>{STYLE}</style>\n<h1>The cost of a transfer</h1>\n<p>Made by <code>{}</code>.</p>\n",
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

/// Returns the text as HTML. The parts between backticks become code elements.
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
        "The table shows the time of a transfer with pre-registered memory in microseconds. The other times are ratios to \
         this time. The ratio of the cache has a confidence interval (95 %). The overhead is the time in the strategy, \
         before and after the transfer. It includes the timer overhead, which is the time of two clock readings."
            .to_owned(),
    ));
    parts.push(Part::Table(table::transfers(run)));
    let plotted = run.cells.iter().filter(|cell| cell.workload.is_plain());
    if plotted.count() > 1 {
        let strategies = [
            (Strategy::PerTransfer, "register per transfer"),
            (Strategy::Copy, "copy"),
            (Strategy::Regcache, "regcache"),
            (Strategy::PreRegistered, "pre-registered: timer overhead"),
        ];
        let title = "Before and after each RDMA write";
        parts.push(Part::Plot(
            format!("{kind}-registering.svg"),
            "Registration overhead of a transfer, by size and strategy".to_owned(),
            plot::registering(run, title, &strategies)?,
        ));
        let title = "A transfer by the cache, as a ratio to pre-registered memory";
        parts.push(Part::Plot(
            format!("{kind}-of-once.svg"),
            "The cache's time as a ratio to pre-registered, by size".to_owned(),
            plot::of_pre_registered(run, title)?,
        ));
    }
    parts.push(Part::Text(crossover(run)));
    let peers = table::peers(run);
    if !peers.is_empty() {
        parts.push(Part::Text(
            "Peers do the same work in the same rounds. `odp` is on-demand paging: a registration pins nothing, and the device \
             pages memory in on demand. `libfabric-*` is the registration cache of libfabric's verbs provider, with \
             the monitor in its name; `libfabric-disabled` has no cache. The times of a transfer are ratios to pre-registered \
             memory."
                .to_owned(),
        ));
        parts.push(Part::Table(peers));
    }
    parts.push(Part::Text(
        "For the next table, the buffer is unmapped and mapped again at the same address before some of the transfers. \
         Every byte of each payload is checked:"
            .to_owned(),
    ));
    parts.push(Part::Table(table::unmaps(run)));
    parts.push(Part::Text("The thresholds:".to_owned()));
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
        "These transfers write and read a file in memory through fixed buffers. They run on the machine itself, without \
         emulation. io_uring pins the pages of a fixed buffer, as an adapter does. The monitor of the cache is {}, and each \
         lookup calls this monitor. In the plot, `regcache, as with the driver` is the same cache with a monitor that never \
         reports. With the driver, a hit costs about as much: it also loads the generation from a mapped page.",
        run.machine.monitor
    )));
    let strategies = [
        (Strategy::PerTransfer, "register per transfer"),
        (Strategy::Copy, "copy"),
        (Strategy::Regcache, "regcache, with userfaultfd"),
        (Strategy::Naive, "regcache, as with the driver"),
        (Strategy::PreRegistered, "pre-registered: timer overhead"),
    ];
    parts.push(Part::Table(table::transfers(run)));
    parts.push(Part::Plot(
        "io_uring-registering.svg".to_owned(),
        "Registration overhead of a transfer, by size and strategy".to_owned(),
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
            "`transfer {}`. A clock reading takes {:.0} ns here.",
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
        Part::Text("The cost of registering without transfers (medians):".to_owned()),
        Part::Table(table::costs(run)),
        Part::Text(format!(
            "The next table is a projection to faster links. It shows the share of a transfer's time that registering and \
             deregistering take, R / (R + L + 8 s / B). R is the time from the table above, s is the size, B is the rate of \
             the link, and L = {} ns is the rest of the transfer. The share of a hit with the driver is in brackets.",
            project::LATENCY_NS
        )),
        Part::Table(project::shares(run, project::LATENCY_NS)),
        Part::Plot(
            format!("{kind}-links.svg"),
            "Share of a transfer's time that registering takes, by size and link".to_owned(),
            plot::links(run, "Share of a transfer that registering per transfer takes (projected)")?,
        ),
        Part::Text(
            "The last table shows the share of the link's rate that one CPU reaches if it registers each buffer. With any \
             number of transfers in flight, this share is min(1, (8 s / B) / R)."
                .to_owned(),
        ),
        Part::Table(project::fills(run)),
    ])
}

/// Returns two sentences for the report. One names the largest size at which copying is cheaper
/// than registering per transfer. The other names the largest size at which copying is cheaper than
/// the cache.
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
    let up_to = |strategy| match cheaper_than(strategy) {
        Some(size) => format!("up to {} of the sizes measured", bytes(size)),
        None => "at no size measured".to_owned(),
    };
    format!(
        "Copying through memory that stays registered is cheaper than registering per transfer {}. It is cheaper than the \
         cache {}.",
        up_to(Strategy::PerTransfer),
        up_to(Strategy::Regcache)
    )
}
