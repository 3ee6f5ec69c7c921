//! Plots results as SVG.

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::project::{LATENCY_NS, LINKS, share};
use crate::results::{Outcome, Run};
use crate::threshold::OF_PRE_REGISTERED;
use crate::{Error, Op, Strategy, bytes};

const SIZE: (u32, u32) = (1040, 440);

/// The width of the column that contains the names of the lines. The column is next to the chart,
/// so no name covers a part of the chart.
const NAMES: u32 = 250;

/// The distance from one name to the next in the column of names.
const NAME_HEIGHT: i32 = 22;
const FONT: &str = "sans-serif";

/// A line of a plot: its name, its points, and the confidence intervals. An interval is a size with
/// the lower and the upper bound.
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    between: Vec<(f64, f64, f64)>,
}

/// The axes and the title of a plot.
struct Frame<'a> {
    title: &'a str,
    y: &'a str,
    /// If true, the vertical axis is logarithmic.
    log: bool,
    range: (f64, f64),
    /// The height of a horizontal line. Its name is this number.
    line: Option<f64>,
    label: &'a dyn Fn(f64) -> String,
}

fn color(index: usize) -> RGBColor {
    // The colours are those of Okabe and Ito, which readers with red-green colour blindness can
    // distinguish.
    const COLORS: [RGBColor; 6] = [
        RGBColor(0, 114, 178),
        RGBColor(213, 94, 0),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(86, 180, 233),
        RGBColor(120, 100, 0),
    ];
    COLORS[index % COLORS.len()]
}

/// Draws a plot. The horizontal axis has the sizes, and each series is a line.
fn draw(frame: &Frame<'_>, sizes: &[usize], series: &[Series]) -> Result<String, Error> {
    let mut svg = String::new();
    let drawn = if frame.log {
        let (low, high) = frame.range;
        render(&mut svg, frame, sizes, series, (low..high).log_scale())
    } else {
        let (low, high) = frame.range;
        render(&mut svg, frame, sizes, series, low..high)
    };
    drawn.map_err(|why| Error::Plot {
        name: frame.title.to_owned(),
        why,
    })?;
    Ok(svg)
}

fn render<Y>(
    svg: &mut String,
    frame: &Frame<'_>,
    sizes: &[usize],
    series: &[Series],
    y: Y,
) -> Result<(), String>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let to_text = |why: &dyn std::fmt::Display| why.to_string();
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|e| to_text(&e))?;
    // The sizes are powers of one number, so the horizontal axis shows them at equal distances.
    let place = |size: f64| {
        let index = sizes.iter().position(|&it| it as f64 == size);
        index.unwrap_or(0) as f64
    };
    let last = sizes.len().saturating_sub(1).max(1) as f64;
    let (left, right) = root.split_horizontally(SIZE.0 - NAMES);
    let mut chart = ChartBuilder::on(&left)
        .caption(frame.title, (FONT, 18))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..last, y)
        .map_err(|e| to_text(&e))?;
    chart
        .configure_mesh()
        .x_desc("bytes of a transfer")
        .y_desc(frame.y)
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_labels(sizes.len())
        .x_label_formatter(&|place| {
            let size = sizes.get(place.round() as usize);
            size.map_or_else(String::new, |&size| bytes(size))
        })
        .y_label_formatter(&|value| (frame.label)(*value))
        .draw()
        .map_err(|e| to_text(&e))?;
    let mut names = Vec::new();
    if let Some(at) = frame.line {
        let ends = [(0.0, at), (last, at)];
        chart
            .draw_series(DashedLineSeries::new(ends, 6, 4, BLACK.stroke_width(1)))
            .map_err(|e| to_text(&e))?;
        names.push((at.to_string(), BLACK));
    }
    for (index, line) in series.iter().enumerate() {
        let color = color(index);
        let points = line.points.iter().map(|&(size, y)| (place(size), y));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))
            .map_err(|e| to_text(&e))?;
        names.push((line.name.clone(), color));
        let bars = line.between.iter().map(|&(size, low, high)| {
            // The intervals of several lines are drawn side by side, so that each interval is
            // visible.
            let x = place(size) + 0.03 * index as f64;
            PathElement::new([(x, low), (x, high)], color.stroke_width(1))
        });
        chart.draw_series(bars).map_err(|e| to_text(&e))?;
    }
    for (row, (name, color)) in names.into_iter().enumerate() {
        let y = 52 + row as i32 * NAME_HEIGHT;
        let dash = PathElement::new([(0, y), (18, y)], color.stroke_width(2));
        right.draw(&dash).map_err(|e| to_text(&e))?;
        let text = Text::new(name, (26, y - 8), (FONT, 14));
        right.draw(&text).map_err(|e| to_text(&e))?;
    }
    root.present().map_err(|e| to_text(&e))
}

fn sizes(run: &Run, op: Op) -> Vec<usize> {
    let plain = run.cells.iter().map(|cell| cell.workload);
    let plain = plain.filter(|workload| workload.op == op && workload.is_plain());
    plain.map(|workload| workload.size).collect()
}

