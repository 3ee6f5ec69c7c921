//! [`Remote`]: a device whose endpoints connect with a server ([`serve`](crate::serve)) on another
//! host. To connect, the client sends a `Request`, and the server answers with an `Offer`.

use std::net::SocketAddr;
use std::sync::Arc;

use regcache_verbs::cm::{Connection, Dial};
use regcache_verbs::{Context, Cq, Pd, Qp, RemoteMemory};

use crate::Error;
use crate::endpoint::Endpoint;
use crate::qp_endpoint::{QpEndpoint, VerbsProvider, is_software, queue_pairs};

/// The first word of each message. It identifies this program and the version of the message
/// format.
const MAGIC: u32 = 0x7263_6231;

/// The request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The largest number of bytes in a transfer.
    pub(crate) size: u64,
    /// The largest number of transfers in flight.
    pub(crate) depth: u32,
    /// The number of bytes that the client will send and the server will check. It is 0 for a
    /// benchmark, whose bytes the server does not check.
    pub(crate) total: u64,
}

/// The offer of a server: memory that the client may read and write. The memory has one part for
/// each transfer in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) addr: u64,
    pub(crate) rkey: u32,
    pub(crate) stride: u64,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl Request {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend(self.depth.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.total.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let request = Self {
            depth: u32::from_le_bytes(number(bytes, 4)?),
            size: u64::from_le_bytes(number(bytes, 8)?),
            total: u64::from_le_bytes(number(bytes, 16)?),
        };
        let is_sane = (1..=1024).contains(&request.depth) && (1..=1 << 30).contains(&request.size);
        (u32::from_le_bytes(number(bytes, 0)?) == MAGIC && is_sane).then_some(request)
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

/// A device whose endpoints connect with a server.
#[derive(Clone)]
pub struct Remote {
    address: SocketAddr,
    pd: Arc<Pd>,
}

impl Remote {
    /// Resolves the server's address, and opens the local device that has a route to the server.
    ///
    /// # Errors
    ///
    /// Returns the device's errors.
    pub fn open(address: SocketAddr) -> Result<Self, Error> {
        let device = Dial::resolve(address)?.device()?;
        let pd = Pd::alloc(&Context::open(&device)?)?;
        Ok(Self { address, pd })
    }

    /// Returns the protection domain that all registrations use.
    #[must_use]
    pub fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }

    /// Connects with the server.
    pub(crate) fn connect(&self, request: Request) -> Result<Connected, Error> {
        let (cq, [qp]) = queue_pairs(&self.pd, request.depth)?;
        let dial = Dial::resolve(self.address)?;
        if dial.device()? != self.pd.context().device() {
            let why = format!(
                "the route to {} now uses another device than before: start the client again",
                self.address
            );
            return Err(Error::Cannot(why));
        }
        let connection = dial.connect(&qp, &request.to_bytes())?;
        let offer = Offer::from_bytes(connection.hello());
        let offer = offer.ok_or_else(|| {
            Error::Cannot(format!(
                "{} is not a transfer server of this version: run the same build on both hosts",
                self.address
            ))
        })?;
        Ok(Connected {
            qp,
            cq,
            connection,
            offer,
        })
    }
}

/// A connection with a server.
pub(crate) struct Connected {
    pub(crate) qp: Qp,
    pub(crate) cq: Arc<Cq>,
    pub(crate) connection: Connection,
    offer: Offer,
}

impl VerbsProvider for Remote {
    fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }

    fn endpoint(&self, size: usize, depth: usize) -> Result<Box<dyn Endpoint>, Error> {
        let Connected {
            qp,
            cq,
            connection,
            offer,
        } = self.connect(Request {
            size: size as u64,
            depth: depth as u32,
            total: 0,
        })?;
        let remote = (0..depth as u64).map(|place| RemoteMemory {
            addr: offer.addr + place * offer.stride,
            rkey: offer.rkey,
        });
        Ok(Box::new(QpEndpoint {
            requester: qp,
            responder: None,
            cq,
            remote: remote.collect(),
            awaited: vec![0; depth],
            peers: Vec::new(),
            is_software: is_software(self.pd.context().device()),
            _connection: Some(connection),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_understood_and_nothing_else_is() {
        let request = Request {
            size: 1 << 20,
            depth: 4,
            total: 1 << 30,
        };
        let mut bytes = request.to_bytes();
        bytes.resize(regcache_verbs::cm::HELLO, 0);
        assert_eq!(Request::from_bytes(&bytes), Some(request));
        bytes[0] ^= 1;
        assert_eq!(Request::from_bytes(&bytes), None);
        assert_eq!(Request::from_bytes(&[]), None);
        let huge = Request {
            size: u64::MAX,
            ..request
        };
        assert_eq!(Request::from_bytes(&huge.to_bytes()), None);

        let offer = Offer {
            addr: 7 << 40,
            rkey: 9,
            stride: 4096,
        };
        assert_eq!(Offer::from_bytes(&offer.to_bytes()), Some(offer));
    }
}
