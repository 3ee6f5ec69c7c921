//! Open MPI, over UCX and over libfabric, with two ranks and with four.

use regcache_test_support::SecondDevice;

use crate::{Change, Device, Monitor, Stack, libfabric, ucx};

pub(crate) const OVER_UCX: Stack = Stack {
    name: "openmpi-ucx",
    package: "openmpi-bin",
    launcher: &[
        "mpirun",
        "-np",
        "2",
        "--oversubscribe",
        "--mca",
        "pml",
        "ucx",
        "--mca",
        "osc",
        "^ucx",
        "--mca",
        "btl",
        "^openib",
    ],
    program: "mpi",
    cost: None,
    environment: &[
        AS_ROOT[0],
        AS_ROOT[1],
        ucx::RXE[0],
        ucx::RXE[1],
        ucx::RXE[2],
    ],
    device: Device::Loopback,
    monitors: &[
        Monitor {
            name: "own:ucm",
            environment: |_| Vec::new(),
            changes: ucx::ALL,
        },
        Monitor {
            name: "door:preload",
            environment: ucx::preload,
            changes: ucx::ALL,
        },
        Monitor {
            name: "door:shim",
            environment: ucx::shim,
            changes: ucx::ALL,
        },
    ],
};

pub(crate) const OVER_UCX_4: Stack = Stack {
    name: "openmpi-ucx-4",
    launcher: &[
        "mpirun",
        "-np",
        "4",
        "--oversubscribe",
        "--mca",
        "pml",
        "ucx",
        "--mca",
        "osc",
        "^ucx",
        "--mca",
        "btl",
        "^openib",
    ],
    ..OVER_UCX
};

/// Two ranks on each of two hosts.
pub(crate) const OVER_UCX_HOSTS: Stack = Stack {
    name: "openmpi-ucx-hosts",
    launcher: &[
        "sh",
        concat!(env!("CARGO_MANIFEST_DIR"), "/hosts.sh"),
        "2",
        "--mca",
        "pml",
        "ucx",
        "--mca",
        "osc",
        "^ucx",
        "--",
    ],
    device: Device::Namespaces,
    ..OVER_UCX
};

pub(crate) const OVER_LIBFABRIC: Stack = Stack {
    name: "openmpi-libfabric",
    launcher: &[
        "mpirun",
        "-np",
        "2",
        "--oversubscribe",
        "--mca",
        "pml",
        "cm",
        "--mca",
        "mtl",
        "ofi",
        "--mca",
        "mtl_ofi_provider_include",
        "verbs;ofi_rxm",
        "--mca",
        "btl",
        "^openib,ofi",
    ],
    environment: &[
        AS_ROOT[0],
        AS_ROOT[1],
        ("FI_UNIVERSE_SIZE", "16"),
        ("FI_OFI_RXM_SAR_LIMIT", "0"),
        ("FI_VERBS_IFACE", SecondDevice::INTERFACE),
    ],
    device: Device::AddressedAlone,
    monitors: &[
        Monitor {
            // Open MPI imports this monitor into libfabric. It uses Open MPI's own hooks.
            name: "own:patcher",
            environment: |_| Vec::new(),
            changes: CHANGES,
        },
        Monitor {
            name: "door:provider",
            environment: libfabric::provider,
            changes: CHANGES,
        },
        Monitor {
            name: "door:preload",
            environment: libfabric::preload,
            changes: CHANGES,
        },
        Monitor {
            name: "door:shim",
            environment: libfabric::shim,
            changes: CHANGES,
        },
    ],
    ..OVER_UCX
};

pub(crate) const OVER_LIBFABRIC_4: Stack = Stack {
    name: "openmpi-libfabric-4",
    launcher: &[
        "mpirun",
        "-np",
        "4",
        "--oversubscribe",
        "--mca",
        "pml",
        "cm",
        "--mca",
        "mtl",
        "ofi",
        "--mca",
        "mtl_ofi_provider_include",
        "verbs;ofi_rxm",
        "--mca",
        "btl",
        "^openib,ofi",
    ],
    ..OVER_LIBFABRIC
};

const CHANGES: &[Change] = ucx::ALL;

const AS_ROOT: [(&str, &str); 2] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
];
