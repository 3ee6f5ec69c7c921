//! [`Loopback`]: a connection of this process with itself through the device.
//!
//! The invariant, on which its safety rests: **outside of a transfer, no work request is
//! outstanding.** A transfer borrows the memory it touches and holds the borrow until every work
//! request that it posted has completed or, if anything went wrong, until the queue pairs are
//! destroyed, which takes their work requests with them. So the device never touches memory for a
//! transfer whose borrow is over.
//!
//! Destroyed and made anew, rather than reset: a packet late from the failed transfer then finds
//! neither its queue pair nor its sequence number.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use regcache::{Cache, Monitor, VaRange};

use crate::{
    Cq, End, Error, Mr, MrRegistrar, Operation, Pd, Qp, RemoteMemory, Route, Sge, WcStatus,
};

/// Generous: an emulated machine moves 16 MiB in half a second.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes in a message at most, whatever the port says: the verbs' own limit is 2^31.
const MAX_MESSAGE: usize = 1 << 30;

/// A transfer has at most a send and a receive outstanding.
const QP_DEPTH: u32 = 2;
const CQ_DEPTH: u32 = 2 * 2 * QP_DEPTH;

/// How often to try to destroy a queue pair, 10 ms apart, before giving up; see `quiesce`.
const DESTROY_TRIES: u32 = 200;

/// A connection of this process with itself: two queue pairs of one port, connected with each other.
///
/// Its transfers block until they are done, polling, and yielding the processor between polls. The
/// source is borrowed, the destination mutably so, and their registrations come from a cache. The
/// device uses the slice's address and the registration's key, and no more: through a stale
/// registration it would move the bytes of the old pages.
///
/// A registration that was made without a cache may be stale and its pages mapped elsewhere by now,
/// where the device would write under somebody else's references; so the transfers that take one
/// ([`send_registered`](Self::send_registered)) are unsafe.
///
/// Transfers longer than the port's largest message go in several. A transfer of 0 bytes does
/// nothing.
///
/// # After an error
///
/// When a transfer returns an error, the device has let go of it, and the next transfer finds a
/// fresh connection. How much of the destination was written is not known.
///
/// # Aborts
///
/// If the device refuses for two seconds to destroy a queue pair with a failed transfer's work
/// requests in it, the process is aborted: it could not return the borrowed memory, which the device
/// may still write.
#[derive(Debug)]
pub struct Loopback {
    pd: Arc<Pd>,
    route: Route,
    timeout: Duration,
    /// `None` after a failed transfer, until the next.
    pair: Option<Pair>,
}

impl Loopback {
    /// Connects through the first ACTIVE port of the device that `pd` is on.
    ///
    /// # Errors
    ///
    /// [`Error::PortNotActive`], [`Error::NoGid`], [`Error::CreateQueue`], [`Error::ConnectQp`],
    /// [`Error::Query`].
    pub fn connect(pd: &Arc<Pd>) -> Result<Self, Error> {
        let port = pd.context().active_port()?;
        Self::connect_by(pd, Route::to_self(pd.context(), &port)?)
    }

    /// Connects by `route`.
    ///
    /// # Errors
    ///
    /// [`Error::CreateQueue`], [`Error::ConnectQp`].
    pub fn connect_by(pd: &Arc<Pd>, route: Route) -> Result<Self, Error> {
        let pair = Pair::connect(pd, &route)?;
        Ok(Self {
            pd: Arc::clone(pd),
            route,
            timeout: TIMEOUT,
            pair: Some(pair),
        })
    }

    /// How long a transfer may take before it fails with [`Error::TimedOut`]; 30 seconds if not set.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The way it goes.
    #[must_use]
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Sends `source`, received into `destination`.
    ///
    /// # Errors
    ///
    /// [`Error::Lookup`] if the cache refuses; [`Error::LengthMismatch`], [`Error::OtherDomain`],
    /// [`Error::ForkedChild`]: nothing was moved. [`Error::Completion`] if the device refused,
    /// [`Error::TimedOut`]; those of [`connect`](Self::connect) after an earlier error.
    pub fn send<M: Monitor>(
        &mut self,
        cache: &Cache<MrRegistrar, M>,
        source: &[u8],
        destination: &mut [u8],
    ) -> Result<(), Error> {
        self.cached(Operation::Send, cache, source, destination)
    }

