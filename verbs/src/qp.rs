//! [`Qp`]: a reliably connected queue pair.

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

/// The exponent of the time to wait for an acknowledgement before sending again: 4.096 us * 2^17 =
/// 0.54 s. Hardware usually uses 2^14, which is 67 ms. On a busy machine a software device may get
/// no CPU time for longer than that.
const ACK_TIMEOUT: u8 = 17;
/// The number of times that a packet is sent again without an acknowledgement.
pub(crate) const RETRIES: u8 = 7;

/// The number of retries if the peer has posted no receive. 7 means no limit.
pub(crate) const RNR_RETRIES: u8 = 7;
/// The code of the time between retries to a peer that has posted no receive. 12 means 0.64 ms.
const RNR_TIMER: u8 = 12;

/// The number of RDMA reads that may be in flight at once.
pub(crate) const READS: u8 = 1;

/// The mask of a packet sequence number, which has 24 bits.
const PSN_MASK: u64 = 0xff_ffff;

/// Sets the timers and the numbers of retries.
pub(crate) fn patience(attr: &mut ibv_qp_attr) {
    attr.min_rnr_timer = RNR_TIMER;
    attr.rnr_retry = RNR_RETRIES;
    attr.timeout = ACK_TIMEOUT;
    attr.retry_cnt = RETRIES;
}

/// A piece of this process's memory, for a work request.
#[derive(Clone, Copy, Debug)]
pub struct Sge {
    /// The address of the first byte.
    pub addr: u64,
    /// The length in bytes. It must not be 0, because devices interpret 0 as 2^31.
    pub length: u32,
    /// The local key of a registration that covers this memory.
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

/// The start of a piece of the peer's memory.
#[derive(Clone, Copy, Debug)]
pub struct RemoteMemory {
    /// The address in the peer's process.
    pub addr: u64,
    /// The remote key of a registration that the peer made for this memory.
    pub rkey: u32,
}

/// A reliably connected (RC) queue pair. Each work request has one piece of memory, and produces a
/// completion.
#[derive(Debug)]
pub struct Qp {
    qp: NonNull<ibv_qp>,
    /// False after the queue pair was destroyed. Only methods that consume `self` destroy it.
    live: bool,
    number: u32,
    /// The sequence number of the first packet that the queue pair sends.
    psn: u32,
    pd: Arc<Pd>,
    _send_cq: Arc<Cq>,
    _recv_cq: Arc<Cq>,
}

// SAFETY: libibverbs allows any verb on any object from any thread, as for `Context`. Providers
// lock each queue while posting.
unsafe impl Send for Qp {}
// SAFETY: the reasons for `Send` also hold for `Sync`.
unsafe impl Sync for Qp {}

impl Qp {
    /// Creates an unconnected queue pair in `pd`, with room for `depth` sends and `depth` receives.
    /// The completion queues must have room for the completions of all these work requests.
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
        // SAFETY: zero (null) is a valid value of this C struct of integers and pointers.
        let mut init: ibv_qp_init_attr = unsafe { mem::zeroed() };
        init.send_cq = send_cq.as_ptr();
        init.recv_cq = recv_cq.as_ptr();
        init.qp_type = ibv_qp_type::IBV_QPT_RC;
        init.cap.max_send_wr = depth;
        init.cap.max_recv_wr = depth;
        init.cap.max_send_sge = 1;
        init.cap.max_recv_sge = 1;
        // SAFETY: the domain and the queues are alive while borrowed, and the queue pair keeps an
        // `Arc` of each. `init` lives through the call.
        let qp = unsafe { ibv_create_qp(pd.as_ptr(), &raw mut init) };
        let qp = check_ptr(qp).map_err(|source| Error::CreateQueue {
            what: "queue pair",
            source,
        })?;
        // SAFETY: `qp` was just made, and no other code has the pointer.
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

    /// Returns the 24-bit number of the queue pair. Packets have this number to select the queue
    /// pair.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Connects two new queue pairs of one port to each other.
    ///
    /// The first sequence number of each direction is random. So a late packet of an earlier queue
    /// pair with the same number does not match this connection.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectQp`]. Destroy both queue pairs then.
    pub fn connect(one: &Self, other: &Self, route: &Route) -> Result<(), Error> {
        one.to_rts(other, route)?;
        other.to_rts(one, route)
    }

    /// Moves the queue pair from RESET through INIT and RTR to RTS.
    fn to_rts(&self, peer: &Self, route: &Route) -> Result<(), Error> {
        type Mask = ibv_qp_attr_mask;
        // SAFETY: zero is a valid value of this C struct, which consists of integers and of a union
        // of integers.
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
        // SAFETY: the queue pair is alive, and all fields of `attr` are initialised. Over a
        // connection the peer accesses only memory that was registered for remote access. This side
        // accesses memory by work requests, and posting them is unsafe.
        check(unsafe { ibv_modify_qp(self.as_ptr(), attr, mask) })
    }

