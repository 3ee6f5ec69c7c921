//! [`Rig`]: an RDMA device, a cache on it, and a buffer for the other end of transfers.

use std::sync::Arc;

use memmap2::MmapMut;
use regcache::monitor::Monitor;
use regcache::{Cache, Guard};
use regcache_repro::{Outcome, Prepared, Result, Scenario};
use regcache_verbs::{Access, Context, Loopback, MrRegistrar, Pd};

/// The access that all directions of transfer need.
const ACCESS: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_WRITE);

const OLD: u8 = 0xA5;
const NEW: u8 = 0x3C;

/// The operation of a transfer, and the end at which the memory changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The memory is sent.
    Send,
    /// The memory is the source of an RDMA write.
    Write,
    /// A peer reads the memory by RDMA.
    ReadByPeer,
    /// A receive fills the memory.
    Receive,
    /// A peer writes the memory by RDMA.
    WriteByPeer,
    /// The memory is the destination of an RDMA read.
    Read,
}

impl Direction {
    /// All directions.
    pub const ALL: [Self; 6] = [
        Self::Send,
        Self::Write,
        Self::ReadByPeer,
        Self::Receive,
        Self::WriteByPeer,
        Self::Read,
    ];

    /// Returns its part of a test's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Write => "rdma_write",
            Self::ReadByPeer => "rdma_read_by_peer",
            Self::Receive => "receive",
            Self::WriteByPeer => "rdma_write_by_peer",
            Self::Read => "rdma_read",
        }
    }

    /// Returns true if the device reads the memory that changes, and false if it writes it.
    #[must_use]
    pub fn is_source(self) -> bool {
        matches!(self, Self::Send | Self::Write | Self::ReadByPeer)
    }
}

/// A device that is connected with itself, a cache of its registrations, and a buffer for the other
/// end of each transfer.
#[derive(Debug)]
pub struct Rig<M: Monitor> {
    loopback: Loopback,
    cache: Cache<MrRegistrar, M>,
    peer: MmapMut,
}

impl<M: Monitor> Rig<M> {
    /// Opens `device`, or the first device of the machine.
    ///
    /// # Errors
    ///
    /// The errors of the device.
    pub fn new(device: Option<&str>, monitor: M) -> Result<Self> {
        let context = match device {
            Some(name) => Context::open(name)?,
            None => Context::open_first()?,
        };
        let pd: Arc<Pd> = Pd::alloc(&context)?;
        Ok(Self {
            loopback: Loopback::connect(&pd)?,
            cache: Cache::builder(MrRegistrar::new(&pd))
                .monitor(monitor)
                .build()?,
            peer: MmapMut::map_anon(1 << 20)?,
        })
    }

    /// Returns the name of the device.
    #[must_use]
    pub fn device(&self) -> String {
        self.cache.registrar().pd().context().device().to_owned()
    }

    /// Returns the cache.
    #[must_use]
    pub fn cache(&self) -> &Cache<MrRegistrar, M> {
        &self.cache
    }

    /// Plays one scenario in one direction: looks the memory up and moves bytes, changes the
    /// memory, looks it up and moves bytes again.
    ///
    /// The caller flushes a naive cache first, which may have an entry for the same addresses.
    ///
    /// # Errors
    ///
    /// The errors of the scenario and of the device; an error if the bytes that arrive belong
    /// neither to the old pages nor to the new ones.
    pub fn reuse(&mut self, scenario: &Scenario, direction: Direction) -> Result<Outcome> {
        let first = |prepared: &Prepared| -> Result<()> {
            // SAFETY: mapped, and the only reference; gone before the change.
            unsafe { prepared.memory().bytes() }.fill(OLD);
            let arrived = self.exchange(prepared, direction, OLD)?;
            if arrived.iter().all(|&byte| byte == OLD) {
                Ok(())
            } else {
                Err("wrong bytes arrived before anything had changed".into())
            }
        };
        // SAFETY: no reference to the memory is left, and the guard of the exchange is dropped.
        let prepared = unsafe { scenario.changed_after(first) }?;
        // SAFETY: mapped again, and the only reference.
        let bytes = unsafe { prepared.memory().bytes() };
        let changed = prepared.changed();
        if bytes[changed.clone()].iter().any(|&byte| byte != 0) {
            return Err("the memory did not change".into());
        }
        if direction.is_source() {
            // The application writes new bytes, which the device should see.
            bytes.fill(NEW);
        }
        let arrived = self.exchange(&prepared, direction, NEW)?;
        let untouched = if direction.is_source() { OLD } else { 0 };
        let is = |byte: u8, part: &[u8]| part.iter().all(|&b| b == byte);
        if is(NEW, &arrived) {
            return Ok(Outcome::Fresh);
        }
        let outside = is(NEW, &arrived[..changed.start]) && is(NEW, &arrived[changed.end..]);
        if !outside || !is(untouched, &arrived[changed]) {
            return Err(
                "the bytes that arrived belong neither to the old pages nor to the new ones".into(),
            );
        }
        if !direction.is_source() {
            self.check_old_pages_were_written(&prepared)?;
        }
        Ok(Outcome::Stale)
    }

    fn lookup(cache: &Cache<MrRegistrar, M>, bytes: &[u8]) -> Result<Guard<MrRegistrar, M>> {
        Ok(cache.get(bytes.as_ptr(), bytes.len(), ACCESS)?)
    }

    /// Looks both buffers up and moves bytes in this direction; the source has bytes of the value
    /// `filled`. Returns the bytes that the CPU sees at the destination.
    fn exchange(
        &mut self,
        prepared: &Prepared,
        direction: Direction,
        filled: u8,
    ) -> Result<Vec<u8>> {
        // SAFETY: mapped, and the only reference until this function returns.
        let bytes = unsafe { prepared.memory().bytes() };
        let peer = &mut self.peer[..bytes.len()];
        peer.fill(if direction.is_source() { 0 } else { filled });
        let ours = Self::lookup(&self.cache, bytes)?;
        let theirs = Self::lookup(&self.cache, peer)?;
        let (our_mr, their_mr) = (ours.registration(), theirs.registration());
        let link = &mut self.loopback;
        // SAFETY: the registrations may be stale, which is the point of the suite. Their old pages
        // are mapped nowhere: a scenario that moves pages unmaps them at their new address.
        unsafe {
            match direction {
                Direction::Send => link.send_registered(bytes, our_mr, peer, their_mr),
                Direction::Write => link.rdma_write_registered(bytes, our_mr, peer, their_mr),
                Direction::ReadByPeer => link.rdma_read_registered(bytes, our_mr, peer, their_mr),
                Direction::Receive => link.send_registered(peer, their_mr, bytes, our_mr),
                Direction::WriteByPeer => link.rdma_write_registered(peer, their_mr, bytes, our_mr),
                Direction::Read => link.rdma_read_registered(peer, their_mr, bytes, our_mr),
            }
        }?;
        Ok(if direction.is_source() {
            peer.to_vec()
        } else {
            bytes.to_vec()
        })
    }

    /// Reads the memory through the device and the cached registration, and checks what it sees.
    fn check_old_pages_were_written(&mut self, prepared: &Prepared) -> Result<()> {
        let seen = self.exchange(prepared, Direction::Write, 0)?;
        if seen.iter().any(|&byte| byte != NEW) {
            return Err("the bytes did not reach the old pages either".into());
        }
        Ok(())
    }
}
