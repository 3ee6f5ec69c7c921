//! [`Route`]: the address by which packets reach a port.

use rdma_sys::{ibv_ah_attr, ibv_global_route};

use crate::gid::{self, GidEntry};
use crate::{Context, Error, LinkLayer, Port, PortState};

/// The maximum number of routers that a packet may pass. IP stacks usually use this value.
const HOP_LIMIT: u8 = 64;

/// The route from a port of this machine back to the same port.
#[derive(Clone, Debug)]
pub struct Route {
    port: Port,
    /// The GID of the port. It is set on Ethernet, and on InfiniBand if the port requires a GID.
    gid: Option<GidEntry>,
}

impl Route {
    /// Finds the route from `port` of `context` to itself. On InfiniBand the route uses the LID.
    /// Otherwise it uses the best GID of the port, which is an IPv4 address over RoCE v2 if there
    /// is one.
    ///
    /// # Errors
    ///
    /// [`Error::PortNotActive`], [`Error::NoGid`], [`Error::Query`].
    pub fn to_self(context: &Context, port: &Port) -> Result<Self, Error> {
        if port.state != PortState::Active {
            return Err(Error::PortNotActive {
                device: context.device().to_owned(),
                port: port.number,
                state: port.state,
            });
        }
        let gid = if port.link_layer == LinkLayer::Ethernet || port.grh_required {
            let chosen = gid::choose(&context.gids()?, port.number);
            Some(chosen.ok_or_else(|| Error::NoGid {
                device: context.device().to_owned(),
                port: port.number,
            })?)
        } else {
            None
        };
        Ok(Self {
            port: port.clone(),
            gid,
        })
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Returns the GID of the route, or `None` if the route uses the LID.
    #[must_use]
    pub fn gid(&self) -> Option<&GidEntry> {
        self.gid.as_ref()
    }

    /// Returns a copy of `attr` with the address of this route.
    pub(crate) fn address(&self, attr: ibv_ah_attr) -> ibv_ah_attr {
        let grh = match self.gid {
            Some(entry) => ibv_global_route {
                dgid: entry.gid.to_verbs(),
                sgid_index: entry.index,
                hop_limit: HOP_LIMIT,
                flow_label: 0,
                traffic_class: 0,
            },
            None => attr.grh,
        };
        ibv_ah_attr {
            grh,
            is_global: u8::from(self.gid.is_some()),
            dlid: self.port.lid,
            port_num: self.port.number,
            ..attr
        }
    }
}