    /// Writes `source` to `destination`, which is the remote side.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn rdma_write<M: Monitor>(
        &mut self,
        cache: &Cache<MrRegistrar, M>,
        source: &[u8],
        destination: &mut [u8],
    ) -> Result<(), Error> {
        self.cached(Operation::RdmaWrite, cache, source, destination)
    }

    /// Reads `source`, which is the remote side, into `destination`.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn rdma_read<M: Monitor>(
        &mut self,
        cache: &Cache<MrRegistrar, M>,
        source: &[u8],
        destination: &mut [u8],
    ) -> Result<(), Error> {
        self.cached(Operation::RdmaRead, cache, source, destination)
    }

    fn cached<M: Monitor>(
        &mut self,
        operation: Operation,
        cache: &Cache<MrRegistrar, M>,
        source: &[u8],
        destination: &mut [u8],
    ) -> Result<(), Error> {
        if source.is_empty() && destination.is_empty() {
            return Ok(());
        }
        let (from, to) = operation.access();
        let from = cache.get(source.as_ptr(), source.len(), from)?;
        let to = cache.get(destination.as_ptr(), destination.len(), to)?;
        let (from, to) = (from.registration(), to.registration());
        // SAFETY: both registrations were looked up while the slices are borrowed, so that their
        // memory cannot be moved or unmapped since, and a lookup never returns a stale one.
        unsafe { self.transfer(operation, source, from, destination, to) }
    }

    /// Sends `source`, received into `destination`, by registrations of the caller's.
    ///
    /// `destination_mr` must allow [`LOCAL_WRITE`](crate::Access::LOCAL_WRITE).
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`Error::OutsideRegistration`].
    ///
    /// # Safety
    ///
    /// No page that `source_mr` and `destination_mr` have pinned under the slices is mapped anywhere
    /// but there. It is if the registration is stale because its memory was moved, by `mremap` or by
    /// a `realloc` that uses it.
    pub unsafe fn send_registered(
        &mut self,
        source: &[u8],
        source_mr: &Mr,
        destination: &mut [u8],
        destination_mr: &Mr,
    ) -> Result<(), Error> {
        // SAFETY: passed on.
        unsafe {
            self.transfer(
                Operation::Send,
                source,
                source_mr,
                destination,
                destination_mr,
            )
        }
    }

    /// Writes `source` to `destination`, which is the remote side, by registrations of the caller's.
    ///
    /// `destination_mr` must allow [`REMOTE_WRITE`](crate::Access::REMOTE_WRITE).
    ///
    /// # Errors
    ///
    /// As [`send_registered`](Self::send_registered).
    ///
    /// # Safety
    ///
    /// As [`send_registered`](Self::send_registered).
    pub unsafe fn rdma_write_registered(
        &mut self,
        source: &[u8],
        source_mr: &Mr,
        destination: &mut [u8],
        destination_mr: &Mr,
    ) -> Result<(), Error> {
        // SAFETY: passed on.
        unsafe {
            self.transfer(
                Operation::RdmaWrite,
                source,
                source_mr,
                destination,
                destination_mr,
            )
        }
    }

    /// Reads `source`, which is the remote side, into `destination`, by registrations of the
    /// caller's.
    ///
    /// `source_mr` must allow [`REMOTE_READ`](crate::Access::REMOTE_READ), `destination_mr`
    /// [`LOCAL_WRITE`](crate::Access::LOCAL_WRITE).
    ///
    /// # Errors
    ///
    /// As [`send_registered`](Self::send_registered).
    ///
    /// # Safety
    ///
    /// As [`send_registered`](Self::send_registered).
    pub unsafe fn rdma_read_registered(
        &mut self,
        source: &[u8],
        source_mr: &Mr,
        destination: &mut [u8],
        destination_mr: &Mr,
    ) -> Result<(), Error> {
        // SAFETY: passed on.
        unsafe {
            self.transfer(
                Operation::RdmaRead,
                source,
                source_mr,
                destination,
                destination_mr,
            )
        }
    }

    /// # Safety
    ///
    /// As [`send_registered`](Self::send_registered).
    unsafe fn transfer(
        &mut self,
        operation: Operation,
        source: &[u8],
        source_mr: &Mr,
        destination: &mut [u8],
        destination_mr: &Mr,
    ) -> Result<(), Error> {
        self.pd.context().check_process()?;
        let len = source.len();
        if len != destination.len() {
            return Err(Error::LengthMismatch {
                source_len: len,
                destination_len: destination.len(),
            });
        }
        if len == 0 {
            return Ok(());
        }
        self.check_end(End::Source, source, source_mr)?;
        self.check_end(End::Destination, destination, destination_mr)?;

        // The device reaches the memory by address: outside of what the compiler sees, as foreign
        // code would with a pointer that it was given.
        let message = Message {
            source: source.as_ptr().expose_provenance(),
            source_mr,
            destination: destination.as_mut_ptr().expose_provenance(),
            destination_mr,
            len,
        };
        let attempt = Attempt {
            operation,
            len,
            started: Instant::now(),
            timeout: self.timeout,
        };
        // Out of `self` while work requests are outstanding: whichever way this function is left,
        // a pair that may have some is not used again.
        let pair = match self.pair.take() {
            Some(pair) => pair,
            None => Pair::connect(&self.pd, &self.route)?,
        };
        let moved =
            message
                .pieces(self.max_message())
                .enumerate()
                .try_for_each(|(index, piece)| {
                    if index > 0 {
                        attempt.check_time()?;
                    }
                    // SAFETY: the slices given to this function are borrowed until it returns, `source`
                    // shared and `destination` exclusively, and so are the registrations. It returns after
                    // all pieces have succeeded, with nothing outstanding, or after `quiesce`.
                    unsafe { pair.exchange(&piece, &attempt) }
                });
        match moved {
            Ok(()) => self.pair = Some(pair),
            Err(_) => pair.quiesce(),
        }
        moved
    }

    /// Refuses a slice that is not inside the registration, or a registration of another domain.
    fn check_end(&self, end: End, slice: &[u8], mr: &Mr) -> Result<(), Error> {
        if !Arc::ptr_eq(mr.pd(), &self.pd) {
            return Err(Error::OtherDomain { end });
        }
        match VaRange::new(slice.as_ptr(), slice.len()) {
            Ok(range) if mr.range().contains(&range) => Ok(()),
            _ => Err(Error::OutsideRegistration {
                end,
                start: slice.as_ptr().addr(),
                len: slice.len(),
                registered: mr.range(),
            }),
        }
    }

    fn max_message(&self) -> usize {
        match self.route.port().max_message as usize {
            // A port that does not say.
            0 => MAX_MESSAGE,
            max => max.min(MAX_MESSAGE),
        }
    }
}