    /// Posts a receive into `into`. Each send of the peer uses the oldest posted receive.
    ///
    /// # Errors
    ///
    /// [`Error::Post`]. Nothing was posted then.
    ///
    /// # Safety
    ///
    /// The device may write to the memory at `into` until the completion was polled or the queue
    /// pair was destroyed. Until then no other code uses the memory, and the registration of
    /// `into.lkey` is not deregistered.
    pub unsafe fn post_recv(&self, wr_id: u64, into: Sge) -> Result<(), Error> {
        let mut sge = into.to_verbs();
        let mut wr = ibv_recv_wr {
            wr_id,
            next: ptr::null_mut(),
            sg_list: &raw mut sge,
            num_sge: 1,
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair is alive, and libibverbs copies `wr` and `sge` before it returns.
        // The caller guarantees the contract for the memory. The operation's function pointer is
        // set: if a provider lacks the operation, libibverbs sets a function that fails.
        let posted = unsafe { ibv_post_recv(self.as_ptr(), &raw mut wr, &raw mut bad) };
        check(posted).map_err(|source| Error::Post { source })
    }

    /// Posts a send of `from`. The peer must have posted a receive of that length or more.
    ///
    /// # Errors
    ///
    /// [`Error::Post`]. Nothing was posted then.
    ///
    /// # Safety
    ///
    /// The device may read the memory at `from` until the completion was polled or the queue pair
    /// was destroyed. Until then no code writes to the memory, and the registration of `from.lkey`
    /// is not deregistered.
    pub unsafe fn post_send(&self, wr_id: u64, from: Sge) -> Result<(), Error> {
        // SAFETY: the caller keeps the contract of `post` for a send.
        unsafe { self.post(ibv_wr_opcode::IBV_WR_SEND, wr_id, from, None) }
    }

    /// Posts an RDMA write of `from` to the peer's memory at `to`.
    ///
    /// # Errors
    ///
    /// [`Error::Post`]. Nothing was posted then.
    ///
    /// # Safety
    ///
    /// The contract of [`post_send`](Self::post_send) holds for `from`. If `to` is memory of this
    /// process, no other code uses the `from.length` bytes there. This holds until the completion
    /// was polled or the queue pair was destroyed.
    pub unsafe fn post_rdma_write(
        &self,
        wr_id: u64,
        from: Sge,
        to: RemoteMemory,
    ) -> Result<(), Error> {
        // SAFETY: the caller keeps the contract of `post` for an RDMA write.
        unsafe { self.post(ibv_wr_opcode::IBV_WR_RDMA_WRITE, wr_id, from, Some(to)) }
    }

    /// Posts an RDMA read of the peer's memory at `from` to `into`.
    ///
    /// # Errors
    ///
    /// [`Error::Post`]. Nothing was posted then.
    ///
    /// # Safety
    ///
    /// The contract of [`post_recv`](Self::post_recv) holds for `into`. If `from` is memory of this
    /// process, no code writes to the `into.length` bytes there. This holds until the completion
    /// was polled or the queue pair was destroyed.
    pub unsafe fn post_rdma_read(
        &self,
        wr_id: u64,
        into: Sge,
        from: RemoteMemory,
    ) -> Result<(), Error> {
        // SAFETY: the caller keeps the contract of `post` for an RDMA read.
        unsafe { self.post(ibv_wr_opcode::IBV_WR_RDMA_READ, wr_id, into, Some(from)) }
    }

    /// Posts a work request to the send queue.
    ///
    /// # Safety
    ///
    /// The device may execute `opcode` on the memory at `local` and `remote` until the completion
    /// was polled or the queue pair was destroyed. Until then no code writes to memory that the
    /// device reads, and no code uses memory that the device writes. The registrations are not
    /// deregistered until then.
    unsafe fn post(
        &self,
        opcode: ibv_wr_opcode::Type,
        wr_id: u64,
        local: Sge,
        remote: Option<RemoteMemory>,
    ) -> Result<(), Error> {
        let mut sge = local.to_verbs();
        // SAFETY: zero is a valid value of this C struct, which consists of integers, pointers and
        // unions of them.
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
        // SAFETY: the queue pair is alive, and libibverbs copies `wr` and `sge` before it returns.
        // The caller guarantees the contract for the memory. The operation's function pointer is
        // set: if a provider lacks the operation, libibverbs sets a function that fails.
        let posted = unsafe { ibv_post_send(self.as_ptr(), &raw mut wr, &raw mut bad) };
        check(posted).map_err(|source| Error::Post { source })
    }

    /// Destroys the queue pair. After `Ok`, the device accesses no memory for its work requests.
    ///
    /// # Errors
    ///
    /// The unchanged queue pair, with the system's error. The queue pair's work requests may still
    /// be outstanding.
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

    /// Destroys the queue pair. After `Ok`, `self` must not be used.
    fn destroy_once(&mut self) -> io::Result<()> {
        // SAFETY: `qp` came from `ibv_create_qp` and was not destroyed. A successful `destroy`
        // consumes `self`, and clears `live` to prevent a second destruction in `drop`. If
        // `ibv_destroy_qp` fails, the queue pair is unchanged. The domain and the completion queues
        // are alive, because `self` has an `Arc` of each.
        check(unsafe { ibv_destroy_qp(self.as_ptr()) })
    }

    /// Returns the pointer to the C object, which is valid while `self` lives.
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
