//! Caches the registrations of a protection domain that the crate `sideway` made.

use std::error::Error;

use regcache::Cache;
use regcache_verbs::{Access, MrRegistrar, Pd};
use sideway::ibverbs::device::DeviceList;

fn main() -> Result<(), Box<dyn Error>> {
    let devices = DeviceList::new()?;
    let device = devices.get(0).ok_or("no RDMA device")?;
    let theirs = device.open()?.alloc_pd()?;
    // SAFETY: sideway has opened the device in this process. `theirs` lives until the end of this
    // function, and is declared before all objects that use the domain.
    let pd = unsafe { Pd::borrowed(theirs.pd().cast()) };
    let cache = Cache::builder(MrRegistrar::new(&pd)).build()?;
    for round in 0..3 {
        let buffer = vec![round; 1 << 20];
        for _ in 0..2 {
            let guard = cache.get(buffer.as_ptr(), buffer.len(), Access::LOCAL_WRITE)?;
            println!("round {round}: lkey {:#x}", guard.registration().lkey());
        }
    }
    println!("{}: {}", cache.monitor_name(), cache.stats());
    Ok(())
}
