//! Caches the registrations of a protection domain that was made with the crate `ibverbs-sys`.

use std::error::Error;
use std::io;
use std::ptr::NonNull;

use ibverbs_sys::{
    ibv_alloc_pd, ibv_close_device, ibv_context, ibv_dealloc_pd, ibv_free_device_list,
    ibv_get_device_list, ibv_open_device, ibv_pd,
};
use regcache::Cache;
use regcache_verbs::{Access, MrRegistrar, Pd};

/// The first device, and a protection domain of it.
struct Domain {
    context: NonNull<ibv_context>,
    pd: NonNull<ibv_pd>,
}

impl Domain {
    fn of_first_device() -> io::Result<Self> {
        // SAFETY: a null pointer is allowed for the count.
        let list = unsafe { ibv_get_device_list(std::ptr::null_mut()) };
        let list = NonNull::new(list).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the list ends with a null pointer, so it has a first element.
        let device = unsafe { *list.as_ptr() };
        let context = if device.is_null() {
            Err(io::Error::other("no RDMA device"))
        } else {
            // SAFETY: the device is from the list, which exists.
            let context = unsafe { ibv_open_device(device) };
            NonNull::new(context).ok_or_else(io::Error::last_os_error)
        };
        // SAFETY: the list is not used after this call. An open device does not need the list.
        unsafe { ibv_free_device_list(list.as_ptr()) };
        let context = context?;
        // SAFETY: the device is open.
        let pd = unsafe { ibv_alloc_pd(context.as_ptr()) };
        let Some(pd) = NonNull::new(pd) else {
            let error = io::Error::last_os_error();
            // SAFETY: nothing uses the device.
            unsafe { ibv_close_device(context.as_ptr()) };
            return Err(error);
        };
        Ok(Self { context, pd })
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: both exist, and nothing uses them after the value.
        unsafe {
            ibv_dealloc_pd(self.pd.as_ptr());
            ibv_close_device(self.context.as_ptr());
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let theirs = Domain::of_first_device()?;
    // SAFETY: this process has opened the device. `theirs` lives until the end of this function,
    // and is declared before all objects that use the domain.
    let pd = unsafe { Pd::borrowed(theirs.pd.cast()) };
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
