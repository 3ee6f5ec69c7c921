//! [`Subject`]: a cache, as the loops see it.

/// A registration cache of ranges that start where an [`Addresses`](crate::Addresses) has one.
///
/// Panics where a cache fails: what was measured then would be something else.
pub trait Subject: Sync {
    /// What it is called in the report.
    const NAME: &'static str;

    /// Looks a range up, registers it if need be, and lets go of it.
    fn get_put(&self, start: usize, len: usize);

    /// The range is not what it was: brings the cache to see it and to destroy the registration.
    fn invalidate(&self, start: usize, len: usize);

    /// Registrations made, and of those how many were destroyed.
    fn counts(&self) -> (u64, u64);

    /// Registrations that the device has.
    fn live(&self) -> u64 {
        let (made, destroyed) = self.counts();
        made - destroyed
    }
}

/// No cache: what the loops themselves cost.
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
