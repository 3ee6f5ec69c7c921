use regcache::Cache;
use regcache_verbs::{Context, Loopback, MrRegistrar, Pd};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pd = Pd::alloc(&Context::open_first()?)?;
    let cache = Cache::builder(MrRegistrar::new(&pd)).build()?;
    let mut link = Loopback::connect(&pd)?; // a connection with ourselves, as an example

    let mut sink = vec![0; 1 << 20];
    for round in 0..100 {
        // A fresh buffer each time. malloc unmaps the last one and is given the same address again:
        // a naive cache would send the first round's bytes for ever.
        let source = vec![round; 1 << 20];
        link.send(&cache, &source, &mut sink)?;
        assert!(sink.iter().all(|&byte| byte == round));
    }
    println!("{}", cache.stats());
    Ok(())
}
