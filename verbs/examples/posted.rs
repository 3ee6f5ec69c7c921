use std::collections::VecDeque;
use std::error::Error;

use regcache::Cache;
use regcache_verbs::{
    Access, Context, Cq, MrRegistrar, Pd, Qp, RemoteMemory, Route, Sge, WcStatus,
};

const DEPTH: usize = 4;
const LEN: usize = 64 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let context = Context::open_first()?;
    let pd = Pd::alloc(&context)?;
    let cache = Cache::builder(MrRegistrar::new(&pd)).build()?;

    // This is the peer's memory. A real peer would register it and send us the key.
    let theirs = vec![0; LEN];
    let key = cache.get(theirs.as_ptr(), LEN, Access::REMOTE_WRITE)?;
    let to = RemoteMemory {
        addr: theirs.as_ptr() as u64,
        rkey: key.registration().rkey(),
    };

    // The guards must outlive the queue pairs. Rust drops variables in reverse order, so declare
    // the guards first.
    let mut under_way = VecDeque::new();
    let cq = Cq::create(&context, 2 * DEPTH as u32)?;
    let route = Route::to_self(&context, &context.active_port()?)?;
    let ours = Qp::create(&pd, &cq, &cq, DEPTH as u32)?;
    let peer = Qp::create(&pd, &cq, &cq, DEPTH as u32)?;
    Qp::connect(&ours, &peer, &route)?;

    for number in 0..100 {
        let buffer = vec![number; LEN];
        let guard = cache.get(buffer.as_ptr(), LEN, Access::empty())?;
        let from = Sge {
            addr: buffer.as_ptr() as u64,
            length: LEN as u32,
            lkey: guard.registration().lkey(),
        };
        under_way.push_back((buffer, guard));
        // SAFETY: the buffer and its guard are kept until the completion has been polled.
        unsafe { ours.post_rdma_write(u64::from(number), from, to) }?;

        while under_way.len() == DEPTH || number == 99 && !under_way.is_empty() {
            if let Some(completion) = cq.poll()? {
                assert_eq!(completion.status, WcStatus::SUCCESS);
                // Completions come in order. Free the buffer and drop its guard.
                under_way.pop_front();
            }
        }
    }
    drop((ours, peer));
    assert!(theirs.iter().all(|&byte| byte == 99));
    println!("{}", cache.stats());
    Ok(())
}
