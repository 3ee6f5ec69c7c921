//! Verbs: [`Verbs`], a device whose wires are connections of this process with itself; and [`Connected`], a wire whose
//! other end may be elsewhere.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use memmap2::MmapMut;
use regcache::VaRange;
use regcache_verbs::{
    Access, Context, Cq, Mr, MrRegistrar, OnDemand, OnDemandMr, Pd, Qp, RemoteMemory, Route, Sge,
    WcStatus,
};

use crate::error::Trying;
use crate::wire::{Fabric, Keyed, Memory, OnDemandRegistration, Wire};
use crate::{Error, Op};

/// Polls of a software device before its poller sleeps, and for how long. The kernel's thread that moves the bytes
/// competes with whoever polls, and is given the processor for milliseconds, or not, as it comes.
const POLLS: u32 = 30;
const SLEEP: Duration = Duration::from_micros(20);

/// What memory at the other end is registered for.
pub(crate) const PEER_ACCESS: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_WRITE);

impl Keyed for Mr {
    fn key(&self) -> u32 {
        self.lkey()
    }
}

impl Keyed for OnDemandMr {
    fn key(&self) -> u32 {
        self.lkey()
    }
}

/// Whether the buffer of such a transfer need not be pinned.
pub(crate) fn offers_on_demand(pd: &Pd, op: Op) -> Result<bool, Error> {
    let needed = match op {
        Op::Write => OnDemand::WRITE,
        Op::Read => OnDemand::READ,
        Op::Send => OnDemand::SEND,
    };
    Ok(pd.context().on_demand()?.contains(needed))
}

/// Registers it without.
pub(crate) fn register_on_demand(
    pd: &Arc<Pd>,
    op: Op,
    range: VaRange,
) -> Result<OnDemandRegistration, Error> {
    let registration = OnDemandMr::register(pd, range, access(op));
    Ok(Box::new(
        registration.trying("register a buffer on demand")?,
    ))
}

/// Memory that the device knows for good.
pub(crate) struct Region {
    // First: it is deregistered before the memory goes.
    pub(crate) mr: Mr,
    pub(crate) bytes: MmapMut,
}

impl Region {
    pub(crate) fn new(pd: &Arc<Pd>, len: usize) -> Result<Self, Error> {
        let bytes = MmapMut::map_anon(len).trying("map the peer's memory")?;
        let range = VaRange::new(bytes.as_ptr(), len)?;
        let mr = Mr::register(pd, range, PEER_ACCESS).trying("register the peer's memory")?;
        Ok(Self { mr, bytes })
    }

    pub(crate) fn sge(&self) -> Sge {
        Sge {
            addr: self.mr.addr() as u64,
            length: self.mr.length() as u32,
            lkey: self.mr.lkey(),
        }
    }
}

/// A device, connected with itself.
pub struct Verbs {
    pd: Arc<Pd>,
    route: Route,
}

impl Verbs {
    /// Opens `device`, or the first one there is.
    ///
    /// # Errors
    ///
    /// The device's.
    pub fn open(device: Option<&str>) -> Result<Self, Error> {
        let context = match device {
            Some(name) => Context::open(name)?,
            None => Context::open_first()?,
        };
        let route = Route::to_self(&context, &context.active_port()?)?;
        let pd = Pd::alloc(&context)?;
        Ok(Self { pd, route })
    }

    /// The protection domain of all registrations.
    #[must_use]
    pub fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }
}

/// What the buffer's registration must allow.
pub(crate) fn access(op: Op) -> Access {
    if op.is_from_buffer() {
        Access::empty()
    } else {
        Access::LOCAL_WRITE
    }
}

impl Fabric for Verbs {
    type Registrar = MrRegistrar;

    fn registrar(&self) -> MrRegistrar {
        MrRegistrar::new(&self.pd)
    }

    fn access(&self, op: Op) -> Access {
        access(op)
    }

