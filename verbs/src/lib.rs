//! RDMA verbs for [`regcache`]: a registrar that registers memory, and connections that transfer
//! data.
//!
//! - [`MrRegistrar`] is the [`regcache::Registrar`] of one [protection domain](Pd). It makes
//!   [`Mr`]s, the registrations of an RDMA device.
//! - [`Loopback`] is a connection of this process with itself through the device. Its transfers
//!   block, borrow the memory that they use, and are safe to call.
//!
//! ```no_run
//! use regcache::Cache;
//! use regcache_verbs::{Context, Loopback, MrRegistrar, Pd};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pd = Pd::alloc(&Context::open_first()?)?;
//! let cache = Cache::builder(MrRegistrar::new(&pd)).build()?;
//! let source = vec![7u8; 4096];
//! let mut destination = vec![0u8; 4096];
//! Loopback::connect(&pd)?.rdma_write(&cache, &source, &mut destination)?;
//! assert_eq!(source, destination);
//! # Ok(())
//! # }
//! ```
//!
//! # Lifetimes
//!
//! A verbs object may be destroyed only after all objects made from it. Each object holds an
//! [`Arc`] of the object that it was made from. So a program may drop its handles in any order. An
//! arrow points from an object to the one that it holds:
//!
//! ```text
//! Context <- Pd <- Mr, MrRegistrar, Loopback
//!         <- Cq <- Qp (and Qp -> Pd)
//! ```
//!
//! # Threads and forks
//!
//! libibverbs promises that any thread may call any verb on any object at any time. So all handles
//! are [`Send`] and [`Sync`].
//!
//! The objects belong to the process that opened the device. A forked child has the same file
//! descriptor, and could destroy its parent's registrations through this descriptor. So in a child,
//! dropping a handle does nothing, and [`Loopback`] fails with [`Error::ForkedChild`]. Open the
//! device again in the child.
//!
//! [`Arc`]: std::sync::Arc
#![warn(missing_docs)]

pub mod cm;
mod cq;
mod device;
mod errno;
mod error;
mod fork;
mod gid;
mod loopback;
mod mr;
mod on_demand;
mod pd;
mod port;
mod qp;
mod registrar;
mod route;

pub use cq::{Completion, Cq, WcStatus};
pub use device::{Context, device_names};
pub use error::{End, Error, Operation};
pub use fork::fork_init;
pub use gid::{Gid, GidEntry, GidType};
pub use loopback::Loopback;
pub use mr::Mr;
pub use on_demand::{OnDemand, OnDemandMr};
pub use pd::Pd;
pub use port::{LinkLayer, Port, PortState};
pub use qp::{Qp, RemoteMemory, Sge};
pub use regcache_verbs_types::Access;
pub use registrar::MrRegistrar;
pub use route::Route;

/// Checks that the types which are `Send` and `Sync` through their fields stay so.
const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<MrRegistrar>();
    any_thread::<Loopback>();
};

/// Compares `regcache-verbs-types` with the header of libibverbs.
#[cfg(test)]
mod types {
    use std::mem::offset_of;

    use rdma_sys::{ibv_access_flags, ibv_mr, ibv_pd};
    use regcache_verbs_types::{Access, Mr, Pd};

    #[test]
    fn flags_are_the_headers() {
        let pairs = [
            (
                Access::LOCAL_WRITE,
                ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            ),
            (
                Access::REMOTE_WRITE,
                ibv_access_flags::IBV_ACCESS_REMOTE_WRITE,
            ),
            (
                Access::REMOTE_READ,
                ibv_access_flags::IBV_ACCESS_REMOTE_READ,
            ),
            (
                Access::REMOTE_ATOMIC,
                ibv_access_flags::IBV_ACCESS_REMOTE_ATOMIC,
            ),
            (Access::HUGETLB, ibv_access_flags::IBV_ACCESS_HUGETLB),
            (
                Access::RELAXED_ORDERING,
                ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING,
            ),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours.bits(), theirs.0, "{ours:?}");
        }
        assert_eq!(Access::all().iter().count(), pairs.len());
    }

    #[test]
    fn structures_are_the_headers() {
        assert_eq!(offset_of!(Pd, context), offset_of!(ibv_pd, context));
        assert_eq!(offset_of!(Pd, handle), offset_of!(ibv_pd, handle));
        assert_eq!(size_of::<Pd>(), size_of::<ibv_pd>());
        assert_eq!(offset_of!(Mr, context), offset_of!(ibv_mr, context));
        assert_eq!(offset_of!(Mr, pd), offset_of!(ibv_mr, pd));
        assert_eq!(offset_of!(Mr, addr), offset_of!(ibv_mr, addr));
        assert_eq!(offset_of!(Mr, length), offset_of!(ibv_mr, length));
        assert_eq!(offset_of!(Mr, handle), offset_of!(ibv_mr, handle));
        assert_eq!(offset_of!(Mr, lkey), offset_of!(ibv_mr, lkey));
        assert_eq!(offset_of!(Mr, rkey), offset_of!(ibv_mr, rkey));
        assert_eq!(size_of::<Mr>(), size_of::<ibv_mr>());
    }
}
