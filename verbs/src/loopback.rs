//! [`Loopback`]: a connection of this process with itself through the device.
//!
//! The safety of this type rests on one invariant: **outside of a transfer, no work request is
//! outstanding.** A transfer borrows the memory that it uses. It holds the borrow until every work
//! request that it posted has completed. If anything fails, it holds the borrow until the queue
//! pairs are destroyed, which also ends their work requests. So the device never accesses memory
//! for a transfer whose borrow is over.
//!
//! After a failure the queue pairs are destroyed and replaced, and not only reset. So a late packet
//! of the failed transfer matches neither a queue pair nor a sequence number.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use regcache::{Cache, Monitor, VaRange};

use crate::{
    Cq, End, Error, Mr, MrRegistrar, Operation, Pd, Qp, RemoteMemory, Route, Sge, WcStatus,
};

/// The default timeout of a transfer. It is long, because an emulated machine takes half a second
/// for 16 MiB.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum number of bytes of a message, even if the port allows more. The limit of the verbs
/// is 2^31.
const MAX_MESSAGE: usize = 1 << 30;

/// The number of entries of a work queue. A transfer has at most a send and a receive outstanding.
const QP_DEPTH: u32 = 2;
/// The number of entries of the completion queue: two work queues of each of two queue pairs.
const CQ_DEPTH: u32 = 2 * 2 * QP_DEPTH;

/// The number of attempts to destroy a queue pair before the process aborts. They are 10 ms apart;
/// see `quiesce`.
const DESTROY_TRIES: u32 = 200;

/// A connection of this process with itself: two queue pairs of one port, connected to each other.
///
/// A transfer blocks until it is complete. It polls, and yields the CPU between polls. It borrows
/// the source and the destination, and looks their registrations up in a cache. The device uses
/// only the address of the slice and the key of the registration. So with a stale registration the
/// device would move the bytes of the old pages.
///
/// A registration that was made without a cache may be stale. Its pages may be mapped at another
/// address by now, and the device would then write to memory that other references own. So
/// transfers with a registration of the caller, such as [`send_registered`](Self::send_registered),
/// are unsafe.
///
/// A transfer that is longer than the port's largest message is split. A transfer of 0 bytes does
/// nothing.
///
/// # After an error
///
/// When a transfer returns an error, the device no longer accesses the memory. The next transfer
/// makes a new connection. The contents of the destination are unspecified.
///
/// # Aborts
///
/// The process aborts if the device refuses for two seconds to destroy the queue pair of a failed
/// transfer. The device may still write to the borrowed memory, so the call must not return.
#[derive(Debug)]
pub struct Loopback {
    pd: Arc<Pd>,
    route: Route,
    timeout: Duration,
    /// The queue pairs, or `None` between a failed transfer and the next one.
    pair: Option<Pair>,
}

impl Loopback {
    /// Connects through the first ACTIVE port of the device of `pd`.
    ///
    /// # Errors
    ///
    /// [`Error::PortNotActive`], [`Error::NoGid`], [`Error::CreateQueue`], [`Error::ConnectQp`],
    /// [`Error::Query`].
    pub fn connect(pd: &Arc<Pd>) -> Result<Self, Error> {
        let port = pd.context().active_port()?;
        Self::connect_by(pd, Route::to_self(pd.context(), &port)?)
    }

    /// Connects through `route`.
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

    /// Sets the time after which a transfer fails with [`Error::TimedOut`]. The default is 30
    /// seconds.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Returns the route of the connection.
    #[must_use]
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Sends `source`, and receives it into `destination`.
    ///
    /// # Errors
    ///
    /// Before the transfer: [`Error::Lookup`] if the cache fails, [`Error::LengthMismatch`],
    /// [`Error::OtherDomain`], [`Error::ForkedChild`]. If the last transfer failed, also the errors
    /// of [`connect`](Self::connect). During the transfer: [`Error::Completion`] if the device
    /// fails, [`Error::TimedOut`].
    pub fn send<M: Monitor>(
        &mut self,
        cache: &Cache<MrRegistrar, M>,
        source: &[u8],
        destination: &mut [u8],
    ) -> Result<(), Error> {
        self.cached(Operation::Send, cache, source, destination)
    }

