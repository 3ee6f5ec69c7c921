//! [`Qp`], a reliably connected queue pair.

use std::ffi::c_int;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{
    ibv_create_qp, ibv_destroy_qp, ibv_modify_qp, ibv_post_recv, ibv_post_send, ibv_qp,
    ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type, ibv_recv_wr,
    ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode, rdma_t, wr_t,
};

use crate::errno::{check, check_ptr};
use crate::{Access, Cq, Error, Pd, Route};

/// Time to wait for an acknowledgement before sending again, as 4.096 us * 2^17 = 0.54 s, and how
/// often to do so. Long for a wire, where 2^14 is usual, because a software device on a busy machine
/// may not run for that long.
const ACK_TIMEOUT: u8 = 17;
pub(crate) const RETRIES: u8 = 7;

/// Wait as long as it takes if the peer has no receive posted (7 means no limit), asking again
/// after 0.64 ms (12).
pub(crate) const RNR_RETRIES: u8 = 7;
const RNR_TIMER: u8 = 12;

/// RDMA reads under way at once.
pub(crate) const READS: u8 = 1;

/// Packet sequence numbers have 24 bits.
const PSN_MASK: u64 = 0xff_ffff;

/// How long to wait for the peer, whoever knows the rest of the connection.
pub(crate) fn patience(attr: &mut ibv_qp_attr) {
    attr.min_rnr_timer = RNR_TIMER;
    attr.rnr_retry = RNR_RETRIES;
    attr.timeout = ACK_TIMEOUT;
    attr.retry_cnt = RETRIES;
}

/// Memory of this process, for a work request.
#[derive(Clone, Copy, Debug)]
pub struct Sge {
    /// Its address.
    pub addr: u64,
    /// Its length in bytes. Not 0, which devices read as 2^31.
    pub length: u32,
    /// Key of a registration that covers it.
    pub lkey: u32,
}

impl Sge {
    fn to_verbs(self) -> ibv_sge {
        ibv_sge {
            addr: self.addr,
            length: self.length,
            lkey: self.lkey,
        }
    }
}

/// Memory at the peer.
#[derive(Clone, Copy, Debug)]
pub struct RemoteMemory {
    /// Its address in the peer's process.
    pub addr: u64,
    /// The peer's key for it.
    pub rkey: u32,
}

/// A reliably connected (RC) queue pair. Each work request has one piece of memory and ends in a
/// completion.
#[derive(Debug)]
pub struct Qp {
    qp: NonNull<ibv_qp>,
    /// False once destroyed, which only a method that consumes `self` does.
    live: bool,
    number: u32,
    /// Of the first packet it sends.
    psn: u32,
    pd: Arc<Pd>,
    _send_cq: Arc<Cq>,
    _recv_cq: Arc<Cq>,
}

// SAFETY: libibverbs allows any verb on any object from any thread, as for `Context`; providers
// lock each queue while posting.
unsafe impl Send for Qp {}
// SAFETY: as for Send.
unsafe impl Sync for Qp {}

impl Qp {
    /// Creates an unconnected queue pair in `pd` that takes `depth` sends and as many receives at a
    /// time. Their completions come out of the queues given, which must have room for them.
    ///
    /// # Errors
    ///
    /// [`Error::CreateQueue`].
    pub fn create(
        pd: &Arc<Pd>,
        send_cq: &Arc<Cq>,
        recv_cq: &Arc<Cq>,
        depth: u32,
    ) -> Result<Self, Error> {
        // SAFETY: a C struct of integers and pointers, for which zero (null) is a value.
        let mut init: ibv_qp_init_attr = unsafe { mem::zeroed() };
        init.send_cq = send_cq.as_ptr();
        init.recv_cq = recv_cq.as_ptr();
        init.qp_type = ibv_qp_type::IBV_QPT_RC;
        init.cap.max_send_wr = depth;
        init.cap.max_recv_wr = depth;
        init.cap.max_send_sge = 1;
        init.cap.max_recv_sge = 1;
        // SAFETY: domain and queues are alive while borrowed, and the queue pair keeps an `Arc` of
        // each; `init` lives through the call.
        let qp = unsafe { ibv_create_qp(pd.as_ptr(), &raw mut init) };
        let qp = check_ptr(qp).map_err(|source| Error::CreateQueue {
            what: "queue pair",
            source,
        })?;
        // SAFETY: `qp` was just made, and nobody else has it.
        let number = unsafe { qp.as_ref() }.qp_num;
        Ok(Self {
            qp,
            live: true,
            number,
            psn: (RandomState::new().hash_one(number) & PSN_MASK) as u32,
            pd: Arc::clone(pd),
            _send_cq: Arc::clone(send_cq),
            _recv_cq: Arc::clone(recv_cq),
        })
    }

