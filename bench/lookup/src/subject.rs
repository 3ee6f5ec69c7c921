//! [`Subject`]: the interface through which the loops use a cache.

/// A registration cache for the ranges of an [`Addresses`](crate::Addresses).
///
/// The methods panic if the cache fails. Otherwise a loop would measure the time of failed lookups.
pub trait Subject: Sync {
    /// The name of the cache in the report.
    const NAME: &'static str;

    /// Looks up a range and drops the guard. If the range has no entry, the lookup registers the
    /// range.
    fn get_put(&self, start: usize, len: usize);

    /// Makes the cache destroy the registration of the range, as after a change of the memory.
    fn invalidate(&self, start: usize, len: usize);

    /// Returns the number of registrations that were made, and the number that were destroyed.
    fn counts(&self) -> (u64, u64);

    /// Returns the number of registrations that exist on the device.
    fn live(&self) -> u64 {
        let (made, destroyed) = self.counts();
        made - destroyed
    }
}

/// A stand-in that has no cache. A loop over this stand-in shows the cost of the loop itself.
#[derive(Debug, Default)]
pub struct Nothing;

impl Subject for Nothing {
    const NAME: &'static str = "nothing";

    #[inline(always)]
    fn get_put(&self, start: usize, len: usize) {
        std::hint::black_box((start, len));
    }

    fn invalidate(&self, _: usize, _: usize) {}

    fn counts(&self) -> (u64, u64) {
        (0, 0)
    }
}
