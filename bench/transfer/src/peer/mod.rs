//! Peers: registration caches of other libraries, doing the same work by rounds with ours.
//!
//! libfabric reads which monitor its cache shall have once in the life of a process, so that each is a process of its own,
//! which does its transfers when it is told to. It says how long each took, and of that the preparing and releasing.

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
    /// Hooks in the C library and patched code.
    Memhooks,
    /// userfaultfd's events.
    Userfaultfd,
    /// No cache: registers each time.
    Disabled,
}

impl Monitor {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memhooks, Self::Userfaultfd, Self::Disabled];

    /// As the variable has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memhooks => "memhooks",
            Self::Userfaultfd => "userfaultfd",
            Self::Disabled => "disabled",
        }
    }
}

/// A peer at work.
pub struct Peer {
    name: String,
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    tally: Tally,
}

impl Peer {
    /// Starts `program fabric ADDRESS OP SIZE` with this monitor; by the address it finds the device.
    ///
    /// # Errors
    ///
    /// What the system says, or the peer.
    pub fn start(
        program: &Path,
        address: IpAddr,
        monitor: Monitor,
        workload: Workload,
    ) -> Result<Self, Error> {
        let mut process = Command::new(program)
            .args(["fabric", &address.to_string()])
            .args([workload.op.to_string(), workload.size.to_string()])
            .env("FI_MR_CACHE_MONITOR", monitor.name())
            .env("FI_LOG_LEVEL", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .trying("start a peer")?;
        let (Some(orders), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Error::Cannot("a peer has no pipes".to_owned()));
        };
        let mut peer = Self {
            name: format!("libfabric-{}", monitor.name()),
            process,
            orders,
            answers: BufReader::new(answers),
            tally: Tally::new()?,
        };
        // It is connected when it answers.
        peer.run(1)?;
        Ok(peer)
    }

    fn answer(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).trying("hear of a peer")?;
        if read == 0 {
            return Err(Error::Cannot(format!("{} has ended", self.name)));
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
        writeln!(self.orders, "{transfers}").trying("tell a peer")?;
        let line = self.answer()?;
        let mut words = line.split_whitespace();
        let took = words.next().and_then(|word| word.parse().ok());
        for sample in words.map_while(Timing::parse) {
            self.tally.record(sample);
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
        // Nobody outside can count them.
        Reading::default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It fails if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
