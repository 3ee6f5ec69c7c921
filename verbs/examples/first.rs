use regcache::Cache;
use regcache_verbs::{Access, Context, Loopback, MrRegistrar, Pd};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pd = Pd::alloc(&Context::open_first()?)?;
    let cache = Cache::builder(MrRegistrar::new(&pd)).build()?;
    let mut link = Loopback::connect(&pd)?; // any connection of yours; this one is to ourselves

    let mut sink = vec![0; 1 << 16];
    for round in 0..100 {
        // A fresh buffer each time. malloc unmaps the last one and is given the same address again:
        // a naive cache would send the first round's bytes for ever.
        let source = vec![round; 1 << 16];
        let from = cache.get(source.as_ptr(), source.len(), Access::empty())?;
        let to = cache.get(sink.as_ptr(), sink.len(), Access::LOCAL_WRITE)?;
        link.send(&source, from.registration(), &mut sink, to.registration())?;
        assert!(sink.iter().all(|&byte| byte == round));
    }
    println!("{}", cache.stats());
    Ok(())
}
