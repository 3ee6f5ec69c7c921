//! [`Rounds`]: the samples of variants that run interleaved.

use std::convert::Infallible;
use std::time::Duration;

use regcache_test_support::Random;

use crate::calibration::calibrate;
use crate::{Estimate, Sample, estimate, median};

/// The amount of measuring that [`measure`] does.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// The number of undisturbed rounds to collect.
    pub rounds: usize,
    /// The time that a sample should take.
    pub sample: Duration,
}

/// A variant, as a function. The function does the given number of operations and returns their
/// sample.
pub type Variant<'a> = dyn FnMut(usize) -> Sample + 'a;

/// The samples of all rounds so far.
#[derive(Debug, Clone, Default)]
pub struct Rounds {
    /// The nanoseconds of one operation, by round and then by variant.
    ns: Vec<Vec<f64>>,
    disturbed: usize,
}

impl Rounds {
    /// Returns the number of variants.
    #[must_use]
    pub fn variants(&self) -> usize {
        self.ns.first().map_or(0, Vec::len)
    }

    /// Returns the median time of one operation of this variant, in nanoseconds.
    #[must_use]
    pub fn ns(&self, variant: usize) -> f64 {
        median(self.ns.iter().map(|round| round[variant]).collect())
    }

    /// Returns the estimate of the ratio of a variant's sample to the sample of `base` in the same
    /// round.
    #[must_use]
    pub fn ratio(&self, variant: usize, base: usize) -> Estimate {
        estimate(self.ratios(variant, base).collect())
    }

    fn ratios(&self, variant: usize, base: usize) -> impl Iterator<Item = f64> {
        self.ns
            .iter()
            .map(move |round| round[variant] / round[base])
    }

    /// Returns whether each variant's ratios to `base` agree. The ratios of a variant agree if the
    /// largest ratio exceeds the smallest by at most `fraction`.
    #[must_use]
    pub fn agree(&self, base: usize, fraction: f64) -> bool {
        (0..self.variants()).all(|variant| {
            let least = self.ratios(variant, base).fold(f64::INFINITY, f64::min);
            let most = self.ratios(variant, base).fold(0.0, f64::max);
            most <= least * (1.0 + fraction)
        })
    }

    /// Returns the number of discarded rounds, and the number of all rounds.
    #[must_use]
    pub fn disturbed(&self) -> (usize, usize) {
        (self.disturbed, self.disturbed + self.ns.len())
    }

    /// Adds a round. `ns` holds the nanoseconds of one operation of each variant. If `undisturbed`
    /// is false, the function counts the round as discarded, and drops the times.
    pub fn push(&mut self, ns: Vec<f64>, undisturbed: bool) {
        if undisturbed {
            self.ns.push(ns);
        } else {
            self.disturbed += 1;
        }
    }

    /// Returns the number of rounds that were not discarded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ns.len()
    }

    /// Returns true if there are no rounds, or if every round was discarded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ns.is_empty()
    }

    /// Adds the rounds of another run. The other run must have measured the same variants.
    pub fn extend(&mut self, more: Self) {
        self.ns.extend(more.ns);
        self.disturbed += more.disturbed;
    }
}

/// Runs rounds of `variants` variants until `is_enough` returns true.
///
/// The result of a variant depends on the variant that ran before it. The earlier variant leaves
/// its data in the machine's caches and queues. So the order changes in each round. The variants
/// take turns at the first position. The remaining variants follow in random order.
///
/// The first `discard_at_most` disturbed rounds are discarded. Later rounds are kept even if they
/// are disturbed, so that the measurement also ends on a machine that is always busy.
///
/// # Errors
///
/// Returns the first error that `sample` returns.
pub fn interleave<E>(
    variants: usize,
    discard_at_most: usize,
    mut is_enough: impl FnMut(&Rounds) -> bool,
    mut sample: impl FnMut(usize) -> Result<Sample, E>,
) -> Result<Rounds, E> {
    let mut rounds = Rounds::default();
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    let mut order: Vec<usize> = (0..variants).collect();
    let mut lead = 0;
    while !is_enough(&rounds) {
        order.sort_unstable();
        order.swap(0, lead);
        random.shuffle(&mut order[1..]);
        lead = (lead + 1) % variants;
        let mut ns = vec![0.0; variants];
        let mut undisturbed = true;
        for &variant in &order {
            let taken = sample(variant)?;
            ns[variant] = taken.ns;
            undisturbed &= taken.undisturbed;
        }
        rounds.push(ns, undisturbed || rounds.disturbed >= discard_at_most);
    }
    Ok(rounds)
}

/// Calibrates each variant, and then runs rounds. Stops after `effort.rounds` rounds that were not
/// discarded (see [`interleave`]).
pub fn measure(effort: Effort, variants: &mut [Box<Variant<'_>>]) -> Rounds {
    let operations: Vec<usize> = variants
        .iter_mut()
        .map(|run| calibrate(effort.sample, run))
        .collect();
    let Ok(rounds) = interleave(
        variants.len(),
        4 * effort.rounds,
        |rounds| rounds.len() >= effort.rounds,
        |variant| Ok::<_, Infallible>(variants[variant](operations[variant])),
    );
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(ns: &[[f64; 2]]) -> Rounds {
        let mut rounds = Rounds::default();
        ns.iter()
            .for_each(|round| rounds.push(round.to_vec(), true));
        rounds
    }

    #[test]
    fn rounds_agree_if_no_variant_was_disturbed() {
        let quiet = rounds(&[[10.0, 10.1], [20.0, 20.1], [10.0, 10.0]]);
        assert!(quiet.agree(0, 0.02));
        let disturbed = rounds(&[[10.0, 10.1], [10.0, 12.0], [10.0, 10.0]]);
        assert!(!disturbed.agree(0, 0.02));
    }

    #[test]
    fn each_variant_leads_and_follows_each_other_one() {
        let mut order = Vec::new();
        let sampled = interleave(
            3,
            0,
            |rounds| rounds.len() == 60,
            |variant| {
                order.push(variant);
                Ok::<_, Infallible>(Sample::of(1.0))
            },
        );
        assert!(sampled.is_ok());
        for variant in 0..3 {
            let led = order.chunks(3).filter(|round| round[0] == variant).count();
            assert_eq!(led, 20);
            for other in (0..3).filter(|&other| other != variant) {
                assert!(order.windows(2).any(|pair| pair == [other, variant]));
            }
        }
    }

    #[test]
    fn disturbed_rounds_are_discarded_until_there_are_too_many() {
        let sample = |_| {
            Ok::<_, Infallible>(Sample {
                ns: 1.0,
                undisturbed: false,
            })
        };
        let Ok(rounds) = interleave(1, 5, |rounds| rounds.len() == 2, sample);
        assert_eq!(rounds.disturbed(), (5, 7));
    }
}
