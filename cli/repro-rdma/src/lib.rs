//! [`Rig`]: a device, a cache on it, and a buffer to move bytes to and from.

use std::sync::Arc;

use memmap2::MmapMut;
use regcache::monitor::Monitor;
use regcache::{Cache, Guard};
use regcache_repro::{Outcome, Prepared, Result, Scenario};
use regcache_verbs::{Access, Context, Loopback, MrRegistrar, Pd};

/// Everything that the suite's transfers need.
const ACCESS: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_WRITE);

const OLD: u8 = 0xA5;
const NEW: u8 = 0x3C;

/// Which transfer, and at which end of it the memory is that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It is sent.
    Send,
    /// It is the source of an RDMA write.
    Write,
    /// A peer reads it by RDMA.
    ReadByPeer,
    /// It is received into.
    Receive,
    /// A peer writes it by RDMA.
    WriteByPeer,
    /// It is the destination of an RDMA read.
    Read,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Send,
        Self::Write,
        Self::ReadByPeer,
        Self::Receive,
        Self::WriteByPeer,
        Self::Read,
    ];

    /// As part of a test's name.
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

    /// True if the device reads the memory that changes, false if it writes it.
    #[must_use]
    pub fn is_source(self) -> bool {
        matches!(self, Self::Send | Self::Write | Self::ReadByPeer)
    }
}

/// A device, connected with itself, a cache of its registrations, and a buffer for the other end of
/// each transfer.
#[derive(Debug)]
pub struct Rig<M: Monitor> {
    loopback: Loopback,
    cache: Cache<MrRegistrar, M>,
    peer: MmapMut,
}

impl<M: Monitor> Rig<M> {
    /// Opens `device`, or the first one there is.
    ///
    /// # Errors
    ///
    /// The device's.
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

    /// The name of the device.
    #[must_use]
    pub fn device(&self) -> String {
        self.cache.registrar().pd().context().device().to_owned()
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache<MrRegistrar, M> {
        &self.cache
    }

    /// The four-line bug, for one way of changing memory and one direction of transfer: register
    /// the memory by a lookup and move bytes; change the memory; look up and move bytes again.
    ///
    /// A naive cache must be flushed before, or it may know the addresses from the time before.
    ///
    /// # Errors
    ///
    /// If something fails on the way, or the bytes that arrive are neither those of the old pages
    /// nor those of the new.
    pub fn reuse(&mut self, scenario: &Scenario, direction: Direction) -> Result<Outcome> {
        let first = |prepared: &Prepared| -> Result<()> {
            // SAFETY: mapped, and the only reference; gone before the change.
            unsafe { prepared.memory().bytes() }.fill(OLD);
            let arrived = self.exchange(prepared, direction, OLD)?;
            if arrived.iter().all(|&byte| byte == OLD) {
                Ok(())
            } else {
                Err("bytes were lost before anything had changed".into())
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
            // The application's new bytes; the device should see them, and no others.
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
            return Err("the bytes that arrived are of neither the old pages nor the new".into());
        }
        if !direction.is_source() {
            self.check_old_pages_were_written(&prepared)?;
        }
        Ok(Outcome::Stale)
    }

    fn lookup(cache: &Cache<MrRegistrar, M>, bytes: &[u8]) -> Result<Guard<MrRegistrar, M>> {
        Ok(cache.get(bytes.as_ptr(), bytes.len(), ACCESS)?)
    }

    /// Looks both buffers up and moves bytes in the given direction, those of the source being
    /// `filled` with. Returns what is at the destination then, as the processor sees it.
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
        // SAFETY: the registrations may be stale, which is what the suite is about. Their old pages are
        // mapped nowhere: a `Scenario` that moves them unmaps them where it moved them to.
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

    /// The device's view of the memory, by a transfer out of it through the cached registration.
    fn check_old_pages_were_written(&mut self, prepared: &Prepared) -> Result<()> {
        let seen = self.exchange(prepared, Direction::Write, 0)?;
        if seen.iter().any(|&byte| byte != NEW) {
            return Err("the bytes did not land in the old pages either".into());
        }
        Ok(())
    }
}
