//! The strategies: what each does before a transfer and after it.
//!
//! A [`Preparer`] is asked for memory that the device knows, given a buffer; what it hands out it takes back when the
//! transfer has ended. The time in the two calls is what a strategy costs.

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
    /// Its number among the buffers of all threads.
    pub number: usize,
    /// The number of the transfer's place among those of all threads.
    pub place: usize,
    /// Where it is.
    pub at: *mut u8,
    /// Bytes.
    pub len: usize,
}

/// A strategy at work.
pub trait Preparer: Sync {
    /// What is kept while the transfer is under way.
    type Held;

    /// Makes the buffer known to the device, or its bytes.
    ///
    /// # Errors
    ///
    /// The device's, or the cache's.
    fn prepare(&self, piece: Piece) -> Result<(Memory, Self::Held), Error>;

    /// The transfer has ended.
    ///
    /// # Errors
    ///
    /// The device's.
    fn release(&self, piece: Piece, held: Self::Held) -> Result<(), Error>;
}

fn memory(piece: Piece, key: u32) -> Memory {
    Memory {
        at: piece.at,
        len: piece.len,
        key,
    }
}

/// Registers before each transfer, deregisters after it.
pub struct PerTransfer<R: Registrar> {
    registrar: Counted<R>,
    access: R::Access,
}

impl<R: Registrar> PerTransfer<R> {
    /// Counts into `counts`.
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

/// Looks up in a cache.
pub struct Cached<R: Registrar, M: Monitor> {
    cache: Cache<Counted<R>, Counted<M>>,
    access: R::Access,
}

impl<R: Registrar, M: Monitor> Cached<R, M> {
    /// A cache on `monitor`. It may pin all that the workload has, whatever `RLIMIT_MEMLOCK` says: the device's
    /// refusal is to be seen, not the cache's.
    ///
    /// # Errors
    ///
    /// The cache's.
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

/// Knows the key of each buffer, whose registrations live as long as this.
pub struct PreRegistered<T> {
    keys: Vec<u32>,
    _registrations: Vec<T>,
}

impl<T: Keyed> PreRegistered<T> {
    /// By the buffers' numbers.
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

/// Copies through memory that is registered for good.
pub struct Copy<T> {
    op: Op,
    /// By place.
    bounce: Vec<(*mut u8, T)>,
    _memory: Vec<MmapMut>,
}

// SAFETY: a place of the bounce memory is used by the thread that has a transfer in it.
unsafe impl<T: Sync> Sync for Copy<T> {}
// SAFETY: it owns what it points to.
unsafe impl<T: Send> Send for Copy<T> {}

impl<T: Keyed> Copy<T> {
    /// With bounce memory for so many places of `size` bytes.
    ///
    /// # Errors
    ///
    /// That of `register`, or the kernel's.
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
            // SAFETY: both are mapped and as long as that; the place has no other transfer.
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
