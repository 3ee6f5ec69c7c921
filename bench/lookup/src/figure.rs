//! [`Figure`]: one number of the report, and its threshold.

use std::fmt::Write as _;

/// The largest value with which a figure meets its threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// There is no threshold.
    None,
    /// The figure is at most this value, in the figure's own unit.
    Value(f64),
    /// The figure's ratio to UCX's figure of the same run is at most this value.
    OfUcx(f64),
    /// The figure is for two threads. Its ratio to the figure of one thread in the same run is at
    /// most this value.
    OfOneThread(f64),
}

/// One number of the report.
#[derive(Debug, Clone)]
pub struct Figure {
    /// The name of the measurement: words separated by slashes.
    pub name: String,
    /// The measured value for regcache.
    pub value: f64,
    /// The unit: `ns`, `instructions` or `bytes`.
    pub unit: &'static str,
    /// The measured value for UCX's cache, if that cache was measured.
    pub ucx: Option<f64>,
    /// The ratio of regcache's sample to UCX's sample of the same round: the median over the
    /// rounds.
    pub ratio_ucx: Option<f64>,
    /// The ratio of the sample of two threads to the sample of one thread of the same round: the
    /// median over the rounds.
    pub ratio_one_thread: Option<f64>,
    /// The threshold of the figure.
    pub threshold: Threshold,
}

impl Figure {
    /// Makes a figure without a threshold and without ratios.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            ucx: None,
            ratio_ucx: None,
            ratio_one_thread: None,
            threshold: Threshold::None,
        }
    }

    /// Sets the threshold.
    #[must_use]
    pub fn threshold(mut self, threshold: Threshold) -> Self {
        self.threshold = threshold;
        self
    }

    /// Returns whether the figure meets its threshold. Returns `None` if the figure has no
    /// threshold, or if the threshold is for a ratio that was not measured.
    pub fn is_met(&self) -> Option<bool> {
        match self.threshold {
            Threshold::None => None,
            Threshold::Value(most) => Some(self.value <= most),
            Threshold::OfUcx(most) => self.ratio_ucx.map(|ratio| ratio <= most),
            Threshold::OfOneThread(most) => self.ratio_one_thread.map(|ratio| ratio <= most),
        }
    }

    /// Returns the figure as a line that scripts can read.
    pub fn line(&self) -> String {
        let mut line = format!("bench {} {} {}", self.name, number(self.value), self.unit);
        for (key, ratio) in [
            ("ratio_ucx", self.ratio_ucx),
            ("ratio_one_thread", self.ratio_one_thread),
        ] {
            if let Some(ratio) = ratio {
                let _ = write!(line, " {key}={ratio:.3}");
            }
        }
        line
    }

    fn row(&self) -> [String; 8] {
        let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, |r| format!("{r:.2}"));
        [
            self.name.clone(),
            number(self.value),
            self.unit.to_owned(),
            self.ucx.map_or_else(String::new, number),
            ratio(self.ratio_ucx),
            ratio(self.ratio_one_thread),
            match self.threshold {
                Threshold::None => String::new(),
                Threshold::Value(most) => format!("<= {most} {}", self.unit),
                Threshold::OfUcx(most) => format!("<= {most} of UCX's"),
                Threshold::OfOneThread(most) => format!("<= {most} of one thread's"),
            },
            match self.is_met() {
                None => "",
                Some(true) => "met",
                Some(false) => "MISSED",
            }
            .to_owned(),
        ]
    }
}

/// Formats a number. A number below 100 has one decimal place, and a larger number has none.
fn number(value: f64) -> String {
    match value.abs() {
        v if v < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Returns the figures as a table for people.
pub fn table(figures: &[Figure]) -> String {
    let head = [
        "figure",
        "regcache",
        "",
        "UCX",
        "/UCX",
        "/1 thread",
        "threshold",
        "",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(figures.iter().map(Figure::row));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            // Numbers are aligned to the right.
            let _ = match column {
                1 | 3 | 4 | 5 => write!(line, "{cell:>0$}  ", width(column)),
                _ => write!(line, "{cell:<0$}  ", width(column)),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_compared_with_the_ratio_that_it_names() {
        let mut figure = Figure::new("hit/same/1", 9.0, "ns").threshold(Threshold::OfUcx(0.35));
        assert_eq!(figure.is_met(), None, "no ratio was measured");
        figure.ratio_ucx = Some(0.36);
        assert_eq!(figure.is_met(), Some(false));
        figure.threshold = Threshold::Value(9.0);
        assert_eq!(figure.is_met(), Some(true));
        assert_eq!(figure.line(), "bench hit/same/1 9.0 ns ratio_ucx=0.360");
    }
}
