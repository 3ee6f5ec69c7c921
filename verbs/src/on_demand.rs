//! On-demand paging (ODP): [`OnDemand`], the operations for which a device supports ODP, and
//! [`OnDemandMr`], a registration that pins nothing.
//!
//! With ODP the device follows the page tables when the mapping changes. A cache cannot use such
//! registrations, because registrars promise pinned pages. Benchmarks compare ODP with a cache.

use std::io;
use std::mem::{self, offset_of};
use std::ptr;
use std::sync::Arc;

use rdma_sys::{
    ibv_access_flags, ibv_device_attr_ex, ibv_odp_general_caps, ibv_odp_transport_cap_bits,
    verbs_context,
};
use regcache::VaRange;

use crate::errno::check;
use crate::{Access, Context, Error, Mr, Pd};

bitflags::bitflags! {
    /// The operations of a reliable connection that may use a registration with ODP. The set is
    /// empty if the device does not support ODP.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct OnDemand: u32 {
        /// The source of a send.
        const SEND = ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_SEND.0;
        /// The destination of a receive.
        const RECV = ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_RECV.0;
        /// The source and the destination of an RDMA write.
        const WRITE = ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_WRITE.0;
        /// The source and the destination of an RDMA read.
        const READ = ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_READ.0;
        /// An atomic operation.
        const ATOMIC = ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_ATOMIC.0;
        /// The destination of a receive that was posted to a shared queue.
        const SRQ_RECV = ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_SRQ_RECV.0;
    }
}

impl Context {
    /// Returns the operations of reliable connections for which the device supports *explicit* ODP:
    /// registrations of single ranges that pin nothing. The set is empty if the device supports
    /// none, or if its provider cannot be queried.
    ///
    /// # Errors
    ///
    /// [`Error::Query`].
    pub fn on_demand(&self) -> Result<OnDemand, Error> {
        // This code does the work of C's inline `ibv_query_device_ex`, which calls a function of
        // the provider that no library exports. (rdma-sys 0.3 has this inline function, but on
        // 64-bit machines it never finds the provider's function: see `Context::port`.)
        //
        // SAFETY: the context is open, so libibverbs has set its fields. If all bits of
        // `abi_compat` are set, the context is the last field of a `verbs_context`.
        let verbs = unsafe {
            let context = self.as_ptr();
            if (*context).abi_compat.addr() != usize::MAX {
                return Ok(OnDemand::empty());
            }
            context
                .cast::<u8>()
                .wrapping_sub(offset_of!(verbs_context, context))
                .cast::<verbs_context>()
        };
        // Newer versions of the structure have more fields at its front. The field `sz` has its
        // size.
        let needed = size_of::<verbs_context>() - offset_of!(verbs_context, query_device_ex);
        // SAFETY: the context is the last field of a `verbs_context`, as above. Every version of
        // that structure has the field `sz`. Its value shows that the field `query_device_ex`
        // exists.
        let query = unsafe {
            if (*verbs).sz < needed {
                return Ok(OnDemand::empty());
            }
            (*verbs).query_device_ex
        };
        let Some(query) = query else {
            return Ok(OnDemand::empty());
        };
        // SAFETY: zero is a valid value of this C struct of integers and arrays of integers.
        let mut attr: ibv_device_attr_ex = unsafe { mem::zeroed() };
        // SAFETY: the context is open, and `attr` lives through the call. The input may be null, as
        // in the call that `ibv_devinfo` makes.
        let queried = unsafe {
            query(
                self.as_ptr(),
                ptr::null(),
                &raw mut attr,
                size_of_val(&attr),
            )
        };
        match check(queried) {
            Err(why) if why.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(OnDemand::empty()),
            Err(source) => Err(self.query_error("on-demand paging", source)),
            Ok(()) => Ok(of(&attr)),
        }
    }
}

fn of(attr: &ibv_device_attr_ex) -> OnDemand {
    let explicit = u64::from(ibv_odp_general_caps::IBV_ODP_SUPPORT.0);
    if attr.odp_caps.general_caps & explicit == 0 {
        return OnDemand::empty();
    }
    OnDemand::from_bits_truncate(attr.odp_caps.per_transport_caps.rc_odp_caps)
}

/// A registration with ODP, through which the device follows the page tables of this process. It
/// pins nothing. A transfer moves the pages that are mapped at that time, and faults in missing
/// pages.
///
/// SoftRoCE supports ODP. But at least up to Linux 7.3 it moves wrong bytes in each packet that
/// does not start at a page boundary.
///
/// Dropping an `OnDemandMr` deregisters the range.
#[derive(Debug)]
pub struct OnDemandMr(Mr);

impl OnDemandMr {
    /// Registers `range` in `pd`, whose device must support ODP ([`Context::on_demand`]).
    ///
    /// # Errors
    ///
    /// The system's error: `EOPNOTSUPP` if the device does not support ODP.
    pub fn register(pd: &Arc<Pd>, range: VaRange, access: Access) -> io::Result<Self> {
        let on_demand = ibv_access_flags::IBV_ACCESS_ON_DEMAND.0;
        Mr::register_with(pd, range, access, on_demand).map(Self)
    }

    /// Returns the key for the work requests of this process.
    #[must_use]
    pub fn lkey(&self) -> u32 {
        self.0.lkey()
    }

    /// Returns the key for the requests of a peer. It is valid only with remote access.
    #[must_use]
    pub fn rkey(&self) -> u32 {
        self.0.rkey()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_counts_only_where_ranges_can_be_registered_so() {
        // SAFETY: zero is a valid value, as in `on_demand`.
        let mut attr: ibv_device_attr_ex = unsafe { mem::zeroed() };
        attr.odp_caps.per_transport_caps.rc_odp_caps = 0b1101;
        assert_eq!(of(&attr), OnDemand::empty());
        // Bit 1 alone means implicit ODP, which registers the whole address space at once.
        attr.odp_caps.general_caps = 2;
        assert_eq!(of(&attr), OnDemand::empty());
        attr.odp_caps.general_caps = 3;
        assert_eq!(of(&attr), OnDemand::SEND | OnDemand::WRITE | OnDemand::READ);
    }
}
