use memmap2::MmapMut;
use regcache::Cache;
use regcache_verbs::{Context, Loopback, MrRegistrar, Pd};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pd = Pd::alloc(&Context::open_first()?)?;
    let cache = Cache::builder(MrRegistrar::new(&pd)).build()?;
    let mut link = Loopback::connect(&pd)?; // a connection with ourselves, as an example

    let mut sink = vec![0; 1 << 20];
    for round in 0..100 {
        // Each round maps a fresh buffer, and the kernel maps it at the last buffer's address. So
        // a naive cache would send the first round's bytes again.
        let mut source = MmapMut::map_anon(1 << 20)?;
        source.fill(round);
        link.send(&cache, &source, &mut sink)?;
        assert!(sink.iter().all(|&byte| byte == round));
    }
    println!("{}", cache.stats());
    Ok(())
}
