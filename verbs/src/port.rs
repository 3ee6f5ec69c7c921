//! [`Port`]: the attributes of a port.

use std::fmt;
use std::mem;

use rdma_sys::{
    ibv_device_attr, ibv_mtu, ibv_port_attr, ibv_port_state, ibv_query_device, ibv_query_port,
};

use crate::errno::check;
use crate::{Context, Error};

/// The values of `IBV_LINK_LAYER_INFINIBAND` and `IBV_LINK_LAYER_ETHERNET`. rdma-sys lacks them,
/// because their enum has no name.
const LINK_LAYER_INFINIBAND: u8 = 1;
const LINK_LAYER_ETHERNET: u8 = 2;

/// The bit `IBV_QPF_GRH_REQUIRED` in the port's flags: every packet must have a global address.
const GRH_REQUIRED: u8 = 1;

/// The link layer of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// InfiniBand: ports are addressed by LID.
    InfiniBand,
    /// Ethernet (RoCE, iWARP): ports are addressed by GID.
    Ethernet,
    /// The device does not report its link layer. By the manual of `ibv_query_port` this means
    /// InfiniBand.
    Unspecified,
}

/// The state of a port, with the names of the verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// The port has no link.
    Down,
    /// The port has a link, but the subnet manager has not configured the port.
    Init,
    /// The port is configured, but not yet active.
    Armed,
    /// The port carries traffic.
    Active,
    /// The port was active, and has lost the link for a short time.
    ActiveDefer,
    /// A state that the verbs do not define.
    Other(u32),
}

impl From<u32> for PortState {
    fn from(state: u32) -> Self {
        match state {
            ibv_port_state::IBV_PORT_DOWN => Self::Down,
            ibv_port_state::IBV_PORT_INIT => Self::Init,
            ibv_port_state::IBV_PORT_ARMED => Self::Armed,
            ibv_port_state::IBV_PORT_ACTIVE => Self::Active,
            ibv_port_state::IBV_PORT_ACTIVE_DEFER => Self::ActiveDefer,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("DOWN"),
            Self::Init => f.write_str("INIT"),
            Self::Armed => f.write_str("ARMED"),
            Self::Active => f.write_str("ACTIVE"),
            Self::ActiveDefer => f.write_str("ACTIVE_DEFER"),
            Self::Other(state) => write!(f, "in state {state}"),
        }
    }
}

/// The attributes of a port at the time of the query.
#[derive(Clone, Debug)]
pub struct Port {
    /// The number of the port, from 1.
    pub number: u8,
    /// The state of the port.
    pub state: PortState,
    /// The link layer of the port.
    pub link_layer: LinkLayer,
    /// The local identifier (LID) on InfiniBand; 0 on Ethernet.
    pub lid: u16,
    /// The maximum number of payload bytes in a packet: 256 to 4096.
    pub mtu: u32,
    /// The maximum number of bytes in a message.
    pub max_message: u32,
    /// The number of entries in the GID table of the port, including empty ones.
    pub gid_table_len: u32,
    /// True if packets must carry a GID even on InfiniBand.
    pub grh_required: bool,
    /// `mtu` as an `enum ibv_mtu`.
    pub(crate) mtu_code: ibv_mtu::Type,
}

impl Port {
    fn new(number: u8, attr: &ibv_port_attr) -> Self {
        Self {
            number,
            state: attr.state.into(),
            link_layer: match attr.link_layer {
                LINK_LAYER_INFINIBAND => LinkLayer::InfiniBand,
                LINK_LAYER_ETHERNET => LinkLayer::Ethernet,
                _ => LinkLayer::Unspecified,
            },
            lid: attr.lid,
            mtu: 128u32.checked_shl(attr.active_mtu).unwrap_or(0),
            max_message: attr.max_msg_sz,
            gid_table_len: attr.gid_tbl_len.try_into().unwrap_or(0),
            grh_required: attr.flags & GRH_REQUIRED != 0,
            mtu_code: attr.active_mtu,
        }
    }
}

impl Context {
    /// Returns the number of ports of the device. Ports are numbered from 1.
    ///
    /// # Errors
    ///
    /// [`Error::Query`].
    pub fn port_count(&self) -> Result<u8, Error> {
        // SAFETY: zero is a valid value of this C struct of integers and arrays of integers.
        let mut attr: ibv_device_attr = unsafe { mem::zeroed() };
        // SAFETY: the context is open, and `attr` lives through the call.
        let queried = unsafe { ibv_query_device(self.as_ptr(), &raw mut attr) };
        check(queried).map_err(|source| self.query_error("the attributes", source))?;
        Ok(attr.phys_port_cnt)
    }

    /// Queries port `number`.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPort`], [`Error::Query`].
    pub fn port(&self, number: u8) -> Result<Port, Error> {
        let ports = self.port_count()?;
        if !(1..=ports).contains(&number) {
            return Err(Error::NoSuchPort {
                device: self.device().to_owned(),
                port: number,
                ports,
            });
        }
        // SAFETY: zero is a valid value of this C struct of integers.
        let mut attr: ibv_port_attr = unsafe { mem::zeroed() };
        // This is the exported function and not C's inline one. It sets the fields up to `flags`.
        // It leaves the newer field `port_cap_flags2`, which this crate does not use. (rdma-sys 0.3
        // has the inline function as `___ibv_query_port`. But that function compares `abi_compat`
        // with `u32::MAX`. So on 64-bit machines it always calls the exported function, and does
        // not clear the structure first.)
        //
        // SAFETY: the context is open. The function writes a `_compat_ibv_port_attr`, which is a
        // prefix of `ibv_port_attr`, and `attr` lives through the call.
        let queried = unsafe { ibv_query_port(self.as_ptr(), number, (&raw mut attr).cast()) };
        check(queried).map_err(|source| self.query_error("a port", source))?;
        Ok(Port::new(number, &attr))
    }

    /// Returns the first port that is ACTIVE. If no port is ACTIVE, the error has the state of the
    /// first port.
    ///
    /// # Errors
    ///
    /// [`Error::PortNotActive`], [`Error::NoSuchPort`], [`Error::Query`].
    pub fn active_port(&self) -> Result<Port, Error> {
        for number in 1..=self.port_count()? {
            let port = self.port(number)?;
            if port.state == PortState::Active {
                return Ok(port);
            }
        }
        let first = self.port(1)?;
        Err(Error::PortNotActive {
            device: self.device().to_owned(),
            port: first.number,
            state: first.state,
        })
    }
}
