//! Runs peers: registration caches of other libraries. A peer is a variant, and is measured in the
//! same rounds as regcache.
//!
//! A process can choose the monitor of libfabric's cache only once. So each peer is a separate
//! process. A peer does transfers on command, and reports the time and the overhead of each
//! transfer.

#[cfg(feature = "libfabric")]
pub mod libfabric;

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::counted::Reading;
use crate::error::Trying;
use crate::timing::{Tally, Timing};
use crate::variant::Variant;
use crate::{Error, Workload};

/// A monitor of libfabric's registration cache, as `FI_MR_CACHE_MONITOR` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// The hooks of libfabric, which patch the code of the C library's functions.
    Memhooks,
    /// The events of userfaultfd.
    Userfaultfd,
    /// No monitor and no cache: libfabric registers before each transfer.
    Disabled,
}

impl Monitor {
    /// All monitors.
    pub const ALL: [Self; 3] = [Self::Memhooks, Self::Userfaultfd, Self::Disabled];

    /// Returns the value of `FI_MR_CACHE_MONITOR` that selects this monitor.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memhooks => "memhooks",
            Self::Userfaultfd => "userfaultfd",
            Self::Disabled => "disabled",
        }
    }
}

/// A peer, which runs in a separate process.
pub struct Peer {
    name: String,
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    tally: Tally,
}

impl Peer {
    /// Starts `program libfabric ADDRESS OP SIZE` with this monitor. `address` is the address of
    /// the device's interface.
    ///
    /// # Errors
    ///
    /// Returns an error if the process cannot be started, or if the first transfer of the process
    /// fails.
    pub fn start(
        program: &Path,
        address: IpAddr,
        monitor: Monitor,
        workload: Workload,
    ) -> Result<Self, Error> {
        let mut process = Command::new(program)
            .args(["libfabric", &address.to_string()])
            .args([workload.op.to_string(), workload.size.to_string()])
            .env("FI_MR_CACHE_MONITOR", monitor.name())
            .env("FI_LOG_LEVEL", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .trying("start a peer")?;
        let (Some(orders), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Error::Cannot("the peer has no pipes".to_owned()));
        };
        let mut peer = Self {
            name: format!("libfabric-{}", monitor.name()),
            process,
            orders,
            answers: BufReader::new(answers),
            tally: Tally::new()?,
        };
        // The answer to this first transfer shows that the peer is connected.
        peer.run(1)?;
        Ok(peer)
    }

    fn answer(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        let read = self
            .answers
            .read_line(&mut line)
            .trying("read the answer of a peer")?;
        if read == 0 {
            return Err(Error::Cannot(format!(
                "{} ended early: run it with FI_LOG_LEVEL=info to see why",
                self.name
            )));
        }
        Ok(line)
    }
}

impl Variant for Peer {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn unmap_every(&self) -> u64 {
        0
    }

    fn run(&mut self, transfers: u64) -> Result<Duration, Error> {
        writeln!(self.orders, "{transfers}").trying("command a peer")?;
        let line = self.answer()?;
        let mut words = line.split_whitespace();
        let took = words.next().and_then(|word| word.parse().ok());
        for timing in words.map_while(Timing::parse) {
            self.tally.record(timing);
        }
        match took {
            Some(took) => Ok(Duration::from_nanos(took)),
            None => Err(Error::Cannot(format!("{}: {}", self.name, line.trim()))),
        }
    }

    fn visit(&mut self) -> Result<(), Error> {
        self.run(1).map(drop)
    }

    fn start(&mut self) -> Result<(), Error> {
        self.tally = Tally::new()?;
        Ok(())
    }

    fn tally(&self) -> Result<Tally, Error> {
        Ok(self.tally.clone())
    }

    fn counts(&self) -> Reading {
        // The peer's process makes the calls, so this process cannot count the calls.
        Reading::default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // If `kill` fails, the process has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