    /// Writes `source` to `destination` by RDMA. `destination` is the remote side.
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

    /// Reads `source` into `destination` by RDMA. `source` is the remote side.
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
        // SAFETY: both registrations were looked up while the slices are borrowed. So their memory
        // cannot have been moved or unmapped since the lookup. A lookup never returns a stale
        // registration.
        unsafe { self.transfer(operation, Ends::new(source, from, destination, to)) }
    }

    /// Sends `source`, and receives it into `destination`, with the caller's registrations.
    ///
    /// `destination_mr` must allow [`LOCAL_WRITE`](crate::Access::LOCAL_WRITE).
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`Error::OutsideRegistration`].
    ///
    /// # Safety
    ///
    /// The pages that `source_mr` and `destination_mr` have pinned for the slices are mapped at the
    /// slices and nowhere else. A registration breaks this condition if its memory was moved after
    /// registering, by `mremap` or by a `realloc` that uses `mremap`.
    pub unsafe fn send_registered(
        &mut self,
        source: &[u8],
        source_mr: &Mr,
        destination: &mut [u8],
        destination_mr: &Mr,
    ) -> Result<(), Error> {
        let ends = Ends::new(source, source_mr, destination, destination_mr);
        // SAFETY: the caller keeps the same contract.
        unsafe { self.transfer(Operation::Send, ends) }
    }

    /// Writes `source` to `destination` by RDMA, with the caller's registrations. `destination` is
    /// the remote side.
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
        let ends = Ends::new(source, source_mr, destination, destination_mr);
        // SAFETY: the caller keeps the same contract.
        unsafe { self.transfer(Operation::RdmaWrite, ends) }
    }

    /// Reads `source` into `destination` by RDMA, with the caller's registrations. `source` is the
    /// remote side.
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
        let ends = Ends::new(source, source_mr, destination, destination_mr);
        // SAFETY: the caller keeps the same contract.
        unsafe { self.transfer(Operation::RdmaRead, ends) }
    }

    /// Transfers `ends` by `operation`, in pieces if needed, and waits for the completions.
    ///
    /// # Safety
    ///
    /// As [`send_registered`](Self::send_registered).
    unsafe fn transfer(&mut self, operation: Operation, ends: Ends<'_>) -> Result<(), Error> {
        self.pd.context().check_process()?;
        let len = ends.source.len();
        if len != ends.destination.len() {
            return Err(Error::LengthMismatch {
                source_len: len,
                destination_len: ends.destination.len(),
            });
        }
        if len == 0 {
            return Ok(());
        }
        self.check_end(End::Source, ends.source, ends.source_mr)?;
        self.check_end(End::Destination, ends.destination, ends.destination_mr)?;

        // The device accesses the memory by address, which the compiler does not see. So expose the
        // pointers, as for foreign code.
        let message = Message {
            source: ends.source.as_ptr().expose_provenance(),
            source_mr: ends.source_mr,
            destination: ends.destination.as_mut_ptr().expose_provenance(),
            destination_mr: ends.destination_mr,
            len,
        };
        let attempt = Attempt {
            operation,
            len,
            started: Instant::now(),
            timeout: self.timeout,
        };
        // The pair is taken out of `self` while work requests are outstanding. So however this
        // function ends, `self` has no pair with outstanding work requests.
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
                    // SAFETY: this function borrows the slices until it returns, `source` shared
                    // and `destination` exclusively. It also borrows the registrations. It returns
                    // after all pieces have succeeded, with nothing outstanding, or after
                    // `quiesce`.
                    unsafe { pair.exchange(&piece, &attempt) }
                });
        match moved {
            Ok(()) => self.pair = Some(pair),
            Err(_) => pair.quiesce(),
        }
        moved
    }

    /// Fails if the slice is not inside the registration, or if the registration is in another
    /// protection domain.
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
            // A limit of 0 means that the port reports none.
            0 => MAX_MESSAGE,
            max => max.min(MAX_MESSAGE),
        }
    }
}

