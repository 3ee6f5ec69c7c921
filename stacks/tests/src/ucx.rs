//! UCX over its transport for reliable connections.

use regcache_test_support::ld_preload;

use crate::plugins::Plugins;
use crate::stack::Environment;
use crate::{Change, Device, Monitor, Stack};

/// One thread that sends from one buffer.
pub(crate) const UCX: Stack = Stack {
    name: "ucx",
    package: "libucx0",
    launcher: &[],
    program: "ucx",
    cost: None,
    environment: ENVIRONMENT,
    device: Device::Loopback,
    monitors: &monitors(ALL),
};

/// Several threads, contexts and sizes, with a cache that evicts.
pub(crate) const MANY: Stack = Stack {
    name: "ucx-many",
    environment: &[
        RXE[0],
        RXE[1],
        RXE[2],
        LARGE[0],
        LARGE[1],
        ("UCX_PROGRAM", "many"),
        // UCX 1.13 has the cache of a device, and later versions have the cache of a context.
        ("UCX_IB_RCACHE_MAX_REGIONS", "6"),
        ("UCX_RCACHE_MAX_REGIONS", "6"),
        ("UCX_WARN_UNUSED_ENV_VARS", "n"),
    ],
    monitors: &monitors(&[Change::Raw]),
    ..UCX
};

pub(crate) const ALL: &[Change] = &[
    Change::Munmap,
    Change::Raw,
    Change::Threads,
    Change::Truncate,
];

/// The settings with which UCX uses rxe0. UCX reads the type of a packet from the completions of
/// another device's driver, so the check has to be off for rxe.
pub(crate) const RXE: [(&str, &str); 3] = [
    ("UCX_TLS", "rc"),
    ("UCX_NET_DEVICES", "rxe0:1"),
    ("UCX_UD_VERBS_ETH_DGID_CHECK", "n"),
];

/// The settings with which UCX registers the buffers of a message, and does not copy the message.
const LARGE: [(&str, &str); 2] = [
    ("UCX_RNDV_THRESH", "8192"),
    ("UCX_RNDV_SCHEME", "get_zcopy"),
];

const ENVIRONMENT: &[(&str, &str)] = &[RXE[0], RXE[1], RXE[2], LARGE[0], LARGE[1]];

/// UCX's own monitor and ours, each with these changes.
pub(crate) const fn monitors(changes: &'static [Change]) -> [Monitor; 3] {
    [
        Monitor::new("own:ucm", |_| Vec::new(), changes),
        Monitor::new("door:preload", preload, changes),
        Monitor::new("door:shim", shim, changes),
    ]
}

fn preload(plugins: &Plugins) -> Environment {
    vec![("LD_PRELOAD", ld_preload(&[plugins.ucx()]))]
}

/// UCX's caches off. UCX 1.13 has the cache of a device, and later versions have the cache of a
/// context.
fn shim(plugins: &Plugins) -> Environment {
    vec![
        ("UCX_RCACHE_ENABLE", "n".into()),
        ("UCX_IB_REG_METHODS", "direct".into()),
        ("UCX_IB_FORK_INIT", "n".into()),
        ("UCX_WARN_UNUSED_ENV_VARS", "n".into()),
        ("REGCACHE_REMOTE", "keep".into()),
        ("LD_PRELOAD", ld_preload(&[plugins.shim()])),
    ]
}
