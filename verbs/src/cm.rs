//! Connections between hosts, by librdmacm. [`Dial`] and [`Listener`] find the device for an IP
//! address, and connect a [`Qp`] to a queue pair at another address.
//!
//! librdmacm opens devices itself. This module uses the objects of librdmacm only to find the
//! device and to connect. The queue pair is an object of this crate, on a
//! [`Context`](crate::Context) of this crate. librdmacm gets the number of the queue pair, and
//! returns the attributes for each of its states.

use std::ffi::c_int;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rdma_sys::{
    ibv_get_device_name, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_state, rdma_accept,
    rdma_ack_cm_event, rdma_bind_addr, rdma_cm_event, rdma_cm_event_type, rdma_cm_id,
    rdma_conn_param, rdma_connect, rdma_create_event_channel, rdma_create_id,
    rdma_destroy_event_channel, rdma_destroy_id, rdma_disconnect, rdma_establish,
    rdma_event_channel, rdma_event_str, rdma_get_cm_event, rdma_init_qp_attr, rdma_listen,
    rdma_migrate_id, rdma_port_space, rdma_resolve_addr, rdma_resolve_route,
};

use crate::device::string;
use crate::errno::{check, check_ptr};
use crate::qp::{self, Qp};
use crate::{Access, Error};

type Event = rdma_cm_event_type::Type;

/// The time that the network may take for each step.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The time that the kernel may take to resolve an address, for each attempt. Over veth the answer
/// to an ARP request can arrive before the kernel waits for it. The kernel then notices the answer
/// only after this time.
const LOOK: Duration = Duration::from_secs(1);

/// The maximum number of bytes that each side can send to the other while connecting.
pub const HELLO: usize = 56;

/// A connection identifier, and an event channel that only this identifier uses.
struct Id {
    channel: NonNull<rdma_event_channel>,
    id: NonNull<rdma_cm_id>,
}

// SAFETY: librdmacm may be called from any thread, and this value owns the identifier.
unsafe impl Send for Id {}

struct Channel(NonNull<rdma_event_channel>);

impl Channel {
    fn new() -> Result<Self, Error> {
        // SAFETY: `rdma_create_event_channel` has no parameters.
        let channel = check_ptr(unsafe { rdma_create_event_channel() });
        channel.map(Self).map_err(|source| failed("open", source))
    }

    fn keep(self) -> NonNull<rdma_event_channel> {
        let channel = self.0;
        mem::forget(self);
        channel
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: `new` made the channel, and no identifier uses it.
        unsafe { rdma_destroy_event_channel(self.0.as_ptr()) }
    }
}

fn failed(step: &'static str, source: io::Error) -> Error {
    Error::Connection { step, source }
}

fn done(step: &'static str, result: c_int) -> Result<(), Error> {
    check(result).map_err(|source| failed(step, source))
}

/// The contents of an event.
struct Said {
    id: *mut rdma_cm_id,
    private: Vec<u8>,
}

impl Id {
    fn new() -> Result<Self, Error> {
        let channel = Channel::new()?;
        let mut id = ptr::null_mut();
        // SAFETY: the channel is open, and `id` lives through the call.
        let made = unsafe {
            rdma_create_id(
                channel.0.as_ptr(),
                &raw mut id,
                ptr::null_mut(),
                rdma_port_space::RDMA_PS_TCP,
            )
        };
        done("open", made)?;
        match NonNull::new(id) {
            Some(id) => Ok(Self {
                channel: channel.keep(),
                id,
            }),
            None => Err(failed("open", io::Error::from_raw_os_error(libc::EIO))),
        }
    }

