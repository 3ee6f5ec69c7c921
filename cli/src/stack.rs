//! The settings that put the shim below a stack in place of the stack's own registration cache.
//! `docs/guide/stacks.md` describes them.

/// A stack whose programs run under the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Stack {
    /// UCX 1.13 or later, also below Open MPI
    Ucx,
    /// libfabric 1.14 or later, also below Open MPI and MPICH
    Libfabric,
}

impl Stack {
    /// Returns the environment variables that switch the stack's own cache off, and those of the
    /// shim.
    pub(crate) fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Ucx => &[
                // Releases before 1.16 have a cache for each device, and later ones have one for
                // all. A release complains about a variable that it does not know.
                ("UCX_IB_REG_METHODS", "direct"),
                ("UCX_RCACHE_ENABLE", "n"),
                // Otherwise rdma-core before 51 hides registered memory from children, and the shim
                // keeps nothing.
                ("UCX_IB_FORK_INIT", "n"),
                ("UCX_WARN_UNUSED_ENV_VARS", "n"),
                SHARED_KEYS,
            ],
            // Open MPI imports a memory monitor of its own, and then FI_MR_CACHE_MONITOR=disabled
            // has no effect. A cache without entries stays off.
            Self::Libfabric => &[
                ("FI_MR_CACHE_MAX_COUNT", "0"),
                ("FI_MR_CACHE_MONITOR", "disabled"),
                SHARED_KEYS,
            ],
        }
    }
}

/// Stacks register all memory for remote access, so the shim would keep nothing without this
/// setting.
const SHARED_KEYS: (&str, &str) = ("REGCACHE_REMOTE", "keep");
