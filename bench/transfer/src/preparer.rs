//! The strategies at work: what each does before and after a transfer.
//!
//! A [`Preparer`] returns registered memory for a buffer before a transfer, and releases it after
//! the transfer. The time in these two calls is the overhead of the strategy.

use std::sync::Arc;

use memmap2::MmapMut;
use regcache::monitor::Monitor;
use regcache::{Cache, Guard, Registrar, VaRange};

use crate::counted::{Counted, Counts};
use crate::endpoint::{Keyed, Memory};
use crate::error::Trying;
use crate::{Error, Op};

/// A buffer that is to be transferred.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The number of the buffer among those of all threads.
    pub number: usize,
    /// The number of the transfer's place among those of all threads.
    pub place: usize,
    /// The address.
    pub at: *mut u8,
    /// The length in bytes.
    pub len: usize,
}

/// A strategy at work.
pub trait Preparer: Sync {
    /// The state that the strategy keeps during the transfer.
    type Held;

    /// Returns registered memory for the transfer: the buffer, or a copy of its bytes.
    ///
    /// # Errors
    ///
    /// The errors of the device or of the cache.
    fn prepare(&self, piece: Piece) -> Result<(Memory, Self::Held), Error>;

    /// Releases the memory after the transfer.
    ///
    /// # Errors
    ///
    /// The device's errors.
    fn release(&self, piece: Piece, held: Self::Held) -> Result<(), Error>;
}

fn memory(piece: Piece, key: u32) -> Memory {
    Memory {
        at: piece.at,
        len: piece.len,
        key,
    }
}

/// Registers before each transfer and deregisters after it.
pub struct PerTransfer<R: Registrar> {
    registrar: Counted<R>,
    access: R::Access,
}

impl<R: Registrar> PerTransfer<R> {
    /// Makes the strategy, which counts its calls in `counts`.
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

/// Looks each buffer up in a cache.
pub struct Cached<R: Registrar, M: Monitor> {
    cache: Cache<Counted<R>, Counted<M>>,
    access: R::Access,
}

impl<R: Registrar, M: Monitor> Cached<R, M> {
    /// Makes a cache on `monitor`. It may pin more than `RLIMIT_MEMLOCK`, so that the device
    /// refuses a workload that is too large, and not the cache.
    ///
    /// # Errors
    ///
    /// The errors of building the cache.
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

/// Uses registrations of all buffers that were made before the first transfer.
pub struct PreRegistered<T> {
    keys: Vec<u32>,
    _registrations: Vec<T>,
}

impl<T: Keyed> PreRegistered<T> {
    /// Makes the strategy from registrations in the order of the buffers' numbers.
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

/// Copies each buffer through bounce memory that stays registered.
pub struct Copy<T> {
    op: Op,
    /// The bounce memory of each place.
    bounce: Vec<(*mut u8, T)>,
    _memory: Vec<MmapMut>,
}

// SAFETY: only the thread that has a transfer in a place uses its bounce memory.
unsafe impl<T: Sync> Sync for Copy<T> {}
// SAFETY: it owns what it points to.
unsafe impl<T: Send> Send for Copy<T> {}

impl<T: Keyed> Copy<T> {
    /// Makes the strategy with bounce memory of `size` bytes for each place.
    ///
    /// # Errors
    ///
    /// The errors of `register` or of the kernel.
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
            // SAFETY: both are mapped and have that length; the place has no other transfer.
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
            // SAFETY: as above; the transfer has ended.
            unsafe {
                std::ptr::copy_nonoverlapping(self.bounce[piece.place].0, piece.at, piece.len);
            }
        }
        Ok(())
    }
}
