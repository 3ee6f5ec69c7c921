//! Medians and their confidence intervals.

/// The median of some values, and the confidence interval of the median.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// The lower and the upper bound of the median of the population from which the values are
    /// drawn, with 95 % confidence.
    pub between: [f64; 2],
}

/// Returns the median, or NaN if there are no values.
#[must_use]
pub fn median(values: Vec<f64>) -> f64 {
    estimate(values).median
}

/// Returns the median and its confidence interval. All numbers are NaN if there are no values.
#[must_use]
pub fn estimate(mut values: Vec<f64>) -> Estimate {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 {
        return Estimate {
            median: f64::NAN,
            between: [f64::NAN; 2],
        };
    }
    let median = if n % 2 == 1 {
        values[n / 2]
    } else {
        f64::midpoint(values[n / 2 - 1], values[n / 2])
    };
    // The number of values below the population's median is binomially distributed. Its standard
    // deviation is sqrt(n) / 2.
    let off = (1.96 * (n as f64).sqrt() / 2.0).ceil() as usize;
    let low = (n / 2).saturating_sub(off);
    let high = (n.div_ceil(2) + off).min(n) - 1;
    Estimate {
        median,
        between: [values[low], values[high.max(low)]],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_median_narrows_with_the_values() {
        let of_many = estimate((0..=100).map(f64::from).collect());
        assert_eq!(of_many.median, 50.0);
        let [low, high] = of_many.between;
        assert!((38.0..42.0).contains(&low), "{low}");
        assert!((58.0..62.0).contains(&high), "{high}");
        let of_one = estimate(vec![7.0]);
        assert_eq!((of_one.median, of_one.between), (7.0, [7.0, 7.0]));
        assert_eq!(median(vec![1.0, 3.0]), 2.0);
        assert!(median(Vec::new()).is_nan());
    }
}
