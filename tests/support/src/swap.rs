//! Swap space in compressed memory, for tests in the virtual machine.

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use crate::command::must;

const ZRAM: &str = "/dev/zram0";
const SETTINGS: &str = "/sys/block/zram0";

/// Swap space of 512 MiB in compressed memory. Dropping the value switches the swap space off and
/// makes the device free for the next test.
#[derive(Debug)]
pub struct Swap(());

impl Swap {
    /// Sets up the device and switches the swap space on.
    ///
    /// # Panics
    ///
    /// If there is no device `zram0`, or if another test uses it.
    #[must_use]
    pub fn on() -> Self {
        if !Path::new(SETTINGS).exists() {
            must("modprobe", &["zram"]);
        }
        let size = Path::new(SETTINGS).join("disksize");
        if let Err(error) = fs::write(&size, "512M") {
            panic!("{}: {error}", size.display());
        }
        // The value exists from here on, so that a panic below resets the device.
        let swap = Self(());
        must("mkswap", &[ZRAM]);
        must("swapon", &[ZRAM]);
        swap
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(ZRAM).status();
        let reset = Path::new(SETTINGS).join("reset");
        // The device is busy while a process has the device open. For example, udev opens the
        // device after a change.
        for _ in 0..100 {
            if fs::write(&reset, "1").is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{}: still busy after two seconds", reset.display());
    }
}
