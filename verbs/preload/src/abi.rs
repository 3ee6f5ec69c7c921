//! Declares the structures through which work requests and completions pass, as libibverbs's header
//! defines them. A test compares each offset with the header's.

use std::ffi::{c_int, c_uint, c_void};

use regcache_verbs_types::{Context, Pd};

/// `IBV_WC_SUCCESS`.
pub(crate) const SUCCESS: c_int = 0;
/// `IBV_WC_RECV`, which is set in the opcode of a successful completion of a receive.
pub(crate) const RECEIVED: c_int = 1 << 7;

/// `enum ibv_send_flags`.
pub(crate) mod send {
    use std::ffi::c_uint;

    pub(crate) const SIGNALED: c_uint = 1 << 1;
    pub(crate) const INLINE: c_uint = 1 << 3;
}

/// `enum ibv_qp_type`: the types whose queues complete in order.
pub(crate) mod qp_type {
    use std::ffi::c_int;

    pub(crate) const RC: c_int = 2;
    pub(crate) const UD: c_int = 4;
}

/// `struct ibv_sge`.
#[repr(C)]
pub(crate) struct Sge {
    pub(crate) addr: u64,
    pub(crate) length: u32,
    pub(crate) lkey: u32,
}

/// The part of `struct ibv_send_wr` that the shim reads.
#[repr(C)]
pub(crate) struct SendWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut SendWr,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
    pub(crate) opcode: c_int,
    pub(crate) send_flags: c_uint,
}

/// `struct ibv_recv_wr`.
#[repr(C)]
pub(crate) struct RecvWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut RecvWr,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
}

/// The part of `struct ibv_mw_bind` that the shim reads.
#[repr(C)]
pub(crate) struct MwBind {
    pub(crate) wr_id: u64,
    pub(crate) send_flags: c_uint,
}

/// `struct ibv_wc`.
#[repr(C)]
pub(crate) struct Wc {
    pub(crate) wr_id: u64,
    pub(crate) status: c_int,
    pub(crate) opcode: c_int,
    pub(crate) vendor_err: u32,
    pub(crate) byte_len: u32,
    pub(crate) imm_data: u32,
    pub(crate) qp_num: u32,
    pub(crate) src_qp: u32,
    pub(crate) wc_flags: c_uint,
    pub(crate) pkey_index: u16,
    pub(crate) slid: u16,
    pub(crate) sl: u8,
    pub(crate) dlid_path_bits: u8,
}

impl Wc {
    /// Returns the status in the lower half, and the opcode in the upper half.
    #[inline]
    pub(crate) fn status_and_opcode(&self) -> u64 {
        if cfg!(target_endian = "little") {
            // SAFETY: the opcode follows the status. One load is cheaper than two.
            return unsafe { (&raw const self.status).cast::<u64>().read_unaligned() };
        }
        u64::from(self.status.cast_unsigned()) | u64::from(self.opcode.cast_unsigned()) << 32
    }
}

/// The part of `struct ibv_srq` that the shim reads.
#[repr(C)]
pub(crate) struct IbvSrq {
    pub(crate) context: *mut Context,
}

/// `struct ibv_qp`.
#[repr(C)]
pub(crate) struct IbvQp {
    pub(crate) context: *mut Context,
    qp_context: *mut c_void,
    pub(crate) pd: *mut Pd,
    pub(crate) send_cq: *mut IbvCq,
    pub(crate) recv_cq: *mut IbvCq,
    pub(crate) srq: *mut IbvSrq,
    handle: u32,
    pub(crate) qp_num: u32,
    state: c_int,
    pub(crate) qp_type: c_int,
    mutex: libc::pthread_mutex_t,
    cond: libc::pthread_cond_t,
    events_completed: u32,
}

