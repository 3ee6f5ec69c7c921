//! [`Verbs`]: an RDMA device whose endpoints connect this process with itself.

use std::sync::Arc;

use regcache_verbs::{Context, Pd, Qp, RemoteMemory, Route};

use crate::Error;
use crate::endpoint::Endpoint;
use crate::qp_endpoint::{QpEndpoint, Region, VerbsProvider, is_software, queue_pairs};

/// An RDMA device whose endpoints connect this process with itself.
pub struct Verbs {
    pd: Arc<Pd>,
    route: Route,
}

impl Verbs {
    /// Opens the device with the given name, or the first device of the machine.
    ///
    /// # Errors
    ///
    /// Returns the device's errors.
    pub fn open(device: Option<&str>) -> Result<Self, Error> {
        let context = match device {
            Some(name) => Context::open(name)?,
            None => Context::open_first()?,
        };
        let route = Route::to_self(&context, &context.active_port()?)?;
        let pd = Pd::alloc(&context)?;
        Ok(Self { pd, route })
    }

    /// Returns the protection domain that all registrations use.
    #[must_use]
    pub fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }
}

impl VerbsProvider for Verbs {
    fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }

    fn endpoint(&self, size: usize, depth: usize) -> Result<Box<dyn Endpoint>, Error> {
        let (cq, [requester, responder]) = queue_pairs(&self.pd, depth as u32)?;
        Qp::connect(&requester, &responder, &self.route)?;
        let peers = (0..depth).map(|_| Region::new(&self.pd, size));
        let peers = peers.collect::<Result<Vec<_>, _>>()?;
        let remote = peers.iter().map(|peer| RemoteMemory {
            addr: peer.mr.addr() as u64,
            rkey: peer.mr.rkey(),
        });
        Ok(Box::new(QpEndpoint {
            remote: remote.collect(),
            requester,
            responder: Some(responder),
            cq,
            awaited: vec![0; depth],
            peers,
            is_software: is_software(self.pd.context().device()),
            _connection: None,
        }))
    }
}
