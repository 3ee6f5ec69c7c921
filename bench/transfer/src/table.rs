//! Formats results as text: lines of figures for scripts, and tables for people.

use std::fmt::Write as _;

use crate::results::{Cell, Outcome, Run};
use crate::{Strategy, bytes};

/// Formats a number with at most three significant digits. If the number has more digits before the
/// decimal point, all of these digits are kept.
#[must_use]
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if !v.is_finite() => return "-".to_owned(),
        0.0 => return "0".to_owned(),
        v if v < 0.01 => return format!("{value:.1e}"),
        v if v < 0.1 => 3,
        v if v < 1.0 => 3,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// Returns the figure lines of a cell: `<kind> <op> <size> <strategy> <value> <unit>`.
#[must_use]
pub fn lines(kind: &str, cell: &Cell) -> String {
    let mut text = String::new();
    for outcome in &cell.outcomes {
        let workload = cell.workload_of(outcome);
        let head = format!(
            "{kind} {} {} {}",
            workload.name(),
            workload.size,
            outcome.strategy
        );
        let [p50, p90, p99, p999, max] = outcome.latency_us;
        let figures = [
            (outcome.us, "us"),
            (outcome.ratio, "of-first"),
            (outcome.rate, "msg/s"),
            (outcome.bandwidth / 1e6, "MB/s"),
            (p50, "us-p50"),
            (p90, "us-p90"),
            (p99, "us-p99"),
            (p999, "us-p99.9"),
            (max, "us-max"),
            (outcome.prepare_us, "us-registering"),
            (outcome.prepare_mean_us, "us-registering-mean"),
            (outcome.cpu_us, "cpu-us-registering"),
            (outcome.registration_calls, "registration-calls"),
            (outcome.monitor_calls, "monitor-calls"),
            (outcome.pinned as f64, "bytes-pinned"),
        ];
        for (value, unit) in figures {
            let _ = writeln!(text, "{head} {} {unit}", number(value));
        }
        if outcome.checked {
            let _ = writeln!(text, "{head} {} stale-bytes", outcome.stale_bytes);
        }
    }
    text
}

/// The rows of a table. The first row holds the column titles.
pub type Rows = Vec<Vec<String>>;

