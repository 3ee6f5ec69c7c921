//! [`Endpoint`] moves the bytes of one thread; [`Provider`] makes endpoints and registrations.

use std::time::Duration;

use regcache::{Registrar, VaRange};

use crate::{Error, Op};

/// How long a thread waits for a completion. An emulated machine moves 16 MiB in half a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Memory as work requests name it.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The address.
    pub at: *mut u8,
    /// The length in bytes.
    pub len: usize,
    /// The key of a registration that covers it.
    pub key: u32,
}

/// A registration as work requests name it.
pub trait Keyed {
    /// Returns the key.
    fn key(&self) -> u32;
}

impl<T: Keyed> Keyed for crate::counted::CountedRegistration<T> {
    fn key(&self) -> u32 {
        self.get().key()
    }
}

/// Moves the bytes of one thread.
///
/// Transfers have places, from 0 to the depth of the endpoint. Each place has one transfer at a
/// time, and memory of its own at the other end.
pub trait Endpoint: Send {
    /// Starts a transfer.
    ///
    /// # Errors
    ///
    /// The device's errors.
    ///
    /// # Safety
    ///
    /// The memory stays mapped and registered, and nobody else uses it, until [`poll`](Self::poll)
    /// has returned the place or the endpoint was dropped.
    unsafe fn post(&mut self, place: usize, op: Op, memory: Memory) -> Result<(), Error>;

    /// Returns the place of a transfer that has succeeded, if there is one. It does not wait.
    ///
    /// # Errors
    ///
    /// The device's errors. After one, the state of the posted transfers is unknown.
    fn poll(&mut self) -> Result<Option<usize>, Error>;

    /// Lets other threads run after this many polls in a row without a completion.
    fn idle(&self, polls: u32) {
        let _ = polls;
        std::thread::yield_now();
    }

    /// Returns whether kernel threads move the bytes, on the CPUs that measure.
    fn is_software(&self) -> bool {
        false
    }

    /// Returns the memory at the other end of a place that has no transfer.
    ///
    /// # Errors
    ///
    /// [`Error::Cannot`] if it is not in this process.
    fn peer(&mut self, place: usize) -> Result<&mut [u8], Error>;
}

/// A registration that pins nothing. Dropping it deregisters.
pub type OnDemandRegistration = Box<dyn Keyed + Send + Sync>;

impl Keyed for OnDemandRegistration {
    fn key(&self) -> u32 {
        (**self).key()
    }
}

/// A device, which makes endpoints and registrations.
pub trait Provider {
    /// The registrar, whose registrations the endpoints can name.
    type Registrar: Registrar<Registration: Keyed> + Clone;

    /// Returns the registrar.
    fn registrar(&self) -> Self::Registrar;

    /// Returns the access that a buffer of such a transfer needs.
    fn access(&self, op: Op) -> <Self::Registrar as Registrar>::Access;

    /// Returns whether the device offers on-demand paging for such a transfer: a registration that
    /// pins nothing.
    ///
    /// # Errors
    ///
    /// The device's errors.
    fn offers_on_demand(&self, _: Op) -> Result<bool, Error> {
        Ok(false)
    }

    /// Registers a buffer without pinning it.
    ///
    /// # Errors
    ///
    /// The device's errors; [`Error::Cannot`] if it [does not offer](Self::offers_on_demand) that.
    fn register_on_demand(&self, op: Op, _: VaRange) -> Result<OnDemandRegistration, Error> {
        Err(Error::Cannot(format!(
            "this device offers no on-demand paging for the transfer {op}"
        )))
    }

    /// Makes an endpoint for `depth` transfers at a time, each of `size` bytes at most.
    ///
    /// # Errors
    ///
    /// The device's errors.
    fn endpoint(&self, size: usize, depth: usize) -> Result<Box<dyn Endpoint>, Error>;
}