/// `struct ibv_cq`, which is also the first part of `struct ibv_cq_ex`.
#[repr(C)]
pub(crate) struct IbvCq {
    pub(crate) context: *mut Context,
    channel: *mut c_void,
    cq_context: *mut c_void,
    handle: u32,
    cqe: c_int,
    mutex: libc::pthread_mutex_t,
    cond: libc::pthread_cond_t,
    comp_events_completed: u32,
    async_events_completed: u32,
}

pub(crate) type StartPoll = unsafe extern "C" fn(*mut IbvCqEx, *mut c_void) -> c_int;
pub(crate) type NextPoll = unsafe extern "C" fn(*mut IbvCqEx) -> c_int;
pub(crate) type EndPoll = unsafe extern "C" fn(*mut IbvCqEx);
type ReadOpcode = unsafe extern "C" fn(*mut IbvCqEx) -> c_int;
type ReadWord = unsafe extern "C" fn(*mut IbvCqEx) -> u32;

/// The part of `struct ibv_cq_ex` that the shim reads.
#[repr(C)]
pub(crate) struct IbvCqEx {
    base: IbvCq,
    comp_mask: u32,
    pub(crate) status: c_int,
    wr_id: u64,
    pub(crate) start_poll: Option<StartPoll>,
    pub(crate) next_poll: Option<NextPoll>,
    pub(crate) end_poll: Option<EndPoll>,
    pub(crate) read_opcode: Option<ReadOpcode>,
    read_vendor_err: Option<ReadWord>,
    read_byte_len: Option<ReadWord>,
    read_imm_data: Option<ReadWord>,
    pub(crate) read_qp_num: Option<ReadWord>,
}

type Wr0 = unsafe extern "C" fn(*mut IbvQpEx);
type Wr1 = unsafe extern "C" fn(*mut IbvQpEx, u32);

/// `struct ibv_qp_ex` of rdma-core 31 to 44. Later versions have more functions at the end. A
/// program gets these later functions only with flags that the shim does not know.
#[repr(C)]
pub(crate) struct IbvQpEx {
    base: IbvQp,
    comp_mask: u64,
    wr_id: u64,
    pub(crate) wr_flags: c_uint,
    pub(crate) post: ExtendedPost,
}

/// The functions in `struct ibv_qp_ex`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ExtendedPost {
    pub(crate) atomic_cmp_swp: Option<unsafe extern "C" fn(*mut IbvQpEx, u32, u64, u64, u64)>,
    pub(crate) atomic_fetch_add: Option<unsafe extern "C" fn(*mut IbvQpEx, u32, u64, u64)>,
    pub(crate) bind_mw: Option<unsafe extern "C" fn(*mut IbvQpEx, *mut c_void, u32, *mut c_void)>,
    pub(crate) local_inv: Option<Wr1>,
    pub(crate) rdma_read: Option<unsafe extern "C" fn(*mut IbvQpEx, u32, u64)>,
    pub(crate) rdma_write: Option<unsafe extern "C" fn(*mut IbvQpEx, u32, u64)>,
    pub(crate) rdma_write_imm: Option<unsafe extern "C" fn(*mut IbvQpEx, u32, u64, u32)>,
    pub(crate) send: Option<Wr0>,
    pub(crate) send_imm: Option<Wr1>,
    pub(crate) send_inv: Option<Wr1>,
    pub(crate) send_tso: Option<unsafe extern "C" fn(*mut IbvQpEx, *mut c_void, u16, u16)>,
    set_ud_addr: *mut c_void,
    set_xrc_srqn: *mut c_void,
    set_inline_data: *mut c_void,
    set_inline_data_list: *mut c_void,
    pub(crate) set_sge: Option<unsafe extern "C" fn(*mut IbvQpEx, u32, u64, u32)>,
    pub(crate) set_sge_list: Option<unsafe extern "C" fn(*mut IbvQpEx, usize, *const Sge)>,
    pub(crate) start: Option<Wr0>,
    pub(crate) complete: Option<unsafe extern "C" fn(*mut IbvQpEx) -> c_int>,
    pub(crate) abort: Option<Wr0>,
}

