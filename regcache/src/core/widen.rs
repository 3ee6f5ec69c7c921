//! [`Widening`]: registers more memory than a lookup asked for, so that later lookups are hits.
//!
//! All memory of a wider registration is watched, so a wider registration is never stale. The
//! device may refuse a wider range because of a hole next to the lookup's range. Another thread may
//! also change memory there during the registration. In both cases the cache registers only the
//! lookup's range.

use std::io;

use crate::range::VaRange;

/// The limits of widening.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Widening {
    /// The size of the blocks that a range is rounded to, in bytes. By default, ranges with local
    /// access are rounded to pages.
    pub(crate) granularity: Option<usize>,
    /// The maximum size of a merged range, in bytes.
    pub(crate) merge_up_to: usize,
}

impl Widening {
    /// Returns an error if the granularity is not a power of two.
    pub(crate) fn check(&self) -> io::Result<()> {
        let Some(bad) = self.granularity.filter(|it| !it.is_power_of_two()) else {
            return Ok(());
        };
        let why = format!("the granularity {bad} is not a power of two");
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }

    /// Returns the range to register for a lookup of `range`. `default` is the size of the blocks
    /// if none was set. `neighbours` returns the registered ranges that overlap a range or are
    /// adjacent to it.
    pub(crate) fn widen<I>(
        &self,
        range: VaRange,
        default: usize,
        neighbours: impl Fn(VaRange) -> I,
    ) -> VaRange
    where
        I: Iterator<Item = VaRange>,
    {
        let granularity = self.granularity.unwrap_or(default);
        let blocks = range.aligned(granularity).unwrap_or(range);
        if blocks.len() >= self.merge_up_to {
            return blocks;
        }
        let mut whole = blocks;
        for neighbour in neighbours(blocks) {
            let both = whole.hull(&neighbour);
            if both.len() <= self.merge_up_to {
                whole = both;
            }
        }
        whole
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::iter;
    use std::ptr;

    use super::*;

    fn range(start: usize, end: usize) -> VaRange {
        let start_at = ptr::without_provenance(start);
        VaRange::new(start_at, end - start).expect("neither empty nor wrapping")
    }

    #[test]
    fn a_range_is_widened_to_whole_blocks_unless_there_is_no_room_for_them() {
        let widening = Widening {
            granularity: Some(0x1000),
            merge_up_to: 0,
        };
        let widen = |r| widening.widen(r, 1, |_| iter::empty());
        assert_eq!(widen(range(0x1fff, 0x2001)), range(0x1000, 0x3000));
        assert_eq!(widen(range(0x1000, 0x2000)), range(0x1000, 0x2000));
        let last = range(usize::MAX - 5, usize::MAX - 1);
        assert_eq!(widen(last), last);
        let exact = range(0x1fff, 0x2001);
        let default = |bytes| Widening::default().widen(exact, bytes, |_| iter::empty());
        assert_eq!(default(0x1000), range(0x1000, 0x3000));
        assert_eq!(default(1), exact);
    }

    #[test]
    fn neighbours_join_as_long_as_they_fit() {
        let widening = Widening {
            granularity: Some(1),
            merge_up_to: 0x3000,
        };
        let neighbours = [
            range(0x800, 0x1000),
            range(0x2000, 0x9000),
            range(0x1800, 0x2800),
        ];
        let widen = |r| widening.widen(r, 1, |_| neighbours.into_iter());
        assert_eq!(widen(range(0x1000, 0x2000)), range(0x800, 0x2800));
        assert_eq!(widen(range(0x1000, 0x5000)), range(0x1000, 0x5000));
    }

    #[test]
    fn only_powers_of_two_are_granularities() {
        for (granularity, good) in [(0, false), (1, true), (3, false), (1 << 21, true)] {
            let widening = Widening {
                granularity: Some(granularity),
                merge_up_to: 0,
            };
            assert_eq!(widening.check().is_ok(), good);
        }
    }
}
