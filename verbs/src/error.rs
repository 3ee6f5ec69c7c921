//! [`Error`]: each message describes the failure and the remedy.

use std::fmt;
use std::io;
use std::time::Duration;

use regcache::VaRange;

use crate::{Access, PortState, WcStatus};

/// The kind of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A send into a posted receive.
    Send,
    /// An RDMA write.
    RdmaWrite,
    /// An RDMA read.
    RdmaRead,
}

impl Operation {
    /// Returns the access that the registrations of source and destination need.
    pub(crate) fn access(self) -> (Access, Access) {
        match self {
            Self::Send => (Access::empty(), Access::LOCAL_WRITE),
            Self::RdmaWrite => (Access::empty(), Access::REMOTE_WRITE),
            Self::RdmaRead => (Access::REMOTE_READ, Access::LOCAL_WRITE),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::RdmaWrite => "RDMA write",
            Self::RdmaRead => "RDMA read",
        })
    }
}

/// One end of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The memory that the device reads.
    Source,
    /// The memory that the device writes.
    Destination,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// An error of this crate.
///
/// Registering fails with an [`io::Error`] instead. The cache adds advice to that error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The list of devices could not be read.
    #[error("cannot list the RDMA devices: is /sys mounted?")]
    ListDevices {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The cache refused to register an end of a transfer.
    #[error(transparent)]
    Lookup(#[from] regcache::Error),
    /// The machine has no RDMA device.
    #[error(
        "no RDMA device on this machine. To make a software device: \
         `modprobe rdma_rxe && rdma link add rxe0 type rxe netdev lo` \
         (in a container, pass the host's /dev/infiniband in)"
    )]
    NoDevice,
    /// The kernel has devices, but libibverbs can use none of them.
    #[error(
        "the kernel has RDMA devices ({}), but libibverbs found none that it can use: install \
         their providers (Debian: ibverbs-providers) and `modprobe ib_uverbs`",
        devices.join(", ")
    )]
    NoProvider {
        /// The names of the kernel's devices.
        devices: Vec<String>,
    },
    /// No device has the requested name.
    #[error("no RDMA device is called {name:?}: the devices are {}", available.join(", "))]
    NoSuchDevice {
        /// The requested name.
        name: String,
        /// The names that exist.
        available: Vec<String>,
    },
    /// The device could not be opened.
    #[error(
        "cannot open RDMA device {name}: {}",
        match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => format!(
                "this user may not open {node}: run as root, or join the group that owns the \
                 file (often `rdma`); in a container, pass the file in"
            ),
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                format!("{node} does not exist: `modprobe ib_uverbs`, and check that udev runs")
            }
            _ => format!("opening {node} failed"),
        }
    )]
    OpenDevice {
        /// The device's name.
        name: String,
        /// The path of its character device.
        node: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The device could not be queried.
    #[error("cannot query {what} of RDMA device {device}: check that it exists (`ibv_devinfo`)")]
    Query {
        /// The device's name.
        device: String,
        /// The requested information.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The device has no such port.
    #[error("RDMA device {device} has no port {port}: its ports are 1 to {ports}")]
    NoSuchPort {
        /// The device's name.
        device: String,
        /// The number of the requested port.
        port: u8,
        /// The number of ports.
        ports: u8,
    },
    /// The port is not in the state ACTIVE.
    #[error(
        "port {port} of RDMA device {device} is {state}, not ACTIVE: {}",
        match state {
            PortState::Init | PortState::Armed => "the subnet manager has not brought it up yet",
            _ => "check the cable, or set its network interface up (`ip link set DEV up`)",
        }
    )]
    PortNotActive {
        /// The device's name.
        device: String,
        /// The port's number.
        port: u8,
        /// The port's state.
        state: PortState,
    },
    /// The port has no GID.
    #[error(
        "port {port} of RDMA device {device} has no GID: give its network interface an IP address"
    )]
    NoGid {
        /// The device's name.
        device: String,
        /// The port's number.
        port: u8,
    },
    /// The device refused to allocate a protection domain.
    #[error(
        "cannot allocate a protection domain: the device may have none left (`ibv_devinfo -v`)"
    )]
    AllocPd {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The device refused to create a completion queue or a queue pair.
    #[error(
        "cannot create a {what}: {}",
        match source.raw_os_error() {
            Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM) => {
                "its rings are pinned memory: raise RLIMIT_MEMLOCK (`ulimit -l unlimited`; for a \
                 service, LimitMEMLOCK=infinity)"
            }
            _ => "the device may have none left, or the depth may be too large (`ibv_devinfo -v`)",
        }
    )]
    CreateQueue {
        /// "completion queue" or "queue pair".
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The queue pair could not be connected.
    #[error(
        "cannot move the queue pair to {state}: {}",
        match *state {
            "RTR" => "the port may be unable to reach itself by the chosen address: check the GIDs \
                      (`ibv_devinfo -v`), and that the network interface is up",
            _ => "the port may have gone down (`ibv_devinfo`)",
        }
    )]
    ConnectQp {
        /// The state that was refused: INIT, RTR or RTS.
        state: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A connection with another host failed.
    #[error(
        "cannot {step} the peer: {}",
        match source.raw_os_error() {
            Some(libc::ENODEV) => {
                "no RDMA device has a route to the address (`rdma link`), or the kernel's connection \
                 manager is not loaded (`modprobe rdma_ucm`)"
            }
            Some(libc::EADDRNOTAVAIL) => {
                "no RDMA device of this host has that address (`rdma link`)"
            }
            Some(libc::ETIMEDOUT) => {
                "it does not answer: check that it is up, and that firewalls pass UDP port 4791"
            }
            _ => "does a program listen there?",
        }
    )]
    Connection {
        /// The step that failed.
        step: &'static str,
        /// The system's error, or the event that was received.
        #[source]
        source: io::Error,
    },
    /// The device did not accept a work request.
    #[error(
        "the device did not accept the work request: the queue is full, or the connection is lost"
    )]
    Post {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The completion queue could not be polled.
    #[error("cannot poll the completion queue: it is unusable, so create a new one")]
    Poll {
        /// The provider's error.
        #[source]
        source: io::Error,
    },
    /// The device reports that the transfer failed.
    #[error(
        "{operation} failed at its {end}: {status} (vendor error {vendor_err:#x}){}",
        status.advice()
    )]
    Completion {
        /// The transfer.
        operation: Operation,
        /// The end of the transfer whose work request failed.
        end: End,
        /// The status that the device reported.
        status: WcStatus,
        /// The vendor's error code; 0 if there is none.
        vendor_err: u32,
    },
    /// The transfer did not complete in time.
    #[error(
        "{operation} of {len} bytes did not complete in {after:?}: allow more time \
         (`Loopback::set_timeout`), or check that the port is up"
    )]
    TimedOut {
        /// The transfer.
        operation: Operation,
        /// The length of the transfer in bytes.
        len: usize,
        /// The timeout of the transfer.
        after: Duration,
    },
    /// The two slices of a transfer differ in length.
    #[error("source of {source_len} bytes, destination of {destination_len}: they must be equal")]
    LengthMismatch {
        /// The number of bytes in the source.
        source_len: usize,
        /// The number of bytes in the destination.
        destination_len: usize,
    },
    /// A slice is not inside the registration that the caller passed for it.
    #[error(
        "the {end}, {len} bytes at {start:#x}, is not inside its registration {registered:?}: \
         register all of it"
    )]
    OutsideRegistration {
        /// The end that the slice belongs to.
        end: End,
        /// The slice's address.
        start: usize,
        /// The slice's length in bytes.
        len: usize,
        /// The registration's range.
        registered: VaRange,
    },
    /// The registration and the connection are in different protection domains.
    #[error(
        "the {end}'s registration belongs to another protection domain: register and connect \
         through the same `Pd`"
    )]
    OtherDomain {
        /// The end whose registration belongs to another domain.
        end: End,
    },
    /// A forked child uses a device that its parent opened.
    #[error(
        "process {process} opened the device, and this is a forked child: open the device again \
         in this process"
    )]
    ForkedChild {
        /// The process that opened the device.
        process: u32,
    },
}
