//! [`Subject`]: a cache as the loops see it.

/// A registration cache of ranges that start where an [`Addresses`](crate::Addresses) has one.
///
/// It panics where a cache fails, since the loop would measure something else.
pub trait Subject: Sync {
    /// Its name in the report.
    const NAME: &'static str;

    /// Looks a range up, which registers it if it is missing, and drops the guard.
    fn get_put(&self, start: usize, len: usize);

    /// Changes the range and makes the cache destroy its registration.
    fn invalidate(&self, start: usize, len: usize);

    /// Returns how many registrations were made, and how many of them were destroyed.
    fn counts(&self) -> (u64, u64);

    /// Returns how many registrations the device has.
    fn live(&self) -> u64 {
        let (made, destroyed) = self.counts();
        made - destroyed
    }
}

/// No cache, which shows what the loops themselves cost.
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
