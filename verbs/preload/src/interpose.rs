//! Defines the functions that programs call in place of libibverbs's.

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use regcache::error::{chain, is_exhaustion};
use regcache::{Access as _, Error, Uncancelled};
use regcache_verbs_types::{Context, Mr, Pd};

use crate::at_once;
use crate::counts::Counts;
use crate::domain::{Ended, Held, cacheable};
use crate::local::Local;
use crate::mrs::{Origin, Ours, Owner};
use crate::notice::{add_one, notice};
use crate::objects::{DEVICES, address};
use crate::process::{GRACE, NoDomain, Process};
use crate::real::{self, Inside, set_errno};

/// `IBV_ACCESS_OPTIONAL_RANGE`: the optional flags. Only `ibv_reg_mr_iova2` ignores an optional
/// flag that the device does not support.
const OPTIONAL: c_uint = 0x3ff0_0000;

/// `IBV_REREG_MR_CHANGE_TRANSLATION`.
const CHANGE_TRANSLATION: c_int = 1;
/// `IBV_REREG_MR_CHANGE_ACCESS`.
const CHANGE_ACCESS: c_int = 1 << 2;

/// `IBV_REREG_MR_ERR_INPUT`: libibverbs refused, and the registration is unchanged.
const REREG_REFUSED: c_int = -1;

/// A range of memory that the program asks to register. The device addresses are the process's own
/// addresses.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) pd: *mut Pd,
    pub(crate) addr: *mut c_void,
    pub(crate) length: usize,
    pub(crate) flags: c_uint,
}

impl Wanted {
    fn new(pd: *mut Pd, addr: *mut c_void, length: usize, flags: c_uint) -> Self {
        Self {
            pd,
            addr,
            length,
            flags,
        }
    }

    /// Refuses optional flags, which only `ibv_reg_mr_iova2` may ignore. The other functions pass
    /// the flags to the device.
    fn with_strict_flags(self) -> Result<Self, Not> {
        match self.flags & OPTIONAL {
            0 => Ok(self),
            _ => Err(FLAGS),
        }
    }

    /// Refuses device addresses that differ from the process's addresses.
    fn at_own_address(self, iova: u64) -> Result<Self, Not> {
        if iova == self.addr.addr() as u64 {
            Ok(self)
        } else {
            Err(IOVA)
        }
    }
}

