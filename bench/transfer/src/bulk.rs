//! [`move_bytes`]: sends many bytes to another host, and the other host checks every byte. The
//! sender allocates memory for each message, and frees this memory after the message was sent.

use std::collections::{HashSet, VecDeque};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use regcache::monitor::Monitor;
use regcache::{Cache, Guard, Stats};
use regcache_verbs::{Access, MrRegistrar, Sge, WcStatus};

use crate::Error;
use crate::buffers::fill;
use crate::endpoint::PATIENCE;
use crate::error::Trying;
use crate::qp_endpoint::Region;
use crate::remote::{Connected, Remote, Request};

/// The result of a bulk transfer.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// The number of bytes that the receiver has checked.
    pub bytes: u64,
    /// The number of these bytes that differed from the payload.
    pub wrong: u64,
    /// The number of messages.
    pub messages: u64,
    /// The number of messages at an address at which an earlier message had been allocated and
    /// freed.
    pub reused: u64,
    /// The time of the whole bulk transfer. It includes the time to fill and to check the messages.
    pub took: Duration,
    /// The counters of the cache.
    pub cache: Stats,
}

/// The memory of a message. `mmap` and `malloc` allocate the messages alternately. Freeing memory
/// from `mmap` unmaps it. For freed memory from `malloc`, the allocator decides whether to return
/// it to the kernel.
enum Memory {
    Mapped(MmapMut),
    Allocated(Vec<u8>),
}

impl Memory {
    fn new(number: u64, len: usize) -> Result<Self, Error> {
        Ok(if number.is_multiple_of(2) {
            Self::Mapped(MmapMut::map_anon(len).trying("map a message")?)
        } else {
            Self::Allocated(vec![0; len])
        })
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Mapped(memory) => memory,
            Self::Allocated(memory) => memory,
        }
    }
}

/// Sends `total` bytes in messages of `size` bytes, and keeps up to `depth` messages in flight. The
/// messages are registered through a cache with the monitor `monitor`. The memory of each message
/// is allocated before its send, and freed after its send has completed.
///
/// # Errors
///
/// Returns the errors of the device or of the cache.
pub fn move_bytes<M: Monitor>(
    remote: &Remote,
    monitor: M,
    total: u64,
    size: usize,
    depth: usize,
    tick: &mut dyn FnMut(u64),
) -> Result<Moved, Error> {
    let cache = Cache::builder(MrRegistrar::new(remote.pd())).monitor(monitor);
    let cache = cache.build().trying("build the cache")?;
    let verdict = Region::new(remote.pd(), 16)?;
    let mut flights: VecDeque<(Memory, Guard<MrRegistrar, M>)> = VecDeque::new();
    // The queue pair is declared after the memory, so it is dropped before the memory. After the
    // queue pair is dropped, the device no longer uses the memory.
    let Connected {
        qp, cq, connection, ..
    } = remote.connect(Request {
        size: size as u64,
        depth: depth as u32,
        total,
    })?;
    // SAFETY: the sender reads this memory only after this receive has completed.
    unsafe { qp.post_recv(u64::MAX, verdict.sge()) }?;

    let started = Instant::now();
    let (mut sent, mut messages, mut reused) = (0, 0, 0);
    let mut before = HashSet::new();
    let mut is_judged = false;
    let mut quiet = Instant::now();
    while !is_judged {
        if sent < total && flights.len() < depth {
            let len = size.min((total - sent) as usize);
            let mut memory = Memory::new(messages, len)?;
            let bytes = memory.bytes();
            fill(bytes, messages);
            reused += u64::from(!before.insert(bytes.as_ptr().addr()));
            let guard = cache.get(bytes.as_ptr(), len, Access::empty())?;
            let from = Sge {
                addr: bytes.as_ptr().expose_provenance() as u64,
                length: len as u32,
                lkey: guard.registration().lkey(),
            };
            flights.push_back((memory, guard));
            // SAFETY: the memory and the guard stay in `flights` until the send has completed.
            // After an error, the memory and the guard outlive the queue pair.
            unsafe { qp.post_send(messages, from) }?;
            sent += len as u64;
            messages += 1;
            continue;
        }
        let Some(completion) = cq.poll()? else {
            if quiet.elapsed() > PATIENCE {
                return Err(Error::TimedOut { after: PATIENCE });
            }
            thread::sleep(Duration::from_micros(20));
            continue;
        };
        quiet = Instant::now();
        if completion.status != WcStatus::SUCCESS {
            return Err(Error::Transfer(completion.status.to_string()));
        }
        if completion.wr_id == u64::MAX {
            is_judged = true;
        } else if let Some((memory, guard)) = flights.pop_front() {
            // Sends complete in the order in which they were posted, so the oldest flight has
            // completed.
            drop(guard);
            drop(memory);
            tick(sent);
        }
    }
    let took = started.elapsed();
    let number = |at: usize| {
        let bytes: Result<[u8; 8], _> = verdict.bytes[at..at + 8].try_into();
        bytes.map_or(0, u64::from_le_bytes)
    };
    let moved = Moved {
        bytes: number(0),
        wrong: number(8),
        messages,
        reused,
        took,
        cache: cache.stats(),
    };
    drop(connection);
    Ok(moved)
}