/// A transfer under way: what it is, and when it is given up.
struct Attempt {
    operation: Operation,
    /// Of all its pieces.
    len: usize,
    started: Instant,
    timeout: Duration,
}

impl Attempt {
    fn check_time(&self) -> Result<(), Error> {
        if self.started.elapsed() < self.timeout {
            Ok(())
        } else {
            Err(Error::TimedOut {
                operation: self.operation,
                len: self.len,
                after: self.timeout,
            })
        }
    }
}

/// A transfer, or a piece of one: `len` bytes from address `source` to address `destination`.
#[derive(Clone, Copy)]
struct Message<'a> {
    source: usize,
    source_mr: &'a Mr,
    destination: usize,
    destination_mr: &'a Mr,
    len: usize,
}

impl Message<'_> {
    /// In pieces of at most `max` bytes, which is not 0.
    fn pieces(self, max: usize) -> impl Iterator<Item = Self> {
        (0..self.len).step_by(max).map(move |offset| Self {
            source: self.source + offset,
            destination: self.destination + offset,
            len: max.min(self.len - offset),
            ..self
        })
    }

    /// A piece is at most `MAX_MESSAGE` long, which fits 32 bits.
    fn length(&self) -> u32 {
        self.len as u32
    }

    fn source_sge(&self) -> Sge {
        Sge {
            addr: self.source as u64,
            length: self.length(),
            lkey: self.source_mr.lkey(),
        }
    }

    fn destination_sge(&self) -> Sge {
        Sge {
            addr: self.destination as u64,
            length: self.length(),
            lkey: self.destination_mr.lkey(),
        }
    }
}

