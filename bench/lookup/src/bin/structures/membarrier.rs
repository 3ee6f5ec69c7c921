//! What a fence in all other threads costs the one that asks for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use regcache_bench::block::{Pinned, median, timed};

use crate::Result;

// linux/membarrier.h
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

pub(crate) fn report() -> Result<()> {
    if let Err(errno) = membarrier(REGISTER_PRIVATE_EXPEDITED) {
        println!("No membarrier on this kernel: {errno}\n");
        return Ok(());
    }
    println!("| what the asymmetric fence costs who reclaims | ns |");
    println!("|---|---|");
    println!("| `membarrier`, no other thread running | {:.0} |", cost()?);
    let (started, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let cost = thread::scope(|scope| {
        scope.spawn(|| {
            let _here = Pinned::to(1);
            started.store(true, Ordering::Relaxed);
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        while !started.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        let cost = cost();
        stop.store(true, Ordering::Relaxed);
        cost
    })?;
    println!("| `membarrier`, another thread running | {cost:.0} |\n");
    Ok(())
}

fn cost() -> Result<f64> {
    let _here = Pinned::to(0);
    let mut blocks = Vec::new();
    for _ in 0..101 {
        let mut worked = Ok(());
        let block = timed(20, || {
            for _ in 0..20 {
                worked = worked.and(membarrier(PRIVATE_EXPEDITED));
            }
        });
        worked?;
        blocks.push(block.ns);
    }
    Ok(median(blocks))
}

fn membarrier(command: libc::c_int) -> nix::Result<()> {
    // SAFETY: it has no effect but on the order of memory accesses, which it only restricts.
    let status = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    Errno::result(status).map(drop)
}
