//! Two sets of keys: the keys that a queue may be using, and the idle keys of a device.

use super::sync::{AtomicU32, AtomicU64, Ordering};

/// Returns an array in a box, which was never on the stack.
pub(super) fn boxed<T, const LEN: usize>(make: impl FnMut() -> T) -> Box<[T; LEN]> {
    let slice: Box<[T]> = std::iter::repeat_with(make).take(LEN).collect();
    match slice.try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("the slice has the length of the array"),
    }
}

/// Spreads keys evenly. Some devices assign consecutive keys, and others assign multiples of 256.
#[inline]
fn spread(key: u32) -> u32 {
    key.wrapping_mul(0x9e37_79b1)
}

/// Returns true if the request at this position is over. Both arguments are the lower 32 bits of
/// positions, so they are compared by distance. A request that is 2^31 positions old counts as
/// outstanding, which is safe.
#[inline]
fn is_over(request: u32, over: u32) -> bool {
    over.wrapping_sub(request).cast_signed() > 0
}

/// The number of words in a line. A key is in one of the words of its line.
const LINE: usize = 8;

/// Words with a key in the upper half, and the last request that used the key in the lower half.
#[repr(align(64))]
struct Line([AtomicU64; LINE]);

/// The largest distance of a request from an earlier one that [`InUse::raise`] heeds. A key that
/// was noted for a list may have a later position than the next request. No list is so long.
const SHORTLY: u32 = 1 << 20;

/// The number of bits of a group's number.
const GROUP_BITS: u32 = if cfg!(loom) { 1 } else { 10 };

/// The number of groups of keys.
pub(super) const GROUPS: usize = 1 << GROUP_BITS;

/// Returns the group of a key. All keys of a group are in one line of [`InUse`].
#[inline]
pub(super) fn group(key: u32) -> usize {
    (spread(key) >> (32 - GROUP_BITS)) as usize
}

/// The keys of requests that may be outstanding, each with the position of the last request that
/// used it.
///
/// A word is free when its request is over, so no word has to be removed. A key that has a word
/// keeps that word. A key without a word takes a free one.
pub(super) struct InUse {
    lines: Box<[Line]>,
    shift: u32,
    /// The last request whose key found no free word. While it is outstanding, the queue counts as
    /// using every key.
    crowded: AtomicU32,
}

impl InUse {
    /// Makes a set with room for `keys` different keys, or fewer if `keys` is very large.
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
        // With one line the shift is 32, which a `u32` does not allow. So a `u64` is shifted.
        let at = u64::from(spread(key)) >> self.shift;
        #[expect(
            clippy::indexing_slicing,
            reason = "the shift leaves a number below the length"
        )]
        &self.lines[at as usize].0
    }

    /// Returns the number of the key's word in its line.
    #[inline]
    pub(super) fn find(&self, key: u32) -> Option<usize> {
        let has = |word: &AtomicU64| (word.load(Ordering::Relaxed) >> 32) as u32 == key;
        self.line(key).iter().position(has)
    }

    /// Returns true if the key has a word, even if the word's request is over.
    #[inline]
    pub(super) fn has_word(&self, key: u32) -> bool {
        self.find(key).is_some()
    }

    /// Notes that this request uses the key, if the key has a word. Returns the number of the word;
    /// `None` if the key has none. Only the thread with the queue's lock may call this function,
    /// `raise`, `insert` and `crowd`.
    #[inline]
    pub(super) fn renew(&self, key: u32, request: u32) -> Option<usize> {
        let at = self.find(key)?;
        self.word(key, at)
            .store(word_of(key, request), Ordering::Relaxed);
        Some(at)
    }

    /// Notes that this request uses the key, unless a request shortly after this one does. The key
    /// has the word with this number.
    #[inline]
    pub(super) fn raise(&self, key: u32, at: usize, request: u32) {
        let word = self.word(key, at);
        let after = (word.load(Ordering::Relaxed) as u32).wrapping_sub(request);
        if after > SHORTLY {
            word.store(word_of(key, request), Ordering::Relaxed);
        }
    }

    #[inline]
    fn word(&self, key: u32, at: usize) -> &AtomicU64 {
        #[expect(clippy::indexing_slicing, reason = "the remainder is below the length")]
        &self.line(key)[at % LINE]
    }

    /// Notes that this request uses the key, in a free word. Returns the number of the word; `None`
    /// if no word is free.
    pub(super) fn insert(&self, key: u32, request: u32, over: u32) -> Option<usize> {
        let is_free = |word: &AtomicU64| is_over(word.load(Ordering::Relaxed) as u32, over);
        let at = self.line(key).iter().position(is_free)?;
        self.word(key, at)
            .store(word_of(key, request), Ordering::Relaxed);
        Some(at)
    }

    /// Makes this request count for every key.
    pub(super) fn crowd(&self, request: u32) {
        self.crowded.store(request, Ordering::Relaxed);
    }

    /// Returns true if a request that counts for every key is not over.
    pub(super) fn is_crowded(&self, over: u32) -> bool {
        !is_over(self.crowded.load(Ordering::Relaxed), over)
    }

    /// Returns true if a request that uses the key is not over.
    pub(super) fn has(&self, key: u32, over: u32) -> bool {
        self.line(key).iter().any(|word| {
            let there = word.load(Ordering::Relaxed);
            (there >> 32) as u32 == key && !is_over(there as u32, over)
        })
    }

    /// Returns true if a key of the group of `key` has a word, even if the word's request is over.
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

/// The idle keys: their `ibv_mr` was deregistered, but the device still accepts them.
///
/// Each key has one place, so a poster reads one word. A key whose place is occupied cannot become
/// idle. 0 is no key.
pub(super) struct Idle {
    places: Box<[AtomicU32; IDLE_PLACES]>,
}

/// The number of bits of a place for an idle key. Few programs have as many as 2^16 idle keys, so
/// an idle key usually finds its place vacant.
const IDLE_BITS: u32 = if cfg!(loom) { 1 } else { 16 };

const IDLE_PLACES: usize = 1 << IDLE_BITS;

impl Idle {
    pub(super) fn new() -> Self {
        Self {
            places: boxed(|| AtomicU32::new(0)),
        }
    }

    #[inline]
    fn place(&self, key: u32) -> &AtomicU32 {
        #[expect(
            clippy::indexing_slicing,
            reason = "the shift leaves a number below the length"
        )]
        &self.places[(spread(key) >> (32 - IDLE_BITS)) as usize]
    }

    #[inline]
    pub(super) fn has(&self, key: u32) -> bool {
        self.place(key).load(Ordering::Relaxed) == key
    }

    /// Adds the key. Returns false if its place is occupied.
    #[inline(always)]
    pub(super) fn add(&self, key: u32) -> bool {
        let (succeeded, failed) = (Ordering::Release, Ordering::Relaxed);
        key != 0
            && self
                .place(key)
                .compare_exchange(0, key, succeeded, failed)
                .is_ok()
    }

    /// Removes the key, if it is in the set.
    #[inline(always)]
    pub(super) fn remove(&self, key: u32) {
        let (succeeded, failed) = (Ordering::AcqRel, Ordering::Relaxed);
        // If the exchange fails, the place holds another key or none, so this key was not idle.
        let _ = self.place(key).compare_exchange(key, 0, succeeded, failed);
    }
}