    /// Waits for the event that ends `step`. Any other event is an error. If `limit` is `None`,
    /// waits without limit.
    fn wait(
        &self,
        step: &'static str,
        wanted: Event,
        limit: Option<Duration>,
    ) -> Result<Said, Error> {
        // SAFETY: the channel is open while `self` lives, and `fd` is used only in this call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) };
        let timeout = match limit.map(|limit| PollTimeout::try_from(limit.as_millis())) {
            Some(Ok(limit)) => limit,
            _ => PollTimeout::NONE,
        };
        loop {
            match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
                Ok(0) => return Err(failed(step, io::Error::from_raw_os_error(libc::ETIMEDOUT))),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(step, errno.into())),
            }
        }
        let mut event: *mut rdma_cm_event = ptr::null_mut();
        // SAFETY: the channel is open, and `event` lives through the call.
        done(step, unsafe {
            rdma_get_cm_event(self.channel.as_ptr(), &raw mut event)
        })?;
        // SAFETY: the call succeeded, so `event` points to an event, which is valid until it is
        // acknowledged.
        let (came, status, id) = unsafe { ((*event).event, (*event).status, (*event).id) };
        let mut private = Vec::new();
        if came == wanted {
            // SAFETY: if an event that a caller waits for has data, it has connection parameters.
            // In all other such events the length is zero, because librdmacm clears the event.
            unsafe {
                let conn = &(*event).param.conn;
                if !conn.private_data.is_null() {
                    let len = usize::from(conn.private_data_len);
                    let bytes = std::slice::from_raw_parts(conn.private_data.cast::<u8>(), len);
                    private.extend_from_slice(bytes);
                }
            }
        }
        // SAFETY: the event was received above, and is acknowledged once.
        done(step, unsafe { rdma_ack_cm_event(event) })?;
        if came == wanted {
            return Ok(Said { id, private });
        }
        // SAFETY: `rdma_event_str` accepts any number, and returns a terminated string of static
        // lifetime.
        let name = unsafe { string(rdma_event_str(came)) };
        let why = match -status {
            libc::ETIMEDOUT => io::Error::from_raw_os_error(libc::ETIMEDOUT),
            _ => io::Error::other(format!("{name} ({status})")),
        };
        Err(failed(step, why))
    }

    /// Returns the name of the device that the address belongs to.
    fn device(&self) -> Result<String, Error> {
        // SAFETY: the identifier lives as long as `self`.
        let verbs = unsafe { self.id.as_ref().verbs };
        if verbs.is_null() {
            return Err(failed(
                "find a device for",
                io::Error::from_raw_os_error(libc::ENODEV),
            ));
        }
        // SAFETY: `verbs` is a context that librdmacm has opened, so its device is set.
        Ok(unsafe { string(ibv_get_device_name((*verbs).device)) })
    }

    /// Moves the queue pair to `state`, with the attributes that librdmacm returns for the
    /// connection.
    fn to(&self, qp: &Qp, name: &'static str, state: ibv_qp_state::Type) -> Result<(), Error> {
        // SAFETY: zero is a valid value of this C struct, which consists of integers and of a union
        // of integers.
        let mut attr: ibv_qp_attr = unsafe { mem::zeroed() };
        attr.qp_state = state;
        let mut mask = 0;
        // SAFETY: the identifier is alive, and both variables live through the call.
        let known = unsafe { rdma_init_qp_attr(self.id.as_ptr(), &raw mut attr, &raw mut mask) };
        done("prepare", known)?;
        if mask & ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS.0.cast_signed() != 0 {
            attr.qp_access_flags =
                (Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ).bits();
        }
        qp::patience(&mut attr);
        qp.modify(&mut attr, mask)
            .map_err(|source| Error::ConnectQp {
                state: name,
                source,
            })
    }

    fn to_rts(&self, qp: &Qp) -> Result<(), Error> {
        self.to(qp, "INIT", ibv_qp_state::IBV_QPS_INIT)?;
        self.to(qp, "RTR", ibv_qp_state::IBV_QPS_RTR)?;
        self.to(qp, "RTS", ibv_qp_state::IBV_QPS_RTS)
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: `self` owns the identifier and the channel, and every event was acknowledged.
        // Both are destroyed once, the identifier first.
        unsafe {
            rdma_destroy_id(self.id.as_ptr());
            rdma_destroy_event_channel(self.channel.as_ptr());
        }
    }
}