/// Returns a line that shows one figure of a strategy. The line has a point for each size of the
/// plain workloads.
fn line(run: &Run, op: Op, strategy: Strategy, figure: fn(&Outcome) -> f64) -> Series {
    let cells = run.cells.iter();
    let cells = cells.filter(|cell| cell.workload.op == op && cell.workload.is_plain());
    let points = cells.filter_map(|cell| {
        let outcome = cell.outcome(strategy.name(), 0)?;
        Some((cell.workload.size as f64, figure(outcome)))
    });
    Series {
        name: strategy.name().to_owned(),
        points: points.collect(),
        between: Vec::new(),
    }
}

/// Returns a power of ten below all values, and a power of ten above all values. They are the
/// bounds of the vertical axis.
fn decades(series: &[Series]) -> (f64, f64) {
    let values = || {
        series
            .iter()
            .flat_map(|line| line.points.iter().map(|point| point.1))
    };
    let least = values()
        .filter(|&value| value > 0.0)
        .fold(f64::MAX, f64::min);
    let most = values().fold(f64::MIN_POSITIVE, f64::max);
    (
        10f64.powf(least.log10().floor()),
        10f64.powf((most * 1.2).log10().ceil()),
    )
}

fn micros(us: f64) -> String {
    match us {
        _ if us < 0.999 => format!("{:.0} ns", us * 1e3),
        _ if us < 999.0 => format!("{us:.0} us"),
        _ => format!("{:.0} ms", us / 1e3),
    }
}

/// Plots the registration overhead of a transfer for each size.
///
/// # Errors
///
/// Returns [`Error::Plot`].
pub(crate) fn registering(
    run: &Run,
    title: &str,
    strategies: &[(Strategy, &str)],
) -> Result<String, Error> {
    let series: Vec<_> = strategies
        .iter()
        .map(|&(strategy, name)| Series {
            name: name.to_owned(),
            ..line(run, Op::Write, strategy, |outcome| outcome.prepare_us)
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    let frame = Frame {
        title,
        y: "registration overhead of a transfer",
        log: true,
        range: decades(&series),
        line: None,
        label: &micros,
    };
    draw(&frame, &sizes(run, Op::Write), &series)
}

/// Plots the time of a transfer with the cache, as a ratio to the time with pre-registered memory,
/// for each size. Also shows the confidence interval of each ratio.
///
/// # Errors
///
/// Returns [`Error::Plot`].
pub(crate) fn of_pre_registered(run: &Run, title: &str) -> Result<String, Error> {
    let series: Vec<_> = Op::ALL
        .into_iter()
        .filter(|&op| !sizes(run, op).is_empty())
        .map(|op| {
            let cells = run.cells.iter();
            let cells = cells.filter(|cell| cell.workload.op == op && cell.workload.is_plain());
            let between = cells.filter_map(|cell| {
                let [low, high] = cell.outcome(Strategy::Regcache.name(), 0)?.ratio_between;
                Some((cell.workload.size as f64, low.max(0.9), high.min(1.1)))
            });
            Series {
                name: op.to_string(),
                between: between.collect(),
                ..line(run, op, Strategy::Regcache, |outcome| outcome.ratio)
            }
        })
        .collect();
    let frame = Frame {
        title,
        y: "ratio to pre-registered",
        log: false,
        range: (0.9, 1.1),
        line: Some(OF_PRE_REGISTERED),
        label: &|ratio| format!("{ratio:.2}"),
    };
    draw(&frame, &sizes(run, Op::Write), &series)
}

/// Plots the share of a transfer's time that registering takes. The plot has one line for each of
/// several links. A further line shows the share that a hit takes on the fastest link.
///
/// # Errors
///
/// Returns [`Error::Plot`].
pub(crate) fn links(run: &Run, title: &str) -> Result<String, Error> {
    let over_sizes = |name: String, gbps: f64, ns: fn(&crate::results::Cost) -> f64| Series {
        name,
        points: run
            .costs
            .iter()
            .map(|cost| {
                let share = share(ns(cost), cost.size, gbps, LATENCY_NS);
                (cost.size as f64, 100.0 * share)
            })
            .collect(),
        between: Vec::new(),
    };
    let mut series: Vec<_> = LINKS
        .iter()
        .filter(|&&gbps| gbps != 50.0 && gbps != 200.0)
        .map(|&gbps| {
            over_sizes(format!("per transfer, {gbps} Gb/s"), gbps, |cost| {
                cost.both_ns()
            })
        })
        .collect();
    series.push(over_sizes(
        "a hit with the driver, 800 Gb/s".to_owned(),
        800.0,
        |cost| cost.word_hit_ns,
    ));
    let sizes: Vec<_> = run.costs.iter().map(|cost| cost.size).collect();
    let frame = Frame {
        title,
        y: "registering, % of a transfer's time",
        log: false,
        range: (0.0, 100.0),
        line: None,
        label: &|percent| format!("{percent:.0} %"),
    };
    draw(&frame, &sizes, &series)
}
