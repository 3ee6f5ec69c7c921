//! Open MPI, over UCX and over libfabric, with two ranks and with four.

use regcache_test_support::SecondDevice;

use crate::{Change, Device, Monitor, Stack, libfabric, ucx};

/// Returns the words that run this many ranks on this machine, with these parameters of Open MPI.
macro_rules! mpirun {
    ($ranks:literal, $($parameter:literal $value:literal),*) => {
        &[
            "mpirun", "-np", $ranks, "--oversubscribe",
            $("--mca", $parameter, $value),*
        ]
    };
}

/// Returns the words that run two ranks on each of two hosts, with these parameters of Open MPI.
macro_rules! on_hosts {
    ($($parameter:literal $value:literal),*) => {
        &[
            "sh", concat!(env!("CARGO_MANIFEST_DIR"), "/hosts.sh"), "2",
            // The ranks of both hosts share the CPUs of this machine.
            "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1",
            $("--mca", $parameter, $value,)* "--"
        ]
    };
}

macro_rules! over_ucx {
    ($ranks:literal) => {
        mpirun!($ranks, "pml" "ucx", "osc" "^ucx", "btl" "^openib")
    };
}

macro_rules! over_libfabric {
    ($ranks:literal) => {
        mpirun!(
            $ranks,
            "pml" "cm",
            "mtl" "ofi",
            "mtl_ofi_provider_include" "verbs;ofi_rxm",
            "btl" "^openib,ofi"
        )
    };
}

pub(crate) const OVER_UCX: Stack = Stack {
    name: "openmpi-ucx",
    package: "openmpi-bin",
    launcher: over_ucx!("2"),
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
    monitors: &ucx::monitors(CHANGES),
};

pub(crate) const OVER_UCX_4: Stack = Stack {
    name: "openmpi-ucx-4",
    launcher: over_ucx!("4"),
    ..OVER_UCX
};

/// Two ranks on each of two hosts.
pub(crate) const OVER_UCX_HOSTS: Stack = Stack {
    name: "openmpi-ucx-hosts",
    launcher: on_hosts!("pml" "ucx", "osc" "^ucx"),
    device: Device::Namespaces,
    ..OVER_UCX
};

pub(crate) const OVER_LIBFABRIC: Stack = Stack {
    name: "openmpi-libfabric",
    launcher: over_libfabric!("2"),
    environment: &[
        AS_ROOT[0],
        AS_ROOT[1],
        libfabric::RXE[0],
        libfabric::RXE[1],
        ("FI_VERBS_IFACE", SecondDevice::INTERFACE),
    ],
    device: Device::AddressedAlone,
    monitors: &[
        // Open MPI imports this monitor into libfabric. It uses Open MPI's own hooks.
        Monitor::new("own:patcher", |_| Vec::new(), CHANGES),
        Monitor::new("door:provider", libfabric::provider, CHANGES),
        Monitor::new("door:preload", libfabric::preload, CHANGES),
        Monitor::new("door:shim", libfabric::shim, CHANGES),
    ],
    ..OVER_UCX
};

pub(crate) const OVER_LIBFABRIC_4: Stack = Stack {
    name: "openmpi-libfabric-4",
    launcher: over_libfabric!("4"),
    ..OVER_LIBFABRIC
};

/// Two ranks on each of two hosts.
pub(crate) const OVER_LIBFABRIC_HOSTS: Stack = Stack {
    name: "openmpi-libfabric-hosts",
    launcher: on_hosts!(
        "pml" "cm",
        "mtl" "ofi",
        "mtl_ofi_provider_include" "verbs;ofi_rxm",
        "btl" "^openib,ofi"
    ),
    device: Device::Namespaces,
    ..OVER_LIBFABRIC
};

const CHANGES: &[Change] = ucx::ALL;

const AS_ROOT: [(&str, &str); 2] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
];