    /// Its number, 24 bits, by which the port's packets name it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Connects two new queue pairs of one port with each other.
    ///
    /// The first sequence number of each direction is random, so that a packet that is late from an
    /// earlier queue pair of the same number is not taken for one of this connection.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectQp`]. Destroy both then.
    pub fn connect(one: &Self, other: &Self, route: &Route) -> Result<(), Error> {
        one.to_rts(other, route)?;
        other.to_rts(one, route)
    }

    /// RESET -> INIT -> RTR -> RTS.
    fn to_rts(&self, peer: &Self, route: &Route) -> Result<(), Error> {
        type Mask = ibv_qp_attr_mask;
        // SAFETY: a C struct of integers and of a union of such, for which zero is a value.
        let mut attr: ibv_qp_attr = unsafe { mem::zeroed() };
        attr.port_num = route.port().number;
        attr.qp_access_flags =
            (Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ).bits();
        attr.path_mtu = route.port().mtu_code;
        attr.dest_qp_num = peer.number;
        attr.rq_psn = peer.psn;
        attr.sq_psn = self.psn;
        attr.max_dest_rd_atomic = READS;
        attr.max_rd_atomic = READS;
        patience(&mut attr);
        attr.ah_attr = route.address(attr.ah_attr);

        let steps = [
            (
                "INIT",
                ibv_qp_state::IBV_QPS_INIT,
                Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_ACCESS_FLAGS,
            ),
            (
                "RTR",
                ibv_qp_state::IBV_QPS_RTR,
                Mask::IBV_QP_AV
                    | Mask::IBV_QP_PATH_MTU
                    | Mask::IBV_QP_DEST_QPN
                    | Mask::IBV_QP_RQ_PSN
                    | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
                    | Mask::IBV_QP_MIN_RNR_TIMER,
            ),
            (
                "RTS",
                ibv_qp_state::IBV_QPS_RTS,
                Mask::IBV_QP_SQ_PSN
                    | Mask::IBV_QP_MAX_QP_RD_ATOMIC
                    | Mask::IBV_QP_RETRY_CNT
                    | Mask::IBV_QP_RNR_RETRY
                    | Mask::IBV_QP_TIMEOUT,
            ),
        ];
        for (state, code, mask) in steps {
            attr.qp_state = code;
            let mask = (mask | Mask::IBV_QP_STATE).0.cast_signed();
            self.modify(&mut attr, mask)
                .map_err(|source| Error::ConnectQp { state, source })?;
        }
        Ok(())
    }

    /// Sets the attributes that `mask` names.
    pub(crate) fn modify(&self, attr: &mut ibv_qp_attr, mask: c_int) -> io::Result<()> {
        // SAFETY: the queue pair is alive, and `attr` has all fields. What the peer may reach by a
        // connection is what was registered for remote access, and what this side may reach by it
        // takes work requests, whose posting is unsafe.
        check(unsafe { ibv_modify_qp(self.as_ptr(), attr, mask) })
    }

