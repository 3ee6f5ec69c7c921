//! Defines the strategies: the work that each strategy does before and after a transfer.
//!
//! Before a transfer, a [`Preparer`] returns registered memory for the buffer. After the transfer,
//! it releases this memory. The time of these two calls is the overhead of the strategy.

use std::sync::Arc;

use memmap2::MmapMut;
use regcache::monitor::Monitor;
use regcache::{Cache, Guard, Registrar, VaRange};

use crate::counted::{Counted, Counts};
use crate::endpoint::{Keyed, Memory};
use crate::error::Trying;
use crate::{Error, Op};

/// A buffer of one transfer.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The number of the buffer. The buffers of all threads are numbered together.
    pub number: usize,
    /// The number of the place that the transfer occupies (see [`Endpoint`](crate::Endpoint)). The
    /// places of all threads are numbered together.
    pub place: usize,
    /// The address of the buffer.
    pub at: *mut u8,
    /// The length of the transfer in bytes.
    pub len: usize,
}

/// A strategy, which prepares and releases the buffer of each transfer.
pub trait Preparer: Sync {
    /// The state that the caller keeps while the transfer is in flight, such as a guard.
    type Held;

    /// Returns registered memory for the transfer: the buffer itself, or the bounce memory of the
    /// strategy that copies.
    ///
    /// # Errors
    ///
    /// Returns the errors of the device or of the cache.
    fn prepare(&self, piece: Piece) -> Result<(Memory, Self::Held), Error>;

    /// Releases the memory after the transfer.
    ///
    /// # Errors
    ///
    /// Returns the device's errors.
    fn release(&self, piece: Piece, held: Self::Held) -> Result<(), Error>;
}

fn memory(piece: Piece, key: u32) -> Memory {
    Memory {
        at: piece.at,
        len: piece.len,
        key,
    }
}

/// The strategy that registers before each transfer and deregisters after it.
pub struct PerTransfer<R: Registrar> {
    registrar: Counted<R>,
    access: R::Access,
}

impl<R: Registrar> PerTransfer<R> {
    /// Makes the strategy. `counts` counts the calls to the registrar.
    pub fn new(registrar: R, access: R::Access, counts: &Arc<Counts>) -> Self {
        Self {
            registrar: Counted::new(registrar, counts),
            access,
        }
    }
}

impl<R: Registrar<Registration: Keyed>> Preparer for PerTransfer<R> {
    type Held = <Counted<R> as Registrar>::Registration;

    fn prepare(&self, piece: Piece) -> Result<(Memory, Self::Held), Error> {
        let range = VaRange::new(piece.at, piece.len)?;
        let registration = self.registrar.register(range, self.access);
        let registration = registration.trying("register a buffer")?;
        Ok((memory(piece, registration.key()), registration))
    }

    fn release(&self, _: Piece, held: Self::Held) -> Result<(), Error> {
        self.registrar
            .deregister(held)
            .trying("deregister a buffer")
    }
}

/// The strategy that looks up each buffer in a cache.
pub struct Cached<R: Registrar, M: Monitor> {
    cache: Cache<Counted<R>, Counted<M>>,
    access: R::Access,
}

impl<R: Registrar, M: Monitor> Cached<R, M> {
    /// Makes a cache that uses `monitor`. The cache has no limit on bytes, so it may try to pin
    /// more than `RLIMIT_MEMLOCK` allows. In that case the device refuses the registration.
    ///
    /// # Errors
    ///
    /// Returns the error if the cache cannot be built.
    pub fn new(
        registrar: R,
        access: R::Access,
        monitor: M,
        counts: &Arc<Counts>,
    ) -> Result<Self, Error> {
        let cache = Cache::builder(Counted::new(registrar, counts))
            .monitor(Counted::new(monitor, counts))
            .max_bytes(usize::MAX)
            .build()
            .trying("build the cache")?;
        Ok(Self { cache, access })
    }
}

