//! [`QpEndpoint`]: a queue pair on which transfers are posted. The other end of the queue pair may
//! be in this process or on another host.
//!
//! This module also defines the parts that all verbs endpoints use.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use memmap2::MmapMut;
use regcache::VaRange;
use regcache_verbs::cm::Connection;
use regcache_verbs::{
    Access, Cq, Mr, MrRegistrar, OnDemand, OnDemandMr, Pd, Qp, RemoteMemory, Sge, WcStatus,
};

use crate::endpoint::{Endpoint, Keyed, Memory, OnDemandRegistration, Provider};
use crate::error::Trying;
use crate::{Error, Op};

/// The number of fruitless polls after which a thread sleeps between polls, if the device is a
/// software device.
///
/// The kernel thread that moves the bytes competes with the polling thread for the CPU. If the
/// polling thread never sleeps, the kernel thread may wait for milliseconds.
const POLLS: u32 = 30;

/// The time for which the polling thread sleeps.
const SLEEP: Duration = Duration::from_micros(20);

/// The access of the registrations at the other end of the transfers.
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

/// Creates a completion queue, and `N` queue pairs that use it. Each queue pair has room for
/// `depth` transfers.
pub(crate) fn queue_pairs<const N: usize>(
    pd: &Arc<Pd>,
    depth: u32,
) -> Result<(Arc<Cq>, [Qp; N]), Error> {
    let entries = depth + 1;
    let cq = Cq::create(pd.context(), 4 * entries)?;
    let qps: Vec<_> = (0..N)
        .map(|_| Qp::create(pd, &cq, &cq, entries))
        .collect::<Result<_, _>>()?;
    let qps = <[Qp; N]>::try_from(qps).map_err(|_| Error::Cannot("no queue pairs".to_owned()))?;
    Ok((cq, qps))
}

/// Memory that is registered with the device.
pub(crate) struct Region {
    // The registration is the first field. So dropping a region deregisters the memory before it
    // unmaps the memory.
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

/// A provider whose endpoints are queue pairs of one protection domain.
pub(crate) trait VerbsProvider {
    fn pd(&self) -> &Arc<Pd>;

    fn endpoint(&self, size: usize, depth: usize) -> Result<Box<dyn Endpoint>, Error>;
}

impl<T: VerbsProvider> Provider for T {
    type Registrar = MrRegistrar;

    fn registrar(&self) -> MrRegistrar {
        MrRegistrar::new(self.pd())
    }

    fn access(&self, op: Op) -> Access {
        if op.is_from_buffer() {
            Access::empty()
        } else {
            Access::LOCAL_WRITE
        }
    }

    fn offers_on_demand(&self, op: Op) -> Result<bool, Error> {
        let needed = match op {
            Op::Write => OnDemand::WRITE,
            Op::Read => OnDemand::READ,
            Op::Send => OnDemand::SEND,
        };
        Ok(self.pd().context().on_demand()?.contains(needed))
    }

    fn register_on_demand(&self, op: Op, range: VaRange) -> Result<OnDemandRegistration, Error> {
        let registration = OnDemandMr::register(self.pd(), range, self.access(op));
        Ok(Box::new(
            registration.trying("register a buffer on demand")?,
        ))
    }

    fn endpoint(&self, size: usize, depth: usize) -> Result<Box<dyn Endpoint>, Error> {
        VerbsProvider::endpoint(self, size, depth)
    }
}

/// A queue pair on which transfers are posted.
pub(crate) struct QpEndpoint {
    // The queue pairs are the first fields, so they are dropped before the memory. After a queue
    // pair is dropped, the device no longer uses the memory.
    pub(crate) requester: Qp,
    /// The queue pair at the other end, if the other end is in this process.
    pub(crate) responder: Option<Qp>,
    pub(crate) cq: Arc<Cq>,
    /// For each place, the address and the key of its memory at the other end.
    pub(crate) remote: Vec<RemoteMemory>,
    /// For each place, the number of completions that its transfer still lacks.
    pub(crate) awaited: Vec<u8>,
    /// For each place, its memory at the other end. The list is empty if the other end is on
    /// another host.
    pub(crate) peers: Vec<Region>,
    pub(crate) is_software: bool,
    /// The connection with another host. It is dropped after the queue pair.
    pub(crate) _connection: Option<Connection>,
}

/// Returns whether the device is a software device: kernel threads on the host's CPUs move the
/// bytes. Such kernel threads compete with the measuring threads for the CPUs.
pub(crate) fn is_software(device: &str) -> bool {
    device.starts_with("rxe") || device.starts_with("siw")
}

impl Endpoint for QpEndpoint {
    unsafe fn post(&mut self, place: usize, op: Op, memory: Memory) -> Result<(), Error> {
        let id = place as u64;
        let sge = Sge {
            addr: memory.at.expose_provenance() as u64,
            length: memory.len as u32,
            lkey: memory.key,
        };
        self.awaited[place] = 1;
        // SAFETY: the caller of `post` promises that the buffer stays mapped and registered. The
        // memory at the other end belongs to this place, and the place has no other transfer. That
        // memory outlives the queue pairs.
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
        let peer = peer.ok_or_else(|| {
            Error::Cannot("the memory at the other end is on another host".to_owned())
        })?;
        Ok(&mut peer.bytes)
    }
}
