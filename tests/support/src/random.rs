//! Defines [`Random`], a random number generator for benchmarks and stress tests.

/// A linear congruential generator. Generators with the same seed return the same sequence.
///
/// A step of the generator costs two instructions. So a step hardly affects the measured time of a
/// loop.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Makes a generator with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a random number below `limit`. The limit is at least 1 and at most 2^32.
    #[inline(always)]
    pub fn below(&mut self, limit: usize) -> usize {
        // The multiplier and the increment are those of Knuth's MMIX.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * limit as u64) >> 32) as usize
    }

    /// Puts the items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_below_the_limit_is_drawn_about_equally_often() {
        let mut random = Random::new(1);
        let mut drawn = [0_u32; 7];
        for _ in 0..70_000 {
            drawn[random.below(7)] += 1;
        }
        assert!(
            drawn.iter().all(|n| (9_000..11_000).contains(n)),
            "{drawn:?}"
        );
    }

    #[test]
    fn a_shuffle_keeps_the_items() {
        let mut items: Vec<_> = (0..100).collect();
        Random::new(1).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