/// Two queue pairs connected with each other, and the queue of both's completions.
#[derive(Debug)]
struct Pair {
    /// Posts the send, RDMA write or RDMA read.
    requester: Qp,
    /// Receives the send; is the remote side of the others.
    responder: Qp,
    cq: Arc<Cq>,
}

impl Pair {
    fn connect(pd: &Arc<Pd>, route: &Route) -> Result<Self, Error> {
        let cq = Cq::create(pd.context(), CQ_DEPTH)?;
        let requester = Qp::create(pd, &cq, &cq, QP_DEPTH)?;
        let responder = Qp::create(pd, &cq, &cq, QP_DEPTH)?;
        Qp::connect(&requester, &responder, route)?;
        Ok(Self {
            requester,
            responder,
            cq,
        })
    }

    /// Moves `message` and waits for it.
    ///
    /// # Errors
    ///
    /// Work requests may be outstanding then.
    ///
    /// # Safety
    ///
    /// Nobody writes to the source, touches the destination or deregisters their registrations
    /// until this returns `Ok` or, if it does not, until the pair is quiesced or dropped.
    unsafe fn exchange(&self, message: &Message<'_>, attempt: &Attempt) -> Result<(), Error> {
        let (source, destination) = (message.source_sge(), message.destination_sge());
        match attempt.operation {
            Operation::Send => {
                // SAFETY: the caller's promise for the destination.
                unsafe { self.responder.post_recv(id(End::Destination), destination) }?;
                // SAFETY: the caller's promise for the source.
                unsafe { self.requester.post_send(id(End::Source), source) }?;
                self.wait(2, attempt)
            }
            Operation::RdmaWrite => {
                let to = RemoteMemory {
                    addr: destination.addr,
                    rkey: message.destination_mr.rkey(),
                };
                // SAFETY: the caller's promise for both ends.
                unsafe { self.requester.post_rdma_write(id(End::Source), source, to) }?;
                self.wait(1, attempt)
            }
            Operation::RdmaRead => {
                let from = RemoteMemory {
                    addr: source.addr,
                    rkey: message.source_mr.rkey(),
                };
                // SAFETY: the caller's promise for both ends.
                unsafe {
                    self.requester
                        .post_rdma_read(id(End::Destination), destination, from)
                }?;
                self.wait(1, attempt)
            }
        }
    }

    /// Polls until `expected` work requests, which are all that are outstanding, have succeeded.
    fn wait(&self, expected: u32, attempt: &Attempt) -> Result<(), Error> {
        let mut done = 0;
        while done < expected {
            match self.cq.poll()? {
                Some(completion) if completion.status == WcStatus::SUCCESS => done += 1,
                Some(completion) => {
                    return Err(Error::Completion {
                        operation: attempt.operation,
                        end: end(completion.wr_id),
                        status: completion.status,
                        vendor_err: completion.vendor_err,
                    });
                }
                None => {
                    attempt.check_time()?;
                    thread::yield_now();
                }
            }
        }
        Ok(())
    }

    /// Returns when the device has let go of every outstanding work request.
    fn quiesce(self) {
        for qp in [self.requester, self.responder] {
            let mut destroyed = qp.destroy();
            for _ in 1..DESTROY_TRIES {
                let Err((qp, _)) = destroyed else { break };
                thread::sleep(Duration::from_millis(10));
                destroyed = qp.destroy();
            }
            if let Err((qp, error)) = destroyed {
                eprintln!(
                    "regcache-verbs: cannot destroy queue pair {} ({error}) while a transfer is \
                     outstanding on it: aborting, since the device may write to memory that the \
                     program is about to reuse",
                    qp.number()
                );
                std::process::abort();
            }
        }
    }
}

/// The number of the work request posted for the memory at `end`, and back.
fn id(end: End) -> u64 {
    match end {
        End::Source => 0,
        End::Destination => 1,
    }
}

fn end(id: u64) -> End {
    if id == 0 {
        End::Source
    } else {
        End::Destination
    }
}