/// The memory of a transfer, with the registrations that cover it.
struct Ends<'a> {
    source: &'a [u8],
    source_mr: &'a Mr,
    destination: &'a mut [u8],
    destination_mr: &'a Mr,
}

impl<'a> Ends<'a> {
    fn new(
        source: &'a [u8],
        source_mr: &'a Mr,
        destination: &'a mut [u8],
        destination_mr: &'a Mr,
    ) -> Self {
        Self {
            source,
            source_mr,
            destination,
            destination_mr,
        }
    }
}

/// A transfer in progress, and its deadline.
struct Attempt {
    operation: Operation,
    /// The number of bytes of all pieces together.
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
    /// Splits the message into pieces of at most `max` bytes. `max` must not be 0.
    fn pieces(self, max: usize) -> impl Iterator<Item = Self> {
        (0..self.len).step_by(max).map(move |offset| Self {
            source: self.source + offset,
            destination: self.destination + offset,
            len: max.min(self.len - offset),
            ..self
        })
    }

    /// Returns the length of a piece. It is at most `MAX_MESSAGE`, which fits in 32 bits.
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

/// Two queue pairs that are connected to each other, and their common completion queue.
#[derive(Debug)]
struct Pair {
    /// The queue pair that posts the send, the RDMA write or the RDMA read.
    requester: Qp,
    /// The queue pair that receives the send, and that is the remote side of RDMA writes and reads.
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

    /// Transfers `message` and waits for the completions.
    ///
    /// # Errors
    ///
    /// After an error, work requests may be outstanding.
    ///
    /// # Safety
    ///
    /// Until this function returns `Ok`, no code writes to the source, uses the destination or
    /// deregisters their registrations. If it returns an error, the same holds until the pair is
    /// quiesced or dropped.
    unsafe fn exchange(&self, message: &Message<'_>, attempt: &Attempt) -> Result<(), Error> {
        let (source, destination) = (message.source_sge(), message.destination_sge());
        match attempt.operation {
            Operation::Send => {
                // SAFETY: the caller keeps the contract for the destination.
                unsafe { self.responder.post_recv(id(End::Destination), destination) }?;
                // SAFETY: the caller keeps the contract for the source.
                unsafe { self.requester.post_send(id(End::Source), source) }?;
                self.wait(2, attempt)
            }
            Operation::RdmaWrite => {
                let to = RemoteMemory {
                    addr: destination.addr,
                    rkey: message.destination_mr.rkey(),
                };
                // SAFETY: the caller keeps the contract for both ends.
                unsafe { self.requester.post_rdma_write(id(End::Source), source, to) }?;
                self.wait(1, attempt)
            }
            Operation::RdmaRead => {
                let from = RemoteMemory {
                    addr: source.addr,
                    rkey: message.source_mr.rkey(),
                };
                // SAFETY: the caller keeps the contract for both ends.
                unsafe {
                    self.requester
                        .post_rdma_read(id(End::Destination), destination, from)
                }?;
                self.wait(1, attempt)
            }
        }
    }

    /// Polls until all outstanding work requests have succeeded. `expected` is their number.
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

    /// Destroys the queue pairs. Afterwards the device accesses no memory for their work requests.
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

/// Returns the number of the work request for the memory at `end`.
fn id(end: End) -> u64 {
    match end {
        End::Source => 0,
        End::Destination => 1,
    }
}

/// Returns the end whose work request has this number.
fn end(id: u64) -> End {
    if id == 0 {
        End::Source
    } else {
        End::Destination
    }
}