/// Returns the table that shows the times and overheads of the transfers without unmaps.
#[must_use]
pub fn transfers(run: &Run) -> Rows {
    let head = [
        "transfer",
        "size",
        "pre-registered, us",
        "regcache (ratio)",
        "(95 %)",
        "per transfer (ratio)",
        "copy (ratio)",
        "overhead: per transfer, us",
        "regcache, us",
        "copy, us",
        "times less",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for cell in run
        .cells
        .iter()
        .filter(|cell| cell.workload.unmap_every == 0)
    {
        let of = |strategy: Strategy, figure: fn(&Outcome) -> f64| {
            let outcome = cell.outcome(strategy.name(), 0);
            outcome.map_or_else(String::new, |outcome| number(figure(outcome)))
        };
        let ratio = |strategy: Strategy| {
            let outcome = cell.outcome(strategy.name(), 0);
            outcome.map_or_else(String::new, |outcome| format!("{:.3}", outcome.ratio))
        };
        let prepare = |strategy: Strategy| cell.outcome(strategy.name(), 0).map(|it| it.prepare_us);
        let (each, ours) = (prepare(Strategy::PerTransfer), prepare(Strategy::Regcache));
        rows.push(vec![
            cell.workload.name(),
            bytes(cell.workload.size),
            of(Strategy::PreRegistered, |it| it.us),
            ratio(Strategy::Regcache),
            cell.outcome(Strategy::Regcache.name(), 0)
                .map_or_else(String::new, |it| {
                    format!("{:.3}-{:.3}", it.ratio_between[0], it.ratio_between[1])
                }),
            ratio(Strategy::PerTransfer),
            ratio(Strategy::Copy),
            of(Strategy::PerTransfer, |it| it.prepare_us),
            of(Strategy::Regcache, |it| it.prepare_us),
            of(Strategy::Copy, |it| it.prepare_us),
            match (each, ours) {
                (Some(each), Some(ours)) => format!("{:.0}", each / ours),
                _ => String::new(),
            },
        ]);
    }
    rows
}

/// Returns the table that compares regcache with on-demand paging and with libfabric's caches.
/// Times are ratios to the time with pre-registered memory.
#[must_use]
pub fn peers(run: &Run) -> Rows {
    let plain = || run.cells.iter().filter(|cell| cell.workload.is_plain());
    let mut names: Vec<&str> = Vec::new();
    for outcome in plain().flat_map(|cell| &cell.outcomes) {
        let is_peer =
            outcome.strategy == Strategy::Odp.name() || outcome.strategy.starts_with("libfabric");
        if is_peer && !names.contains(&&*outcome.strategy) {
            names.push(&outcome.strategy);
        }
    }
    if names.is_empty() {
        return Vec::new();
    }
    names.insert(0, Strategy::Regcache.name());
    let mut head = vec!["transfer".to_owned(), "size".to_owned()];
    head.extend(names.iter().map(|name| format!("{name} (ratio)")));
    head.extend(names.iter().map(|name| format!("{name}: overhead, us")));
    let mut rows = vec![head];
    for cell in plain() {
        let of = |figure: fn(&Outcome) -> String| {
            let outcomes = names.iter().map(|name| cell.outcome(name, 0));
            outcomes.map(move |outcome| outcome.map_or_else(String::new, figure))
        };
        let mut row = vec![cell.workload.name(), bytes(cell.workload.size)];
        row.extend(of(|it| format!("{:.3}", it.ratio)));
        row.extend(of(|it| number(it.prepare_us)));
        rows.push(row);
    }
    rows
}

/// Returns the table that shows the results of the transfers with unmaps.
#[must_use]
pub fn unmaps(run: &Run) -> Rows {
    let head = [
        "transfer",
        "size",
        "strategy",
        "us",
        "rate (ratio to regcache without unmaps)",
        "overhead, us (mean)",
        "registration calls",
        "monitor calls",
        "remaps",
        "stale bytes",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for cell in run
        .cells
        .iter()
        .filter(|cell| cell.workload.unmap_every > 0)
    {
        for outcome in &cell.outcomes {
            let workload = cell.workload_of(outcome);
            rows.push(vec![
                workload.name(),
                bytes(workload.size),
                outcome.strategy.clone(),
                number(outcome.us),
                format!("{:.3}", 1.0 / outcome.ratio),
                number(outcome.prepare_mean_us),
                number(outcome.registration_calls),
                number(outcome.monitor_calls),
                outcome.remaps.to_string(),
                outcome.stale_bytes.to_string(),
            ]);
        }
    }
    rows
}

/// Returns the table that shows the cost of registering for each size, measured without transfers.
#[must_use]
pub fn costs(run: &Run) -> Rows {
    let head = [
        "size",
        "register, us",
        "deregister, us",
        "hit, us",
        "hit with the driver, us",
        "copy, us",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for cost in &run.costs {
        let us = |ns: f64| number(ns / 1e3);
        rows.push(vec![
            bytes(cost.size),
            us(cost.register_ns),
            us(cost.deregister_ns),
            us(cost.hit_ns),
            us(cost.word_hit_ns),
            us(cost.copy_ns),
        ]);
    }
    rows
}

/// Formats a table as plain text in columns. Numbers are aligned to the right.
#[must_use]
pub fn text(rows: &Rows) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = match is_number(cell) {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Formats a table as Markdown.
#[must_use]
pub fn markdown(rows: &Rows) -> String {
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if number == 0 {
            let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
        }
    }
    text
}

/// Formats a table as HTML.
#[must_use]
pub fn html(rows: &Rows) -> String {
    let mut text = String::from("<table>\n");
    for (number, row) in rows.iter().enumerate() {
        let tag = if number == 0 { "th" } else { "td" };
        text += "<tr>";
        for cell in row {
            let class = if is_number(cell) { " class=\"n\"" } else { "" };
            let _ = write!(text, "<{tag}{class}>{}</{tag}>", escape(cell));
        }
        text += "</tr>\n";
    }
    text + "</table>\n"
}

/// Escapes a text for HTML.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn is_number(cell: &str) -> bool {
    cell.chars()
        .next()
        .is_some_and(|first| first.is_ascii_digit())
        && !cell.ends_with('B')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_significant_digits() {
        let cases = [
            (0.0, "0"),
            (0.0049, "4.9e-3"),
            (0.123, "0.123"),
            (7.256, "7.26"),
            (72.56, "72.6"),
            (725.6, "726"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(f64::NAN), "-");
    }
}
