//! The functions that programs call in place of libibverbs's.

use std::error::Error as _;
use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use regcache::{Access as _, Error, VaRange};
use regcache_verbs_types::{Access, Context, Mr, Pd};

use crate::counts::Counts;
use crate::domain::{self, cacheable};
use crate::mrs::{Content, Mrs, Origin, Ours, Owner};
use crate::notice::{add_one, notice};
use crate::process::Process;
use crate::real::{self, Inside};

/// `IBV_ACCESS_OPTIONAL_RANGE`: flags that may be ignored, for which there is `ibv_reg_mr_iova2`.
const OPTIONAL: c_uint = 0x3ff0_0000;

/// `enum ibv_rereg_mr_flags`.
mod change {
    use std::ffi::c_int;

    pub(super) const TRANSLATION: c_int = 1;
    pub(super) const PD: c_int = 1 << 1;
    pub(super) const ACCESS: c_int = 1 << 2;
}

/// `IBV_REREG_MR_ERR_INPUT`: refused, the registration is what it was.
const REREG_REFUSED: c_int = -1;

/// Memory that a program wants registered, at its own addresses.
#[derive(Clone, Copy)]
struct Wanted {
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    flags: c_uint,
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

    /// Refuses flags that `ibv_reg_mr_iova2` alone may ignore: the other functions pass them to the
    /// device.
    fn with_strict_flags(self) -> Result<Self, Not> {
        match self.flags & OPTIONAL {
            0 => Ok(self),
            _ => Err(FLAGS),
        }
    }

    /// Refuses device addresses that differ from the process's.
    fn at_own_address(self, iova: u64) -> Result<Self, Not> {
        if iova == self.addr.addr() as u64 {
            Ok(self)
        } else {
            Err(IOVA)
        }
    }
}

/// Why the cache has no registration for it.
enum Not {
    /// It is libibverbs's to serve or refuse; counted here.
    Passed(fn(&Counts) -> &AtomicU64),
    /// The device refused, with this errno.
    Refused(c_int),
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_reg_mr(
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut Mr {
    let flags = access.cast_unsigned();
    let theirs = || match real::reg_mr() {
        // SAFETY: the program's call.
        Some(register) => unsafe { register(pd, addr, length, access) },
        None => missing(),
    };
    let wanted = Wanted::new(pd, addr, length, flags).with_strict_flags();
    // SAFETY: the program's arguments.
    unsafe { register(wanted, theirs) }
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
        // SAFETY: the program's call.
        Some(register) => unsafe { register(pd, addr, length, iova, access) },
        None => missing(),
    };
    let wanted = Wanted::new(pd, addr, length, flags).with_strict_flags();
    let wanted = wanted.and_then(|wanted| wanted.at_own_address(iova));
    // SAFETY: the program's arguments.
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
        // SAFETY: the program's call.
        Some(register) => unsafe { register(pd, addr, length, iova, access) },
        None => missing(),
    };
    let wanted = Wanted::new(pd, addr, length, access).at_own_address(iova);
    // SAFETY: the program's arguments.
    unsafe { register(wanted, theirs) }
}

