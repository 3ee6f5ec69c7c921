//! libfabric's verbs provider, below its messages of type RDM.

use std::path::PathBuf;

use regcache_test_support::{SecondDevice, ld_preload};

use crate::plugins::Plugins;
use crate::stack::Environment;
use crate::{Change, Device, Monitor, Stack};

/// The stack.
pub const LIBFABRIC: Stack = Stack {
    name: "libfabric",
    package: "libfabric1",
    launcher: &[],
    program: "libfabric",
    cost: Some("libfabric-cost"),
    environment: &[RXE[0], RXE[1], ("LIBFABRIC_ADDRESS", SecondDevice::ADDRESS)],
    device: Device::Addressed,
    monitors: &[
        Monitor::new(
            "own:memhooks",
            |_| vec![("FI_MR_CACHE_MONITOR", "memhooks".into())],
            ALL,
        ),
        Monitor::new(
            "own:userfaultfd",
            |_| vec![("FI_MR_CACHE_MONITOR", "userfaultfd".into())],
            ALL,
        ),
        Monitor::new("door:provider", provider, ALL),
        Monitor::new("door:preload", preload, ALL),
        Monitor::new("door:shim", shim, ALL),
    ],
};

/// The settings with which libfabric uses rxe.
pub(crate) const RXE: [(&str, &str); 2] = [
    // rxe refuses the large completion queue that the default needs.
    ("FI_UNIVERSE_SIZE", "16"),
    // Without this setting, messages up to 128 KiB are copied in segments, and the buffer is not
    // registered.
    ("FI_OFI_RXM_SAR_LIMIT", "0"),
];

const ALL: &[Change] = &[
    Change::Munmap,
    Change::Raw,
    Change::Threads,
    Change::Truncate,
    Change::Window,
];

pub(crate) fn provider(plugins: &Plugins) -> Environment {
    importing(plugins, &[])
}

pub(crate) fn preload(plugins: &Plugins) -> Environment {
    importing(plugins, &[plugins.fi()])
}

/// The provider that imports our monitor, and these preloaded libraries.
fn importing(plugins: &Plugins, libraries: &[PathBuf]) -> Environment {
    vec![
        ("FI_PROVIDER_PATH", plugins.providers().into()),
        ("LD_PRELOAD", ld_preload(libraries)),
    ]
}

pub(crate) fn shim(plugins: &Plugins) -> Environment {
    vec![
        ("FI_MR_CACHE_MAX_COUNT", "0".into()),
        ("FI_MR_CACHE_MONITOR", "disabled".into()),
        ("REGCACHE_REMOTE", "keep".into()),
        ("LD_PRELOAD", ld_preload(&[plugins.shim()])),
    ]
}
