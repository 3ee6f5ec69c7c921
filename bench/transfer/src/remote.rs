//! [`Remote`]: a device whose wires lead to a server ([`serve`](crate::serve)) on another host; and what the two tell
//! each other.

use std::net::SocketAddr;
use std::sync::Arc;

use regcache::VaRange;
use regcache_verbs::cm::{Connection, Dial};
use regcache_verbs::{Access, Context, Cq, MrRegistrar, Pd, Qp, RemoteMemory};

use crate::verbs_wire::{Connected, access, is_software, offers_on_demand, register_on_demand};
use crate::wire::{Fabric, Memory, OnDemandRegistration, Wire};
use crate::{Error, Op};

/// Says that it is us, in this version.
const MAGIC: u32 = 0x7263_6231;

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Bytes of a transfer at most.
    pub(crate) size: u64,
    /// Transfers under way at most.
    pub(crate) depth: u32,
    /// Bytes that will be sent and are to be checked; 0 for a benchmark.
    pub(crate) total: u64,
}

/// What a server offers: memory to read and write, a piece for each transfer under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) addr: u64,
    pub(crate) rkey: u32,
    pub(crate) stride: u64,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl Wish {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend(self.depth.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.total.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let wish = Self {
            depth: u32::from_le_bytes(number(bytes, 4)?),
            size: u64::from_le_bytes(number(bytes, 8)?),
            total: u64::from_le_bytes(number(bytes, 16)?),
        };
        let is_sane = (1..=1024).contains(&wish.depth) && (1..=1 << 30).contains(&wish.size);
        (u32::from_le_bytes(number(bytes, 0)?) == MAGIC && is_sane).then_some(wish)
    }
}

impl Offer {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend(self.rkey.to_le_bytes());
        bytes.extend(self.addr.to_le_bytes());
        bytes.extend(self.stride.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let offer = Self {
            rkey: u32::from_le_bytes(number(bytes, 4)?),
            addr: u64::from_le_bytes(number(bytes, 8)?),
            stride: u64::from_le_bytes(number(bytes, 16)?),
        };
        (u32::from_le_bytes(number(bytes, 0)?) == MAGIC).then_some(offer)
    }
}

/// A device that leads to a server.
#[derive(Clone)]
pub struct Remote {
    address: SocketAddr,
    pd: Arc<Pd>,
}

impl Remote {
    /// Finds the way to the server's address, and opens the device that leads there.
    ///
    /// # Errors
    ///
    /// The device's.
    pub fn open(address: SocketAddr) -> Result<Self, Error> {
        let device = Dial::resolve(address)?.device()?;
        let pd = Pd::alloc(&Context::open(&device)?)?;
        Ok(Self { address, pd })
    }

    /// The protection domain of all registrations.
    #[must_use]
    pub fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }

    /// Connects.
    pub(crate) fn connect(&self, wish: Wish) -> Result<Line, Error> {
        let entries = wish.depth + 1;
        let cq = Cq::create(self.pd.context(), 4 * entries)?;
        let qp = Qp::create(&self.pd, &cq, &cq, entries)?;
        let dial = Dial::resolve(self.address)?;
        if dial.device()? != self.pd.context().device() {
            let why = format!("{} is reached by another device than before", self.address);
            return Err(Error::Cannot(why));
        }
        let connection = dial.connect(&qp, &wish.to_bytes())?;
        let offer = Offer::from_bytes(connection.hello());
        let offer = offer.ok_or_else(|| {
            Error::Cannot(format!("{} is not a server of this version", self.address))
        })?;
        Ok(Line {
            qp,
            cq,
            connection,
            offer,
        })
    }
}

/// A connection with a server.
pub(crate) struct Line {
    pub(crate) qp: Qp,
    pub(crate) cq: Arc<Cq>,
    pub(crate) connection: Connection,
    offer: Offer,
}

impl Fabric for Remote {
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
        let Line {
            qp,
            cq,
            connection,
            offer,
        } = self.connect(Wish {
            size: size as u64,
            depth: depth as u32,
            total: 0,
        })?;
        let remote = (0..depth as u64).map(|place| RemoteMemory {
            addr: offer.addr + place * offer.stride,
            rkey: offer.rkey,
        });
        Ok(Box::new(Distant {
            wire: Connected {
                requester: qp,
                responder: None,
                cq,
                remote: remote.collect(),
                awaited: vec![0; depth],
                peers: Vec::new(),
                is_software: is_software(self.pd.context().device()),
            },
            _connection: connection,
        }))
    }
}

/// A wire with its connection.
struct Distant {
    wire: Connected,
    _connection: Connection,
}

impl Wire for Distant {
    unsafe fn post(&mut self, place: usize, op: Op, memory: Memory) -> Result<(), Error> {
        // SAFETY: passed on.
        unsafe { self.wire.post(place, op, memory) }
    }

    fn poll(&mut self) -> Result<Option<usize>, Error> {
        self.wire.poll()
    }

    fn idle(&self, polls: u32) {
        self.wire.idle(polls);
    }

    fn is_software(&self) -> bool {
        self.wire.is_software()
    }

    fn peer(&mut self, place: usize) -> Result<&mut [u8], Error> {
        self.wire.peer(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_and_nothing_else() {
        let wish = Wish {
            size: 1 << 20,
            depth: 4,
            total: 1 << 30,
        };
        let mut bytes = wish.to_bytes();
        bytes.resize(regcache_verbs::cm::HELLO, 0);
        assert_eq!(Wish::from_bytes(&bytes), Some(wish));
        bytes[0] ^= 1;
        assert_eq!(Wish::from_bytes(&bytes), None);
        assert_eq!(Wish::from_bytes(&[]), None);
        let huge = Wish {
            size: u64::MAX,
            ..wish
        };
        assert_eq!(Wish::from_bytes(&huge.to_bytes()), None);

        let offer = Offer {
            addr: 7 << 40,
            rkey: 9,
            stride: 4096,
        };
        assert_eq!(Offer::from_bytes(&offer.to_bytes()), Some(offer));
    }
}
