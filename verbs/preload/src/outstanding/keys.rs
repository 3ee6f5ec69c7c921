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

/// A key in the upper half of each word, and the last request that used it in the lower half.
#[repr(align(64))]
struct Line([AtomicU64; LINE]);

/// Bits of the number of a group of keys.
const GROUP_BITS: u32 = if cfg!(loom) { 1 } else { 10 };

/// How many groups of keys there are.
pub(super) const GROUPS: usize = 1 << GROUP_BITS;

/// The group of a key. All keys of a group are in one line of [`InUse`].
#[inline]
pub(super) fn group(key: u32) -> usize {
    (spread(key) >> (32 - GROUP_BITS)) as usize
}

/// The keys of requests that may be outstanding, with the last request of each.
///
/// A word is free when its request is over, so that nothing has to be removed. A key that has a
/// word is renewed there; a key without one takes a free word.
pub(super) struct InUse {
    lines: Box<[Line]>,
    shift: u32,
    /// The last request for which there was no free word. It counts for every key.
    crowded: AtomicU32,
}

impl InUse {
    /// Room for `keys` different ones, or for fewer if that is very many.
    pub(super) fn with_room_for(keys: usize) -> Self {
        let lines = (keys / 2).clamp(1, GROUPS).next_power_of_two();
        Self {
            lines: (0..lines)
                .map(|_| Line(std::array::from_fn(|_| AtomicU64::new(0))))
                .collect(),
            shift: 32 - lines.trailing_zeros(),
            crowded: AtomicU32::new(0),
        }
    }

    #[inline]
    fn line(&self, key: u32) -> &[AtomicU64; LINE] {
        // With one line the shift is 32, so a wider type is shifted.
        let at = u64::from(spread(key)) >> self.shift;
        #[expect(
            clippy::indexing_slicing,
            reason = "the shift leaves a number below the length"
        )]
        &self.lines[at as usize].0
    }

    /// Notes that this request uses the key, if it has a word. Only one thread at a time may call
    /// this and the next two.
    #[inline]
    pub(super) fn renew(&self, key: u32, request: u32) -> bool {
        let has = |word: &&AtomicU64| (word.load(Ordering::Relaxed) >> 32) as u32 == key;
        let Some(word) = self.line(key).iter().find(has) else {
            return false;
        };
        word.store(word_of(key, request), Ordering::Relaxed);
        true
    }

    /// Notes that this request uses the key, in a free word; false if there is none.
    pub(super) fn insert(&self, key: u32, request: u32, over: u32) -> bool {
        let is_free = |word: &&AtomicU64| is_over(word.load(Ordering::Relaxed) as u32, over);
        let Some(word) = self.line(key).iter().find(is_free) else {
            return false;
        };
        word.store(word_of(key, request), Ordering::Relaxed);
        true
    }

    /// From now on this request counts for every key.
    pub(super) fn crowd(&self, request: u32) {
        self.crowded.store(request, Ordering::Relaxed);
    }

    /// True if a request that is not over counts for every key.
    pub(super) fn is_crowded(&self, over: u32) -> bool {
        !is_over(self.crowded.load(Ordering::Relaxed), over)
    }

    /// True if a request that is not over uses the key.
    pub(super) fn has(&self, key: u32, over: u32) -> bool {
        self.line(key).iter().any(|word| {
            let there = word.load(Ordering::Relaxed);
            (there >> 32) as u32 == key && !is_over(there as u32, over)
        })
    }

    /// True if a key of the group of `key` has a word, also if its request is over.
    pub(super) fn has_group(&self, key: u32) -> bool {
        self.line(key).iter().any(|word| {
            let there = (word.load(Ordering::Relaxed) >> 32) as u32;
            there != 0 && group(there) == group(key)
        })
    }
}

#[inline]
fn word_of(key: u32, request: u32) -> u64 {
    u64::from(key) << 32 | u64::from(request)
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
