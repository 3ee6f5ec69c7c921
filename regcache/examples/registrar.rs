// This program implements a registrar whose device is a list in memory. Any other device works the
// same way, because the cache uses only the two methods of the registrar.
use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};

use regcache::{Cache, Registrar, VaRange};

/// A device with a table of registered ranges. The key of a registration is the index of its range
/// in the table.
#[derive(Default)]
struct Device {
    table: Mutex<Vec<Option<VaRange>>>,
}

// SAFETY: no device accesses memory through a key, because a key is only a number here.
unsafe impl Registrar for Device {
    type Access = ();
    type Registration = usize;

    fn register(&self, range: VaRange, (): ()) -> io::Result<usize> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.push(Some(range));
        Ok(table.len() - 1)
    }

    fn deregister(&self, key: usize) -> io::Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table[key] = None;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let cache = Cache::builder(Device::default()).build()?;
    let buffer = vec![0_u8; 64 << 10];

    for transfer in 1..=3 {
        let guard = cache.get_slice(&buffer, ())?;
        let key = guard.registration();
        println!("transfer {transfer} uses key {key} for {}", guard.range());
        // A program posts the transfer here, and drops the guard when the transfer completes.
    }

    // With a monitor, only the first lookup is a miss. Without a monitor, every lookup is a miss.
    println!("{}: {}", cache.monitor_name(), cache.stats());
    drop(buffer);
    Ok(())
}