    /// Posts a receive: the peer's next send lands in `into`.
    ///
    /// # Errors
    ///
    /// [`Error::Post`]; nothing was posted then.
    ///
    /// # Safety
    ///
    /// The device may write the memory at `into` until the completion has been polled or the queue
    /// pair destroyed. Until then the memory belongs to nobody else, and the registration that
    /// `into.lkey` names is not deregistered.
    pub unsafe fn post_recv(&self, wr_id: u64, into: Sge) -> Result<(), Error> {
        let mut sge = into.to_verbs();
        let mut wr = ibv_recv_wr {
            wr_id,
            next: ptr::null_mut(),
            sg_list: &raw mut sge,
            num_sge: 1,
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair is alive; libibverbs copies `wr` and `sge` before it returns; the
        // caller answers for the memory. The operation's function pointer is set: libibverbs fills
        // in one that fails for what a provider lacks.
        let posted = unsafe { ibv_post_recv(self.as_ptr(), &raw mut wr, &raw mut bad) };
        check(posted).map_err(|source| Error::Post { source })
    }

    /// Posts a send of `from`. The peer must have posted a receive of that length or more.
    ///
    /// # Errors
    ///
    /// [`Error::Post`]; nothing was posted then.
    ///
    /// # Safety
    ///
    /// The device may read the memory at `from` until the completion has been polled or the queue
    /// pair destroyed. Until then nobody writes to the memory, and the registration that
    /// `from.lkey` names is not deregistered.
    pub unsafe fn post_send(&self, wr_id: u64, from: Sge) -> Result<(), Error> {
        // SAFETY: the contract of `post` for a send, of which the caller keeps it.
        unsafe { self.post(ibv_wr_opcode::IBV_WR_SEND, wr_id, from, None) }
    }

    /// Posts an RDMA write of `from` to the peer's memory at `to`.
    ///
    /// # Errors
    ///
    /// [`Error::Post`]; nothing was posted then.
    ///
    /// # Safety
    ///
    /// For `from`, as [`post_send`](Self::post_send). The same number of bytes at `to` belongs to
    /// nobody else until then: it is this process's memory, as both ends are.
    pub unsafe fn post_rdma_write(
        &self,
        wr_id: u64,
        from: Sge,
        to: RemoteMemory,
    ) -> Result<(), Error> {
        // SAFETY: the contract of `post` for an RDMA write, of which the caller keeps it.
        unsafe { self.post(ibv_wr_opcode::IBV_WR_RDMA_WRITE, wr_id, from, Some(to)) }
    }

    /// Posts an RDMA read of the peer's memory at `from` to `into`.
    ///
    /// # Errors
    ///
    /// [`Error::Post`]; nothing was posted then.
    ///
    /// # Safety
    ///
    /// For `into`, as [`post_recv`](Self::post_recv). Nobody writes to the same number of bytes at
    /// `from` until then.
    pub unsafe fn post_rdma_read(
        &self,
        wr_id: u64,
        into: Sge,
        from: RemoteMemory,
    ) -> Result<(), Error> {
        // SAFETY: the contract of `post` for an RDMA read, of which the caller keeps it.
        unsafe { self.post(ibv_wr_opcode::IBV_WR_RDMA_READ, wr_id, into, Some(from)) }
    }

    /// Posts to the send queue.
    ///
    /// # Safety
    ///
    /// The device may do to the memory at `local` and `remote` what `opcode` says until the
    /// completion has been polled or the queue pair destroyed. Until then nobody writes to what it
    /// reads, nobody touches what it writes, and the registrations named live.
    unsafe fn post(
        &self,
        opcode: ibv_wr_opcode::Type,
        wr_id: u64,
        local: Sge,
        remote: Option<RemoteMemory>,
    ) -> Result<(), Error> {
        let mut sge = local.to_verbs();
        // SAFETY: a C struct of integers, pointers and unions of such, for which zero is a value.
        let mut wr: ibv_send_wr = unsafe { mem::zeroed() };
        wr.wr_id = wr_id;
        wr.sg_list = &raw mut sge;
        wr.num_sge = 1;
        wr.opcode = opcode;
        wr.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
        if let Some(remote) = remote {
            wr.wr = wr_t {
                rdma: rdma_t {
                    remote_addr: remote.addr,
                    rkey: remote.rkey,
                },
            };
        }
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair is alive; libibverbs copies `wr` and `sge` before it returns; the
        // caller answers for the memory. The operation's function pointer is set: libibverbs fills
        // in one that fails for what a provider lacks.
        let posted = unsafe { ibv_post_send(self.as_ptr(), &raw mut wr, &raw mut bad) };
        check(posted).map_err(|source| Error::Post { source })
    }

    /// Destroys the queue pair. When it returns `Ok`, the device has let go of every work request
    /// posted to it, and touches no memory for them.
    ///
    /// # Errors
    ///
    /// The queue pair, as it was, and the system's error.
    pub fn destroy(mut self) -> Result<(), (Self, io::Error)> {
        if let Err(forked) = self.pd.context().check_process() {
            return Err((self, io::Error::other(forked)));
        }
        match self.destroy_once() {
            Ok(()) => {
                self.live = false;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// If it returns `Ok`, `self` must not be used afterwards.
    fn destroy_once(&mut self) -> io::Result<()> {
        // SAFETY: `qp` came from `ibv_create_qp` and was not destroyed: `destroy` consumes `self`
        // when it succeeds, and `live` then keeps `drop` from a second time. A failing
        // `ibv_destroy_qp` leaves it as it was. Domain and completion queues are alive: fields.
        check(unsafe { ibv_destroy_qp(self.as_ptr()) })
    }

    /// Valid as long as `self` is.
    fn as_ptr(&self) -> *mut ibv_qp {
        self.qp.as_ptr()
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        if !self.live || !self.pd.context().is_ours() {
            return;
        }
        if let Err(error) = self.destroy_once() {
            tracing::warn!(number = self.number, %error, "cannot destroy the queue pair");
        }
    }
}
