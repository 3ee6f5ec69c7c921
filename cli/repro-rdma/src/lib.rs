//! Defines [`Rig`]. A rig has an RDMA device that is connected with itself, a cache of the device's
//! registrations, and a buffer of the peer. It transfers bytes between this buffer and memory that
//! changes.

use std::sync::Arc;

use memmap2::MmapMut;
use regcache::monitor::Monitor;
use regcache::{Cache, Guard};
use regcache_repro::{Outcome, Prepared, Result, Scenario};
use regcache_verbs::{Access, Context, Loopback, MrRegistrar, Pd};

/// The access of every registration. It allows the transfers of every [`Direction`].
const ACCESS: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_WRITE);

const OLD: u8 = 0xA5;
const NEW: u8 = 0x3C;

/// The operation of a transfer, and the role in it of the memory that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A send reads the memory.
    Send,
    /// An RDMA write reads the memory.
    Write,
    /// An RDMA read by the peer reads the memory.
    ReadByPeer,
    /// A receive fills the memory.
    Receive,
    /// An RDMA write by the peer fills the memory.
    WriteByPeer,
    /// An RDMA read fills the memory.
    Read,
}

impl Direction {
    /// The list of all directions.
    pub const ALL: [Self; 6] = [
        Self::Send,
        Self::Write,
        Self::ReadByPeer,
        Self::Receive,
        Self::WriteByPeer,
        Self::Read,
    ];

    /// Returns the name of the direction. Tests use this name as a part of their own names.
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

    /// Returns true if the device reads the memory that changes, and false if the device writes
    /// that memory.
    #[must_use]
    pub fn is_source(self) -> bool {
        matches!(self, Self::Send | Self::Write | Self::ReadByPeer)
    }
}

/// An RDMA device that is connected with itself, a cache of the device's registrations, and the
/// peer's buffer. One end of each transfer is the memory that changes, and the other end is this
/// buffer.
#[derive(Debug)]
pub struct Rig<M: Monitor> {
    loopback: Loopback,
    cache: Cache<MrRegistrar, M>,
    peer: MmapMut,
}

impl<M: Monitor> Rig<M> {
    /// Opens `device`, or the first device of the machine if `device` is `None`.
    ///
    /// # Errors
    ///
    /// Returns the errors of the device.
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

    /// Runs one scenario in one direction. The first transfer looks the memory up and moves bytes.
    /// Then the memory changes. The second transfer looks the memory up again and moves bytes.
    ///
    /// If the cache is naive, the caller must flush it before each call. An earlier scenario may
    /// have left an entry for the same addresses.
    ///
    /// # Errors
    ///
    /// Returns the errors of the scenario and of the device. Also returns an error if bytes arrive
    /// that belong neither to the old pages nor to the new pages.
    pub fn reuse(&mut self, scenario: &Scenario, direction: Direction) -> Result<Outcome> {
        let first = |prepared: &Prepared| -> Result<()> {
            // SAFETY: the memory is mapped, and no other reference to the memory exists. This
            // reference ends before the memory changes.
            unsafe { prepared.memory().bytes() }.fill(OLD);
            let arrived = self.exchange(prepared, direction, OLD)?;
            if arrived.iter().all(|&byte| byte == OLD) {
                Ok(())
            } else {
                Err("wrong bytes arrived before the memory had changed".into())
            }
        };
        // SAFETY: `first` leaves no reference to the memory, and drops the guard of its transfer.
        let prepared = unsafe { scenario.changed_after(first) }?;
        // SAFETY: the memory is mapped again, and no other reference to the memory exists.
        let bytes = unsafe { prepared.memory().bytes() };
        let changed = prepared.changed();
        if bytes[changed.clone()].iter().any(|&byte| byte != 0) {
            return Err("the memory did not change".into());
        }
        if direction.is_source() {
            // If the registration is not stale, the second transfer moves these new bytes.
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
                "bytes arrived that belong neither to the old pages nor to the new pages".into(),
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

    /// Looks up the memory and the peer's buffer, and moves bytes in this direction. Every byte of
    /// the source has the value `filled`. Returns the bytes that the CPU reads at the destination.
    fn exchange(
        &mut self,
        prepared: &Prepared,
        direction: Direction,
        filled: u8,
    ) -> Result<Vec<u8>> {
        // SAFETY: the memory is mapped, and no other reference to the memory exists until this
        // function returns.
        let bytes = unsafe { prepared.memory().bytes() };
        let peer = &mut self.peer[..bytes.len()];
        peer.fill(if direction.is_source() { 0 } else { filled });
        let ours = Self::lookup(&self.cache, bytes)?;
        let theirs = Self::lookup(&self.cache, peer)?;
        let (our_mr, their_mr) = (ours.registration(), theirs.registration());
        let link = &mut self.loopback;
        // SAFETY: a registration may be stale, because the scenarios test for stale registrations.
        // The old pages of a stale registration are mapped nowhere. Even a scenario that moves its
        // pages to another address unmaps them there.
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

    /// Checks that the second transfer wrote [`NEW`] to the old pages. To read these pages, the
    /// function makes a transfer with the stale registration in the cache.
    fn check_old_pages_were_written(&mut self, prepared: &Prepared) -> Result<()> {
        let seen = self.exchange(prepared, Direction::Write, 0)?;
        if seen.iter().any(|&byte| byte != NEW) {
            return Err("the bytes reached neither the old pages nor the new pages".into());
        }
        Ok(())
    }
}

/// Compiles the programs in the README and the tutorial.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../../../docs/guide/tutorial.md")]
struct Programs;