/// Returns the parameters that the two sides exchange while connecting.
fn parameters(qp: &Qp, hello: &[u8]) -> Result<rdma_conn_param, Error> {
    if hello.len() > HELLO {
        let why = format!("the hello has {} bytes: {HELLO} are allowed", hello.len());
        return Err(failed(
            "connect",
            io::Error::new(io::ErrorKind::InvalidInput, why),
        ));
    }
    Ok(rdma_conn_param {
        private_data: hello.as_ptr().cast(),
        private_data_len: hello.len() as u8,
        responder_resources: qp::READS,
        initiator_depth: qp::READS,
        flow_control: 1,
        retry_count: qp::RETRIES,
        rnr_retry_count: qp::RNR_RETRIES,
        srq: 0,
        qp_num: qp.number(),
    })
}

/// Calls `call` with the address as a C `sockaddr`.
fn with_sockaddr<T>(address: SocketAddr, call: impl FnOnce(*mut libc::sockaddr) -> T) -> T {
    match address {
        SocketAddr::V4(v4) => {
            let mut c = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            call((&raw mut c).cast())
        }
        SocketAddr::V6(v6) => {
            let mut c = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            call((&raw mut c).cast())
        }
    }
}

/// A resolved address, and the device that has a route to it.
pub struct Dial(Id);

impl Dial {
    /// Resolves `address`.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`].
    pub fn resolve(address: SocketAddr) -> Result<Self, Error> {
        let started = Instant::now();
        loop {
            match Self::look(address) {
                Err(Error::Connection { source, .. })
                    if source.raw_os_error() == Some(libc::ETIMEDOUT)
                        && started.elapsed() < TIMEOUT => {}
                other => return other,
            }
        }
    }

    fn look(address: SocketAddr) -> Result<Self, Error> {
        let id = Id::new()?;
        let timeout = LOOK.as_millis() as c_int;
        // SAFETY: the identifier is alive, and librdmacm copies the address. The source address is
        // null, so the kernel chooses one by its routing table.
        let resolving = with_sockaddr(address, |to| unsafe {
            rdma_resolve_addr(id.id.as_ptr(), ptr::null_mut(), to.cast(), timeout)
        });
        done("find", resolving)?;
        id.wait(
            "find",
            rdma_cm_event_type::RDMA_CM_EVENT_ADDR_RESOLVED,
            Some(TIMEOUT),
        )?;
        // SAFETY: the identifier is alive.
        done("find a route to", unsafe {
            rdma_resolve_route(id.id.as_ptr(), TIMEOUT.as_millis() as c_int)
        })?;
        let resolved = rdma_cm_event_type::RDMA_CM_EVENT_ROUTE_RESOLVED;
        id.wait("find a route to", resolved, Some(TIMEOUT))?;
        Ok(Self(id))
    }

    /// Returns the name of the device. Create the queue pair on this device.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`].
    pub fn device(&self) -> Result<String, Error> {
        self.0.device()
    }

    /// Connects `qp`, which must be new, and sends `hello`, which has at most [`HELLO`] bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`], also if no program listens; [`Error::ConnectQp`].
    pub fn connect(self, qp: &Qp, hello: &[u8]) -> Result<Connection, Error> {
        let Self(id) = self;
        let mut parameters = parameters(qp, hello)?;
        // SAFETY: the identifier is alive, and the data that the parameters point to live through
        // the call.
        done("connect", unsafe {
            rdma_connect(id.id.as_ptr(), &raw mut parameters)
        })?;
        let response = rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_RESPONSE;
        let said = id.wait("connect", response, Some(TIMEOUT))?;
        id.to_rts(qp)?;
        // SAFETY: the identifier is alive, and the peer has answered.
        done("connect", unsafe { rdma_establish(id.id.as_ptr()) })?;
        Ok(Connection {
            id,
            hello: said.private,
        })
    }
}

/// A socket that listens for connections.
pub struct Listener(Id);

