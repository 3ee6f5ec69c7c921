//! Measures the time of a call of `membarrier`. The call makes the kernel execute a fence in every
//! running thread of the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use regcache_bench_harness::{Pinned, median, timed};

use crate::Result;

// The commands of `membarrier`. In linux/membarrier.h their names begin with `MEMBARRIER_CMD_`.
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

pub(crate) fn report() -> Result<()> {
    if let Err(errno) = membarrier(REGISTER_PRIVATE_EXPEDITED) {
        println!("This kernel has no membarrier: {errno}\n");
        return Ok(());
    }
    println!("| cost of the asymmetric fence to the thread that reclaims | ns |");
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
    let mut samples = Vec::new();
    for _ in 0..101 {
        let mut worked = Ok(());
        let sample = timed(20, || {
            for _ in 0..20 {
                worked = worked.and(membarrier(PRIVATE_EXPEDITED));
            }
        });
        worked?;
        samples.push(sample.ns);
    }
    Ok(median(samples))
}

fn membarrier(command: libc::c_int) -> nix::Result<()> {
    // SAFETY: membarrier accesses no memory of the process. It only orders memory accesses.
    let status = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    Errno::result(status).map(drop)
}
