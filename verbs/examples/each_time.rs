use std::error::Error;

use memmap2::MmapMut;
use regcache::VaRange;
use regcache_verbs::{Access, Context, Loopback, Mr, Pd};

fn main() -> Result<(), Box<dyn Error>> {
    let pd = Pd::alloc(&Context::open_first()?)?;
    let mut link = Loopback::connect(&pd)?;
    let mut sink = vec![0; 1 << 20];
    let to = VaRange::new(sink.as_ptr(), sink.len())?;
    let to = Mr::register(&pd, to, Access::LOCAL_WRITE)?;
    for round in 0..10 {
        let mut source = MmapMut::map_anon(1 << 20)?;
        source.fill(round);
        let from = VaRange::new(source.as_ptr(), source.len())?;
        let from = Mr::register(&pd, from, Access::empty())?; // pins 256 pages
        // SAFETY: neither buffer has been remapped since it was registered.
        unsafe { link.send_registered(&source, &from, &mut sink, &to) }?;
        from.deregister()?; // unpins the 256 pages
        assert!(sink.iter().all(|&byte| byte == round));
    }
    Ok(())
}
