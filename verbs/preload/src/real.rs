//! Finds libibverbs's own functions, which the shim's functions call.
//!
//! libibverbs may be loaded with the program, or later by `dlopen`. In the second case `RTLD_NEXT`
//! does not find libibverbs. So the shim looks for libibverbs at the first call that needs it. The
//! shim then keeps the library's handle, because a library that has made registrations must not be
//! unloaded.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use memmap2::MmapMut;
use regcache::thread_word;
use regcache_verbs_types::{Context, Mr, Pd};

use crate::abi::{IbvCq, IbvQp, IbvQpEx, IbvSrq, QpAttr, QpInitAttr, SrqInitAttr};
use crate::elf;

pub(crate) type RegMr = unsafe extern "C" fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
pub(crate) type RegMrIova =
    unsafe extern "C" fn(*mut Pd, *mut c_void, usize, u64, c_int) -> *mut Mr;
pub(crate) type RegMrIova2 =
    unsafe extern "C" fn(*mut Pd, *mut c_void, usize, u64, c_uint) -> *mut Mr;
pub(crate) type ReregMr =
    unsafe extern "C" fn(*mut Mr, c_int, *mut Pd, *mut c_void, usize, c_int) -> c_int;
pub(crate) type DeregMr = unsafe extern "C" fn(*mut Mr) -> c_int;
pub(crate) type DeallocPd = unsafe extern "C" fn(*mut Pd) -> c_int;
pub(crate) type UnimportPd = unsafe extern "C" fn(*mut Pd);
pub(crate) type CloseDevice = unsafe extern "C" fn(*mut Context) -> c_int;
pub(crate) type OpenDevice = unsafe extern "C" fn(*mut c_void) -> *mut Context;
pub(crate) type ImportDevice = unsafe extern "C" fn(c_int) -> *mut Context;
pub(crate) type CreateCq =
    unsafe extern "C" fn(*mut Context, c_int, *mut c_void, *mut c_void, c_int) -> *mut IbvCq;
pub(crate) type DestroyCq = unsafe extern "C" fn(*mut IbvCq) -> c_int;
pub(crate) type CreateQp = unsafe extern "C" fn(*mut Pd, *mut QpInitAttr) -> *mut IbvQp;
pub(crate) type ModifyQp = unsafe extern "C" fn(*mut IbvQp, *mut QpAttr, c_int) -> c_int;
pub(crate) type DestroyQp = unsafe extern "C" fn(*mut IbvQp) -> c_int;
pub(crate) type CreateSrq = unsafe extern "C" fn(*mut Pd, *mut SrqInitAttr) -> *mut IbvSrq;
pub(crate) type DestroySrq = unsafe extern "C" fn(*mut IbvSrq) -> c_int;
pub(crate) type AllocPd = unsafe extern "C" fn(*mut Context) -> *mut Pd;
pub(crate) type CreateAh = unsafe extern "C" fn(*mut Pd, *mut c_void) -> *mut c_void;
type QpToQpEx = unsafe extern "C" fn(*mut IbvQp) -> *mut IbvQpEx;
type ForkRange = unsafe extern "C" fn(*mut c_void, usize) -> c_int;
type IsForkInitialized = unsafe extern "C" fn() -> c_int;
type Dlvsym = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> *mut c_void;

/// A function of libibverbs, which is looked up by name and version at its first use.
pub(crate) struct Function {
    pub(crate) name: &'static CStr,
    pub(crate) version: &'static CStr,
    at: AtomicPtr<c_void>,
}

