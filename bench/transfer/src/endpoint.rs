//! [`Endpoint`]: what moves the bytes of one thread, and [`Provider`]: where endpoints and registrations come from.

use std::time::Duration;

use regcache::{Registrar, VaRange};

use crate::{Error, Op};

/// How long nothing may complete. An emulated machine moves 16 MiB in half a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Memory as a work request names it.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Where it is.
    pub at: *mut u8,
    /// Bytes.
    pub len: usize,
    /// The device's name for a registration that covers it.
    pub key: u32,
}

/// A registration as work requests name it.
pub trait Keyed {
    /// The name.
    fn key(&self) -> u32;
}

impl<T: Keyed> Keyed for crate::counted::CountedRegistration<T> {
    fn key(&self) -> u32 {
        self.get().key()
    }
}

/// Moves the bytes of one thread. Transfers have places, from 0 up to the depth it was made with; in each place there
/// is one at a time, whose other end is memory of that place's own.
pub trait Endpoint: Send {
    /// Starts a transfer.
    ///
    /// # Errors
    ///
    /// The device's.
    ///
    /// # Safety
    ///
    /// The memory stays mapped and registered, and nobody else's, until the transfer's place came out of
    /// [`poll`](Self::poll), or the endpoint was dropped.
    unsafe fn post(&mut self, place: usize, op: Op, memory: Memory) -> Result<(), Error>;

    /// The place of a transfer that has ended well, if there is one. Does not wait.
    ///
    /// # Errors
    ///
    /// The device's. Nothing that was posted can be counted on after that.
    fn poll(&mut self) -> Result<Option<usize>, Error>;

    /// Nothing has completed, for so many polls in a row: lets others run.
    fn idle(&self, polls: u32) {
        let _ = polls;
        std::thread::yield_now();
    }

    /// Whether the processors that measure also move the bytes, in threads of the kernel's.
    fn is_software(&self) -> bool {
        false
    }

    /// What is at the other end of the place, of which no transfer may be under way.
    ///
    /// # Errors
    ///
    /// [`Error::Cannot`] if it is not in this process.
    fn peer(&mut self, place: usize) -> Result<&mut [u8], Error>;
}

/// A registration that pins nothing. It ends when it is dropped.
pub type OnDemandRegistration = Box<dyn Keyed + Send + Sync>;

impl Keyed for OnDemandRegistration {
    fn key(&self) -> u32 {
        (**self).key()
    }
}

/// A device: where endpoints and registrations come from.
pub trait Provider {
    /// Makes registrations that its endpoints can name.
    type Registrar: Registrar<Registration: Keyed> + Clone;

    /// The registrar.
    fn registrar(&self) -> Self::Registrar;

    /// What the buffer's registration must allow.
    fn access(&self, op: Op) -> <Self::Registrar as Registrar>::Access;

    /// Whether such a transfer can use a registration of its buffer that pins nothing: on-demand paging.
    ///
    /// # Errors
    ///
    /// The device's.
    fn offers_on_demand(&self, _: Op) -> Result<bool, Error> {
        Ok(false)
    }

    /// Registers a buffer without pinning it.
    ///
    /// # Errors
    ///
    /// The device's; [`Error::Cannot`] if it [does not offer](Self::offers_on_demand) that.
    fn register_on_demand(&self, op: Op, _: VaRange) -> Result<OnDemandRegistration, Error> {
        Err(Error::Cannot(format!(
            "{op} without pinning: the device does not offer it"
        )))
    }

    /// A endpoint for so many transfers at a time of so many bytes.
    ///
    /// # Errors
    ///
    /// The device's.
    fn endpoint(&self, size: usize, depth: usize) -> Result<Box<dyn Endpoint>, Error>;
}
