//! [`SecondDevice`]: an RDMA device with an address to which programs can connect.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::command::must;

/// A second RDMA device, rxe1, at an address to which programs can connect. It is needed because
/// rdma_cm finds no route over lo.
pub struct SecondDevice(());

impl SecondDevice {
    /// The name of the device.
    pub const NAME: &str = "rxe1";
    /// The address at which programs can connect over the device.
    pub const ADDRESS: &str = "192.0.2.1";
    /// The network interface of the device.
    pub const INTERFACE: &str = "regcache0";

    /// Adds the device. The caller must be root in a virtual machine.
    ///
    /// # Panics
    ///
    /// Panics if the device cannot be added.
    pub fn add() -> Self {
        let interface = Self::INTERFACE;
        let this = Self(());
        must("ip", &["link", "add", interface, "type", "dummy"]);
        must("ip", &["link", "set", interface, "up"]);
        must("ip", &["address", "add", "192.0.2.1/24", "dev", interface]);
        must(
            "rdma",
            &[
                "link",
                "add",
                Self::NAME,
                "type",
                "rxe",
                "netdev",
                interface,
            ],
        );
        must("udevadm", &["settle", "--timeout=60"]);
        // RoCE can use an address once it is in the table of GIDs.
        let table = format!("/sys/class/infiniband/{}/ports/1/gids", Self::NAME);
        let knows = |entry: fs::DirEntry| {
            fs::read_to_string(entry.path()).is_ok_and(|gid| gid.contains("ffff:c000:0201"))
        };
        for _ in 0..1200 {
            if fs::read_dir(&table).is_ok_and(|gids| gids.flatten().any(knows)) {
                return this;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("rxe1 has no address");
    }
}

impl Drop for SecondDevice {
    fn drop(&mut self) {
        // The device may already be deleted, so an error does not matter.
        let _ = Command::new("rdma")
            .args(["link", "delete", Self::NAME])
            .status();
        let _ = Command::new("ip")
            .args(["link", "delete", Self::INTERFACE])
            .status();
    }
}