impl Function {
    const fn new(name: &'static CStr, version: &'static CStr) -> Self {
        Self {
            name,
            version,
            at: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Returns the address of the function; null if libibverbs is not loaded or lacks the function.
    pub(crate) fn address(&self) -> *mut c_void {
        let known = self.at.load(Ordering::Acquire);
        if !known.is_null() {
            return known;
        }
        let found = find(self.name, self.version);
        if !found.is_null() {
            self.at.store(found, Ordering::Release);
        }
        found
    }
}

pub(crate) static REG_MR: Function = Function::new(c"ibv_reg_mr", c"IBVERBS_1.1");
pub(crate) static REG_MR_IOVA: Function = Function::new(c"ibv_reg_mr_iova", c"IBVERBS_1.7");
pub(crate) static REG_MR_IOVA2: Function = Function::new(c"ibv_reg_mr_iova2", c"IBVERBS_1.8");
pub(crate) static REREG_MR: Function = Function::new(c"ibv_rereg_mr", c"IBVERBS_1.1");
pub(crate) static DEREG_MR: Function = Function::new(c"ibv_dereg_mr", c"IBVERBS_1.1");
pub(crate) static DEALLOC_PD: Function = Function::new(c"ibv_dealloc_pd", c"IBVERBS_1.1");
pub(crate) static UNIMPORT_PD: Function = Function::new(c"ibv_unimport_pd", c"IBVERBS_1.10");
pub(crate) static CLOSE_DEVICE: Function = Function::new(c"ibv_close_device", c"IBVERBS_1.1");
pub(crate) static OPEN_DEVICE: Function = Function::new(c"ibv_open_device", c"IBVERBS_1.1");
pub(crate) static IMPORT_DEVICE: Function = Function::new(c"ibv_import_device", c"IBVERBS_1.10");
pub(crate) static CREATE_CQ: Function = Function::new(c"ibv_create_cq", c"IBVERBS_1.1");
pub(crate) static DESTROY_CQ: Function = Function::new(c"ibv_destroy_cq", c"IBVERBS_1.1");
pub(crate) static CREATE_QP: Function = Function::new(c"ibv_create_qp", c"IBVERBS_1.1");
pub(crate) static MODIFY_QP: Function = Function::new(c"ibv_modify_qp", c"IBVERBS_1.1");
pub(crate) static DESTROY_QP: Function = Function::new(c"ibv_destroy_qp", c"IBVERBS_1.1");
pub(crate) static CREATE_SRQ: Function = Function::new(c"ibv_create_srq", c"IBVERBS_1.1");
pub(crate) static DESTROY_SRQ: Function = Function::new(c"ibv_destroy_srq", c"IBVERBS_1.1");
pub(crate) static ALLOC_PD: Function = Function::new(c"ibv_alloc_pd", c"IBVERBS_1.1");
pub(crate) static CREATE_AH: Function = Function::new(c"ibv_create_ah", c"IBVERBS_1.1");
static QP_TO_QP_EX: Function = Function::new(c"ibv_qp_to_qp_ex", c"IBVERBS_1.6");
static DONTFORK_RANGE: Function = Function::new(c"ibv_dontfork_range", c"IBVERBS_1.1");
static DOFORK_RANGE: Function = Function::new(c"ibv_dofork_range", c"IBVERBS_1.1");
static IS_FORK_INITIALIZED: Function = Function::new(c"ibv_is_fork_initialized", c"IBVERBS_1.13");

macro_rules! typed {
    ($($name:ident: $function:ident as $type:ty;)*) => {
        $(
            /// Returns libibverbs's function, if libibverbs is loaded and has it.
            pub(crate) fn $name() -> Option<$type> {
                let address = $function.address();
                // SAFETY: the address is null or that of the function with this name and version,
                // which has this type.
                unsafe { mem::transmute::<*mut c_void, Option<$type>>(address) }
            }
        )*
    };
}

typed! {
    reg_mr: REG_MR as RegMr;
    reg_mr_iova: REG_MR_IOVA as RegMrIova;
    reg_mr_iova2: REG_MR_IOVA2 as RegMrIova2;
    rereg_mr: REREG_MR as ReregMr;
    dereg_mr: DEREG_MR as DeregMr;
    dealloc_pd: DEALLOC_PD as DeallocPd;
    unimport_pd: UNIMPORT_PD as UnimportPd;
    close_device: CLOSE_DEVICE as CloseDevice;
    open_device: OPEN_DEVICE as OpenDevice;
    import_device: IMPORT_DEVICE as ImportDevice;
    create_cq: CREATE_CQ as CreateCq;
    destroy_cq: DESTROY_CQ as DestroyCq;
    create_qp: CREATE_QP as CreateQp;
    modify_qp: MODIFY_QP as ModifyQp;
    destroy_qp: DESTROY_QP as DestroyQp;
    create_srq: CREATE_SRQ as CreateSrq;
    destroy_srq: DESTROY_SRQ as DestroySrq;
    alloc_pd: ALLOC_PD as AllocPd;
    create_ah: CREATE_AH as CreateAh;
    qp_to_qp_ex: QP_TO_QP_EX as QpToQpEx;
    dontfork_range: DONTFORK_RANGE as ForkRange;
    dofork_range: DOFORK_RANGE as ForkRange;
    is_fork_initialized: IS_FORK_INITIALIZED as IsForkInitialized;
}

/// Returns true if libibverbs hides registered memory from children (`ibv_fork_init`). Memory would
/// then stay hidden as long as the cache keeps its registration.
///
/// This function asks libibverbs to hide a page, and looks whether it did. The answer of
/// `ibv_is_fork_initialized` does not show it: rdma-core before 51 hides memory even if it says
/// that the kernel makes this unneeded. The program has no registration yet, but is about to make
/// one. So it is too late for a call of `ibv_fork_init` in any case.
pub(crate) fn keeps_memory_from_children() -> bool {
    hides_a_page().unwrap_or_else(|| {
        const ENABLED: c_int = 1;
        match is_fork_initialized() {
            // SAFETY: the function has no parameters and no requirements.
            Some(ask) => unsafe { ask() == ENABLED },
            // These variables have the same effect as the call.
            None => ["RDMAV_FORK_SAFE", "IBV_FORK_SAFE"]
                .iter()
                .any(|name| std::env::var_os(name).is_some()),
        }
    })
}

/// Returns true if libibverbs hides a page when it is told to. Returns `None` if that cannot be
/// found out.
fn hides_a_page() -> Option<bool> {
    let (hide, show) = (dontfork_range()?, dofork_range()?);
    // SAFETY: the call has no preconditions.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    let mut pages = MmapMut::map_anon(3 * page).ok()?;
    let middle = pages.as_mut_ptr().wrapping_add(page);
    // SAFETY: the page is this function's own, and has no content that a child needs.
    if unsafe { hide(middle.cast(), page) } != 0 {
        return None;
    }
    // A hidden page is a mapping of its own. Otherwise its neighbours are in the same mapping.
    let maps = fs::read_to_string("/proc/self/maps");
    // SAFETY: as above. This call undoes the other.
    unsafe { show(middle.cast(), page) };
    let own = format!("{:x}-{:x} ", middle.addr(), middle.addr() + page);
    Some(maps.ok()?.lines().any(|line| line.starts_with(&own)))
}

/// Returns the address of libc's `dlvsym`, even if another library interposes it.
pub(crate) fn libc_dlvsym() -> *mut c_void {
    static DLVSYM: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    from_libc(&DLVSYM, c"dlvsym")
}

/// Returns the address of libc's `dlsym`, even if another library interposes it.
pub(crate) fn libc_dlsym() -> *mut c_void {
    static DLSYM: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    from_libc(&DLSYM, c"dlsym")
}

fn from_libc(known: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let mut found = known.load(Ordering::Acquire);
    if found.is_null() {
        found = elf::libc_function(name);
        known.store(found, Ordering::Release);
    }
    found
}

fn find(name: &CStr, version: &CStr) -> *mut c_void {
    // SAFETY: the address is null or that of libc's `dlvsym`, which has this type.
    let dlvsym = unsafe { mem::transmute::<*mut c_void, Option<Dlvsym>>(libc_dlvsym()) };
    let Some(dlvsym) = dlvsym else {
        return ptr::null_mut();
    };
    // SAFETY: the strings are terminated. The search finds libibverbs or another preloaded library
    // after the shim.
    let next = unsafe { dlvsym(libc::RTLD_NEXT, name.as_ptr(), version.as_ptr()) };
    if !next.is_null() {
        return next;
    }
    // SAFETY: with RTLD_NOLOAD, `dlopen` loads nothing and runs no code of a library.
    let library = unsafe {
        libc::dlopen(
            c"libibverbs.so.1".as_ptr(),
            libc::RTLD_LAZY | libc::RTLD_NOLOAD,
        )
    };
    // The program did not make this lookup, so `dlerror` must not report it.
    // SAFETY: `dlerror` has no parameters.
    unsafe { libc::dlerror() };
    if library.is_null() {
        return ptr::null_mut();
    }
    // The handle is not closed, so libibverbs stays loaded.
    // SAFETY: the handle is open, and the strings are terminated.
    unsafe { dlvsym(library, name.as_ptr(), version.as_ptr()) }
}

/// Sets this thread's `errno`.
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: the location belongs to this thread.
    unsafe { *libc::__errno_location() = errno };
}

/// A mark that this thread is inside a call of libibverbs that the shim has made. libibverbs calls
/// its own exported functions, and those calls reach the shim. The mark makes the shim pass such
/// calls on.
pub(crate) struct Inside(());

thread_word! {
    /// 1 if this thread has set the mark, and 0 otherwise.
    mod inside = "regcache_inside": usize,
    operand: { const 0 },
    value: 0
}

impl Inside {
    /// Returns true if this thread has set the mark.
    #[inline]
    pub(crate) fn is_set() -> bool {
        inside::get() != 0
    }

    /// Sets the mark, which is cleared on drop. Returns `None` if this thread has already set it.
    #[inline]
    pub(crate) fn enter() -> Option<Self> {
        (!Self::is_set()).then(|| {
            inside::set(1);
            Self(())
        })
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        inside::set(0);
    }
}
