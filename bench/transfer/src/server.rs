//! [`serve`]: the server, which is the other end of the transfers of clients on other hosts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use memmap2::MmapMut;
use regcache::VaRange;
use regcache_test_support::PAGE;
use regcache_verbs::cm::{Connection, Incoming, Listener};
use regcache_verbs::{Context, Cq, Mr, Pd, Qp, Sge, WcStatus};

use crate::Error;
use crate::buffers::wrong_bytes;
use crate::error::Trying;
use crate::qp_endpoint::{PEER_ACCESS, queue_pairs};
use crate::remote::{Offer, Request};

/// The time for which a thread sleeps if it finds no work.
const REST: Duration = Duration::from_micros(50);

/// Listens at `address`, and serves each client in a separate thread. Calls `ready` as soon as
/// clients can connect. Returns after `clients` clients. If `clients` is `None`, the number of
/// clients is not limited.
///
/// # Errors
///
/// Returns the errors of listening. The error of a client's thread is printed. If the number of
/// clients is limited, this function also returns that error.
pub fn serve(
    address: SocketAddr,
    clients: Option<usize>,
    ready: impl FnOnce(),
) -> Result<(), Error> {
    let listener = Listener::bind(address)?;
    ready();
    let mut threads = Vec::new();
    for _ in 0..clients.unwrap_or(usize::MAX) {
        let incoming = listener.next(None)?;
        let thread = thread::spawn(move || serve_one(incoming));
        if clients.is_some() {
            threads.push(thread);
        }
    }
    for thread in threads {
        let served = thread.join();
        served.map_err(|_| Error::Cannot("a client's thread panicked".to_owned()))??;
    }
    Ok(())
}

fn serve_one(incoming: Incoming) -> Result<(), Error> {
    let served = Request::from_bytes(incoming.hello())
        .ok_or_else(|| {
            Error::Cannot(
                "the client has another version: run the same build on both hosts".to_owned(),
            )
        })
        .and_then(|request| Served::accept(incoming, request)?.run());
    if let Err(error) = &served {
        eprintln!("transfer: client failed: {error}");
    }
    served
}

/// The server's side of one client's connection.
struct Served {
    // The queue pair is the first field, so it is dropped before the memory. After the queue pair
    // is dropped, the device no longer uses the memory.
    qp: Qp,
    cq: Arc<Cq>,
    connection: Connection,
    mr: Mr,
    memory: MmapMut,
    stride: usize,
    request: Request,
}

impl Served {
    fn accept(incoming: Incoming, request: Request) -> Result<Self, Error> {
        let pd = Pd::alloc(&Context::open(&incoming.device()?)?)?;
        let (cq, [qp]) = queue_pairs(&pd, request.depth)?;
        let stride = (request.size as usize).next_multiple_of(PAGE);
        let memory = MmapMut::map_anon(stride * request.depth as usize).trying("map memory")?;
        let range = VaRange::new(memory.as_ptr(), memory.len())?;
        let mr = Mr::register(&pd, range, PEER_ACCESS).trying("register memory")?;
        let offer = Offer {
            addr: mr.addr() as u64,
            rkey: mr.rkey(),
            stride: stride as u64,
        };
        let connection = incoming.accept(&qp, &offer.to_bytes(), || {
            (0..request.depth).try_for_each(|place| receive(&qp, &mr, stride, request, place))
        })?;
        Ok(Self {
            qp,
            cq,
            connection,
            mr,
            memory,
            stride,
            request,
        })
    }

    /// Serves until the client disconnects. If the server checks bytes, it sends the result to the
    /// client after the last byte.
    fn run(self) -> Result<(), Error> {
        let (mut received, mut wrong, mut messages) = (0, 0, 0);
        loop {
            let Some(completion) = self.cq.poll()? else {
                if self.connection.is_closed()? {
                    return Ok(());
                }
                thread::sleep(REST);
                continue;
            };
            if completion.status != WcStatus::SUCCESS {
                return Err(Error::Transfer(completion.status.to_string()));
            }
            let place = completion.wr_id as u32;
            if self.request.total > 0 {
                let len = self.request.size.min(self.request.total - received);
                let start = place as usize * self.stride;
                wrong += wrong_bytes(&self.memory[start..start + len as usize], messages);
                received += len;
                messages += 1;
                if received == self.request.total {
                    return self.answer(received, wrong);
                }
            }
            receive(&self.qp, &self.mr, self.stride, self.request, place)?;
        }
    }

    /// Sends the result to the client, and waits until the client disconnects.
    fn answer(mut self, received: u64, wrong: u64) -> Result<(), Error> {
        self.memory[..8].copy_from_slice(&received.to_le_bytes());
        self.memory[8..16].copy_from_slice(&wrong.to_le_bytes());
        let from = Sge {
            addr: self.mr.addr() as u64,
            length: 16,
            lkey: self.mr.lkey(),
        };
        // SAFETY: the memory belongs to this object and is registered. The client sends no more
        // messages, so from here on nothing writes to the memory.
        unsafe { self.qp.post_send(u64::MAX, from) }?;
        while !self.connection.is_closed()? {
            thread::sleep(REST);
        }
        Ok(())
    }
}

fn receive(qp: &Qp, mr: &Mr, stride: usize, request: Request, place: u32) -> Result<(), Error> {
    let into = Sge {
        addr: (mr.addr() + place as usize * stride) as u64,
        length: request.size as u32,
        lkey: mr.lkey(),
    };
    // SAFETY: the memory of a place is read only after its receive has completed, and before the
    // next receive is posted. The memory and its registration outlive the queue pair.
    Ok(unsafe { qp.post_recv(u64::from(place), into) }?)
}
