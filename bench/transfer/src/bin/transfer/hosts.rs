//! `transfer server` and `transfer client`: transfers between two hosts.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use regcache::monitor::Monitor;
use regcache_bench_transfer::{Error, Moved, Remote, move_bytes, serve};
use regcache_test_support::NeverReports;

use crate::measure::{Device, Work, raise_limits, ummunotify, with_best_monitor};

const PORT: u16 = 18515;

/// The address of the server.
#[derive(clap::Args)]
pub(crate) struct Server {
    /// Listen at this address of an RDMA device instead of at all addresses
    #[arg(default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)))]
    address: SocketAddr,
    /// Exit after this many connections; report an error if a connection failed
    #[arg(long)]
    clients: Option<usize>,
}

/// The address of the server, and the work of the client.
#[derive(clap::Args)]
pub(crate) struct Client {
    /// Connect with the server at this address; the default port is 18515
    #[arg(value_parser = address)]
    address: SocketAddr,
    /// Move this many MiB from memory that is continually freed and allocated, while the server
    /// checks every byte
    #[arg(long, value_name = "MIB")]
    r#move: Option<u64>,
    /// With --move, send messages of this many bytes
    #[arg(long, default_value_t = 1 << 20)]
    message: usize,
    /// With --move, use a cache without a monitor, so that the server finds stale bytes
    #[arg(long)]
    naive: bool,
    #[command(flatten)]
    work: Work,
}

fn address(text: &str) -> Result<SocketAddr, std::net::AddrParseError> {
    text.parse()
        .or_else(|_| text.parse().map(|host| SocketAddr::new(host, PORT)))
}

pub(crate) fn server(options: &Server) -> Result<ExitCode, Error> {
    raise_limits();
    let address = options.address;
    serve(address, options.clients, || {
        println!("listening at {address}");
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn client(options: &Client) -> Result<ExitCode, Error> {
    raise_limits();
    let remote = Remote::open(options.address)?;
    let name = remote.pd().context().device().to_owned();
    let Some(mib) = options.r#move else {
        return with_best_monitor(&options.work, &Device::verbs(&name), || Ok(remote.clone()));
    };
    if options.naive {
        moved(options, &remote, NeverReports, mib)
    } else {
        moved(options, &remote, ummunotify()?, mib)
    }
}

fn moved<M: Monitor>(
    options: &Client,
    remote: &Remote,
    monitor: M,
    mib: u64,
) -> Result<ExitCode, Error> {
    const DEPTH: usize = 4;
    let total = mib << 20;
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}  {eta_precise}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let name = monitor.name();
    let mut tick = |sent| bar.set_position(sent);
    let moved = move_bytes(remote, monitor, total, options.message, DEPTH, &mut tick)?;
    bar.finish_and_clear();
    let Moved {
        bytes,
        wrong,
        messages,
        reused,
        took,
        cache,
    } = moved;
    println!(
        "moved {bytes} bytes in {messages} messages, {reused} of them at an address that was used and freed before, in \
         {:.1} s: stale_bytes={wrong} monitor={name}\n{cache}",
        took.as_secs_f64()
    );
    Ok(if bytes == total && wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