/// The reason why the cache returns no registration for a request.
enum Not {
    /// The shim passes the request on to libibverbs. The function selects the counter of the
    /// reason.
    Passed(fn(&Counts) -> &AtomicU64),
    /// The device refused the registration with this errno.
    Refused(c_int),
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_reg_mr(
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut Mr {
    let wanted = Wanted::new(pd, addr, length, access.cast_unsigned());
    // SAFETY: the program passed these arguments, so they are its responsibility.
    match unsafe { at_once::register(wanted) } {
        Some(mr) => mr,
        // SAFETY: as above.
        None => unsafe { reg_mr(pd, addr, length, access) },
    }
}

/// Does the same as [`ibv_reg_mr`], the long way.
///
/// # Safety
///
/// `pd` is a protection domain.
#[cold]
#[inline(never)]
unsafe extern "C" fn reg_mr(
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut Mr {
    let theirs = || match real::reg_mr() {
        // SAFETY: the program made this call, so the arguments are its responsibility.
        Some(register) => unsafe { register(pd, addr, length, access) },
        None => missing(),
    };
    let wanted = Wanted::new(pd, addr, length, access.cast_unsigned());
    // SAFETY: the caller keeps the contract of this function.
    unsafe { register(wanted.with_strict_flags(), theirs) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_reg_mr_iova(
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_int,
) -> *mut Mr {
    let flags = access.cast_unsigned();
    let theirs = || match real::reg_mr_iova() {
        // SAFETY: the program made this call, so the arguments are its responsibility.
        Some(register) => unsafe { register(pd, addr, length, iova, access) },
        None => missing(),
    };
    let wanted = Wanted::new(pd, addr, length, flags).with_strict_flags();
    let wanted = wanted.and_then(|wanted| wanted.at_own_address(iova));
    // SAFETY: the program passed these arguments, so they are its responsibility.
    unsafe { register(wanted, theirs) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_reg_mr_iova2(
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_uint,
) -> *mut Mr {
    let theirs = || match real::reg_mr_iova2() {
        // SAFETY: the program made this call, so the arguments are its responsibility.
        Some(register) => unsafe { register(pd, addr, length, iova, access) },
        None => missing(),
    };
    let wanted = Wanted::new(pd, addr, length, access).at_own_address(iova);
    // SAFETY: the program passed these arguments, so they are its responsibility.
    unsafe { register(wanted, theirs) }
}

/// Changes libibverbs's registration, and not only the `ibv_mr` that the program sees. Returns the
/// device's result.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_rereg_mr(
    mr: *mut Mr,
    flags: c_int,
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let theirs = |mr: *mut Mr, flags, addr, length| {
        let _inside = Inside::enter();
        match real::rereg_mr() {
            // SAFETY: the program made this call, so the arguments are its responsibility.
            Some(reregister) => unsafe { reregister(mr, flags, pd, addr, length, access) },
            None => {
                set_errno(libc::ENOSYS);
                REREG_REFUSED
            }
        }
    };
    let ours = match whose(mr) {
        Whose::Ours(_, ours) => ours,
        Whose::Inherited => {
            set_errno(libc::EINVAL);
            return REREG_REFUSED;
        }
        Whose::Libibverbs => return theirs(mr, flags, addr, length),
    };
    let Some(mut held) = ours.take() else {
        set_errno(libc::EINVAL);
        return REREG_REFUSED;
    };
    let (mut face, old_access) = ours.face();
    let mut result = REREG_REFUSED;
    let is_changed = held.change(|real| {
        result = if flags & CHANGE_TRANSLATION == 0 && is_larger(real, face) {
            // A cached registration may be larger than the range that the program sees, so the new
            // access must come with that range.
            let flags = flags | CHANGE_TRANSLATION;
            theirs(real.as_ptr(), flags, face.addr, face.length)
        } else {
            theirs(real.as_ptr(), flags, addr, length)
        };
        let is_as_before = result == REREG_REFUSED
            || (result != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP));
        if !is_as_before {
            // SAFETY: `real` is libibverbs's registration, and no other thread changes it.
            face = unsafe { *real.as_ptr() };
        }
        !is_as_before
    });
    if is_changed {
        let access = if flags & CHANGE_ACCESS == 0 {
            old_access
        } else {
            access
        };
        ours.fill(face, access, held);
    } else {
        ours.put_back(held);
    }
    result
}

/// Returns true if libibverbs's registration covers another range than the program sees.
fn is_larger(real: NonNull<Mr>, face: Mr) -> bool {
    // SAFETY: `real` is libibverbs's registration, and no thread changes it now.
    let real = unsafe { real.as_ref() };
    (real.addr, real.length) != (face.addr, face.length)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_dereg_mr(mr: *mut Mr) -> c_int {
    match at_once::deregister(mr) {
        true => 0,
        false => dereg_mr(mr),
    }
}

/// Does the same as [`ibv_dereg_mr`], the long way.
#[cold]
#[inline(never)]
extern "C" fn dereg_mr(mr: *mut Mr) -> c_int {
    let inside = Inside::enter();
    let (process, ours) = match whose(mr) {
        Whose::Ours(process, ours) => (process, ours),
        // The registration belongs to the parent process, and the parent keeps it.
        Whose::Inherited => return 0,
        Whose::Libibverbs => {
            let _uncancelled = Uncancelled::begin();
            return match real::dereg_mr() {
                // SAFETY: the program made this call, so the arguments are its responsibility.
                Some(deregister) => unsafe { deregister(mr) },
                None => libc::ENOSYS,
            };
        }
    };
    let Some(held) = ours.take() else {
        notice(format_args!(
            "ibv_dereg_mr({mr:p}): it was deregistered before"
        ));
        set_errno(libc::EINVAL);
        return libc::EINVAL;
    };
    let lkey = held.registration().lkey;
    let ended = match held.end() {
        Ok(ended) => ended,
        Err((refused, held)) => {
            ours.put_back(held);
            return refused;
        }
    };
    // A signal handler may have interrupted this thread while it changes its record.
    if inside.is_none() {
        return 0;
    }
    let here = process.here();
    process.free(&here, ours);
    match ended {
        Ended::Kept => here.kept.add_one(),
        Ended::Outstanding => outstanding(process, mr, lkey),
        Ended::Deregistered => add_one(&process.counts.ended),
    }
    0
}

/// Counts a registration whose key outstanding work may use, and reports it if the user wants that.
#[cold]
fn outstanding(process: &Process, mr: *mut Mr, lkey: u32) {
    add_one(&process.counts.outstanding);
    if process.settings.report_outstanding {
        notice(format_args!(
            "ibv_dereg_mr({mr:p}): work that was posted with lkey {lkey:#x} has not completed, as \
             far as can be seen"
        ));
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_dealloc_pd(pd: *mut Pd) -> c_int {
    let _uncancelled = Uncancelled::begin();
    let Some(deallocate) = real::dealloc_pd() else {
        return libc::ENOSYS;
    };
    let domain = Process::started().and_then(|process| process.known_domain(pd));
    if let Some(domain) = &domain {
        // Idle registrations in the cache would make `ibv_dealloc_pd` fail, so the shim deregisters
        // them first.
        domain.give_up_idle(GRACE);
    }
    let refused = {
        let _inside = Inside::enter();
        // SAFETY: the program made this call, so the arguments are its responsibility.
        unsafe { deallocate(pd) }
    };
    if refused == 0
        && domain.is_some()
        && let Some(process) = Process::started()
    {
        process.forget_domain(pd);
    }
    refused
}

/// Forgets the domain. The process from which the domain was imported keeps it. In this process,
/// the pointer to the domain becomes invalid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_unimport_pd(pd: *mut Pd) {
    let _uncancelled = Uncancelled::begin();
    if let Some(process) = Process::started()
        && let Some(domain) = process.known_domain(pd)
    {
        domain.give_up_idle(GRACE);
        process.forget_domain(pd);
    }
    if let Some(unimport) = real::unimport_pd() {
        let _inside = Inside::enter();
        // SAFETY: the program made this call, so the arguments are its responsibility.
        unsafe { unimport(pd) };
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_close_device(context: *mut Context) -> c_int {
    let _uncancelled = Uncancelled::begin();
    if let Some(process) = Process::started() {
        process.forget_device(context);
    }
    let Some(close) = real::close_device() else {
        return libc::ENOSYS;
    };
    // The removal comes before the close, since the next device may be opened at the same address.
    let device = DEVICES.remove(address(context));
    let refused = {
        let _inside = Inside::enter();
        // SAFETY: the program made this call, so the arguments are its responsibility.
        unsafe { close(context) }
    };
    if let Some(device) = device {
        if refused == 0 {
            device.closed();
        } else {
            drop(DEVICES.insert(address(context), device));
        }
    }
    refused
}

const REMOTE: Not = Not::Passed(|counts| &counts.remote);
const FLAGS: Not = Not::Passed(|counts| &counts.flags);
const IOVA: Not = Not::Passed(|counts| &counts.iova);
const IN_USE: Not = Not::Passed(|counts| &counts.in_use);
const UNSEEN: Not = Not::Passed(|counts| &counts.unseen);
const OFF: Not = Not::Passed(|counts| &counts.off);

/// Returns a registration for the program: from the cache, or else from `theirs`, which calls
/// libibverbs.
///
/// # Safety
///
/// `wanted` names a protection domain.
unsafe fn register(wanted: Result<Wanted, Not>, theirs: impl Fn() -> *mut Mr) -> *mut Mr {
    let theirs = || {
        let _uncancelled = Uncancelled::begin();
        theirs()
    };
    let Some(_inside) = Inside::enter() else {
        return theirs();
    };
    let Some(process) = Process::current() else {
        return theirs();
    };
    // SAFETY: the caller keeps the contract of this function.
    match wanted.and_then(|wanted| unsafe { cached(process, wanted) }) {
        Ok(mr) => mr,
        Err(not) => refused(process, not, theirs),
    }
}

/// Calls libibverbs, if the cache passes the request on. Otherwise fails as the device did.
fn refused(process: &Process, not: Not, theirs: impl Fn() -> *mut Mr) -> *mut Mr {
    let counts = &process.counts;
    match not {
        Not::Passed(count) => {
            add_one(count(counts));
            let mut mr = theirs();
            // Cached registrations count against the same limits. So the shim deregisters the idle
            // ones, and repeats the call.
            if mr.is_null() && is_exhaustion(&io::Error::last_os_error()) && process.give_up_idle()
            {
                mr = theirs();
            }
            mr
        }
        Not::Refused(errno) => {
            add_one(&counts.refused);
            set_errno(errno);
            ptr::null_mut()
        }
    }
}

/// Returns the registration that `wanted` describes, if the cache can provide it.
///
/// # Safety
///
/// `wanted` names a protection domain.
unsafe fn cached(process: &Process, wanted: Wanted) -> Result<*mut Mr, Not> {
    let access = cacheable(wanted.flags).ok_or(FLAGS)?;
    if access.is_remote() && !process.settings.keep_remote {
        // The program requests remote access. Each `ibv_mr` has a remote key that must end with the
        // `ibv_mr`. So the cache cannot use one registration for two `ibv_mr`s, not even for one
        // after the other.
        return Err(REMOTE);
    }
    let pd = NonNull::new(wanted.pd).ok_or(OFF)?;
    // SAFETY: the caller keeps the contract of this function.
    let domain = unsafe { process.domain(pd) }.map_err(|no| match no {
        NoDomain::Unseen => UNSEEN,
        NoDomain::Off => OFF,
    })?;
    let mut refused = None;
    loop {
        match domain.register(wanted.addr.cast(), wanted.length, access) {
            Ok(Some(held)) => {
                let here = process.here();
                let ours = process.free_mr(&here).ok_or(OFF)?;
                return Ok(show(&here, ours, wanted, held));
            }
            // The program holds the cached registration. The key must end with the `ibv_mr` that
            // the program holds. So a second `ibv_mr` cannot share the registration.
            Ok(None) => return Err(IN_USE),
            Err(Error::Register(error)) => {
                let errno = errno_of(&error);
                let exhausted = is_exhaustion(&io::Error::from_raw_os_error(errno));
                // Idle registrations of other domains use up the device as well. So the shim
                // deregisters them, and tries once more.
                if !(exhausted && refused.is_none() && process.give_up_idle()) {
                    return Err(Not::Refused(errno));
                }
                refused = Some(errno);
            }
            Err(Error::Range(_)) => return Err(FLAGS),
            Err(_) => return Err(OFF),
        }
    }
}

/// Returns the `ibv_mr` that the program sees. It has the program's own address and length, and the
/// keys of the registration.
#[inline(always)]
pub(crate) fn show(here: &Local, ours: Ours, wanted: Wanted, held: Held) -> *mut Mr {
    here.cached.add_one();
    let numbers = held.registration();
    let face = Mr {
        // SAFETY: a registration was made in `wanted.pd`, so it is a domain.
        context: unsafe { (*wanted.pd).context },
        pd: wanted.pd,
        addr: wanted.addr,
        length: wanted.length,
        handle: numbers.handle,
        lkey: numbers.lkey,
        rkey: numbers.rkey,
    };
    ours.fill(face, wanted.flags.cast_signed(), held);
    ours.mr()
}

/// The owner of an `ibv_mr`.
enum Whose {
    Libibverbs,
    Inherited,
    Ours(&'static Process, Ours),
}

fn whose(mr: *mut Mr) -> Whose {
    // A child may have inherited `ibv_mr`s from its parent before it registers any memory itself.
    let process = Process::started();
    let this = process.map_or_else(Owner::default, Process::owner);
    match (Origin::of(mr, this), process) {
        (Origin::Libibverbs, _) => Whose::Libibverbs,
        (Origin::Ours(ours), Some(process)) => Whose::Ours(process, ours),
        (Origin::Inherited | Origin::Ours(_), _) => Whose::Inherited,
    }
}

fn missing() -> *mut Mr {
    set_errno(libc::ENOSYS);
    ptr::null_mut()
}

/// Returns the errno with which the device refused.
fn errno_of(error: &regcache::RegisterError) -> c_int {
    let mut systems = chain(error).filter_map(|cause| cause.downcast_ref::<io::Error>());
    let errno = systems.find_map(io::Error::raw_os_error);
    errno.unwrap_or(libc::EINVAL)
}
