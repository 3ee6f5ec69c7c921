//! [`serve`]: the other end of transfers from another host.

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

/// How long a thread sleeps when there is nothing to do.
const REST: Duration = Duration::from_micros(50);

/// Listens at `address` and serves each client in a thread, for ever or until this many clients
/// were served. `ready` is called when it listens.
///
/// # Errors
///
/// The device's errors while listening. The error of a client is printed; it is returned as well if
/// the number of clients is limited.
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
                "a client of another version: run the same build on both hosts".to_owned(),
            )
        })
        .and_then(|request| Served::accept(incoming, request)?.run());
    if let Err(error) = &served {
        eprintln!("transfer: client failed: {error}");
    }
    served
}

/// A client that is served.
struct Served {
    // First: when it is destroyed, the device has let go of the memory.
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

    /// Serves until the client disconnects or has sent all bytes that are to be checked.
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

    /// Sends the client the result, and waits until it disconnects.
    fn answer(mut self, received: u64, wrong: u64) -> Result<(), Error> {
        self.memory[..8].copy_from_slice(&received.to_le_bytes());
        self.memory[8..16].copy_from_slice(&wrong.to_le_bytes());
        let from = Sge {
            addr: self.mr.addr() as u64,
            length: 16,
            lkey: self.mr.lkey(),
        };
        // SAFETY: the memory is ours and registered, and nothing writes it from here on: the client
        // sends no more.
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
    // SAFETY: the memory of a place is read only after its receive has completed and before the
    // next is posted. It and its registration outlive the queue pair.
    Ok(unsafe { qp.post_recv(u64::from(place), into) }?)
}