/// The flags of `enum ibv_qp_create_send_ops_flags` for the operations in [`ExtendedPost`].
pub(crate) const KNOWN_SEND_OPS: u64 = (1 << 11) - 1;

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct QpCap {
    pub(crate) max_send_wr: u32,
    pub(crate) max_recv_wr: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`, with which `struct ibv_qp_init_attr_ex` begins.
#[repr(C)]
pub(crate) struct QpInitAttr {
    qp_context: *mut c_void,
    send_cq: *mut IbvCq,
    recv_cq: *mut IbvCq,
    srq: *mut IbvSrq,
    pub(crate) cap: QpCap,
    qp_type: c_int,
    pub(crate) sq_sig_all: c_int,
}

/// `struct ibv_qp_init_attr_ex`.
#[repr(C)]
pub(crate) struct QpInitAttrEx {
    qp_context: *mut c_void,
    send_cq: *mut IbvCq,
    recv_cq: *mut IbvCq,
    srq: *mut IbvSrq,
    cap: QpCap,
    qp_type: c_int,
    sq_sig_all: c_int,
    pub(crate) comp_mask: u32,
    pd: *mut Pd,
    xrcd: *mut c_void,
    create_flags: u32,
    max_tso_header: u16,
    rwq_ind_tbl: *mut c_void,
    rx_hash_conf: [u64; 3],
    source_qpn: u32,
    pub(crate) send_ops_flags: u64,
}

/// `enum ibv_qp_init_attr_mask`.
pub(crate) mod qp_init {
    pub(crate) const PD: u32 = 1;
    pub(crate) const CREATE_FLAGS: u32 = 1 << 2;
    pub(crate) const SEND_OPS: u32 = 1 << 6;
}

/// `struct ibv_srq_init_attr`.
#[repr(C)]
pub(crate) struct SrqInitAttr {
    srq_context: *mut c_void,
    pub(crate) max_wr: u32,
    pub(crate) max_sge: u32,
    srq_limit: u32,
}

/// The part of `struct ibv_qp_attr` that the shim reads.
#[repr(C)]
pub(crate) struct QpAttr {
    pub(crate) qp_state: c_int,
}

/// `IBV_QP_STATE`, which tells `ibv_modify_qp` to change the state.
pub(crate) const QP_STATE: c_int = 1;
/// `IBV_QPS_RESET`.
pub(crate) const QPS_RESET: c_int = 0;

/// The part of `struct ibv_cq_init_attr_ex` that the shim reads.
#[repr(C)]
pub(crate) struct CqInitAttrEx {
    cqe: u32,
    cq_context: *mut c_void,
    channel: *mut c_void,
    comp_vector: u32,
    pub(crate) wc_flags: u64,
}

/// `IBV_WC_EX_WITH_QP_NUM`.
pub(crate) const WC_EX_WITH_QP_NUM: u64 = 1 << 2;

pub(crate) type BindMw = unsafe extern "C" fn(*mut IbvQp, *mut c_void, *mut MwBind) -> c_int;
pub(crate) type PollCq = unsafe extern "C" fn(*mut IbvCq, c_int, *mut Wc) -> c_int;
pub(crate) type PostSrqRecv =
    unsafe extern "C" fn(*mut IbvSrq, *mut RecvWr, *mut *mut RecvWr) -> c_int;
pub(crate) type PostSend = unsafe extern "C" fn(*mut IbvQp, *mut SendWr, *mut *mut SendWr) -> c_int;
pub(crate) type PostRecv = unsafe extern "C" fn(*mut IbvQp, *mut RecvWr, *mut *mut RecvWr) -> c_int;

/// `struct ibv_context_ops`: the functions that the header's inline functions call.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ContextOps {
    before_bind_mw: [*mut c_void; 8],
    pub(crate) bind_mw: Option<BindMw>,
    before_poll_cq: [*mut c_void; 2],
    pub(crate) poll_cq: Option<PollCq>,
    before_post_srq_recv: [*mut c_void; 8],
    pub(crate) post_srq_recv: Option<PostSrqRecv>,
    before_post_send: [*mut c_void; 4],
    pub(crate) post_send: Option<PostSend>,
    pub(crate) post_recv: Option<PostRecv>,
    after_post_recv: [*mut c_void; 5],
}

/// `struct ibv_context`.
#[repr(C)]
pub(crate) struct OpenContext {
    device: *mut c_void,
    pub(crate) ops: ContextOps,
    pub(crate) cmd_fd: c_int,
    async_fd: c_int,
    num_comp_vectors: c_int,
    mutex: libc::pthread_mutex_t,
    abi_compat: usize,
}

pub(crate) type CreateWq = unsafe extern "C" fn(*mut Context, *mut c_void) -> *mut c_void;
pub(crate) type CreateCqEx = unsafe extern "C" fn(*mut Context, *mut CqInitAttrEx) -> *mut IbvCqEx;
pub(crate) type OpenQp = unsafe extern "C" fn(*mut Context, *mut c_void) -> *mut IbvQp;
pub(crate) type CreateQpEx = unsafe extern "C" fn(*mut Context, *mut QpInitAttrEx) -> *mut IbvQp;
pub(crate) type CreateSrqEx = unsafe extern "C" fn(*mut Context, *mut c_void) -> *mut IbvSrq;

/// The part of `struct verbs_context` from `create_wq` to the end. The structure grows at its
/// front, so this part keeps its layout.
#[repr(C)]
pub(crate) struct VerbsContext {
    pub(crate) create_wq: Option<CreateWq>,
    query_rt_values: *mut c_void,
    pub(crate) create_cq_ex: Option<CreateCqEx>,
    before_open_qp: [*mut c_void; 6],
    pub(crate) open_qp: Option<OpenQp>,
    pub(crate) create_qp_ex: Option<CreateQpEx>,
    get_srq_num: *mut c_void,
    pub(crate) create_srq_ex: Option<CreateSrqEx>,
    before_sz: [*mut c_void; 3],
    sz: usize,
    context: OpenContext,
}

impl VerbsContext {
    /// Returns the extended part of a context; null if the context has no such part, or a smaller
    /// one.
    ///
    /// # Safety
    ///
    /// The context is open.
    pub(crate) unsafe fn of(context: *mut Context) -> *mut Self {
        const EXTENDED: usize = usize::MAX;
        let open = context.cast::<OpenContext>();
        // SAFETY: the contract says that the context is open.
        if unsafe { (*open).abi_compat } != EXTENDED {
            return std::ptr::null_mut();
        }
        let this = context
            .wrapping_byte_sub(std::mem::offset_of!(Self, context))
            .cast::<Self>();
        // SAFETY: the size of the extended part lies directly before an extended context.
        if unsafe { (*this).sz } < size_of::<Self>() {
            return std::ptr::null_mut();
        }
        this
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use rdma_sys as theirs;

    use super::*;

    macro_rules! same {
        ($ours:ident = $theirs:ident: $($field:ident = $($name:ident).+),* $(,)?) => {
            $(assert_eq!(
                offset_of!($ours, $field),
                offset_of!(theirs::$theirs, $($name).+),
                stringify!($theirs.$($name).+)
            );)*
        };
    }

    #[test]
    fn every_offset_is_the_headers() {
        same!(Sge = ibv_sge: addr = addr, length = length, lkey = lkey);
        same!(SendWr = ibv_send_wr:
            next = next, sg_list = sg_list, num_sge = num_sge, opcode = opcode,
            send_flags = send_flags);
        same!(RecvWr = ibv_recv_wr: next = next, sg_list = sg_list, num_sge = num_sge);
        same!(MwBind = ibv_mw_bind: send_flags = send_flags);
        same!(Wc = ibv_wc: status = status, opcode = opcode, qp_num = qp_num);
        same!(IbvSrq = ibv_srq: context = context);
        same!(IbvQp = ibv_qp:
            context = context, pd = pd, send_cq = send_cq, recv_cq = recv_cq, srq = srq,
            qp_num = qp_num, qp_type = qp_type);
        same!(IbvCq = ibv_cq: context = context);
        same!(IbvCqEx = ibv_cq_ex:
            status = status, start_poll = start_poll, next_poll = next_poll,
            end_poll = end_poll, read_opcode = read_opcode, read_qp_num = read_qp_num);
        same!(IbvQpEx = ibv_qp_ex: wr_flags = wr_flags, post = wr_atomic_cmp_swp);
        same!(QpInitAttr = ibv_qp_init_attr: cap = cap, sq_sig_all = sq_sig_all);
        same!(QpCap = ibv_qp_cap:
            max_send_wr = max_send_wr, max_recv_wr = max_recv_wr,
            max_send_sge = max_send_sge, max_recv_sge = max_recv_sge);
        same!(QpInitAttrEx = ibv_qp_init_attr_ex:
            cap = cap, sq_sig_all = sq_sig_all, comp_mask = comp_mask,
            send_ops_flags = send_ops_flags);
        same!(SrqInitAttr = ibv_srq_init_attr: max_wr = attr.max_wr, max_sge = attr.max_sge);
        same!(QpAttr = ibv_qp_attr: qp_state = qp_state);
        same!(CqInitAttrEx = ibv_cq_init_attr_ex: wc_flags = wc_flags);
        same!(ContextOps = ibv_context_ops:
            bind_mw = bind_mw, poll_cq = poll_cq, post_srq_recv = post_srq_recv,
            post_send = post_send, post_recv = post_recv);
        same!(OpenContext = ibv_context: ops = ops, abi_compat = abi_compat);
        assert_eq!(size_of::<Sge>(), size_of::<theirs::ibv_sge>());
        assert_eq!(size_of::<Wc>(), size_of::<theirs::ibv_wc>());
        assert_eq!(
            size_of::<ContextOps>(),
            size_of::<theirs::ibv_context_ops>()
        );
        assert_eq!(size_of::<OpenContext>(), size_of::<theirs::ibv_context>());
    }

    /// The compared fields are at the end of structures that grow at the front. So only their
    /// distance from the end is fixed.
    #[test]
    fn every_distance_from_the_end_is_the_headers() {
        macro_rules! same_distance {
            ($($field:ident),*) => {
                $(assert_eq!(
                    offset_of!(VerbsContext, context) - offset_of!(VerbsContext, $field),
                    offset_of!(theirs::verbs_context, context)
                        - offset_of!(theirs::verbs_context, $field),
                    stringify!($field)
                );)*
            };
        }
        same_distance!(
            create_wq,
            create_cq_ex,
            open_qp,
            create_qp_ex,
            create_srq_ex,
            sz
        );
        macro_rules! same_function {
            ($($ours:ident = $theirs:ident),*) => {
                $(assert_eq!(
                    offset_of!(ExtendedPost, $ours),
                    offset_of!(theirs::ibv_qp_ex, $theirs)
                        - offset_of!(theirs::ibv_qp_ex, wr_atomic_cmp_swp),
                    stringify!($theirs)
                );)*
            };
        }
        same_function!(
            atomic_fetch_add = wr_atomic_fetch_add,
            bind_mw = wr_bind_mw,
            local_inv = wr_local_inv,
            rdma_read = wr_rdma_read,
            rdma_write = wr_rdma_write,
            rdma_write_imm = wr_rdma_write_imm,
            send = wr_send,
            send_imm = wr_send_imm,
            send_inv = wr_send_inv,
            send_tso = wr_send_tso,
            set_sge = wr_set_sge,
            set_sge_list = wr_set_sge_list,
            start = wr_start,
            complete = wr_complete,
            abort = wr_abort
        );
    }
}
