//! Serves the counters of a cache to Prometheus, while another thread transfers data.
//!
//! ```console
//! $ cargo run -p regcache-uring --example exporter -- 127.0.0.1:9473
//! $ curl http://127.0.0.1:9473/metrics
//! ```

use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use memmap2::MmapMut;
use regcache::{Cache, Stats};
use regcache_uring::{FileIo, UringRegistrar};

/// The result of the program and of its thread.
type Done = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Done {
    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:9473"))?;
    println!("http://{}/metrics", listener.local_addr()?);
    let io = FileIo::new()?;
    let cache = Cache::builder(io.registrar().clone()).build()?;
    thread::scope(|scope| {
        let work = scope.spawn(|| transfer(&io, &cache));
        for stream in listener.incoming() {
            // A client that disconnects early must not end the server, so the error is ignored.
            let _ = stream.and_then(|stream| answer(stream, &cache.stats()));
            if work.is_finished() {
                break;
            }
        }
        work.join().map_err(|_| "the transfers panicked")?
    })
}

/// Transfers data as a program would: most buffers are used several times and then unmapped.
fn transfer(io: &FileIo, cache: &Cache<UringRegistrar>) -> Done {
    let (reader, writer) = io::pipe()?;
    let mut sink = vec![0; 4096];
    loop {
        let source = MmapMut::map_anon(4096)?;
        for _ in 0..8 {
            io.write(cache, writer.as_fd(), &source, 0)?;
            io.read(cache, reader.as_fd(), &mut sink, 0)?;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Answers one request with the counters.
fn answer(stream: TcpStream, stats: &Stats) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut lines = BufReader::new(&stream).lines();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let body = stats.prometheus("io_uring").to_string();
    write!(
        &stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}
