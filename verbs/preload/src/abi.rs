//! The structures of libibverbs that work requests and completions go through, as its header has
//! them. A test compares each offset with the header's.

use std::ffi::{c_int, c_uint, c_void};

use regcache_verbs_abi::{Context, Pd};

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

/// `enum ibv_qp_type`: those whose queues complete in order.
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

/// `struct ibv_send_wr`, up to what is looked at.
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

/// `struct ibv_mw_bind`, up to what is looked at.
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

/// `struct ibv_srq`, up to what is looked at.
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

/// `struct ibv_cq`, and as well the first part of `struct ibv_cq_ex`.
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

/// `struct ibv_cq_ex`, up to what is looked at.
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

/// `struct ibv_qp_ex`, as rdma-core 31 to 44 have it. Later ones have more at the end, for
/// operations that have to be asked for by flags of their own.
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

/// `enum ibv_qp_create_send_ops_flags`: all operations that [`ExtendedPost`] has.
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

/// `struct ibv_qp_attr`, up to what is looked at.
#[repr(C)]
pub(crate) struct QpAttr {
    pub(crate) qp_state: c_int,
}

/// `IBV_QP_STATE`: that `ibv_modify_qp` changes the state.
pub(crate) const QP_STATE: c_int = 1;
/// `IBV_QPS_RESET`.
pub(crate) const QPS_RESET: c_int = 0;

/// `struct ibv_cq_init_attr_ex`, up to what is looked at.
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

/// `struct ibv_context_ops`: what the inline functions of the header call.
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
    cmd_fd: c_int,
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

/// `struct verbs_context`, from `create_wq` to its end. It "grows up": this part stays as it is.
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
    /// The extended part of a context; null if it has none, or less than this.
    ///
    /// # Safety
    ///
    /// The context is open.
    pub(crate) unsafe fn of(context: *mut Context) -> *mut Self {
        const EXTENDED: usize = usize::MAX;
        let open = context.cast::<OpenContext>();
        // SAFETY: by the contract.
        if unsafe { (*open).abi_compat } != EXTENDED {
            return std::ptr::null_mut();
        }
        let this = context
            .wrapping_byte_sub(std::mem::offset_of!(Self, context))
            .cast::<Self>();
        // SAFETY: an extended context has its size right in front of it.
        if unsafe { (*this).sz } < size_of::<Self>() {
            return std::ptr::null_mut();
        }
        this
    }
}