impl Listener {
    /// Listens at `address`. 0.0.0.0 means every device.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`].
    pub fn bind(address: SocketAddr) -> Result<Self, Error> {
        let id = Id::new()?;
        // SAFETY: the identifier is alive, and librdmacm copies the address.
        let bound = with_sockaddr(address, |at| unsafe {
            rdma_bind_addr(id.id.as_ptr(), at.cast())
        });
        done("listen at", bound)?;
        // SAFETY: the identifier is alive.
        done("listen at", unsafe { rdma_listen(id.id.as_ptr(), 8) })?;
        Ok(Self(id))
    }

    /// Waits for the next connection request. If `limit` is `None`, waits without limit.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`].
    pub fn next(&self, limit: Option<Duration>) -> Result<Incoming, Error> {
        let request = rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST;
        let said = self.0.wait("wait for", request, limit)?;
        let Some(id) = NonNull::new(said.id) else {
            return Err(failed("wait for", io::Error::from_raw_os_error(libc::EIO)));
        };
        let migrated = Channel::new().and_then(|channel| {
            // SAFETY: the identifier is new and owned, all its events are acknowledged, and the
            // channel is open.
            done("wait for", unsafe {
                rdma_migrate_id(id.as_ptr(), channel.0.as_ptr())
            })?;
            Ok(channel.keep())
        });
        match migrated {
            Ok(channel) => Ok(Incoming {
                id: Id { channel, id },
                hello: said.private,
            }),
            Err(error) => {
                // SAFETY: the identifier is new and owned, and all its events are acknowledged. It
                // is destroyed once.
                unsafe { rdma_destroy_id(id.as_ptr()) };
                Err(error)
            }
        }
    }
}

/// A connection request. It is refused on drop.
pub struct Incoming {
    id: Id,
    hello: Vec<u8>,
}

impl Incoming {
    /// Returns the bytes that the peer sent. librdmacm may append zeros.
    #[must_use]
    pub fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// Returns the name of the device. Create the queue pair on this device.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`].
    pub fn device(&self) -> Result<String, Error> {
        self.id.device()
    }

    /// Connects `qp`, which must be new, and sends `hello`, which has at most [`HELLO`] bytes. Post
    /// receives in `before_accepting`: the queue pair accepts them by then, and the peer may send
    /// as soon as the connection is accepted.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`], [`Error::ConnectQp`], and the errors of `before_accepting`.
    pub fn accept<E: From<Error>>(
        self,
        qp: &Qp,
        hello: &[u8],
        before_accepting: impl FnOnce() -> Result<(), E>,
    ) -> Result<Connection, E> {
        let Self { id, hello: said } = self;
        id.to_rts(qp)?;
        before_accepting()?;
        let mut parameters = parameters(qp, hello)?;
        // SAFETY: the identifier is alive, and the data that the parameters point to live through
        // the call.
        done("accept", unsafe {
            rdma_accept(id.id.as_ptr(), &raw mut parameters)
        })?;
        let established = rdma_cm_event_type::RDMA_CM_EVENT_ESTABLISHED;
        id.wait("accept", established, Some(TIMEOUT))?;
        Ok(Connection { id, hello: said })
    }
}

/// A connection. It is closed on drop.
pub struct Connection {
    id: Id,
    hello: Vec<u8>,
}

impl Connection {
    /// Returns the bytes that the peer sent. librdmacm may append zeros.
    #[must_use]
    pub fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// Returns whether the peer has closed the connection, without waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`].
    pub fn is_closed(&self) -> Result<bool, Error> {
        let closed = rdma_cm_event_type::RDMA_CM_EVENT_DISCONNECTED;
        match self.id.wait("watch", closed, Some(Duration::ZERO)) {
            Ok(_) => Ok(true),
            Err(Error::Connection { source, .. })
                if source.raw_os_error() == Some(libc::ETIMEDOUT) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the identifier is alive. An error only means that the peer has already
        // disconnected.
        unsafe { rdma_disconnect(self.id.id.as_ptr()) };
    }
}
