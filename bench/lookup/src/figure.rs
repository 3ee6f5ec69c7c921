//! [`Figure`]: one number of the report, and what it is held against.

use std::fmt::Write as _;

/// What a figure may be at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// Nothing was promised.
    None,
    /// In the figure's own unit.
    Value(f64),
    /// Of UCX's in the same run.
    OfUcx(f64),
    /// Of what one thread takes in the same run.
    OfOneThread(f64),
}

/// One number of the report.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What was measured, words divided by slashes.
    pub name: String,
    /// regcache's number.
    pub value: f64,
    /// `ns`, or `instructions`.
    pub unit: &'static str,
    /// UCX's number.
    pub ucx: Option<f64>,
    /// regcache's divided by UCX's: the median of the ratios, where both are medians.
    pub ratio_ucx: Option<f64>,
    /// That of two threads divided by that of one.
    pub ratio_one_thread: Option<f64>,
    /// What was promised.
    pub limit: Limit,
}

impl Figure {
    /// A figure with nothing to compare it with.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            ucx: None,
            ratio_ucx: None,
            ratio_one_thread: None,
            limit: Limit::None,
        }
    }

    /// With a limit.
    #[must_use]
    pub fn limit(mut self, limit: Limit) -> Self {
        self.limit = limit;
        self
    }

    /// Whether the limit is met; `None` if there is none, or nothing to hold it against.
    pub fn is_met(&self) -> Option<bool> {
        match self.limit {
            Limit::None => None,
            Limit::Value(most) => Some(self.value <= most),
            Limit::OfUcx(most) => self.ratio_ucx.map(|ratio| ratio <= most),
            Limit::OfOneThread(most) => self.ratio_one_thread.map(|ratio| ratio <= most),
        }
    }

    /// The line that a script reads.
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
            match self.limit {
                Limit::None => String::new(),
                Limit::Value(most) => format!("<= {most} {}", self.unit),
                Limit::OfUcx(most) => format!("<= {most} of UCX's"),
                Limit::OfOneThread(most) => format!("<= {most} of one thread's"),
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

/// With as many digits as mean something.
fn number(value: f64) -> String {
    match value.abs() {
        v if v < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The table for people.
pub fn table(figures: &[Figure]) -> String {
    let head = [
        "figure",
        "regcache",
        "",
        "UCX",
        "/UCX",
        "/1 thread",
        "limit",
        "",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(figures.iter().map(Figure::row));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            // Numbers to the right.
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
    fn a_limit_is_held_against_the_ratio_that_it_names() {
        let mut figure = Figure::new("hit/same/1", 9.0, "ns").limit(Limit::OfUcx(0.35));
        assert_eq!(figure.is_met(), None, "nothing to hold it against");
        figure.ratio_ucx = Some(0.36);
        assert_eq!(figure.is_met(), Some(false));
        figure.limit = Limit::Value(9.0);
        assert_eq!(figure.is_met(), Some(true));
        assert_eq!(figure.line(), "bench hit/same/1 9.0 ns ratio_ucx=0.360");
    }
}
