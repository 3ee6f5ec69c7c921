//! [`Endpoint`] does the transfers of one thread. [`Provider`] makes endpoints and registrations.

use std::time::Duration;

use regcache::{Registrar, VaRange};

use crate::{Error, Op};

/// The longest time for which a thread waits for a completion. It is long, because an emulated
/// machine needs half a second to move 16 MiB.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Registered memory, as a work request describes it.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The address.
    pub at: *mut u8,
    /// The length in bytes.
    pub len: usize,
    /// The key of a registration that covers the memory.
    pub key: u32,
}

/// A registration that has a key for work requests.
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
/// Each transfer in flight occupies a place, and no two transfers share a place. An endpoint for
/// `depth` transfers has the places 0 to `depth - 1`. Each place has its own memory at the other
/// end.
pub trait Endpoint: Send {
    /// Starts a transfer.
    ///
    /// # Errors
    ///
    /// Returns the device's errors.
    ///
    /// # Safety
    ///
    /// The memory must stay mapped and registered until [`poll`](Self::poll) returns the place, or
    /// until the endpoint is dropped. Until then, nothing else may use the memory.
    unsafe fn post(&mut self, place: usize, op: Op, memory: Memory) -> Result<(), Error>;

    /// Returns the place of a transfer that has succeeded, once for each transfer. Returns `None`
    /// if no further transfer has succeeded yet. Does not wait.
    ///
    /// # Errors
    ///
    /// Returns the device's errors. After an error, the state of the posted transfers is unknown,
    /// so the device may still use their memory.
    fn poll(&mut self) -> Result<Option<usize>, Error>;

    /// Lets other threads run after a poll that found no completion. `polls` is the number of such
    /// polls in a row.
    fn idle(&self, polls: u32) {
        let _ = polls;
        std::thread::yield_now();
    }

    /// Returns whether kernel threads on the host's CPUs move the bytes. Such kernel threads
    /// compete with the measuring threads for the CPUs.
    fn is_software(&self) -> bool {
        false
    }

    /// Returns the memory of a place at the other end. The place must have no transfer in flight.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Cannot`] if the other end is not in this process.
    fn peer(&mut self, place: usize) -> Result<&mut [u8], Error>;
}

/// A registration that pins nothing. Dropping this value deregisters.
pub type OnDemandRegistration = Box<dyn Keyed + Send + Sync>;

impl Keyed for OnDemandRegistration {
    fn key(&self) -> u32 {
        (**self).key()
    }
}

/// A device, which makes endpoints and registrations.
pub trait Provider {
    /// The registrar. The endpoints of this provider accept the keys of the registrar's
    /// registrations.
    type Registrar: Registrar<Registration: Keyed> + Clone;

    /// Returns the registrar.
    fn registrar(&self) -> Self::Registrar;

    /// Returns the access that a registration needs for transfers with `op`.
    fn access(&self, op: Op) -> <Self::Registrar as Registrar>::Access;

    /// Returns whether the device offers on-demand paging (ODP) for transfers with `op`. With ODP,
    /// a registration pins nothing.
    ///
    /// # Errors
    ///
    /// Returns the device's errors.
    fn offers_on_demand(&self, _: Op) -> Result<bool, Error> {
        Ok(false)
    }

    /// Registers a buffer without pinning it.
    ///
    /// # Errors
    ///
    /// Returns the device's errors. Returns [`Error::Cannot`] if the device does not
    /// [offer](Self::offers_on_demand) on-demand paging.
    fn register_on_demand(&self, op: Op, _: VaRange) -> Result<OnDemandRegistration, Error> {
        Err(Error::Cannot(format!(
            "this device offers no on-demand paging for the transfer {op}"
        )))
    }

    /// Makes an endpoint that keeps up to `depth` transfers in flight, each of at most `size`
    /// bytes.
    ///
    /// # Errors
    ///
    /// Returns the device's errors.
    fn endpoint(&self, size: usize, depth: usize) -> Result<Box<dyn Endpoint>, Error>;
}