impl<R: Registrar<Registration: Keyed>, M: Monitor> Preparer for Cached<R, M> {
    type Held = Guard<Counted<R>, Counted<M>>;

    #[inline]
    fn prepare(&self, piece: Piece) -> Result<(Memory, Self::Held), Error> {
        let guard = self.cache.get(piece.at, piece.len, self.access)?;
        Ok((memory(piece, guard.registration().key()), guard))
    }

    #[inline]
    fn release(&self, _: Piece, held: Self::Held) -> Result<(), Error> {
        drop(held);
        Ok(())
    }
}

/// The strategy that registers all buffers before the first transfer.
pub struct PreRegistered<T> {
    keys: Vec<u32>,
    _registrations: Vec<T>,
}

impl<T: Keyed> PreRegistered<T> {
    /// Makes the strategy. `registrations` holds the registration of each buffer, in the order of
    /// the buffers' numbers.
    pub fn new(registrations: Vec<T>) -> Self {
        Self {
            keys: registrations.iter().map(Keyed::key).collect(),
            _registrations: registrations,
        }
    }
}

impl<T: Sync> Preparer for PreRegistered<T> {
    type Held = ();

    #[inline]
    fn prepare(&self, piece: Piece) -> Result<(Memory, ()), Error> {
        Ok((memory(piece, self.keys[piece.number]), ()))
    }

    #[inline]
    fn release(&self, _: Piece, (): ()) -> Result<(), Error> {
        Ok(())
    }
}

/// The strategy that copies between each buffer and bounce memory, and transfers the bounce memory.
/// The bounce memory stays registered.
pub struct Copy<T> {
    op: Op,
    /// The bounce memory of each place, and its registration.
    bounce: Vec<(*mut u8, T)>,
    _memory: Vec<MmapMut>,
}

// SAFETY: each place has at most one transfer in flight. Only the thread of this transfer uses the
// place's bounce memory.
unsafe impl<T: Sync> Sync for Copy<T> {}
// SAFETY: the pointers point to memory that this object owns.
unsafe impl<T: Send> Send for Copy<T> {}

impl<T: Keyed> Copy<T> {
    /// Makes the strategy. Each place has bounce memory of `size` bytes.
    ///
    /// # Errors
    ///
    /// Returns the errors of `register` or of the kernel.
    pub fn new(
        op: Op,
        size: usize,
        places: usize,
        register: impl Fn(VaRange) -> Result<T, Error>,
    ) -> Result<Self, Error> {
        let (mut bounce, mut kept) = (Vec::new(), Vec::new());
        for _ in 0..places {
            let mut memory = MmapMut::map_anon(size).trying("map bounce memory")?;
            let at = memory.as_mut_ptr();
            bounce.push((at, register(VaRange::new(at, size)?)?));
            kept.push(memory);
        }
        Ok(Self {
            op,
            bounce,
            _memory: kept,
        })
    }
}

impl<T: Keyed + Sync> Preparer for Copy<T> {
    type Held = ();

    fn prepare(&self, piece: Piece) -> Result<(Memory, ()), Error> {
        let (at, registration) = &self.bounce[piece.place];
        if self.op.is_from_buffer() {
            // SAFETY: the buffer and the bounce memory are mapped and hold at least this length.
            // The place has no other transfer, so nothing else uses the place's bounce memory.
            unsafe { std::ptr::copy_nonoverlapping(piece.at, *at, piece.len) };
        }
        let memory = Memory {
            at: *at,
            len: piece.len,
            key: registration.key(),
        };
        Ok((memory, ()))
    }

    fn release(&self, piece: Piece, (): ()) -> Result<(), Error> {
        if !self.op.is_from_buffer() {
            // SAFETY: the buffer and the bounce memory are mapped and hold at least this length, as
            // in `prepare`. The transfer has ended, so the device no longer writes the bounce
            // memory.
            unsafe {
                std::ptr::copy_nonoverlapping(self.bounce[piece.place].0, piece.at, piece.len);
            }
        }
        Ok(())
    }
}