    fn offers_on_demand(&self, op: Op) -> Result<bool, Error> {
        offers_on_demand(&self.pd, op)
    }

    fn register_on_demand(&self, op: Op, range: VaRange) -> Result<OnDemandRegistration, Error> {
        register_on_demand(&self.pd, op, range)
    }

    fn wire(&self, size: usize, depth: usize) -> Result<Box<dyn Wire>, Error> {
        let entries = depth as u32 + 1;
        let cq = Cq::create(self.pd.context(), 4 * entries)?;
        let requester = Qp::create(&self.pd, &cq, &cq, entries)?;
        let responder = Qp::create(&self.pd, &cq, &cq, entries)?;
        Qp::connect(&requester, &responder, &self.route)?;
        let peers = (0..depth).map(|_| Region::new(&self.pd, size));
        let peers = peers.collect::<Result<Vec<_>, _>>()?;
        let remote = peers.iter().map(|peer| RemoteMemory {
            addr: peer.mr.addr() as u64,
            rkey: peer.mr.rkey(),
        });
        Ok(Box::new(Connected {
            remote: remote.collect(),
            requester,
            responder: Some(responder),
            cq,
            awaited: vec![0; depth],
            peers,
            is_software: is_software(self.pd.context().device()),
        }))
    }
}

/// One connection, on which work requests are posted.
pub(crate) struct Connected {
    // First: when they are gone, the device has let go of all memory.
    pub(crate) requester: Qp,
    /// The other end, if it is in this process.
    pub(crate) responder: Option<Qp>,
    pub(crate) cq: Arc<Cq>,
    /// The other end's memory, by place.
    pub(crate) remote: Vec<RemoteMemory>,
    /// Completions that the transfer in each place waits for.
    pub(crate) awaited: Vec<u8>,
    /// The other end's memory, if it is in this process.
    pub(crate) peers: Vec<Region>,
    pub(crate) is_software: bool,
}

/// Whether the processors that measure also move the bytes.
pub(crate) fn is_software(device: &str) -> bool {
    device.starts_with("rxe") || device.starts_with("siw")
}

impl Wire for Connected {
    unsafe fn post(&mut self, place: usize, op: Op, memory: Memory) -> Result<(), Error> {
        let id = place as u64;
        let sge = Sge {
            addr: memory.at.expose_provenance() as u64,
            length: memory.len as u32,
            lkey: memory.key,
        };
        self.awaited[place] = 1;
        // SAFETY: the caller's promise for the buffer. The other end's memory is of this place alone, in which there is
        // no other transfer, and lives longer than the queue pairs.
        unsafe {
            match op {
                Op::Write => self
                    .requester
                    .post_rdma_write(id, sge, self.remote[place])?,
                Op::Read => self.requester.post_rdma_read(id, sge, self.remote[place])?,
                Op::Send => {
                    if let Some(responder) = &self.responder {
                        self.awaited[place] = 2;
                        responder.post_recv(id, self.peers[place].sge())?;
                    }
                    self.requester.post_send(id, sge)?;
                }
            }
        }
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<usize>, Error> {
        while let Some(completion) = self.cq.poll()? {
            if completion.status != WcStatus::SUCCESS {
                return Err(Error::Transfer(completion.status.to_string()));
            }
            let place = completion.wr_id as usize;
            self.awaited[place] -= 1;
            if self.awaited[place] == 0 {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    fn idle(&self, polls: u32) {
        if self.is_software && polls > POLLS {
            thread::sleep(SLEEP);
        } else {
            thread::yield_now();
        }
    }

    fn is_software(&self) -> bool {
        self.is_software
    }

    fn peer(&mut self, place: usize) -> Result<&mut [u8], Error> {
        let peer = self.peers.get_mut(place);
        let peer = peer.ok_or_else(|| Error::Cannot("the other end is elsewhere".to_owned()))?;
        Ok(&mut peer.bytes)
    }
}
