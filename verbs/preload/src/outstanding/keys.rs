//! Two sets of keys: those that a queue may be using, and those of a device that are idle.

use super::sync::{AtomicU32, AtomicU64, Ordering};

/// Spreads keys, of which some devices give out neighbours and others multiples of 256.
#[inline]
fn spread(key: u32) -> u32 {
    key.wrapping_mul(0x9e37_79b1)
}

/// The number of one work request in its queue, without its upper half. Numbers are compared by
/// their distance: one that is 2^31 requests old is taken for outstanding, which is safe.
#[inline]
fn is_over(request: u32, over: u32) -> bool {
    over.wrapping_sub(request).cast_signed() > 0
}

/// How many words a line has. A key is in one of the words of its line.
const LINE: usize = 8;

/// A key, and the last request that used it.
#[repr(align(64))]
struct Line([AtomicU64; LINE]);

/// The keys of requests that may be outstanding, with the last request of each.
///
/// A word is free when its request is over, so that nothing has to be removed. If all words of a
/// line are taken by other keys that are outstanding, the request is noted as [`crowded`] and
/// counts for every key.
///
/// [`crowded`]: Self::crowded
pub(super) struct InUse {
    lines: Box<[Line]>,
    shift: u32,
    /// The last request for which there was no room.
    crowded: AtomicU32,
}

impl InUse {
    /// Room for `keys` different ones, or for fewer if that is very many.
    pub(super) fn with_room_for(keys: usize) -> Self {
        let lines = (keys / 2).clamp(1, 1024).next_power_of_two();
        Self {
            lines: (0..lines)
                .map(|_| Line(std::array::from_fn(|_| AtomicU64::new(0))))
                .collect(),
            shift: 32 - lines.trailing_zeros(),
            crowded: AtomicU32::new(0),
        }
    }

    #[inline]
    fn line(&self, key: u32) -> &Line {
        // With one line the shift is 32, so a wider type is shifted.
        let at = u64::from(spread(key)) >> self.shift;
        #[expect(
            clippy::indexing_slicing,
            reason = "the shift leaves a number below the length"
        )]
        &self.lines[at as usize]
    }

    /// Notes that this request uses the key. Only one thread at a time may call this.
    #[inline]
    pub(super) fn note(&self, key: u32, request: u32, over: u32) {
        for word in &self.line(key).0 {
            let there = word.load(Ordering::Relaxed);
            if (there >> 32) as u32 == key || is_over(there as u32, over) {
                let new = u64::from(key) << 32 | u64::from(request);
                word.store(new, Ordering::Relaxed);
                return;
            }
        }
        self.crowded.store(request, Ordering::Relaxed);
    }

    /// False if no request that is not over uses the key.
    pub(super) fn may_have(&self, key: u32, over: u32) -> bool {
        let uses = |word: &AtomicU64| {
            let there = word.load(Ordering::Relaxed);
            (there >> 32) as u32 == key && !is_over(there as u32, over)
        };
        !is_over(self.crowded.load(Ordering::Relaxed), over) || self.line(key).0.iter().any(uses)
    }
}

/// The keys that are idle: their `ibv_mr` was deregistered, and they work still.
///
/// Each has one place, so that a poster looks at one word. A key whose place is taken cannot become
/// idle. 0 is no key.
pub(super) struct Idle {
    places: Box<[AtomicU32]>,
    shift: u32,
}

impl Idle {
    /// As many places as there are numbers of so many bits.
    pub(super) fn with_bits(bits: u32) -> Self {
        Self {
            places: (0..1usize << bits).map(|_| AtomicU32::new(0)).collect(),
            shift: 32 - bits,
        }
    }

    #[inline]
    fn place(&self, key: u32) -> &AtomicU32 {
        #[expect(
            clippy::indexing_slicing,
            reason = "the shift leaves a number below the length"
        )]
        &self.places[(spread(key) >> self.shift) as usize]
    }

    #[inline]
    pub(super) fn has(&self, key: u32) -> bool {
        self.place(key).load(Ordering::Relaxed) == key
    }

    /// Adds the key; false if there is no place for it.
    pub(super) fn add(&self, key: u32) -> bool {
        let (succeeded, failed) = (Ordering::Release, Ordering::Relaxed);
        key != 0
            && self
                .place(key)
                .compare_exchange(0, key, succeeded, failed)
                .is_ok()
    }

    /// Removes the key, if it is there.
    pub(super) fn remove(&self, key: u32) {
        let (succeeded, failed) = (Ordering::AcqRel, Ordering::Relaxed);
        // If another key is there, this one was not.
        let _ = self.place(key).compare_exchange(key, 0, succeeded, failed);
    }
}
