//! The short way through `ibv_reg_mr` and `ibv_dereg_mr`.
//!
//! Most programs register the same memory again and again. These functions serve such a call with
//! few instructions, and take no lock that other threads take. A call that needs more changes
//! nothing here, and goes the long way (`interpose.rs`), which begins again.

use std::hint::cold_path;

use regcache::Access as _;
use regcache_verbs_types::{Access, Mr};

use crate::domain::cacheable;
use crate::interpose::{Wanted, show};
use crate::local::Local;
use crate::mrs::Origin;
use crate::process::Process;
use crate::real::Inside;

/// Returns an `ibv_mr` of a registration that the cache has and the program does not hold.
///
/// # Safety
///
/// `wanted` names a protection domain.
#[inline(always)]
pub(crate) unsafe fn register(wanted: Wanted) -> Option<*mut Mr> {
    let process = Process::started()?;
    let _inside = Inside::enter()?;
    let here = Local::mine(process.owner())?;
    let access = if wanted.flags & !Access::LOCAL_WRITE.bits() == 0 {
        Access::from_bits_retain(wanted.flags)
    } else {
        cold_path();
        let keeps_remote = process.settings.keep_remote;
        cacheable(wanted.flags).filter(|access| keeps_remote || !access.is_remote())?
    };
    let ours = here.free.first()?;
    // SAFETY: the caller keeps the contract of this function.
    let domain = unsafe { process.recall_domain(here, wanted.pd) }?;
    let held = domain.register_at_once(wanted.addr.cast(), wanted.length, access)?;
    here.free.remove_first();
    Some(show(here, ours, wanted, held))
}

/// Deregisters an `ibv_mr` of this shim, if the cache keeps its registration. Returns true if it is
/// deregistered.
#[inline(always)]
pub(crate) fn deregister(mr: *mut Mr) -> bool {
    let Some(process) = Process::started() else {
        return false;
    };
    let owner = process.owner();
    let Some(_inside) = Inside::enter() else {
        return false;
    };
    let Some(here) = Local::mine(owner) else {
        return false;
    };
    let Origin::Ours(ours) = Origin::of(mr, owner) else {
        return false;
    };
    if here.free.is_full() {
        return false;
    }
    let Some(held) = ours.take() else {
        return false;
    };
    if let Err((held, _)) = held.keep() {
        ours.put_back(held);
        return false;
    }
    here.free.push(ours);
    here.kept.add_one();
    true
}