/// Refused as the device would, if it knew; else as libibverbs does.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_rereg_mr(
    mr: *mut Mr,
    flags: c_int,
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> c_int {
    let (process, ours) = match whose(mr) {
        Whose::Ours(process, ours) => (process, ours),
        Whose::Inherited => {
            set_errno(libc::EINVAL);
            return REREG_REFUSED;
        }
        Whose::Libibverbs => {
            let _inside = Inside::enter();
            return match real::rereg_mr() {
                // SAFETY: the program's call.
                Some(reregister) => unsafe { reregister(mr, flags, pd, addr, length, access) },
                None => {
                    set_errno(libc::ENOSYS);
                    REREG_REFUSED
                }
            };
        }
    };
    let Some(old) = process.mrs().take(ours) else {
        set_errno(libc::EINVAL);
        return REREG_REFUSED;
    };
    let (face, old_flags) = ours.face();
    let asked = Wanted::new(pd, addr, length, access.cast_unsigned());
    let wanted = changed(face, old_flags, flags, asked);
    // SAFETY: the program's arguments, a domain among them.
    let new = wanted.and_then(|wanted| unsafe { renew(process, wanted) });
    match new {
        Ok((content, face, flags)) => {
            process.mrs().fill(ours, face, flags, content);
            // SAFETY: taken out above, and nobody has it any more.
            let _ = unsafe { end(old) };
            0
        }
        Err(errno) => {
            process.mrs().put_back(ours, old);
            set_errno(errno);
            REREG_REFUSED
        }
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_dereg_mr(mr: *mut Mr) -> c_int {
    let (process, ours) = match whose(mr) {
        Whose::Ours(process, ours) => (process, ours),
        // It is the parent's, and stays.
        Whose::Inherited => return 0,
        Whose::Libibverbs => {
            let _inside = Inside::enter();
            return match real::dereg_mr() {
                // SAFETY: the program's call.
                Some(deregister) => unsafe { deregister(mr) },
                None => libc::ENOSYS,
            };
        }
    };
    let Some(content) = process.mrs().take(ours) else {
        notice(format_args!(
            "ibv_dereg_mr({mr:p}): it was deregistered before"
        ));
        set_errno(libc::EINVAL);
        return libc::EINVAL;
    };
    // SAFETY: taken out, and nobody has it any more.
    match unsafe { end(content) } {
        Ok(()) => {
            process.mrs().free(ours);
            0
        }
        Err((refused, content)) => {
            process.mrs().put_back(ours, content);
            refused
        }
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_dealloc_pd(pd: *mut Pd) -> c_int {
    let Some(deallocate) = real::dealloc_pd() else {
        return libc::ENOSYS;
    };
    let domain = Process::started().and_then(|process| process.known_domain(pd));
    if let Some(domain) = &domain {
        // What the program does not hold must not keep its domain.
        domain.give_up_idle();
    }
    let refused = {
        let _inside = Inside::enter();
        // SAFETY: the program's call.
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

/// The domain stays, for the process that has it from elsewhere, but this one's name for it does
/// not.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_unimport_pd(pd: *mut Pd) {
    if let Some(process) = Process::started()
        && let Some(domain) = process.known_domain(pd)
    {
        domain.give_up_idle();
        process.forget_domain(pd);
    }
    if let Some(unimport) = real::unimport_pd() {
        let _inside = Inside::enter();
        // SAFETY: the program's call.
        unsafe { unimport(pd) };
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_close_device(context: *mut Context) -> c_int {
    if let Some(process) = Process::started() {
        process.forget_device(context);
    }
    let _inside = Inside::enter();
    match real::close_device() {
        // SAFETY: the program's call.
        Some(close) => unsafe { close(context) },
        None => libc::ENOSYS,
    }
}

const REMOTE: Not = Not::Passed(|counts| &counts.remote);
const FLAGS: Not = Not::Passed(|counts| &counts.flags);
const IOVA: Not = Not::Passed(|counts| &counts.iova);
const OFF: Not = Not::Passed(|counts| &counts.off);

/// One registration for the program: from the cache, or `theirs`.
///
/// # Safety
///
/// The domain is one.
unsafe fn register(wanted: Result<Wanted, Not>, theirs: impl Fn() -> *mut Mr) -> *mut Mr {
    let Some(_inside) = Inside::enter() else {
        return theirs();
    };
    let Some(process) = Process::current() else {
        return theirs();
    };
    let counts = &process.counts;
    add_one(&counts.asked);
    // SAFETY: by the contract.
    let not = match wanted.and_then(|wanted| unsafe { cached(process, wanted) }) {
        Ok((content, face, flags)) => {
            return process.mrs().make(process.owner(), face, flags, content);
        }
        Err(not) => not,
    };
    match not {
        Not::Passed(count) => {
            add_one(count(counts));
            let mut mr = theirs();
            // What is cached counts against the same limits.
            if mr.is_null() && is_exhaustion(io::Error::last_os_error()) && process.relieve() {
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

/// What `wanted` says, from the cache if it can be.
///
/// # Safety
///
/// The domain is one.
unsafe fn cached(process: &Process, wanted: Wanted) -> Result<(Content, Mr, c_int), Not> {
    let access = cacheable(wanted.flags).ok_or(FLAGS)?;
    if access.is_remote() && !process.settings.keep_remote {
        // Not even shared by two that are held at the same time: each has a key that must end with
        // it.
        return Err(REMOTE);
    }
    let pd = NonNull::new(wanted.pd).ok_or(OFF)?;
    // SAFETY: by the contract.
    let domain = unsafe { process.domain(pd) }.ok_or(OFF)?;
    let mut refused = None;
    loop {
        match domain.register(wanted.addr.cast(), wanted.length, access) {
            Ok(held) => {
                add_one(&process.counts.cached);
                let numbers = held.registration();
                let face = face(wanted, numbers.handle, numbers.lkey, numbers.rkey);
                return Ok((Content::Cached(held), face, wanted.flags.cast_signed()));
            }
            Err(Error::Register(error)) => {
                let errno = errno_of(&error);
                let exhausted = is_exhaustion(io::Error::from_raw_os_error(errno));
                // What other domains have idle counts as well.
                if !(exhausted && refused.is_none() && process.relieve()) {
                    return Err(Not::Refused(errno));
                }
                refused = Some(errno);
            }
            Err(Error::Range(_)) => return Err(FLAGS),
            Err(_) => return Err(OFF),
        }
    }
}

/// What `ibv_rereg_mr` asks for: the old registration with the changes that `flags` names. `Err`
/// with the errno if the device would refuse the call.
fn changed(face: Mr, old_flags: c_int, flags: c_int, asked: Wanted) -> Result<Wanted, c_int> {
    let has = |flag| flags & flag != 0;
    let is_odd = flags & !(change::TRANSLATION | change::PD | change::ACCESS) != 0
        || (has(change::TRANSLATION) && (asked.addr.is_null() || asked.length == 0))
        || (has(change::PD) && asked.pd.is_null())
        || (asked.flags != 0 && !has(change::ACCESS));
    if is_odd {
        return Err(libc::EINVAL);
    }
    let old = Wanted::new(face.pd, face.addr, face.length, old_flags.cast_unsigned());
    let (of_place, of_pd, of_access) = (
        if has(change::TRANSLATION) { asked } else { old },
        if has(change::PD) { asked } else { old },
        if has(change::ACCESS) { asked } else { old },
    );
    Ok(Wanted::new(
        of_pd.pd,
        of_place.addr,
        of_place.length,
        of_access.flags,
    ))
}

/// A registration to stand behind an `ibv_mr` that is ours already.
///
/// # Safety
///
/// The domain is one.
unsafe fn renew(process: &Process, wanted: Wanted) -> Result<(Content, Mr, c_int), c_int> {
    // SAFETY: by the contract.
    match unsafe { cached(process, wanted) } {
        Ok(new) => Ok(new),
        Err(Not::Refused(errno)) => Err(errno),
        Err(Not::Passed(_)) => {
            let pd = NonNull::new(wanted.pd).ok_or(libc::EINVAL)?;
            let range = VaRange::new(wanted.addr.cast(), wanted.length);
            let range = range.map_err(|_| libc::EINVAL)?;
            // All of them: the device may know more than we do.
            let access = Access::from_bits_retain(wanted.flags);
            // SAFETY: by the contract.
            let mr = unsafe { domain::register(pd, range, access) };
            let Some(mr) = NonNull::new(mr) else {
                return Err(io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EINVAL));
            };
            // SAFETY: just made, and nobody else's.
            let numbers = unsafe { mr.as_ref() };
            let face = face(wanted, numbers.handle, numbers.lkey, numbers.rkey);
            Ok((Content::Private(mr), face, wanted.flags.cast_signed()))
        }
    }
}

/// Gives back what stood behind an `ibv_mr`; if libibverbs refuses, with what it said, it is still
/// there.
///
/// # Safety
///
/// The content is nobody else's.
unsafe fn end(content: Content) -> Result<(), (c_int, Content)> {
    match content {
        Content::Cached(held) => drop(held),
        Content::Private(mr) => {
            // SAFETY: libibverbs's registration, which nobody else has.
            let refused = unsafe { domain::deregister(mr) };
            if refused != 0 {
                return Err((refused, content));
            }
        }
    }
    Ok(())
}

/// What the program sees: what it asked for, with the numbers of what serves it.
fn face(wanted: Wanted, handle: u32, lkey: u32, rkey: u32) -> Mr {
    Mr {
        // SAFETY: a registration was made in it, so it is a domain.
        context: unsafe { (*wanted.pd).context },
        pd: wanted.pd,
        addr: wanted.addr,
        length: wanted.length,
        handle,
        lkey,
        rkey,
    }
}

/// Whose `mr` is.
enum Whose {
    Libibverbs,
    Inherited,
    Ours(&'static Process, Ours),
}

fn whose(mr: *mut Mr) -> Whose {
    // A child that has registered nothing itself can have inherited some.
    let process = Process::started();
    let this = process.map_or_else(Owner::default, Process::owner);
    match (Mrs::origin(this, mr), process) {
        (Origin::Libibverbs, _) => Whose::Libibverbs,
        (Origin::Ours(ours), Some(process)) => Whose::Ours(process, ours),
        (Origin::Inherited | Origin::Ours(_), _) => Whose::Inherited,
    }
}

fn missing() -> *mut Mr {
    set_errno(libc::ENOSYS);
    ptr::null_mut()
}

fn set_errno(errno: c_int) {
    // SAFETY: this thread's.
    unsafe { *libc::__errno_location() = errno };
}

/// True if it may go away when registrations are given up.
fn is_exhaustion(error: io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::EAGAIN | libc::ENOSPC)
    )
}

/// What the device said.
fn errno_of(error: &regcache::RegisterError) -> c_int {
    let mut cause = error.source();
    while let Some(error) = cause {
        let errno = error.downcast_ref().and_then(io::Error::raw_os_error);
        if let Some(errno) = errno {
            return errno;
        }
        cause = error.source();
    }
    libc::EINVAL
}
