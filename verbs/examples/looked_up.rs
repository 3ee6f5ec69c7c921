use std::error::Error;

use memmap2::MmapMut;
use regcache::Cache;
use regcache_verbs::{Context, Loopback, MrRegistrar, Pd};

fn main() -> Result<(), Box<dyn Error>> {
    let pd = Pd::alloc(&Context::open_first()?)?;
    let mut link = Loopback::connect(&pd)?;
    let cache = Cache::builder(MrRegistrar::new(&pd)).build()?;
    let mut sink = vec![0; 1 << 20];
    for round in 0..10 {
        let mut source = MmapMut::map_anon(1 << 20)?;
        source.fill(round);
        link.send(&cache, &source, &mut sink)?;
        assert!(sink.iter().all(|&byte| byte == round));
    }
    println!("{}", cache.stats());
    Ok(())
}
